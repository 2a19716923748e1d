"""The CSV that describes a folder of recordings: its columns and its rows.

Decisions: each column has several accepted names; options can name others. Columns of 0 and 1 with other names are
labels, unless there is a column of labels; an empty cell in them is an error. Without times and labels, the diagnosis
of a recording is its label.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from laennec.audio.cycles import AnnotationError
from laennec.corpora.labels import FLAGS, UNKNOWN
from laennec.corpora.recordings import read_csv

COLUMNS: dict[str, tuple[str, ...]] = {
    "recording": ("recording", "file", "filename", "recording_id"),
    "start_s": ("start_s", "start"),
    "end_s": ("end_s", "end"),
    "crackle": ("crackle", "crackles"),
    "wheeze": ("wheeze", "wheezes"),
    "label": ("label",),
    "patient_id": ("patient_id", "patient"),
    "device": ("device",),
    "chest_location": ("chest_location", "location"),
    "acquisition_mode": ("acquisition_mode",),
    "sex": ("sex",),
    "age_years": ("age_years", "age"),
    "bmi": ("bmi",),
    "diagnosis": ("diagnosis",),
}

_BINARY = {"0": "0", "0.0": "0", "1": "1", "1.0": "1"}
_EMPTY = {"", *UNKNOWN}

Row = tuple[int, dict[str, str]]


@dataclass(frozen=True)
class AnnotationTable:
    """A CSV: numbered rows, whose keys are names of COLUMNS and labels."""

    path: Path  # the file
    rows: list[Row]  # line and values
    columns: tuple[str, ...]  # the names that it has
    flags: list[str]  # the labels that are columns of 0 and 1
    unknown_labels: bool = False  # whether an empty label means unknown (of a diagnosis) rather than normal

    @property
    def timed(self) -> bool:
        """Whether a row is a span of a recording."""
        return "start_s" in self.columns

    @property
    def by_patient(self) -> bool:
        """Whether a row is a patient."""
        return "recording" not in self.columns

    @property
    def labels(self) -> list[str]:
        """The columns that hold labels."""
        return ["label"] if "label" in self.columns else self.flags

    def text(self, line: int, row: Mapping[str, str], unlabelled: bool) -> str | None:
        """The label of a row as text; None where it is unknown."""
        if "label" in self.columns:
            return None if not row["label"] and (unlabelled or self.unknown_labels) else row["label"]
        if unlabelled and not any(row[name] for name in self.flags):
            return None
        if wrong := [name for name in self.flags if row[name] not in ("0", "1")]:
            remedy = "correct it, or name all columns of labels in corpus.options.labels"
            raise AnnotationError(self.path, line, f"{wrong[0]} {row[wrong[0]]!r} must be 0 or 1; {remedy}")
        return "+".join(name for name in self.flags if row[name] == "1")


def read_table(
    path: Path,
    patient_column: str | None = None,
    label_column: str | None = None,
    labels: list[str] | None = None,
    unlabelled: bool = False,
) -> AnnotationTable:
    """Read the CSV of a folder; for the arguments see the options of `laennec.corpora.folder.corpus.Folder`."""
    (_, header), *lines = read_csv(path, ",;\t") or [(1, [])]
    own = {"patient_id": patient_column, "label": label_column}
    names = [_column(word, own) for word in header]
    for name in [name for name, given in own.items() if given is not None and name not in names]:
        # label_column can be a column of Raven tables instead
        if name != "label" or "start_s" in names:
            columns = f"the columns are {', '.join(header)}"
            raise AnnotationError(
                path, 1, f"no column {own[name]!r} (corpus.options.{name.partition('_')[0]}_column); {columns}"
            )
    known = [name for name in names if name]
    by_patient = "patient_id" in known and not {"start_s", "end_s"} & set(known)
    if not ("recording" in known or by_patient) or len(known) != len(set(known)):
        reason = "the header must name each column once and have recording or file"
        raise AnnotationError(path, 1, f"{reason} (or patient_id, for one row a patient); correct it")
    if not lines:
        raise AnnotationError(path, None, "the table has no rows; annotate the recordings")
    if ("start_s" in known) != ("end_s" in known):
        raise AnnotationError(path, 1, "start_s and end_s go together; add the missing column")
    # without any other label, the diagnosis is the label of a recording
    diagnosed = "diagnosis" in known and not {"label", "start_s", "crackle", "wheeze"} & set(known) and not labels
    diagnosed = diagnosed and not unlabelled
    flags = [] if diagnosed or "label" in known else _flag_columns(header, names, lines, labels)
    if "start_s" in known and "label" not in known and not flags and not unlabelled:
        remedy = "add them, or name the column of labels by corpus.options.label_column"
        raise AnnotationError(path, 1, f"cycles need a column label, or a column of 0 and 1 for each label; {remedy}")
    # operating systems write the same letters of a file name in different Unicode forms
    rows = [
        (line, {name: normalize("NFC", v) for name, v in zip(names, values, strict=True) if name})
        for line, values in lines
    ]
    plain = _BINARY | (dict.fromkeys(_EMPTY, "") if unlabelled else {})
    for _, row in rows:
        row |= {name: plain.get(row[name].casefold(), row[name]) for name in {*flags, *FLAGS} & row.keys()}
    if diagnosed:
        rows, known = [(line, row | {"label": row["diagnosis"]}) for line, row in rows], [*known, "label"]
    return AnnotationTable(path, rows, tuple(known), flags, diagnosed)


def _flag_columns(
    header: list[str], names: list[str | None], lines: list[tuple[int, list[str]]], wanted: list[str] | None
) -> list[str]:
    """The labels that are columns of 0 and 1; a user's own labels are written into `names`."""
    known = wanted and [name.casefold() for name in wanted]
    flags = []
    for place, (word, name) in enumerate(zip(header, names, strict=True)):
        values = {row[place].casefold() for _, row in lines}
        binary = values <= {*_BINARY, *_EMPTY} and not values <= _EMPTY
        label = name or (word if word and (known or binary) and not re.search("[;,+|]", word) else None)
        if label and (name in FLAGS or not name) and (known is None or label.casefold() in known):
            names[place] = label
            flags.append(label)
    return flags


def _column(word: str, own: Mapping[str, str | None]) -> str | None:
    clean = word.strip().lower().replace(" ", "_")
    given = next(
        (name for name, column in own.items() if column and column.strip().lower() == word.strip().lower()), None
    )
    return given or next((n for n, words in COLUMNS.items() if clean in words and not own.get(n)), None)
