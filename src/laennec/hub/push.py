"""Push a run's model to the Hub.

Decisions: only an exported folder is pushed, and of it only the files of a model. A repository is private unless it is
made public explicitly. A model that others cannot load is rejected: a head or adapters with a local base, or a folder
without its front end. A card with open questions is not pushed.
"""

import tempfile
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from laennec.audio.features import LaennecFeatureExtractor
from laennec.encoders.weights.bases import is_local
from laennec.errors import InputError
from laennec.hub import MODEL_FILES, export_format
from laennec.hub.card import FILE as CARD
from laennec.hub.card import HOW_TO_ANSWER, check_publishable, describe_questions, render_card, write_card
from laennec.hub.export import export_run
from laennec.hub.upload import TIMEOUT_S, Uploaded, check_repo_name, find_token, upload
from laennec.modeling import LaennecForAudioClassification
from laennec.training.record import read_record
from laennec.untrusted import leads_outside


def push(
    source: str | Path,
    repo: str,
    *,
    format: str | None = None,
    base: str | None = None,
    base_name: str | None = None,
    base_revision: str | None = None,
    revision: str | None = None,
    public: bool = False,
    license: str | None = None,
    message: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Uploaded:
    """Push a run, or a folder that was exported from one.

    The arguments are the flags of `laennec push`, and those of `upload` and `export_run`; without a format, a run is
    exported in full, and an exported folder is pushed as it is.
    """
    check_repo_name(repo)
    find_token(repo)
    folder, run = _exported(Path(source), format, base, base_name, base_revision, license)
    _check_loadable(folder)
    _write_card(run, folder, repo, license)
    message = message or f"Push {run.name if run else folder.name} with laennec"
    return _uploaded(folder, repo, revision=revision, public=public, message=message, timeout_s=timeout_s)


def push_model(
    model: LaennecForAudioClassification,
    repo: str,
    *,
    extractor: LaennecFeatureExtractor | None = None,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    **saving: Any,
) -> Uploaded:
    """Push a model that is in memory, with its front end; called by `model.push_to_hub`.

    Args:
        model: The model.
        repo: OWNER/NAME.
        extractor: Its front end; None for the one in the folder or repository that the model was loaded from.
        private: Whether the repository stays private; a public one needs a card without open questions.
        token: None for HF_TOKEN or the token of the login.
        revision: The branch; None for main.
        message: Commit message.
        **saving: Arguments of `save_pretrained`, e.g. head_only.
    """
    check_repo_name(repo)
    origin = str(model.name_or_path or "")
    if extractor is None:
        extractor = front_end_of(origin)
    run = _run_of(Path(origin)) if origin and Path(origin).is_dir() else None
    if run is not None:
        _check_questions(run, None)
    if "head_only" not in saving and not model.config.lora and is_local(model.config.base_model_name_or_path or ""):
        saving["head_only"] = False  # others do not have the base
    with tempfile.TemporaryDirectory(prefix="laennec-push-") as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder, **saving)
        extractor.save_pretrained(folder)
        _check_loadable(folder)
        kept = Path(origin) / CARD
        if run is None and origin and kept.is_file():
            (folder / CARD).write_bytes(kept.read_bytes())
        if run is None and private and not (folder / CARD).exists():
            (folder / CARD).write_text(_CARD_WITHOUT_RUN, encoding="utf-8")
        else:
            _write_card(run, folder, repo, None)
        message = message or "Push a model with laennec"
        return _uploaded(folder, repo, revision=revision, public=not private, token=token, message=message)


_CARD_WITHOUT_RUN = """---
library_name: transformers
pipeline_tag: audio-classification
---

A laennec model for lung sounds, pushed without the record of its run: its data, split and scores are not
documented here. It is research software, not a medical device.
"""


def _exported(
    source: Path,
    format: str | None,
    base: str | None,
    base_name: str | None,
    base_revision: str | None,
    license: str | None,
) -> tuple[Path, Path | None]:
    """The folder to upload, and the run it comes from where that is known."""
    if format is not None:
        export_format(format)
    if format in ("openvino", "space"):
        raise InputError(f"--format {format} is no model that others load; write it with laennec export")
    exported = (source / "config.json").is_file() or (source / "onnx.json").is_file()
    if (source / "model" / "config.json").is_file() or not exported:
        if not source.is_dir():
            raise InputError(f"{source}: no such folder; give a finished run or an exported folder")
        _check_questions(source, license)
        return export_run(source, None, format or "full", base, base_name, base_revision), source
    if format or base_name or base_revision:
        raise InputError(
            f"{source}: an exported folder is pushed as it is; leave out --format, --base-name and --base-revision, or "
            "give the run instead"
        )
    return source, _run_of(source)


def _run_of(folder: Path) -> Path | None:
    return folder.parent if (folder.parent / "run.json").is_file() else None


def front_end_of(origin: str) -> LaennecFeatureExtractor:
    """The front end beside the files that a model was loaded from."""
    if not origin:
        raise InputError(
            "the model was not loaded from a folder or the Hub, or was trained since, so its front end is not known; "
            "pass extractor="
        )
    try:
        return LaennecFeatureExtractor.from_pretrained(origin)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{origin}: the front end cannot be loaded; pass extractor=") from error


def _check_loadable(folder: Path) -> None:
    """Raise for a model that others could not load: without its front end, or with a base on this machine."""
    if not (folder / "preprocessor_config.json").is_file():
        raise InputError(f"{folder}: preprocessor_config.json (the front end) is missing; export the run again")
    if not (folder / "config.json").is_file():
        return
    config = read_record(folder / "config.json")
    base = config.get("base_model_name_or_path")
    if config.get("head_only") and is_local(str(base or "")):
        raise InputError(
            f"{folder}: the base of this head is a file on this machine ({base}); give its repository (--base-name "
            "OWNER/NAME), or use --format full"
        )


def _check_questions(run: Path, license: str | None) -> None:
    """Raise for a run whose card has open questions, before it is exported."""
    if not (run / "run.json").is_file():
        return
    if unanswered := render_card(run, license=license).unanswered:
        raise InputError(
            f"{run}: its card is not ready to be published; open: {describe_questions(unanswered)}; {HOW_TO_ANSWER}"
        )


def _write_card(run: Path | None, folder: Path, repo: str, license: str | None) -> None:
    """Write the card if there is a run record; raise for a card with open questions."""
    if run is not None:
        write_card(run, folder, repo=repo, license=license)
    check_publishable(folder)


def _uploaded(folder: Path, repo: str, **settings: Any) -> Uploaded:
    """Upload the files of a model in a folder; settings of `upload`."""
    files, left = _files_of(folder)
    return replace(upload(folder, files, repo, replaces=MODEL_FILES, **settings), left=tuple(left))


def _files_of(folder: Path) -> tuple[list[str], list[str]]:
    """The files of a model in a folder, and the other files."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if link := next((p for p in files if leads_outside(p, folder)), None):
        raise InputError(
            f"{link}: links to a file outside the folder ({link.resolve()}), which is not published; remove the link"
        )
    found = [p.relative_to(folder).as_posix() for p in files]
    ours = [path for path in found if any(fnmatch(path, pattern) for pattern in (CARD, *MODEL_FILES))]
    return ours, [path for path in found if path not in ours]
