"""Compiled layers, recomputed activations and sharded weights: the same results with less time or memory.

Decisions: of compiling, the layers of a transformer alone are compiled, once for all lengths (`dynamic=True`), and
only where they learn: a whole model of cycles of any length is compiled again and again, or not at all, and validation
stays what prediction is. A part that cannot be compiled runs uncompiled, with one warning: convolutions look at true
lengths layer by layer, and a machine may lack a C++ compiler. Weights that FSDP has spread over processes are put
together again when training ends, for each process goes on with the whole model.
"""

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from laennec.encoders import AstEncoder, BeatsEncoder, GroupsEncoder, TransformersEncoder
from laennec.encoders.adapters import stack_of
from laennec.encoders.transformers_audio import ClapAudioEncoder
from laennec.training.recipe import ConfigError

_log = logging.getLogger(__name__)
_CANNOT = "train.compile: %s; training goes on uncompiled"


def recompute_activations(model: Any) -> None:
    """Have the encoder compute its activations again in the backward pass instead of keeping them.

    Raises:
        ConfigError: An encoder that cannot.
    """
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"train.gradient_checkpointing: the encoder {model.encoder.config.model_type} cannot do it; leave it out"
        ) from error


@contextlib.contextmanager
def compiled_layers(model: Any, wanted: bool = True, backend: Callable[..., Any] | None = None) -> Iterator[None]:
    """Run the encoder's layers compiled within the block, where they learn.

    Args:
        model: A laennec model.
        wanted: False does nothing.
        backend: Compiles a graph; None for torch's inductor.
    """
    layers = _layers(model.encoder) if wanted else []
    if wanted and not layers:
        _log.warning(_CANNOT, f"the encoder {model.encoder.config.model_type} has no transformer layers")
    compiled = torch.compile(_call, dynamic=True, backend=_or_as_it_is(backend)) if layers else None
    try:
        for layer in layers:
            layer._compiled_call_impl = _where_it_learns(layer, compiled)
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def _layers(encoder: Any) -> list[nn.Module]:
    """The layers of a transformer; none of other encoders, nor CLAP's, whose windows shift with the picture."""
    inner = encoder.encoder if isinstance(encoder, GroupsEncoder) else encoder
    transformer = isinstance(inner, AstEncoder | BeatsEncoder | TransformersEncoder)
    return list(stack_of(inner)[0]) if transformer and not isinstance(inner, ClapAudioEncoder) else []


def _call(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return layer._call_impl(*args, **kwargs)


def _where_it_learns(layer: Any, compiled: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        run = compiled if layer.training and torch.is_grad_enabled() else _call
        return run(layer, *args, **kwargs)

    return call


def _or_as_it_is(backend: Callable[..., Any] | None) -> Callable[..., Any]:
    """A backend that runs a graph as it is where compiling it fails."""

    def compile_graph(graph: Any, inputs: Any) -> Any:
        from torch._dynamo.exc import RestartAnalysis

        try:
            if backend is not None:
                return backend(graph, inputs)
            from torch._inductor.compile_fx import compile_fx

            return compile_fx(graph, inputs)
        except RestartAnalysis:  # no failure: dynamo is to trace again
            raise
        except Exception as error:
            said = next(iter(str(error).strip().splitlines()), type(error).__name__)
            _log.warning(_CANNOT, f"this machine cannot compile ({type(error).__name__}: {said[:120]})")
            return graph.forward

    return compile_graph


@contextlib.contextmanager
def full_length_afterwards(model: Any) -> Iterator[None]:
    """Where a launch shards weights over processes (FSDP), put the model together again when the block ends."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        yield
        return
    whole = copy.deepcopy(model)
    yield
    state = {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()
        for name, value in model.state_dict().items()
    }
    whole.load_state_dict(state)
    whole.train(model.training)
    # callers hold the model itself: its hooks and sharded weights go, those of the copy take their place
    model.__class__, model.__dict__ = type(whole), whole.__dict__
