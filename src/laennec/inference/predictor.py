"""Predict the labels of one recording, span by span.

Decisions: front end, recording filter, temperatures and thresholds come from the model; a prediction only chooses the
spans (windows, the cycles of an annotation, or segmented breaths) and records this choice. A model with concatenated
context takes the neighbouring cycles of the same annotation, or the sound before and after a window. Recordings are
read in blocks, so hours need no more memory than minutes, and the result of a span does not depend on the length of
the recording. By default a window is not longer than the model's input.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import laennec
from laennec.audio.context import InContext
from laennec.audio.cycles import AnnotationError, Span, input_length_s, read_spans, window_lengths
from laennec.audio.recording import ButterworthFilter, DecodeError, Waveform, read_header, wave_file
from laennec.audio.segmentation import BreathSegmentation, breath_cycles
from laennec.audio.streaming import RecordingStream, open_recording, passing_cycles, passing_windows
from laennec.errors import InputError
from laennec.evaluation.calibration.smoothing import NEIGHBOUR_RULE, RULE, smooth_logits
from laennec.inference.backends import fingerprint_of, finite, load_for_prediction, make_backend
from laennec.inference.decisions import decision_of, overall_of, present_labels, probabilities_of
from laennec.inference.onnx_model import OnnxModel
from laennec.packed_model import PackedModel

Probabilities = NDArray[np.float32]
Listener = Callable[[RecordingStream, Waveform], None]
Network = Callable[[Sequence[InContext]], Probabilities]

# enough spans for full batches of similar length; at most 16 MiB of sound
_CHUNK_SPANS, _CHUNK_SAMPLES = 64, 1 << 22


@dataclass(frozen=True)
class SpanPrediction:
    """The prediction for one span."""

    start_s: float  # start of the span, in seconds
    end_s: float  # end of the span, in seconds
    probabilities: Probabilities  # (labels,), calibrated, in the order of the model's labels
    present: NDArray[np.bool_]  # (labels,), whether each label passes its threshold


@dataclass(repr=False)
class Prediction:
    """The predictions for one recording."""

    recording: str  # path of the recording; "waveform" for sound in memory
    duration_s: float  # its length, in seconds
    source_sampling_rate: int  # sampling rate of the file, in Hz
    spans: list[Span]  # (start_s, end_s) of each window or cycle
    probabilities: Probabilities  # (spans, labels), calibrated
    present: NDArray[np.bool_]  # (spans, labels), whether each label passes its threshold
    labels: list[str]  # label names
    smoothing: float = 0.0  # weight of the mean that each span's logits were mixed with; 0 for no smoothing
    neighbours: int = 0  # number of spans on either side in that mean; 0 for the whole recording
    # origin of the spans: {"from": "windows", "recording", "annotation" or "segmentation", ...}
    places: dict[str, Any] = field(default_factory=dict)
    # decision rule: {"rule", "thresholds", "temperatures", "intercepts", "fitted_on": "events" or "windows"}, and under
    # "recording" that of the whole recording: "any span", or the same for "recordings"
    decision: dict[str, Any] = field(default_factory=dict)
    # the recording as a whole, by label: {"present", "probability", "highest" (of a span), "share" (of the duration in
    # spans that have the label)}
    overall: dict[str, dict[str, float]] = field(default_factory=dict)
    sound: bytes | None = None  # sound in memory, as the content of a file

    def __repr__(self) -> str:
        present = ", ".join(f"{name} in {n}" for name, n in zip(self.labels, self.present.sum(0), strict=True))
        spans = f"{len(self.spans)} span{'s' * (len(self.spans) != 1)}"
        return f"Prediction({self.recording!r}, {self.duration_s:.1f} s, {spans}: {present})"

    def _repr_html_(self) -> str:
        """Timeline, player and table in a notebook; the recording is read again."""
        from laennec.inference.page.app import prediction_html

        return prediction_html(self)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per span; times are rounded to 1 ms and probabilities to 6 digits, as in the output files."""
        for (start, end), probability, present in zip(self.spans, self.probabilities, self.present, strict=True):
            row: dict[str, Any] = {"recording": self.recording, "start_s": round(start, 3), "end_s": round(end, 3)}
            for name, p, is_present in zip(self.labels, probability, present, strict=True):
                row[f"{name}_probability"] = round(float(p), 6)
                row[name] = int(is_present)
            yield row

    def to_dict(self) -> dict[str, Any]:
        """The predictions as plain values, as in the JSON output."""
        rows = [{k: v for k, v in row.items() if k != "recording"} for row in self.rows()]
        return {
            "recording": self.recording,
            "duration_s": round(self.duration_s, 3),
            "source_sampling_rate": self.source_sampling_rate,
            "labels": self.labels,
            "spans": self.places,
            "decision": self.decision,
            **({"smoothing": smoothing_record(self.smoothing, self.neighbours)} if self.smoothing else {}),
            "overall": self.overall,
            "timeline": rows,
        }


