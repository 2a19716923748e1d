"""Hostile and unlucky files: results beside other files, replaced recordings, names with control characters."""

import contextlib
import csv
import json
import os
import shutil
from pathlib import Path
from unicodedata import normalize

import pytest
import soundfile
from batches import Counting

from laennec.audio.cycles import read_spans
from laennec.cli.main import main
from laennec.corpora import check_corpus
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.files import is_result
from laennec.inference.batch.journal import JOURNAL
from laennec.inference.batch.run import FORMATS, Predictor, predict
from laennec.inference.embed import Embedder, embed
from laennec.inference.outputs import as_lines, write_audacity, write_raven
from laennec.terminal import complain, say

ESCAPE = "\x1b[2J\x1b]0;owned\x07"


@pytest.fixture(scope="module")
def loaded(tiny_run):
    return load_model(tiny_run)


@pytest.fixture
def predictor(loaded):
    return Counting(*loaded, 2, 1)


@pytest.fixture(scope="module")
def sounds(small_corpus):
    """Two recordings."""
    return sorted(small_corpus.glob("*.wav"))[:2]


@pytest.fixture
def folder(sounds, tmp_path):
    """A folder with the recording x."""
    shutil.copy(sounds[0], tmp_path / "x.wav")
    return tmp_path


# ---------------------------------------------------------------- other files in the results folder

OF_A_USER = [
    "x.json", "x.txt", "x.labels.txt", "x.selections.txt", "x.png", "x.parquet", "x.npz", "predictions.csv",
    "predictions.parquet", "recordings.csv", "embeddings.parquet", "parameters.yaml", "failed.csv", "journal.jsonl",
    ".claims/a",
]  # fmt: skip


@pytest.fixture(scope="module")
def beside(loaded, sounds, tmp_path_factory):
    """Two folders with files of a user, into which predictions and embeddings were written."""
    folder = tmp_path_factory.mktemp("beside")
    for part in ("predict", "embed"):
        for name in OF_A_USER:
            (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / part / name).write_text("of a user")
        shutil.copy(sounds[0], folder / part / "x.wav")
        (folder / part / "bad.wav").write_text("no sound")
    made = Predictor(*loaded, 2, 1)
    predict(made, [folder / "predict"], folder / "predict", formats=FORMATS)
    embed(Embedder(made), [folder / "embed"], folder / "embed", formats=("parquet", "npz"))
    return folder


@pytest.mark.parametrize("name", OF_A_USER)
@pytest.mark.parametrize("part", ["predict", "embed"])
def test_results_replace_no_file_of_a_user(beside, part, name):
    assert (beside / part / name).read_text() == "of a user"


def test_all_results_are_known_by_their_names(beside):
    for part in ("predict", "embed"):
        made = {p.name for p in (beside / part).iterdir()} - {*OF_A_USER, ".claims", "x.wav", "bad.wav"}
        assert len(made) > 4 and all(is_result(Path(name)) for name in made)


FOREIGN = [
    ("x.laennec.json", "file"),
    ("x.laennec.json", "link"),
    ("laennec.predictions.csv", "link"),
    ("laennec.parameters.yaml", "file"),
]


@pytest.mark.parametrize(("name", "kind"), FOREIGN)
def test_a_file_that_no_journal_lists_is_replaced_only_with_overwrite(predictor, folder, name, kind):
    (folder / "theirs").write_text("theirs")
    if kind == "link":
        (folder / name).symlink_to(folder / "theirs")
    else:
        (folder / name).write_text("theirs")
    for _ in range(2):  # a refused run does not claim the file
        with pytest.raises(InputError) as error:
            predict(predictor, [folder / "x.wav"], folder)
        said = str(error.value)
        assert str(folder / name) in said and "choose another --out, or pass --overwrite" in said
        assert (folder / name).read_text() == "theirs" and not (folder / JOURNAL).exists()
    assert not hasattr(predictor, "computed")
    predict(predictor, [folder / "x.wav"], folder, overwrite=True)
    assert (folder / "laennec.predictions.csv").exists() and (folder / "theirs").read_text() == "theirs"


