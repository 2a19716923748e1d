"""The model card, rendered from a run's record and the author's answers.

Decisions: run.json is the only source of a card. The author answers what the record does not contain (licence, purpose,
funding, ...) in the recipe's section `card` or in a file. A card with open questions can be read but not published; it
contains a marker for each. The reporting checklist (templates/checklist.yaml) states where each item is answered.
"""

import json
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from laennec.errors import InputError, in_known_form
from laennec.files import atomic_write
from laennec.hub.card_content import card_content
from laennec.hub.card_metadata import card_metadata, eval_result_files
from laennec.hub.evidence import Evidence, read_evidence
from laennec.rendering import Markdown, code, render_template
from laennec.training.recipe import LICENCES, CardSettings, Recipe
from laennec.training.record import read_record, write_record
from laennec.untrusted import parse_yaml, read_mapping, read_text

FILE = "README.md"
EVAL_RESULTS = ".eval_results"
HOW_TO_ANSWER = "answer in the recipe's section card, or in a YAML file: laennec card RUN --answers FILE"
_TEMPLATE = "card.md.jinja"
_MARKER = "<!-- laennec:unanswered {} -->"
_MARKERS = re.compile(r"^<!-- laennec:unanswered ([\w.]+) -->$", re.M)
_HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.S)


@dataclass(frozen=True)
class Card:
    """A rendered card."""

    text: str  # content of README.md
    unanswered: dict[str, list[str]]  # keys of the open questions, each with the checklist items that need the answer
    eval_results: dict[str, str]  # contents of `.eval_results/*.yaml` by file name


def write_card(run: str | Path, folder: str | Path, *, repo: str | None = None, license: str | None = None) -> Path:
    """Write a run's model card into an exported model's folder.

    Args:
        run: The run's folder, or a published record of one.
        folder: For README.md, and `.eval_results` if the data are on the Hub. Its files determine the export format.
        repo: The Hub id that the model will have.
        license: Licence of the model, a Hub licence id; replaces the recipe's.

    Returns:
        The path of README.md.

    Raises:
        InputError: There is no valid run record, the licence is unknown, or the folder cannot be written to.
    """
    folder = Path(folder)
    card = render_card(run, repo=repo, license=license, form=_export_form(folder))
    for old in (folder / EVAL_RESULTS).glob("*.yaml"):
        if old.name not in card.eval_results:
            old.unlink()
    for name, text in card.eval_results.items():
        with atomic_write(folder / EVAL_RESULTS / name) as file:
            file.write(text)
    with atomic_write(folder / FILE) as file:
        file.write(card.text)
    return folder / FILE


def render_card(
    run: str | Path,
    *,
    repo: str | None = None,
    license: str | None = None,
    form: str = "full",
    answers: Mapping[str, Any] | None = None,
) -> Card:
    """Render a run's model card.

    Args:
        run: The run's folder, or a published record of one.
        repo: The Hub id that the model will have; None uses the name of the recipe.
        license: See `write_card`.
        form: Export format: "full", "head", "lora", "stock" or "onnx".
        answers: Settings of `CardSettings` that replace the recipe's.
    """
    evidence = read_evidence(run)
    with in_known_form(Path(run) / "run.json", "train the run again, or evaluate it again"):
        settings = card_settings(evidence.run, {**(answers or {}), **({"licence": license} if license else {})})
        name = repo.rsplit("/", 1)[-1] if repo else str(evidence.run.get("name") or "laennec model")
        content = card_content(evidence, settings)
        metadata = card_metadata(
            evidence.run, content["splits"], settings, name, "adapter" if form in ("head", "lora") else "finetune"
        )
        if form == "onnx":
            metadata.library_name = "onnx"
        answered = _answered(evidence, content, settings)
        sections = _sections(content)
        unanswered = open_questions(answered, sections)
        text = render_template(
            _TEMPLATE,
            **content,
            title=name,
            form=form,
            place=Markdown(json.dumps(repo or name)),
            shell=code(f"laennec predict {shlex.quote(repo or name)} recordings/ --out predictions"),
            sections=sections,
            ask=lambda key: (
                "" if f"card.{key}" in answered else Markdown(f"_Not answered yet ({code(f'card.{key}')})._")
            ),
            marker=lambda key: Markdown(_MARKER.format(key)),
            open_questions=[(key, questions().get(key, ""), waiting) for key, waiting in unanswered.items()],
            checklist=checklist(),
            missing_answers=partial(_missing, answered=answered, sections=sections),
        )
        body = re.sub(r"\n{3,}", "\n\n", text).strip()
        return Card(
            f"---\n{metadata.to_yaml()}\n---\n\n{body}\n", unanswered, eval_result_files(content["splits"], settings)
        )