def smoothing_record(strength: float, neighbours: int) -> dict[str, Any] | None:
    """The smoothing as output files record it."""
    if not strength:
        return None
    if neighbours:
        return {"rule": NEIGHBOUR_RULE, "strength": strength, "neighbours": neighbours}
    return {"rule": RULE, "strength": strength}


class Predictor:
    """Predicts recordings of any sampling rate, bit depth, number of channels and length.

    Args:
        model: The model, or an exported `laennec.inference.onnx_model.OnnxModel`.
        extractor: The front end saved with the model; None for that of an ONNX model.
        window_s: Length of a window, in seconds; None for what the model was trained on, whole recordings or windows;
            for a model of cycles 3 s, or the length of the model's input where that is less.
        hop_s: Time from the start of one window to the start of the next, in seconds; None for half a window.
        smoothing: Weight of the mean that each span's logits are mixed with, 0 to 1; None for the model's own, which it
            has for annotated spans alone.
        neighbours: Number of spans on either side in that mean; 0 for the whole recording.
        thresholds: Probabilities above which a label is present, by label name; missing labels keep the model's own.
        segmentation: Predict segmented breath cycles instead of windows.
        backend: "torch", "onnx" (a model in torch is exported once, and kept in the cache), or "auto": onnx for an
            `OnnxModel`, torch otherwise. See `from_pretrained`.
    """

    def __init__(
        self,
        model: Any,
        extractor: Any = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        smoothing: float | None = None,
        *,
        neighbours: int = 0,
        thresholds: Mapping[str, float] | None = None,
        segmentation: BreathSegmentation | None = None,
        backend: str = "auto",
    ) -> None:
        extractor = model.extractor if extractor is None else extractor
        self.input_s, trained = input_length_s(extractor), model.config.span
        self.whole = trained == "recording" and window_s is None and hop_s is None and segmentation is None
        if window_s is None and not isinstance(trained, str):
            window_s = min(float(trained), self.input_s)
        self.window_s, self.hop_s = window_lengths(extractor, window_s, hop_s)
        if not 0 <= (smoothing or 0.0) <= 1 or neighbours < 0:
            raise InputError(
                f"smoothing {smoothing or 0:g} with {neighbours} neighbours: the smoothing must be 0 to 1 "
                "(--smoothing) and the number of neighbours 0 or more (--smoothing-neighbours)"
            )
        self.backend = make_backend(model, extractor, backend)
        self.model, self.extractor = model, extractor
        self.smoothing, self.neighbours = smoothing, neighbours if smoothing else 0
        self.segmentation = segmentation
        self.given_thresholds = dict(thresholds or {})
        self.decision = self.decision_for(annotated=False)
        settings = getattr(extractor, "recording_filter", None)
        self.filter = ButterworthFilter(**settings) if settings else None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = laennec.DEFAULT_MODEL,
        *,
        base: str | None = None,
        backend: str = "auto",
        **settings: Any,
    ) -> "Predictor":
        """The predictor of a folder or Hub id.

        Args:
            source: Folder of a run or an exported model, or a Hub id; the model in the package where none is given.
            base: Path of the base encoder of a head-only model.
            backend: "torch", "onnx", or "auto": the ONNX file in the model's folder where there is one and no GPU,
                which needs no import of torch.
            **settings: As for the class.
        """
        return cls(*load_for_prediction(source, base, backend), backend=backend, **settings)

    def __call__(
        self,
        recording: str | Path | bytes | ArrayLike,
        annotation: str | Path | None = None,
        listener: Listener | None = None,
        *,
        sampling_rate: int | None = None,
    ) -> Prediction:
        """Predict one recording: its windows, all of it, the spans of an annotation, or segmented breaths.

        Args:
            recording: A file, the content of one, or a waveform (samples,) in [-1, 1].
            annotation: ICBHI text, Audacity labels, a Raven selection table or SPRSound JSON; only its times are used.
            listener: Called with the stream and each block of filtered and resampled sound.
            sampling_rate: Of a waveform, in Hz.

        Raises:
            DecodeError: The recording cannot be read, or a span is shorter than one frame.
            AnnotationError: The annotation cannot be read or does not fit the recording.
            InputError: A waveform has no sampling rate, is not of shape (samples,), or has values beyond 100.
        """
        path = recording if isinstance(recording, str | Path | bytes) else wave_file(recording, sampling_rate)
        stream, places, found, logits = self.run(self.backend.logits, path, annotation, listener)
        annotated = annotation is not None
        decision, smoothing = self.decision_for(annotated), self.smoothing_for(annotated)
        logits = smooth_logits(logits, [0] * len(found), smoothing, self.neighbours).astype(np.float32)
        order = np.argsort(places, kind="stable")
        logits, spans = logits[order], [found[row] for row in order]
        probabilities = self._probabilities(logits, decision)
        present = present_labels(self.model.config, probabilities, decision)
        return Prediction(
            "waveform" if isinstance(path, bytes) else stream.path,
            stream.duration_s,
            stream.source_sampling_rate,
            spans,
            probabilities,
            present,
            self.model.config.label_names,
            smoothing,
            self.neighbours,
            self.places(annotation),
            decision,
            overall_of(self.model.config, logits, probabilities, present, spans, stream.duration_s, decision),
            path if isinstance(path, bytes) else None,
        )

    def stream(self, path: str | Path, annotation: str | Path | None = None) -> Iterator[SpanPrediction]:
        """Predict one recording span after span in time order, while it is read.

        Smoothing over neighbours delays the results by as many spans. Problems that show only at the end of a file (a
        truncated file, an annotation longer than the recording) are raised there, after the earlier spans.
        """
        annotated = annotation is not None
        if self.smoothing_for(annotated) and not self.neighbours:
            raise InputError(
                "smoothing over the whole recording cannot be streamed; call the predictor instead, or make it with "
                "smoothing=0, or with smoothing and neighbours"
            )
        spans, decision = self._spans(path, annotation), self.decision_for(annotated)
        with self._opened(path, None) as stream:
            outputs = self._outputs(self.backend.logits, stream, spans, annotation)
            logits = ((span, row) for _, span, row in outputs)
            for (start_s, end_s), row in self._smoothed(logits):
                probabilities = self._probabilities(row[None].astype(np.float32), decision)
                yield SpanPrediction(
                    start_s, end_s, probabilities[0], present_labels(self.model.config, probabilities, decision)[0]
                )

    def identity(self, annotated: bool) -> dict[str, Any]:
        """Every setting that changes predictions, except the weights and the annotations, as plain values."""
        return {
            "spans": {"from": "annotation"} if annotated else self.places(None),
            "smoothing": smoothing_record(self.smoothing_for(annotated), self.neighbours),
            "decision": self.decision_for(annotated),
            "labels": self.model.config.label_names,
            "backend": self.backend.name,
        }

    def __reduce__(self) -> Any:
        """Pickle model and settings, for other processes."""
        exported = isinstance(self.model, OnnxModel)
        packed = self.model.path.parent if exported else PackedModel.of(self.model, self.extractor)
        settings = {
            "window_s": None if self.whole else self.window_s,
            "hop_s": None if self.whole else self.hop_s,
            "smoothing": self.smoothing,
            "neighbours": self.neighbours,
            "thresholds": self.given_thresholds,
            "segmentation": self.segmentation,
            "backend": self.backend.name,
        }
        return _unpickled, (type(self), packed, settings, self.fingerprint())

    def fingerprint(self) -> str:
        """sha256 of weights and front end; equal for a run and its exports."""
        return fingerprint_of(self.model, self.extractor)

    def decision_for(self, annotated: bool) -> dict[str, Any]:
        """The decision rule for annotated spans, or for the spans that the predictor chooses."""
        spans = "events" if annotated or self.whole or self.segmentation is not None else "windows"
        return decision_of(self.model.config, self.given_thresholds, spans)

    def smoothing_for(self, annotated: bool) -> float:
        """The weight of the mean in the logits of annotated spans, or of those that the predictor chooses."""
        own = self.model.config.smoothing if annotated else 0.0
        return float(own if self.smoothing is None else self.smoothing)

    def _spans(self, path: str | Path | bytes, annotation: str | Path | None) -> list[Span] | None:
        """The spans to predict; None for windows."""
        if annotation is not None:
            return annotated_spans(annotation)
        if self.whole:
            rate, frames = read_header(path)
            return [(0.0, frames / rate)]
        return None if self.segmentation is None else breath_cycles(path, self.segmentation)

    def places(self, annotation: str | Path | None) -> dict[str, Any]:
        """The origin of the spans, as output files record it."""
        if annotation is not None:
            return {"from": "annotation", "file": str(annotation)}
        if self.segmentation is not None:
            return {"from": "segmentation", **asdict(self.segmentation)}
        if self.whole:
            return {"from": "recording"}
        return {"from": "windows", "window_s": self.window_s, "hop_s": self.hop_s}

    def _opened(self, path: str | Path | bytes, listener: Listener | None) -> Any:
        return open_recording(path, self.extractor.sampling_rate, filter=self.filter, listener=listener)

    def run(
        self,
        network: Network,
        path: str | Path | bytes,
        annotation: str | Path | None = None,
        listener: Listener | None = None,
        spans: list[Span] | None = None,
    ) -> tuple[RecordingStream, tuple[int, ...], tuple[Span, ...], Probabilities]:
        """Run a network on the spans of a recording.

        Returns:
            The stream, read to its end; in time order the place of each span in the annotation, the spans, and the
            network's outputs (spans, outputs).
        """
        spans = self._spans(path, annotation) if spans is None else spans
        with self._opened(path, listener) as stream:
            found = list(self._outputs(network, stream, spans, annotation))
        return stream, *zip(*((place, span) for place, span, _ in found), strict=True), np.array([o[2] for o in found])

    def _outputs(
        self, network: Network, stream: RecordingStream, spans: list[Span] | None, annotation: str | Path | None
    ) -> Iterator[tuple[int, Span, Probabilities]]:
        """Place, span and output of each span, in time order."""
        for chunk in _chunks(self._sounds(stream, spans, annotation)):
            rows = finite(network([sound for _, _, sound in chunk]), self.model, stream.path)
            yield from ((place, span, row) for (place, span, _), row in zip(chunk, rows, strict=True))

    def _sounds(
        self, stream: RecordingStream, spans: list[Span] | None, annotation: str | Path | None
    ) -> Iterator[tuple[int, Span, InContext]]:
        context = self.extractor.context_cycles
        items: Iterator[tuple[int, Span, InContext]]
        if spans is None:
            windows = passing_windows(stream, self.window_s, self.hop_s, context)
            items = ((place, span, sound) for place, (span, sound) in enumerate(windows))
        else:
            # the annotation is checked once the length of the recording is known
            def check(duration_s: float) -> None:
                if annotation is not None:
                    annotated_spans(annotation, duration_s)

            items = ((place, spans[place], sound) for place, sound in passing_cycles(stream, spans, context, check))
        for place, span, sound in items:
            self._refuse_short(stream, span, len(sound.own))
            yield place, span, sound

    def _refuse_short(self, stream: RecordingStream, span: Span, samples: int) -> None:
        """Raise for a span that is shorter than one frame, also where it would be repeated to the model's input."""
        if samples < round(self.extractor.window_ms * self.extractor.sampling_rate / 1000):
            reason = (
                f"{span[0]:g} to {span[1]:g} s is {samples} samples, shorter than one frame "
                f"({self.extractor.window_ms:g} ms); give a longer sound or window, or correct the annotation"
            )
            raise DecodeError(stream.path, reason)

    def _smoothed(self, logits: Iterator[tuple[Span, Probabilities]]) -> Iterator[tuple[Span, Any]]:
        """Spans with their smoothed logits, as soon as their neighbours are known."""
        if not self.smoothing:
            yield from logits
            return
        reach = self.neighbours
        ends: list[tuple[Span, Probabilities] | None] = [None] * reach
        around = deque(ends)
        for item in itertools.chain(logits, ends):
            around.append(item)
            if len(around) > 2 * reach and (own := around[reach]) is not None:
                near = [one[1] for one in around if one is not None]
                place = sum(one is not None for one in list(around)[:reach])
                yield own[0], smooth_logits(near, [0] * len(near), self.smoothing, reach)[place]
                around.popleft()

    def _probabilities(self, logits: Probabilities, decision: Mapping[str, Any]) -> Probabilities:
        return probabilities_of(self.model.config, logits, decision["fitted_on"])