def test_results_of_another_folder_that_were_copied_here_are_not_replaced(predictor, folder, sounds):
    predict(predictor, [folder / "x.wav"], folder / "out")
    shutil.copy(sounds[1], folder / "y.wav")
    (folder / "out" / "y.laennec.json").write_text("theirs")
    with pytest.raises(InputError, match=r"y.laennec.json: was not written by an earlier run"):
        predict(predictor, [folder / "x.wav", folder / "y.wav"], folder / "out")
    assert (folder / "out" / "y.laennec.json").read_text() == "theirs"
    predict(predictor, [folder / "x.wav"], folder / "out")  # written by laennec


def test_results_without_their_journal_are_not_replaced(predictor, folder):
    predict(predictor, [folder / "x.wav"], folder / "out")
    (folder / "out" / JOURNAL).write_bytes(b'{"xx')
    with pytest.raises(InputError, match="was not written by an earlier run"):
        predict(predictor, [folder / "x.wav"], folder / "out")
    assert (folder / "out" / JOURNAL).read_bytes() == b'{"xx'


@pytest.mark.parametrize("name", [JOURNAL, "laennec.journal.7.jsonl"])
def test_another_file_with_the_name_of_a_journal_is_kept(predictor, folder, name):
    (folder / "out").mkdir()
    (folder / "out" / name).write_text("my journal\n")
    with pytest.raises(InputError, match=f"{name}: is not a journal of this version"):
        predict(predictor, [folder / "x.wav"], folder / "out")
    assert (folder / "out" / name).read_text() == "my journal\n"
    predict(predictor, [folder / "x.wav"], folder / "out", overwrite=True)
    assert not predict(predictor, [folder / "x.wav"], folder / "out").failed


@pytest.mark.parametrize("overwrite", [False, True], ids=["again", "overwrite"])
@pytest.mark.parametrize("format", ["audacity", "raven"])
def test_corrected_results_are_an_annotation_and_never_overwritten(predictor, folder, format, overwrite):
    predict(predictor, [folder / "x.wav"], folder / "out", formats=[format])
    (annotation,) = (folder / "out").glob("x.laennec.*")
    annotation.write_text("0.1\t1.5\tx\n" if format == "audacity" else "Begin Time (s)\tEnd Time (s)\n0.1\t1.5\n")
    before = annotation.read_bytes()
    settings = {"annotation": annotation, "formats": [format], "overwrite": overwrite}
    with pytest.raises(InputError, match="would overwrite this annotation; choose another --out"):
        predict(predictor, [folder / "x.wav"], folder / "out", **settings)
    assert annotation.read_bytes() == before
    assert not predict(predictor, [folder / "x.wav"], folder / "other", **settings).failed


def test_results_are_not_read_as_annotations(predictor, folder):
    (folder / "x.txt").write_text("0.1\t1.5\tx\n")
    predict(predictor, [folder / "x.wav"], folder, formats=FORMATS)
    done = predict(predictor, [folder / "x.wav"], folder / "out", annotation=folder)
    assert not done.failed
    made = json.loads((folder / "out" / "x.laennec.json").read_text())
    assert made["spans"]["file"] == str(folder / "x.txt")


