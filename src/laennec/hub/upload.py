"""Upload files of a folder to the Hub in one commit, and verify what the Hub then holds.

Decisions: one commit contains all files, so nobody loads an incomplete model. Requests that fail for a temporary reason
are repeated after growing pauses. The Hub's hashes are compared with the files on disk before the upload counts as
done, and a repository stays private until then.
"""

import glob
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from laennec.errors import InputError, hub_reason, will_pass

TIMEOUT_S = 60.0
PAUSES_S = (1.0, 2.0, 4.0, 8.0)
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Uploaded:
    """Files in a repository of the Hub."""

    url: str  # address of the repository
    commit: str  # hash of the commit with the files
    private: bool  # whether the repository is private
    files: list[str]  # the files, by their path in the repository
    left: tuple[str, ...] = ()  # files of the folder that were not uploaded, because they are not files of a model


def check_repo_name(repo: str) -> None:
    """Raise for an invalid name of a repository."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if "/" not in repo:
        raise InputError(
            f"{repo}: the owner is missing; write OWNER/{repo or 'NAME'}, with your name on the Hub as OWNER"
        )
    try:
        if not repo.isascii():  # huggingface_hub 1.31 takes any letters
            raise HFValidationError(repo)
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(
            f"{repo}: not a valid name of a repository; write OWNER/NAME with letters, digits, '-', '_' and '.' (not "
            "doubled, not at the ends), at most 96 characters"
        ) from error


def find_token(repo: str, token: str | None = None) -> str:
    """The token to write with: the given one, HF_TOKEN, or the one of the login."""
    from huggingface_hub import get_token

    found = token or get_token()
    if found is None:
        raise InputError(f"{repo}: no token; log in (hf auth login) or set HF_TOKEN to a token with write access")
    return found


def upload(
    folder: str | Path,
    files: Sequence[str],
    repo: str,
    *,
    kind: str = "model",
    revision: str | None = None,
    public: bool = False,
    replaces: Sequence[str] = (),
    token: str | None = None,
    message: str | None = None,
    timeout_s: float = TIMEOUT_S,
    pauses_s: Sequence[float] = PAUSES_S,
) -> Uploaded:
    """Upload files of a folder in one commit, and compare them with the Hub's hashes.

    Args:
        folder: The folder.
        files: Paths of the files below it, which become their paths in the repository.
        repo: OWNER/NAME; created, private, if it does not exist.
        kind: "model" or "dataset".
        revision: The branch; created from main if it does not exist. None for main.
        public: Whether to make the repository public after the upload; an existing one keeps its visibility otherwise.
        replaces: Patterns of files in the repository that are deleted if they are not among `files`.
        token: None for HF_TOKEN or the token of the login.
        message: Commit message; None for a default.
        timeout_s: Time limit of a request, in seconds.
        pauses_s: Pauses before the repetitions of a request, in seconds.
    """
    from huggingface_hub import HfApi

    check_repo_name(repo)
    folder = Path(folder)
    api = HfApi(token=find_token(repo, token))

    def ask(request: Callable[[], _Result]) -> _Result:
        return send(repo, request, pauses_s, timeout_s)

    ask(api.whoami)
    ask(lambda: api.create_repo(repo, repo_type=kind, private=True, exist_ok=True))
    if revision:
        ask(lambda: api.create_branch(repo, repo_type=kind, branch=revision, exist_ok=True))
    done = ask(
        lambda: api.upload_folder(
            repo_id=repo,
            repo_type=kind,
            revision=revision,
            folder_path=folder,
            allow_patterns=[glob.escape(path) for path in files],
            delete_patterns=list(replaces),
            commit_message=message or f"Upload {len(files)} files with laennec",
        )
    )
    held = ask(lambda: api.verify_repo_checksums(repo, repo_type=kind, revision=done.oid, local_dir=folder))
    wrong = dict.fromkeys(held.extra_paths, "is missing")
    wrong |= {one["path"]: "has other content" for one in held.mismatches}
    if path := next(filter(wrong.__contains__, files), None):
        raise InputError(f"{repo}: after the upload {path} {wrong[path]} on the Hub; run the same command again")
    if public:
        ask(lambda: api.update_repo_settings(repo, repo_type=kind, private=False))
    info = ask(lambda: api.repo_info(repo, repo_type=kind))
    url = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    return Uploaded(f"{url}/tree/{revision}" if revision else url, str(done.oid), bool(info.private), sorted(files))


def send(
    repo: str, request: Callable[[], _Result], pauses_s: Sequence[float] = (), timeout_s: float = TIMEOUT_S
) -> _Result:
    """Send a request to the Hub, and repeat it after pauses while its failure may be temporary."""
    from huggingface_hub.utils import get_session

    for pause in (*pauses_s, None):
        try:
            get_session().timeout = timeout_s  # the client has none by default
            return request()
        except InputError:
            raise
        except Exception as error:
            if pause is None or not will_pass(error):
                reason = hub_reason(error) or _server_message(error)
                if reason is None:
                    raise
                raise InputError(f"{repo}: {reason}") from error
            reason = str(hub_reason(error)).split(";")[0]
            _log.warning("%s: %s; next attempt in %g s", repo, reason, pause)
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _server_message(error: Exception) -> str | None:
    """The Hub's reason for rejecting a request, in one line; None for other errors."""
    response = getattr(error, "response", None)
    if response is None and "metadata in README.md" not in str(error):
        return None
    message = getattr(error, "server_message", None) or str(error)
    return f"the Hub rejected the request: {' '.join(message.split())[:300]}"
