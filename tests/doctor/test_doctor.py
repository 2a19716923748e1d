"""What works is said to work, and what is broken is named with what to do: on environments broken for real."""

import errno
import importlib.metadata
import json
import os
import re
import resource
import sys

import httpx
import numpy as np
import pytest
import soundfile
import torch

from forked import Forked
from hub_server import TOKEN, HubServer
from laennec.cli.main import main
from laennec.doctor import audio, hub, machine, packages, storage
from laennec.doctor.finding import Finding, finding, gigabytes, note, ok, problem, worst
from laennec.doctor.page import page


def by_name(findings):
    return {found.name: found for found in findings}


@pytest.fixture
def lack(monkeypatch):
    """Have a package be missing, for imports and for what asks which version is there."""

    def missing(*names):
        honest = importlib.metadata.version

        def version(name):
            if name in names:
                raise importlib.metadata.PackageNotFoundError(name)
            return honest(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
        for name in names:
            for module in [m for m in sys.modules if m.split(".")[0] == name]:
                monkeypatch.delitem(sys.modules, module)
            monkeypatch.setitem(sys.modules, name, None)

    return missing


@pytest.fixture
def versions(monkeypatch):
    """Have other versions be installed than there are."""

    def installed(**others):
        honest = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda name: others.get(name) or honest(name))

    return installed


# ---------------------------------------------------------------- the command


