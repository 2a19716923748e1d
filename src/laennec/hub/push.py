"""A run's model to the Hub.

Decisions: what is pushed is an exported folder, which was read back and compared, never a run's own folder; and of
it the files of a model alone, named below. A repository is private until it is opened on purpose. A model that cannot
be loaded by others is refused: a head or adapters whose base lies in a local file, a folder without its front end.
Its card is written from the run's record, and one with open questions is not pushed.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from laennec.audio.features import LaennecFeatureExtractor
from laennec.errors import InputError
from laennec.hub.card import FILE as CARD
from laennec.hub.card import HOW_TO_ANSWER, refuse_unfinished, render_card, write_card
from laennec.hub.checklist import questions
from laennec.hub.export import FORMATS, export_run
from laennec.hub.upload import PAUSES_S, check_repo_name, find_token, upload
from laennec.modeling import LaennecForAudioClassification
from laennec.training.record import read_record
from laennec.untrusted import leads_outside

# all that a model's repository is given, and all that a later push may take away
MODEL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "*.onnx",
    "*.onnx.data",
    "onnx.json",
    ".eval_results/*.yaml",
)


@dataclass(frozen=True)
class Pushed:
    """A model on the Hub.

    Attributes:
        url: Its address.
        commit: The commit that holds it.
        private: Whether it is closed to others.
        files: What it consists of.
        left: Files of the folder that were not uploaded, because they belong to no model.
    """

    url: str
    commit: str
    private: bool
    files: list[str]
    left: list[str]


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
    token: str | None = None,
    message: str | None = None,
    timeout_s: float = 60.0,
    pauses_s: Sequence[float] = PAUSES_S,
) -> Pushed:
    """Export a run, or take a folder that was exported, and put it on the Hub.

    Args:
        source: A run's folder, or an exported one.
        repo: OWNER/NAME; made, private, if it is not there.
        format: As for `export_run`; None for "full", or for an exported folder as it is.
        base: Where the base of a head-only run lies now.
        base_name: The Hub id of the base, for a head or adapters.
        base_revision: The commit, tag or branch of the base.
        revision: The branch to push to; None for main.
        public: Whether to open the repository, once it holds the model.
        license: The licence that the card names.
        token: None for HF_TOKEN or that of the login.
        message: The commit's.
        timeout_s: How long a request may wait for an answer.
        pauses_s: How long to wait before each further try.

    Raises:
        InputError: Nothing to push, a model that others could not load, an unfinished card, or what `upload` refuses.
    """
    check_repo_name(repo)
    find_token(repo, token)
    folder, run = _exported(Path(source), format, base, base_name, base_revision, license)
    _refuse_unloadable(folder)
    _write_card(run, folder, repo, license)
    files, left = _files_of(folder)
    done = upload(
        folder,
        files,
        repo,
        revision=revision,
        private=False if public else None,
        replaces=MODEL_FILES,
        token=token,
        message=message or f"Push {run.name if run else folder.name} with laennec",
        timeout_s=timeout_s,
        pauses_s=pauses_s,
    )
    return Pushed(done.url, done.commit, done.private, done.files, left)


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
) -> Pushed:
    """Put a model that is in memory on the Hub, with its front end; `model.push_to_hub` is this.

    Args:
        model: The model.
        repo: OWNER/NAME.
        extractor: Its front end; None for the one beside the folder or repository that the model was loaded from.
        private: Whether the repository stays closed; one that is opened needs a card without open questions.
        token: None for HF_TOKEN or that of the login.
        revision: The branch; None for main.
        message: The commit's.
        **saving: Handed to `save_pretrained`, e.g. head_only.

    Raises:
        InputError: No front end is known, or what `push` refuses.
    """
    check_repo_name(repo)
    origin = str(model.name_or_path or "")
    if extractor is None:
        extractor = _front_end_of(origin)
    run = _run_of(Path(origin)) if origin and Path(origin).is_dir() else None
    if run is not None:
        _refuse_open_questions(run, None)
    if "head_only" not in saving and not model.config.lora and _is_local(model.config.base_model_name_or_path):
        saving["head_only"] = False  # nobody else has the base
    with tempfile.TemporaryDirectory(prefix="laennec-push-") as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder, **saving)
        extractor.save_pretrained(folder)
        _refuse_unloadable(folder)
        kept = Path(origin) / CARD
        if run is None and origin and kept.is_file():
            (folder / CARD).write_bytes(kept.read_bytes())
        if run is None and private and not (folder / CARD).exists():
            (folder / CARD).write_text(_CARD_WITHOUT_RUN, encoding="utf-8")
        else:
            _write_card(run, folder, repo, None)
        files, left = _files_of(folder)
        done = upload(
            folder,
            files,
            repo,
            revision=revision,
            private=None if private else False,
            replaces=MODEL_FILES,
            token=token,
            message=message or "Push a model with laennec",
        )
    return Pushed(done.url, done.commit, done.private, done.files, left)


_CARD_WITHOUT_RUN = """---
library_name: laennec
pipeline_tag: audio-classification
---

