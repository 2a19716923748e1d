"""A web page that predicts the labels of a sound that a visitor uploads or records.

Decisions: plain Gradio. Its connections to other machines are off and the fonts are the system's, so the page works
offline. A visitor's file is decoded in a sandboxed process. The result is one piece of HTML that contains its picture
and its sound, so no copy of these stays on the server. One recording is processed at a time; further requests wait in a
queue of bounded length. Rules for all requests are in `server`.
"""

import contextlib
import math
import os
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import laennec
from laennec.audio.cycles import AnnotationError, read_labels
from laennec.audio.recording import DecodeError, Waveform, playable
from laennec.audio.sandbox import plain_file, read_recording_sandboxed
from laennec.audio.spectrogram import Spectrogram
from laennec.audio.streaming import open_recording
from laennec.errors import InputError
from laennec.evaluation.calibration.operating_point import window_note
from laennec.evaluation.evaluate import load_model
from laennec.evaluation.report.plots import figure_png
from laennec.inference.outputs import Timeline
from laennec.inference.picture import shown_labels, timeline_figure
from laennec.inference.predictor import Prediction, Predictor, annotated_spans
from laennec.modeling import LaennecForAudioClassification
from laennec.rendering import data_uri, render_template

DISCLAIMER = (
    "Research software, not a medical device. A prediction is not a diagnosis; do not base anybody's care on it."
)
_MAX_SPANS = 500
_QUEUE_SIZE, _RETRY_S = 16, 30
_CLEAN_EVERY_S, _GONE_AFTER_S = 60, 600
_WIDE_IN, _NARROW_IN = 11.0, 5.2  # widths of the picture for a desktop and for a phone, in inches
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Arial", "sans-serif"]


@dataclass(frozen=True)
class Limits:
    """The largest input that the page accepts."""

    max_minutes: float = 5.0  # length of a recording, in minutes
    max_mb: float = 50.0  # size of a file, in MiB
    max_total_mb: float = 1000.0  # size of all files that are on the server at one time, in MiB

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = f"--{field.name.replace('_', '-')}", getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise InputError(f"{name} is {value:g}; give a number greater than 0")


def serve_model(
    model: str | Path = laennec.DEFAULT_MODEL,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    hosts: Sequence[str] = (),
    limits: Limits | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    base: str | None = None,
    name: str | None = None,
    open_browser: bool = False,
    ready: Callable[[str], None] = lambda address: None,
    stop: threading.Event | None = None,
    wrap: Callable[[Any], Any] = lambda page: page,
) -> None:
    """Serve the page for a model until the process is interrupted.

    Args:
        model: Folder of a run or an exported model, or a Hub id; the model in the package where none is given.
        host: Address to listen on.
        port: Port to listen on; None for the first free one from 7860 on.
        hosts: Further host names of the page, such as that of a proxy; `*` for any. Requests for other names are
            refused.
        limits: The largest input that is accepted.
        window_s: Length of a window, in seconds; None for the default of `Predictor`.
        hop_s: Time from the start of one window to the start of the next, in seconds; None likewise.
        base: Path of the base encoder of a head-only model.
        name: Name of the model on the page; None for the name of its folder or repository.
        open_browser: Whether to open the page in the browser of this machine.
        ready: Called with the address of the page once it can be opened.
        stop: Ends the server when it is set; None to serve until Ctrl+C.
        wrap: Turns the page that predicts into the page that is served, such as one with a further tab.

    Raises:
        InputError: The model cannot be loaded, the address or the port cannot be used, or the windows are invalid.
    """
    limits, stop = limits or Limits(), stop or threading.Event()
    name = name or (Path(model).resolve().name if Path(model).exists() else str(model))
    with _folder_of_uploads() as folder:
        page = build_page(Predictor(*load_model(model, base), window_s, hop_s), name, limits)
        page = wrap(page)
        from laennec.inference.page import server  # needs Gradio's requirements

        try:
            listener = server.listen(host, port)
        except (OSError, OverflowError, UnicodeError) as error:
            raise InputError(
                f"--host {host}, --port {port or '7860 to 7959'}: the page cannot listen there "
                f"({' '.join(str(error).split())[:80]}); choose another address or port"
            ) from error
        names = [*server.own_names(host), *map(str.lower, hosts)]
        most_bytes = int(limits.max_total_mb * (1 << 20))
        app = server.Guard(_mounted(page, limits), names, folder, most_bytes, _GONE_AFTER_S)
        with listener, server.serving(app, names, listener):
            try:
                address = server.address_of(listener)
                ready(address)
                if open_browser:
                    webbrowser.open(address)
                with contextlib.suppress(KeyboardInterrupt):
                    while not stop.wait(_CLEAN_EVERY_S):
                        server.keep_recent(folder, _GONE_AFTER_S - _CLEAN_EVERY_S)
            finally:
                page.close(verbose=False)  # ends the responses that wait for a prediction


