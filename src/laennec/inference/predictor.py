"""A recording's spans -> probabilities and decisions.

Decisions: the front end, the recording filter, the temperatures and the thresholds are the model's own; serving
chooses only where to look (windows, the cycles of an annotation, or breaths found in the sound) and says so. A model
that joins the neighbours of a cycle takes those of the same annotation, or what is heard right before and after a
window. Recordings are read in blocks and answered as they go by, so that hours cost no more memory than minutes, and a
span's answer does not depend on how long the recording is. A window is never longer than what the model hears of one.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from laennec.audio.context import InContext
from laennec.audio.cycles import Span
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import ButterworthFilter, DecodeError, Waveform
from laennec.audio.segmentation import BreathSegmentation, breath_cycles
from laennec.audio.streaming import RecordingStream, open_recording, passing_cycles, passing_windows
from laennec.errors import InputError
from laennec.evaluation.smoothing import NEIGHBOUR_RULE, RULE, smooth_logits
from laennec.inference.spans import annotated_spans
from laennec.modeling import LaennecForAudioClassification
from laennec.training.embeddings import embed_waveforms
from laennec.training.tables import head_logits

Probabilities = NDArray[np.float32]
Listener = Callable[[RecordingStream, Waveform], None]

GIVEN_RULE = "given"
_WINDOW_S = 3.0
# enough spans at once for full batches of like length, few enough that their sound (16 MiB) weighs little
_CHUNK_SPANS, _CHUNK_SAMPLES = 64, 1 << 22


@dataclass(frozen=True)
class Answer:
    """What is answered about one span.

    Attributes:
        start_s: Where it begins, in seconds.
        end_s: Where it ends, in seconds.
        probabilities: (labels,), calibrated, in the order of the model's labels.
        present: (labels,), whether each label passes its threshold.
    """

    start_s: float
    end_s: float
    probabilities: Probabilities
    present: NDArray[np.bool_]


@dataclass
class Prediction:
    """One recording's timeline.

    Attributes:
        recording: Path of the recording.
        duration_s: Its length.
        source_sampling_rate: Its own rate in Hz.
        spans: (start_s, end_s) of each window or cycle.
        probabilities: (spans, labels), calibrated.
        present: (spans, labels), whether each label passes its threshold.
        labels: Label names.
        smoothing: How strongly each answer was mixed with a mean; 0 for not at all.
        neighbours: The mean was over so many spans on either side; 0 for the whole recording.
        places: Where the spans come from: {"from": "windows", "annotation" or "segmentation", ...}.
        decision: How a label is decided: {"rule", "thresholds", "temperatures", "intercepts"}.
    """

    recording: str
    duration_s: float
    source_sampling_rate: int
    spans: list[Span]
    probabilities: Probabilities
    present: NDArray[np.bool_]
    labels: list[str]
    smoothing: float = 0.0
    neighbours: int = 0
    places: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat row a span, numbers rounded as they are written: times to 1 ms, probabilities to 6 digits."""
        for (start, end), probability, present in zip(self.spans, self.probabilities, self.present, strict=True):
            row: dict[str, Any] = {"recording": self.recording, "start_s": round(start, 3), "end_s": round(end, 3)}
            for name, p, is_present in zip(self.labels, probability, present, strict=True):
                row[f"{name}_probability"] = round(float(p), 6)
                row[name] = int(is_present)
            yield row

    def to_dict(self) -> dict[str, Any]:
        """The timeline as plain values."""
        rows = [{k: v for k, v in row.items() if k != "recording"} for row in self.rows()]
        return {
            "recording": self.recording,
            "duration_s": round(self.duration_s, 3),
            "source_sampling_rate": self.source_sampling_rate,
            "labels": self.labels,
            "spans": self.places,
            "decision": self.decision,
            **({"smoothing": smoothing_said(self.smoothing, self.neighbours)} if self.smoothing else {}),
            "timeline": rows,
        }


