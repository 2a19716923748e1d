"""Full and read-only disks, lost network shares, SIGTERM: one line, no unfinished files, earlier results stay."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest
import yaml

from laennec.audio.containers import SoundBytes
from laennec.cli.main import main
from laennec.files import system_error
from laennec.training import checkpoints
from runs import half_made, one_line

pytestmark = pytest.mark.usefixtures("unpainted")


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def remount(folder, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny_recipe))
    return str(tmp_path / "r.yaml")


@pytest.fixture(scope="module")
def scored_once(tiny_run, tmp_path_factory):
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("scored") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(run.parent / "cache"))
        assert main(["evaluate", str(run)]) == 0
    return run


@pytest.fixture
def scored_run(scored_once, tmp_path):
    return shutil.copytree(scored_once, tmp_path / "scored")


def lines_into(place, run, corpus, recipe):
    """Command lines of every command that writes, with outputs below `place`."""
    return {
        "train": ["train", recipe, "--output_dir", str(place / "new")],
        "predict": ["predict", str(run), str(corpus), "--out", str(place / "out")],
        "export": ["export", str(run), "--out", str(place / "out")],
        "export beside the run": ["export", str(run)],
        "evaluate": ["evaluate", str(run)],
        "evaluate elsewhere": ["evaluate", str(run), "--out", str(place / "out")],
        "report": ["report", str(run)],
        "card": ["card", str(run), "--out", str(place / "README.md")],
        "calibrate": ["calibrate", str(run), "--calibration", "platt"],
        "synthetic corpus": ["prepare", "synthetic", "--data-dir", str(place / "corpus")],
        "export of a corpus": ["prepare", "synthetic", "--data-dir", str(corpus), "--export", str(place / "out")],
        "push": ["push", str(run), "owner/name"],
    }


def test_a_read_only_file_system_is_one_line_and_keeps_all(
    scored_run, small_corpus, recipe, disk, tmp_path, capfd, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    place = disk("disk")
    run = shutil.copytree(scored_run, place / "run")
    before = tree(place)
    remount(place, "ro")
    capfd.readouterr()
    for name, line in lines_into(place, run, small_corpus, recipe).items():
        assert main(line) == 2, name
        one_line(capfd, *([] if name == "push" else ["the file system is read-only", place]))
        assert tree(place) == before, name
    monkeypatch.setenv("LAENNEC_CACHE", str(place / "cache"))
    assert main(["prepare", "synthetic", "--data-dir", str(small_corpus)]) == 2
    one_line(capfd, "the file system is read-only", place / "cache")
    assert tree(place) == before


def test_a_full_disk_is_one_line_and_keeps_all(scored_run, small_corpus, recipe, disk, capfd, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    place = disk("disk", 4000)
    run = shutil.copytree(scored_run, place / "run")
    with (place / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(1 << 12)):
            pass
    before = tree(place)
    capfd.readouterr()
    for name, line in lines_into(place, run, small_corpus, recipe).items():
        assert main(line) == 2, name
        one_line(capfd, *([] if name == "push" else ["the disk is full", place]))
        assert tree(place) == before, name


@pytest.mark.parametrize(("part", "kilobytes"), [("cache/waveforms", 80), ("cache/embeddings", 4), ("run", 36)])
def test_a_disk_that_fills_up_in_mid_run_is_one_line_and_the_run_goes_on(
    recipe, disk, tmp_path, capfd, monkeypatch, part, kilobytes
):
    """The disk is full while waveforms or embeddings of a frozen encoder are cached, or a checkpoint is written."""
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "cache"))
    place, run = disk(part, kilobytes), tmp_path / "run"
    line = ["train", recipe, "--output_dir", str(run), "--train.epochs", "1"]
    line += [] if part == "run" else ["--encoder.trainable", "frozen"]
    capfd.readouterr()
    assert main(line) == 2
    one_line(capfd, place, "cannot write: the disk is full; free some space or choose another")
    assert half_made(tmp_path) == [] and not (run / "run.json").exists()
    for folder in run.glob("checkpoints/*/checkpoint-*"):
        assert checkpoints.damage(folder) is None
    remount(place, "size=64m")
    assert main(line) == 0 and (run / "run.json").exists()


def test_a_file_size_limit_is_one_line(scored_run, small_corpus, recipe, tmp_path, capfd):
    """A limit on file sizes, like a quota: only while the command runs, so that it does not affect pytest's files."""
    import resource

    for name, line in lines_into(tmp_path / "place", scored_run, small_corpus, recipe).items():
        if name not in ("export", "evaluate elsewhere", "train"):
            continue
        before = tree(scored_run)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        capfd.readouterr()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limit[1]))
        try:
            code = main(line)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert code == 2, name
        assert tree(scored_run) == before and half_made(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EIO, "check the disk or network share"),
        (errno.ESTALE, "check the disk or network share"),
        (errno.ENOTCONN, "check the disk or network share"),
        (errno.ETIMEDOUT, "check the disk or network share"),
        (errno.ENOENT, "is gone"),
        (errno.EMFILE, "too many open files"),
        (errno.EDQUOT, "the disk quota is used up"),
    ],
)
def test_an_error_of_a_lost_share_is_one_line_and_the_command_resumes(
    tiny_run, small_corpus, tmp_path, capfd, monkeypatch, number, said
):
    """A system error while prediction writes its settings gives one line, and the same command then continues."""
    assert said in str(system_error("x", OSError(number, os.strerror(number), "/share/file")))
    from laennec.inference.batch import run as predict

    def lost(*_, **__):
        raise OSError(number, os.strerror(number), "/share/file")

    monkeypatch.setattr(predict, "write_parameters", lost)
    capfd.readouterr()
    assert main(["predict", str(tiny_run), str(small_corpus), "--out", str(tmp_path / "out")]) == 2
    one_line(capfd, said)
    monkeypatch.undo()
    assert main(["predict", str(tiny_run), str(small_corpus), "--out", str(tmp_path / "out")]) == 0


