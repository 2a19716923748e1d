"""The card of an exported corpus, and what each corpus' owners ask of those who use it.

Decisions: every number of the card comes from the mark and the tables that were just written. Terms and caveats
belong to the corpus, not to who exports it, so they stand here and are said at every upload. Patients are never named
on the card beyond what the split's own report of leaks says.
"""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import datasets

from laennec.corpora.base import Corpus
from laennec.corpora.protocols import PROTOCOLS


def dataset_card(
    facts: Mapping[str, Any],
    parts: datasets.DatasetDict,
    infos: Mapping[str, datasets.DatasetInfo],
    corpus: Corpus,
) -> str:
    """The README.md of an export.

    Args:
        facts: What its mark says.
        parts: The split tables.
        infos: The configurations that were written, the default first.
        corpus: The corpus.
    """
    from huggingface_hub import DatasetCardData
    from jinja2 import Environment, StrictUndefined

    terms = corpus
    head = DatasetCardData(
        license="other",
        license_name=f"terms-of-{corpus.name}",
        pretty_name=terms.title,
        task_categories=["audio-classification"],
        tags=["lung-sounds", "respiratory-sounds", "auscultation", "medical", "laennec"]
        if corpus.class_column == "label"
        else ["auscultation", "heart-sounds", "medical", "laennec"],
        size_categories=[_size_category(sum(facts["cycles"].values()))],
    )
    datasets.info.DatasetInfosDict(infos).to_dataset_card_data(head)
    head.configs = [_config(name, info, name == next(iter(infos))) for name, info in infos.items()]
    source = resources.files("laennec").joinpath("templates/dataset_card.md").read_text(encoding="utf-8")
    template = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined).from_string(source)
    return template.render(
        head=head.to_yaml(),
        facts=facts,
        terms=terms,
        counts=dict(zip(facts["cycles"], _counts(parts, corpus), strict=True)),
        whole=_patients(datasets.concatenate_datasets(list(parts.values()))),
        configs=list(infos),
        first=next(part for part, rows in facts["cycles"].items() if rows),
        empty=[part for part, rows in facts["cycles"].items() if not rows],
        about={name: PROTOCOLS[name].description for name in facts["protocols"]},
        rates=sorted({rate for part in parts.values() for rate in part["source_sampling_rate"]}),
        audio_rate=infos["cycles"].features["audio"].sampling_rate,
    )


def _config(name: str, info: datasets.DatasetInfo, default: bool) -> dict[str, Any]:
    files = [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in info.splits]
    return {"config_name": name, "data_files": files, **({"default": True} if default else {})}


def _size_category(rows: int) -> str:
    limits = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for limit, name in limits if rows < limit), "1M<n<10M")


def _counts(parts: datasets.DatasetDict, corpus: Corpus) -> list[dict[str, Any]]:
    """For each part how many cycles of each class, recordings and patients."""
    names = corpus.features[corpus.class_column].names
    found = []
    for table in parts.values():
        values = table[corpus.class_column][:]
        counts = {name: values.count(code) for code, name in enumerate(names)}
        unknown = values.count(None)
        classes = counts | ({"unknown": unknown} if unknown else {})
        found.append({"cycles": len(table), "classes": classes, **_patients(table)})
    return found


def _patients(table: datasets.Dataset) -> dict[str, Any]:
    people = set(table["patient_id"]) - {None}
    devices = sorted(set(table["device"]) - {None})
    return {
        "patients": len(people) or (0 if len(table) == 0 else "unknown"),
        "recordings": len(set(table["recording_id"])),
        "devices": devices,
    }
