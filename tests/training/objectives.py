"""The objective of a recipe's loss section, for tests of single steps."""

from laennec.training.objectives.loss_specs import loss_specs
from laennec.training.objectives.objective import Objective, TaskLoss


def make_objective(settings, multi_label, labels, n_labels, negatives=16, seed=0):
    """An objective for these labels of the training split."""
    task = TaskLoss(
        settings.task, multi_label, labels, n_labels, settings.class_weights, settings.focal_gamma,
        settings.task_weight, settings.task_views,
    )  # fmt: skip
    return Objective(task, loss_specs(settings.auxiliary, negatives), seed)
