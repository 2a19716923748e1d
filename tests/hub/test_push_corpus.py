"""Stage 8: a corpus pushed to a Hub, read from there by everybody and by laennec; what the Hub may answer instead."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_process import HubUser

from hub_server import OTHER_TOKEN, TOKEN, HubServer
from laennec.corpora import export_corpus, load_corpus, provenance
from laennec.corpora.synthetic import write_corpus

PLAIN = """
import io, json, sys
sys.modules["laennec"] = sys.modules["torchcodec"] = None
import datasets, soundfile
datasets.disable_progress_bars()
parts = datasets.load_dataset(sys.argv[1])
raw = parts.cast_column("audio", datasets.Audio(decode=False))
first = raw["train"][0]
streamed = datasets.load_dataset(sys.argv[1], "recordings", streaming=True)["corpus"].select_columns(["recording_id"])
print(json.dumps({
    "ids": {name: part["cycle_id"][:] for name, part in parts.items()},
    "samples": len(soundfile.read(io.BytesIO(first["audio"]["bytes"]))[0]),
    "seconds": first["end_s"] - first["start_s"], "rate": first["source_sampling_rate"],
    "recordings": [row["recording_id"] for row in streamed],
}))
"""
LOADED = """
import json, sys, warnings
from laennec.corpora import CycleWaveforms, load_corpus, provenance
parts = load_corpus("synthetic", sys.argv[1], protocol="official")
sounds = CycleWaveforms(parts["test"], 8000)
print(json.dumps([provenance(parts), {k: v.remove_columns("recording_path").to_list() for k, v in parts.items()},
                  sum(float(abs(sound).sum()) for sound in sounds)]))
"""
TRIED = """
import json, os, sys
from laennec.corpora import load_corpus
from laennec.errors import InputError
said = []
for token in sys.argv[2:]:
    os.environ["HF_TOKEN"] = token
    try:
        load_corpus("synthetic", sys.argv[1])
    except InputError as error:
        said.append(str(error))
print(json.dumps(said))
"""


ALL_OF_THEM = """
import contextlib, io, json, sys
from laennec.cli.main import main
said = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        said.append([main(arguments), err.getvalue()])
print(json.dumps(said))
"""
PREPARE = ("prepare", "synthetic", "--data-dir")


@pytest.fixture(scope="module")
def few_sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic corpus that is soon uploaded."""
    folder = tmp_path_factory.mktemp("few") / "corpus"
    return write_corpus(folder, patients=12, recordings_per_patient=1, cycles_per_recording=2, max_rate_hz=4000)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def laennec(hub: HubServer, home: Path) -> Iterator[Any]:
    """Commands of a user of this Hub: arguments and token -> (status, output, errors)."""
    with HubUser(hub, home, LAENNEC_CACHE=str(home / "cache")) as someone:
        quick = "from laennec.hub.push_corpus import push_corpus as f; f.__kwdefaults__['pauses_s'] = (0.1, 0.1)"
        someone.runs(quick).done()
        yield someone.types


@pytest.fixture(scope="module")
def prepare(laennec: Any, few_sounds: Path) -> Any:
    """`laennec prepare synthetic ... --push-to-hub REPO`."""

    def run(repo: str, *more: str, token: str = TOKEN, protocol: str = "official") -> tuple[int, str, str]:
        flags = ["--data-dir", few_sounds, "--protocol", protocol, "--push-to-hub", repo, *more]
        return laennec("prepare", "synthetic", *flags, token=token)  # type: ignore[no-any-return]

    return run


def separately(hub: HubServer, home: Path, script: str, *arguments: str, **more: str) -> Any:
    """What a script prints as JSON in a process of its own; or its last line of errors."""
    token = more.pop("token", TOKEN)
    environment = hub.environment(home, token or None, LAENNEC_CACHE=str(home / "cache"), **more)
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def one_line(found: tuple[int, str, str], *words: str) -> None:
    status, _, err = found
    mine = [
        line for line in err.splitlines() if line.startswith("laennec: ") and not line.startswith("laennec: note: ")
    ]
    assert status == 2 and len(mine) == 1 and "Traceback" not in err, err
    assert all(word in mine[0] for word in words), mine[0]


@pytest.fixture(scope="module")
def pushed(hub: HubServer, prepare: Any) -> str:
    status, out, err = prepare("tester/sounds")
    assert status == 0 and "pushed to hf://datasets/tester/sounds" in out, err
    assert "terms of Synthetic lung sounds" in out and "redistribution: free to pass on" in out
    return "tester/sounds"


def test_a_push_is_private_and_exactly_the_export(
    hub: HubServer, pushed: str, few_sounds: Path, tmp_path: Path
) -> None:
    assert hub.repos["dataset", pushed].private and ("dataset", pushed) in hub.repos
    made = export_corpus("synthetic", few_sounds, tmp_path / "out", protocol="official")
    wanted = {p.relative_to(made.folder).as_posix(): p.read_bytes() for p in made.folder.rglob("*") if p.is_file()}
    held = hub.files(pushed, kind="dataset")
    assert held.pop(".gitattributes") and held == wanted
    assert not [name for name in held if name.endswith((".py", ".wav", ".pkl"))]


