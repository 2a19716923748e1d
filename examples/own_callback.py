"""An own callback, which is one of transformers'. Run it: `python examples/own_callback.py`.

In Python it is an object: `LaennecTrainer(..., callbacks=[StopAtLoss(0.3)])`. In a recipe it is a dotted name:
`train: {callbacks: [{class: own_callback:StopAtLoss, loss: 0.3}]}`.
"""

from typing import Any

from transformers import TrainerCallback

import laennec


class StopAtLoss(TrainerCallback):
    """Stop as soon as the logged training loss is low enough.

    Args:
        loss: The loss to reach.
    """

    def __init__(self, loss: float = 0.1) -> None:
        self.loss = loss

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Look at the logged loss; `logs` also holds each term as `term_<name>`."""
        if (logs or {}).get("loss", self.loss + 1) <= self.loss:
            control.should_training_stop = True


def main() -> None:
    """Train a small network on the synthetic corpus until its loss is below 0.6."""
    corpus = laennec.load_corpus("synthetic", patients=10)
    features = laennec.LaennecFeatureExtractor("efficientat")
    sizes = {"channels": [8, 16, 32]}
    model = laennec.LaennecForAudioClassification.from_encoder(
        None, type="cnn", encoder_config=sizes, features=features
    )
    args = laennec.LaennecTrainingArguments("runs/own_callback", max_steps=50, logging_steps=1)
    train = corpus["train"]
    laennec.LaennecTrainer(
        model, args, train_dataset=train, processing_class=features, callbacks=[StopAtLoss(0.6)]
    ).train()


if __name__ == "__main__":
    main()
