"""The YAML metadata of a card for the Hub.

Decisions: a result in `model-index` has its interval, definition and fingerprints, and its name states patients that
the split shares with training. Only Hub ids are given as base model or data set, never names of files. The Hub checks
metadata before it accepts a commit.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from laennec.evaluation.intervals import number_behind
from laennec.evaluation.summary import figure_name
from laennec.training.recipe import CardSettings

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# folders of our recipes: "weights/x" is a file, not a Hub id
_OUR_FOLDERS = ("weights", "runs", "data", "models", "checkpoints")
_FILES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".onnx")
_TASK = "audio-classification"


def card_metadata(
    run: Mapping[str, Any],
    splits: Sequence[Mapping[str, Any]],
    settings: CardSettings,
    model_name: str,
    relation: str | None,
) -> ModelCardData:
    """Build the metadata of a card."""
    weights = run["config"]["encoder"].get("weights")
    base = settings.base_model or (weights if is_hub_id(weights) else None)
    results = [_result(split, name, settings) for split in splits for name in _indexed(split["metrics"])]
    return ModelCardData(
        license=settings.licence,
        license_name=settings.licence_name,
        license_link=settings.licence_link,
        library_name="transformers",
        pipeline_tag=_TASK,
        base_model=base,
        base_model_relation=relation if base else None,
        datasets=[settings.dataset] if settings.dataset else None,
        tags=[_without_tags(tag) for tag in _tags(run)],
        model_name=_without_tags(model_name),
        eval_results=results or None,
    )


def _result(split: Mapping[str, Any], name: str, settings: CardSettings) -> EvalResult:
    """A figure of a scored split, for `model-index`."""
    metrics, evaluated = split["metrics"], split["evaluated"]
    corpus, origin = evaluated["corpus"], evaluated["corpus"]["provenance"]
    prints = {"corpus_fingerprint": corpus.get("fingerprint"), "split_fingerprint": origin.get("split_fingerprint")}
    lung_sounds = "crackle" in metrics["label_names"]
    task = f"{', '.join(metrics['label_names'])} in respiratory sounds" if lung_sounds else "Audio classification"
    return EvalResult(
        task_type=_TASK,
        task_name=_without_tags(task),
        dataset_type=settings.dataset or _without_tags(corpus["name"]),
        dataset_name=_without_tags(corpus["name"]),
        dataset_config=_without_tags(origin["protocol"]) if origin.get("protocol") else None,
        dataset_split=_without_tags(evaluated["split"]),
        dataset_args={name: str(value) for name, value in prints.items() if value} or None,
        metric_type=re.sub(r"\W+", "_", name.rsplit(".", 1)[-1] if name.endswith("auc") else name).lower(),
        metric_name=figure_name(name) + (f" ({split['shares']})" if split["shares"] else ""),
        metric_value=round(float(metrics["values"][name]), 4),
        metric_args=_metric_args(metrics, name),
    )


def _without_tags(text: Any) -> str:
    """Text without angle brackets: a page that shows the metadata may not escape them."""
    return re.sub("[<>]", "", str(text))


def eval_result_files(splits: Sequence[Mapping[str, Any]], settings: CardSettings) -> dict[str, str]:
    """Contents of `.eval_results/*.yaml`, one file per split, if the data are on the Hub; otherwise none."""
    if settings.dataset is None:
        return {}
    files = {}
    for split in splits:
        metrics, evaluated = split["metrics"], split["evaluated"]
        name = metrics["headline"]
        entry = EvalResultEntry(
            dataset_id=settings.dataset,
            task_id=re.sub(r"\W+", "_", f"{evaluated['split']}_{name}").lower(),
            value=round(float(metrics["values"][name]), 4),
            date=evaluated.get("created"),
            notes=figure_name(name) + (f"; {split['shares']}" if split["shares"] else ""),
        )
        file = re.sub(r"\W+", "_", str(evaluated["split"])) + ".yaml"
        files[file] = yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return files


def _indexed(metrics: Mapping[str, Any]) -> list[str]:
    """The figures for model-index: the headline and the AUROC of each label."""
    names = [metrics["headline"], *(n for n in metrics["values"] if n.endswith((".roc_auc", "roc_auc_macro")))]
    return [name for name in dict.fromkeys(names) if metrics["values"].get(name) is not None]


def _metric_args(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Interval and definition of a figure."""
    bounds, how = metrics["intervals"].get(name), metrics["uncertainty"]
    found: dict[str, Any] = {"definition": metrics["definitions"].get(name.split(".")[0])}
    if bounds:
        found["interval_95"] = [round(float(b), 4) for b in bounds]
        behind = number_behind(metrics.get("effective_patients") or {}, name)
        few = "" if behind is None else f" ({behind:.1f} effective)"
        found["interval_from"] = f"{how['method']} over {how['patients']} patients{few}"
    label = name.rpartition(".")[0]
    if name.endswith(".roc_auc"):
        found["label"] = label
    return {k: v for k, v in found.items() if v is not None}


def _tags(run: Mapping[str, Any]) -> list[str]:
    lungs = {"crackle", "wheeze"} & set(run.get("labels") or ())
    tags = ["laennec", "audio-classification", "auscultation"]
    tags += ["respiratory-sounds", "lung-sounds", *sorted(lungs)] if lungs else []
    return [*tags, *str(run["config"]["corpus"]["name"]).split("+"), str(run["config"]["encoder"]["type"])]


def is_hub_id(name: Any) -> bool:
    """Whether a name is a Hub id ("openai/whisper-base") and not a file ("weights/whisper_base")."""
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        return False
    return name.split("/")[0] not in _OUR_FOLDERS and not name.lower().endswith(_FILES)