def test_everybody_who_may_reads_it_with_plain_datasets(
    hub: HubServer, home: Path, pushed: str, few_sounds: Path
) -> None:
    found = separately(hub, home, PLAIN, pushed)
    parts = load_corpus("synthetic", few_sounds, protocol="official")
    assert found["ids"] == {name: list(part["cycle_id"]) for name, part in parts.items()}
    assert found["samples"] == pytest.approx(found["seconds"] * found["rate"], abs=1)
    assert set(found["recordings"]) == {name for part in parts.values() for name in part["recording_id"]}


def test_load_corpus_reads_it_back_as_it_was_and_without_a_network_too(
    hub: HubServer, home: Path, pushed: str, few_sounds: Path
) -> None:
    from laennec.corpora import CycleWaveforms

    parts = load_corpus("synthetic", few_sounds, protocol="official")
    sound = sum(float(abs(waveform).sum()) for waveform in CycleWaveforms(parts["test"], 8000))
    rows = {name: part.remove_columns("recording_path").to_list() for name, part in parts.items()}
    asked = len(hub.asked("GET /datasets/tester/sounds/resolve/.*/cycles/"))
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        found = separately(hub, home / "fresh", LOADED, f"hf://datasets/{pushed}", **more)
        assert found == [provenance(parts), rows, sound]
    assert len(hub.asked("GET /datasets/tester/sounds/resolve/.*/cycles/")) == asked  # they are not needed


def test_nobody_else_sees_it(hub: HubServer, tmp_path: Path, pushed: str) -> None:
    for_others = separately(hub, tmp_path, TRIED, f"hf://datasets/{pushed}", "", OTHER_TOKEN, "hf_wrong")
    private = "is private and not open to you"
    for found, words in zip(for_others, (private, private, "the token is wrong or has expired"), strict=True):
        assert words in found and "hf auth login" in found and "\n" not in found
    assert "DatasetNotFoundError" in separately(hub, tmp_path, PLAIN, pushed, token="")


def test_the_same_corpus_again_changes_and_sends_nothing(hub: HubServer, pushed: str, prepare: Any) -> None:
    commits, sent = len(hub.repos["dataset", pushed].commits), len(hub.asked("PUT /objects"))
    assert prepare(pushed)[0] == 0
    assert (len(hub.repos["dataset", pushed].commits), len(hub.asked("PUT /objects"))) == (commits, sent)


def test_another_split_takes_the_files_of_the_old_one_away_and_its_revision_stays(
    hub: HubServer, laennec: Any, prepare: Any
) -> None:
    assert prepare("tester/splits")[0] == 0
    old = hub.repos["dataset", "tester/splits"].branches["main"]
    sent = len(hub.asked("PUT /objects"))
    assert prepare("tester/splits", protocol="none")[0] == 0
    held = hub.files("tester/splits", kind="dataset")
    assert [name for name in held if name.startswith("cycles/")] == ["cycles/corpus-00000.parquet"]
    assert len(hub.asked("PUT /objects")) == sent + 1  # recordings and annotations are there already
    assert laennec(*PREPARE, f"hf://datasets/tester/splits@{old}")[0] == 0
    assert hub.asked(f"GET /datasets/tester/splits/resolve/{old}/laennec_corpus.json")
    one_line(laennec(*PREPARE, "hf://datasets/tester/splits@v7"), "splits@v7: the repository has no such revision")


def test_a_broken_upload_goes_on_where_it_was(hub: HubServer, prepare: Any) -> None:
    hub.fail("PUT /objects/dataset/tester%2Fbroken", times=1, status=503)  # tried again by itself
    hub.fail("/commit/main", times=99, status=503)
    one_line(prepare("tester/broken"), "tester/broken: the Hub has a temporary problem (HTTP 503); run the same")
    hub.mend()
    assert set(hub.files("tester/broken", kind="dataset")) == {".gitattributes"}
    whole = [each for each in hub.asked("PUT /objects/dataset/tester%2Fbroken") if each.status == 200]
    assert len(whole) == 5
    assert prepare("tester/broken")[0] == 0
    again = [each for each in hub.asked("PUT /objects/dataset/tester%2Fbroken") if each.status == 200]
    assert len(again) == len(whole) and len(hub.files("tester/broken", kind="dataset")) == 8