@pytest.mark.parametrize("kind", ["folder", "folder with a table", "synthetic", "sprsound", "hub"])
def test_results_are_not_read_as_files_of_a_corpus(predictor, small_corpus, sounds, tmp_path, kind):
    corpus, name = tmp_path / "corpus", kind.split()[0]
    if kind == "synthetic":
        shutil.copytree(small_corpus, corpus)
    elif kind == "sprsound":
        event = {"record_annotation": "Normal", "event_annotation": [{"start": "0", "end": "900", "type": "Normal"}]}
        (corpus / "train2022_wav").mkdir(parents=True)
        (corpus / "train2022_json").mkdir()
        for number, sound in enumerate(sounds):
            stem = f"4100{number}_8.0_1_p1_10{number}"
            shutil.copy(sound, corpus / "train2022_wav" / f"{stem}.wav")
            (corpus / "train2022_json" / f"{stem}.json").write_text(json.dumps(event))
    elif kind == "hub":
        (corpus / "crackle").mkdir(parents=True)
        shutil.copy(sounds[0], corpus / "crackle" / "a.wav")
    else:
        corpus.mkdir()
        shutil.copy(sounds[0], corpus / "a.wav")
        if kind == "folder":
            (corpus / "a.txt").write_text("0.1\t1.5\t1\t0\n")
        else:
            (corpus / "cycles.csv").write_text("recording,start_s,end_s,label\na,0.1,1.5,crackle\n")
    options = {"level": "record"} if kind == "sprsound" else {}
    before = check_corpus(name, corpus, cache_dir=tmp_path / "cache", **options)
    places = {path.parent for path in corpus.rglob("*") if path.suffix in (".wav", ".json")}
    for place in (corpus, *places):
        predict(predictor, [sounds[0]], place, formats=FORMATS, overwrite=True)
    after = check_corpus(name, corpus, cache_dir=tmp_path / "cache", **options)
    assert before.recordings and after.lines() == before.lines()


# ---------------------------------------------------------------- identity of recordings


