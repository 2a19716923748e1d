"""Errors of the Hub client become one reason and a remedy, also when other errors wrap them."""

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from laennec.errors import InputError, hub_reason, will_pass


def answered(status, kind=HfHubHTTPError, said="no"):
    request = httpx.Request("GET", "http://127.0.0.1/api/models/a/b")
    return kind(said, response=httpx.Response(status, request=request))


CASES = [
    (answered(404, RepositoryNotFoundError), "no such repository, or it is private", False),
    (answered(403, GatedRepoError), "granted by its owners", False),
    (answered(404, RevisionNotFoundError), "no such revision", False),
    (answered(401, said="Invalid credentials in Authorization header"), "token is wrong", False),
    (answered(403), "write access", False),
    (answered(503), "temporary problem (HTTP 503)", True),
    (answered(429), "temporary problem (HTTP 429)", True),
    (OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE", False),
    (httpx.ConnectError("refused"), "cannot be reached", True),
    (httpx.ReadTimeout("slow"), "cannot be reached", True),
    (httpx.RemoteProtocolError("cut"), "cannot be reached", True),
    (LocalEntryNotFoundError("nothing cached"), "cannot be reached", True),
    (answered(400), None, False),
    (ValueError("something else"), None, False),
]


@pytest.mark.parametrize(("error", "says", "passes"), CASES, ids=lambda v: type(v).__name__)
def test_the_reason_is_found_behind_other_errors(error, says, passes):
    try:
        try:
            raise error
        except Exception as first:
            raise RuntimeError("while uploading") from first
    except RuntimeError as wrapped:
        for each in (error, wrapped):
            reason = hub_reason(each)
            assert reason is None if says is None else says in reason
            assert will_pass(each) is passes


def test_a_cycle_of_error_causes_ends():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert hub_reason(one) is None and not will_pass(InputError("mine"))
