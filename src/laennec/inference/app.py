"""A page on which people drop a sound and see what the model hears.

Decisions: Gradio draws the page and carries the files, and everything of it that would speak to another machine is
off (telemetry, version check, sharing, fonts, downloads by address; `gate` forbids the browser the rest). A stranger's
file is decoded by `read_recording_sandboxed`, deleted when it is answered, and lies in a folder that ends with the
server. One recording is answered at a time; others wait in a queue of bounded length.
"""

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from laennec.audio.cycles import AnnotationError, Cycle, Span, read_labels
from laennec.audio.recording import DecodeError
from laennec.audio.sandbox import plain_file, read_recording_sandboxed
from laennec.audio.selections import read_spans
from laennec.errors import InputError
from laennec.inference.answer import answer_html, facts_html, problem_html
from laennec.inference.examples import Example, write_examples
from laennec.inference.model_facts import ModelFacts
from laennec.inference.predictor import Predictor

_log = logging.getLogger(__name__)
ANNOTATION_SUFFIXES = (".txt",)
WARNING = (
    "This is research software and no medical device. What it says is no diagnosis, and nobody's care may depend on it."
)
_MOST_SPANS = 500
_MOST_ANNOTATION_BYTES = 1 << 20
_WAITING = 16
_KEPT_S = 600  # files that were sent but never answered
_SESSIONS = 16
_HEARD_S = 2.0  # the recorder shows what it recorded until it is told that it was answered


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        most_minutes: Of a recording.
        most_mb: Of a file, in megabytes of 2^20 bytes, as Gradio counts them when it refuses one.
        timeout_s: For decoding, in seconds.
        memory_mb: For decoding, in MiB.
    """

    most_minutes: float = 5.0
    most_mb: float = 50.0
    timeout_s: float = 20.0
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        for name, value in (("--max-minutes", self.most_minutes), ("--max-mb", self.most_mb)):
            if not 0 < value < float("inf"):
                raise InputError(f"{name} is {value:g}; give a number greater than 0")

    @property
    def most_bytes(self) -> int:
        """Of a file."""
        return int(self.most_mb * (1 << 20))


class Answerer:
    """From files that somebody sent to what the page shows.

    Args:
        predictor: The model and its windows.
        facts: What is said of it.
        limits: What is accepted.
        folder: Where files lie that were sent; no other is read or deleted for a visitor.
    """

    def __init__(self, predictor: Predictor, facts: ModelFacts, limits: Limits, folder: Path) -> None:
        self.predictor = predictor
        self.facts = facts
        self.limits = limits
        self.folder = folder.resolve()
        self._waiting: Counter[Path] = Counter()
        self._lock = threading.Lock()

    def arrived(self, paths: Iterable[str]) -> None:
        """Note files that were sent: what two people send alike lies in one place, and is kept until both have it."""
        with self._lock:
            self._waiting.update(Path(path).resolve() for path in paths)

    def sent(self, paths: Sequence[str | Path] | None, name: str | None = None, after_s: float = 0.0) -> str:
        """Answer files that were sent (a recording, with its annotation or without), and delete them.

        Args:
            paths: The files.
            name: What to call the recording; None: the file's name.
            after_s: How long after the answer they are deleted, in seconds.

        Returns:
            HTML: the answer, or the problem in one line.
        """
        files = [Path(path) for path in paths or () if Path(path).resolve().is_relative_to(self.folder)]
        try:
            sounds = [file for file in files if file.suffix.lower() not in ANNOTATION_SUFFIXES]
            notes = [file for file in files if file.suffix.lower() in ANNOTATION_SUFFIXES]
            if len(sounds) != 1 or len(notes) > 1:
                return problem_html("", _how_many(len(sounds), len(notes)))
            return self.answer(sounds[0], notes[0] if notes else None, name)
        finally:
            if after_s:
                threading.Timer(after_s, self._forget, [files]).start()
            else:
                self._forget(files)

    def _forget(self, files: Sequence[Path]) -> None:
        """Delete files that were sent and that nobody else waits for, and the folders that were made for them."""
        for file in files:
            with self._lock:
                self._waiting.subtract([file.resolve()])
                if self._waiting[file.resolve()] > 0:
                    continue
                del self._waiting[file.resolve()]
            with contextlib.suppress(OSError):
                file.unlink()
            if file.parent.resolve() != self.folder:
                with contextlib.suppress(OSError):
                    file.parent.rmdir()

    def example(self, example: Example) -> str:
        """Answer an example sound."""
        note = "Made by a physical model, no patient's; the annotation says what was put in."
        return self.answer(example.recording, example.annotation, f"Example: {example.title.lower()}", note)

    def answer(self, sound: Path, annotation: Path | None = None, name: str | None = None, note: str = "") -> str:
        """Answer one recording.

        Args:
            sound: The file.
            annotation: Times of its cycles.
            name: What to call it; None: the file's name.
            note: A sentence about it.

        Returns:
            HTML: the answer, or the problem in one line.
        """
        name = name or sound.name
        limits = self.limits
        try:
            recording = read_recording_sandboxed(
                sound, timeout_s=limits.timeout_s, memory_mb=limits.memory_mb, most_s=60 * limits.most_minutes
            )
            cycles = None if annotation is None else _cycles(annotation, recording.duration_s)
            with plain_file(recording) as decoded:
                prediction = self.predictor(decoded, annotation)
            prediction = replace(prediction, source_sampling_rate=recording.source_sampling_rate)
            return answer_html(name, recording, prediction, self.facts, cycles, note)
        except DecodeError as error:
            return problem_html(name, error.reason)
        except AnnotationError as error:
            where = f"line {error.line}: " if isinstance(error.line, int) else ""
            return problem_html(annotation.name if annotation else name, f"{where}{error.reason}")
        except InputError as error:
            return problem_html(name, str(error).replace(str(sound), name))
        except Exception:
            _log.exception("a recording could not be answered")
            return problem_html(name, "this could not be answered; the reason is in the log of the server")


def page(answerer: Answerer, examples: Sequence[Example] = ()) -> Any:
    """The page, as Gradio's Blocks.

    Args:
        answerer: What answers.
        examples: Sounds to try.
    """
    import gradio as gr

    def left(visitor: gr.Request) -> None:
        _end_session(blocks, visitor.session_hash)

    limits, predictor = answerer.limits, answerer.predictor
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
    with gr.Blocks(title=_title(answerer.facts), analytics_enabled=False) as blocks:
        gr.HTML(_intro(answerer.facts))
        with gr.Tabs():
            with gr.Tab("Open a file"):
                files = gr.File(file_count="multiple", label="Recording", elem_id="la-file", height=170)
                gr.HTML(
                    f'<p class="la-quiet">WAV, FLAC, Ogg, MP3 or AIFF, up to {_minutes(limits.most_minutes)} and '
                    f"{limits.most_mb:g} MB. If you have the times of the breathing cycles (.txt, as of ICBHI, "
                    "Audacity or Raven), open both files together.</p>"
                )
            with gr.Tab("Record"):
                spoken = gr.Audio(sources=["microphone"], type="filepath", label="Microphone", elem_id="la-record")
        buttons = []
        if examples:
            gr.HTML('<p class="la-label">Or try a made-up sound:</p>')
            with gr.Row(elem_classes="la-examples"):
                buttons = [gr.Button(example.title, size="sm", min_width=120) for example in examples]
        answer = gr.HTML(elem_id="la-answer", min_height=40)
        gr.HTML(facts_html(answerer.facts, predictor.window_s, predictor.hop_s))
        files.upload(lambda paths: (answerer.sent(paths), None), files, [answer, files], **quiet)
        spoken.stop_recording(
            lambda path: (answerer.sent([path] if path else [], "Your recording", _HEARD_S), None),
            spoken,
            [answer, spoken],
            **quiet,
        )
        for button, example in zip(buttons, examples, strict=True):
            button.click(lambda example=example: answerer.example(example), None, answer, **quiet)
        blocks.unload(left)
    for component in (files, spoken):
        _only_from(component, answerer.folder)
    blocks.queue(default_concurrency_limit=1, max_size=_WAITING, api_open=False)
    blocks.state_session_capacity = _SESSIONS
    blocks.upload_file_set = _Arrivals(answerer.arrived)
    return blocks


def application(answerer: Answerer, examples: Sequence[Example] = ()) -> Any:
    """The page as an ASGI application, closed to the outside.

    Args:
        answerer: What answers.
        examples: Sounds to try.
    """
    import gradio as gr
    from fastapi import FastAPI

    from laennec.inference.gate import Gate

    templates = resources.files("laennec") / "templates"
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Arial", "sans-serif"]
    blocks = page(answerer, examples)
    inner = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=answerer.limits.most_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=(templates / "app.css").read_text(encoding="utf-8"),
        head=f"<script>{(templates / 'app.js').read_text(encoding='utf-8')}</script>",
    )
    # of pages that it did not launch itself Gradio does not check which files of the server a visitor names
    blocks.has_launched = blocks.is_running = True
    # two files of the largest size cannot be sent at once, and need not be
    return Gate(inner, answerer.limits.most_bytes + _MOST_ANNOTATION_BYTES)


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for what visitors send, which Gradio uses from here on and which ends with the block.

    What was sent and never answered is deleted after some minutes.
    """
    before = {key: os.environ.get(key) for key in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    with tempfile.TemporaryDirectory(prefix="laennec-app-", ignore_cleanup_errors=True) as folder:
        sent = Path(folder) / "sent"
        sent.mkdir()
        os.environ |= {"GRADIO_TEMP_DIR": str(sent), "GRADIO_ANALYTICS_ENABLED": "False"}
        ended = threading.Event()
        threading.Thread(target=_keep_clean, args=(sent, ended), daemon=True).start()
        try:
            yield sent
        finally:
            ended.set()
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})