def build_page(predictor: Predictor, name: str, limits: Limits) -> Any:
    """Build the page as `gradio.Blocks`, to be launched."""
    import gradio as gr

    config = predictor.model.config
    labels, origin = config.label_names, threshold_origin(predictor.model)
    if "windows" in config.operating_points and (note := window_note(config, predictor.window_s, predictor.hop_s)):
        origin = f"{origin} Note: {note}."
    values = {
        "name": name,
        "summary": predictor.model.config.summary,
        "labels": labels,
        "disclaimer": DISCLAIMER,
        "minutes": _GONE_AFTER_S // 60,
        "window_s": predictor.window_s,
        "hop_s": predictor.hop_s,
        "whole": predictor.whole,
        "input_s": None if math.isinf(predictor.input_s) else predictor.input_s,
        "thresholds": [(k, f"{v:.3f}") for k, v in (predictor.decision["thresholds"] or {}).items()],
        "origin": origin,
    }
    introduction, annotations, explanation = render_template("app_page.md.jinja", **values).split("\n---\n")
    with gr.Blocks(title=f"{name}: {', '.join(labels[:4])}", analytics_enabled=False) as page:
        gr.Markdown(introduction)
        sound = gr.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label="Recording",
            elem_id="recording",
            editable=False,
            buttons=[],
        )
        with gr.Accordion("Times of the breathing cycles (optional)", open=False):
            annotation = gr.File(label="Annotation", file_types=[".txt", ".json"], elem_id="annotation", height=140)
            gr.Markdown(annotations)
        button = gr.Button("Predict", variant="primary", elem_id="predict")
        result = gr.HTML(elem_id="result", min_height=40)
        with gr.Accordion("How to read the numbers", open=False):
            gr.Markdown(explanation)
        button.click(
            lambda sound_file, annotation_file: predict_html(predictor, sound_file, annotation_file, limits),
            [sound, annotation],
            result,
            api_visibility="private",
        )
    page.queue(default_concurrency_limit=1, max_size=_QUEUE_SIZE, api_open=False)
    return page


def predict_html(predictor: Predictor, sound: str | None, annotation: str | None, limits: Limits) -> str:
    """Predict one uploaded recording."""
    name = Path(sound or "").name
    reason = "there is no recording yet; upload a sound file or record one, then press Predict"
    try:
        if sound:
            recording = read_recording_sandboxed(sound, most_s=60 * limits.max_minutes)
            annotated = None if annotation is None else _annotated_classes(annotation, recording.duration_s)
            spectrogram = Spectrogram()
            with plain_file(recording) as decoded:
                timeline = predictor(decoded, annotation, spectrogram.add).to_dict()
            timeline |= {"recording": name, "source_sampling_rate": recording.source_sampling_rate}
            return _result(timeline, recording.waveform, recording.sampling_rate, spectrogram, annotated)
    except DecodeError as error:
        reason = error.reason
    except AnnotationError as error:
        name = Path(annotation or "").name
        reason = f"line {error.line}: {error.reason}" if isinstance(error.line, int) else error.reason
    except InputError as error:
        reason = str(error)
    return render_template("app_problem.html", name=name, reason=reason)


def prediction_html(prediction: Prediction, most_s: float = 600.0) -> str:
    """HTML of a prediction for a notebook: summary, picture, player and table, with a style of its own."""
    try:
        if prediction.duration_s > most_s:
            raise InputError(f"the recording is longer than {most_s:g} s")
        spectrogram = Spectrogram()
        with open_recording(prediction.sound or prediction.recording, listener=spectrogram.add) as stream:
            waveform = np.concatenate(list(stream.blocks()))
    except InputError as error:
        return render_template("app_problem.html", name=repr(prediction), reason=f"no picture: {error}")
    own = "\n".join(line for line in _style().splitlines() if line.startswith("#result"))  # the others style the page
    result = _result(prediction.to_dict(), waveform, stream.sampling_rate, spectrogram, None)
    return f'<style>{own}</style><div id="result">{result}</div>'


