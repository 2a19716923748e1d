"""Uploads that break are finished: 5xx, time-outs, closed connections, interruptions, a Hub that keeps other bytes."""

import json
import signal
import subprocess
import sys
import time

FULL = {".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def test_broken_uploads_are_finished(pushed_run, hub, user):
    hub.fail("/repos/create", status=502)
    hub.hang("/preupload/", seconds=30)
    hub.cut("^PUT /objects", after=50_000)
    hub.fail("/commit/", status=500)
    hub.lose("/commit/")
    user.types("push", pushed_run, "tester/busy", "--timeout-s", "1").done()
    assert set(hub.files("tester/busy")) == FULL
    assert [asked.status for asked in hub.asked("^PUT /objects/model/tester%2Fbusy")] == [0, 200]
    assert len(hub.repos["model", "tester/busy"].commits) == 2  # the lost answer's commit was not made twice


def test_an_interrupted_push_is_finished_by_the_same_command(pushed_run, hub, user, tmp_path):
    line = [sys.executable, "-m", "laennec", "push", str(pushed_run), "tester/stopped"]
    hub.hang("stopped/commit/", seconds=100)
    process = subprocess.Popen(
        line,
        env=hub.environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        # whatever started the tests may have had them ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not hub.asked("stopped.*/verify") and process.poll() is None:  # the weights are there, the commit is not
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "run the same command again" in err, err
    assert set(hub.files("tester/stopped")) == {".gitattributes"}
    user.types(*line[3:]).done()
    assert set(hub.files("tester/stopped")) == FULL
    assert len(hub.asked("^PUT /objects/model/tester%2Fstopped")) == 1  # what had arrived is not sent again


def test_a_hub_that_keeps_other_bytes_is_found_out(pushed_run, hub, user):
    repo = hub.add("tester/other", private=True)
    honest = repo.commit

    def spoilt(branch, message, files, lfs):
        return honest(branch, message, files | {"preprocessor_config.json": b"{}"}, lfs)

    repo.commit = spoilt
    said = user.types("push", pushed_run, "tester/other", "--public")
    said.refused("tester/other", "preprocessor_config.json has other content")
    assert repo.private  # never opened


def test_a_download_that_breaks_goes_on(pushed_run, breath, hub, user, tmp_path):
    hub.add("tester/far", pushed_run / "model")
    hub.fail("HEAD /tester/far", status=500)
    hub.cut("GET /tester/far/.*safetensors", after=1000)
    # a head; where its author kept the base means nothing elsewhere
    base = json.loads((pushed_run / "model" / "config.json").read_text())["base_model_name_or_path"]
    user.types("predict", "tester/far", breath, "--out", tmp_path / "p", "--base", base).done()
    assert [asked.status for asked in hub.asked("GET /tester/far/.*safetensors")][-1] in (200, 206)