class When:
    """Calls a function in a thread as soon as a file that matches a pattern exists."""

    def __init__(self, folder, pattern, act):
        self.thread = threading.Thread(target=self._watch, args=(folder, pattern, act), daemon=True)
        self.done = self.over = False

    def _watch(self, folder, pattern, act):
        while not self.over:
            if next(folder.glob(pattern), None) is not None:
                self.done = True
                act()
                return
            time.sleep(0.001)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over = True
        self.thread.join(10)


def test_recordings_on_a_share_that_is_lost_during_prediction(tiny_run, small_corpus, disk, tmp_path, capfd):
    share = disk("share")
    sounds = shutil.copytree(small_corpus, share / "sounds")
    line = ["predict", str(tiny_run), str(sounds), "--window-s", "0.2", "--hop-s", "0.05", "--out"]
    with When(
        tmp_path / "out", "*.laennec.json", lambda: subprocess.run(["umount", "-l", str(share)], check=True)
    ) as lost:
        code = main([*line, str(tmp_path / "out")])
    assert lost.done and code == 2
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    answered = list((tmp_path / "out").glob("*.laennec.json"))
    assert 1 <= len(answered) < 16 and all(json.loads(path.read_text())["timeline"] for path in answered)
    assert (tmp_path / "out" / "laennec.failed.csv").exists() and half_made(tmp_path / "out") == []
    share = disk("share")
    shutil.copytree(small_corpus, share / "sounds")
    assert main([*line, str(tmp_path / "out")]) == 0
    assert main([*line, str(tmp_path / "again")]) == 0
    wanted = (tmp_path / "again" / "laennec.predictions.csv").read_bytes()
    assert (tmp_path / "out" / "laennec.predictions.csv").read_bytes() == wanted
    assert not (tmp_path / "out" / "laennec.failed.csv").exists()


