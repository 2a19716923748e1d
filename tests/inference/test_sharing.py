"""Recordings shared among processes and ranks: the same files, whatever dies on the way."""

import os
import pickle
import random
import signal
import time

import pandas as pd
import pyarrow.parquet as pq
import pytest
from batches import content, copied

from forked import Forked, on_another_machine
from laennec.cli.main import main
from laennec.evaluation.evaluate import load_model
from laennec.files import journal_line
from laennec.inference.batch.journal import JOURNAL, Journal
from laennec.inference.batch.run import Predictor, predict

FORMATS = ("json", "csv", "parquet", "audacity")


@pytest.fixture(scope="module")
def recordings(small_corpus, tmp_path_factory):
    names = ("r0", "r1", "r2", "r2_bad", "r3", "r4", "r5")
    return copied(small_corpus, tmp_path_factory.mktemp("recordings"), *names)


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return Predictor(*load_model(tiny_run), 2, 1)


@pytest.fixture(scope="module")
def alone(predictor, recordings, tmp_path_factory):
    """What a single process leaves."""
    out = tmp_path_factory.mktemp("alone")
    predict(predictor, [recordings], out, formats=FORMATS)
    return content(out)


class Dying(Predictor):
    """Kills its process at its third recording."""

    calls, died = 0, None

    def __call__(self, path, annotation=None, listener=None):
        self.calls += 1
        if self.calls == 3:
            if self.died:
                self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(path, annotation, listener)


class Outliving(Predictor):
    """Ends its first recording after another process has died."""

    died = None

    def __call__(self, path, annotation=None, listener=None):
        while not self.died.exists():
            time.sleep(0.05)
        return super().__call__(path, annotation, listener)


def rank(number, made, recordings, out):
    environment = {"RANK": str(number), "WORLD_SIZE": "2"}
    return Forked(lambda: bool(predict(made, [recordings], out, formats=FORMATS)) - 1, **environment)


def dying(predictor):
    return Dying(predictor.model, predictor.extractor, 2, 1)


def test_two_processes_leave_the_files_of_one(tiny_run, alone, recordings, tmp_path, capfd):
    command = ["predict", str(tiny_run), str(recordings), "--window-s", "2", "--hop-s", "1", "--jobs", "2"]
    assert main([*command, "--format", ",".join(FORMATS), "--out", str(tmp_path / "out")]) == 2
    assert "r2_bad.wav" in capfd.readouterr().err
    here = content(tmp_path / "out")
    assert here.keys() == alone.keys()
    # these name the model's folder, which `predict` in Python does not know
    assert {name for name in here if here[name] != alone[name]} <= {
        ".laennec.tables.json",
        "laennec.parameters.yaml",
        "laennec.predictions.parquet",
    }
    assert main([*command, "--out", str(tmp_path / "out"), "--format", "json"]) == 2
    assert "were already finished" in capfd.readouterr().out


def test_a_predictor_is_the_same_on_the_other_side(predictor, frozen_run, recordings):
    for made in (predictor, Predictor(*load_model(frozen_run), smoothing=0.5, thresholds={"crackle": 0.3})):
        again = pickle.loads(pickle.dumps(made))
        assert again.fingerprint() == made.fingerprint() and again.identity(False) == made.identity(False)
        path = recordings / "r0.wav"
        assert again(path).to_dict() == made(path).to_dict()


def test_ranks_share_the_recordings_and_leave_the_files_of_one(predictor, alone, recordings, tmp_path):
    ranks = [rank(number, predictor, recordings, tmp_path) for number in (0, 1)]
    assert [one.done().returncode for one in ranks] == [0, 0]
    assert content(tmp_path) == alone


def test_the_first_rank_takes_over_from_one_that_dies(predictor, alone, recordings, tmp_path):
    second = rank(1, dying(predictor), recordings, tmp_path)
    assert second.done().returncode == -signal.SIGKILL
    part = (tmp_path / "laennec.journal.1.jsonl").read_bytes()
    assert part.count(b"\n") == 3  # the identity, the names and a recording; another one was the damaged one
    assert rank(0, predictor, recordings, tmp_path).done().returncode == 0
    assert content(tmp_path) == alone


