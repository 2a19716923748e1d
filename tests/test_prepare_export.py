"""`laennec prepare --export`: its output and its errors."""

from pathlib import Path

import pytest

from laennec.cli.main import main
from laennec.corpora.hub.exported import MANIFEST
from runs import one_line

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def exported(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "sounds"
    flags = ["--data-dir", str(small_corpus), "--protocol", "patient-60-20-20", "--export", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(out.parent / "cache"))
        assert main(["prepare", "synthetic", *flags]) == 0
    return out


def test_it_says_what_was_exported_and_prepare_reads_it(
    small_corpus: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--protocol", "patient-60-20-20"]
    assert main(["prepare", "synthetic", "--data-dir", str(small_corpus), *flags]) == 0
    counted = capsys.readouterr().out
    assert main(["prepare", "synthetic", "--data-dir", str(exported), *flags]) == 0
    assert capsys.readouterr().out == counted and "train: " in counted
    out = tmp_path / "again"
    assert main(["prepare", "synthetic", "--data-dir", str(exported), *flags, "--export", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(counted) and f"exported to {out}: 5 Parquet files" in said and "load_dataset" in said
    assert (out / MANIFEST).read_bytes() == (exported / MANIFEST).read_bytes()
    assert main(["prepare", "synthetic", "--data-dir", str(exported), "--check"]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--check", "--export", "x"], "--check cannot be combined"),
        (["--check", "--protocol", "official", "--fold", "1"], "--check does not use --protocol, --fold; leave it out"),
        (["--check", "--sampling-rate", "8000"], "--check does not use --sampling-rate; leave it out"),
        (["--sampling-rate", "-5"], "--sampling-rate is -5; give a rate in Hz, e.g. 16000"),
        (["--sampling-rate", "0", "--export", "x"], "--sampling-rate is 0; give a rate in Hz, e.g. 16000"),
        (["--option", "level=5"], "level is 5; it should be a valid string; correct this option of corpus synthetic"),
        (["--option", 'level="5"'], "has no level '5'"),
        (["--public"], "--public needs --push-to-hub REPO; add it"),
        (["--public", "--export", "x"], "--public needs --push-to-hub REPO; add it"),
        (["--push-to-hub", "x/y", "--public"], "--i-have-the-right-to-redistribute"),
        (["--push-to-hub", "sounds"], "the owner is missing; write OWNER/sounds"),
        (["--export", "{taken}"], "holds other files (work.txt); choose an empty folder (--export)"),
        (["--export", "{taken}/work.txt"], "is a file, not a folder"),
        (["--export", "{taken}/work.txt/deeper"], "a part of this path is a file"),
    ],
)
def test_a_refused_export_is_one_line(
    flags: list[str], words: str, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "work.txt").write_text("mine")
    flags = [flag.format(taken=tmp_path / "taken") for flag in flags]
    assert main(["prepare", "synthetic", "--data-dir", str(small_corpus), *flags]) == 2
    one_line(capsys, words)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["taken", "taken/work.txt"]


def test_an_export_of_another_corpus_is_named(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "icbhi2017", "--data-dir", str(exported)]) == 2
    one_line(capsys, str(exported), "an export of corpus synthetic, not of icbhi2017; load it as that corpus")
