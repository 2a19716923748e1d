"""The page of a report: its content, escaping, and missing parts."""

import base64
import io
import re

import numpy as np
import pytest
import soundfile
from evaluation_tables import TWO, cycles
from matplotlib.figure import Figure

from laennec.evaluation import class_distances, decision_curve, evaluate_predictions, four_properties, write_report
from laennec.evaluation.baselines import length_groups
from laennec.evaluation.evaluate import UNKNOWN_SELECTION
from laennec.evaluation.geometry import embedding_map
from laennec.evaluation.predictions import read_evaluated
from laennec.evaluation.report.details import Extras, Sound
from laennec.evaluation.report.plots import figure_png
from laennec.evaluation.report.sections import scored_leaks
from laennec.evaluation.report.write import make_page
from pages import Page, check_page, open_in_browser

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
            "protocol": "patient-5fold", "fold": 0, "split_fingerprint": "split-fp-456", "stamp": "LEAKY",
            "leaks": ["train and test share 1 patient (156)"],
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
    return evaluate_predictions(table, **TWO, thresholds={"crackle": 0.25, "wheeze": 0.0}, train_table=cycles(seed=9))


@pytest.fixture(scope="module")
def page(table, evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    embeddings = np.random.default_rng(0).normal(size=(len(table), 8))
    geometry = class_distances(embeddings, table.label.tolist())
    path = write_report(folder, RUN, evaluation | {"geometry": geometry}, table)
    assert path == folder / "report.html"
    return path


def test_page_states_data_split_selection_and_intervals(page, evaluation):
    text = re.sub(r"<[^>]+>", " ", page.read_text().split("<body>")[1])
    low, high = evaluation["intervals"]["icbhi.Score"]
    expected = [
        "corpus-fp-123", "split-fp-456", "patient-5fold, fold 0", "shared data, see above",
        "Caveat of this split: LEAKY", "validation", "training 7", "exact class",
        "one patient left out at a time", f"{evaluation['values']['icbhi.Score']:.1f}",
        f"{low:.1f} to {high:.1f}",
        "calibrated probability: ", "always normal", "event length", "not a medical device",
        "laennec train recipe.yaml",
        "loss.auxiliary", "1 patient (156)", "age band", "SPRSound Score",
    ]  # fmt: skip
    assert [part for part in expected if part not in text] == []
    assert text.index("corpus-fp-123") < text.index("always normal")


def test_leaks_of_test_splits_that_were_not_scored_are_not_shown():
    lines = [
        "sprsound: train and test_intra share 7 patients (1, ...)",
        "icbhi2017: train and test share 1 patient (9)",
        "validation and test_intra share 1 patient (2)",
        "a line of another edition",
    ]
    run = {"corpus": {"provenance": {"leaks": lines}}}
    assert scored_leaks(run) == lines
    assert scored_leaks(run | {"evaluated": {"split": "test"}}) == [lines[1], lines[3]]
    assert scored_leaks(run | {"evaluated": {"split": "test_intra"}}) == [lines[0], *lines[2:]]


def test_page_shows_every_warning_and_escapes_metadata(page, evaluation):
    text = page.read_text()
    check_page(text)
    assert "<script" not in text and "&lt;script&gt;" in text and "run &lt;b&gt;one" in text
    assert evaluation["warnings"]
    for warning in evaluation["warnings"]:
        start = warning["text"].split("<")[0].split("\u201c")[0]
        assert start in text


PICTURES = {
    "confusion", "label_confusion_1", "label_confusion_2", "roc", "precision_recall", "decision_1", "decision_2",
    "length_1", "length_2", "reliability", "training", "validation_percent",
    "validation_shares", "loss_terms",
}  # fmt: skip


def test_pictures_are_files_too_and_equal_for_equal_numbers(page, table, evaluation):
    assert {path.stem for path in (page.parent / "pictures").iterdir()} == PICTURES
    assert len(check_page(page.read_text()).all("img")) == len(PICTURES)
    again = make_page(RUN, evaluation, read_evaluated(table, evaluation))[1]
    for name in ("roc", "confusion", "training"):
        assert again[name] == (page.parent / "pictures" / f"{name}.png").read_bytes()
        assert again[name].startswith(b"\x89PNG")


def test_page_shows_the_four_properties_and_distances(page, table):
    embeddings = np.random.default_rng(0).normal(size=(len(table), 8))
    geometry = class_distances(embeddings, table.label.tolist())
    properties, seen = four_properties(geometry), Page(page.read_text())
    for kind, key, name in (
        ("intra", "mean", "Intra-class clustering"),
        ("intra", "cv", "Intra-class equidistance"),
        ("inter", "mean", "Inter-class separation"),
        ("inter", "cv", "Inter-class equidistance"),
    ):
        assert f"{name} {properties[kind][key]:.3f}" in seen.text
        assert f"variance {properties[kind]['variance']:.3f}" in seen.text
    cells = [f"{value:.2f}" for row in geometry["mean"] for value in row]
    rows = [f"{name} {' '.join(cells[4 * k : 4 * k + 4])}" for k, name in enumerate(geometry["classes"])]
    assert " ".join(rows) in seen.text


def test_page_shows_the_length_audit_and_net_benefit(page, evaluation, table):
    seen = Page(page.read_text()).text
    floor = next(row for row in evaluation["floors"] if row["name"] == "event length")
    answers = read_evaluated(table, evaluation)
    lengths = length_groups(answers)
    for label in ("crackle", "wheeze"):
        overall, within = (lengths[kind]["values"][label] for kind in ("overall", "within"))
        assert overall == pytest.approx(evaluation["values"][f"{label}.roc_auc"])
        alone = floor["values"][f"{label}.roc_auc"]
        ranked = "–" if within is None else f"{within:.3f}"
        assert re.search(rf"{label} {overall:.3f} \[[^a-z]*\] {ranked} [^a-z]*{alone:.3f}", seen)
    benefit = decision_curve(answers.probabilities[:, 1], answers.truth[:, 1], [0.5])["model"][0]
    share = answers.truth[:, 1].mean()
    words = "above" if benefit > max(0, 2 * share - 1) else "no better than"
    assert f"wheeze {words} acting on all or none 0.50 {benefit:+.3f}" in seen


def test_without_model_and_recordings_the_page_says_how_to_get_map_and_sounds(page):
    seen = Page(page.read_text())
    assert "For the map of the embedding, run laennec report RUN" in seen.text and not seen.all("audio")
    assert "Crackle missed" in seen.text and "sounds and spectrograms, run laennec report RUN" in seen.text


HOSTILE = "\"><img src=http://evil.test/x onerror=f()></title></svg></style><script>alert('x')</script>{{7*7}}$\\frac$'"
BROKEN = HOSTILE + "\ud800"  # as the names of files with broken encoding hold it; no table can


@pytest.fixture(scope="module")
def hostile():
    """A page whose every name wants to be markup, with map and sounds."""
    table = cycles()
    for name in ("cycle_id", "recording_id", "patient_id", "device", "chest_location", "sex"):
        table[name] = [f"{value}{HOSTILE}" for value in table[name]]
    evaluation = evaluate_predictions(table, **TWO, train_table=cycles(seed=9))
    run = RUN | {"command": HOSTILE, "selection_set": HOSTILE, "evaluated": {"split": HOSTILE}, "name": BROKEN}
    run["corpus"] = {"name": HOSTILE, "provenance": RUN["corpus"]["provenance"] | {"stamp": HOSTILE}}
    run |= {"versions": {"torch": HOSTILE}, "hardware": {"processor": HOSTILE}}
    run["config"] = {"description": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}}
    embeddings = np.random.default_rng(0).normal(size=(len(table), 8))
    sounds = {k: Sound(PIXEL, 1.5, True, TONE, 12.0) for k in range(len(table))}
    extras = Extras(embedding_map(embeddings, table["label"].tolist()), sounds)
    evaluation["geometry"] = class_distances(embeddings, table.label.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("laennec.evaluation.report.write.figure_png", lambda _: DOT)
        return make_page(run, evaluation, read_evaluated(table, evaluation), extras)[0]


def tone():
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.sin(np.arange(4000) / 3), 8000, format="WAV", subtype="PCM_16")
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode()


