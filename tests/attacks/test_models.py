"""Invalid settings and weights of an untrusted model: one line says what is wrong, and no code runs.

Each attack changes one file of a valid model. It is tried on everything that loads a model in Python; one attack on
each file is also tried on the commands.
"""

import copy
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_encoders import AST, BEATS
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

import laennec
from laennec import LaennecFeatureExtractor, LaennecForAudioClassification
from laennec.cli.main import main
from laennec.corpora.base import CYCLE_FEATURES
from laennec.encoders import load_encoder
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.inference.onnx_model import OnnxModel
from laennec.model_settings import COLUMNS, NEUTRAL
from laennec.training.tables import _COPIED

NAN, INF = math.nan, math.inf
GOLDEN = Path(__file__).parents[1] / "golden" / "first_edition" / "models"
CONFIG, FRONT_END, FACTS = "config.json", "preprocessor_config.json", "onnx.json"
WINDOWS = {
    "thresholds": {"crackle": 0.4}, "temperatures": {}, "intercepts": {}, "window_s": 2.0, "hop_s": 1.0, "rule": "f1",
}  # fmt: skip
TASK = {"labels": ["a", "b"], "level": None, "window_s": 1.0, "smoothing": 0.5, "logit_adjustment": {"all": 1.0}}


def labels(*names):
    return {"id2label": {str(k): name for k, name in enumerate(names)}, "label2id": None}


def windows(**changes):
    return {"operating_points": {"windows": WINDOWS | changes}}


def task(**changes):
    return {"tasks": {"event": TASK | changes}}


def lora(**changes):
    return {"lora": {"rank": 2, "alpha": 1.0, "dropout": 0.0, "target_modules": ["q_proj"]} | changes}


def inner(**changes):
    return {"encoder_config": changes}


def nested(depth, members=2):
    """Configuration of nested ensembles, each with so many members."""
    config = {"model_type": "laennec-cnn", "channels": [4, 8]}
    for _ in range(depth):
        config = {"model_type": "laennec-ensemble", "members": members, "encoder_config": config}
    return {"encoder_config": config}


def deep(depth):
    value = 0
    for _ in range(depth):
        value = {"a": value}
    return {"extra": value}


