"""The page: what it states, what it escapes, what it does without."""

import json
import re

import numpy as np
import pytest
from evaluation_tables import cycles

from laennec.errors import InputError
from laennec.evaluation import class_distances, evaluate_predictions, write_pictures, write_report
from laennec.evaluation.report import render_report

TWO = {"problem_type": "multi_label", "label_names": ["crackle", "wheeze"]}
VALIDATION = {"score": 51.0, "auroc": 0.7}
RUN = {
    "name": "run <b>one</b>",
    "created": "2026-11-21",
    "laennec_version": "0.1.0",
    "command": ["laennec", "train", "recipe.yaml"],
    "corpus": {
        "name": "icbhi2017",
        "fingerprint": "corpus-fp-123",
        "provenance": {
            "protocol": "official-60-40", "fold": 0, "split_fingerprint": "split-fp-456", "stamp": "LEAKY",
            "leaks": {"patients": ["156"]},
        },
    },
    "selection_set": "validation",
    "config": {"loss": {"auxiliary": "add"}},
    "seeds": {"training": 7},
    "versions": {"torch": "2.13.0"},
    "hardware": {"device": "cpu"},
    "timings": {"train_s": 12.5},
    "history": [
        {"epoch": k, "loss": 1 / k, "loss_terms": {"bce": 0.5, "add_mu_pos": 0.1}, "validation": VALIDATION}
        for k in (1, 2, 3)
    ],
    "best_epoch": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return cycles().assign(device="<script>alert('device')</script>")


@pytest.fixture(scope="module")
def evaluation(table):
    return evaluate_predictions(
        table, **TWO, thresholds={"crackle": 0.25, "wheeze": 0.0}, train_table=cycles(seed=9), n_draws=60
    )


@pytest.fixture(scope="module")
def page(table, evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    embeddings = np.random.default_rng(0).normal(size=(len(table), 8))
    path = write_report(folder, RUN, evaluation, table, geometry=class_distances(embeddings, table.label.tolist()))
    assert path == folder / "report.html"
    return path


def test_page_states_what_the_score_rests_on(page, evaluation):
    text = re.sub(r"<[^>]+>", " ", page.read_text().split("<body>")[1])
    low, high = evaluation["intervals"]["icbhi.Score"]
    expected = [
        "corpus-fp-123", "split-fp-456", "official-60-40, fold 0", "LEAKY", "validation", "training 7", "exact class",
        "patient-clustered bootstrap", "60 draws", f"{evaluation['values']['icbhi.Score']:.1f}",
        f"{low:.1f} to {high:.1f}",
        "logit &gt; 0.250", "always normal", "event length", "not a medical device", "add_mu_pos",
        "laennec train recipe.yaml",
        "loss.auxiliary", "patients 156", "age band", "SPRSound Score",
    ]  # fmt: skip
    assert [part for part in expected if part not in text] == []
    assert text.index("corpus-fp-123") < text.index("always normal")


def test_page_shows_every_warning(page, evaluation):
    text = page.read_text()
    assert evaluation["warnings"]
    for warning in evaluation["warnings"]:
        start = warning["text"].split("<")[0].split("\u201c")[0]
        assert start in text


def test_page_escapes_metadata_and_reaches_for_nothing(page):
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "run &lt;b&gt;one" in text
    assert "http://" not in text and "https://" not in text and "default-src 'none'" in text
    assert text.count("data:image/png;base64,") == 8


def test_pictures_are_files_too_and_equal_for_equal_numbers(page, table, evaluation, tmp_path):
    names = {path.stem for path in (page.parent / "pictures").iterdir()}
    assert names == {
        "confusion",
        "label_confusions",
        "roc",
        "precision_recall",
        "reliability",
        "subgroups",
        "geometry",
        "training",
    }
    again = write_pictures(tmp_path, evaluation, table, run=RUN)
    for name in ("roc", "confusion", "training"):
        assert again[name].read_bytes() == (page.parent / "pictures" / f"{name}.png").read_bytes()
        assert again[name].read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_is_said_not_hidden(evaluation):
    page = render_report({}, evaluation)
    assert page.count("not recorded") >= 5
    assert "no recorded fingerprint" in page and "not recorded on which patients" in page


def test_selection_on_test_is_shouted(evaluation):
    page = render_report(RUN | {"selection_set": "test-as-in-the-literature"}, evaluation)
    assert "test-as-in-the-literature" in page.split("<section")[0] and "not on validation patients" in page


def test_page_is_rendered_from_stored_json_alone(evaluation, tmp_path):
    stored = json.loads(json.dumps(evaluation))
    assert write_report(tmp_path, json.loads(json.dumps(RUN)), stored).is_file()
    assert not (tmp_path / "pictures" / "roc.png").exists()


def test_degenerate_evaluations_have_a_page(tmp_path):
    single = cycles(n_patients=1, per_patient=5).assign(crackle=0, wheeze=0, device=None)
    write_report(tmp_path / "a", {}, evaluate_predictions(single, **TWO, n_draws=5), single)
    other = cycles().rename(columns={"wheeze": "murmur", "logit_wheeze": "logit_murmur"})
    evaluation = evaluate_predictions(other, problem_type="multi_label", label_names=["crackle", "murmur"], n_draws=5)
    text = write_report(tmp_path / "b", {"history": [{"loss": 1.0}]}, evaluation, other).read_text()
    assert "murmur AUROC" in text and "ICBHI Score" not in text.split("<body>")[1]


def test_a_folder_that_cannot_be_written_is_one_line(evaluation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        write_report(tmp_path / "file", RUN, evaluation)