def threshold_origin(model: LaennecForAudioClassification) -> str:
    """Say in one sentence where a model's thresholds of windows come from."""
    config = model.config
    if not config.is_multi_label:
        return "The model outputs its most probable label; there are no thresholds."
    if not config.thresholds:
        return "No thresholds were fitted for this model: a label counts as present above 0.5."
    spans = "windows" if "windows" in config.operating_points else "cycles"
    fitted: dict[str, Any] = config.operating_points.get("windows", config.operating_point)
    if not fitted:
        return "The thresholds were fitted on validation patients; this model does not record by which rule."
    on = fitted.get("fitted_on") or {}
    patients = f" of {on['patients']} patients" if on.get("patients") else ""
    count = f"{on['cycles']} validation {spans}{patients}" if on.get("cycles") else "validation patients"
    rule = f" by the rule {fitted['rule']}" if fitted.get("rule") else ""
    others = ", not on windows" if spans == "cycles" else "; annotated cycles have thresholds of their own"
    second = max(config.labels_with_second("windows").values(), default=0)
    also = f" Where another label is likelier, a label also has to be above {second:g}." if second else ""
    return f"The thresholds were fitted on {count}{rule}{others}; the test split was not used for this.{also}"


def _result(
    timeline: Timeline, waveform: Waveform, rate: int, spectrogram: Spectrogram, annotated: Sequence[str] | None
) -> str:
    """HTML of a prediction: summary, picture, player and table."""
    labels, rows, decision = shown_labels(timeline), timeline["timeline"], timeline["decision"]
    wide, narrow = (figure_png(timeline_figure(timeline, spectrogram, width)) for width in (_WIDE_IN, _NARROW_IN))
    return render_template(
        "app_result.html",
        span={"annotation": "cycle", "recording": "recording"}.get(timeline["spans"]["from"], "window"),
        highest={label: max(rows, key=lambda row: row[f"{label}_probability"]) for label in labels},
        counts={label: sum(row[label] for row in rows) for label in labels},
        labels=labels,
        thresholds=decision["thresholds"] or {},
        of_recording=decision["recording"].get("thresholds") if isinstance(decision["recording"], dict) else None,
        hidden_labels=len(timeline["labels"]) - len(labels),
        annotated=annotated,
        wide=data_uri("image/png", wide),
        narrow=data_uri("image/png", narrow),
        audio=data_uri("audio/flac", playable(waveform, rate)),
        disclaimer=DISCLAIMER,
        **{key: timeline[key] for key in ("recording", "duration_s", "source_sampling_rate", "timeline", "overall")},
    )


def _annotated_classes(annotation: str, duration_s: float) -> list[str] | None:
    """The class of each annotated span, in the order of the file; None where the file names times only."""
    spans = annotated_spans(annotation, duration_s)
    if len(spans) > _MAX_SPANS or sum(end_s - start_s for start_s, end_s in spans) > 4 * duration_s:
        reason = f"more than {_MAX_SPANS} cycles, or cycles longer together than four times the recording"
        raise AnnotationError(annotation, None, f"{reason}; give the cycles of this recording alone")
    try:
        cycles = read_labels(annotation, duration_s)
    except AnnotationError:
        return None
    labels = {(cycle.start_s, cycle.end_s): cycle.label for cycle in cycles}
    return [labels.get(span, "") for span in spans]


def _mounted(page: Any, limits: Limits) -> Any:
    """The application of a page: its limits and style, and no access to files or other machines."""
    import fastapi
    import gradio as gr
    from fastapi.responses import JSONResponse

    def busy(_: Any, error: Any) -> JSONResponse:
        """The response for a full queue, with the time after which to try again."""
        return JSONResponse({"detail": error.detail}, 503, {"Retry-After": str(_RETRY_S)})

    closed: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    return gr.mount_gradio_app(
        fastapi.FastAPI(**closed),
        page,
        path="/",
        show_error=False,
        max_file_size=int(limits.max_mb * (1 << 20)),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"]),
        css=_style(),
        app_kwargs={**closed, "exception_handlers": {503: busy}},
    )


def _style() -> str:
    return (resources.files("laennec") / "templates" / "app.css").read_text(encoding="utf-8")


@contextlib.contextmanager
def _folder_of_uploads() -> Iterator[Path]:
    """A temporary folder for Gradio's files; Gradio takes its name only from the environment."""
    before = {name: os.environ[name] for name in ["GRADIO_TEMP_DIR"] if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="laennec-app-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["GRADIO_TEMP_DIR"]
            os.environ |= before