# name -> (changes of config.json, part of the message)
OF_CONFIG = {
    **{
        f"temperature {value!r}": ({"temperatures": {"crackle": value}}, "temperatures.crackle")
        for value in (0, "a", NAN, True, 1e300)
    },
    **{
        f"threshold {value!r}": ({"thresholds": {"crackle": value}}, "thresholds.crackle")
        for value in (7, "0.5", NAN)
    },
    **{
        f"intercept {value!r}": ({"intercepts": {"crackle": value}}, "intercepts.crackle")
        for value in (None, -INF, 1e300)
    },
    **{
        f"{setting}: a list": ({setting: [0.5, 0.5]}, setting)
        for setting in ("thresholds", "temperatures", "intercepts", "operating_point", "operating_points", "tasks")
    },
    "threshold of no label": ({"thresholds": {"rhonchus": 0.2}}, "thresholds"),
    "temperature of no label": ({"temperatures": {"rhonchus": 2.0}}, "temperatures"),
    "operating point: rule 7": ({"operating_point": {"rule": 7}}, "operating_point.rule"),
    "operating point: rule with an escape": ({"operating_point": {"rule": "\x1b[2J"}}, "operating_point.rule"),
    "operating point: notes in one text": ({"operating_point": {"notes": "none"}}, "operating_point.notes"),
    "operating point: note of two lines": ({"operating_point": {"notes": ["a\nb"]}}, "operating_point.notes"),
    "operating point: sensitivity 7": ({"operating_point": {"sensitivity": 7}}, "operating_point.sensitivity"),
    "operating point: fitted on a number": ({"operating_point": {"fitted_on": 3}}, "operating_point.fitted_on"),
    "operating points of breaths": ({"operating_points": {"breaths": WINDOWS}}, "operating_points.breaths"),
    "operating points of events": ({"operating_points": {"events": WINDOWS}}, "operating_points.events"),
    "operating points: a number": ({"operating_points": {"windows": 3}}, "operating_points.windows"),
    "windows: threshold 7": (windows(thresholds={"crackle": 7}), "operating_points.windows.thresholds.crackle"),
    "windows: thresholds null": (windows(thresholds=None), "operating_points.windows.thresholds"),
    "windows: temperature 0": (windows(temperatures={"crackle": 0}), "operating_points.windows.temperatures.crackle"),
    "windows: intercept NaN": (windows(intercepts={"crackle": NAN}), "operating_points.windows.intercepts.crackle"),
    "windows: threshold of no label": (windows(thresholds={"rhonchus": 0.1}), "operating_points.windows.thresholds"),
    "windows: length 0": (windows(window_s=0), "operating_points.windows.window_s"),
    "windows: longer than a day": (windows(window_s=90_000), "operating_points.windows.window_s"),
    "windows: length in a text": (windows(window_s="2"), "operating_points.windows.window_s"),
    "windows: hop negative": (windows(hop_s=-1), "operating_points.windows.hop_s"),
    "windows: rule with an escape": (windows(rule="\x1b]0;x\x07"), "operating_points.windows.rule"),
    "task ../x": ({"tasks": {"../x": TASK}}, "tasks"),
    "task keys": ({"tasks": {"keys": TASK}}, "tasks"),
    "task without a name": ({"tasks": {"": TASK}}, "tasks"),
    "task that is a list": ({"tasks": {"event": [1]}}, "tasks.event"),
    "task without labels": ({"tasks": {"event": {"level": None}}}, "tasks.event.labels"),
    "task: no labels": (task(labels=[]), "tasks.event.labels"),
    "task: one label twice": (task(labels=["a", "a"]), "tasks.event.labels"),
    "task: label of two lines": (task(labels=["a", "b\nc"]), "tasks.event.labels"),
    "task: labels a number": (task(labels=7), "tasks.event.labels"),
    "task: level 3": (task(level=3), "tasks.event.level"),
    "task: smoothing 7": (task(smoothing=7), "tasks.event.smoothing"),
    "task: smoothing in a text": (task(smoothing="0.5"), "tasks.event.smoothing"),
    "task: window negative": (task(window_s=-1), "tasks.event.window_s"),
    "task: window longer than a day": (task(window_s=1e6), "tasks.event.window_s"),
    "task: adjustment a list": (task(logit_adjustment=[1]), "tasks.event.logit_adjustment"),
    "task: adjustment NaN": (task(logit_adjustment={"all": NAN}), "tasks.event.logit_adjustment.all"),
    "label recording": (labels("recording", "wheeze"), "id2label"),
    "label that is another's probability": (labels("crackle", "crackle_probability"), "id2label"),
    "label that is another's logit": (labels("crackle", "logit_crackle"), "id2label"),
    "label twice": (labels("crackle", "crackle"), "id2label"),
    "label in another case": (labels("crackle", "Crackle"), "id2label"),
    "label in wide letters": (labels("crackle", "ｃｒａｃｋｌｅ"), "id2label"),
    "label of two lines": (labels("crackle", "whe\neze"), "id2label"),
    "label with an escape": (labels("crackle", "\x1b[31mwheeze"), "id2label"),
    "label written backwards": (labels("crackle", "\u202eezeehw"), "id2label"),
    "label empty": (labels("crackle", ""), "id2label"),
    "label with a space behind": (labels("crackle", "crackle "), "id2label"),
    "label null": (labels("crackle", None), "id2label"),
    "label of 10000 letters": (labels("crackle", "w" * 10_000), "id2label"),
    "labels: none": ({"id2label": {}, "label2id": {}}, "id2label"),
    "labels: a list": ({"id2label": ["crackle", "wheeze"]}, "id2label"),
    "labels: counted from 1": ({"id2label": {"1": "crackle", "2": "wheeze"}}, "id2label"),
    "labels: one missing": ({"id2label": {"0": "crackle", "2": "wheeze"}}, "id2label"),
    "labels: number -1": ({"id2label": {"0": "crackle", "-1": "wheeze"}}, "id2label"),
    "labels: other numbers back": ({"label2id": {"crackle": 1, "wheeze": 0}}, "label2id"),
    "labels: a list back": ({"label2id": [0, 1]}, "label2id"),
    "labels: 3 of 2": ({"num_labels": 3}, "num_labels"),
    "labels: number in a text": ({"num_labels": "2"}, "num_labels"),
    **{f"pooling {value!r}": ({"pooling": value}, "pooling") for value in ("max", ["mean"])},
    **{
        f"{name} {value!r}": ({name: value}, name)
        for name in ("head_hidden_dim", "projection_dim")
        for value in (-1, "x", 1.5, 9_000_000)
    },
    **{f"head_dropout {value!r}": ({"head_dropout": value}, "head_dropout") for value in (2, "a", NAN)},
    **{
        f"{name} {value!r}": ({name: value}, name)
        for name in ("head_layer_norm", "head_relu", "frozen_encoder", "head_only", "concatenated_context")
        for value in ("no", 7)
    },
    **{
        f"problem_type {value!r}": ({"problem_type": value}, "problem_type")
        for value in ("regression", 3)
    },
    **{
        f"span {value!r}": ({"span": value}, "span")
        for value in ("breath", 0, 90_000, NAN, True)
    },
    **{
        f"sampling_rate {value!r}": ({"sampling_rate": value}, "sampling_rate")
        for value in (0, 1e12, "16000", 16000.5, True)
    },
    **{f"trained_layers {v!r}": ({"trained_layers": v}, "trained_layers") for v in (-1, "x", 1.5)},
    "lora of nothing": ({"lora": {}}, "lora"),
    "lora: a list": ({"lora": ["q_proj"]}, "lora"),
    "lora: rank 0": (lora(rank=0), "lora.rank"),
    "lora: rank of a million": (lora(rank=1_000_000), "lora.rank"),
    "lora: rank in a text": (lora(rank="2"), "lora.rank"),
    "lora: alpha NaN": (lora(alpha=NAN), "lora.alpha"),
    "lora: dropout 2": (lora(dropout=2), "lora.dropout"),
    "lora: modules a pattern": (lora(target_modules="(a+)+$"), "lora.target_modules"),
    "lora: no modules": (lora(target_modules=[]), "lora.target_modules"),
    **{
        f"dtype {value!r}": ({"dtype": value}, "dtype")
        for value in ("float8_e4m3fn", "nonsense", ["float32"])
    },
    "torch_dtype float8": ({"dtype": None, "torch_dtype": "float8_e5m2"}, "torch_dtype"),
    "summary with an escape": ({"summary": "good\x1b[2J"}, "summary"),
    "summary of two lines": ({"summary": "good\nmodel"}, "summary"),
    "summary a list": ({"summary": ["good"]}, "summary"),
    "encoder_digest 3": ({"encoder_digest": 3}, "encoder_digest"),
    "features_fingerprint 7": ({"features_fingerprint": 7}, "features_fingerprint"),
    "base a list": ({"base_model_name_or_path": ["a"], "head_only": True}, "base_model_name_or_path"),
    "base revision 3": ({"base_model_revision": 3}, "base_model_revision"),
    "encoder: none": ({"encoder_config": None}, "encoder_config"),
    "encoder: a list": ({"encoder_config": [1]}, "encoder_config"),
    "encoder: type a list": (inner(model_type=["laennec-cnn"]), "encoder"),
    "encoder: type unknown": (inner(model_type="evil"), "evil"),
    "encoder: channels of texts": (inner(channels=[4, "x"]), ""),
    "encoder: channels NaN": (inner(channels=[4, NAN]), "channels"),
    "encoder: channels in a list of lists": (inner(channels=[[4, NAN]]), "channels"),
    "encoder: no channels": (inner(channels=[]), ""),
    "encoder: channels 0": (inner(channels=[4, 0]), ""),
    "encoder: channels 9 million": (inner(channels=[4, 9_000_000]), ""),
    "encoder: 100 layers of 900": (inner(channels=[900] * 100), ""),
    "encoder: mel bins NaN": (inner(num_mel_bins=NAN), "num_mel_bins"),
    "encoder: dtype float8": (inner(dtype="float8_e4m3fn"), "dtype"),
    "encoder: labels a list": (inner(id2label=[1]), ""),
    "encoder: ensemble of a million": (nested(1, 1_000_000), ""),
    "encoder: ensembles 30 deep": (nested(30), ""),
    "encoder: ensembles 100 deep": (nested(100, 1), "nested"),
    "encoder: ensemble of -1": (nested(1, -1), "members"),
    **{
        f"setting {name}": ({name: "x"}, name)
        for name in (
            "to_dict", "label_names", "use_return_dict", "attribute_map", "__class__",
        )
    },
    "encoder: setting to_dict": (inner(to_dict=3), "to_dict"),
    "encoder: setting attribute_map": (inner(attribute_map={"channels": "num_mel_bins"}), "attribute_map"),
    "attentions": ({"output_attentions": True}, "output_attentions"),
    "other machines": ({"distributed_config": {"tp_size": 2}}, "distributed_config"),
    "nested 100 deep": (deep(100), "nested"),
    "NaN where nothing reads it": ({"extra": {"a": [{"b": NAN}]}}, "extra"),
    "number of 5000 digits": ({"extra": 10**4000}, "extra"),
}  # fmt: skip

