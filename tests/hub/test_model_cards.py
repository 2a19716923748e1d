"""The published cards are what the renderer gives from the stored records, and the checklist is the package's."""

from importlib import resources
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from laennec.hub.card import render_card
from laennec.training.recipe import Recipe
from laennec.training.record import read_record

ROOT = Path(__file__).resolve().parents[2]
CARDS = ROOT / "model_cards"
RECORDS = sorted((CARDS / "records").iterdir())


@pytest.mark.parametrize("record", RECORDS, ids=lambda p: p.name)
def test_a_card_is_what_its_record_gives(record):
    answers = yaml.safe_load((CARDS / "answers.yaml").read_text())
    stored = (CARDS / f"{record.name}.md").read_text()
    assert render_card(record, answers=answers).text == stored, "render it again: see model_cards/README.md"
    assert render_card(record).text == stored, "the record lacks answers: see model_cards/README.md"


@pytest.mark.parametrize("record", RECORDS, ids=lambda p: p.name)
def test_a_card_says_what_the_results_file_says(record):
    run = read_record(record / "run.json")
    files = [ROOT / "docs" / "results" / name for name in ("studies/cards_sprsound.json", "studies/box_model.json")]
    rows = {(r["name"], r["seed"], r["split"]): r for file in files for r in read_record(file)["results"]}
    card = ModelCard.load(CARDS / f"{record.name}.md")
    parts = [looked for looked in run["evaluations"] if looked.get("result")]
    assert "test_intra" in {looked["split"] for looked in parts}
    for looked in parts:
        entry, row = looked["result"], rows[run["name"], 0, looked["split"]]
        for figure in ("icbhi.Score", "crackle.roc_auc", "wheeze.roc_auc", "sprsound.Score"):
            assert entry["metrics"]["values"][figure] == row["values"][figure]
            assert entry["metrics"]["intervals"][figure] == row["intervals"][figure]
        found = [result for result in card.data.eval_results if result.dataset_split == looked["split"]]
        values = {result.metric_type: result.metric_value for result in found}
        assert values["icbhi_score"] == round(row["values"]["icbhi.Score"], 4)
        for label, within in row["within_lengths"].items():
            whole, blind = row["values"][f"{label}.roc_auc"], row["duration_blind"]["values"][f"{label}.roc_auc"]
            assert f"| `{label}` | {whole:.3f} | {within:.3f} | {blind:.3f} |" in card.text
        for task, scores in (row.get("official") or {}).items():
            if task != "total":
                mixed = (
                    f", smoothed over the recording (weight {scores['smoothing']:g})" if "smoothing" in scores else ""
                )
                assert (
                    f"| {task}{mixed} | {scores['Score']:.1f} | {scores['SE']:.1f} | {scores['SP']:.1f} |" in card.text
                )
        assert run["corpus"]["fingerprint"] == row["corpus_fingerprint"] and run["config"]["seed"] == 0


@pytest.mark.parametrize("record", RECORDS, ids=lambda p: p.name)
def test_a_record_is_small_and_names_its_recipe_and_no_machine(record):
    texts = [p.read_text() for p in record.iterdir()] + [(CARDS / f"{record.name}.md").read_text()]
    parts = sum("result" in looked for looked in read_record(record / "run.json")["evaluations"])
    assert {p.name for p in record.iterdir()} == {"run.json"} and sum(map(len, texts)) < 80_000 * parts
    for text in texts:
        assert not any(f'"{root}' in text or f" {root}" in text for root in ("/tmp", "/home", "/root", "/work", "/mnt"))
    recipe = ROOT / "recipes" / "sprsound" / f"{record.name.removeprefix('sprsound_')}.yaml"
    own, ran = (
        Recipe.from_yaml(recipe).to_dict(),
        Recipe.from_record(read_record(record / "run.json")["config"]).to_dict(),
    )
    for group in ("encoder", "loss", "features", "augment"):
        assert {k: ran[group][k] for k in ran[group]} == {k: own[group][k] for k in ran[group]}, group


def test_every_card_has_its_record_and_the_other_way_round():
    assert {p.stem for p in CARDS.glob("*.md")} == {p.name for p in RECORDS} | {"README"}
    listed = (CARDS / "README.md").read_text()
    assert all(f"]({record.name}.md)" in listed for record in RECORDS)


def test_the_checklist_beside_the_cards_is_the_packages():
    packaged = resources.files("laennec").joinpath("templates/checklist.yaml").read_text()
    assert (CARDS / "checklist.yaml").read_text() == packaged
