"""What a corpus consists of before any audio is decoded: recordings and their annotated events."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from laennec.errors import InputError


@dataclass(frozen=True)
class Event:
    """An annotated stretch of a recording: a respiratory cycle, an event, or the recording as a whole.

    Attributes:
        start_s: In seconds.
        end_s: In seconds.
        crackle: 0, 1, or None where it is unknown.
        wheeze: Likewise.
        names: The corpus' own names of what is annotated, if any.
    """

    start_s: float
    end_s: float
    crackle: int | None = None
    wheeze: int | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class AnnotatedRecording:
    """A recording of a corpus and what is known of it; None is unknown.

    Attributes:
        recording_id: Its name, unique in the corpus.
        patient_id: The patient, or None if the corpus does not say.
        audio_path: The audio file, or None in a folder that holds annotations alone.
        annotation_path: The file its events are in, if `Corpus.read_events` reads them from one.
        events: Its cycles or events, if they are known already.
        chest_location: Where the stethoscope was.
        acquisition_mode: "sc" (one channel), "mc" (several channels at once).
        device: The stethoscope.
        age_years: Of the patient.
        sex: "F" or "M".
        bmi: Body mass index in kg/m^2.
        diagnosis: Of the patient.
        whole: Whether the recording as a whole is one row.
        split: The split it belongs to, if the corpus is published in splits; becomes the column `part`.
        extra: (column, value) of the columns that only this corpus has.
    """

    recording_id: str
    patient_id: str | None
    audio_path: Path | None
    annotation_path: Path | None = None
    events: tuple[Event, ...] = ()
    chest_location: str | None = None
    acquisition_mode: str | None = None
    device: str | None = None
    age_years: float | None = None
    sex: str | None = None
    bmi: float | None = None
    diagnosis: str | None = None
    whole: bool = False
    split: str | None = None
    extra: tuple[tuple[str, Any], ...] = ()


class UnusableRecordingsError(InputError):
    """Recordings of a corpus whose header, annotation or audio cannot be used; names all of them.

    Attributes:
        problems: One line each, naming the file.
        usable: The cycle table of the other recordings, or None where it does not matter.
    """

    def __init__(self, problems: Sequence[str], recordings: int, usable: datasets.Dataset | None = None) -> None:
        self.problems = list(problems)
        self.recordings = recordings
        self.usable = usable
        many = f"{len(self.problems)} of {recordings} recordings cannot be used: "
        super().__init__((many if len(self.problems) > 1 else "") + "; ".join(self.problems))
