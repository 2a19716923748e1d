"""Train in Python, without a recipe: `python examples/train_without_yaml.py [--corpus sprsound --data-dir DIR ...]`."""

import argparse

import laennec

parser = argparse.ArgumentParser()
for flag, default in {"corpus": "synthetic", "data-dir": None, "weights": None, "out": "runs/mine"}.items():
    parser.add_argument(f"--{flag}", default=default)
parser.add_argument("--epochs", type=int, default=2)
given = parser.parse_args()

corpus = laennec.load_corpus(given.corpus, given.data_dir, **({} if given.data_dir else {"patients": 10}))
features = laennec.LaennecFeatureExtractor("efficientat")
network = None if given.weights else "cnn"  # without released weights a small network from scratch
model = laennec.LaennecForAudioClassification.from_encoder(given.weights, type=network, labels=["crackle", "wheeze"])
args = laennec.LaennecTrainingArguments(given.out, num_train_epochs=given.epochs, learning_rate=1e-3)
trainer = laennec.LaennecTrainer(
    model,
    args,
    train_dataset=corpus["train"],
    eval_dataset=corpus["validation"],
    processing_class=features,
    losses={"add": laennec.AngularDistanceDistributionLoss()},
    loss_weights={"add": 0.2},
)
trainer.train(resume_from_checkpoint=True)
print(trainer.evaluate())
trainer.fit_thresholds()
trainer.save_model(f"{given.out}/model")
