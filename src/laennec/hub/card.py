"""The model card, from the run's own record and the author's answers.

Decisions: the card is rendered from run.json and from nothing else; what no record can
know (licence, purpose, funding, ...) is asked of the author, in the recipe's section `card` or in a file, and kept in
the run record. A card with an open question can be written and read, but not published: it carries a mark for each.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from laennec.errors import InputError
from laennec.files import atomic_write
from laennec.hub.card_metadata import card_data, check_metadata, eval_result_files
from laennec.hub.card_sections import (
    base_licence,
    base_name,
    facts_of,
    fitted_table,
    leak_lines,
    limitations,
    scored_part,
    shown_command,
    training_rows,
)
from laennec.hub.card_text import Markdown, code, escaped, fenced, table
from laennec.hub.checklist import guideline_lines, items, open_answers, questions
from laennec.hub.citations import citations_of
from laennec.hub.evidence import Evidence, read_evidence
from laennec.training.recipe import CardSettings, ConfigError, Recipe
from laennec.training.record import read_record, write_record
from laennec.untrusted import parse_yaml, read_text, read_yaml

FILE = "README.md"
EVAL_RESULTS = ".eval_results"
_MARK = "<!-- laennec:unanswered {} -->"
_MARKS = re.compile(r"^<!-- laennec:unanswered ([\w.]+) -->$", re.M)
_HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.S)
HOW_TO_ANSWER = "answer them in the recipe's section card, or in a YAML file: laennec card RUN --answers FILE"


@dataclass(frozen=True)
class Card:
    """A rendered card.

    Attributes:
        text: The whole file.
        unanswered: Keys of the open questions, each with the checklist items that wait for it.
        eval_results: Texts of `.eval_results/*.yaml` by file name.
    """

    text: str
    unanswered: dict[str, list[str]]
    eval_results: dict[str, str]


def write_card(run: str | Path, folder: str | Path, *, repo: str | None = None, license: str | None = None) -> Path:
    """Write a run's model card into a folder that is to be shared.

    Args:
        run: The run's folder, or a published record of one.
        folder: Gets README.md (and `.eval_results`, for data that are on the Hub). What lies there already says which
            form the model has.
        repo: The Hub id that the folder will have.
        license: Licence of the model, a Hub licence id; replaces the recipe's.

    Returns:
        The path of README.md.

    Raises:
        InputError: No run record, a torn evaluation, an unknown licence, or a folder that cannot be written to.
    """
    folder = Path(folder)
    card = render_card(run, repo=repo, license=license, form=_form(folder))
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
    """The card as text.

    Args:
        run: The run's folder, or a published record of one.
        repo: The Hub id that the model will have; None names it after its recipe.
        license: See `write_card`.
        form: "full", "head", "lora", "stock" or "onnx": how the model is exported.
        answers: Settings of `CardSettings` that replace the recipe's.

    Raises:
        InputError: See `write_card`.
    """
    evidence = read_evidence(run)
    settings = settings_of(evidence.run, {**(answers or {}), **({"licence": license} if license else {})})
    parts = [scored_part(entry, evidence.run) for entry in evidence.evaluations]
    relation = "adapter" if form in ("head", "lora") else "finetune"
    name = repo.rsplit("/", 1)[-1] if repo else str(evidence.run.get("name") or "laennec model")
    data = card_data(evidence.run, parts, settings, name, relation)
    if form == "onnx":
        data.library_name = "onnx"
    check_metadata(data.to_dict())
    answered = _answered(evidence, parts, settings)
    context = _context(evidence, parts, settings, answered)
    context |= {"title": name, "form": form, "usage": fenced(_usage(repo or name, form), "python")}
    context["shell"] = code(f"laennec predict {shlex.quote(repo or name)} recordings/ --out timelines")
    sections = context["sections"]
    unanswered = open_answers(answered, sections)
    context["open"] = [(key, questions().get(key, ""), waiting) for key, waiting in unanswered.items()]
    context["items"] = _item_tables(answered, sections)
    body = _environment().from_string(_template()).render(context)
    tidy = re.sub(r"\n{3,}", "\n\n", body).strip()
    return Card(f"---\n{data.to_yaml()}\n---\n\n{tidy}\n", unanswered, eval_result_files(parts, settings))


def settings_of(run: Mapping[str, Any], answers: Mapping[str, Any] | None = None) -> CardSettings:
    """The author's answers: the recipe's, then what the run record was given later, then these.

    Raises:
        ConfigError: An unknown key or a wrong value; names the nearest key.
    """
    values = {**(run["config"].get("card") or {}), **(run.get("card") or {}), **(answers or {})}
    return Recipe.from_record({"card": dict(values)}, "model card").card


def record_answers(run: str | Path, file: str | Path) -> dict[str, Any]:
    """Keep the answers of a YAML file in a run's record.

    Args:
        run: The run's folder.
        file: Keys of `CardSettings` to texts.

    Returns:
        All answers that the record holds now.

    Raises:
        InputError: The file is not there or no such mapping; a key or a value is wrong; the run is no run.
    """
    path = Path(run) / "run.json"
    record = read_record(path)
    try:
        given = read_yaml(file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot read the answers; give a YAML file of key: text") from error
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict) or not given:
        raise InputError(f"{file}: answers are a mapping of keys to texts, e.g. licence: apache-2.0")
    given = given["card"] if set(given) == {"card"} and isinstance(given["card"], dict) else given
    try:
        settings_of(record, given)
    except ConfigError as error:
        raise InputError(f"{file}: {error}") from error
    record["card"] = {**(record.get("card") or {}), **given}
    write_record(path, record)
    answers: dict[str, Any] = record["card"]
    return answers


def refuse_unfinished(folder: str | Path) -> None:
    """Refuse to publish a folder whose card lacks its licence or leaves a question open.

    Args:
        folder: Holds README.md.

    Raises:
        InputError: There is no card, its head is no YAML or lacks `license`, or it carries marks of open questions.
    """
    path = Path(folder) / FILE
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no model card there; write one: laennec card RUN --out {path}") from error
    match = _HEAD.match(text)
    try:
        head = parse_yaml(match.group(1)) if match else None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: the card's head is not valid YAML; write it anew: laennec card RUN") from error
    if not isinstance(head, dict):
        raise InputError(f"{path}: the card has no YAML head; write it anew: laennec card RUN --out {path}")
    check_metadata(head)
    missing = [key for key in _MARKS.findall(text) if key != "card.licence"]
    if not head.get("license"):
        missing.insert(0, "card.licence")
    if missing:
        about = questions()
        said = "; ".join(f"{key} ({about[key]})" if key in about else key for key in dict.fromkeys(missing))
        raise InputError(f"{path}: not ready to be published, these are open: {said}; {HOW_TO_ANSWER}")


def _answered(evidence: Evidence, parts: list[dict[str, Any]], settings: CardSettings) -> list[str]:
    """Keys of the questions that have an answer."""
    facts, origin = facts_of(evidence.run), evidence.run["corpus"].get("provenance") or {}
    given = [f"card.{name}" for name, value in settings if value]
    known = ["card.data_origin", "card.reference_standard", "card.data_licence"] if facts else []
    known += ["record.split"] if origin.get("split_fingerprint") else []
    return [*given, *known, *(["record.evaluation"] if parts else [])]


def _context(
    evidence: Evidence, parts: list[dict[str, Any]], settings: CardSettings, answered: list[str]
) -> dict[str, Any]:
    """What the template shows."""
    run, facts = evidence.run, facts_of(evidence.run)
    corpus, encoder = run["corpus"], run["config"]["encoder"]
    headline = next((part for part in parts if part["headline_worthy"]), None)
    fitted = fitted_table(run.get("operating_points"))
    present = {
        "subgroups": any(part["subgroups"] for part in parts),
        "worst-errors": any(part["failures"] for part in parts),
        "results": bool(parts),
    }
    absent = [name for name, there in present.items() if not there]
    sections = [name for name in section_anchors() if name not in absent]
    commands = [shown_command(one["command"]) for one in [*(run.get("members") or []), run] if one.get("command")]
    return {
        "run": run,
        "settings": settings,
        "facts": facts,
        "url": Markdown(f"<{facts.homepage}>") if facts and facts.homepage else None,
        "corpus": corpus,
        "origin": corpus.get("provenance") or {},
        "labels": Markdown(", ".join(code(name) for name in run.get("labels") or [])),
        "leaks": "; ".join(leak_lines(corpus.get("provenance") or {})),
        "parts": parts,
        "headline": headline,
        "fitted": fitted,
        "training": training_rows(run),
        "command": fenced("\n".join(commands), "bash") if commands else "",
        "limitations": limitations(run, parts, evidence.outdated, settings),
        "bibtex": fenced("\n\n".join(citations_of(run)), "bibtex"),
        "base": base_name(encoder),
        "base_licence": base_licence(encoder, bool(run.get("pretraining"))),
        "versions": ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items()),
        "hardware": _hardware(run.get("hardware") or {}),
        "timings": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in (run.get("timings") or {}).items()),
        "ask": lambda key: (
            "" if f"card.{key}" in answered else Markdown(f"_Not answered yet ({code(f'card.{key}')})._")
        ),
        "sections": sections,
        "guidelines": guideline_lines(),
    }


def section_anchors() -> list[str]:
    """Anchors of the sections that the template has."""
    return [re.sub(r"[^\w]+", "-", title.strip().lower()) for title in re.findall(r"^## (.+)$", _template(), re.M)]


def _item_tables(answered: list[str], sections: list[str]) -> list[tuple[str, Markdown]]:
    """A table of its items for each guideline."""
    tables, found = [], items(answered, sections)
    for guideline in guideline_lines():
        rows = []
        for item in (i for i in found if i.guideline == guideline["name"]):
            where = Markdown(f"[{item.section.replace('-', ' ')}](#{item.section})")
            rows.append((item.item, item.topic, Markdown(f"**open**: {', '.join(item.open)}") if item.open else where))
        tables.append((f"{guideline['name']} ({guideline['reference']})", table(("item", "topic", "where"), rows)))
    return tables


def _hardware(hardware: Mapping[str, Any]) -> str:
    gpus = ", ".join(hardware.get("gpus") or []) or "no GPU"
    memory = f", {hardware['peak_memory_mb']} MB of memory at most" if hardware.get("peak_memory_mb") else ""
    return f"{hardware.get('processor', 'unknown processor')}, {gpus}, {hardware.get('system', '')}{memory}"


def _form(folder: Path) -> str:
    """How the model in a folder is exported."""
    if list(folder.glob("*.onnx")):
        return "onnx"
    if (folder / "adapter").is_dir():
        return "lora"
    config = folder / "config.json"
    values = read_record(config) if config.exists() else {}
    if values.get("model_type") == "audio-spectrogram-transformer":
        return "stock"
    return "head" if values.get("head_only") else "full"


def _usage(place: str, form: str) -> str:
    """Python lines that answer a recording."""
    if form == "stock":
        return (
            "from transformers import pipeline  # laennec is not needed\n\n"
            f'listen = pipeline("audio-classification", model={json.dumps(place)})\n'
            "listen(samples)  # an array at 16 kHz: calibrated probabilities; thresholds are in config.json"
        )
    if form == "onnx":
        return (
            "import json, onnxruntime\n\n"
            'facts = json.load(open("onnx.json"))  # rate, labels, thresholds, what the recording goes through before\n'
            'session = onnxruntime.InferenceSession(facts["file"])\n'
            "# waveforms: float32 (batch, samples); lengths: int64 (batch,)\n"
            'logits, probabilities = session.run(None, {"waveforms": waveforms, "lengths": lengths})'
        )
    return (
        "import laennec\n\n"
        f"model, features = laennec.load_model({json.dumps(place)})  # a folder or a Hub id\n"
        'timeline = laennec.Predictor(model, features)("recording.wav")\n'
        "for row in timeline.rows():\n"
        "    print(row)  # start_s, end_s, and for each label its probability and whether it passes its threshold"
    )


def _template() -> str:
    return resources.files("laennec").joinpath("templates/card.md.jinja").read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    """Everything that a template prints is escaped unless it is Markdown."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, finalize=_shown, undefined=jinja2.ChainableUndefined
    )
    environment.filters |= {"code": code}
    environment.globals |= {"mark": lambda key: Markdown(_MARK.format(key))}
    return environment


def _shown(value: Any) -> str:
    """What no record knows is said to be so."""
    return "not recorded" if value is None or isinstance(value, jinja2.Undefined) else escaped(value)
