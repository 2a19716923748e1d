"""Files are complete or absent, whatever happens while they are written."""

import errno
import io
import os
import resource
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from laennec.errors import InputError
from laennec.files import (
    atomic_folder,
    atomic_write,
    explain_write_errors,
    read_parquet,
    refuse_other_files,
    remove_stale_lock,
    writing_error,
)


def names(folder):
    return sorted(p.name for p in folder.rglob("*"))


@contextmanager
def small_files_only():
    """Limit the files of this process to 4 kB. Keep it short: the limit applies to pytest's own output, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_complete_with_default_permissions(tmp_path):
    path = tmp_path / "made" / "on the way" / "a.txt"
    with atomic_write(path) as file:
        file.write("ä")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "ä" and names(path.parent) == ["a.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("ours"), OSError(errno.ENOSPC, "full")])
def test_whatever_happens_while_writing_the_earlier_file_stays(tmp_path, error):
    (tmp_path / "a.txt").write_text("earlier")
    with pytest.raises((KeyboardInterrupt, RuntimeError, InputError)), atomic_write(tmp_path / "a.txt") as file:
        file.write("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "earlier" and names(tmp_path) == ["a.txt"]


def test_a_write_that_really_fails_is_one_line(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"earlier")
    said = pytest.raises(InputError, match=r"a\.bin: cannot write: the file grows larger than")
    with said as error, small_files_only(), atomic_write(tmp_path / "a.bin", "wb") as file:
        file.write(b"x" * 10_000)
    assert "\n" not in str(error.value)
    assert (tmp_path / "a.bin").read_bytes() == b"earlier" and names(tmp_path) == ["a.bin"]


def torch_save(folder):
    torch.save({"x": torch.zeros(5000)}, folder / "x.pt")


def safetensors_save(folder):
    save_file({"x": torch.zeros(5000)}, folder / "x.safetensors")


def numpy_save(folder):
    np.save(folder / "x.npy", np.zeros(5000))


@pytest.mark.parametrize("save", [torch_save, safetensors_save, numpy_save])
def test_write_errors_of_libraries_get_our_message_and_keep_the_earlier_folder(tmp_path, save):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "earlier").write_text("earlier")
    said = pytest.raises(InputError, match=r"out: cannot write: .*choose another folder")
    with said, small_files_only(), atomic_folder(tmp_path / "out") as folder:
        (folder / "first").write_text("whole")
        save(folder)
    assert names(tmp_path) == ["earlier", "out"]


def test_a_folder_replaces_the_earlier_one_whole(tmp_path):
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / content).write_text(content)
    assert names(tmp_path) == ["out", "two"]


def test_a_folder_that_cannot_be_renamed_keeps_the_earlier_one(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "earlier").write_text("earlier")
    original = os.replace

    def fails_at_the_last_step(source, target):
        if str(source).endswith(".part"):
            raise OSError(errno.EACCES, "no")
        original(source, target)

    monkeypatch.setattr(os, "replace", fails_at_the_last_step)
    with pytest.raises(InputError, match="no permission"), atomic_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == ["earlier", "out"]


def test_a_path_below_a_file_and_a_folder_in_the_way_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"file/x: cannot write: .*choose another"),
        atomic_write(tmp_path / "file" / "x"),
    ):
        pass
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match=r"folder: cannot write: there is a folder"), atomic_write(tmp_path / "folder"):
        pass
    assert names(tmp_path) == ["file", "folder", "inside"]


def test_other_errors_pass_unchanged():
    assert writing_error("x", RuntimeError("index out of range")) is None
    assert writing_error("x", OSError(errno.EINVAL, "bad")) is None
    with pytest.raises(ZeroDivisionError), explain_write_errors("x"):
        1 / 0  # noqa: B018
    with pytest.raises(InputError, match=r"^said already$"), explain_write_errors("x"):
        raise InputError("said already")


def test_a_folder_with_anything_of_others_is_refused(tmp_path):
    refuse_other_files(tmp_path / "absent", ["a"], "choose")
    (tmp_path / "config.json").write_text("")
    (tmp_path / "model-1.safetensors").write_text("")
    ours = ("config.json", "model*.safetensors")
    refuse_other_files(tmp_path, ours, "choose")
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(InputError, match=r"holds other files \(thesis\.txt\); choose another"):
        refuse_other_files(tmp_path, ours, "choose another")
    with pytest.raises(InputError, match="is a file"):
        refuse_other_files(tmp_path / "thesis.txt", ours, "choose another")


def test_weights_in_a_folder_have_default_permissions(tmp_path):
    mask = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "model") as temporary:
            save_file({"weight": torch.zeros(2)}, temporary / "model.safetensors")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "model" / "model.safetensors").stat().st_mode) == 0o640


KILLED = """
import os, signal, sys
from laennec.files import wait_for_lock
from laennec.files import atomic_folder, atomic_write
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
if "between" in sys.argv:  # the two renames that put a folder in another's place
    original = os.replace
    def once(source, target):
        original(source, target)
        if os.path.basename(source) == "out":
            kill()
    os.replace = once