# name -> (changes of preprocessor_config.json, part of the message)
OF_FRONT_END = {
    **{
        f"{name} {value!r}": ({name: value}, name)
        for name, values in {
            "sampling_rate": (0, 10_000_000, "16000", NAN, 16000.7, True),
            "num_mel_bins": (0, 1_000_000, "64", 64.5),
            "hop_samples": (0, 1, "x", 1.5),
            "window_samples": (0, 1, 9_000_000, "x"),
            "fft_samples": (0, 512, 9_000_000, "x"),
            "reflect_samples": (-1, 10_000, "x"),
            "std": (0, NAN, "a"),
            "mean": (INF, 1e300, "a"),
            "log_floor": (0, NAN, "a"),
            "low_hz": (-1, 9000, NAN),
            "high_hz": (0, 9000, INF),
            "pre_emphasis": (NAN, 7, "a"),
            "waveform_scale": (0, INF, 1e300, "a"),
            "window": ("kaiser", ["hann"]),
            "mel_scale": ("bark",),
            "kind": ("mfcc", None),
            "normalise": ("none",),
            "log_floor_rule": ("min",),
            "pre_emphasis_on": ("window",),
            "stack_frames": (0, 1_000_000, "2"),
            "dynamic_range": (-1, "a"),
            "remove_frame_mean": ("no", 7),
            "subtract_mean": ("no",),
            "drop_last_frame": (2,),
            "length": ("long", ["repeat"]),
            "keep": ("middle",),
            "fade_s": (-1, 1, "a"),
            "context_cycles": (-1, 1_000_000, "1", True),
            "recording_filter": ("lowpass",),
            "preset": ("evil", ["ast"]),
            "feature_version": (99, "1"),
            "return_attention_mask": ("no", 7),
            "padding_value": (1, "a"),
            "feature_size": (3, "64"),
        }.items()
        for value in values
    },
    **{
        f"duration_s {value!r}": ({"length": "repeat", "duration_s": value}, "duration_s")
        for value in (0, NAN, 90_000, "5", True)
    },
    "duration_s of natural length": ({"duration_s": 5.0}, "duration_s"),
    **{
        f"filter of {name} {value!r}": (
            {"recording_filter": {"kind": "highpass", "cutoff_hz": 100.0, "order": 4} | {name: value}},
            f"recording_filter{'' if value == 9000 else '.' + name}",
        )
        for name, values in {
            "order": (0, 9_000_000, "4", 1.5),
            "kind": ("comb", None),
            "cutoff_hz": (0, NAN, "x", 9000),
            "tap": (3,),
        }.items()
        for value in values
    },
    "filter of nothing but an order": ({"recording_filter": {"order": 4}}, "recording_filter"),
    "bandpass of one edge": ({"recording_filter": {"kind": "bandpass", "cutoff_hz": [100]}}, "recording_filter"),
    "bandpass that falls": ({"recording_filter": {"kind": "bandpass", "cutoff_hz": [200, 100]}}, "recording_filter"),
    "bandpass of texts": ({"recording_filter": {"kind": "bandpass", "cutoff_hz": ["a", "b"]}}, "recording_filter"),
    "unknown setting": ({"hop_sample": 3}, "hop_sample"),
    "nested 100 deep": (deep(100), "nested"),
    "NaN where nothing reads it": ({"auto_map": {"a": [NAN]}}, "auto_map"),
}

