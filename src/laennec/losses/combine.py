"""Several losses as one objective, each with a constant or rising weight.

Decisions: every term keeps its name, so that the log shows each of them. A weight is a function of training progress in
[0, 1] alone, so a resumed run needs no extra state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class WeightSchedule:
    """A weight that is constant, or rises linearly to its value.

    Args:
        weight: The final value.
        start: Progress in [0, 1] before which the weight is 0.
        warm_up: Share of training over which it rises from 0 to `weight`, counted from `start`.

    Raises:
        ValueError: if start or warm_up lies outside [0, 1].
    """

    weight: float
    start: float = 0.0
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.start <= 1 and 0 <= self.warm_up <= 1):
            raise ValueError(f"start and warm_up are shares of training in [0, 1], not {self.start} and {self.warm_up}")

    def at(self, progress: float) -> float:
        """The weight at a progress in [0, 1]."""
        since = progress - self.start
        if since < 0:
            return 0.0
        return self.weight if since >= self.warm_up else self.weight * since / self.warm_up


class WeightedSum(nn.Module):
    """Several named losses, each with its own inputs and its own weight.

    Formula: `sum over losses of w(progress) * loss`, returned term by term. For example::

        objective = WeightedSum(
            {"focal": FocalLoss(), "add": AngularDistanceDistributionLoss()},
            {"add": WeightSchedule(0.5, warm_up=0.1)},
        )
        terms = objective({"focal": (logits, labels), "add": (embeddings, labels)})
        sum(terms.values()).backward()

    The same class may appear twice: SupCon by class and by stethoscope are `{"class": SupConLoss(), "device":
    SupConLoss()}` and give the terms `class/supcon` and `device/supcon`.

    Batch: what each of its losses needs.

    Returns: every term of every loss, weighted; `pairs` counts those of each, `terms` names the terms of each loss.

    Prefer: a single loss where it suffices: each weight is one more number to choose on validation.

    Reference: those of its losses.

    Args:
        losses: Name -> loss.
        weights: Name -> number or schedule; 1 where a name is missing.

    Raises:
        ValueError: if a weight names no loss, or there is no loss at all.
    """

    def __init__(
        self, losses: Mapping[str, nn.Module], weights: Mapping[str, float | WeightSchedule] | None = None
    ) -> None:
        super().__init__()
        weights = dict(weights or {})
        unknown = sorted(set(weights) - set(losses))
        if unknown or not losses:
            raise ValueError(f"weights {unknown} name no loss; the losses are {sorted(losses)}")
        self.losses = nn.ModuleDict(dict(losses))
        given = {name: weights.get(name, 1.0) for name in losses}
        self.schedules = {n: w if isinstance(w, WeightSchedule) else WeightSchedule(float(w)) for n, w in given.items()}
        self.progress = 0.0
        self.pairs: dict[str, int] = {}
        self.terms: dict[str, list[str]] = {}

    def set_progress(self, progress: float) -> None:
        """Set the progress of training, in [0, 1], on which the weights depend.

        Raises:
            ValueError: if the progress lies outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is a share of training in [0, 1], not {progress}")
        self.progress = float(progress)

    def weights(self) -> dict[str, float]:
        """The weight of each loss at the present progress."""
        return {name: schedule.at(self.progress) for name, schedule in self.schedules.items()}

    def forward(self, inputs: Mapping[str, Sequence[Any] | Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return every term of every loss, weighted.

        Args:
            inputs: Name -> the positional (a sequence) or named (a mapping) arguments of that loss.

        Returns:
            Terms by name: the loss's own where it starts with the name given here, otherwise `name/term`. A loss that
            returns one scalar is a term under its own name.

        Raises:
            ValueError: if the names are not those of the losses.
        """
        if set(inputs) != set(self.losses):
            raise ValueError(f"inputs are for {sorted(inputs)}, the losses are {sorted(self.losses)}")
        terms: dict[str, Tensor] = {}
        pairs: dict[str, int] = {}
        for name, weight in self.weights().items():
            loss, given = self.losses[name], inputs[name]
            found = loss(**given) if isinstance(given, Mapping) else loss(*given)
            found = {name: found} if isinstance(found, Tensor) else found
            self.terms[name] = [_visible(name, term) for term in found]
            terms |= dict(zip(self.terms[name], (weight * value for value in found.values()), strict=True))
            pairs |= {_visible(name, term): count for term, count in getattr(loss, "pairs", {}).items()}
        self.pairs = pairs
        return terms

    def extra_repr(self) -> str:
        """The weights."""
        return ", ".join(f"{name}: {schedule}" for name, schedule in self.schedules.items())


def _visible(name: str, term: str) -> str:
    return term if term == name or term.startswith(f"{name}_") else f"{name}/{term}"
