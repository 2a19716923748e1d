"""Training settings beyond those of transformers, and the optimisation rules that they switch on.

Decisions: a plain `transformers.TrainingArguments` works too and means the defaults below. The Hub strategy is "end",
because the other ones upload the output folder, which may hold caches and audio. The rules reproduce published systems;
none is a default. The cosine schedule changes the rate once an epoch and starts below the full rate. The moving average
replaces the trained weights after every step, so beta 0.5 halves each step; it is not a copy for evaluation.
Sharpness-aware minimisation runs the batch twice, so batch norm and dropout run twice.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainingArguments

from laennec.errors import InputError, did_you_mean
from laennec.training.devices import device_settings
from laennec.training.recipe import Recipe
from laennec.training.recipe.reading import settings_of

# fields of TrainingArguments that training sets and `train.arguments` may change
_FREE_ARGUMENTS = (
    *("report_to", "disable_tqdm", "save_total_limit", "logging_strategy", "ddp_find_unused_parameters"),
    *device_settings(0, False),
)
# field of TrainingArguments -> the recipe's setting, where the names differ
_SETTINGS = {
    "per_device_train_batch_size": "train.batch_size",
    "per_device_eval_batch_size": "train.evaluation_batch_size",
    "num_train_epochs": "train.epochs",
    "warmup_steps": "train.warmup_ratio",
    "adam_l2": "train.optimizer",
    "adam_beta1": "train.betas",
    "adam_beta2": "train.betas",
    "compile_layers": "train.compile",
    "task_loss": "loss.task",
    "metric_for_best_model": "train.selection_metric",
}


@dataclass
class LaennecTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments and these fields.

    Args:
        head_learning_rate: Learning rate of head and projection; None for that of the encoder.
        task_loss: "bce" | "ce" | "focal"; None for BCE (multi-label models) or cross entropy (single-label ones).
        task_weight: Factor of the task loss in the objective.
        task_views: "first" | "all": which augmented views (or clean and mixed copies) the task loss takes.
        class_weights: None, "balanced" (inverse frequency in the training split) or one number per label.
        focal_gamma: Exponent of the focal loss.
        log_gradients: Whether the norm of each auxiliary loss's gradient at the embedding, divided by that of the task
            loss, is logged as `grad_ratio_<loss>`.
        balance: Value at which to hold that ratio, by rescaling the auxiliary losses; None for constant weights.
        epoch_cosine: Whether the learning rate falls once an epoch along a cosine, as in some published systems.
        moving_average: beta: after each step, weights <- beta * before + (1 - beta) * after; None for none.
        sam_rho: Radius of sharpness-aware minimisation, which runs every batch twice; None for ordinary steps.
        sam_adaptive: Whether that radius scales with each weight.
        compile_layers: Whether the layers of a transformer are compiled; validation runs uncompiled as prediction does.
        adam_l2: Whether the weight decay is added to the gradient (Adam with L2), not taken off the weights (AdamW).
    """

    head_learning_rate: float | None = None
    task_loss: str | None = None
    task_weight: float = 1.0
    task_views: str = "first"
    class_weights: list[float] | str | None = None
    focal_gamma: float = 2.0
    log_gradients: bool = False
    balance: float | None = None
    epoch_cosine: bool = False
    moving_average: float | None = None
    sam_rho: float | None = None
    sam_adaptive: bool = False
    adam_l2: bool = False
    compile_layers: bool = False
    hub_strategy: str = field(default="end")
    # transformers pins memory without a GPU too, and torch then warns at every loader
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)


# field that breaks a recipe or has no effect there -> why, and what to do
_REFUSED = {
    "save_only_model": "without the optimiser's state a checkpoint cannot be continued; leave it out",
    "push_to_hub": "nothing is pushed before a run has its scores and card; run laennec push on the finished run",
    "prediction_loss_only": "the best epoch and the thresholds need predictions; leave it out",
    "batch_eval_metrics": "metrics are of all validation cycles together; leave it out",
    "include_for_metrics": "metrics take predictions and labels alone; leave it out",
    "neftune_noise_alpha": "sound has no word embeddings to add noise to; leave it out, or set augment",
    "dataloader_drop_last": "the sampler decides which cycles an epoch has; set sampler.name",
    "data_seed": "it would have no effect; set seed",
    "resume_from_checkpoint": "it would have no effect; run the same command again, which continues a run",
    "do_train": "it would have no effect; leave it out",
}


