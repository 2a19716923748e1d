"""Label names of a user's own annotations: parsing them, and the columns of the cycle table for them.

Decisions: a corpus whose labels are crackle, wheeze, both and normal has no label set; its table is that of ICBHI 2017.
Any other name makes a label set. It has several labels a row if a row names several or if the labels are columns of 0
and 1, else exactly one class a row. Names that differ in case alone are one label. An empty cell is a row with none of
the labels, as "normal" is. A name that looks like a misspelt crackle or wheeze is an error, because it would otherwise
become a third label.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from laennec.audio.cycles import AnnotationError, parse_label
from laennec.corpora.base import ABNORMAL, CYCLE_FEATURES
from laennec.corpora.splits import PROTOCOLS
from laennec.errors import InputError, did_you_mean

NORMAL = "normal"
FLAGS = ("crackle", "wheeze")
# further columns that laennec adds to a cycle table or an export of it
_ADDED = {ABNORMAL, "audio", "corpus", "cycles", "fold", "source_path"}
_ADDED |= {f"{kind}_{name.replace('-', '_')}" for kind in ("split", "fold") for name in PROTOCOLS}
UNKNOWN = ("na", "n/a", "nan", "null", "unknown")
_SEPARATORS = re.compile(r"[;,+|]")
_WORDS = {
    **{"crackle": ("crackle",), "crackles": ("crackle",), "wheeze": ("wheeze",), "wheezes": ("wheeze",)},
    **{"both": FLAGS, NORMAL: (), "none": ()},
}

Names = tuple[str, ...]


def is_plain(text: str) -> bool:
    """Whether a cell is empty, unknown, or a label of crackles and wheezes."""
    try:
        parse_label("", None, text)
    except AnnotationError:
        return text.casefold() in ("", *UNKNOWN)
    return True


def names_of(path: Any, line: int | str | None, text: str) -> Names | None:
    """The labels that a cell names: none of them for an empty cell or "normal", None for an unknown label."""
    if text.casefold() in UNKNOWN:
        return None
    if text and is_plain(text):
        return tuple(name for name, flag in zip(FLAGS, parse_label(path, line, text), strict=True) if flag)
    words = [" ".join(word.split()) for word in _SEPARATORS.split(text) if word.strip()]
    names = tuple(dict.fromkeys(name for word in words for name in _WORDS.get(word.casefold(), (word,))))
    if names and any(_WORDS.get(word.casefold()) == () for word in words):
        raise AnnotationError(path, line, f"label {text!r} contains normal and another label; keep one of them")
    for word in words:
        near = difflib.get_close_matches(word.casefold(), [w for w in _WORDS if w.startswith(FLAGS)], 1, cutoff=0.8)
        if near and word.casefold() not in _WORDS:
            raise AnnotationError(path, line, f"label {word!r}: did you mean {near[0]!r}? Correct it")
    return names


@dataclass(frozen=True)
class LabelSet:
    """The labels of a corpus that has other labels than crackle and wheeze."""

    names: Names  # the labels, without normal
    # the classes of the column `label`: normal and the labels, or every combination of labels that occurs
    classes: Names
    multi_label: bool  # whether a row can have several labels; each is a column of 0 and 1 then

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of the cycle table for these labels."""
        flags = {name: datasets.Value("int8") for name in self.names} if self.multi_label else {}
        return {"label": datasets.ClassLabel(names=list(self.classes)), **flags}

    def values(self, events: Sequence[str] | None) -> dict[str, int | None]:
        """The values of `columns` for a row with these labels; None for one whose labels are unknown."""
        if events is None:
            return dict.fromkeys(self.columns)
        flags = {name: int(name in events) for name in self.names} if self.multi_label else {}
        return {"label": self.classes.index("+".join(events)), **flags}

    def spelled(self, names: Names) -> Names:
        """The names as this set spells them, in its order; normal where there are none."""
        wanted = {name.casefold() for name in names}
        return tuple(name for name in self.names if name.casefold() in wanted) or (NORMAL,)


def label_set(rows: Iterable[Names | None], columns: Sequence[str], wanted: Sequence[str] | None) -> LabelSet:
    """The labels of annotated rows; `columns` are those of 0 and 1, `wanted` all in order (None: those that occur)."""
    known = {frozenset(name.casefold() for name in row): row for row in rows if row is not None}
    spelling: dict[str, str] = {name.casefold(): name for name in wanted or columns if name.casefold() != NORMAL}
    for name in sorted({name for row in known.values() for name in row}, key=lambda name: (name.casefold(), name)):
        if wanted is not None and name.casefold() not in spelling:
            raise InputError(
                f"label {name!r} is none of {', '.join(wanted)}; correct it, or add it to "
                f"corpus.options.labels{did_you_mean(name, wanted)}"
            )
        spelling.setdefault(name.casefold(), name)
    place = {name: k for k, name in enumerate(spelling)}
    multi_label = bool(columns) or any(len(row) > 1 for row in known)
    reserved = (set(CYCLE_FEATURES) | _ADDED) - set(FLAGS)
    if multi_label and (taken := [name for name in spelling.values() if name in reserved]):
        raise InputError(f"label {taken[0]!r} has the name of a column of the cycle table; rename the label")
    # a label that the user names is an output also without an example
    without = [[name] for name in place if wanted is not None and not any(name in row for row in known)]
    rows_of = (sorted(place[name] for name in row) for row in (*known, *without))
    combinations = sorted(rows_of, key=lambda row: (len(row), row))
    names = tuple(spelling.values())
    if multi_label:
        classes = tuple("+".join(names[k] for k in row) or NORMAL for row in combinations)
    else:
        classes = ((NORMAL,) if frozenset() in known else ()) + names
    return LabelSet(names, classes, multi_label)
