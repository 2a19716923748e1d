"""Exports that were damaged, changed or made to harm, and corpora that cannot be exported: one line each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exported_corpora
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from exported_corpora import Small, hashes

from laennec.cache import sha256_of
from laennec.corpora import export_corpus, load_corpus, provenance
from laennec.corpora.hub.exported import MANIFEST, safe_name
from laennec.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Change = Callable[[list[dict[str, Any]]], Any]


@pytest.fixture(scope="module")
def own(some_recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Small:
    return exported_corpora.own_recordings(tmp_path_factory.mktemp("own"), some_recordings)


@pytest.fixture(scope="module")
def made(own: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    return export_corpus(own.name, own.folder, place / "out", cache_dir=place / "cache", **own.settings).folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def load(folder: Path, tmp_path: Path) -> Any:
    return load_corpus("folder", folder, unlabelled=True, protocol="none", cache_dir=tmp_path / "cache")["all"]


def shard(folder: Path, config: str = "recordings") -> Path:
    return next((folder / config).iterdir())


def say_again(folder: Path) -> None:
    """Make the manifest agree with whatever the files hold now."""
    facts = json.loads((folder / MANIFEST).read_text())
    for name in facts["files"]:
        facts["files"][name]["sha256"] = sha256_of(folder / name)
    (folder / MANIFEST).write_text(json.dumps(facts))


def forge(folder: Path, change: Change, config: str = "recordings") -> None:
    """An export that somebody has made: its rows changed, its hashes right."""
    path = shard(folder, config)
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    say_again(folder)


HOSTILE = [
    "../outside.wav", "a/../../outside.wav", "/tmp/outside.wav", "C:/outside.wav", "C:outside.wav", "..\\outside.wav",
    "a\\b.wav", "\\\\server\\share\\x.wav", "a//b.wav", "./x.wav", "a/./b.wav", "x\n.wav", "x\0.wav", "x\u202e.wav", "",
    ".wav/", "x.py", "x", ".bashrc", "x.wav.sh", "ward",
]  # fmt: skip


def test_names_that_others_read_in_another_way_are_told() -> None:
    assert not any(map(safe_name, HOSTILE)) and safe_name("ward/three #1, links.wav")


@pytest.mark.parametrize(
    ("config", "name"), [("recordings", "../outside.wav"), ("recordings", "x.py"), ("annotations", "/tmp/outside.wav")]
)
def test_a_name_that_would_leave_the_folder_refuses_all(config: str, name: str, copy: Path, tmp_path: Path) -> None:
    forge(copy, lambda rows: rows[-1].update(source_path=name), config)
    with pytest.raises(InputError, match="would leave the folder or is no file name"):
        load(copy, tmp_path)
    assert not list(tmp_path.rglob("outside*")) and not Path("/tmp/outside.wav").exists()
    assert not [path for path in (tmp_path / "cache" / "exported").rglob("*") if path.is_file()]


FORGERIES: dict[str, tuple[str, Change, str]] = {
    "no annotation": ("annotations", lambda rows: rows[0].update(content=None), "has no content"),
    "no audio": ("recordings", lambda rows: rows[0].update(audio=None), "has no content"),
    "no bytes": ("recordings", lambda rows: rows[0]["audio"].update(bytes=None), "has no content"),
    "twice": ("recordings", lambda rows: rows.append(rows[0]), "two files are called"),
    "file and folder": ("annotations", lambda r: r[0].update(source_path="home/four.wav/x.csv"), "a file and a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGERIES)
def test_a_forged_row_refuses_all(case: str, copy: Path, tmp_path: Path) -> None:
    config, change, words = FORGERIES[case]
    forge(copy, change, config)
    with pytest.raises(InputError, match=words) as told:
        load(copy, tmp_path)
    assert str(copy) in str(told.value)
    assert not [path for path in (tmp_path / "cache" / "exported").rglob("*") if path.is_file()]


@pytest.mark.parametrize("column", ["audio", "source_path"])
def test_a_missing_column_is_named(column: str, copy: Path, tmp_path: Path) -> None:
    table = pq.read_table(shard(copy))
    pq.write_table(table.drop_columns([column]), shard(copy))
    say_again(copy)
    with pytest.raises(InputError, match=f"no column {column}; download or export it again"):
        load(copy, tmp_path)


def test_a_changed_byte_is_noticed_before_and_after_it_was_read_once(copy: Path, tmp_path: Path) -> None:
    load(copy, tmp_path)
    content = bytearray(shard(copy).read_bytes())
    content[len(content) // 2] ^= 1
    shard(copy).write_bytes(content)
    for cache in (tmp_path, tmp_path / "other"):
        with pytest.raises(InputError, match=r"corpus-00000.parquet: not the file that was exported"):
            load(copy, cache)


def test_what_is_no_parquet_is_named(copy: Path, tmp_path: Path) -> None:
    shard(copy).write_bytes(b"PAR1 and nothing else PAR1")
    say_again(copy)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        load(copy, tmp_path)


def test_a_missing_file_is_named(copy: Path, tmp_path: Path) -> None:
    shard(copy).unlink()
    with pytest.raises(InputError, match="missing from the export"):
        load(copy, tmp_path)


MANIFESTS: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "cannot be read as the manifest"),
    "a list": ("[]", "cannot be read as the manifest"),
    "nothing in it": ("{}", "cannot be read as the manifest"),
    "deep": ("[" * 100_000, "cannot be read as the manifest"),
    "no files": ('{"format": 2, "corpus": "folder", "files": 3}', "cannot be read as the manifest"),
    "not text": ('{"format": 2, "corpus": 7, "files": {}}', "cannot be read as the manifest"),
    "first edition": ('{"format": 1, "corpus": "folder", "files": {}}', "format 1, and this laennec reads format 2"),
    "empty": ('{"format": 2, "corpus": "folder", "files": {}}', "holds no recordings"),
    "another corpus": ('{"format": 2, "corpus": "sprsound", "files": {}}', "an export of corpus sprsound, not"),
    "elsewhere": ('{"format": 2, "corpus": "folder", "files": {"../x.parquet": {"sha256": ""}}}', "no file of an ex"),
    "up": ('{"format": 2, "corpus": "folder", "files": {"cycles/..parquet": {"sha256": ""}}}', "no file of an export"),
    "root": ('{"format": 2, "corpus": "folder", "files": {"/etc/passwd": {"sha256": ""}}}', "no file of an export"),
}  # fmt: skip


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    content, words = MANIFESTS[case]
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=words):
        load(tmp_path, tmp_path)


def test_a_restored_file_that_somebody_changed_is_restored_again(copy: Path, tmp_path: Path) -> None:
    first = load(copy, tmp_path)
    place = Path(first["recording_path"][0])
    whole = place.read_bytes()
    for damage in (lambda: place.write_bytes(whole[:-2] + b"xx"), place.unlink):
        damage()
        again = load(copy, tmp_path)
        assert place.read_bytes() == whole and again.to_list() == first.to_list()


# ---------------------------------------------------------------- writing


def export(small: Small, out: Path, **more: Any) -> Any:
    return export_corpus(small.name, small.folder, out, cache_dir=out.parent / "cache", **(small.settings | more))


@pytest.fixture
def mine(some_recordings: list[Path], tmp_path: Path) -> Small:
    """Recordings of one's own, to spoil."""
    return exported_corpora.own_recordings(tmp_path / "mine", some_recordings)