TONE = tone()
DOT = figure_png(Figure(figsize=(0.1, 0.1)))
PIXEL = "data:image/png;base64," + base64.b64encode(DOT).decode()


def test_hostile_names_stay_names(hostile):
    seen = check_page(hostile)
    assert seen.text.count("<script>alert('x')</script>") > 20 and f"Corpus {HOSTILE}" in seen.text
    assert f"{HOSTILE}?" in seen.text
    assert not [tag for tag, a in seen.tags if tag == "img" and not a.get("src", "").startswith("data:")]
    # names are in attributes and in the map's titles, whole
    assert any(HOSTILE in (a.get("aria-label") or "") for a in seen.all("audio"))
    assert hostile.count("<style>") == hostile.count("</style>") == 2 and "{{7*7}}" in hostile


def test_the_map_shows_class_and_error_by_shape(hostile):
    seen = Page(hostile)
    marks = [a for a in seen.all("use") if "x" in a]
    assert len(marks) == 280 and {a["href"] for a in marks} == {"#m0", "#m1", "#m2", "#m3"}
    table = cycles()
    wrong = ((table.logit_crackle > 0) != table.crackle) | ((table.logit_wheeze > 0) != table.wheeze)
    assert sum("w" in a["class"].split() for a in marks) == wrong.sum()
    assert [a["id"] for a in seen.all("input")] == ["by0", "by1", "by2"]
    assert all(0 <= float(a["x"]) <= 1000 and 0 <= float(a["y"]) <= 640 for a in marks)