def smoothing_said(strength: float, neighbours: int) -> dict[str, Any] | None:
    """A smoothing as outputs state it."""
    if not strength:
        return None
    if neighbours:
        return {"rule": NEIGHBOUR_RULE, "strength": strength, "neighbours": neighbours}
    return {"rule": RULE, "strength": strength}


class Predictor:
    """A model with its front end, ready for recordings of any rate, depth, number of channels and length.

    Args:
        model: The model.
        extractor: Its front end.
        window_s: Length of a window, in seconds; None for 3 s, or what the model hears of a cycle where that is less.
        hop_s: From one window's start to the next, in seconds; None for half a window.
        smoothing: How strongly each answer is mixed with a mean, 0 to 1.
        neighbours: The mean is over so many spans on either side; 0 for the whole recording.
        thresholds: Probabilities above which a label is present, by label name; the model's own for those left out.
        segmentation: Answer breath cycles that are found in the sound instead of windows.

    Raises:
        InputError: Windows, smoothing or thresholds that cannot be.
    """

    def __init__(
        self,
        model: LaennecForAudioClassification,
        extractor: LaennecFeatureExtractor,
        window_s: float | None = None,
        hop_s: float | None = None,
        smoothing: float = 0.0,
        *,
        neighbours: int = 0,
        thresholds: Mapping[str, float] | None = None,
        segmentation: BreathSegmentation | None = None,
    ) -> None:
        # by every rule of length but "natural" nothing beyond duration_s is heard
        self.heard_s = float("inf") if extractor.length == "natural" else float(extractor.duration_s or 0)
        window_s = min(_WINDOW_S, self.heard_s) if window_s is None else window_s
        hop_s = window_s / 2 if hop_s is None else hop_s
        if not 0 < hop_s <= window_s < float("inf"):
            raise InputError(
                f"windows of {window_s:g} s every {hop_s:g} s: --hop-s must be greater than 0 and at most --window-s"
            )
        if not 0 <= smoothing <= 1 or neighbours < 0:
            raise InputError(
                f"smoothing of strength {smoothing:g} over {neighbours} neighbours: a strength is 0 to 1 (--smoothing),"
                " neighbours are 0 or more (--smoothing-neighbours)"
            )
        self.model = model.eval()
        self.extractor = extractor
        self.window_s, self.hop_s = float(window_s), float(hop_s)
        self.smoothing, self.neighbours = float(smoothing), neighbours if smoothing else 0
        self.segmentation = segmentation
        self.given_thresholds = dict(thresholds or {})
        self.decision = _decision(model, self.given_thresholds)
        settings = getattr(extractor, "recording_filter", None)
        self.filter = ButterworthFilter(**settings) if settings else None

    def __call__(
        self, path: str | Path, annotation: str | Path | None = None, listener: Listener | None = None
    ) -> Prediction:
        """Answer one recording: by windows, the spans of an annotation, or segmented breaths.

        Args:
            path: The recording.
            annotation: ICBHI text, Audacity labels, a Raven selection table or SPRSound JSON; its times are used.
            listener: Called with the stream and each block of sound as the model hears it.

        Raises:
            DecodeError: The recording cannot be read, or a piece of it is shorter than one frame.
            AnnotationError: The annotation cannot be read or does not fit the recording.
        """
        spans = self._spans(path, annotation)
        places: list[int] = []
        found: list[Span] = []
        heard: list[float] = []
        with self._opened(path, listener) as stream:
            for place, span, row in self._heard(stream, spans, annotation):
                places.append(place)
                found.append(span)
                heard.extend(row.tolist())
        logits = np.array(heard, np.float32).reshape(len(found), len(self.model.config.label_names))
        logits = smooth_logits(logits, [0] * len(found), self.smoothing, self.neighbours).astype(np.float32)
        # heard in time order, told in the order of the annotation
        order = np.argsort(places, kind="stable")
        probabilities = self._probabilities(logits[order])
        return Prediction(
            str(path),
            stream.duration_s,
            stream.source_sampling_rate,
            [found[row] for row in order],
            probabilities,
            self._present(probabilities),
            self.model.config.label_names,
            self.smoothing,
            self.neighbours,
            self._places(annotation),
            self.decision,
        )

    def stream(self, path: str | Path, annotation: str | Path | None = None) -> Iterator[Answer]:
        """Answer one recording span after span in time order, while it is being read.

        Smoothing over neighbours lags behind by as many spans. What only the end of a file can tell (cut short, or an
        annotation that goes beyond it) is raised at the end, when its beginning has been answered.

        Args:
            path: The recording.
            annotation: As for a call.

        Raises:
            InputError: Smoothing over whole recordings, which needs their end; or as for a call.
        """
        if self.smoothing and not self.neighbours:
            raise InputError(
                "smoothing over whole recordings needs their end; smooth over neighbours, or call the predictor"
            )
        spans = self._spans(path, annotation)
        with self._opened(path, None) as stream:
            heard = ((span, row) for _, span, row in self._heard(stream, spans, annotation))
            for (start_s, end_s), row in self._smoothed(heard):
                probabilities = self._probabilities(row[None].astype(np.float32))
                yield Answer(start_s, end_s, probabilities[0], self._present(probabilities)[0])

    def identity(self, annotated: bool) -> dict[str, Any]:
        """Everything but the model's weights (and the annotations) that decides what is answered, as plain values."""
        return {
            "spans": {"from": "annotation"} if annotated else self._places(None),
            "smoothing": smoothing_said(self.smoothing, self.neighbours),
            "decision": self.decision,
            "labels": self.model.config.label_names,
        }

    def _spans(self, path: str | Path, annotation: str | Path | None) -> list[Span] | None:
        """Where to look; None for windows."""
        if annotation is not None:
            return annotated_spans(annotation)
        return None if self.segmentation is None else breath_cycles(path, self.segmentation)

    def _places(self, annotation: str | Path | None) -> dict[str, Any]:
        """Where the spans come from, as outputs state it."""
        if annotation is not None:
            return {"from": "annotation", "file": str(annotation)}
        if self.segmentation is not None:
            return {"from": "segmentation", **asdict(self.segmentation)}
        return {"from": "windows", "window_s": self.window_s, "hop_s": self.hop_s}

    def _opened(self, path: str | Path, listener: Listener | None) -> Any:
        return open_recording(path, self.extractor.sampling_rate, filter=self.filter, listener=listener)

    def _heard(
        self, stream: RecordingStream, spans: list[Span] | None, annotation: str | Path | None
    ) -> Iterator[tuple[int, Span, Probabilities]]:
        """Place, span and logits of each span in time order, embedded so many at once."""
        for chunk in _chunks(self._sounds(stream, spans, annotation)):
            logits = head_logits(
                self.model, embed_waveforms(self.model, self.extractor, [sound for _, _, sound in chunk])
            )
            yield from ((place, span, row) for (place, span, _), row in zip(chunk, logits, strict=True))

    def _sounds(
        self, stream: RecordingStream, spans: list[Span] | None, annotation: str | Path | None
    ) -> Iterator[tuple[int, Span, InContext]]:
        context = self.extractor.context_cycles
        items: Iterator[tuple[int, Span, InContext]]
        if spans is None:
            windows = passing_windows(stream, self.window_s, self.hop_s, context)
            items = ((place, span, sound) for place, (span, sound) in enumerate(windows))
        else:
            # once the length of the recording is known, the annotation is held against it
            check = None if annotation is None else lambda duration_s: _check(annotation, duration_s)
            items = ((place, spans[place], sound) for place, sound in passing_cycles(stream, spans, context, check))
        for place, span, sound in items:
            self._refuse_short(stream, span, len(sound.own))
            yield place, span, sound

    def _refuse_short(self, stream: RecordingStream, span: Span, samples: int) -> None:
        """Refuse a span that does not fill a frame."""
        if self.extractor.frames(samples) < 1:
            reason = (
                f"{span[0]:g} to {span[1]:g} s is {samples} samples, shorter than one frame "
                f"({self.extractor.window_ms:g} ms); leave it out or correct its annotation"
            )
            raise DecodeError(stream.path, reason)

    def _smoothed(self, heard: Iterator[tuple[Span, Probabilities]]) -> Iterator[tuple[Span, Any]]:
        """Spans with their smoothed logits, as soon as their neighbours have been heard."""
        if not self.smoothing:
            yield from heard
            return
        reach = self.neighbours
        around: deque[tuple[Span, Probabilities]] = deque()
        place = 0  # of the next span to be answered, within `around`

        def answered() -> tuple[Span, Any]:
            near = [row for _, row in list(around)[max(place - reach, 0) : place + reach + 1]]
            return around[place][0], smooth_logits(near, [0] * len(near), self.smoothing, reach)[min(place, reach)]

        for item in heard:
            around.append(item)
            if len(around) > place + reach:
                yield answered()
                if place == reach:
                    around.popleft()
                else:
                    place += 1
        while place < len(around):
            yield answered()
            place += 1

    def _probabilities(self, logits: Probabilities) -> Probabilities:
        probabilities: Probabilities = self.model.probabilities(torch.from_numpy(logits)).cpu().numpy()
        return probabilities

    def _present(self, probabilities: Probabilities) -> NDArray[np.bool_]:
        """Thresholds for labels that stand by themselves, the most probable class otherwise."""
        names = self.model.config.label_names
        if self.decision["thresholds"] is not None:
            # a label is present above its threshold, as in evaluation
            return probabilities > np.array([self.decision["thresholds"][name] for name in names])
        return np.eye(len(names), dtype=bool)[probabilities.argmax(1)]


