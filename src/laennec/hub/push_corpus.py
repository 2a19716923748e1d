"""An exported corpus to the Hub.

Decisions: private unless asked otherwise, and public only for who says they may redistribute it, because recordings
of patients cannot be taken back; the corpus' terms are said at every upload. A repository that is public already, or
holds anything but an export, is not touched. What is uploaded is the list of files in the export's mark, each held
against its hash, in one commit that takes the files of an earlier export away: readers see the old corpus or the new
one. What can be refused is refused before the corpus is read.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from laennec.corpora.exported import ADDRESS, CARD, CONFIGS, MARK, check_export
from laennec.corpora.load import corpus_class
from laennec.errors import InputError, hub_reason
from laennec.hub.upload import PAUSES_S, check_repo_name, find_token, upload

_SHARDS = tuple(f"{config}/*.parquet" for config in CONFIGS)
_NAMES = "|".join(map(re.escape, (MARK, CARD, ".gitattributes")))
_OURS = re.compile(rf"{_NAMES}|({'|'.join(CONFIGS)})/[\w.-]+\.parquet")
_TIMEOUT_S = 60.0
RIGHT = "--i-have-the-right-to-redistribute"


def terms_of(corpus: str) -> str:
    """What the owners of a corpus ask, for whoever is about to pass it on; some lines."""
    terms = corpus_class(corpus)
    return f"terms of {terms.title}: {terms.licence}\npassing it on: {terms.redistribution}"


def check_target(repo: str, public: bool = False, may_redistribute: bool = False) -> None:
    """Find out whether a corpus may be pushed there, before any work is done.

    Args:
        repo: OWNER/NAME.
        public: Whether everybody shall see it.
        may_redistribute: Whether the user says that they may pass it on.

    Raises:
        InputError: Not a name, no login, no network, public without the right to, or a repository that is somebody's
            other work.
    """
    if public and not may_redistribute:
        raise InputError(f"{repo}: a public data set passes the recordings on; leave --public out, or add {RIGHT}")
    check_repo_name(repo)
    find_token(repo)
    from huggingface_hub import HfApi

    api = HfApi()
    who = _asked(repo, api.whoami)
    names = [str(each.get("name")) for each in (who, *(who.get("orgs") or ()))]
    owner = repo.split("/")[0]
    if owner.casefold() not in [name.casefold() for name in names]:
        raise InputError(f"{repo}: you are logged in as {names[0]}, not as (a member of) {owner}; change either")
    _check_present(api, repo, public)


def push_corpus(
    folder: str | Path,
    repo: str,
    *,
    public: bool = False,
    may_redistribute: bool = False,
    pauses_s: Sequence[float] = PAUSES_S,
) -> str:
    """Upload an export to a data set repository of the Hub, which is made if it is not there.

    Args:
        folder: What `laennec.corpora.exporting.export_corpus` wrote; nothing else of the disk is read.
        repo: OWNER/NAME.
        public: Whether the repository is opened to everybody once it holds the corpus.
        may_redistribute: As for `check_target`.
        pauses_s: As for `laennec.hub.upload.upload`.

    Returns:
        Its address, for `load_corpus`.

    Raises:
        InputError: As `check_target`; the folder is not what was exported; the upload broke off.
    """
    check_target(repo, public, may_redistribute)
    folder = Path(folder).expanduser().absolute()
    mark = check_export(folder)
    upload(
        folder,
        sorted({*mark.files, MARK, CARD}),
        repo,
        kind="dataset",
        private=False if public else None,  # None: one that is made is private, and one that is there is (see above)
        replaces=_SHARDS,
        message=f"Corpus {mark.corpus} {str(mark.facts.get('corpus_fingerprint'))[:12]}, exported by laennec",
        pauses_s=pauses_s,
    )
    return f"{ADDRESS}{repo}"


def _check_present(api: Any, repo: str, public: bool) -> None:
    """Refuse a repository that is there and no place for this.

    Raises:
        InputError: It is open to everybody, or holds something else.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = _asked(repo, api.repo_info, repo, repo_type="dataset")
    except InputError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            return
        raise
    if not info.private and not public:
        remedy = f"make it private in its settings, or pass --public and {RIGHT}"
        raise InputError(f"{repo}: is public, and everybody would see the recordings; {remedy}")
    files = _asked(repo, api.list_repo_files, repo, repo_type="dataset")
    if other := [name for name in files if not _OURS.fullmatch(name)]:
        raise InputError(f"{repo}: holds other files ({other[0]}); choose another repository")


def _asked(repo: str, request: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Ask the Hub; what goes wrong is one line."""
    from huggingface_hub.utils import get_session

    get_session().timeout = _TIMEOUT_S  # the client's own is to wait for ever
    try:
        return request(*arguments, **named)
    except Exception as error:
        reason = hub_reason(error)
        if reason is None:
            raise
        raise InputError(f"{repo}: {reason}") from error