def card_settings(run: Mapping[str, Any], answers: Mapping[str, Any] | None = None) -> CardSettings:
    """Combine the author's answers: the recipe's, then those kept in the run record, then `answers`."""
    values = {**(run["config"].get("card") or {}), **(run.get("card") or {}), **(answers or {})}
    return Recipe.from_record({"card": dict(values)}, "model card").card


def record_answers(run: str | Path, file: str | Path) -> dict[str, Any]:
    """Store the answers of a YAML file in a run's record."""
    path = Path(run) / "run.json"
    record = read_record(path)
    remedy = "answers are a mapping of keys to texts, e.g. licence: apache-2.0"
    given = read_mapping(file, "answers", remedy)
    if not given:
        raise InputError(f"{file}: holds no answers; {remedy}")
    given = given["card"] if set(given) == {"card"} and isinstance(given["card"], dict) else given
    try:
        card_settings(record, given)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    record["card"] = {**(record.get("card") or {}), **given}
    write_record(path, record)
    answers: dict[str, Any] = record["card"]
    return answers


def check_publishable(folder: str | Path) -> None:
    """Raise unless the card in a folder has a licence and no open questions."""
    path = Path(folder) / FILE
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no readable model card; write one: laennec card RUN --out {path}") from error
    try:
        metadata = ModelCardData(**parse_yaml(_HEAD.match(text)[1]))  # type: ignore[index]
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: no valid YAML metadata ({said}); write it again: laennec card RUN --out {path}"
        ) from error
    if metadata.license not in (None, *LICENCES):
        raise InputError(f"{path}: license {metadata.license!r} is not a licence id of the Hub; {HOW_TO_ANSWER}")
    missing = [key for key in _MARKERS.findall(text) if key != "card.licence"]
    if not metadata.license:
        missing.insert(0, "card.licence")
    if missing:
        raise InputError(f"{path}: not ready to be published; open: {describe_questions(missing)}; {HOW_TO_ANSWER}")


def describe_questions(keys: Collection[str]) -> str:
    """Open questions with what each is about, in one line."""
    about = questions()
    return "; ".join(f"{key} ({about[key]})" if key in about else key for key in dict.fromkeys(keys))


@cache
def checklist() -> dict[str, Any]:
    """The reporting checklist: guidelines, questions ("answers") and items."""
    text = resources.files("laennec").joinpath("templates/checklist.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def questions() -> dict[str, str]:
    """What each question is about, by its key ("card.funding", "record.evaluation")."""
    return {answer["key"]: answer["about"] for answer in checklist()["answers"]}


def open_questions(answered: Collection[str], sections: Collection[str]) -> dict[str, list[str]]:
    """The keys of open questions, each with the checklist items that need it ("TRIPOD+AI 17")."""
    waiting: dict[str, list[str]] = {key: [] for key in questions() if key not in answered}
    for item in checklist()["items"]:
        for key in _missing(item, answered, sections):
            waiting.setdefault(key, []).append(f"{item['guideline']} {item['item']}")
    return waiting


def _missing(item: Mapping[str, Any], answered: Collection[str], sections: Collection[str]) -> list[str]:
    """The answers that a checklist item still needs."""
    missing = [key for key in item["needs"] if key not in answered]
    # only sections about an evaluation can be absent; after an evaluation, they are absent if they would be empty
    there = item["section"] in sections or "record.evaluation" in answered
    return missing or ([] if there else ["record.evaluation"])


def _answered(evidence: Evidence, content: Mapping[str, Any], settings: CardSettings) -> list[str]:
    """Keys of the questions that have an answer."""
    origin = evidence.run["corpus"].get("provenance") or {}
    given = [f"card.{name}" for name, value in settings if value]
    known = ["card.data_origin", "card.reference_standard", "card.data_licence"] if content["facts"] else []
    known += ["record.split"] if origin.get("split_fingerprint") else []
    return [*given, *known, *(["record.evaluation"] if content["splits"] else [])]


def section_anchors() -> list[str]:
    """Anchors of all sections of the template."""
    text = resources.files("laennec").joinpath("templates", _TEMPLATE).read_text(encoding="utf-8")
    return [re.sub(r"[^\w]+", "-", title.strip().lower()) for title in re.findall(r"^## (.+)$", text, re.M)]


def _sections(content: Mapping[str, Any]) -> list[str]:
    splits = content["splits"]
    shown = {
        "results": bool(splits),
        "subgroups": any(split["subgroups"] for split in splits),
        "worst-errors": any(split["metrics"]["failures"] for split in splits),
    }
    return [name for name in section_anchors() if shown.get(name, True)]


def _export_form(folder: Path) -> str:
    if list(folder.glob("*.onnx")) and not (folder / "config.json").exists():
        return "onnx"
    if (folder / "adapter").is_dir():
        return "lora"
    config = folder / "config.json"
    values = read_record(config) if config.exists() else {}
    if values.get("model_type") == "audio-spectrogram-transformer":
        return "stock"
    return "head" if values.get("head_only") else "full"
