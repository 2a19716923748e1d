"""The command line: corpora prepared and checked, settings, help, exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from laennec import __version__
from laennec.cli.main import main
from laennec.corpora import CycleWaveforms, load_corpus
from laennec.training.recipe import Recipe
from runs import one_line


def said(capsys):
    captured = capsys.readouterr()
    return captured.out, captured.err


def cached(kind):
    return sorted(p for p in (Path(os.environ["LAENNEC_CACHE"]) / kind).rglob("*") if p.is_file())


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "cache"))


# ---------------------------------------------------------------- prepare


def test_prepare_refuses_the_official_split_on_a_part_of_the_database(shared_data, capsys):
    assert main(["prepare", "icbhi2017", "--data-dir", str(shared_data / "icbhi2017_subset")]) == 2
    one_line(capsys, "icbhi2017_subset", "819 of the 920 recordings", "--allow-missing")


@pytest.fixture(scope="module")
def some_sprsound(shared_data, tmp_path_factory):
    """A dozen recordings of each split, in the corpus' own layout."""
    source, folder = shared_data / "sprsound", tmp_path_factory.mktemp("sprsound")
    for path in sorted(source.rglob("*.flac")):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if len(list(target.parent.glob("*.flac"))) < 12:
            target.symlink_to(path)
            annotation = next(source.rglob(f"{path.stem}.json"))
            place = folder / annotation.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(annotation)
    return folder


@pytest.mark.parametrize("level", ["event", "record"])
def test_prepare_reads_sprsound_by_event_and_by_recording(some_sprsound, capsys, level):
    assert main(["prepare", "sprsound", "--data-dir", str(some_sprsound), "--level", level]) == 0
    out, _ = said(capsys)
    assert "protocol sprsound-official" in out and "test_intra: " in out
    assert main(["prepare", "sprsound", "--data-dir", str(some_sprsound), "--check"]) == 0


def test_prepare_decodes_into_the_cache(small_corpus, own_cache, capsys):
    command = ["prepare", "synthetic", "--data-dir", str(small_corpus), "--sampling-rate", "4000"]
    assert main(command) == 0
    assert len(cached("waveforms")) == 16 and said(capsys)[1] == ""
    table = load_corpus("synthetic", small_corpus)["train"]
    assert CycleWaveforms(table, 4000)[0].size == int(4000 * table[0]["end_s"]) - int(4000 * table[0]["start_s"])


def test_prepare_reads_a_folder_with_a_csv_and_one_with_label_files(small_corpus, tmp_path, capsys):
    sounds = sorted(small_corpus.glob("*.wav"))
    for number, sound in enumerate(sounds):
        shutil.copy(sound, tmp_path / f"rec{number}.wav")
    rows = [f"rec{n}.wav,p{n},0.1,0.9,{'crackle' if n % 2 else 'normal'}" for n in range(len(sounds))]
    (tmp_path / "cycles.csv").write_text("\n".join(["recording,patient_id,start_s,end_s,label", *rows]))
    command = ["prepare", "folder", "--data-dir", str(tmp_path), "--option", "annotations=cycles.csv"]
    assert main(command) == 0
    assert "8 crackle" not in said(capsys)[0].splitlines()[0]
    assert main([*command, "--check"]) == 0
    assert "16 recordings, 16 patients, 16 cycles" in said(capsys)[0]
    (tmp_path / "cycles.csv").unlink()
    for number in range(len(sounds)):
        (tmp_path / f"rec{number}.txt").write_text("0.1\t0.9\tboth\n")
    assert main(["prepare", "folder", "--data-dir", str(tmp_path)]) == 0
    assert "both" in said(capsys)[0]


def test_a_synthetic_corpus_is_written_once_and_its_options_are_held_to(tmp_path, capsys):
    folder = tmp_path / "made" / "corpus"
    options = [f"--option={o}" for o in ("patients=5", "recordings_per_patient=1", "max_rate_hz=4000", "corpus_seed=3")]
    command = ["prepare", "synthetic", "--data-dir", str(folder)]
    assert main([*command, *options]) == 0
    first, marked = said(capsys)[0], (folder / "synthetic.json").stat().st_mtime_ns
    assert len(list(folder.glob("*.wav"))) == 5
    assert main([*command, *options]) == 0 and main(command) == 0
    assert said(capsys)[0] == first * 2 and (folder / "synthetic.json").stat().st_mtime_ns == marked
    assert main([*command, "--option", "patients=6"]) == 2
    one_line(capsys, folder, "with patients 5, not 6")
    assert main([*command, "--option", "corpus_seed=4"]) == 2
    one_line(capsys, "with seed 3, not 4")
    assert main([*command, "--option", "patience=6"]) == 2
    one_line(capsys, "synthetic has no option patience")
    assert main([*command, "--option", "patients"]) == 2
    one_line(capsys, "--option KEY=VALUE")
    (folder / "synthetic.json").unlink()
    assert main([*command, "--option", "patients=5"]) == 2
    one_line(capsys, "no synthetic.json")
    assert len(list(folder.glob("*.wav"))) == 5


