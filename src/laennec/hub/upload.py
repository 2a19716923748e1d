"""Stage 10, the Hub: a folder's files to a repository, whole, and compared afterwards.

Decisions: one commit holds all files or none, so that nobody loads half a model. What fails for a reason that may
pass (5xx, a time-out, a broken connection) is tried again after growing pauses; what was uploaded before an
interruption is not sent again by the next call, since the Hub knows large files by their sha256. The Hub's own record
of the files is compared with those on disk before anything counts as done, and a repository is private until then: it
is opened, where that was asked for, as the last step. Files are named one by one: a folder's other content never
leaves the machine.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from laennec.errors import InputError, hub_reason, will_pass

PAUSES_S = (1.0, 2.0, 4.0, 8.0)
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?")
_LONGEST_NAME = 96
_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Uploaded:
    """A repository that holds a folder's files.

    Attributes:
        url: Its address.
        commit: The hash of the commit that holds them.
        private: Whether it is closed to others.
        files: The files, by their path in the repository.
    """

    url: str
    commit: str
    private: bool
    files: list[str]


def check_repo_name(repo: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        InputError: It has no namespace, or characters that the Hub does not take.
    """
    namespace, slash, name = repo.partition("/")
    if not slash:
        raise InputError(f"{repo}: names no owner; write OWNER/{repo or 'NAME'}, where OWNER is your name on the Hub")
    fine = all(_NAME.fullmatch(part) and "--" not in part and ".." not in part for part in (namespace, name))
    if not fine or name.endswith(".git") or len(repo) > _LONGEST_NAME:
        raise InputError(
            f"{repo}: no name for a repository; letters, digits, '-', '_' and '.' (not doubled, not at the ends), at "
            f"most {_LONGEST_NAME} characters, as OWNER/NAME"
        )


def find_token(repo: str, token: str | None = None) -> str:
    """The token to write with: the one given, HF_TOKEN or that of the login.

    Raises:
        InputError: There is none.
    """
    from huggingface_hub import get_token

    found = token or get_token()
    if found is None:
        raise InputError(f"{repo}: no token; log in (hf auth login) or set HF_TOKEN to one with write access")
    return found


def upload(
    folder: str | Path,
    files: Sequence[str],
    repo: str,
    *,
    kind: str = "model",
    revision: str | None = None,
    private: bool | None = None,
    replaces: Sequence[str] = (),
    token: str | None = None,
    message: str | None = None,
    timeout_s: float = 60.0,
    pauses_s: Sequence[float] = PAUSES_S,
) -> Uploaded:
    """Upload files of a folder in one commit, and compare what the Hub then holds.

    Args:
        folder: Where they are.
        files: Their paths below it, which are those in the repository.
        repo: OWNER/NAME; made, private, if it is not there.
        kind: "model" or "dataset".
        revision: The branch; made from main if it is not there. None for main.
        private: False opens the repository once it holds the files, True closes it before; None leaves one that was
            there as it is.
        replaces: Patterns of files in the repository that go if they are not among `files`.
        token: None for HF_TOKEN or that of the login.
        message: The commit's; None for a plain one.
        timeout_s: How long a request may wait for an answer before it is tried again.
        pauses_s: How long to wait before each further try.

    Returns:
        Where the files are. Where the Hub held them already, nothing was sent.

    Raises:
        InputError: A name that cannot be, no token or a wrong one, no right to write, no network, a Hub that stays out
            of order, or one that holds other bytes than were sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import get_session

    check_repo_name(repo)
    folder = Path(folder)
    api = HfApi(token=find_token(repo, token))

    def ask(request: Callable[[], _Answer]) -> _Answer:
        def patiently() -> _Answer:
            get_session().timeout = timeout_s  # the client's own is to wait for ever
            return request()

        return _ask(repo, patiently, pauses_s)

    ask(api.whoami)
    ask(lambda: api.create_repo(repo, repo_type=kind, private=True, exist_ok=True))
    if private:
        ask(lambda: api.update_repo_settings(repo, repo_type=kind, private=True))
    if revision:
        ask(lambda: api.create_branch(repo, repo_type=kind, branch=revision, exist_ok=True))

    def commit() -> Any:
        there = api.list_repo_files(repo, repo_type=kind, revision=revision)
        gone = [path for path in there if path not in files and any(fnmatch(path, p) for p in replaces)]
        # made anew for each try: those of a failed one cannot be committed again
        added = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(folder / path)) for path in files]
        return api.create_commit(
            repo,
            [*added, *(CommitOperationDelete(path_in_repo=path) for path in gone)],
            commit_message=message or f"Upload {len(files)} files with laennec",
            repo_type=kind,
            revision=revision,
        )

    done = ask(commit)
    _compare(folder, files, {f.path: f for f in ask(lambda: list(_tree(api, repo, kind, done.oid)))}, repo)
    if private is False:
        ask(lambda: api.update_repo_settings(repo, repo_type=kind, private=False))
    info = ask(lambda: api.repo_info(repo, repo_type=kind))
    url = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    return Uploaded(f"{url}/tree/{revision}" if revision else url, str(done.oid), bool(info.private), sorted(files))


def _ask(repo: str, request: Callable[[], _Answer], pauses_s: Sequence[float]) -> _Answer:
    """The answer to a request, which is repeated while its failure may pass."""
    for pause in (*pauses_s, None):
        try:
            return request()
        except InputError:
            raise
        except Exception as error:
            if pause is None or not will_pass(error):
                reason = hub_reason(error) or _own_words(error)
                if reason is None:
                    raise
                raise InputError(f"{repo}: {reason}") from error
            trouble = str(hub_reason(error)).split(";")[0]
            _log.warning("%s: %s; next try in %g s", repo, trouble, pause)
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _own_words(error: Exception) -> str | None:
    """The Hub's own reason for a refusal, in one line; None where it was not the Hub that refused."""
    response = getattr(error, "response", None)
    if response is None and "metadata in README.md" not in str(error):
        return None
    said = getattr(error, "server_message", None) or str(error)
    return f"the Hub refuses it: {' '.join(said.split())[:300]}"


def _tree(api: Any, repo: str, kind: str, commit: str) -> Any:
    return (f for f in api.list_repo_tree(repo, repo_type=kind, recursive=True, revision=commit) if hasattr(f, "size"))


def _compare(folder: Path, files: Sequence[str], held: dict[str, Any], repo: str) -> None:
    """Require that the Hub's record of each file is that of the file on disk."""
    for path in files:
        there = held.get(path)
        if there is None or not _is_same(folder / path, there):
            what = "does not hold" if there is None else "holds other bytes of"
            raise InputError(f"{repo}: the Hub {what} {path} after the upload; run the same again")


def _is_same(path: Path, there: Any) -> bool:
    """Whether a file is the one of a record: its sha256, or git's hash of a small one."""
    if path.stat().st_size != there.size:
        return False
    content = path.open("rb")
    with content:
        if there.lfs is not None:
            return bool(hashlib.file_digest(content, "sha256").hexdigest() == there.lfs.sha256)
        blob = content.read()
    return bool(hashlib.sha1(b"blob %d\0" % len(blob) + blob, usedforsecurity=False).hexdigest() == there.blob_id)