def _check(annotation: str | Path, duration_s: float) -> None:
    annotated_spans(annotation, duration_s)


def _chunks(items: Iterator[tuple[int, Span, InContext]]) -> Iterator[list[tuple[int, Span, InContext]]]:
    """Spans in handfuls that fill batches; which they are depends on nothing but the spans before."""
    chunk: list[tuple[int, Span, InContext]] = []
    samples = 0
    for item in items:
        chunk.append(item)
        samples += sum(map(len, item[2].pieces))
        if len(chunk) >= _CHUNK_SPANS or samples >= _CHUNK_SAMPLES:
            yield chunk
            chunk, samples = [], 0
    if chunk:
        yield chunk


def _decision(model: LaennecForAudioClassification, given: Mapping[str, float]) -> dict[str, Any]:
    """How a label is decided, and by whose rule."""
    config = model.config
    calibration = {
        "temperatures": {name: config.temperatures.get(name, 1.0) for name in config.label_names},
        "intercepts": {name: config.intercepts.get(name, 0.0) for name in config.label_names},
    }
    if not config.is_multi_label:
        if given:
            raise InputError("--thresholds: this model answers its most probable class, which no threshold decides")
        return {"rule": "most probable class", "thresholds": None, **calibration}
    for name, value in given.items():
        if name not in config.label_names:
            raise InputError(f"--thresholds: no label {name!r}; the labels are {', '.join(config.label_names)}")
        if not 0 <= value <= 1:
            raise InputError(f"--thresholds: {name}={value:g} is no probability from 0 to 1")
    own = config.operating_point.get("rule") or ("not recorded" if config.thresholds else "probability 0.5")
    rule = GIVEN_RULE if given and set(given) == set(config.label_names) else own
    if given and rule == own:
        rule = f"{own}; {', '.join(sorted(given))} {GIVEN_RULE}"
    thresholds = {name: float(given.get(name, config.thresholds.get(name, 0.5))) for name in config.label_names}
    return {"rule": rule, "thresholds": thresholds, **calibration}


def input_note(predictor: Predictor) -> str | None:
    """What to tell somebody whose windows are longer than what the model hears of them; None where nothing is."""
    if predictor.window_s <= predictor.heard_s or predictor.segmentation is not None:
        return None
    part = predictor.extractor.keep
    return f"the model hears the {part} {predictor.heard_s:g} s of each {predictor.window_s:g} s window"
