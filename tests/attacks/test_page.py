"""Hostile requests to the web page: too many, too large, for other host names, or for other files."""

import contextlib
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time

import httpx
import pytest

from forked import Forked
from laennec.cli.main import main
from laennec.inference.page import app, server

pytest.importorskip("gradio")  # imported here, so that forked processes have it already
WAIT_S = 120  # generous: a busy machine must not fail a test
FILES = 1024  # limit of open files of the server process
BOUNDARY = b"--stranger\r\nContent-Disposition: form-data; name="
UPLOAD = "POST /gradio_api/upload HTTP/1.1\r\nHost: {}\r\nContent-Type: multipart/form-data; boundary=stranger\r\n"


class Served:
    """The web page in a forked process; its folder has the uploads, the log and `busy`, which blocks predictions."""

    def __init__(self, run, folder):
        self.folder, self.log = folder, folder / "log"
        self.process = Forked(lambda: self.serve(run))
        wait_for(lambda: "page: " in self.said() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()
        self.address = self.said().partition("page: ")[2].split()[0]
        self.host = self.address.removeprefix("http://")

    def serve(self, run):
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
        said = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(said, 1), os.dup2(said, 2)
        tempfile.tempdir = str(self.folder)
        predict, busy = app.predict_html, self.folder / "busy"

        def slow(*given):
            while busy.exists():
                time.sleep(0.01)
            return predict(*given)

        app.predict_html = slow
        return main(["app", str(run), "--max-mb", "2", "--max-total-mb", "5", "--allow-host", "Lungs.Example"])

    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    @property
    def kept(self):
        (folder,) = self.folder.glob("laennec-app-*")
        return folder

    def uploads(self):
        return [path for path in self.kept.rglob("*") if path.is_file()]

    def upload(self, content, field="files"):
        return httpx.post(f"{self.address}/gradio_api/upload", files={field: ("a.wav", content)}, timeout=WAIT_S)

    def answers(self):
        return httpx.get(f"{self.address}/config", timeout=WAIT_S).status_code == 200

    def connect(self, words=b""):
        """A connection that sends some bytes."""
        host, port = self.host.split(":")
        connection = socket.create_connection((host, int(port)), timeout=WAIT_S)
        with contextlib.suppress(ConnectionError):
            connection.sendall(words)
        return connection


def wait_for(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def served(tiny_run, tmp_path_factory):
    page = Served(tiny_run, tmp_path_factory.mktemp("page"))
    yield page
    page.process.kill()
    page.process.done()


@pytest.fixture(autouse=True)
def _no_uploads(request):
    """Delete all uploads before every test."""
    if "served" in request.fixturenames:
        for folder in request.getfixturevalue("served").kept.iterdir():
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


@pytest.fixture
def many_files():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(4096, before[1])), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


UNFINISHED = {
    "nothing": b"",
    "half a header": b"GET / HTTP/1.1\r\nHo",
    "half a body": UPLOAD.format("localhost").encode() + b"Content-Length: 9999\r\n\r\n" + BOUNDARY,
    "an endless answer": b"GET /gradio_api/heartbeat/a HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("words", UNFINISHED.values(), ids=UNFINISHED)
def test_more_unfinished_requests_than_open_files_block_no_other_request(served, many_files, words):
    logged = len(served.said())
    with contextlib.ExitStack() as stack:
        for _ in range(FILES + 76):
            stack.enter_context(served.connect(words))
        assert served.answers()
    assert served.answers() and served.process.poll() is None
    assert len(served.said()) - logged < 10_000
    wait_for(lambda: not served.uploads())


FOREIGN = {
    "host": ({"Host": "evil.example"}, 400),
    "host that begins with ours": ({"Host": "127.0.0.1.evil.example"}, 400),
    "host that is no name": ({"Host": "evil example"}, 400),
    "origin": ({"Origin": "https://evil.example"}, 403),
    "origin of a frame without one": ({"Origin": "null"}, 403),
    "origin that is no address": ({"Origin": "http://[evil"}, 403),
    "host of a proxy": ({"X-Forwarded-Host": "evil.example"}, 403),
    "host of another Gradio": ({"X-Gradio-Server": "http://evil.example"}, 403),
}


@pytest.mark.parametrize(("headers", "status"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("path", ["", "config", "gradio_api/upload"])
def test_an_unknown_host_name_is_refused(served, headers, status, path):
    files = {"files": ("a.wav", b"sound")} if "upload" in path else None
    answer = httpx.request("POST" if files else "GET", f"{served.address}/{path}", headers=headers, files=files)
    assert answer.status_code == status and "evil" not in answer.text + str(answer.headers) and not served.uploads()


def test_a_request_without_a_host_is_refused(served):
    with served.connect(b"GET /config HTTP/1.0\r\n\r\n") as page:
        assert page.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "lungs.example"])
def test_the_names_of_the_page_are_served(served, name):
    port = served.host.split(":")[1]
    headers = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
    answer = httpx.get(f"{served.address}/config", headers=headers)
    assert answer.status_code == 200 and f"http://{name}:{port}" in answer.text


def test_uploads_together_have_a_limit(served):
    answers = [served.upload(bytes([number]) * 1_900_000) for number in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 413]
    assert answers[2].text == (
        "The maximum allowed size of all uploads together, 5 MB, is reached; try again in 10 minutes."
    )
    assert len(served.uploads()) == 2
    served.uploads()[0].unlink()
    assert served.upload(b"a" * 900_000).status_code == 200


def test_uploads_that_arrive_during_an_upload_count(served):
    begin = BOUNDARY + b'"files"; filename="a.wav"\r\n\r\n'
    words = UPLOAD.format(served.host).encode() + b"Content-Length: 1900000\r\n\r\n" + begin
    with served.connect(words) as slow:
        wait_for(served.uploads)
        assert [served.upload(bytes([number]) * 1_900_000).status_code for number in range(2)] == [200, 200]
        slow.sendall(bytes(1_900_000 - len(begin)))
        assert b" 413 " in slow.recv(100)
    wait_for(lambda: len(served.uploads()) == 2)


TOO_LARGE = {
    "one file": ("/gradio_api/upload", [2_200_000]),
    "several files": ("/gradio_api/upload", [1_900_000] * 3),
    "words for the model": ("/gradio_api/queue/join", [2_000_000]),
}


@pytest.mark.parametrize(("path", "sizes"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_request_that_is_too_large_leaves_nothing(served, path, sizes):
    sent = [("files", ("a.wav", bytes([place]) * size)) for place, size in enumerate(sizes)]
    assert httpx.post(served.address + path, files=sent, timeout=WAIT_S).status_code == 413
    assert not served.uploads()


def test_many_small_files_count_as_what_they_take_of_a_disk(served):
    sent = [[("files", ("a", b"%d %d" % (request, file))) for file in range(900)] for request in range(3)]
    answers = [httpx.post(f"{served.address}/gradio_api/upload", files=files, timeout=WAIT_S) for files in sent]
    assert [answer.status_code for answer in answers] == [200, 200, 413] and len(served.uploads()) == 1800


def test_only_uploads_may_have_no_content_length(served):
    answer = httpx.post(f"{served.address}/gradio_api/queue/join", content=iter([b"{"]), timeout=WAIT_S)
    assert answer.status_code == 413


@pytest.mark.parametrize("length", ["Content-Length: 999999\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nfff\r\n"])
def test_an_aborted_upload_leaves_no_file(served, length):
    begin = BOUNDARY + b'"files"; filename="a.wav"\r\n\r\n' + b"sound" * 200
    with served.connect(UPLOAD.format(served.host).encode() + length.encode() + begin):
        wait_for(served.uploads)
    wait_for(lambda: not served.uploads())
    assert served.answers() and "Traceback" not in served.said()


@pytest.fixture
def uploaded(served, small_corpus):
    """Path of an uploaded recording on the server."""
    return served.upload(sorted(small_corpus.glob("*.wav"))[0].read_bytes()).json()[0]


def file_data(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def ask(served, data, path="/gradio_api/queue/join"):
    body = {"data": data, "fn_index": 0, "session_hash": "stranger"}
    return httpx.post(served.address + path, json=body, timeout=WAIT_S)


def test_a_recording_that_was_uploaded_is_predicted(served, uploaded):
    assert ask(served, [file_data(uploaded), None]).status_code == 200
    with httpx.stream("GET", f"{served.address}/gradio_api/queue/data?session_hash=stranger", timeout=WAIT_S) as said:
        assert next(line for line in said.iter_lines() if "process_completed" in line).count("Prediction for a.wav")
    assert httpx.get(f"{served.address}/gradio_api/file={uploaded}").status_code == 200


OTHER_FILES = {
    "a file of the server": "{private}",
    "a way out of the uploads": "{kept}/../private.txt",
    "a relative way": "private.txt",
    "a file address": "file://{private}",
    "an address": "http://evil.example/a.wav",
    "an address that leads back": "https://evil.example/../../../../../../..{kept}/a.wav",
    "a NUL": "{kept}/a\0.wav",
}


@pytest.mark.parametrize("name", OTHER_FILES.values(), ids=OTHER_FILES)
@pytest.mark.parametrize("place", ["recording", "annotation", "inside", "run", "file", "upload"])
def test_a_request_names_no_file_but_uploads(served, uploaded, name, place):
    (served.folder / "private.txt").write_text("0.1 0.2 private\n")
    path = name.format(private=served.folder / "private.txt", kept=served.kept)
    before = served.uploads()
    if place in ("file", "upload"):  # the latter looks like the upload address
        link = path.replace("\0", "%00") + ("/upload" if place == "upload" else "")
        answer = httpx.get(f"{served.address}/gradio_api/file={link}", timeout=WAIT_S)
        assert answer.status_code in (403, 404)  # httpx removes ".." from addresses
    else:
        given = {
            "recording": [file_data(path), None],
            "inside": [{**file_data(uploaded), "more": [[file_data(path)]]}, None],
        }.get(place, [file_data(uploaded), file_data(path)])
        answer = ask(served, given, "/gradio_api/run/upload" if place == "run" else "/gradio_api/queue/join")
        assert answer.status_code == 403 and answer.text == "The request names a file that was not uploaded."
    assert "private" not in answer.text and served.uploads() == before


@pytest.mark.parametrize(
    "body", [b"{", b"[" * 100_000, b"--stranger\r\n", b"\xff"], ids=["cut", "deep", "form", "bytes"]
)
def test_a_request_that_is_no_json_is_refused(served, body):
    assert httpx.post(f"{served.address}/gradio_api/queue/join", content=body, timeout=WAIT_S).status_code == 400


@pytest.mark.parametrize("depth", [1, 900])
def test_the_files_of_a_deep_request_take_no_longer_to_find(depth):
    content, events = [{"path": "x"}] * 1000, []
    for _ in range(depth):
        content = [content]
    sys.setprofile(lambda _, event, argument: events.append(event))
    try:
        found = server._paths_in(content)
    finally:
        sys.setprofile(None)
    assert found == ["x"] * 1000 and len(events) < 20 * (1000 + depth)


@pytest.mark.parametrize("name", [7, None, True, ["x"], {"path": "x"}])
def test_a_file_path_that_is_no_string_is_refused(served, name):
    answer = ask(served, [file_data("/x") | {"path": name}, None])
    assert answer.status_code == 403 and "Traceback" not in served.said()


def test_old_uploads_are_deleted_even_if_unknown(served):
    assert served.upload(b"kept by Gradio").status_code == 200
    assert served.upload(b"known to nobody", "another").json() == []
    assert server.keep_recent(served.kept, 600) == 2 * 4096 and len(served.uploads()) == 2
    assert server.keep_recent(served.kept, -60) == 0 and list(served.kept.iterdir()) == []


def test_a_full_queue_says_when_to_come_again(served):
    (served.folder / "busy").touch()
    body = {"data": [None, None], "fn_index": 0, "session_hash": "stranger"}
    try:
        for _ in range(40):
            answer = httpx.post(f"{served.address}/gradio_api/queue/join", json=body, timeout=WAIT_S)
            if answer.status_code != 200:
                break
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "30" and "full" in answer.text
    finally:
        (served.folder / "busy").unlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_ended_leaves_no_folder(tiny_run, tmp_path, number):
    page = Served(tiny_run, tmp_path)
    assert page.upload(b"sound").status_code == 200 and len(page.uploads()) == 1
    with page.connect(b"GET /gradio_api/heartbeat/a HTTP/1.1\r\nHost: localhost\r\n\r\n") as waiting:
        assert waiting.recv(12) == b"HTTP/1.1 200"
        page.process.send_signal(number)
        code = page.process.done(WAIT_S).returncode
    assert code == {signal.SIGTERM: 143, signal.SIGINT: 0}[number]
    assert list(tmp_path.glob("laennec-app-*")) == [] and "Traceback" not in page.said()