with wait_for_lock("locked"):
    with atomic_folder("out") as folder, atomic_write("a.txt") as file:
        (folder / "inside").mkdir()
        (folder / "inside" / "x").write_text("half")
        file.write("half")
        file.flush()
        if "within" in sys.argv:
            kill()
    kill()
"""


@pytest.mark.parametrize("where", ["within", "between", "after"])
def test_leftovers_of_a_kill_are_removed_by_the_next_write(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "earlier").write_text("earlier")
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, where])
        assert killed.returncode == -signal.SIGKILL
        assert len([p for p in tmp_path.iterdir() if p.name.startswith(".")]) <= 4  # they do not accumulate
    if where == "within":
        assert names(tmp_path / "out") == ["earlier"] and not (tmp_path / "a.txt").exists()
    remove_stale_lock(tmp_path / "locked")
    with atomic_folder("out") as folder:
        assert (tmp_path / "out").is_dir()
        (folder / "new").write_text("new")
    with atomic_write("a.txt") as file:
        file.write("whole")
    assert names(tmp_path) == ["a.txt", "new", "out"] and (tmp_path / "a.txt").read_text() == "whole"


def test_two_writers_of_one_file_do_not_use_each_others_temporary_files(tmp_path):
    path = tmp_path / "a"
    with atomic_write(path) as one:
        one.write("one")
        with atomic_write(path) as other:
            other.write("other")
        assert path.read_text() == "other" and len(names(tmp_path)) == 2
    assert path.read_text() == "one" and names(tmp_path) == ["a"]
    path.unlink()
    with atomic_folder(path) as one:
        (one / "one").write_text("")
        with atomic_folder(path) as other:
            (other / "other").write_text("")
        assert names(path) == ["other"]
    assert names(tmp_path) == ["a", "one"]


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".a.part").symlink_to(tmp_path / "precious")
    with atomic_write(tmp_path / "a") as file:
        file.write("new")
    assert (tmp_path / "a").read_text() == "new" and (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "a").is_symlink()


def test_no_flipped_bit_of_a_parquet_file_changes_or_leaves_out_a_row(tmp_path):
    """Parquet has checksums for pages, but not for the footer, where a flipped bit can drop rows."""
    table = pa.table({"recording": [f"r{number}" for number in range(9)], "probability": np.linspace(0, 1, 9)})
    pq.write_table(table, tmp_path / "whole.parquet", write_page_checksum=True)
    whole, refused = (tmp_path / "whole.parquet").read_bytes(), 0
    for place in range(len(whole)):
        for bit in range(8):
            changed = whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
            try:
                read = read_parquet(io.BytesIO(changed))
            except (OSError, ValueError, LookupError, pa.ArrowException):
                refused += 1
            else:
                # the callers check names and types of the columns
                assert read.schema != table.schema or read.equals(table), (place, bit)
    assert refused > len(whole)
