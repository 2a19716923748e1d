"""Train in Python, without a recipe: `python examples/train_without_yaml.py [--corpus sprsound --data-dir DIR ...]`."""

import argparse

import laennec

parser = argparse.ArgumentParser()
for flag, default in {
    "corpus": "synthetic",
    "data-dir": None,
    "weights": None,
    "out": "runs/mine",
    "epochs": 2,
}.items():
    parser.add_argument(f"--{flag}", default=default, type=int if flag == "epochs" else str)
given = parser.parse_args()

corpus = laennec.load_corpus(given.corpus, given.data_dir, **({} if given.data_dir else {"patients": 10}))
features = laennec.LaennecFeatureExtractor("efficientat")
model = laennec.LaennecForAudioClassification.from_encoder(
    given.weights, labels=["crackle", "wheeze"], type=None if given.weights else "cnn", features=features
)
args = laennec.LaennecTrainingArguments(given.out, num_train_epochs=2, eval_strategy="epoch")
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
trainer.save_model(f"{given.out}/model")
