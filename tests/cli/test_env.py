"""`laennec env`: versions, and checks that fail in one line with a remedy."""

import os

import pytest

from laennec.cli.main import main


def test_it_names_versions_and_runs_its_checks(capsys):
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert all(f"- {name}: " in out for name in ("laennec", "Python", "torch", "transformers", "accelerator"))
    assert out.count("ok      ") == 3 and "FAILED" not in out


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        ("laennec.audio.recording.read_recording", "audio"),
        ("laennec.files.atomic_write", "cache"),
        ("laennec.encoders.load_encoder", "model"),
    ],
)
def test_a_check_that_fails_says_what_to_do_and_the_others_run(capsys, monkeypatch, broken, check):
    def fails(*_, **__):
        raise OSError("it is\nbroken")

    monkeypatch.setattr(broken, fails)
    assert main(["env"]) == 2
    out = capsys.readouterr().out
    assert f"FAILED  {check}: OSError: it is broken\n        what to do: " in out and out.count("ok      ") == 2


def test_the_size_of_the_cache_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path))
    (tmp_path / "waveforms").mkdir()
    (tmp_path / "waveforms" / "some").touch()
    os.truncate(tmp_path / "waveforms" / "some", 300_000_000)
    assert main(["env"]) == 0
    assert "it holds 0.3 GB" in capsys.readouterr().out