def test_here_all_that_is_needed_works_and_the_page_fits_a_terminal(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "PROBLEM" not in out and "All that laennec needs works here" in out.splitlines()[-1]
    assert re.search(r"ok +decoding +reads wav, flac, ogg, mp3", out)
    assert re.search(r"ok +model +a forward and backward pass runs on cpu", out)
    assert [line for line in out.splitlines() if re.fullmatch(r"\w+", line)] == [
        "Machine", "Packages", "Audio", "Storage", "Hub",
    ]  # fmt: skip
    assert max(map(len, out.splitlines())) <= 96
    columns = {
        re.match(r"  (ok|note|PROBLEM) +", line).end() for line in out.splitlines() if line[:3].strip()[:1] == "o"
    }
    assert columns == {11}


def test_json_says_the_same_and_the_exit_code_follows(capsys, monkeypatch, tmp_path):
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["state"] in ("ok", "note") and len(said["findings"]) > 20
    assert {"room", "name", "state", "found", "remedy"} == set(said["findings"][0])
    assert all(row["remedy"] for row in said["findings"] if row["state"] != "ok")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "file" / "cache"))
    assert main(["doctor", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    (cache,) = [row for row in said["findings"] if row["name"] == "cache"]
    assert said["state"] == cache["state"] == "PROBLEM" and "is a file, not a folder" in cache["found"]
    assert "LAENNEC_CACHE" in cache["remedy"]


def test_a_package_that_is_not_there_costs_its_own_lines_and_no_other():
    def work():
        honest = importlib.metadata.version

        def version(name):
            if name == "soundfile":
                raise importlib.metadata.PackageNotFoundError(name)
            return honest(name)

        importlib.metadata.version = version
        for module in [m for m in sys.modules if m.split(".")[0] in ("laennec", "soundfile")]:
            del sys.modules[module]
        sys.modules["soundfile"] = None
        from laennec.cli.main import main as fresh

        return fresh(["doctor", "--json"])

    done = Forked(work).done()
    assert done.returncode == 1, done.stderr
    wrong = {row["name"]: row for row in json.loads(done.stdout)["findings"] if row["state"] == "PROBLEM"}
    assert {"soundfile", "libraries", "decoding"} <= set(wrong) <= {"soundfile", "libraries", "decoding", "librosa"}
    assert wrong["soundfile"]["found"] == "not installed" and "pip install" in wrong["soundfile"]["remedy"]
    assert wrong["decoding"]["found"] == "soundfile cannot be imported"


def test_colours_are_for_terminals_and_never_the_only_sign():
    findings = [Finding("Room", "name", "PROBLEM", "broken", "mend it"), Finding("Room", "other", "ok", "fine")]
    plain, coloured = page(findings), page(findings, coloured=True)
    assert "\033" not in plain and re.sub(r"\033\[[\d;]*m", "", coloured) == plain != coloured
    assert plain.splitlines() == [
        "Room",
        "  PROBLEM  name   broken",
        "                  -> mend it",
        "  ok       other  fine",
        "",
        "1 problem: name. What to do stands behind the arrows.",
    ]


def test_long_words_and_many_lines_stay_in_their_column():
    findings = [Finding("A", "x", "note", "many words " * 30, "do this " * 30), Finding("B", "yy", "ok", "p" * 200)]
    lines = page(findings).splitlines()
    assert all(line.startswith(" " * 15) for line in lines[2:7])
    assert sum(line.lstrip().startswith("->") for line in lines) == 1 and "p" * 200 in lines[-3]
    assert lines[-1] == "All that laennec needs works here (1 note above)."


def test_a_check_that_breaks_is_a_problem_itself():
    def absent():
        raise ModuleNotFoundError("No module named 'torch.x'", name="torch.x")

    assert finding("r", "n", lambda: 1 / 0, "mend").found == "ZeroDivisionError: division by zero"
    assert finding("r", "n", absent, "mend") == Finding(
        "r", "n", "PROBLEM", "torch cannot be imported", "see torch under Packages"
    )
    assert worst([Finding("r", "n", *v) for v in (ok("a"), note("b", "c"))]) == "note"
    assert worst([Finding("r", "n", *v) for v in (problem("a", "b"), note("b", "c"))]) == "PROBLEM"
    assert worst([]) == "ok"
    assert [gigabytes(n) for n in (12, 6.4e7, 1.5e9, 2.5e13)] == ["12 bytes", "64 MB", "1.5 GB", "25,000 GB"]


# ---------------------------------------------------------------- packages


def test_versions_are_compared_with_the_tested_ones(versions):
    tested = packages.tested()
    versions(transformers="5.99.0", numpy="2.0.1", scipy="99.1", torch="2.13.0+cu130")
    found = by_name(packages.examine())
    assert found["transformers"].state == "note"
    assert found["transformers"].found == f"5.99.0 is newer than the tested {tested['transformers']}"
    assert "pip install 'transformers==" in found["transformers"].remedy
    assert found["numpy"].found == f"2.0.1 is older than the tested {tested['numpy']}"
    assert found["scipy"].found.endswith(f"newer than the tested {tested['scipy']}, another major version")
    assert "torch" not in found and "torch 2.13.0+cu130" in found["as tested"].found  # a build for a GPU is the same


@pytest.mark.parametrize("version", ["4.57.6", "6.0.0"])
def test_a_version_that_laennec_cannot_work_with_is_a_problem(versions, version):
    versions(transformers=version)
    found = by_name(packages.examine())["transformers"]
    assert found.state == "PROBLEM" and version in found.found and "<6,>=5.17" in found.found
    assert "pip install" in found.remedy


def test_what_is_optional_is_never_a_problem(lack, versions):
    lack("gradio", "optuna")
    versions(onnx="0.1")
    found = by_name(packages.examine())
    assert found["[app]"].state == found["[search]"].state == found["[onnx]"].state == "note"
    assert "gradio not installed" in found["[app]"].found and "'laennec[app]'" in found["[app]"].remedy
    assert "onnx: 0.1, and laennec needs" in found["[onnx]"].found


def test_a_package_that_is_installed_and_cannot_be_imported_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "soxr").mkdir()
    (tmp_path / "soxr" / "__init__.py").write_text("raise ImportError('libsoxr.so.0: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "soxr")
    found = by_name(packages.examine())["soxr"]
    assert found.state == "PROBLEM" and "libsoxr.so.0" in found.found
    assert "--force-reinstall 'soxr==" in found.remedy


@pytest.mark.parametrize("name", ["torchaudio", "torchcodec"])
def test_what_harms_where_it_cannot_be_loaded_is_named(tmp_path, monkeypatch, name):
    assert by_name(packages.examine())[name].state == "ok"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise OSError('Could not load this library: libtorch_cuda.so')")
    monkeypatch.syspath_prepend(tmp_path)
    found = by_name(packages.examine())[name]
    assert found.state == "note" and "libtorch_cuda.so" in found.found and "laennec does not need it" in found.remedy


# ---------------------------------------------------------------- audio


def test_a_format_that_is_not_read_is_a_note_or_a_problem(monkeypatch):
    honest = soundfile.write

    def refusing(*kinds):
        def write(file, data, rate, format):
            if format in kinds:
                raise soundfile.LibsndfileError(1, "unknown format: ")
            return honest(file, data, rate, format=format)

        monkeypatch.setattr(soundfile, "write", write)
        return by_name(audio.examine())["decoding"]

    assert refusing("MP3").state == "note" and "mp3 (" in refusing("MP3").found
    assert refusing("MP3", "FLAC").state == "PROBLEM" and "flac (" in refusing("FLAC").found
    assert "soundfile" in refusing("FLAC").remedy


def test_a_decoder_or_a_resampler_that_gives_another_sound_is_found_out(monkeypatch):
    import soxr

    honest = soxr.resample
    monkeypatch.setattr(soxr, "resample", lambda *a, **k: honest(*a, **k) * np.float32(1.01))
    assert by_name(audio.examine())["resampling"].state == "PROBLEM"
    reads = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: reads(*a, **k) * np.float32(0.1))
    assert by_name(audio.examine())["decoding"].state == "PROBLEM"


# ---------------------------------------------------------------- storage


def full(monkeypatch, number=errno.ENOSPC):
    def fsync(_):
        raise OSError(number, "no")

    monkeypatch.setattr("os.fsync", fsync)


def test_a_full_or_read_only_disk_is_a_problem_of_the_cache_and_a_note_of_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for number, words in ((errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.ESTALE, "")):
        with monkeypatch.context() as patch:
            full(patch, number)
            found = by_name(storage.examine())
        assert found["cache"].state == found["temporary files"].state == "PROBLEM"
        assert words in found["cache"].found and "LAENNEC_CACHE" in found["cache"].remedy
        assert found["working folder"].state == found["Hub's cache"].state == "note"
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_nearly_full_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path))
    (tmp_path / "x").write_bytes(bytes(3_000_000))
    found = by_name(storage.examine())["cache"]
    assert str(tmp_path) in found.found and "3 MB in it" in found.found
    usage = storage.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: usage._replace(free=4_000_000_000))
    found = by_name(storage.examine())["cache"]
    assert found.state == "note" and "4 GB free" in found.found