def test_sounds_have_players_with_labels_and_a_licence_notice(hostile):
    seen = Page(hostile)
    players = seen.all("audio")
    assert len(players) == 24 and all("controls" in a and "truth" in a["aria-label"] for a in players)
    assert "This page contains 24 excerpts" in seen.text and "--no-audio" in seen.text and "licence" in seen.text


def test_pages_open_in_a_browser_without_errors(page, hostile, tmp_path):
    (tmp_path / "hostile.html").write_text(hostile)
    for path in (page, tmp_path / "hostile.html"):
        for width, seen in open_in_browser(path).items():
            assert seen["said"] == [] and seen["fetched"] == [], (path.name, width)
            assert seen["overflow"] <= 0, (path.name, width)
            assert seen["images"] and set(seen["players"]) <= {""}


def test_missing_records_are_shown_as_not_recorded(table, evaluation):
    page = make_page({}, evaluation, read_evaluated(table, evaluation))[0]
    assert page.count("not recorded") >= 5
    assert "no recorded fingerprint" in page and "were chosen are not recorded" in page
    unknown = make_page(RUN | {"selection_set": UNKNOWN_SELECTION}, evaluation, read_evaluated(table, evaluation))[0]
    assert "were chosen are not recorded" in unknown and "not on validation patients" not in unknown


def test_selection_on_test_is_the_first_warning(table, evaluation):
    run = RUN | {"selection_set": "test-as-in-the-literature"}
    page = make_page(run, evaluation, read_evaluated(table, evaluation))[0]
    assert "test-as-in-the-literature" in page.split("<section")[0] and "not on validation patients" in page


def test_degenerate_evaluations_have_a_page(tmp_path):
    single = cycles(n_patients=1, per_patient=5).assign(crackle=0, wheeze=0, device=None)
    write_report(tmp_path / "a", {}, evaluate_predictions(single, **TWO), single)
    other = cycles().rename(columns={"wheeze": "murmur", "logit_wheeze": "logit_murmur"})
    evaluation = evaluate_predictions(other, problem_type="multi_label", label_names=["crackle", "murmur"])
    text = write_report(tmp_path / "b", {"history": [{"loss": 1.0}]}, evaluation, other).read_text()
    assert "murmur AUROC" in text and "ICBHI Score" not in text.split("<body>")[1]
