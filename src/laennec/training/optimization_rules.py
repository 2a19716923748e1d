"""Optimisation rules of published systems, for reproducing them.

Decisions: none of these is a default anywhere. The cosine moves once an epoch and starts below the full rate; the
moving average replaces the weights that are trained, after every step, which halves each step (it is no average kept
aside for evaluation); sharpness-aware minimisation runs the batch twice, so batch norm and dropout see it twice.
"""

import math
from collections.abc import Iterable, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback


def epoch_cosine(epoch: int, epochs: int, decay: float = 0.1) -> float:
    """Factor of the learning rate in an epoch: floor + (1 - floor) (1 + cos(pi e / E)) / 2 with floor decay^3.

    Args:
        epoch: e, counted from 1, so the first epoch is already below the full rate.
        epochs: E.
        decay: its cube is the share that is left at the end.

    Returns:
        A factor in [decay^3, 1].

    Raises:
        ValueError: if the epoch lies outside 0 .. E.
    """
    if not 0 <= epoch <= epochs:
        raise ValueError(f"epoch {epoch} lies outside 0 .. {epochs}")
    floor = decay**3
    return floor + (1 - floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def epoch_cosine_schedule(optimizer: Optimizer, epochs: int, steps_per_epoch: int, decay: float = 0.1) -> LambdaLR:
    """The same as a scheduler that is stepped after every optimiser step, as Trainer does.

    Args:
        optimizer: whose rates to scale.
        epochs: in the whole training.
        steps_per_epoch: optimiser steps in an epoch.
        decay: see `epoch_cosine`.

    Returns:
        The scheduler; steps beyond the last epoch keep its rate.
    """
    return LambdaLR(optimizer, lambda step: epoch_cosine(min(step // steps_per_epoch + 1, epochs), epochs, decay))


def parameter_groups(
    model: nn.Module, rates: tuple[float, float], weight_decay: float, decayed: Set[str]
) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser: encoder and head with a learning rate each, with and without decay.

    Args:
        model: Its parameters that require gradients are taken.
        rates: Learning rate of the encoder, and of all other layers.
        weight_decay: Of the parameters in `decayed`.
        decayed: Names of the parameters with weight decay (norms and biases have none).
    """
    groups = []
    for in_encoder, rate in zip((True, False), rates, strict=True):
        for decays in (True, False):
            chosen = [
                p
                for n, p in model.named_parameters()
                if p.requires_grad and n.startswith("encoder.") == in_encoder and (n in decayed) == decays
            ]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": weight_decay if decays else 0.0})
    return groups


class MovingAverage:
    """Blend the trained weights with those before the step: w <- beta w_before + (1 - beta) w_after.

    The moments of the optimiser stay as they are. Nothing needs saving: the weights before a step are those of the
    checkpoint.

    Args:
        parameters: the weights; only those that require gradients are blended.
        beta: share of the weights before the step.

    Raises:
        ValueError: if beta lies outside [0, 1).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], beta: float = 0.5) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta must lie in [0, 1), not {beta}")
        self.beta = float(beta)
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._before: list[Tensor] = []

    @torch.no_grad()
    def before_step(self) -> None:
        """Remember the weights."""
        self._before = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def after_step(self) -> None:
        """Blend, in place.

        Raises:
            RuntimeError: if `before_step` was not called.
        """
        if len(self._before) != len(self._parameters):
            raise RuntimeError("call before_step() ahead of each optimiser step")
        for parameter, before in zip(self._parameters, self._before, strict=True):
            parameter.lerp_(before, self.beta)
        self._before = []


class MovingAverageCallback(TrainerCallback):
    """`MovingAverage` for Trainer: around every optimiser step.

    Args:
        beta: share of the weights before the step.
    """

    def __init__(self, beta: float = 0.5) -> None:
        self.beta = beta
        self._average: MovingAverage | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the weights."""
        self._average = MovingAverage(kwargs["model"].parameters(), self.beta)
        self._average.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Blend them with the new ones."""
        if self._average is not None:
            self._average.after_step()
        self._average = None


class SharpnessAware:
    """SAM: take the gradient where the loss is worst nearby, and step from where the weights were.

    Use it around an ordinary optimiser::

        loss(batch).backward()
        sharp.climb()
        loss(batch).backward()
        sharp.descend()
        optimizer.step()

    Args:
        parameters: the weights.
        rho: how far to climb.
        adaptive: True scales the climb by the size of each weight (W^2 g over the norm of |W| g).

    Raises:
        ValueError: if rho is negative.

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021; Kwon et al., ASAM, ICML 2021.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rho: float = 0.05, adaptive: bool = False) -> None:
        if rho < 0:
            raise ValueError(f"rho must not be negative, not {rho}")
        self.rho = float(rho)
        self.adaptive = adaptive
        self._parameters = list(parameters)
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    @torch.no_grad()
    def climb(self) -> None:
        """Move by rho g / (|g| + 1e-12), and clear the gradients for the second pass.

        Raises:
            RuntimeError: if the last climb was not followed by `descend`.
        """
        if self._before:
            raise RuntimeError("call descend() before climbing again")
        moved = [parameter for parameter in self._parameters if parameter.grad is not None]
        directions = [self._scaled(parameter, 1) for parameter in moved]
        if not moved:
            return
        norms = torch.stack([direction.float().norm().to(moved[0].device) for direction in directions])
        scale = self.rho / (norms.norm() + 1e-12)
        self._before = [(parameter, parameter.detach().clone()) for parameter in moved]
        for parameter in moved:
            parameter.add_(self._scaled(parameter, 2) * scale.to(parameter))
            parameter.grad = None

    @torch.no_grad()
    def descend(self) -> None:
        """Put the weights back; the gradients of the second pass stay for the optimiser."""
        for parameter, before in self._before:
            parameter.copy_(before)
        self._before = []

    def _scaled(self, parameter: nn.Parameter, power: int) -> Tensor:
        """The gradient, times |W|^power if adaptive."""
        assert parameter.grad is not None
        return parameter.grad * parameter.abs() ** power if self.adaptive else parameter.grad
