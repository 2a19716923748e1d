"""Windows of recordings as training examples: cut as in `laennec predict`, labelled by their overlap with spans."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from laennec import Predictor, Recipe, load_corpus, load_model, train
from laennec.audio.cycles import prediction_windows
from laennec.corpora.base import CYCLE_FEATURES
from laennec.errors import InputError
from laennec.evaluation.scored_data import settings_of_model
from laennec.training.data.split_data import labelled_split, make_extractor
from laennec.training.data.targets import target_of
from laennec.training.data.windows import (
    predict_windows,
    refuse_shared_recordings,
    training_examples,
    window_table,
    window_truth,
)

CONTEXT = Path(__file__).parents[1] / "golden" / "first_edition" / "models" / "context"


@pytest.fixture
def annotated(tmp_path):
    """A function that makes the cycle table of a silent 10 s file from spans (start_s, end_s, crackle, wheeze)."""
    path = tmp_path / "r.wav"
    soundfile.write(path, np.zeros(80_000), 8000)

    def table(*spans):
        rows = [
            dict.fromkeys(CYCLE_FEATURES) | {
                "cycle_id": f"r#{k}", "recording_id": "r", "patient_id": "p", "cycle_index": k, "start_s": start,
                "end_s": end, "crackle": c, "wheeze": w, "label": None if c is None else c + 2 * w, "device": "d",
                "recording_path": str(path),
            }
            for k, (start, end, c, w) in enumerate(spans)
        ]  # fmt: skip
        return datasets.Dataset.from_list(rows, features=CYCLE_FEATURES)

    return table


def naive(spans, start, end):
    """(crackle, wheeze) of a window: any span that overlaps by half of the shorter of the two; None without spans."""
    found = [
        (c, w) for a, b, c, w in spans if min(b, end) - max(a, start) >= 0.5 * min(b - a, end - start) and c is not None
    ]
    return tuple(max(flags) for flags in zip(*found, strict=True)) if found else (None, None)


@pytest.mark.parametrize(("window_s", "hop_s"), [(3.0, 1.5), (2.0, 2.0), (1.0, 1.0), (4.0, 0.75), (30.0, 30.0)])
def test_a_window_has_the_labels_of_spans_that_overlap_by_half_of_the_shorter(annotated, window_s, hop_s):
    spans = [(0.0, 1.25, 0, 0), (1.25, 2.5, 1, 0), (2.25, 6.25, 0, 1), (7.0, 7.25, 1, 1), (9.5, 10.0, None, None)]
    table = window_table(annotated(*spans), Recipe(), 8000, window_s, hop_s)
    assert list(zip(table["start_s"], table["end_s"], strict=True)) == prediction_windows(10.0, window_s, hop_s)
    for row in table:
        wanted = naive(spans, row["start_s"], row["end_s"])
        assert (row["crackle"], row["wheeze"]) == wanted, row
        assert row["label"] == (None if wanted[0] is None else wanted[0] + 2 * wanted[1]) and row["device"] == "d"
    assert len(set(table["cycle_id"])) == len(table)


def test_windows_without_annotation_are_neither_positive_nor_negative(annotated):
    table = window_table(annotated((0.0, 1.0, 1, 0)), Recipe(), 8000, 2.0, 2.0)
    assert table["crackle"][:] == [1, None, None, None, None]
    truth = window_truth(table, "test", Recipe(), ["crackle", "wheeze"])
    assert truth["crackle"].isna().sum() == 4 and truth["wheeze"].tolist()[0] == 0


def test_background_is_what_no_span_overlaps_and_has_no_label(annotated):
    table = window_table(annotated((0.0, 1.0, 1, 0), (4.5, 4.6, 0, 1)), Recipe(), 8000, 2.0, 2.0, background=True)
    assert table["crackle"][:] == [1, 0, 0, 0, 0] and table["wheeze"][:] == [0, 0, 1, 0, 0]
    assert table["label"][:] == [1, 0, 2, 0, 0]
    table = window_table(annotated((0.0, 1.0, 1, 0), (2.0, 5.5, 0, 1)), Recipe(), 8000, 2.0, 2.0, background=True)
    assert table["crackle"][:] == [1, 0, 0, 0, 0]


def test_windows_of_own_labels_combine_their_columns(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(80_000), 8000)
    (tmp_path / "labels.csv").write_text(
        "recording,start_s,end_s,label,patient_id\na.wav,0,1,stridor,p\na.wav,1,2,rhonchi;snore,p\na.wav,4,6,,p\n"
    )
    table = load_corpus("folder", tmp_path, protocol="none")["all"]
    recipe = Recipe().with_target(target_of(table, Recipe().target))
    windows = window_table(table, recipe, 8000, 2.0, 2.0, background=True)
    flags = {name: windows[name][:] for name in ("stridor", "rhonchi", "snore")}
    assert flags == {"stridor": [1, 0, 0, 0, 0], "rhonchi": [1, 0, 0, 0, 0], "snore": [1, 0, 0, 0, 0]}
    truth = window_truth(windows, "all", recipe, ["rhonchi", "snore", "stridor"])
    assert truth["snore"].tolist() == [1, 0, 0, 0, 0]
    without = window_table(table, recipe, 8000, 2.0, 2.0)
    assert without["stridor"][:] == [1, None, 0, None, None]


@pytest.mark.parametrize("source", ["tiny", "context"])
def test_windows_have_the_logits_that_prediction_gives(source, tiny_run, small_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path))
    model, extractor = load_model(tiny_run if source == "tiny" else CONTEXT)
    assert bool(extractor.context_cycles) == (source == "context")
    table = load_corpus("synthetic", small_corpus)["validation"]
    recipe = Recipe()
    settings_of_model(recipe, None, model, extractor, table)
    model.config.operating_points = model.config.temperatures = model.config.intercepts = {}
    got = predict_windows(model, extractor, table, "validation", recipe, 1.1, 0.4)
    paths = dict(zip(table["recording_id"], table["recording_path"], strict=True))
    assert set(got["recording_id"]) == set(paths)
    for name, rows in list(got.groupby("recording_id", sort=False))[:2]:
        wanted = Predictor(model, extractor, 1.1, 0.4)(paths[name])
        assert list(zip(rows["start_s"], rows["end_s"], strict=True)) == wanted.spans and len(wanted.spans) > 3
        logits = rows[[f"logit_{label}" for label in wanted.labels]].to_numpy(float)
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), wanted.probabilities, atol=2e-6)


def test_a_protocol_that_splits_recordings_is_refused(annotated):
    table = annotated((0.0, 1.0, 1, 0), (1.0, 2.0, 0, 0))
    splits = {"train": table.select([0]), "test": table.select([1])}
    with pytest.raises(InputError, match="the sound of cycles of train, because protocol random-80-20"):
        refuse_shared_recordings(splits, "test", "random-80-20")
    refuse_shared_recordings({"test": table}, "test", "official")


def test_windows_are_training_examples_beside_events(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "cache"))
    settings = tiny_recipe["train"] | {"epochs": 1, "spans": "both"}
    run = train(Recipe(**tiny_recipe | {"train": settings, "output_dir": str(tmp_path / "run")}))
    record = json.loads((run / "run.json").read_text())
    splits = load_corpus("synthetic", tiny_recipe["corpus"]["data_dir"])
    extractor = make_extractor(Recipe(**tiny_recipe).features)
    windows = training_examples(Recipe(**tiny_recipe | {"train": settings | {"spans": "windows"}}), splits, extractor)
    annotated = sum(crackle is not None for crackle in windows["crackle"])
    assert annotated > 0 and record["cycles"]["train"] == len(splits["train"]) + annotated
    assert record["cycles"]["validation"] == len(splits["validation"]) and np.isfinite(record["history"][-1]["loss"])


def test_the_draws_of_a_window_do_not_depend_on_the_other_examples(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "cache"))
    splits, found = load_corpus("synthetic", tiny_recipe["corpus"]["data_dir"]), {}
    for spans in ("windows", "both"):
        settings = {"train": tiny_recipe["train"] | {"spans": spans}, "augment": {"noise": {"probability": 1.0}}}
        recipe = Recipe(**tiny_recipe | settings)
        extractor = make_extractor(recipe.features)
        part = labelled_split(recipe, training_examples(recipe, splits, extractor), extractor)
        row = list(part.table["cycle_id"]).index(next(name for name in part.table["cycle_id"] if "#w" in name))
        found[spans] = [part.dataset[(row, epoch)]["waveform"] for epoch in (0, 1)]
    np.testing.assert_array_equal(found["windows"][0], found["both"][0])
    np.testing.assert_array_equal(found["windows"][1], found["both"][1])
    assert not np.array_equal(found["both"][0], found["both"][1])


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("features", {"context_cycles": 1}, "windows overlap"),
        ("corpus", {"label_fraction": 0.5}, "labels that are left"),
        ("train", {"spans": "events", "background": True}, "needs windows"),
        ("target", {"column": "diagnosis"}, "no known diagnosis"),
    ],
)
def test_windows_are_refused_where_they_would_mislead(tiny_recipe, section, values, said):
    recipe = Recipe(**tiny_recipe | {"train": {"spans": "windows", "background": section == "target"}})
    for name, value in values.items():
        setattr(getattr(recipe, section), name, value)
    splits = load_corpus("synthetic", tiny_recipe["corpus"]["data_dir"])
    with pytest.raises(InputError, match=said):
        training_examples(recipe, splits, make_extractor(recipe.features))
