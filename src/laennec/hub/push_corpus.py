"""Pushing an exported corpus to the Hub.

Decisions: a repository is private unless the user states the right to redistribute, because recordings of patients
cannot be taken back. A repository that is public already, or holds anything but an export, is not touched. Invalid
requests are refused before the corpus is read.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from laennec.corpora.hub.exported import ADDRESS, CARD, CONFIGS, MANIFEST, read_manifest
from laennec.errors import InputError
from laennec.hub.upload import PAUSES_S, check_repo_name, find_token, send, upload

_OWN_FILES = re.compile(
    rf"{'|'.join(map(re.escape, (MANIFEST, CARD, '.gitattributes')))}|({'|'.join(CONFIGS)})/[\w.-]+\.parquet"
)
RIGHT = "--i-have-the-right-to-redistribute"


def check_target(repo: str, public: bool = False, may_redistribute: bool = False) -> None:
    """Check that a corpus may be pushed to a repository, before any work is done."""
    if public and not may_redistribute:
        raise InputError(f"{repo}: a public data set passes the recordings on; leave --public out, or add {RIGHT}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    check_repo_name(repo)
    find_token(repo)
    api = HfApi()
    who = send(repo, api.whoami)
    names = [str(each.get("name")) for each in (who, *(who.get("orgs") or ()))]
    owner = repo.split("/")[0]
    if owner.casefold() not in [name.casefold() for name in names]:
        raise InputError(f"{repo}: you are logged in as {names[0]}, not as (a member of) {owner}; change either")
    try:
        info = send(repo, lambda: api.repo_info(repo, repo_type="dataset"))
    except InputError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            return
        raise
    if not info.private and not public:
        remedy = f"make it private in its settings, or pass --public and {RIGHT}"
        raise InputError(f"{repo}: is public, and everybody would see the recordings; {remedy}")
    files = send(repo, lambda: api.list_repo_files(repo, repo_type="dataset"))
    if other := [name for name in files if not _OWN_FILES.fullmatch(name)]:
        raise InputError(f"{repo}: holds other files ({other[0]}); choose another repository")


def push_corpus(
    folder: str | Path,
    repo: str,
    *,
    public: bool = False,
    may_redistribute: bool = False,
    pauses_s: Sequence[float] = PAUSES_S,
) -> str:
    """Upload a new export to a data set repository of the Hub in one commit; creates a missing repository."""
    check_target(repo, public, may_redistribute)
    folder = Path(folder).expanduser().absolute()
    manifest = read_manifest(folder)
    upload(
        folder,
        sorted({*manifest["files"], MANIFEST, CARD}),
        repo,
        kind="dataset",
        public=public,  # if False, new and existing repositories are private (see check_target)
        replaces=[f"{config}/*.parquet" for config in CONFIGS],
        message=f"Corpus {manifest['corpus']} {str(manifest.get('corpus_fingerprint'))[:12]}, exported by laennec",
        pauses_s=pauses_s,
    )
    return f"{ADDRESS}{repo}"
