"""Several losses as one objective, each with a constant or rising weight.

Decisions: every term keeps its name, so that the log shows each of them. A weight is a function of training progress in
[0, 1] alone, so a resumed run needs no extra state.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from laennec.errors import InputError
from laennec.memory import ran_out


@dataclass(frozen=True)
class WeightSchedule:
    """A weight that is constant, or rises linearly to its value.

    Args:
        weight: The value after the warm-up.
        start: Progress in [0, 1] before which the weight is 0.
        warm_up: Share of training over which it rises from 0 to `weight`, counted from `start`.

    Raises:
        ValueError: if start, warm_up or their sum lies outside [0, 1].
    """

    weight: float
    start: float = 0.0
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.start <= 1 and 0 <= self.warm_up <= 1):
            raise ValueError(f"start and warm_up are shares of training in [0, 1], not {self.start} and {self.warm_up}")
        if self.start + self.warm_up > 1:
            raise ValueError(f"start {self.start} + warm_up {self.warm_up} is above 1: the weight would not be reached")

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
            InputError: A loss fails, returns no scalars, or has a term of the name of another one.
        """
        if set(inputs) != set(self.losses):
            raise ValueError(f"inputs are for {sorted(inputs)}, the losses are {sorted(self.losses)}")
        terms: dict[str, Tensor] = {}
        pairs: dict[str, int] = {}
        for name, weight in self.weights().items():
            loss = self.losses[name]
            found = terms_of(name, loss, inputs[name])
            self.terms[name] = [_visible(name, term) for term in found]
            refuse_repeated(terms, self.terms[name])
            terms |= dict(zip(self.terms[name], (weight * value for value in found.values()), strict=True))
            pairs |= {_visible(name, term): count for term, count in getattr(loss, "pairs", {}).items()}
        self.pairs = pairs
        return terms

    def extra_repr(self) -> str:
        """The weights."""
        return ", ".join(f"{name}: {schedule}" for name, schedule in self.schedules.items())


def terms_of(name: str, loss: nn.Module, given: Sequence[Any] | Mapping[str, Any]) -> dict[str, Tensor]:
    """Call a loss with positional or named arguments: its terms, or its scalar under its name.

    Raises:
        InputError: It fails, or returns neither a scalar nor `{term: scalar}`.
    """
    try:
        found = loss(**given) if isinstance(given, Mapping) else loss(*given)
    except Exception as error:
        if isinstance(error, InputError) or ran_out(error):
            raise
        raise InputError(f"loss {name}: {type(error).__name__}: {error}; correct its forward") from error
    terms = {str(term): value for term, value in found.items()} if isinstance(found, Mapping) else {name: found}
    for term, value in terms.items() or [(name, found)]:
        if not isinstance(value, Tensor) or value.ndim:
            said = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InputError(f"loss {name} returns {said:.80} for {term}; return a scalar tensor, or {{term: scalar}}")
    return terms


def refuse_repeated(terms: Collection[str], others: Collection[str]) -> None:
    """Refuse a name of two terms: one would take the place of the other."""
    if both := sorted(set(terms) & set(others)):
        raise InputError(f"two terms of the loss are named {both[0]!r}; rename the auxiliary loss or task, or its term")


def _visible(name: str, term: str) -> str:
    return term if term == name or term.startswith(f"{name}_") else f"{name}/{term}"