A laennec model for lung sounds, pushed without the record of its run: nothing is known here about its data, its split
or its scores. It is research software and no medical device.
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
    if format is not None and format not in (*FORMATS, "adapter"):
        raise InputError(f"unknown export format {format!r}; it can be {', '.join(FORMATS)} (--format)")
    if (source / "model" / "config.json").is_file() or not _is_exported(source):
        if not source.is_dir():
            raise InputError(f"{source}: no such folder; give a finished run or an exported folder")
        _refuse_open_questions(source, license)
        return export_run(source, None, format or "full", base, base_name, base_revision), source
    if format or base_name or base_revision:
        raise InputError(
            f"{source}: is an exported folder, which is pushed as it is; leave out --format, --base-name and "
            "--base-revision, or give the run"
        )
    return source, _run_of(source)


def _is_exported(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "onnx.json").is_file()


def _run_of(folder: Path) -> Path | None:
    """The run whose folder an exported one lies in."""
    return folder.parent if (folder.parent / "run.json").is_file() else None


def _front_end_of(origin: str) -> LaennecFeatureExtractor:
    if not origin:
        raise InputError("the model was not loaded from anywhere, so its front end is not known; pass extractor=")
    try:
        return LaennecFeatureExtractor.from_pretrained(origin)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{origin}: no usable front end beside the model; pass extractor=") from error


def _refuse_unloadable(folder: Path) -> None:
    """Refuse what others could not load: a model without its front end, or a base that lies on this machine."""
    if not (folder / "preprocessor_config.json").is_file():
        raise InputError(f"{folder}: has no preprocessor_config.json, the model's front end; export the run again")
    if not (folder / "config.json").is_file():
        return
    config = read_record(folder / "config.json")
    base = config.get("base_model_name_or_path")
    if config.get("head_only") and _is_local(base):
        raise InputError(
            f"{folder}: a head whose base is a file of this machine ({base}); name the base's repository "
            "(--base-name OWNER/NAME), or push --format full"
        )


def _is_local(base: str | None) -> bool:
    """Whether a base lies in a file or folder of this machine."""
    return bool(base) and (Path(str(base)).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(base)))


def _refuse_open_questions(run: Path, license: str | None) -> None:
    """Refuse a run whose card would not be ready, before the work of exporting it."""
    if not (run / "run.json").is_file():
        return
    if unanswered := render_card(run, license=license).unanswered:
        about = questions()
        said = "; ".join(f"{key} ({about[key]})" if key in about else key for key in unanswered)
        raise InputError(f"{run}: its card is not ready to be published, these are open: {said}; {HOW_TO_ANSWER}")


def _write_card(run: Path | None, folder: Path, repo: str, license: str | None) -> None:
    """Write the card from the run's record where there is one, and refuse one with open questions."""
    if run is not None:
        write_card(run, folder, repo=repo, license=license)
    refuse_unfinished(folder)


def _files_of(folder: Path) -> tuple[list[str], list[str]]:
    """The files of a model in a folder, and those that are none."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if link := next((p for p in files if leads_outside(p, folder)), None):
        raise InputError(f"{link}: is a link to a file elsewhere ({link.resolve()}), which is not published; remove it")
    found = [p.relative_to(folder).as_posix() for p in files]
    ours = [path for path in found if any(fnmatch(path, pattern) for pattern in (CARD, *MODEL_FILES))]
    return ours, [path for path in found if path not in ours]