# name -> (changes of onnx.json, part of the message)
OF_FACTS = {
    "file above": ({"file": "../model.onnx"}, "file"),
    "label recording": ({"labels": ["recording", "wheeze"]}, "labels"),
    "label twice": ({"labels": ["crackle", "crackle"]}, "labels"),
    "label with an escape": ({"labels": ["crackle", "\x1b[31mwheeze"]}, "labels"),
    "labels: none": ({"labels": []}, "labels"),
    **{f"threshold {v!r}": ({"thresholds": {"crackle": v}}, "thresholds.crackle") for v in (7, "0.5")},
    **{f"temperature {v!r}": ({"temperatures": {"crackle": v}}, "temperatures.crackle") for v in (0, NAN)},
    "threshold of no label": ({"thresholds": {"rhonchus": 0.5}}, "thresholds"),
    "operating points of breaths": ({"operating_points": {"breaths": WINDOWS}}, "operating_points.breaths"),
    "windows: length 0": (windows(window_s=0), "operating_points.windows.window_s"),
    "operating point: notes in one text": ({"operating_point": {"notes": "a"}}, "operating_point.notes"),
    **{f"span {v!r}": ({"span": v}, "span") for v in ("breath", NAN)},
    **{f"sampling_rate {v!r}": ({"sampling_rate": v}, "sampling_rate") for v in (0, "16000")},
    **{f"min_samples {v!r}": ({"min_samples": v}, "min_samples") for v in (0, "x")},
    "problem_type regression": ({"problem_type": "regression"}, "problem_type"),
    "summary of two lines": ({"summary": "a\nb"}, "summary"),
    "filter a text": ({"recording_filter": "lowpass"}, "recording_filter"),
    "filter of order 9 million": (
        {"recording_filter": {"kind": "lowpass", "cutoff_hz": 100.0, "order": 9_000_000}},
        "recording_filter.order",
    ),
    "filter above the sound": (
        {"recording_filter": {"kind": "highpass", "cutoff_hz": 9000.0, "order": 4}},
        "recording_filter",
    ),
    "nested 100 deep": (deep(100), "nested"),
    "NaN where nothing reads it": ({"extra": [NAN]}, "extra"),
}
# name -> (changes of preprocessor_config.json beside onnx.json, part of the message)
BESIDE_FACTS = {
    "length long": ({"length": "long"}, "length"),
    "keep middle": ({"keep": "middle"}, "keep"),
    "duration_s NaN": ({"length": "repeat", "duration_s": NAN}, "duration_s"),
    "another rate": ({"sampling_rate": 8000}, "8000"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A small model without training records, which an attacker can leave out, and an ONNX model."""
    root = tmp_path_factory.mktemp("models")
    features = LaennecFeatureExtractor("song2021", length="natural")
    encoder = load_encoder(None, type="cnn", channels=[4, 8])
    model = LaennecForAudioClassification.from_encoder(encoder, ["crackle", "wheeze"])
    model.save_pretrained(root / "torch")
    features.save_pretrained(root / "torch")
    shutil.copytree(GOLDEN / "onnx", root / "onnx")
    return root


def merged(values, changes):
    """Settings with changes; changes of the encoder's settings are merged key by key."""
    values = copy.deepcopy(values)
    for name, change in changes.items():
        if name == "encoder_config" and isinstance(change, dict) and "members" not in change:
            values[name] |= change
        else:
            values[name] = change
    return values


@pytest.fixture
def spoilt(models, tmp_path):
    """A function that copies a model and changes one of its files."""

    def make(kind, file, changes):
        folder = tmp_path / kind
        shutil.copytree(models / kind, folder)
        path = folder / file
        path.write_text(json.dumps(merged(json.loads(path.read_text()), changes)))
        return folder

    return make


def assert_refused(load, *said):
    """Check that loading fails with one printable line that contains `said` and a remedy."""
    with pytest.raises(InputError) as error:
        load()
    line = str(error.value)
    assert "\n" not in line and line.isprintable() and ";" in line and len(line) < 700, line
    for part in said:
        assert part in line, (part, line)


def named(cases):
    return {"argvalues": cases.values(), "ids": cases}


@pytest.mark.parametrize(("changes", "said"), **named(OF_CONFIG))
def test_config_json(spoilt, changes, said):
    folder = spoilt("torch", CONFIG, changes)
    assert_refused(lambda: load_model(folder), str(folder), said)
    assert_refused(lambda: AutoModelForAudioClassification.from_pretrained(folder), said)


@pytest.mark.parametrize(("changes", "said"), **named(OF_FRONT_END))
def test_preprocessor_config_json(spoilt, changes, said):
    folder = spoilt("torch", FRONT_END, changes)
    assert_refused(lambda: load_model(folder), str(folder), said)
    assert_refused(lambda: AutoFeatureExtractor.from_pretrained(folder), said)


@pytest.mark.parametrize(("changes", "said"), **named(OF_FACTS))
def test_onnx_json(spoilt, changes, said):
    folder = spoilt("onnx", FACTS, changes)
    assert_refused(lambda: OnnxModel(folder), str(folder), said)


@pytest.mark.parametrize(("changes", "said"), **named(BESIDE_FACTS))
def test_preprocessor_config_json_beside_onnx_json(spoilt, changes, said):
    folder = spoilt("onnx", FRONT_END, changes)
    assert_refused(lambda: OnnxModel(folder), str(folder), said)


def test_labels_cannot_be_columns_of_the_tables():
    assert set(CYCLE_FEATURES) - {"crackle", "wheeze"} <= COLUMNS and set(_COPIED) - {"crackle", "wheeze"} <= COLUMNS


# ---------------------------------------------------------------- commands, predictor and pipeline


@pytest.mark.parametrize("command", ["predict", "embed", "evaluate", "export"])
@pytest.mark.parametrize("file", [CONFIG, FRONT_END])
def test_commands_say_it_in_one_line(spoilt, small_corpus, tmp_path, capfd, command, file):
    changes = {CONFIG: {"temperatures": {"crackle": 0}}, FRONT_END: {"hop_samples": -1}}[file]
    model, out = str(spoilt("torch", file, changes)), str(tmp_path / "out")
    words = {
        "predict": [model, str(small_corpus), "--out", out],
        "embed": [model, str(small_corpus), "--out", out],
        "evaluate": [model, "--corpus", "synthetic", "--data-dir", str(small_corpus), "--out", out],
        "export": [model, "--out", out],
    }
    capfd.readouterr()
    assert main([command, *words[command]]) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"laennec: {model}") and said.count("\n") == 1 and ";" in said, said
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("kind", "file", "changes"),
    [
        ("torch", CONFIG, {"span": "breath"}),
        ("torch", FRONT_END, {"std": 0}),
        ("onnx", FACTS, {"span": "breath"}),
        ("onnx", FRONT_END, {"keep": "all"}),
    ],
)
def test_a_predictor_says_it_in_one_line(spoilt, kind, file, changes):
    folder = spoilt(kind, file, changes)
    assert_refused(lambda: laennec.Predictor.from_pretrained(folder), str(folder), *changes)