def _unpickled(
    kind: type[Predictor], packed: PackedModel | Path, settings: dict[str, Any], fingerprint: str
) -> Predictor:
    """Rebuild a predictor; in torch it computes on one thread, and on the CPU in a process without a GPU."""
    if isinstance(packed, Path):
        model, extractor = OnnxModel(packed), None
    else:
        import torch

        away = packed.device.startswith("cuda") and not torch.cuda.is_available()
        model, extractor = (replace(packed, device="cpu") if away else packed).unpack()
    predictor = kind(model, extractor, **settings)
    if predictor.fingerprint() != fingerprint:
        raise InputError("this model cannot be handed to other processes; leave jobs and --engine out")
    return predictor


def annotated_spans(path: str | Path, duration_s: float | None = None) -> list[Span]:
    """Read the spans of an annotation: ICBHI text, Audacity labels, a Raven selection table or SPRSound JSON."""
    if Path(path).suffix.lower() != ".json":
        return read_spans(path, duration_s)
    from laennec.corpora.sprsound import read_events

    spans = [(event.start_s, event.end_s) for event in read_events(path, duration_s)]
    if not spans:
        raise AnnotationError(path, None, "no events in this file; predict windows of this recording instead")
    return spans


def _chunks(items: Iterator[tuple[int, Span, InContext]]) -> Iterator[list[tuple[int, Span, InContext]]]:
    """Group spans into chunks that fill batches; a chunk depends only on the spans before its end."""
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


def input_note(predictor: Predictor, annotated: bool = False) -> str | None:
    """A warning for spans that can be longer than the model's input; None where there is nothing to warn about."""
    cycles = annotated or predictor.segmentation is not None
    if math.isinf(predictor.input_s) or (not cycles and (predictor.whole or predictor.window_s <= predictor.input_s)):
        return None
    spans = "cycle that is longer" if cycles else f"{predictor.window_s:g} s window"
    return f"the model uses only the {predictor.extractor.keep} {predictor.input_s:g} s of each {spans}"
