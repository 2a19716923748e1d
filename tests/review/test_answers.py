"""Answers: kept at once, by several people at once, through kills and damage; a `folder` corpus at any moment."""

import random
import signal
import threading
import time

import pytest

from forked import Forked
from laennec.corpora.folder.corpus import Folder
from laennec.errors import InputError
from laennec.review.answers import Answer, Answers


@pytest.fixture
def sounds(small_corpus):
    return sorted(small_corpus.glob("*.wav"))


def said(sound, start_s, labels, who="ann", **more):
    place = (sound.name, round(start_s, 3), round(start_s + 0.1, 3))
    return Answer(*place, labels, who, "f00d", "uncertain", {"crackle": 0.4, "wheeze": 0.1}, sound.name[:3], **more)


def corpus(folder):
    """The rows of the folder as a corpus: recording, start, crackle, wheeze, patient."""
    names = ("recording_id", "start_s", "crackle", "wheeze", "patient_id")
    return [tuple(row[name] for name in names) for row in Folder(folder).table()]


def test_a_review_is_a_folder_corpus_after_each_answer(tmp_path, sounds):
    answers = Answers(tmp_path / "review")
    expected = []
    for k, labels in enumerate([("crackle",), (), None, ("crackle", "wheeze"), ("wheeze",)]):
        kept = answers.add(said(sounds[k], 0.1 * k, labels), sounds[k])
        assert kept.answered_at.endswith("+00:00")
        if labels is not None:
            name = f"recordings/{sounds[k].stem}"
            flags = (int("crackle" in labels), int("wheeze" in labels))
            expected.append((name, round(0.1 * k, 3), *flags, sounds[k].name[:3]))
        assert corpus(tmp_path / "review") == sorted(expected)
    table = (tmp_path / "review" / "annotations.csv").read_text().splitlines()
    assert table[0].endswith("label,patient_id,reviewer,answered_at,model,rule,crackle_probability,wheeze_probability")
    assert ",both," in table[3] and table[1].endswith("f00d,uncertain,0.4,0.1") and ",ann,20" in table[1]
    track = tmp_path / "review" / "labels" / f"{sounds[3].stem}.txt"
    assert track.read_text() == "0.300\t0.400\tboth\n"
    assert answers.undo("ann").labels == ("wheeze",) and answers.undo("ann").text == "both" and track.read_text() == ""
    assert answers.undo("bob") is None and len(corpus(tmp_path / "review")) == 2
    again = Answers(tmp_path / "review")
    assert again.active() == answers.active() and again.undo("ann").labels is None


def test_the_answer_of_most_reviewers_is_in_the_corpus_and_a_tie_is_not(tmp_path, sounds):
    answers = Answers(tmp_path)
    answers.add(said(sounds[0], 0.0, ("crackle",), "ann"), sounds[0])
    answers.add(said(sounds[0], 0.0, ("wheeze",), "bob"), sounds[0])
    answers.add(said(sounds[0], 0.2, (), "bob"), sounds[0])
    assert [row[1] for row in corpus(tmp_path)] == [0.2]
    answers.add(said(sounds[0], 0.0, ("wheeze",), "cy"), sounds[0])
    assert [row[1:4] for row in corpus(tmp_path)] == [(0.0, 0, 1), (0.2, 0, 0)]
    assert [row.reviewer for row in answers.agreed()] == ["bob, cy", "bob"]


def answer_for_ever(folder, sound, who):
    answers, place = Answers(folder), 0
    while True:
        answers.add(said(sound, 0.2 * place, ("crackle",) if place % 3 else (), who), sound)
        print(place, flush=True)  # acknowledged
        place += 1


def test_a_kill_loses_at_most_the_answer_that_was_not_acknowledged(tmp_path, sounds):
    draw = random.Random(4)
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        process = Forked(lambda folder=folder: answer_for_ever(folder, sounds[0], "ann"))
        acknowledged = process.stdout.readline()
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        rest, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL
        told = len((acknowledged + rest).splitlines())
        kept = Answers(folder)
        places = sorted(answer.start_s for answer in kept.active())
        assert told <= len(places) <= told + 1 and places == [round(0.2 * place, 3) for place in range(len(places))]
        assert len(corpus(folder)) == len(places)
        kept.add(said(sounds[0], 99, None), sounds[0])
        assert len(Answers(folder).active()) == len(places) + 1