# ---------------------------------------------------------------- prepare --check


def test_check_is_0_for_a_clean_corpus_and_writes_nothing(small_corpus, tmp_path, capsys):
    before = sorted(p.name for p in small_corpus.iterdir())
    assert main(["prepare", "synthetic", "--data-dir", str(small_corpus), "--check"]) == 0
    out, err = said(capsys)
    assert out.splitlines()[-1] == "no problems" and err == ""
    assert sorted(p.name for p in small_corpus.iterdir()) == before
    assert main(["prepare", "synthetic", "--data-dir", str(tmp_path / "absent"), "--check"]) == 2
    one_line(capsys, "absent")
    assert not (tmp_path / "absent").exists()


# ---------------------------------------------------------------- the program itself


def test_help_and_version_are_instant_and_name_every_command(capsys):
    for arguments in (["--help"], ["train", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
    out, _ = said(capsys)
    assert all(c in out for c in ("prepare", "train", "evaluate", "export", "predict", "env", "study"))
    with pytest.raises(SystemExit):
        main(["--version"])
    assert said(capsys)[0] == f"laennec {__version__}\n"


def test_python_m_laennec_ends_with_one_line_or_a_traceback(tmp_path):
    absent = str(tmp_path / "absent.yaml")
    for words, code, lines in (([], 2, 1), (["--debug"], 1, None)):
        command = [sys.executable, "-m", "laennec", "train", absent, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == code and absent in done.stderr
        assert done.stderr.count("\n") == lines or "Traceback" in done.stderr


def test_an_unknown_command_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2 and said(capsys)[1] == "laennec: unknown command 'trian'; did you mean train?\n"


def test_wrong_arguments_are_refused_before_anything_slow_is_imported(tiny_run, tmp_path):
    run, absent, empty = str(tiny_run), str(tmp_path / "absent"), str(tmp_path)
    cases = [
        (["evaluate", absent], "no such run or model"),
        (["evaluate", empty], "no model in this folder"),
        (["evaluate", run, "--split", "tset"], "no split 'tset'; choose split (--split) from train, validation, test"),
        (["evaluate", run, "--smoothing", "2"], "smoothing 2"),
        (["evaluate", run, "--spans", "window"], "--spans window: did you mean windows?"),
        (["calibrate", absent], "give the folder of a finished run"),
        (["calibrate", run, "--calibration", "plat"], "it can be none, temperature or platt"),
        (["calibrate", run, "--threshold-rule", "yuden"], "it can be youden, f1"),
        (["calibrate", run, "--threshold-rule", "sensitivity", "--sensitivity", "2"], "above 0 and at most 1"),
        (["compare", run], "two runs or more"),
        (["compare", absent, run], "absent: no such folder"),
        (["report", absent], "no such folder"),
        (["ensemble", absent, run, "--out", empty], "give the folder of a finished run"),
        (["export", absent], "no such run or model"),
        (["export", empty], "no model in this folder"),
        (["export", run, "--format", "onyx"], "unknown format 'onyx'; choose from"),
        (["push", run, "me/model", "--format", "onyx"], "unknown format 'onyx'"),
        (["card", absent], "give the folder of a finished run"),
    ]
    code = """
import json, sys
from laennec.cli.main import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit:
        pass
slow = {"torch", "transformers", "datasets", "pandas", "scipy", "sklearn", "matplotlib"}
print("imported:", sorted(slow & set(sys.modules)))
"""
    asked = json.dumps([arguments for arguments, _ in cases])
    done = subprocess.run(
        [sys.executable, "-c", code, asked], capture_output=True, text=True, timeout=600,
        env=os.environ | {"HF_TOKEN": "hf_none"},
    )  # fmt: skip
    assert done.stdout == "imported: []\n"
    for line, (arguments, said) in zip(done.stderr.splitlines(), cases, strict=True):
        assert said in line, arguments


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--train.epoch", "3"], "did you mean 'train.epochs'"),
        (["--epochs"], "--epochs has no value"),
        (["stray"], "'stray' is not a setting"),
        (["--train.epochs", "many"], "train.epochs is 'many'; it must be a valid integer"),
        (["--loss.task=cross"], "loss.task is 'cross'"),
        (["--over"], "--over has no value; did you mean --overwrite?"),
        (["--learnin_rate", "3"], "did you mean 'train.learning_rate'"),
        (["--loss.auxiliary.add.wieght", "3"], "did you mean 'weight'?"),
        (["--loss.task", "bse"], "it must be 'bce', 'ce' or 'focal'"),
    ],
)
def test_a_wrong_setting_is_one_line(tiny_recipe, tmp_path, capsys, arguments, part):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny_recipe))
    assert main(["train", str(tmp_path / "r.yaml"), *arguments]) == 2
    one_line(capsys, part)


