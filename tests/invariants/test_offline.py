"""No local command needs the network or tries to use it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request

import pytest
import yaml

from network_guard import LOG, is_here

COMMANDS = """
import json, sys
from laennec.cli.main import main
print(json.dumps([main(line) for line in json.loads(sys.argv[1])]))
"""


def online_environment(log):
    """Environment of a machine with a network: no variable sets a library offline or turns telemetry off."""
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
    telling = ("DISABLE_TELEMETRY", "DO_NOT_TRACK", "GRADIO_ANALYTICS_ENABLED")
    return {k: v for k, v in os.environ.items() if k not in (*offline, *telling)} | {LOG: str(log)}


def without_network():
    """Prefix that runs a command in an empty network namespace, or [] where the system does not allow it."""
    for command in (["unshare", "-n"], ["unshare", "-r", "-n"]):
        if shutil.which("unshare") and not subprocess.run([*command, "true"], capture_output=True).returncode:
            return command
    return []


def test_the_guard_of_this_suite_refuses_other_machines_here_and_in_processes(tmp_path, monkeypatch):
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    for address in (("192.0.2.1", 80), ("example.org", 443), ("2001:db8::1", 80)):
        with pytest.raises(PermissionError, match="the network is closed"):
            socket.create_connection(address, timeout=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, pytest.raises(PermissionError):
        sender.sendto(b"hello", ("192.0.2.1", 53))
    asks = "import urllib.request; urllib.request.urlopen('http://192.0.2.1/', timeout=1)"
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True)
    assert done.returncode and "the network is closed" in done.stderr
    assert len((tmp_path / "log").read_text().splitlines()) == 5
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
    assert is_here("/run/socket") and is_here(("::1", 1, 0, 0)) and not is_here(("10.0.0.1", 1))


def test_the_work_from_corpus_to_report_asks_for_no_network(small_corpus, tiny_recipe, tmp_path):
    """Without HF_HUB_OFFLINE, and without any network where the system allows it."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny_recipe))
    run, model = str(tmp_path / "run"), str(tmp_path / "model")
    lines = [
        ["prepare", "synthetic", "--data-dir", str(small_corpus)],
        ["train", str(tmp_path / "r.yaml"), "--output_dir", run],
        ["evaluate", run],
        ["export", run, "--out", model],
        ["predict", model, str(small_corpus), "--out", str(tmp_path / "out")],
        ["report", run],
        ["card", run],
    ]
    done = subprocess.run(
        [*without_network(), sys.executable, "-c", COMMANDS, json.dumps(lines)],
        env=online_environment(tmp_path / "log"), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [0] * len(lines)
    assert not (tmp_path / "log").exists(), (tmp_path / "log").read_text()


def test_the_page_asks_for_no_network(tiny_run, tmp_path):
    """By default, Gradio looks up its newest version and reports each start."""
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "laennec", "app", str(tiny_run), "--port", str(port)]
    served = subprocess.Popen(
        command, env=online_environment(tmp_path / "log"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert any(line.startswith("page: ") for line in served.stdout)
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).read().decode()
        assert "gradio" in page
    finally:
        served.kill()
        served.communicate()
    assert not (tmp_path / "log").exists(), (tmp_path / "log").read_text()
