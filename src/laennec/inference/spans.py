"""Which stretches of a recording are answered.

Decisions: an annotation is found beside others by the recording's name, in any of the forms that are read; two for
one recording are refused rather than chosen from. An annotation gives times only: its labels are not looked at.
"""

from collections.abc import Sequence
from pathlib import Path

from laennec.audio.cycles import AnnotationError, Span
from laennec.audio.selections import read_spans
from laennec.corpora.sprsound import read_events
from laennec.errors import InputError

LABELS_SUFFIX, SELECTIONS_SUFFIX = ".labels.txt", ".selections.txt"
_ANNOTATION_SUFFIXES = (".txt", ".json", LABELS_SUFFIX, SELECTIONS_SUFFIX, ".Table.1.selections.txt")


def annotated_spans(path: str | Path, duration_s: float | None = None) -> list[Span]:
    """The spans of an annotation: ICBHI text, Audacity labels, a Raven selection table or SPRSound JSON.

    Args:
        path: The file.
        duration_s: Length of the audio; with it, spans that end beyond it are refused.

    Returns:
        (start_s, end_s) in the order of the file.

    Raises:
        AnnotationError: The first problem of the file, or nothing is annotated in it.
    """
    if Path(path).suffix.lower() != ".json":
        return read_spans(path, duration_s)
    spans = [(event.start_s, event.end_s) for event in read_events(path, duration_s)]
    if not spans:
        raise AnnotationError(path, None, "no events in this file; answer this recording by windows")
    return spans


def annotation_of(recording: Path, annotation: str | Path | None) -> Path | None:
    """The annotation of a recording: the file itself, or that of the recording's name in a folder.

    Raises:
        InputError: The folder has two of them.
    """
    if annotation is None:
        return None
    place = Path(annotation)
    if not place.is_dir():
        return place
    found = [p for suffix in _ANNOTATION_SUFFIXES if (p := place / f"{recording.stem}{suffix}").exists()]
    if len(found) > 1:
        names = " and ".join(p.name for p in found[:2])
        raise InputError(f"{recording}: two annotations in {place} ({names}); take one away, or name the file itself")
    return found[0] if found else place / f"{recording.stem}{_ANNOTATION_SUFFIXES[0]}"


def refuse_one_for_many(recordings: Sequence[Path], annotation: str | Path | None) -> None:
    """One annotation file is for one recording.

    Raises:
        InputError: It was given for several.
    """
    if annotation is not None and len(recordings) > 1 and not Path(annotation).is_dir():
        raise InputError(f"{annotation}: one annotation for {len(recordings)} recordings; give a folder of them")