def test_a_flag_of_no_command_is_refused(tiny_run, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(tiny_run), "--spilt", "test"])
    assert stopped.value.code == 2 and "unknown argument --spilt" in said(capsys)[1]


def test_training_says_what_it_kept_and_its_command_is_on_record(tiny_recipe, tmp_path, capsys):
    recipe, run = tmp_path / "my recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(tiny_recipe | {"head": {"smoothing": "auto"}}))
    assert main(["train", str(recipe), "--epochs=1", "--output_dir", str(run)]) == 0
    record, (*before, where, following) = json.loads((run / "run.json").read_text()), said(capsys)[0].splitlines()
    assert record["command"] == f"laennec train '{recipe}' --epochs=1 --output_dir {run}"  # to be pasted
    assert any(line.startswith("kept: epoch 1 (") for line in before)
    assert where == f"run: {run}" and following == f"next: laennec evaluate {run}"
    weight = record["operating_points"]["smoothing"]
    words = f"smoothing of events: weight {weight:g} of the recording's mean, chosen on validation"
    assert any(words in line for line in before)


def test_a_note_of_the_package_is_one_line_on_standard_error(tmp_path, capsys):
    for seed, name in enumerate("abcde"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.random.default_rng(seed).standard_normal(8000), 4000)
    rows = "".join(f"{name}.wav,0,2,normal\n" for name in "abcde")
    (tmp_path / "annotations.csv").write_text(f"recording,start_s,end_s,label\n{rows}")
    assert main(["prepare", "folder", "--data-dir", str(tmp_path), "--protocol", "patient-60-20-20"]) == 0
    noted = [line for line in said(capsys)[1].splitlines() if "have no patient_id" in line]
    assert len(noted) == 1 and noted[0].startswith("laennec: note: ")


def test_an_interruption_is_130(monkeypatch, capsys):
    def interrupted(package):
        raise KeyboardInterrupt

    monkeypatch.setattr("laennec.cli.env._version", interrupted)
    assert main(["env"]) == 130
    assert "run the same command again" in said(capsys)[1]


def test_a_system_without_alarms_runs_commands(monkeypatch, capsys):
    for name in ("SIGALRM", "setitimer"):
        monkeypatch.delattr(f"signal.{name}")
    assert main(["recipes"]) == 0 and "sprsound/" in said(capsys)[0]


def test_no_garbage_is_collected_once_a_command_has_ended():
    code = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); import laennec.cli.main"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_mistake_of_ours_is_no_input_error(monkeypatch):
    def ours(package):
        raise ZeroDivisionError

    monkeypatch.setattr("laennec.cli.env._version", ours)
    with pytest.raises(ZeroDivisionError):
        main(["env"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["predict", "runs/frist", "x.wav"], ["runs/frist", "did you mean runs/first?"]),
        (["evaluate", "rusn/first"], ["did you mean runs/first?"]),
        (["app", "nothing"], ["nothing: no such run or model"]),
        (["predict", "runs/first"], ["runs/first: a model, but no recordings"]),
        (["predict", "nothing.wav"], ["nothing.wav: no such file or folder"]),
        (["predict", "runs/first", "a.wav", "b"], ["a.wav: no such file or folder"]),
        (["train", "sprsound/frozen_mobilenet"], ["data/sprsound", "--corpus.data_dir", "laennec prepare sprsound"]),
        (["train", "sprsound/frozen_mobilenet", "--data-dir", "."], ["mn04_as_mAP_432.pt", "--encoder.weights"]),
    ],
)
def test_what_is_not_there_is_said_before_the_model_code_is_imported(line, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "laennec.evaluation.evaluate", None)  # importing it is an error
    monkeypatch.setitem(sys.modules, "laennec.training.run", None)
    monkeypatch.setitem(sys.modules, "laennec.inference.page.app", None)
    assert main(line) == 2
    one_line(capsys, *words)


def test_relative_paths_are_looked_for_in_the_folder_of_the_data(tmp_path, monkeypatch):
    for place in ("data/sprsound", "weights/mn04_as_mAP_432.pt"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.setenv("LAENNEC_DATA", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = Recipe.from_yaml("sprsound/frozen_mobilenet")
    assert Path(recipe.corpus.data_dir) == tmp_path / "data" / "sprsound"
    assert Path(recipe.encoder.weights) == tmp_path / "weights" / "mn04_as_mAP_432.pt"
    here = Recipe.from_yaml("sprsound/frozen_mobilenet", **{"corpus.data_dir": str(tmp_path)})
    assert here.corpus.data_dir == str(tmp_path)