def further_arguments(given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`train.arguments` as their fields' types; an InputError for those that are no field, or that `values` set."""
    types, checked = get_type_hints(LaennecTrainingArguments), {}
    for name, value in given.items():
        if name not in types:
            raise InputError(
                f"train.arguments has {name!r}, no field of TrainingArguments{did_you_mean(name, types, cutoff=0)}"
            )
        if name in _REFUSED and value != getattr(LaennecTrainingArguments, name, None):
            raise InputError(f"train.arguments has {name!r}, but {_REFUSED[name]}")
        if name == "optim" and values.get("adam_l2"):
            raise InputError("train.arguments has 'optim', but train.optimizer is adam_l2; leave one of them out")
        if name in values and name not in _FREE_ARGUMENTS:
            key = _SETTINGS.get(name) or next((k for k in settings_of(Recipe) if k.rpartition(".")[2] == name), None)
            remedy = f"set {key}" if key else "leave it out"
            raise InputError(f"train.arguments has {name!r}, which the recipe determines itself; {remedy}")
        try:
            checked[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"].replace("Input should be", "it must be")
            raise InputError(f"train.arguments: {name} is {value!r:.80}; {said}") from error
    epochs = values.get("num_train_epochs", 0)
    chooses = values.get("load_best_model_at_end") and values.get("max_steps", 0) <= 0
    if chooses and checked.get("eval_delay", 0) > epochs:
        raise InputError(f"train.arguments: eval_delay leaves none of {epochs} epochs to choose from; lower it")
    return checked


def resolved_arguments(given: TrainingArguments) -> Any:
    """A copy with the settings that `LaennecTrainer` needs: a private repository, all columns, two checkpoints.

    Fields of `LaennecTrainingArguments` that `given` lacks are set to their defaults.

    Raises:
        InputError: Sharpness-aware steps with gradient accumulation, smoothed labels, or a Hub strategy that uploads
            the output folder.
    """
    args: Any = copy.copy(given)
    for name, known in LaennecTrainingArguments.__dataclass_fields__.items():
        if not hasattr(args, name):
            setattr(args, name, known.default)
    if args.sam_rho is not None and args.gradient_accumulation_steps > 1:
        raise InputError("sam_rho needs the gradient of the whole batch; set gradient_accumulation_steps to 1")
    MovingAverageCallback(args.moving_average)  # refuses a wrong value
    if args.label_smoothing_factor:
        raise InputError("label_smoothing_factor has no effect; leave it out, and pass a task_loss that smooths labels")
    if args.push_to_hub and args.hub_strategy != "end":
        raise InputError(
            f"hub_strategy is {args.hub_strategy}, which uploads the output folder with all it holds; set it to end"
        )
    if args.push_to_hub and args.hub_private_repo is None:
        args.hub_private_repo = True
    args.remove_unused_columns = False  # a batch holds waveforms, and the model takes features
    if args.save_total_limit == 1:
        args.save_total_limit = 2  # a whole checkpoint must exist while another is written
    return args


def epoch_cosine(epoch: int, epochs: int) -> float:
    """Factor of the learning rate in an epoch: least + (1 - least) (1 + cos(pi e / E)) / 2 with least 0.1^3.

    Args:
        epoch: e, counted from 1, so the first epoch is already below the full rate.
        epochs: E.
    """
    least = 0.1**3
    return least + (1 - least) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def epoch_cosine_schedule(optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LambdaLR:
    """`epoch_cosine` as a scheduler that is stepped after every optimiser step, as Trainer does.

    Steps beyond the last epoch keep its rate.
    """
    return LambdaLR(optimizer, lambda step: epoch_cosine(min(step // steps_per_epoch + 1, epochs), epochs))


def parameter_groups(
    model: nn.Module, rates: tuple[float, float], weight_decay: float, decayed: Set[str]
) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser: encoder and head with a learning rate each, with and without decay.

    Args:
        model: The model; only its parameters that require gradients are grouped.
        rates: Learning rate of the encoder, and of all other layers.
        weight_decay: Weight decay of the parameters in `decayed`.
        decayed: Names of the parameters with weight decay (norms and biases have none).
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {(e, d): [] for e in (True, False) for d in (True, False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("encoder."), name in decayed].append(parameter)
    return [
        {"params": chosen, "lr": rates[0 if in_encoder else 1], "weight_decay": weight_decay if decays else 0.0}
        for (in_encoder, decays), chosen in groups.items()
        if chosen
    ]


def make_optimizer(model: nn.Module, args: Any, decayed: Set[str], kind: Any, settings: Mapping[str, Any]) -> Optimizer:
    """An optimiser of the class that transformers chose (Adam with L2 if `adam_l2`) for the groups of parameters."""
    rates = (args.learning_rate, args.head_learning_rate or args.learning_rate)
    settings = {k: v for k, v in settings.items() if k not in ("params", "lr", "weight_decay")}
    kind = torch.optim.Adam if args.adam_l2 else kind
    made: Optimizer = kind(parameter_groups(model, rates, args.weight_decay, decayed), lr=rates[0], **settings)
    return made


@contextmanager
def changed(args: Any, **values: Any) -> Iterator[None]:
    """Change arguments within the block."""
    before = {name: getattr(args, name) for name in values}
    try:
        vars(args).update(values)
        yield
    finally:
        vars(args).update(before)


class MovingAverageCallback(TrainerCallback):
    """Blends the trained weights with those before the step: w <- beta w_before + (1 - beta) w_after.

    The moments of the optimiser do not change. The callback has no state to save: the weights before a step are in the
    checkpoint.

    Args:
        beta: Share of the weights before the step; None for `moving_average` of the arguments, which a search changes.

    Raises:
        InputError: beta lies outside [0, 1).
    """

    def __init__(self, beta: float | None = None) -> None:
        if beta is not None and not 0 <= beta < 1:
            raise InputError(f"moving_average must lie in [0, 1), not {beta}")
        self.beta = beta
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the weights."""
        if self.beta is not None or args.moving_average is not None:
            self._before = [(p, p.detach().clone()) for p in kwargs["model"].parameters() if p.requires_grad]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Blend them with the new ones, in place."""
        with torch.no_grad():
            for parameter, before in self._before:
                parameter.lerp_(before, args.moving_average if self.beta is None else self.beta)
        self._before = []


@contextmanager
def sharpness_aware(parameters: Iterable[nn.Parameter], rho: float, adaptive: bool = False) -> Iterator[None]:
    """Sharpness-aware minimisation: take the gradient where the loss is highest nearby, step from the old weights.

    The block runs the batch a second time::

        loss(batch).backward()
        with sharpness_aware(model.parameters(), rho=0.05):
            loss(batch).backward()
        optimizer.step()

    Before the block, weights move by rho g / (|g| + 1e-12) and gradients are cleared; after it, weights are restored.

    Args:
        parameters: The weights.
        rho: Radius: how far the weights move.
        adaptive: Whether the move scales with the size of each weight (W^2 g over the norm of |W| g).

    Reference: Foret et al., Sharpness-Aware Minimization, ICLR 2021; Kwon et al., ASAM, ICML 2021.
    """

    def gradient(parameter: nn.Parameter, power: int) -> Tensor:
        """The gradient, times |W|^power if adaptive."""
        assert parameter.grad is not None
        return parameter.grad * parameter.detach().abs() ** power if adaptive else parameter.grad

    moved = [(parameter, parameter.detach().clone()) for parameter in parameters if parameter.grad is not None]
    with torch.no_grad():
        if moved:
            device = moved[0][0].device
            norm = torch.stack([gradient(parameter, 1).float().norm().to(device) for parameter, _ in moved]).norm()
        for parameter, _ in moved:
            parameter.add_(gradient(parameter, 2) * (rho / (norm + 1e-12)).to(parameter))
            parameter.grad = None
    yield
    with torch.no_grad():
        for parameter, before in moved:
            parameter.copy_(before)
