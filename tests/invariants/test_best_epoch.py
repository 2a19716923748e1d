"""The model that a run leaves behind is that of its best epoch, whatever the encoder calls its weights."""

import json

import pandas as pd
import pytest

from laennec.evaluation import predictions_metrics
from laennec.training.recipe import Recipe
from laennec.training.run import train


@pytest.mark.parametrize("encoder", ["cnn", "ast"])
def test_validation_predictions_are_those_of_the_best_epoch(tiny_recipe, tiny_ast, tmp_path, encoder):
    settings = {**tiny_recipe, "output_dir": str(tmp_path / "run")}
    if encoder == "ast":
        settings |= {"features": {"preset": "ast"}, "encoder": {"type": "ast", "weights": str(tiny_ast)}}
    # steps so large that the epochs differ, and the last is not the best by itself
    settings["train"] = {**settings["train"], "epochs": 4, "learning_rate": 0.03, "lr_scheduler_type": "constant"}
    settings["train"]["selection_metric"] = "auroc_macro"
    run = train(Recipe(**settings))
    record = json.loads((run / "run.json").read_text())
    epochs = [row["validation"]["roc_auc_macro"] for row in record["history"]]
    assert len(epochs) == 4 and len(set(epochs)) > 1 and record["best_metric"] == max(epochs)
    table = pd.read_parquet(run / "predictions-validation.parquet")
    values = predictions_metrics(table, problem_type="multi_label", label_names=["crackle", "wheeze"])["values"]
    assert values["roc_auc_macro"] == pytest.approx(max(epochs), abs=1e-9)