def _keep_clean(folder: Path, ended: threading.Event, every_s: float = 60.0) -> None:
    while not ended.wait(every_s):
        sweep(folder, _KEPT_S)


def sweep(folder: Path, older_than_s: float) -> None:
    """Delete files that have lain here for long, and the folders that they leave empty.

    Args:
        folder: Where.
        older_than_s: How long ago they were last written, in seconds.
    """
    latest = time.time() - older_than_s
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime < latest:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def examples_for(facts: ModelFacts, folder: Path) -> list[Example]:
    """Example sounds, for a model that listens for what is in them."""
    return write_examples(folder) if {"crackle", "wheeze"} & set(facts.labels) else []


def _title(facts: ModelFacts) -> str:
    if set(facts.labels) <= {"normal", "crackle", "wheeze", "both"}:
        return "Crackles and wheezes in a lung sound"
    return "What a model hears in a sound"


def _intro(facts: ModelFacts) -> str:
    return (
        f'<header class="la-intro"><h1>{_title(facts)}</h1><p>Open a recording or make one. It is answered by the '
        "machine that serves this page, sent nowhere else, and deleted when it is answered.</p>"
        f'<p class="la-warning" role="note"><strong>No diagnosis.</strong> {WARNING}</p></header>'
    )


class _Arrivals(set[str]):
    """Where Gradio notes what was sent."""

    def __init__(self, note: Callable[[Iterable[str]], None]) -> None:
        super().__init__()
        self.note = note

    def update(self, *paths: Iterable[str]) -> None:
        """Hand the notes on; none is kept."""
        for some in paths:
            self.note(some)