def test_reviewers_at_the_same_time_lose_and_mix_no_answers(tmp_path, sounds):
    def answer(who):
        answers = Answers(tmp_path)
        for place in range(12):
            answers.add(said(sounds[place % 4], 0.2 * place, ("crackle",), who), sounds[place % 4])
        for _ in range(3):
            answers.undo(who)

    processes = [Forked(lambda who=who: answer(who)) for who in ("ann", "bob")]
    threads = [threading.Thread(target=answer, args=(who,)) for who in ("cy", "di")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = [process.done() for process in processes]
    assert [end.returncode for end in ended] == [0, 0], ended
    answers = Answers(tmp_path)
    for who in ("ann", "bob", "cy", "di"):
        own = sorted(answer.start_s for answer in answers.active() if answer.reviewer == who)
        assert own == [round(0.2 * place, 3) for place in range(9)]
    assert {row.reviewer for row in answers.agreed()} == {"ann, bob, cy, di"} and len(corpus(tmp_path)) == 9


def test_damage_of_one_line_costs_one_answer_and_is_told(tmp_path, sounds, capsys):
    answers = Answers(tmp_path)
    for place in range(3):
        answers.add(said(sounds[0], place, ()), sounds[0])
    lines = answers.journal.read_bytes().splitlines(keepends=True)
    outside = lines[2].replace(b'"recording":"', b'"recording":"../')
    answers.journal.write_bytes(b"".join([*lines[:2], outside, *lines[3:], lines[1][:40]]))
    again = Answers(tmp_path)
    assert [answer.start_s for answer in again.active()] == [0, 2]
    assert "line 3: damaged" in capsys.readouterr().err
    again.add(said(sounds[0], 5, ()), sounds[0])  # in place of the half line
    assert [answer.start_s for answer in Answers(tmp_path).active()] == [0, 2, 5]
    answers.journal.write_bytes(lines[0])
    with pytest.raises(InputError, match="shorter than before"):
        again.add(said(sounds[0], 6, ()), sounds[0])


def test_nothing_of_the_users_is_overwritten(tmp_path, sounds, capsys):
    own = tmp_path / "own"
    own.mkdir()
    (own / "annotations.csv").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        Answers(own)
    assert [path.name for path in own.iterdir()] == ["annotations.csv"]
    answers = Answers(tmp_path / "review")
    answers.add(said(sounds[0], 0, ()), sounds[0])
    table = answers.folder / "annotations.csv"
    corrected = table.read_text().replace("normal", "wheeze")
    table.write_text(corrected)
    answers.add(said(sounds[0], 1, ()), sounds[0])
    (edited,) = answers.folder.glob("laennec.edited.*.annotations.csv")
    assert edited.read_text() == corrected and edited.name in capsys.readouterr().err
    assert len(corpus(answers.folder)) == 2
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / sounds[0].name
    other.write_bytes(sounds[1].read_bytes())
    with pytest.raises(InputError, match="another recording of this name"):
        answers.add(said(other, 2, ()), other)
    with pytest.raises(InputError, match="reviewer"):
        answers.add(said(sounds[0], 2, (), who="=cmd()"), sounds[0])
    assert len(answers.active()) == 2
    (other.parent / "plain").write_text("")
    with pytest.raises(InputError):
        Answers(other.parent / "plain")


def test_a_full_disk_is_one_line_and_keeps_what_was_answered(disk, sounds):
    folder = disk("small", 400) / "review"
    answers = Answers(folder)
    filler = folder.parent / "filler"
    filler.write_bytes(bytes(200_000))
    with pytest.raises(InputError, match="disk is full"):
        for place in range(10_000):
            answers.add(said(sounds[0], 0.001 * place, ()), sounds[0])
    filler.unlink()
    assert place > 3 and len(corpus(Answers(folder).folder)) in (place, place + 1)
