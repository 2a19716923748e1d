"""An own auxiliary loss. Run it: `python examples/own_loss.py`.

In Python it is an object: `LaennecTrainer(..., losses={"mine": MyLoss()}, loss_weights={"mine": 0.5})`. In a recipe it
is a dotted name: `loss: {auxiliary: {mine: {class: own_loss:MyLoss, weight: 0.5, margin: 0.2}}}`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import laennec


class MyLoss(nn.Module):
    """Push the class centroids of a batch apart, to a cosine similarity below a margin.

    Args:
        margin: Cosine similarity below which a pair of centroids has no loss.
    """

    labels = "class"  # or "cycle" (the views of one cycle), or a column of the table such as "patient"
    views = 1  # augmented views of each cycle; with 2 the embeddings are (batch, 2, dim)
    on = "embedding"  # or "projection"
    across_cycles = True  # it compares cycles of a batch, so gradient accumulation is an error
    sampler = "ClassesTimesSamplesSampler"  # for readers; choose it by sampler.name or sampler=
    citation = ""  # BibTeX, for the model card

    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Named terms, each a scalar; a plain scalar is allowed too.

        Args:
            embeddings: (batch, dim).
            labels: (batch,) integers.
        """
        groups = labels.unique()
        centroids = normalize(torch.stack([embeddings[labels == group].mean(0) for group in groups]), dim=1)
        similarity = (centroids @ centroids.T).fill_diagonal_(0.0)
        return {"mine": (similarity - self.margin).clamp_min(0).sum() / max(1, len(groups) * (len(groups) - 1))}


def main() -> None:
    """Train a small network on the synthetic corpus with the loss."""
    corpus = laennec.load_corpus("synthetic", patients=10)
    features = laennec.LaennecFeatureExtractor("efficientat")
    model = laennec.LaennecForAudioClassification.from_encoder(None, type="cnn", features=features)
    args = laennec.LaennecTrainingArguments("runs/own_loss", max_steps=10, logging_steps=5)
    laennec.LaennecTrainer(
        model,
        args,
        train_dataset=corpus["train"],
        processing_class=features,
        losses={"mine": MyLoss()},
        loss_weights={"mine": 0.5},
    ).train()


if __name__ == "__main__":
    main()