@pytest.mark.parametrize("again", ["ranks", "one process"])
def test_the_same_command_goes_on_where_the_first_rank_died(predictor, alone, recordings, tmp_path, again):
    first, second = dying(predictor), Outliving(predictor.model, predictor.extractor, 2, 1)
    first.died = second.died = tmp_path.with_name(f"{tmp_path.name}.died")
    ranks = [rank(0, first, recordings, tmp_path), rank(1, second, recordings, tmp_path)]
    assert [one.done().returncode for one in ranks] == [-signal.SIGKILL, 0]
    assert not (tmp_path / "laennec.predictions.csv").exists()
    if again == "ranks":
        ranks = [rank(number, predictor, recordings, tmp_path) for number in (1, 0)]
        assert [one.done().returncode for one in ranks] == [0, 0]
    else:
        counted = dying(predictor)
        counted.calls = -100
        predict(counted, [recordings], tmp_path, formats=FORMATS)
        assert counted.calls < -100 + 4  # the others were finished
    assert content(tmp_path) == alone


def test_a_rank_waits_for_the_first_one_to_replace_other_settings(predictor, alone, recordings, tmp_path):
    predict(Predictor(predictor.model, predictor.extractor, 3, 1), [recordings], tmp_path, formats=FORMATS)
    refused = rank(1, predictor, recordings, tmp_path).done()
    assert refused.returncode and "another model or other settings" in refused.stderr
    environment = {"WORLD_SIZE": "2"}

    def work():
        predict(predictor, [recordings], tmp_path, formats=FORMATS, overwrite=True)

    second = Forked(work, RANK="1", **environment)
    first = Forked(work, RANK="0", **environment)
    assert [first.done().returncode, second.done().returncode] == [0, 0]
    assert content(tmp_path) == alone


class Drawn(Predictor):
    """Takes a drawn time for each recording; kills its process at one of them, or amid a line of the journal."""

    def __init__(self, predictor, seed, dies):
        super().__init__(predictor.model, predictor.extractor, 2, 1)
        self.draw, self.calls = random.Random(seed), 0
        self.last = self.draw.randint(1, 5) if dies else 0
        self.amid_a_line = self.draw.random() < 0.5

    def __call__(self, path, annotation=None, listener=None):
        self.calls += 1
        if self.calls == self.last and self.amid_a_line:
            Journal.write = torn
        elif self.calls == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.draw.choice([0, 0, 0.01, 0.1]))
        return super().__call__(path, annotation, listener)


def torn(journal, **said):
    """Write half of a line, as a kill may."""
    line = journal_line(**said)
    with journal.path.open("ab") as file:
        file.write(line[: len(line) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def without(files, *names):
    """These files but for some, and for what a killed process of another machine was writing."""
    return {name: it for name, it in files.items() if name not in names and not name.endswith(".part")}


@pytest.mark.parametrize("dies", [False, True], ids=["both end", "one is killed"])
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.soak] * (seed > 4)) for seed in range(100)])
def test_two_machines_that_see_no_locks_leave_the_files_of_one(predictor, recordings, tmp_path, seed, dies):
    out, formats = tmp_path / "out", FORMATS[: 1 if seed % 3 == 2 else 4]
    predict(predictor, [recordings], tmp_path / "alone", formats=formats)
    alone = content(tmp_path / "alone")

    def work(number):
        made = Drawn(predictor, 2 * seed + number, dies and not number)
        return lambda: len(predict(made, [recordings], out, formats=formats).predicted)

    machines = [on_another_machine(work(number), tmp_path, "m" * (number + 1), 2) for number in (0, 1)]
    ended = [machine.done() for machine in machines]
    assert [done[:2] for done in ended] == [(-signal.SIGKILL, "") if dies else (0, "6\n"), (0, "6\n")], ended
    kept = (JOURNAL,) if dies else ()  # the one that is killed may have begun a line after the other had ended
    assert without(content(out), *kept) == without(alone, *kept)
    again = Drawn(predictor, seed, False)
    assert predict(again, [recordings], out, formats=formats).resumed == 6 and again.calls == 1  # the damaged one
    assert without(content(out)) == alone


def test_the_rows_as_parquet_are_those_as_csv(alone, tmp_path, predictor):
    (tmp_path / "rows").write_bytes(alone["laennec.predictions.parquet"])
    (tmp_path / "csv").write_bytes(alone["laennec.predictions.csv"])
    table = pq.read_table(tmp_path / "rows")
    pd.testing.assert_frame_equal(table.to_pandas(), pd.read_csv(tmp_path / "csv"), check_dtype=False)
    assert predictor.fingerprint().encode() in table.schema.metadata[b"laennec"]


def test_a_number_of_processes_is_1_or_more_and_is_about_files(tiny_run, recordings, tmp_path, capsys):
    assert main(["predict", str(tiny_run), str(recordings), "--jobs", "0", "--out", str(tmp_path / "out")]) == 2
    assert "must be 1 or more" in capsys.readouterr().err
    assert main(["predict", str(tiny_run), str(recordings), "--jobs", "2"]) == 2
    assert "need --out" in capsys.readouterr().err
    assert not (tmp_path / "out" / JOURNAL).exists()
