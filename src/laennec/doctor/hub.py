"""Every stage, doctor: the Hub.

Decisions: nothing is asked of the network unless the caller says so, and a token is never shown, not even a part of
it: only whether there is one, and (online) whether the Hub takes it.
"""

import os

from laennec.doctor.finding import Finding, Verdict, finding, note, ok, problem

_ROOM = "Hub"
_PATIENCE_S = 10.0


def examine(online: bool = False) -> list[Finding]:
    """Say how the Hub is set up; `online` also asks it."""
    found = [
        finding(_ROOM, "endpoint", _endpoint, "pip install --force-reinstall huggingface_hub"),
        finding(_ROOM, "token", _token, "hf auth login"),
    ]
    if online:
        found.append(finding(_ROOM, "reached", _reached, "see the network, a proxy (HTTPS_PROXY) and HF_ENDPOINT"))
    return found


def _endpoint() -> Verdict:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return ok(f"{constants.ENDPOINT}, not used: HF_HUB_OFFLINE is set")
    return ok(f"{constants.ENDPOINT} (asked with --online)")


def _token() -> Verdict:
    from huggingface_hub import get_token

    if not get_token():
        return ok("none: public repositories can be loaded; for private ones and laennec push: hf auth login")
    place = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "hf auth login"
    return ok(f"there is one (from {place})")


def _reached() -> Verdict:
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import build_hf_headers, get_session

    if constants.HF_HUB_OFFLINE:
        return note("not asked: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE to have it asked")
    path = "whoami-v2" if get_token() else "models?limit=1"
    try:
        answer = get_session().get(f"{constants.ENDPOINT}/api/{path}", headers=build_hf_headers(), timeout=_PATIENCE_S)
    except Exception as error:  # whatever library it asks through
        said = " ".join(str(error).split())[:200]
        return problem(f"no answer ({type(error).__name__}: {said})", "see the network, HTTPS_PROXY and HF_ENDPOINT")
    if answer.status_code in (401, 403) and get_token():
        return problem("it answers, and refuses the token", "hf auth login, or set HF_TOKEN anew")
    if answer.status_code >= 400:
        return problem(f"it answers with status {answer.status_code}", "try again later, or see HF_ENDPOINT")
    return ok("it answers and takes the token" if get_token() else "it answers")
