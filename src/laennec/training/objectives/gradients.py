"""Gradient norms of auxiliary losses relative to the task loss, and the rule that holds the ratio.

Decisions: gradients are taken at the embedding, which both losses share, so nothing passes through the encoder again.
The ratio is |gradient of the weighted auxiliary loss| / |gradient of the weighted task loss|, each norm over the
embeddings of all rows and views. Each process takes the gradient at its own rows, and the squares are summed over
processes: ratio and factor are those of the whole batch. Every step that trains encoder and head together is measured,
because the rule needs it; on a CPU this takes 2 ms, 0.1 to 0.3 % of a step of the CNN or mn04 with 32 cycles. A step in
which either gradient is zero does not count.

The rule multiplies a loss by `balance` / (moving average of its ratio, this step's included). In that average, each
ratio is scaled to the largest weight of all losses: so warm-ups still rise, several losses keep their relative weights,
and the loss with the largest weight has the ratio `balance`. The averages are the only state; checkpoints hold them.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from laennec.encoders.masks import process_count
from laennec.errors import InputError
from laennec.losses import DeviceAdversarialLoss
from laennec.training.objectives.loss_specs import LossSpec
from laennec.training.objectives.objective import Objective

DECAY = 0.9  # of the moving averages: about the last ten steps count

Running = dict[str, tuple[float, float]]  # decayed sum of a loss's ratios, and decayed number of them


def check_balance(balance: float | None, specs: Sequence[LossSpec], task_weight: float, frozen: bool = False) -> None:
    """Refuse losses whose gradients cannot be balanced."""
    if balance is None:
        return
    what = f"loss.balance is {balance:g}"
    if not balance > 0:
        raise InputError(f"{what}; it must be above 0, or left out")
    if frozen or not task_weight or not any(spec.schedule.weight for spec in specs):
        raise InputError(
            f"{what}, which needs a trained encoder, and an auxiliary loss and a task loss with weights above 0"
        )
    for spec in specs:
        if spec.takes_frame_groups or spec.on == "clusters" or spec.is_a(DeviceAdversarialLoss):
            raise InputError(
                f"{what}, but {spec.where or spec.name} has no gradient of its own at the embedding (it takes frame "
                "groups, or its gradient is reversed by a schedule); leave one of them out"
            )


@contextlib.contextmanager
def head_inputs(model: Any, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Collect the embeddings (rows, dim) that enter the head in each call of the model; nothing if not wanted.

    The logits come from these; the embeddings that a model returns can be copies (DDP, bfloat16).
    """
    taken: list[Tensor] = []
    hooks = [model.head.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))] if wanted else []
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()


def gradient_ratios(task: Tensor, losses: Mapping[str, Tensor], embeddings: Tensor) -> dict[str, float]:
    """Norm of the gradient of each loss at the embeddings (rows, dim), divided by that of the task loss.

    A loss with a zero gradient, such as one without any pair, is left out; so are all if the task loss has none.
    """
    squares = torch.stack([_squared_gradient(loss, embeddings) for loss in (task, *losses.values())])
    if process_count() > 1:
        torch.distributed.all_reduce(squares)
    first, *norms = squares.sqrt().tolist()
    ratios = {name: norm / first for name, norm in zip(losses, norms, strict=True)} if first else {}
    return {name: ratio for name, ratio in ratios.items() if 0 < ratio < math.inf}


def _squared_gradient(loss: Tensor, embeddings: Tensor) -> Tensor:
    """Squared norm of the gradient of a loss at the embeddings; 0 where it does not depend on them."""
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, embeddings, retain_graph=True, allow_unused=True)
    return torch.zeros((), device=embeddings.device) if gradient is None else gradient.float().square().sum()


def weigh(
    terms: Mapping[str, Tensor], inputs: Sequence[Tensor], objective: Objective, balance: float | None, running: Running
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Measure the gradients of a step, and balance its terms.

    Returns:
        The terms, and what is logged: `grad_ratio_<loss>` and, with a balance, its factor `balance_<loss>`.
    """
    auxiliary, terms = objective.auxiliary, dict(terms)
    if auxiliary is None or not inputs or not inputs[0].requires_grad:
        return terms, {}
    losses = {name: torch.stack([terms[term] for term in own]).sum() for name, own in auxiliary.terms.items()}
    ratios = gradient_ratios(terms[objective.task.name], losses, inputs[0])
    if balance is None:
        return terms, {f"grad_ratio_{name}": ratio for name, ratio in ratios.items()}
    weights, logged = auxiliary.weights(), {}
    largest = max(schedule.weight for schedule in auxiliary.schedules.values())
    for name, ratio in ratios.items():
        total, steps = running.get(name, (0.0, 0.0))
        running[name] = DECAY * total + ratio * largest / weights[name], DECAY * steps + 1
    for name, (total, steps) in running.items():
        factor = logged[f"balance_{name}"] = balance * steps / total
        if name in ratios:
            logged[f"grad_ratio_{name}"] = factor * ratios[name]
        terms |= {term: factor * terms[term] for term in auxiliary.terms[name]}
    return terms, logged