def test_folders_that_are_not_there_are_not_made(monkeypatch, tmp_path):
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "a" / "b"))
    found = by_name(storage.examine())["cache"]
    assert found.state == "ok" and "not there yet" in found.found and list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the machine


def test_too_many_threads_little_shared_memory_and_few_open_files_are_notes(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    usage = machine.shutil.disk_usage("/")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage._replace(total=64_000_000, free=64_000_000))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 100_000))
    found = by_name(machine.examine())
    assert found["threads"].state == "note" and "OMP_NUM_THREADS is 64" in found["threads"].found
    assert "OMP_NUM_THREADS=" in found["threads"].remedy
    assert found["shared memory"].state == "note" and "--shm-size" in found["shared memory"].remedy
    assert found["open files"].state == "note" and found["open files"].remedy.endswith("ulimit -n 4096")


def test_cores_and_memory_are_those_of_the_control_group(monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1000000000\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.usable_cores() == 0.5
    found = by_name(machine.examine())
    assert "0.5 of " in found["processor"].found
    assert found["memory"].state == "note" and found["memory"].found.endswith("of 1 GB free")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cores() >= 1


def test_a_gpu_that_torch_cannot_use_is_named(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU that torch can use")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert by_name(machine.examine())["accelerator"].state == "ok"
    exists = machine.Path.exists
    monkeypatch.setattr(machine.Path, "exists", lambda path: str(path) == "/dev/nvidia0" or exists(path))
    found = by_name(machine.examine())["accelerator"]
    assert found.state == "note" and "build for the CPU" in found.found and "CUDA" in found.remedy
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = by_name(machine.examine())["accelerator"]
    assert "cannot use it" in found.found and "nvidia-smi" in found.remedy
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert by_name(machine.examine())["accelerator"].state == "ok"


def test_a_model_that_gives_nonsense_is_a_problem(monkeypatch):
    from laennec.modeling import LaennecForAudioClassification

    honest = LaennecForAudioClassification.forward

    def broken(self, *arguments, **settings):
        answer = honest(self, *arguments, **settings)
        answer.logits = answer.logits * float("nan")
        return answer

    monkeypatch.setattr(LaennecForAudioClassification, "forward", broken)
    assert by_name(machine.examine())["model"].state == "PROBLEM"


# ---------------------------------------------------------------- the Hub


def test_nothing_is_asked_and_no_token_is_shown(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretindeed")
    monkeypatch.setattr(httpx.Client, "send", lambda *_, **__: pytest.fail("the network was asked"))
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert "there is one (from HF_TOKEN)" in out and "verysecret" not in out + err


def test_offline_is_not_asked_even_online():
    found = by_name(hub.examine(online=True))["reached"]
    assert found.state == "note" and "HF_HUB_OFFLINE" in found.found


def test_online_it_is_asked_and_the_token_is_judged(monkeypatch):
    from huggingface_hub import constants

    with HubServer() as server:

        def ask(token, endpoint=server.endpoint):
            def work():
                constants.HF_HUB_OFFLINE, constants.ENDPOINT = False, endpoint
                print(json.dumps(by_name(hub.examine(online=True))["reached"].to_dict()))

            return json.loads(Forked(work, HF_TOKEN=token).done().stdout)

        assert ask(TOKEN)["found"] == "it answers and takes the token"
        wrong = ask("hf_wrong")
        assert wrong["state"] == "PROBLEM" and "refuses the token" in wrong["found"]
        assert "hf_wrong" not in json.dumps(wrong) and "hf auth login" in wrong["remedy"]
        gone = ask(TOKEN, "http://127.0.0.1:9")
    assert gone["state"] == "PROBLEM" and gone["found"].startswith("no answer (") and "HTTPS_PROXY" in gone["remedy"]


def test_the_command_runs_in_an_empty_folder_and_leaves_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    done = Forked(lambda: os.chdir(tmp_path / "empty") or main(["doctor"])).done()
    assert done.returncode == 0 and list((tmp_path / "empty").iterdir()) == [], done.stderr