@pytest.mark.soak
def test_a_run_folder_on_a_share_that_is_lost_during_training(tiny_recipe, disk, tmp_path, capfd, monkeypatch):
    (tmp_path / "server").mkdir()
    share = disk("share")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**tiny_recipe, "train": {**tiny_recipe["train"], "epochs": 5}}))
    line = ["train", str(tmp_path / "r.yaml"), "--output_dir"]
    seal, sealed = checkpoints.seal, []

    def seal_and_lose(*arguments):
        seal(*arguments)
        sealed.append(arguments)
        if len(sealed) == 3:
            subprocess.run(["umount", "-l", str(share)], check=True)

    subprocess.run(["mount", "--bind", str(tmp_path / "server"), str(share)], check=True)
    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "seal", seal_and_lose)
        assert main([*line, str(share / "run")]) == 2
    one_line(capfd, share, "is gone")
    assert list(share.iterdir()) == []  # nothing was written where the share had been
    subprocess.run(["mount", "--bind", str(tmp_path / "server"), str(share)], check=True)
    assert main([*line, str(share / "run")]) == 0
    assert main([*line, str(tmp_path / "alone")]) == 0
    weights = "model/model.safetensors"
    assert (share / "run" / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()
    subprocess.run(["umount", "-l", str(share)], check=True)


# ---------------------------------------------------------------- terminations


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


TERMINATED = {
    "prepare": (lambda d, run, corpus: ["prepare", "synthetic", "--data-dir", str(corpus)], "cache/tables/**/*.arrow"),
    "predict": (
        lambda d, run, corpus: [
            *("predict", str(run), str(corpus), "--window-s", "0.2", "--hop-s", "0.05", "--out", str(d / "out"))
        ],
        "out/*.laennec.json",
    ),
    "evaluate": (
        lambda d, run, corpus: ["evaluate", str(run), "--out", str(d / "out")],
        ".out*.part/*",
    ),
    "export": (lambda d, run, corpus: ["export", str(run), "--out", str(d / "out")], ".out*.part/*"),
    "pretrain": (
        lambda d, run, corpus: ["pretrain", str(d / "p.yaml"), "--output_dir", str(d / "out")],
        "out/recipe.json",
    ),
}


@pytest.mark.parametrize("command", TERMINATED)
def test_a_termination_leaves_nothing_torn_and_the_same_command_ends_the_work(
    command, tiny_run, small_corpus, tiny_recipe, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "cache"))
    run = shutil.copytree(tiny_run, tmp_path / "run")
    pretraining = {k: v for k, v in tiny_recipe.items() if k != "train"}
    pretraining["pretrain"] = {"epochs": 3, "batch_size": 8, "pairs": "self"}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(pretraining))
    make, pattern = TERMINATED[command]
    line = make(tmp_path, run, small_corpus)
    capfd.readouterr()
    with When(tmp_path, pattern, terminate) as asked:
        code = main(line)
    assert asked.done and code == 143
    assert "; run the same command again to continue" in capfd.readouterr().err.splitlines()[-1]
    assert half_made(tmp_path) == [] and tree(run) == tree(tiny_run)
    assert main(line) == 0


SHORT = {
    "report": lambda run, out, corpus: ["report", str(run), "--out", str(out / "page.html")],
    "card": lambda run, out, corpus: ["card", str(run), "--out", str(out / "card.md")],
    "calibrate": lambda run, out, corpus: ["calibrate", str(run), "--calibration", "platt"],
    "export of a corpus": lambda run, out, corpus: [
        *("prepare", "synthetic", "--data-dir", str(corpus), "--export", str(out / "corpus"))
    ],
}


@pytest.mark.parametrize("command", SHORT)
def test_a_termination_just_before_a_file_is_shown_leaves_what_was_there(
    command, scored_run, small_corpus, tmp_path, monkeypatch, capfd
):
    out = tmp_path / "out"
    out.mkdir()
    before, original, asked = tree(scored_run), os.fsync, []

    def then_terminated(descriptor):
        original(descriptor)
        if not asked:
            asked.append(descriptor)
            terminate()

    line = SHORT[command](scored_run, out, small_corpus)
    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", then_terminated)
        assert main(line) == 143 and asked
    assert "; run the same command again to continue" in capfd.readouterr().err.splitlines()[-1]
    assert half_made(tmp_path) == [] and tree(out) == {} and tree(scored_run) == before
    assert main(line) == 0


def test_ctrl_c_inside_a_callback_of_the_decoder_is_not_lost(scored_run, small_corpus, tmp_path, monkeypatch, capfd):
    reads, read = [], SoundBytes.readinto

    def interrupted(self, buffer):
        reads.append(len(buffer))
        if len(reads) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return read(self, buffer)

    monkeypatch.setattr(SoundBytes, "readinto", interrupted)
    line = ["predict", str(scored_run), str(small_corpus), "--out", str(tmp_path / "out")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert main(line) == 130 and len(reads) >= 5
    finally:
        signal.signal(signal.SIGINT, before)
    err = capfd.readouterr().err
    assert "interrupted; run the same command again to continue" in err and "Traceback" not in err
    assert not (tmp_path / "out" / "laennec.failed.csv").exists()


def test_a_sigterm_whose_exception_is_lost_is_repeated(monkeypatch, capfd):
    """An exception in a callback from C is printed and lost; the repeated signal must still end the process."""
    from laennec.cli import env
    from laennec.cli import main as program

    class Loses:
        def __del__(self):
            terminate()
            time.sleep(0.01)

    def work(_):
        thing = Loses()
        del thing
        for _ in range(2000):
            time.sleep(0.01)
        return 0

    monkeypatch.setattr(program, "_AGAIN_S", 0.5)
    monkeypatch.setattr(env, "run", work)
    assert main(["env"]) == 143
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
