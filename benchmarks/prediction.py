"""Prediction of whole recordings, as a multiple of real time.

Decisions: recordings are real, and every step from the file to thresholds counts: decoding, resampling, windows of 3 s
every 1.5 s, features, network. The other side decodes the same recordings and runs transformers' own AST on the same
windows.
"""

import os
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from benchmarks import transformer
from benchmarks.device import device_name, gpu, not_measured, waiting
from benchmarks.material import mobilenet
from benchmarks.row import Row, Setting, fastest, needs, profiled, run_command, stages
from laennec import DEFAULT_MODEL, load_model
from laennec.audio.cycles import cut, sliding_windows
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import read_recording
from laennec.configuration import LaennecConfig
from laennec.encoders import load_encoder
from laennec.inference.predictor import Predictor
from laennec.modeling import LaennecForAudioClassification

# numbers of evenly spaced recordings
RECORDINGS = {"mobilenet": 12, "ast": 1, "jobs": 101}
_NAMES = {0: "crackle", 1: "wheeze"}
# stages of `evaluate` and `prepare`: name in the row -> function
_STAGES = {
    "imports": "_find_and_load",
    "corpus and its table": "load_corpus",
    "leak check of the sound": "check_duplicates",
    "decoding": "_prepare",
    "features and encoder": "embed_waveforms",
    "baselines": "shortcut_baselines",
    "report": "write_report",
}
_STAGES_OF_JOBS = {stage: _STAGES[stage] for stage in list(_STAGES)[:4]}


def whole_recordings(setting: Setting) -> list[Row]:
    """Predictor on one thread: EfficientAT's mn04, and AST-base against transformers'."""
    torch.set_num_threads(1)
    found = sorted(needs(setting, "icbhi2017_subset").glob("*.flac"))
    return [_mobilenet(setting, found), _on_gpu(found), _ast(setting, found)]


def _on_gpu(found: list[Path]) -> Row:
    """The model in the package on a GPU, from the file to the timeline, against the CPU."""
    name, bound = "whole recordings on a GPU", "> 1"
    device = gpu()
    if device is None:
        return not_measured(name, "x real time", bound)
    chosen, seconds = _some(found, "mobilenet")
    sides = []
    for place in (device, torch.device("cpu")):
        model, extractor = load_model()
        predictor = Predictor(model.to(place), extractor, backend="torch")  # type: ignore[arg-type]
        predictor(chosen[0])
        sides.append(waiting(device, lambda p=predictor: [p(path) for path in chosen]))  # type: ignore[misc]
    own, other = fastest(*sides, repeats=2)
    note = f"{len(chosen)} recordings of {seconds:.0f} s in all, {device_name(device)}; theirs: one thread of the CPU"
    return Row(name, seconds / own, seconds / other, "x real time", other / own, bound, note)


def in_the_package(setting: Setting) -> list[Row]:
    """The model in the package, in onnxruntime against torch: recordings, their windows alone, and the command."""
    torch.set_num_threads(1)
    found = sorted(needs(setting, "icbhi2017_subset").glob("*.flac"))
    chosen, seconds = _some(found, "mobilenet")
    onnx, torch_ = (Predictor.from_pretrained(backend=name) for name in ("onnx", "torch"))
    own, other = fastest(
        *(lambda p=p: [p(path) for path in chosen] for p in (onnx, torch_)),  # type: ignore[misc]
        repeats=setting.repeats,
    )
    note = f"{len(chosen)} recordings of {seconds:.0f} s in all, windows of 2 s every second; theirs: --backend torch"
    note += f"; {profiled(lambda: [onnx(path) for path in chosen])}"
    rows = [Row("whole recordings, ONNX", seconds / own, seconds / other, "x real time", other / own, ">= 300", note)]
    rate, windows = onnx.extractor.sampling_rate, []
    for path in chosen:
        recording = read_recording(path, rate)
        spans = sliding_windows(recording.duration_s, 2, 1)
        windows += [cut(recording.waveform, rate, *span) for span in spans]
    span_s = sum(map(len, windows)) / rate
    own, other = fastest(
        *(lambda p=p: p.backend.logits(windows) for p in (onnx, torch_)),  # type: ignore[misc]
        repeats=setting.repeats,
    )
    note = f"{len(windows)} windows of 2 s, from the waveform to logits; theirs: --backend torch"
    rows.append(Row("sound to logits, ONNX", span_s / own, span_s / other, "x real time", other / own, ">= 400", note))
    command = partial(_laennec, "predict", str(chosen[0]), "--backend")
    own, other = fastest(*(partial(command, name) for name in ("onnx", "torch")), repeats=setting.repeats)
    note = "laennec predict RECORDING, a new process; theirs: --backend torch"
    rows.append(Row("command to answer", own, other, "s", own / other, "<= 1.5 s", note))
    return rows


