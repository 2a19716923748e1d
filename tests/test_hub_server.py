"""The tests' own Hub carries what huggingface_hub asks of the real one, and breaks when it is told to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import OTHER_TOKEN, TOKEN, HubServer

ROUND_TRIP = """
import json, os, sys, warnings
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
api = HfApi()
kind, folder = sys.argv[1:]
assert api.whoami()["name"] == "tester"
api.create_repo("tester/thing", repo_type=kind, private=True)
api.create_repo("tester/thing", repo_type=kind, exist_ok=True)
api.upload_folder(repo_id="tester/thing", repo_type=kind, folder_path=folder)
again = api.upload_folder(repo_id="tester/thing", repo_type=kind, folder_path=folder)
info = api.repo_info("tester/thing", repo_type=kind)
assert again.oid == info.sha and info.private
api.create_branch("tester/thing", repo_type=kind, branch="other")
api.create_tag("tester/thing", repo_type=kind, tag="v1")
api.upload_file(path_or_fileobj=b"else", path_in_repo="sub/c.txt", repo_id="tester/thing", repo_type=kind,
                revision="other")
api.delete_file("sub/c.txt", repo_id="tester/thing", repo_type=kind, revision="other")
api.upload_file(path_or_fileobj=b"last", path_in_repo="sub/d.txt", repo_id="tester/thing", repo_type=kind,
                revision="other")
tree = {f.path: f for f in api.list_repo_tree("tester/thing", repo_type=kind, recursive=True, revision="v1")}
refs = api.list_repo_refs("tester/thing", repo_type=kind)
paths = api.get_paths_info("tester/thing", ["a.txt"], repo_type=kind)
local = snapshot_download("tester/thing", repo_type=kind, revision="other")
api.update_repo_settings("tester/thing", repo_type=kind, private=False)
os.environ.pop("HF_TOKEN")
open_now = hf_hub_download("tester/thing", "a.txt", repo_type=kind, token=False, cache_dir=folder + "-cache")
print(json.dumps({
    "tree": sorted(tree), "lfs": tree["weights.safetensors"].lfs.sha256, "oid": tree["a.txt"].blob_id,
    "refs": sorted(r.name for r in (*refs.branches, *refs.tags)), "paths": [p.path for p in paths],
    "files": sorted(os.path.relpath(os.path.join(d, f), local) for d, _, fs in os.walk(local) for f in fs),
    "text": open(open_now).read(),
}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some files, one of them large enough to be broken in the middle."""
    made = tmp_path / "thing"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_text("hello")
    (made / "sub" / "b.txt").write_text("below")
    (made / "weights.safetensors").write_bytes(bytes(range(256)) * 50_000)  # more than one piece of a download
    return made


def run(hub: HubServer, home: Path, script: str, *arguments: str, token: str | None = TOKEN, code: int = 0) -> str:
    """The answer of a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=hub.environment(home, token)
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_repository_is_made_filled_read_branched_and_opened(kind: str, folder: Path, tmp_path: Path) -> None:
    with HubServer() as hub:
        said = json.loads(run(hub, tmp_path, ROUND_TRIP, kind, str(folder)))
        weights = (folder / "weights.safetensors").read_bytes()
        assert hub.files("tester/thing", kind=kind)["weights.safetensors"] == weights
        puts = hub.asked("^PUT /objects/")
        commits = hub.asked("/commit/main")
    names = [".gitattributes", "a.txt", "sub/b.txt", "weights.safetensors"]
    assert said["tree"] == sorted([*names, "sub"])
    assert said["files"] == sorted([*names, "sub/d.txt"])
    assert said["refs"] == ["main", "other", "v1"] and said["paths"] == ["a.txt"] and said["text"] == "hello"
    # the second upload of the same bytes sends nothing
    assert [put.size for put in puts] == [len(weights)] and len(commits) == 1
    assert said["oid"] == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"  # git hash-object of "hello"


UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().upload_folder(repo_id="tester/thing", folder_path=sys.argv[1])
"""
DOWNLOAD = """
from huggingface_hub import hf_hub_download
print(len(open(hf_hub_download("tester/thing", "weights.safetensors"), "rb").read()))
"""


def test_faults_come_as_often_as_ordered_and_a_broken_upload_holds_nothing(folder: Path, tmp_path: Path) -> None:
    with HubServer() as hub:
        hub.add("tester/thing")
        hub.fail("/commit/main", status=500)
        assert "500" in run(hub, tmp_path, UPLOAD, str(folder), code=1)
        assert hub.files("tester/thing") == {}
        hub.lose("/commit/main")
        run(hub, tmp_path, UPLOAD, str(folder), code=1)
        assert "a.txt" in hub.files("tester/thing")  # it was done, and nobody heard of it
        hub.cut("GET .*weights", after=11_000_000)
        assert run(hub, tmp_path, DOWNLOAD) == "12800000\n"
        answers = [asked.status for asked in hub.asked("GET .*weights")]
        assert answers == [200, 206]  # the rest was asked for, not the whole


def test_an_upload_cut_in_the_middle_is_sent_again(folder: Path, tmp_path: Path) -> None:
    with HubServer() as hub:
        hub.add("tester/thing")
        hub.cut("^PUT /objects", after=100_000)
        run(hub, tmp_path, UPLOAD, str(folder))
        assert [asked.status for asked in hub.asked("^PUT /objects")] == [0, 200]
        assert hub.files("tester/thing")["weights.safetensors"] == (folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(("token", "says"), [(None, "401"), (OTHER_TOKEN, "404"), ("hf_wrong", "Invalid credentials")])
def test_a_private_repository_is_not_there_for_others(token: str | None, says: str, tmp_path: Path) -> None:
    with HubServer() as hub:
        hub.add("tester/thing", {"weights.safetensors": b"w"}, private=True)
        assert says in run(hub, tmp_path, DOWNLOAD, token=token, code=1)
        assert run(hub, tmp_path, DOWNLOAD) == "1\n"
        hub.add("tester/thing", {"weights.safetensors": b"w"}, gated=True)
        assert run(hub, tmp_path / "other", DOWNLOAD, token=token, code=1)