def test_only_an_export_is_replaced(own: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(own, out)
    first = hashes(out)
    export(own, out, protocol="none")
    assert hashes(out) != first and not [p for p in tmp_path.iterdir() if ".part" in p.name or ".old" in p.name]
    (out / "thesis.docx").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other files .thesis.docx."):
        export(own, out)
    assert (out / "thesis.docx").read_text() == "years of work" and (out / MANIFEST).is_file()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "README.md").write_text("dear diary")  # a name of ours, and no export
    with pytest.raises(InputError, match=r"holds other files .README.md."):
        export(own, tmp_path / "letters")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file, not a folder"):
        export(own, tmp_path / "file")
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(InputError, match="is a link"):
        export(own, tmp_path / "link")


def test_what_cannot_be_exported_says_so(own: Small, shared_data: Path, tmp_path: Path) -> None:
    for name, folder, options, words in (
        ("hub", tmp_path, {}, "a data set of the Hub already"),
        ("icbhi2017", shared_data / "icbhi2017_annotations", {"allow_missing": True}, "annotations without any audio"),
        ("folder", tmp_path / "nowhere", {}, "no such folder"),
        ("lungs", tmp_path, {}, "no corpus is called"),
        ("folder", own.folder, own.settings | {"protocol": "offical"}, "did you mean 'official'"),
        ("icbhi2017", shared_data / "icbhi2017_subset", {}, "819 of the 920 recordings"),
    ):
        with pytest.raises(InputError, match=words):
            export_corpus(name, folder, tmp_path / "out", cache_dir=tmp_path / "cache", **options)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["line\nbreak.wav", "C:x.wav", b"caf\xe9.wav"])