@pytest.mark.parametrize(("file", "changes"), [(CONFIG, {"span": "breath"}), (FRONT_END, {"std": 0})])
def test_a_pipeline_says_it_in_one_line(spoilt, file, changes):
    folder = spoilt("torch", file, changes)
    assert_refused(lambda: pipeline("audio-classification", model=str(folder), feature_extractor=str(folder)), *changes)


@pytest.mark.parametrize(
    "values",
    [{"pooling": "max"}, {"id2label": {0: "recording"}}, {"thresholds": {"LABEL_0": 7}}, {"tasks": {"a.b": TASK}}],
    ids=lambda values: next(iter(values)),
)
def test_a_model_that_could_not_be_loaded_again_is_never_made(values):
    assert_refused(lambda: laennec.LaennecConfig(**values), next(iter(values)))


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("value", [0.0, -1.0], ids=["zero", "negative"])
def test_a_spread_of_zero_or_less_is_refused(spoilt, value):
    folder = spoilt("torch", CONFIG, {})
    state = load_file(folder / "model.safetensors")
    state["head.spread"][3] = value
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert_refused(lambda: load_model(folder), str(folder), "head.spread")


@pytest.mark.parametrize("changes", [{"group_frames": 9_000_000}, {"group_step": 1}], ids=str)
def test_groups_of_another_size_than_the_weights_say(tmp_path, changes):
    encoder = load_encoder(None, type="cnn", channels=[4, 8])
    model = LaennecForAudioClassification.from_encoder(encoder, ["crackle", "wheeze"], group_frames=20)
    model.save_pretrained(tmp_path)
    path = tmp_path / CONFIG
    path.write_text(json.dumps(merged(json.loads(path.read_text()), {"encoder_config": changes})))
    assert_refused(lambda: AutoModelForAudioClassification.from_pretrained(tmp_path), next(iter(changes)))