def evaluation(setting: Setting) -> list[Row]:
    """`laennec evaluate` with the model in the package, from an empty cache and with everything cached."""
    words = ["evaluate", DEFAULT_MODEL, *_corpus(setting), "--split", "validation"]
    note = "validation events of SPRSound, report and baselines included, a new process"
    with tempfile.TemporaryDirectory() as scratch:
        two = partial(_laennec, *words, "--out", f"{scratch}/two", "--jobs", "2", cache=f"{scratch}/two-cache")
        rows = [Row("evaluate, nothing cached, --jobs 2", *fastest(two, repeats=1), None, "s", None, "<= 40 s", note)]
    with tempfile.TemporaryDirectory() as scratch:
        times, shares = [], []
        for name in ("first", "again"):
            times += fastest(partial(_laennec, *words, "--out", f"{scratch}/{name}", cache=scratch), repeats=1)
            cache = scratch if name == "again" else f"{scratch}/profiled"
            shares.append(stages([*words, "--out", f"{scratch}/{name}-profiled"], _STAGES, cache))
    kinds = (("nothing cached", "<= 40 s"), ("cached", "<= 8 s"))
    return rows + [
        Row(f"evaluate, {kind}", took, None, "s", None, bound, f"{note}, one thread; {share}")
        for (kind, bound), took, share in zip(kinds, times, shares, strict=True)
    ]


def two_jobs(setting: Setting) -> list[Row]:
    """The commands that take `--jobs`, in two processes against one, each from an empty cache."""
    found = sorted(needs(setting, "icbhi2017_subset").glob("*.flac"))[: RECORDINGS["jobs"]]
    commands = {
        "predict": ["predict", *map(str, found), "--out"],
        "embed": ["embed", *map(str, found), "--out"],
        "prepare": ["prepare", *_corpus(setting)[1:], "--sampling-rate", "32000"],
        "evaluate": ["evaluate", DEFAULT_MODEL, *_corpus(setting), "--split", "train", "--out"],
    }
    rows = []
    for name, words in commands.items():
        took = []
        for jobs in (2, 1):
            with tempfile.TemporaryDirectory() as scratch:
                out = [f"{scratch}/out"] if words[-1] == "--out" else []
                side = partial(_laennec, *words, *out, "--jobs", str(jobs), cache=f"{scratch}/cache")
                took += fastest(side, repeats=1)
        what = "SPRSound" if "sprsound" in words else f"{len(found)} recordings"
        note = f"laennec {name} on {what} with --jobs 2; theirs: one process"
        if name == "prepare":
            with tempfile.TemporaryDirectory() as scratch:
                note += f"; of one process, {stages(words, _STAGES_OF_JOBS, scratch)}"
        rows.append(Row(f"two processes that {name}", took[0], took[1], "s", took[1] / took[0], ">= 1.8", note))
    return rows


def _corpus(setting: Setting) -> list[str]:
    return ["--corpus", "sprsound", "--data-dir", str(needs(setting, "sprsound"))]


def _laennec(*words: str, cache: str | None = None) -> None:
    """A command in a new process."""
    environment = os.environ if cache is None else {**os.environ, "LAENNEC_CACHE": cache}
    run_command(sys.executable, "-m", "laennec", *words, environment=environment)


def _some(found: list[Path], kind: str) -> tuple[list[Path], float]:
    """Some recordings, and their total duration in seconds."""
    chosen = found[:: max(1, len(found) // RECORDINGS[kind])][: RECORDINGS[kind]]
    return chosen, sum(float(soundfile.info(path).duration) for path in chosen)


def _predictor(encoder: Any, preset: str) -> Any:
    config = LaennecConfig(encoder_config=encoder.config, id2label=_NAMES)
    return Predictor(LaennecForAudioClassification(config, encoder), LaennecFeatureExtractor(preset))


def _mobilenet(setting: Setting, found: list[Path]) -> Row:
    chosen, seconds = _some(found, "mobilenet")
    encoder, what = mobilenet(setting)
    predictor = _predictor(encoder, "efficientat")
    predictor(chosen[0])
    (took,) = fastest(lambda: [predictor(path) for path in chosen], repeats=setting.repeats)
    note = f"{len(chosen)} recordings of {seconds:.0f} s in all, {what}, file to thresholds, one thread"
    return Row("whole recordings, mobilenet", seconds / took, None, "x real time", None, ">= 100", note)


def _ast(setting: Setting, found: list[Path]) -> Row:
    chosen, seconds = _some(found, "ast")
    predictor = _predictor(load_encoder(None, type="ast", **transformer.SIZE), "ast")
    config = ASTConfig(num_labels=2, problem_type="multi_label_classification", **transformer.SIZE)
    stock = ASTForAudioClassification._from_config(config).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its lowest mel filter is empty
        extractor = ASTFeatureExtractor()

    @torch.inference_mode()
    def theirs() -> None:
        for path in chosen:
            recording = read_recording(path, transformer.RATE)
            spans = sliding_windows(recording.duration_s, predictor.window_s, predictor.hop_s)
            for span in spans:
                window = cut(recording.waveform, transformer.RATE, *span)
                values = extractor(window, sampling_rate=transformer.RATE, return_tensors="pt")["input_values"]
                stock(values).logits.sigmoid()

    own, other = fastest(lambda: [predictor(path) for path in chosen], theirs, repeats=1)
    note = (
        f"{seconds:.0f} s of recordings, random weights, one thread; theirs: the same windows through "
        "ASTFeatureExtractor and ASTForAudioClassification, filled up to 1024 frames"
    )
    return Row("whole recordings, AST-base", seconds / own, seconds / other, "x real time", other / own, "", note)