def test_a_recording_that_others_could_not_have_is_named(name: str | bytes, mine: Small, tmp_path: Path) -> None:
    bad = Path(os_name(name, mine.folder))
    shutil.copy(mine.folder / "home" / "four.wav", bad)
    with pytest.raises(
        InputError, match=r"not a valid file name on other systems|its name is not in UTF-8; rename it"
    ) as told:
        export(mine, tmp_path / "out")
    assert str(told.value).isprintable() and not (tmp_path / "out").exists()


def os_name(name: str | bytes, folder: Path) -> str:
    import os

    return str(folder / (os.fsdecode(name) if isinstance(name, bytes) else name))


def test_a_table_that_names_places_of_this_machine_is_refused(mine: Small, tmp_path: Path) -> None:
    table = Path(mine.settings["annotations"])
    table.write_text(table.read_text().replace("ward/one.wav", str(mine.folder / "ward" / "one.wav")))
    load_corpus("folder", mine.folder, cache_dir=tmp_path / "cache", protocol="none", **mine.settings)  # here it loads
    with pytest.raises(InputError, match=r"cannot be read again from an export: .*ward/one.wav.* is not in the folder"):
        export(mine, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_recording_that_cannot_be_decoded_is_named(mine: Small, tmp_path: Path) -> None:
    for name in ("ward/one.wav", "home/six.flac"):
        path = mine.folder / name
        content = path.read_bytes()
        if path.suffix == ".flac":
            content = content[: len(content) // 2]
        else:
            rate, samples = 4000, np.zeros(8000, dtype=np.float32)
            soundfile.write(path, samples, rate, subtype="FLOAT")  # silence is no reason to refuse
            content = path.read_bytes()
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"six.flac: (cut short|damaged)"):
        export(mine, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recording_that_changes_meanwhile_is_noticed(mine: Small, tmp_path: Path) -> None:
    def spoil(done: int, total: int) -> None:
        sound = mine.folder / "home" / "nobody.wav"
        soundfile.write(sound, np.ones(400) / 3, 4000)

    with pytest.raises(InputError, match=r"nobody.wav: has changed while it was exported"):
        export(mine, tmp_path / "out", progress=spoil)
    assert not (tmp_path / "out").exists()


def test_links_in_a_corpus_are_never_written_and_those_that_lead_out_of_it_not_followed(
    mine: Small, tmp_path: Path
) -> None:
    sound = mine.folder / "home" / "four.wav"
    sound.rename(tmp_path / "store.wav")
    sound.symlink_to(tmp_path / "store.wav")
    with pytest.raises(InputError, match=r"four\.wav: is a link to a file elsewhere"):
        export(mine, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    sound.unlink()
    (mine.folder / "store").mkdir()
    (tmp_path / "store.wav").rename(mine.folder / "store" / "store.bin")
    sound.symlink_to(mine.folder / "store" / "store.bin")  # as an annex keeps its files
    made = export(mine, tmp_path / "out")
    assert not any(path.is_symlink() for path in made.folder.rglob("*"))
    shutil.rmtree(mine.folder)
    restored = load(made.folder, tmp_path)
    assert [p for p in restored["recording_path"] if p.endswith("home/four.wav") and not Path(p).is_symlink()]
    assert provenance(restored)["corpus_fingerprint"] == made.manifest["corpus_fingerprint"]
