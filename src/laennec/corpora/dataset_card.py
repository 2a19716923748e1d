"""The card of an exported corpus, and what each corpus' owners ask of those who use it.

Decisions: every number of the card comes from the mark and the tables that were just written. Terms and caveats
belong to the corpus, not to who exports it, so they stand here and are said at every upload. Patients are never named
on the card beyond what the split's own report of leaks says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import datasets

from laennec.corpora.base import Corpus
from laennec.corpora.protocols import PROTOCOLS


@dataclass(frozen=True)
class Terms:
    """What is asked of those who use a corpus.

    Attributes:
        title: Its name for people.
        terms: Licence terms, one line.
        redistribution: Whether its owners let others pass it on, one line.
        citation: BibTeX, or nothing.
        caveats: What everybody who scores on it should know.
    """

    title: str
    terms: str
    redistribution: str
    citation: str = ""
    caveats: tuple[str, ...] = ()


_ICBHI = """@article{rocha2019open,
  title = {An open access database for the evaluation of respiratory sound classification algorithms},
  author = {Rocha, Bruno M. and Filos, Dimitris and Mendes, Lu{\\'i}s and others},
  journal = {Physiological Measurement},
  volume = {40},
  number = {3},
  pages = {035001},
  year = {2019}
}"""
_SPRSOUND = """@article{zhang2022sprsound,
  title = {SPRSound: Open-Source SJTU Paediatric Respiratory Sound Database},
  author = {Zhang, Qing and Zhang, Jing and Yuan, Jiajun and others},
  journal = {IEEE Transactions on Biomedical Circuits and Systems},
  volume = {16},
  number = {5},
  pages = {867--881},
  year = {2022}
}"""
_PHYSIONET = """@article{liu2016open,
  title = {An open access database for the evaluation of heart sound algorithms},
  author = {Liu, Chengyu and Springer, David and Li, Qiao and others},
  journal = {Physiological Measurement},
  volume = {37},
  number = {12},
  pages = {2181--2213},
  year = {2016}
}"""
TERMS: dict[str, Terms] = {
    "icbhi2017": Terms(
        "ICBHI 2017 Respiratory Sound Database",
        "freely available for research (the database's own words); cite its paper",
        "nothing in these terms grants redistribution: ask the authors before you make it public",
        _ICBHI,
        (
            "The official split shares patients 156 and 218 between train and test.",
            "Device and part are confounded: LittC2SE occurs in train only, Litt3200 mostly in test; recordings at "
            "4 kHz have nothing above 2 kHz, so bandwidth alone reveals the device.",
            'Recordings of mode "mc" of one patient were made at the same time at several chest locations.',
        ),
    ),
    "sprsound": Terms(
        "SPRSound, SJTU Paediatric Respiratory Sound Database",
        "open to research by its authors, who ask to be cited",
        "no licence that grants redistribution is known to this tool: ask the authors before you make it public",
        _SPRSOUND,
        (
            "All patients of test_intra are in train (or validation) too: its scores are no estimate for new patients.",
            "Events may overlap. A Poor Quality recording has no events: it is in `recordings` only.",
        ),
    ),
    "physionet2016": Terms(
        "PhysioNet/CinC Challenge 2016 heart sounds",
        "Open Data Commons Attribution License (ODC-By), as its page on PhysioNet says; cite the paper and PhysioNet",
        "keep the licence and the attribution that the database's page on PhysioNet asks for",
        _PHYSIONET,
        ("Who was recorded is not published: patients may be shared between any two parts.",),
    ),
    "folder": Terms(
        "Auscultation recordings",
        "none are stated: these are recordings of whoever exported them",
        "make it public only if every person recorded agreed to that and nothing in it names them",
    ),
    "synthetic": Terms(
        "Synthetic lung sounds of laennec",
        "made by a physical model under the Apache License 2.0; nothing in it is a patient's voice",
        "free to pass on",
        caveats=("No score on it belongs beside one of real recordings.",),
    ),
}


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

    terms = TERMS[corpus.name]
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