REFUSED: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]] = {
    "no namespace": (("sounds",), {}, ("sounds: the owner is missing", "OWNER/sounds")),
    "three parts": (("a/b/c",), {}, ("not a valid name",)),
    "an address": (("hf://datasets/a/b",), {}, ("not a valid name",)),
    "a name the Hub refuses": (("tester/a--b",), {}, ("not a valid name",)),
    "no token": (("tester/new",), {"token": ""}, ("no token", "hf auth login")),
    "a wrong token": (("tester/new",), {"token": "hf_wrong"}, ("the token is wrong or has expired",)),
    "somebody else's": (("tester/new",), {"token": OTHER_TOKEN}, ("logged in as somebody", "tester")),
    "public without the right": (("tester/new", "--public"), {}, ("--i-have-the-right-to-redistribute",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_push_that_is_refused_before_any_work(case: str, hub: HubServer, home: Path, prepare: Any) -> None:
    arguments, settings, words = REFUSED[case]
    found = prepare(*arguments, **settings)
    one_line(found, *words)
    assert "terms of Synthetic lung sounds" in found[1] and "train:" not in found[1]  # the corpus was not even read
    assert not [repo for _, repo in hub.repos if repo in ("tester/new", "tester/a--b", "a/b")]
    assert not list((home / "cache").glob("exports/*"))


def test_public_is_public_for_who_says_so_and_never_by_accident(hub: HubServer, prepare: Any) -> None:
    right = ("--public", "--i-have-the-right-to-redistribute")
    assert prepare("tester/open", *right)[0] == 0
    assert not hub.repos["dataset", "tester/open"].private
    before = hub.files("tester/open", kind="dataset")
    one_line(prepare("tester/open", protocol="none"), "is public, and everybody would see the recordings")
    assert hub.files("tester/open", kind="dataset") == before
    assert prepare("tester/open", *right, protocol="none")[0] == 0
    # a private one is opened when it holds the corpus, and not before
    assert prepare("tester/shut")[0] == 0 and hub.repos["dataset", "tester/shut"].private
    hub.fail("POST /api/datasets/tester/shut/commit", times=99, status=503)
    one_line(prepare("tester/shut", *right, protocol="none"), "temporary problem")
    hub.mend()
    assert hub.repos["dataset", "tester/shut"].private
    assert prepare("tester/shut", *right, protocol="none")[0] == 0 and not hub.repos["dataset", "tester/shut"].private


def test_somebodys_other_work_is_not_touched(hub: HubServer, prepare: Any) -> None:
    files = {"notes.txt": b"mine", "README.md": b"# mine"}
    hub.add("tester/work", files, kind="dataset", private=True)
    hub.add("tester/script", {"script.py": b"import os"}, kind="dataset", private=True)
    one_line(prepare("tester/work"), "tester/work: holds other files (notes.txt)")
    one_line(prepare("tester/script"), "tester/script: holds other files (script.py)")
    assert hub.files("tester/work", kind="dataset") == files


def test_what_is_no_export_on_the_hub_is_one_line(hub: HubServer, home: Path, laennec: Any) -> None:
    hub.add("tester/plain", {"data/train.parquet": b"PAR1"}, kind="dataset")
    one_line(laennec(*PREPARE, "hf://datasets/tester/plain"), "holds no laennec_corpus.json", "as corpus hub")
    one_line(laennec(*PREPARE, "hf://datasets/tester/absent"), "tester/absent: the Hub has no such repository")
    for address in ("hf://datasets/tester", "hf://models/a/b", "hf://datasets/a/b/c", "hf://datasets/a/b@", "hf://x"):
        one_line(laennec(*PREPARE, address), "not an address of a data set; write hf://datasets/OWNER/NAME")
    hub.fail("/api/datasets/tester/plain", times=99, status=500)
    one_line(laennec(*PREPARE, "hf://datasets/tester/plain"), "the Hub has a temporary problem (HTTP 500)")
    hub.mend()


def test_damage_on_the_way_is_noticed(hub: HubServer, home: Path, pushed: str, laennec: Any) -> None:
    files = hub.files(pushed, kind="dataset")
    name = next(name for name in files if name.startswith("annotations/"))
    hub.add("tester/damaged", files | {name: files[name][:-100] + bytes(100)}, kind="dataset")
    found = laennec("prepare", "synthetic", "--data-dir", "hf://datasets/tester/damaged")
    one_line(found, name, "not the file that was exported")


def test_without_a_network(hub: HubServer, home: Path, few_sounds: Path) -> None:
    asked = json.dumps([[*PREPARE, str(few_sounds), "--push-to-hub", "tester/new"], [*PREPARE, "hf://datasets/a/b"]])
    for more, words in (
        ({"HF_HUB_OFFLINE": "1"}, "switched off here (HF_HUB_OFFLINE)"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the Hub cannot be reached"),
    ):
        for found in separately(hub, home / "empty", ALL_OF_THEM, asked, **more):
            assert found[0] == 2 and words in found[1] and found[1].count("\n") == 1


def test_only_the_exported_folder_is_uploaded(hub: HubServer, laennec: Any, few_sounds: Path, tmp_path: Path) -> None:
    shutil.copytree(few_sounds, tmp_path / "corpus")
    (tmp_path / "corpus" / "secret.txt").write_text("my token")
    os.symlink("/etc/passwd", tmp_path / "corpus" / "passwd.txt")
    flags = ("--data-dir", tmp_path / "corpus", "--export", tmp_path / "out", "--push-to-hub", "tester/only")
    status, out, err = laennec("prepare", "synthetic", *flags)
    assert status == 0 and f"exported to {tmp_path / 'out'}" in out, err
    held = hub.files("tester/only", kind="dataset")
    assert set(held) - {".gitattributes"} == {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert not [name for name, content in held.items() if b"my token" in content or b"root:" in content]
