"""The comparison with other libraries; what it measures is measured by `python -m benchmarks.peers` alone."""

from benchmarks import peers
from laennec.errors import InputError


def test_a_peer_that_cannot_be_installed_is_a_row_with_the_reason_and_the_others_are_measured(tmp_path, monkeypatch):
    def environment(name, peer, folder):
        if name == "bacpipe":
            raise InputError("cannot be installed: it depends on torch==2.6")
        return folder / name

    def measure(python, side, job, clips):
        if (side, job) == ("speechbrain", "train"):
            raise InputError("train failed: RuntimeError: needs a GPU")
        return {"cpu_s": 2.0 if side == "laennec" else 4.0, "before_s": 1.0, "peak_mb": 100.0}

    monkeypatch.setattr(peers, "environment", environment)
    monkeypatch.setattr(peers, "measure", measure)
    clips = [{"path": "a.wav"}] * (peers.FIRST * peers.CLIPS_OF_A_RECORDING + 16)
    rows = {row.name: row for row in peers.compare(["speechbrain", "bacpipe"], clips, tmp_path, 2)}
    assert [row.ratio for row in rows.values()] == [0.5, 1.0, None, None]
    assert rows["embed 16 clips: speechbrain==1.1.2"].other == 4.0
    assert rows["bacpipe"].note == "not measured here: cannot be installed: it depends on torch==2.6"
    epoch = rows["one training epoch over 16 clips: speechbrain==1.1.2"]
    assert (epoch.ours, epoch.other, epoch.note) == (
        2.0,
        None,
        "not measured here: train failed: RuntimeError: needs a GPU",
    )


def test_the_reason_is_the_resolvers_sentence_or_the_last_line_of_an_error():
    resolver = "error: No solution found\n  cause: Because all versions of x depend on torch==2.6, it cannot be.\n"
    assert peers._why(resolver) == "Because all versions of x depend on torch==2.6, it cannot be."
    assert peers._why("Traceback\n  a line\nOSError: no | network\n") == "OSError: no / network"
