"""Agreement of reviewers, against sklearn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from laennec.cli.main import main
from laennec.review.agreement import agreement_table, agreement_text
from laennec.review.answers import Answer, Answers

CLASSES = [(), ("crackle",), ("wheeze",), ("crackle", "wheeze")]


def answers_of(who, given, patients=8):
    return [
        Answer(f"r{k}.wav", 0, 1, None if c is None else CLASSES[c], who, "f", "random", {}, f"p{k % patients}")
        for k, c in enumerate(given)
    ]


def test_kappa_is_that_of_sklearn_for_each_label_and_for_the_classes():
    draw = np.random.default_rng(0)
    first = draw.integers(0, 4, 80)
    second = np.where(draw.random(80) < 0.7, first, draw.integers(0, 4, 80))
    skipped = [None if k % 9 == 0 else int(c) for k, c in enumerate(second)]
    both = [k for k in range(80) if skipped[k] is not None]
    table = agreement_table(answers_of("ann", first) + answers_of("bob", skipped), ["crackle", "wheeze"])
    a, b = first[both], second[both]
    for row, (x, y) in zip(table.itertuples(), [(a % 2, b % 2), (a // 2, b // 2), (a, b)], strict=True):
        assert row.n == len(both) and row.patients == 8 and 7 < row.effective < 8
        assert row.agreement == pytest.approx((x == y).mean())
        assert row.kappa == pytest.approx(cohen_kappa_score(x, y))
        assert row.kappa_low < row.kappa < row.kappa_high
    assert table["label"].tolist() == ["crackle", "wheeze", "class"]
    # all answers of a patient are drawn together, so patients with one answer each give a narrower interval
    apart = agreement_table(answers_of("ann", first, 80) + answers_of("bob", skipped, 80), ["crackle"])
    assert apart["kappa"][0] == table["kappa"][0] and apart["kappa_low"][0] != table["kappa_low"][0]


def test_what_is_not_defined_is_said():
    alone = agreement_table(answers_of("ann", [0, 1]), ["crackle"])
    assert len(alone) == 0 and "no two reviewers" in agreement_text(alone)[0]
    few = agreement_table(answers_of("ann", [1, 1, 1], 3) + answers_of("bob", [1, 1, 1], 3), ["crackle", "rhonchi"])
    text = "\n".join(agreement_text(few))
    assert np.isnan(few["kappa"]).all() and "not defined" in text and "too few for an interval" in text
    apart = answers_of("bob", [None, 1])
    assert agreement_table(answers_of("ann", [1, None]) + apart, ["crackle"])["n"].tolist() == [0]


def test_the_command_prints_the_table(tmp_path, small_corpus, capsys):
    sound = sorted(small_corpus.glob("*.wav"))[0]
    kept = Answers(tmp_path / "review")
    for who, given in (("ann", [0, 1, 3]), ("bob", [0, 1, 1])):
        for k, c in enumerate(given):
            kept.add(Answer(sound.name, k, k + 1, CLASSES[c], who, "f", "random", {}, "p"), sound)
    assert main(["review", "--agreement", str(tmp_path / "review")]) == 0
    said = capsys.readouterr().out
    assert said.split()[:3] == ["reviewers", "label", "n"]
    assert " ".join(said.splitlines()[3].split()) == "ann, bob class 3 1 1.0 0.67 0.5 not defined not defined"
    assert main(["review", "--agreement", str(tmp_path)]) == 2 and "no review in this folder" in capsys.readouterr().err