# settings that declare a size far from that of the weights: name -> (encoder, changed settings)
SIZES = {
    "a million channels": ("cnn", {"channels": [1_000_000, 1_000_000]}),
    "width of a million": ("ast", {"hidden_size": 1_000_000}),
    "a width that heads do not divide": ("ast", {"hidden_size": 999_999}),
    "100000 layers": ("ast", {"num_hidden_layers": 100_000}),
    "pictures without end": ("ast", {"max_length": 9_000_000}),
    "a thousandfold width": ("mobilenet", {"width_mult": 1000.0}),
    "a classifier of millions": ("mobilenet", {"audioset_head": True, "audioset_classes": 9_000_000}),
    "positions without end": ("whisper", {"max_source_positions": 9_000_000}),
    "buckets without end": ("beats", {"num_buckets": 9_000_000}),
    "convolutions of millions": ("hubert", {"conv_dim": [9_000_000] * 7}),
    "an ensemble of many": ("cnn", {"model_type": "laennec-ensemble", "members": 100}),
    "a hidden layer of the head": ("cnn", {"head_hidden_dim": 1_000_000}),
    "adapters of a wide rank": ("cnn", lora(rank=1025)),
}
SMALL = {
    "cnn": {"channels": [4, 64]}, "mobilenet": {"width_mult": 0.05}, "ast": AST, "beats": BEATS,
    "whisper": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16},
    "hubert": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "conv_dim": [4] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    },
}  # fmt: skip
# each is loaded with half a GiB of memory beyond that of a program that has loaded a model
TRIED = """
import json, resource, sys
import torch
from transformers import AutoModelForAudioClassification
import laennec.modeling
from laennec.encoders import load_encoder
from laennec.errors import InputError
torch.set_num_threads(1)
def tried(load, folder):
    try:
        load(folder)
    except InputError as error:
        return str(error)
    except BaseException as error:
        return f"{type(error).__name__}\\n{error}"
    return "nothing\\nsaid"
whole, *folders = json.load(sys.stdin)
AutoModelForAudioClassification.from_pretrained(whole)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29),) * 2)
ways = {"model": AutoModelForAudioClassification.from_pretrained, "encoder": load_encoder}
print(json.dumps({folder: tried(ways[way], folder) for folder, way in folders}))
"""