def replaced(path, sound):
    """Replace a recording by another file of the same name, size and modification time."""
    before = path.stat()
    other, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path.with_name("new.wav"), other[::-1], rate, subtype="PCM_16")
    os.replace(path.with_name("new.wav"), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return before.st_size == path.stat().st_size


def rewritten(path, sound):
    """Write other samples into the same file."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[2000:3000] = bytes(reversed(content[2000:3000]))
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return before.st_ino == path.stat().st_ino


@pytest.mark.parametrize("attack", [replaced, rewritten])
def test_another_recording_of_equal_size_and_time_is_computed(predictor, folder, sounds, attack):
    predict(predictor, [folder / "x.wav"], folder / "out")
    assert attack(folder / "x.wav", sounds[1])
    done = predict(predictor, [folder / "x.wav"], folder / "out")
    assert len(predictor.computed) == 2 and done.resumed == 0


@pytest.mark.parametrize("same", [False, True], ids=["another recording", "the same recording"])
def test_a_relative_path_means_the_file_in_the_working_directory(predictor, sounds, tmp_path, monkeypatch, same):
    for patient in ("p1", "p2"):
        (tmp_path / patient).mkdir()
        shutil.copy(sounds[0], tmp_path / patient / "x.wav")
        if patient == "p2" and not same:
            assert replaced(tmp_path / patient / "x.wav", None)
        os.utime(tmp_path / patient / "x.wav", ns=(1, 1))
        monkeypatch.chdir(tmp_path / patient)
        predict(predictor, ["x.wav"], tmp_path / "out")
    assert len(predictor.computed) == 2 - same


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move], ids=["copied", "moved"])
def test_what_was_moved_is_resumed_under_its_new_name(predictor, sounds, tmp_path, move):
    (tmp_path / "one").mkdir()
    for name, sound in zip("xy", sounds, strict=True):
        shutil.copy(sound, tmp_path / "one" / f"{name}.wav")
    predict(predictor, [tmp_path / "one"], tmp_path / "out", formats=("json", "csv", "raven"))
    move(tmp_path / "one", tmp_path / "two")
    done = predict(predictor, [tmp_path / "two"], tmp_path / "out", formats=("json", "csv", "raven"))
    assert done.resumed == 2 and len(predictor.computed) == 2
    predict(predictor, [tmp_path / "two"], tmp_path / "anew", formats=("json", "csv", "raven"))
    for path in (tmp_path / "anew").iterdir():
        if path.name != JOURNAL:
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_recording_that_changes_while_it_is_read_has_no_result(loaded, folder):
    class Changing(Predictor):
        def __call__(self, path, annotation=None, listener=None):
            done = super().__call__(path, annotation, listener)
            assert replaced(path, None)
            return done

    done = predict(Changing(*loaded, 2, 1), [folder / "x.wav"], folder / "out")
    assert "changed while it was read; run the same command again" in done.failed[0][1]
    assert not (folder / "out" / "x.laennec.json").exists()


NAMES = {"case": ("s", "S"), "composed letters": ("Zo\u00eb", "Zoe\u0308"), "both": ("\u00c9", "e\u0301")}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_results_have_names_that_every_file_system_keeps_apart(predictor, sounds, tmp_path, names):
    for place, (name, sound) in enumerate(zip(names, sounds, strict=True)):
        (tmp_path / "in" / str(place)).mkdir(parents=True)
        shutil.copy(sound, tmp_path / "in" / str(place) / f"{name}.wav")
    done = predict(predictor, [tmp_path / "in"], tmp_path / "out", formats=["json"])
    made = list((tmp_path / "out").glob("*.laennec.json"))
    assert len({normalize("NFC", path.name).casefold() for path in made}) == len(done.predicted) == 2


@pytest.mark.parametrize(
    "words", [["{x}", "--out", ""], ["{x}", "", "--out", "out"], ["{x}", "--out", "out", "--base="]]
)
def test_an_empty_path_is_refused(tiny_run, folder, monkeypatch, capsys, words):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(tiny_run), *(word.format(x=folder / "x.wav") for word in words)])
    assert ended.value.code == 2 and "is empty; give a value" in capsys.readouterr().err
    assert os.listdir(folder) == ["x.wav"]


# ---------------------------------------------------------------- names with control characters

FORGERIES = [
    "crackle\n9.000\t9.900\twheeze 0.99",
    "crackle\twheeze",
    "crackle\r\n1\tforged",
    "a\x1b[2Jb",
    "a\x85b\u2028c",
]


def forged(label, recording):
    """The timeline of a model with this label for a recording of this name."""
    row = {"start_s": 0.0, "end_s": 2.0, f"{label}_probability": 0.9, label: 1}
    overall = {label: {"present": 1, "probability": 0.9, "highest": 0.9, "share": 1.0}}
    return {
        "recording": recording, "duration_s": 2.0, "source_sampling_rate": 4000, "labels": [label],
        "spans": {"from": "windows"}, "decision": {"thresholds": {label: 0.5}}, "overall": overall, "timeline": [row],
    }  # fmt: skip


@pytest.mark.parametrize("what", ["label", "recording"])
@pytest.mark.parametrize("text", FORGERIES, ids=range(len(FORGERIES)))
def test_a_name_forges_no_row(tmp_path, capfd, text, what):
    made = forged(text, "a.wav") if what == "label" else forged("crackle", text)
    track = write_audacity(tmp_path / "a.txt", made).read_text()
    assert [line.count("\t") for line in track.splitlines()] == [2]
    table = write_raven(tmp_path / "b.txt", made).read_text()
    assert [len(row) for row in csv.reader(table.splitlines(), delimiter="\t")] == [10, 10]
    assert read_spans(tmp_path / "a.txt", 2.0) == read_spans(tmp_path / "b.txt", 2.0) == [(0.0, 2.0)]
    say(*as_lines(made))
    said = capfd.readouterr().out
    assert len(said.splitlines()) == 5 and is_harmless(said)
    assert is_harmless(track.replace("\t", "")) and is_harmless(table.replace("\t", ""))


def test_control_characters_in_names_are_escaped_in_results(predictor, folder, tmp_path):
    names = [f"x{act}.wav" for act in (ESCAPE, "\x7f\x9b2J", "\u202e", "\r\n9")]
    for name in names:
        shutil.copy(folder / "x.wav", folder / name)
        (folder / f"bad{name}").write_text("no sound")
    done = predict(predictor, [folder], tmp_path / "out", formats=FORMATS)
    assert len(done.predicted) == len(done.failed) + 1 == len(names) + 1
    shown = [path for path in (tmp_path / "out").iterdir() if path.suffix not in (".parquet", ".png")]
    assert len(shown) > 3 * len(names)
    for path in shown:
        assert is_harmless(path.read_bytes().decode().replace("\t", "")), path
    table = tmp_path / "out" / "laennec.predictions.csv"
    for name in names:
        (folder / f"bad{name}").unlink()
    found = check_corpus("folder", folder, cache_dir=tmp_path / "cache", annotations=str(table))
    assert found.recordings == len(names) + 1 and "is not in the folder" not in " ".join(found.problems)
    read = json.loads((tmp_path / "out" / f"x{ESCAPE}.laennec.json").read_text())
    assert read["recording"] == str(folder / f"x{ESCAPE}.wav")


def is_harmless(text):
    return text.replace("\n", "").isprintable()


def bad_recording(loaded, folder):
    (folder / f"a{ESCAPE}.wav").write_text("no sound")
    return ["predict", loaded, f"{folder}/a{ESCAPE}.wav"]


def bad_recording_in_a_folder(loaded, folder):
    return [*bad_recording(loaded, folder), "--out", str(folder / "out")]


def recording_with_a_line_end(loaded, folder):
    (folder / "a\nlaennec: all is well.wav").write_text("no sound")
    return ["predict", loaded, str(folder), "--out", str(folder / "out")]


def summary_of_a_model(loaded, folder):
    shutil.copytree(Path(loaded) / "model", folder / "model")
    place = folder / "model" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "summary": f"good{ESCAPE}"}))
    return ["predict", str(folder / "model"), str(folder / "x.wav")]


def note_of_a_corpus(loaded, folder):
    (folder / f"y{ESCAPE}.wav").write_bytes((folder / "x.wav").read_bytes())
    (folder / "x.txt").write_text("0.1\t1.5\t1\t0\n")
    return ["prepare", "folder", "--data-dir", str(folder), "--check"]


def classes_of_a_corpus(loaded, folder):
    (folder / "cycles.csv").write_text(f"recording,start_s,end_s,label\nx,0.1,1.5,crackle\nx,1.5,2,{ESCAPE[:4]}\n")
    return ["prepare", "folder", "--data-dir", str(folder), "--check"]


def unknown_argument(loaded, folder):
    return ["predict", loaded, f"--{ESCAPE}"]


ACTING = [
    bad_recording, bad_recording_in_a_folder, recording_with_a_line_end, summary_of_a_model, note_of_a_corpus,
    classes_of_a_corpus, unknown_argument,
]  # fmt: skip


@pytest.mark.parametrize("attack", ACTING)
def test_control_characters_in_names_are_escaped_on_the_terminal(tiny_run, folder, capfd, attack):
    arguments = attack(str(tiny_run), folder)
    capfd.readouterr()
    with contextlib.suppress(SystemExit):  # argparse
        main(arguments)
    said = capfd.readouterr()
    assert is_harmless(said.out) and is_harmless(said.err) and said.out + said.err
    assert "\nlaennec: all is well" not in said.err


@pytest.mark.parametrize("speak", [say, complain])
def test_each_printed_argument_is_one_line(speak, capfd):
    speak(f"a{ESCAPE}\nb", "c")
    said = "".join(capfd.readouterr())
    assert said.count("\n") == 2 and is_harmless(said) and "\\x1b" in said


def test_a_name_that_is_not_utf8_is_written_in_every_format(predictor, sounds, tmp_path):
    shutil.copy(sounds[0], os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.wav"))
    done = predict(predictor, [tmp_path], tmp_path / "out", formats=FORMATS)
    assert len(done.predicted) == 1 and not done.failed


def test_a_name_cannot_change_the_text_direction(capfd):
    say("patient \u202e1\u2069.wav")
    assert capfd.readouterr().out == "patient \\u202e1\\u2069.wav\n"