def _only_from(component: Any, folder: Path) -> None:
    """Have a component refuse web addresses, which Gradio would fetch at a visitor's bidding, and files elsewhere."""
    import gradio as gr

    moved = component.async_move_resource_to_block_cache

    async def checked(path: str | Path | None) -> Any:
        if path is None or "://" in str(path) or not Path(path).resolve().is_relative_to(folder):
            raise gr.Error("only files that were sent can be opened", print_exception=False)
        return await moved(path)

    # on the object: for a class of its own Gradio would write a stub file beside this module
    component.async_move_resource_to_block_cache = checked


def _end_session(blocks: Any, session: str | None) -> None:
    """Forget the last answer of a visitor who has left."""
    holder = getattr(blocks, "state_holder", None)
    if holder is not None and session is not None:
        holder.session_data.pop(session, None)
        holder.time_last_used.pop(session, None)


def _minutes(number: float) -> str:
    return f"{number:g} minute{'s' if number != 1 else ''}"


def _how_many(sounds: int, notes: int) -> str:
    if sounds == 0:
        return "no recording came with it; open a sound file" if notes else "no file arrived; open it again"
    return "open one recording at a time, with one file of cycle times at most"


def _cycles(annotation: Path, duration_s: float) -> list[Cycle | None]:
    """What an annotation says of each of its spans (None: no class), which are no more than can be answered at once."""
    if annotation.stat().st_size > _MOST_ANNOTATION_BYTES:
        raise AnnotationError(annotation, None, "larger than 1 MB, which is no list of cycles")
    spans = read_spans(annotation, duration_s)
    if len(spans) > _MOST_SPANS or sum(end_s - start_s for start_s, end_s in spans) > 4 * duration_s:
        raise AnnotationError(annotation, None, f"more than {_MOST_SPANS} cycles, or four of them everywhere")
    said: dict[Span, Cycle] = {}
    with contextlib.suppress(AnnotationError):  # a label track of breaths, or a table, names no classes
        for cycle in read_labels(annotation, duration_s):
            span = (cycle.start_s, cycle.end_s)
            other = said.get(span, cycle)  # two labels over one span are one span
            said[span] = Cycle(*span, cycle.crackle | other.crackle, cycle.wheeze | other.wheeze)
    return [said.get(span) for span in spans]