@pytest.fixture(scope="module")
def sized(tmp_path_factory):
    """Messages of loading each of the sizes, as a whole model and as an encoder for training, in one process."""
    root = tmp_path_factory.mktemp("sizes")
    for kind, settings in SMALL.items():
        encoder = load_encoder(None, type=kind, **settings)
        encoder.save_pretrained(root / kind / "encoder")
        LaennecForAudioClassification.from_encoder(encoder, ["crackle", "wheeze"]).save_pretrained(root / kind)
    asked = []
    for name, (kind, changes) in SIZES.items():
        whole = json.loads((root / kind / CONFIG).read_text())
        inner = json.loads((root / kind / "encoder" / CONFIG).read_text())
        own = {} if "members" in changes else {key: value for key, value in changes.items() if key in whole}
        if changes.get("members"):
            changes = changes | {"encoder_config": inner | {"channels": [1024, 1024]}}
        spoilt = {"model": merged(whole, own or {"encoder_config": changes}), "encoder": inner | changes}
        for way, values in spoilt.items():
            if way == "encoder" and (own or "members" in changes):
                continue
            place = root / name / way
            shutil.copytree(root / kind / ("encoder" if way == "encoder" else ""), place)
            (place / CONFIG).write_text(json.dumps(values))
            asked.append((str(place), way))
    done = subprocess.run(
        [sys.executable, "-c", TRIED], input=json.dumps([str(root / "cnn"), *asked]), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    return {
        name: {way: line for (place, way) in asked if (line := said[place]) and f"/{name}/" in place} for name in SIZES
    }


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_differs_from_the_weights_takes_no_memory(sized, name):
    assert sized[name]
    for line in sized[name].values():
        assert line.isprintable() and ";" in line and len(line) < 700, line
        assert "memory" not in line, line  # torch's message if it tried to allocate the size


@pytest.mark.parametrize("names", [["crackle"], ["crackle", "wheeze", "rhonchus"]])
def test_labels_of_another_number_than_the_file_has_logits_are_refused(tmp_path, names):
    folder = shutil.copytree(Path(laennec.__file__).parent / "default_model", tmp_path / "model")
    for other in ("config.json", "model.safetensors"):
        (folder / other).unlink()
    facts = json.loads((folder / FACTS).read_text())
    cleared = {"labels": names, "sources": {}, "operating_points": {}}
    cleared |= {setting: {} for setting in (*NEUTRAL, "operating_point")}
    (folder / FACTS).write_text(json.dumps(facts | cleared))
    with pytest.raises(InputError, match="has 2 logits"):
        OnnxModel(folder)


@pytest.mark.parametrize("names", [["duration_s", "b"], ["spans", "b"], ["x", "x_highest"], ["x_share", "x"]])
def test_labels_must_not_be_columns_of_the_table_of_recordings(names):
    with pytest.raises(InputError, match="a column of the tables"):
        laennec.LaennecConfig(id2label=dict(enumerate(names)))
