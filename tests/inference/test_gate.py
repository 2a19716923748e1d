"""What every request passes through: its size counted whatever it says, its answer closed to other machines."""

import asyncio

import pytest

from laennec.inference.gate import Gate, headers


async def echo(scope, receive, send):
    """Says how many bytes arrived."""
    total = 0
    while True:
        message = await receive()
        total += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"Referrer-Policy", b"unsafe-url")]})
    await send({"type": "http.response.body", "body": str(total).encode()})


def ask(gate, *bodies, kind="http", path="/", stated=None):
    waiting = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    waiting[-1]["more_body"] = False
    said = []

    async def receive():
        return waiting.pop(0)

    async def send(message):
        said.append(message)

    headers = [] if stated is None else [(b"content-length", stated)]
    asyncio.run(gate({"type": kind, "path": path, "headers": headers}, receive, send))
    return said


def test_a_request_passes_and_its_answer_forbids_other_machines():
    start, body = ask(Gate(echo, 100, framed=False), b"a" * 60, b"b" * 40)
    assert start["status"] == 200 and body["body"] == b"100"
    found = {key.lower(): value.decode() for key, value in start["headers"]}
    assert found[b"referrer-policy"] == "no-referrer" and len(found) == len(start["headers"])
    policy = dict(part.strip().split(" ", 1) for part in found[b"content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'" and policy["frame-ancestors"] == "'self'"
    assert not any("*" in value or "http" in value for value in policy.values())


def test_a_request_that_grows_is_cut_off():
    start, body = ask(Gate(echo, 100), b"a" * 60, b"b" * 41, b"c" * 1000)
    assert start["status"] == 413 and b"100 bytes" in body["body"]


def test_a_request_that_says_it_is_large_is_refused_before_it_is_read():
    for stated in (b"101", b"-1", b"1e9", b""):
        assert ask(Gate(lifespan, 100), b"", stated=stated)[0]["status"] == 413
    assert ask(Gate(echo, 100), b"", stated=b"100")[0]["status"] == 200


def test_only_what_the_page_needs_is_there():
    for path in ("/", "/config", "/assets/index-1.js", "/gradio_api/queue/join", "/gradio_api/heartbeat/a1b2"):
        assert ask(Gate(echo, 100), b"", path=path)[0]["status"] == 200, path
    for path in ("/docs", "/openapi.json", "/gradio_api/info", "/gradio_api/proxy=http://a.b/", "/monitoring/x", "//"):
        assert ask(Gate(lifespan, 100), b"", path=path)[0]["status"] == 404, path


def test_a_space_can_be_framed_by_its_hub(monkeypatch):
    assert b"frame-ancestors" not in dict(headers(framed=True))[b"content-security-policy"]
    monkeypatch.setenv("SPACE_ID", "somebody/something")
    assert Gate(echo, 1).headers == headers(framed=True)


def test_what_is_no_request_passes_untouched():
    with pytest.raises(IndexError):  # a lifespan's messages are not ours to count
        ask(Gate(lifespan, 1), b"", kind="lifespan")


async def lifespan(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await receive()
