"""A review in Python: the queue of a real model, two reviewers, later models, own labels, and what cannot be."""

import shutil

import pytest
import torch

import laennec
from laennec.cli.main import main
from laennec.corpora.folder.corpus import Folder
from laennec.ensemble import ensemble_models
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.inference.predictor import Predictor

PATIENT = "^[^_]+"


@pytest.fixture(scope="module")
def recordings(small_corpus, tmp_path_factory):
    """Eight recordings, one of them in a folder inside."""
    folder = tmp_path_factory.mktemp("recordings")
    for k, path in enumerate(sorted(small_corpus.glob("*.wav"))[:8]):
        place = folder / ("ward" if k == 3 else ".") / path.name
        place.parent.mkdir(exist_ok=True)
        shutil.copy(path, place)
    return folder


@pytest.fixture
def review(tiny_run, recordings, tmp_path):
    def make(out="review", model=tiny_run, **settings):
        return laennec.Review(model, recordings, tmp_path / out, **{"reviewer": "ann", "patients": PATIENT} | settings)

    return make


def test_answers_to_the_queue_become_a_corpus_and_a_second_start_continues(review, recordings, tiny_run):
    first = review(per_patient=2)
    assert len(first.queue) == 16 and len(first.items) > 16 and first.labels == ("crackle", "wheeze")
    spans = [first.next().span]
    assert first.next().span == spans[0]
    item = first.next()
    predicted = Predictor.from_pretrained(tiny_run, window_s=first.predictor.window_s, hop_s=first.predictor.window_s)
    alone = predicted(item.path)
    place = [round(start, 3) for start, _ in alone.spans].index(item.start_s)
    assert list(item.probabilities.values()) == pytest.approx(alone.probabilities[place], abs=1e-5)
    for labels in (["crackle"], ["both"], ["skip"], ["crackle", "wheeze"], ["normal"]):
        first.answer(*labels)
        spans.append(first.next().span)
    assert len(set(spans)) == 6 and first.done() == 5
    first.undo()
    assert first.next().span == spans[4]
    second = review(per_patient=2)
    assert second.next().span == spans[4] and second.done() == 4
    rows = Folder(second.answers.folder).table()
    assert sorted(zip(rows["crackle"], rows["wheeze"], strict=True)) == [(1, 0), (1, 1), (1, 1)]
    assert set(rows["patient_id"]) <= {path.name[:3] for path in recordings.rglob("*.wav")}
    assert second.answer("normal", item=item) is None  # a key that was pressed twice
    while second.next():
        second.answer("normal")
    assert second.done() == 16 and len(Folder(second.answers.folder).table()) == 15
    with pytest.raises(InputError, match="no span"):
        second.answer("normal")


def test_reviewers_see_one_queue_share_it_or_settle_disputes(review):
    ann, bob = review(), review(reviewer="bob")
    spans = {ann.next().span, bob.next().span}
    assert len(spans) == 1
    ann.answer("crackle")
    shared = review(reviewer="bob", share=True)
    assert {bob.next().span} == spans and shared.next().span not in spans
    assert ann.total() == bob.total() == len(ann.queue) == shared.total() + 1
    bob.answer("normal")
    assert ann.agreement()["n"].tolist() == [1, 1, 1]
    settled = review(reviewer="cy", disputed=True)
    assert {settled.next().span} == spans and settled.total() == 1
    settled.answer("crackle")
    assert settled.next() is None and [row.reviewer for row in ann.answers.agreed()] == ["ann, cy"]


def test_a_later_model_takes_up_the_answers(review, frozen_run, tiny_run):
    first = review(rule="diverse", per_patient=None)
    answered = first.next()
    first.answer("wheeze")
    later = review(model=frozen_run, rule="disagreement", members=[tiny_run], per_patient=None, segment=True)
    assert later.model != first.model and answered.span not in {item.span for item in later.items}
    seen = []
    while item := later.next():
        seen.append(item)
        later.answer("normal")
    assert seen and all(
        item.recording != answered.recording or item.start_s >= answered.end_s - 0.002
        or item.end_s <= answered.start_s + 0.002 or item.span == answered.span for item in seen
    )  # fmt: skip
    assert {row.model for row in later.answers.agreed()} == {first.model, later.model}


def test_an_ensemble_needs_no_further_models_to_disagree(review, tiny_run, tmp_path):
    models = []
    for seed in range(2):
        model, extractor = load_model(tiny_run)
        torch.nn.init.normal_(model.head.classifier.weight, generator=torch.Generator().manual_seed(seed))
        model.config.operating_points = {}  # of windows: as an ensemble, it has none
        models.append(model)
    folders = [tmp_path / name for name in ("first", "second", "both")]
    for folder, model in zip(folders, [*models, ensemble_models(models)], strict=True):
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
    settings = {"rule": "disagreement", "per_patient": None}
    apart = review("apart", model=folders[0], members=[folders[1]], **settings)
    ensemble = review("ensemble", model=folders[2], **settings)
    assert ensemble.queue[:9].tolist() == apart.queue[:9].tolist()
    assert ensemble.queue.tolist() != review("alone", model=folders[2], per_patient=None).queue.tolist()


def test_own_labels_and_annotated_cycles_and_breaths(review, recordings, small_corpus):
    own = review("own", labels=["stridor", "Rhonchi", "normal"], segment=True)
    own.answer("stridor", "Rhonchi", item=own.next())
    own.answer("normal", item=own.next())
    assert sorted(map(tuple, Folder(own.answers.folder).table()["events"])) == [("Rhonchi", "stridor"), ("normal",)]
    for wrong in (["crackle"], ["both"], [], ["normal", "stridor"]):
        with pytest.raises(InputError, match="give one of normal, stridor, Rhonchi or skip"):
            own.answer(*wrong, item=own.next())
    cycles = review("cycles", annotation=small_corpus)
    lines = (small_corpus / cycles.items[0].path.with_suffix(".txt").name).read_text().split()
    assert cycles.items[0].span[1:] == tuple(map(float, lines[:2]))


def test_what_cannot_be_reviewed_is_one_line(review, recordings, tmp_path, tiny_run, capsys):
    for settings, said in (
        ({"out": recordings / "review"}, "beside"),
        ({"labels": ["crakle"]}, "did you mean 'crackle'"),
        ({"labels": ["a;b"]}, "cannot be the name"),
        ({"labels": ["=1+1"]}, "cannot be the name"),
        ({"reviewer": "a\nb"}, "reviewer"),
        ({"patients": "^x"}, "no patient for 8 recordings"),
        ({"patients": "("}, "no regular expression"),
        ({"rule": "disagreement"}, "is not an ensemble"),
    ):
        with pytest.raises(InputError, match=said):
            review(**settings)
    people = tmp_path / "people.csv"
    rows = [f"{path.name},p{k % 2}\n" for k, path in enumerate(recordings.rglob("*.wav"))]
    people.write_text("".join(["file,patient\n", *rows]))
    assert {item.patient_id for item in review("people", patients=people).items} == {"p0", "p1"}
    for words in ([recordings], [tiny_run, recordings], [recordings, "--out", tmp_path / "cli", "--rule", "best"]):
        assert main(["review", *map(str, words)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
