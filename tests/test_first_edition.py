"""Files of the first edition load and give the same results as then.

The golden files were recorded with the functions of this file (tests/golden/first_edition/README.md).
"""

import contextlib
import hashlib
import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

import audio_twins
import numpy_twins
from laennec import Predictor, Recipe, evaluate_predictions, load_corpus, load_model, pretrain, train
from laennec.cli.main import main
from laennec.corpora import provenance
from laennec.evaluation import class_distances, fit_on_validation, four_properties, sprsound_task, sprsound_total
from laennec.evaluation.calibration.operating_point import fit_classes_on_validation
from laennec.evaluation.calibration.smoothing import choose_smoothing, compare_smoothing

GOLDEN = Path(__file__).with_name("golden") / "first_edition"
MODELS = GOLDEN / "models"
BASES = {"head": MODELS / "base_ast", "lora": MODELS / "base_ast"}
HUB = {
    "esc50": {"label_column": "category", "fold_column": "fold", "patient_column": "src_file"},
    "speech": {"layout": "folders", "patient_column": "speaker"},
    "iemocap": {
        "layout": "iemocap",
        "fold_column": "session",
        "patient_column": "speaker",
        "label_map": {"exc": "hap"},
        "labels": ["neu", "hap", "ang", "sad"],
    },
}
PATIENTS = ("official", "official-strict", "patient-60-20-20", "random-80-20", "recording-80-20")
# (corpus, folder, options); folders below data hold real recordings, the others are small copies (twins)
TWINS = [
    *(("icbhi2017", "icbhi", {"protocol": name, "allow_missing": True}) for name in PATIENTS),
    *(("icbhi2017", "icbhi", {"protocol": name, "allow_missing": True, "seed": 7}) for name in PATIENTS),
    *(("icbhi2017", "icbhi", {"protocol": "patient-5fold", "allow_missing": True, "fold": k}) for k in range(5)),
    *(("icbhi2017", "icbhi", {"protocol": "device-out", "allow_missing": True, "fold": k}) for k in range(4)),
    ("synthetic", "icbhi", {}),
    ("synthetic", "icbhi", {"protocol": "official", "validation_fraction": 0.4}),
    ("sprsound", "sprsound", {}),
    ("sprsound", "sprsound", {"level": "record"}),
    ("sprsound", "sprsound", {"protocol": "patient-5fold", "fold": 2}),
    *(("physionet2016", "physionet", {"fold": k}) for k in (0, 1, 4)),
    ("physionet2016", "physionet", {"level": "window", "window_s": 1.0, "protocol": "recording-80-20"}),
    ("physionet2016", "physionet_own", {"protocol": "validation-folder", "validation_folder": True}),
    ("hub", "esc50", {"protocol": "published-folds", "fold": 1, "validation_fraction": 0.1, **HUB["esc50"]}),
    ("hub", "speech", {"protocol": "published-parts", **HUB["speech"]}),
    ("hub", "iemocap", {"protocol": "published-folds", "fold": 1, "validation_fraction": 0.1, **HUB["iemocap"]}),
    ("folder", "own", {"protocol": "patient-60-20-20"}),
]
REAL = [
    *(("icbhi2017", "data/icbhi2017_annotations", {"protocol": name}) for name in PATIENTS),
    *(("icbhi2017", "data/icbhi2017_annotations", {"protocol": "patient-5fold", "fold": k}) for k in range(5)),
    *(("icbhi2017", "data/icbhi2017_annotations", {"protocol": "device-out", "fold": k}) for k in range(4)),
    ("icbhi2017", "data/icbhi2017_subset", {"protocol": "patient-60-20-20", "allow_missing": True}),
    ("sprsound", "data/sprsound", {}),
    ("sprsound", "data/sprsound", {"level": "record"}),
]
ROOT = Path(__file__).resolve().parents[1]
STEPS = json.loads((GOLDEN / "steps.json").read_text())
RECIPES = {
    name: path
    for path in sorted((ROOT / "recipes").rglob("*.yaml"))
    if (name := f"{path.parent.name}/{path.stem}") in STEPS
}
# settings in which the first edition's recipes differ from today's
FORMER = {
    "general_audio/*_ast": {"features.mean": None},
    "general_audio/*_beats": {"train.optimizer": "adamw"},
    "general_audio/speech_commands_[ac]*": {"augment.mix.each": "batch", "loss.task": "ce"},
    "icbhi2017_official/add_beats": {
        "train.optimizer": "adamw", "train.weight_decay": 0.0, "train.betas": [0.9, 0.999],
    },
    "icbhi2017_official/frozen_ast_multilabel": {"head.relu": False},
    "icbhi2017_official/cycleguardian": {
        "features.keep": "first", "train.epoch_cosine": False, "train.moving_average": None,
        "train.lr_scheduler_type": "constant",
    },
    "sprsound/best_mobilenet": {"augment.crop": None},
    "icbhi2017_official/simclr_age_sex": {"pretrain.negatives": "all", "pretrain.pairs": "self"},
}  # fmt: skip
PRETRAINED = [name for name, path in RECIPES.items() if "\npretrain:" in path.read_text()]
TWO = {"problem_type": "multi_label", "label_names": ["crackle", "wheeze"]}
FOUR = {"problem_type": "single_label", "label_names": ["normal", "crackle", "wheeze", "both"]}
SPRSOUND = {
    "1-1": ("Normal", "Adventitious"),
    "1-2": ("Normal", "Rhonchi", "Wheeze", "Stridor", "Coarse Crackle", "Fine Crackle", "Wheeze+Crackle"),
    "2-1": ("Normal", "Adventitious", "Poor Quality"),
    "2-2": ("Normal", "CAS", "DAS", "CAS & DAS", "Poor Quality"),
}
WORDS = {"definitions", "what", "text", "note", "notes", "convention", "skipped"}  # sentences, which may be reworded
LOADED = ("full", "head", "lora", "mobilenet", "ensemble", "tasks", "context")  # by `load_model`


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def far():
    """Factor on tolerances: golden values come from an Intel processor; other processors round sums differently."""
    about = Path("/proc/cpuinfo")
    return 1 if about.exists() and "GenuineIntel" in about.read_text() else 200


def close(values, **tolerance):
    """Approximate equality within the rounding differences of processors."""
    allowed = {"rel": 1e-5, "abs": 2e-6} | tolerance
    return pytest.approx(np.asarray(values), **{name: far() * value for name, value in allowed.items()})


def sound_file(folder):
    return audio_twins.write(folder / "sound.wav", numpy_twins.waveform(), 8000)


def logits_of(model, extractor):
    """Logits (1, labels), embedding and logits of other tasks for the fixed sound at the model's sampling rate."""
    sound = numpy_twins.waveform(rate_hz=extractor.sampling_rate).astype(np.float32)
    values = extractor(sound, sampling_rate=extractor.sampling_rate, filtered=True, return_tensors="pt")
    with torch.inference_mode():
        answered = model.eval()(**values)
        embeddings = getattr(answered, "embeddings", None)
        tasks = {name: task(embeddings).tolist() for name, task in getattr(model, "tasks", {}).items()}
    return {
        "logits": answered.logits.tolist(),
        "embeddings": None if embeddings is None else embeddings.tolist(),
        "tasks": tasks,
    }


def answers_of(name, folder):
    """Output of an exported model: logits of the whole sound, and the timeline of its file."""
    model, extractor = load_model(MODELS / name, BASES.get(name))
    timeline = Predictor(model, extractor, window_s=1.0, hop_s=0.5)(sound_file(folder))
    return {
        "labels": list(timeline.labels),
        **logits_of(model, extractor),
        "spans": [list(span) for span in timeline.spans],
        "probabilities": timeline.probabilities.tolist(),
        "present": timeline.present.astype(int).tolist(),
    }


def stock_answers():
    """Output of transformers' own classes."""
    folder = MODELS / "stock"
    model = AutoModelForAudioClassification.from_pretrained(folder)
    return logits_of(model, AutoFeatureExtractor.from_pretrained(folder))


def onnx_answers():
    """Output of onnxruntime for a batch of two lengths."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    facts = json.loads((MODELS / "onnx" / "onnx.json").read_text())
    sound = numpy_twins.waveform(rate_hz=facts["sampling_rate"]).astype(np.float32)
    lengths = np.array([len(sound), len(sound) // 3], np.int64)
    batch = np.stack([np.where(np.arange(len(sound)) < length, sound, 0) for length in lengths])
    session = onnxruntime.InferenceSession(MODELS / "onnx" / facts["file"], providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(None, {"waveforms": batch, "lengths": lengths})
    return {"labels": facts["labels"], "logits": logits.tolist(), "probabilities": probabilities.tolist()}


def make_twins(folder):
    """Write each small copy of a corpus into its own subfolder."""
    sounds = sorted(numpy_twins.icbhi2017(folder / "icbhi").glob("*.wav"))
    numpy_twins.sprsound(folder / "sprsound")
    audio_twins.physionet2016(folder / "physionet", sounds)
    own = shutil.copytree(folder / "physionet", folder / "physionet_own") / "validation"
    for name, sound in zip(("a0001", "e0006"), audio_twins.excerpts(sounds[::-1], 2, 3.1, 2000), strict=True):
        audio_twins.write(own / f"{name}.wav", sound, 2000)
    audio_twins.esc50_github(folder / "esc50", sounds)
    audio_twins.speech_commands(folder / "speech", sounds)
    audio_twins.iemocap(folder / "iemocap", sounds)
    lines = ["file,start_s,end_s,label,patient,location"]
    for number, sound in enumerate(audio_twins.excerpts(sounds, 12, 1.2, 4000)):
        audio_twins.write(folder / "own" / f"{number}.wav", sound, 4000)
        kinds, place = list(numpy_twins.FLAGS), ("Tc", "Al")[number % 2]
        for k, (start, end) in enumerate(((0, 0.7), (0.5, 1.2))):
            lines.append(f"{number},{start},{end},{kinds[(number + k) % 4]},p{number // 2},{place}")
    (folder / "own" / "cycles.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    return make_twins(tmp_path_factory.mktemp("twins"))


def case_name(case):
    corpus, folder, options = case
    kept = {k: v for k, v in options.items() if k not in {"allow_missing"} and k not in HUB.get(folder, {})}
    return " ".join([corpus, folder, *(f"{k}={v}" for k, v in kept.items())])


def prints_of(case, root):
    """Fingerprints of a corpus and its splits, and a digest of each column of its cycle tables."""
    corpus, folder, options = case
    parts = load_corpus(corpus, root / folder, **options)
    origin = provenance(parts)
    columns = [name for name in parts["train"].column_names if name != "recording_path"]
    values = {name: [value for part in parts.values() for value in part[name][:]] for name in columns}
    return {
        "corpus": origin["corpus_fingerprint"],
        "split": origin["split_fingerprint"],
        "parts": {name: [len(part), origin["part_fingerprints"][name]] for name, part in parts.items()},
        "leaks": len(origin["leaks"]),
        "stamped": bool(origin["stamp"]),
        "columns": {name: hashlib.sha256(json.dumps(v).encode()).hexdigest()[:16] for name, v in values.items()},
    }


def assert_same_prints(case, root):
    wanted, got = golden("fingerprints")[case_name(case)], prints_of(case, root)
    columns = wanted.pop("columns", {})
    assert {key: got[key] for key in wanted} == wanted
    assert {name: got["columns"].get(name) for name in columns} == columns


@pytest.mark.parametrize("name", LOADED)
def test_an_exported_model_predicts_as_before(name, tmp_path):
    wanted, got = golden("predictions")[name], answers_of(name, tmp_path)
    assert got["labels"] == wanted["labels"] and got["present"] == wanted["present"]
    assert set(got["tasks"]) == set(wanted["tasks"])
    for task, logits in wanted["tasks"].items():
        assert got["tasks"][task] == close(logits)
    for key in ("embeddings", "logits", "spans", "probabilities"):
        assert got[key] == close(wanted[key])


@pytest.mark.parametrize("name", ["full", "mobilenet", "ensemble", "tasks", "context"])
def test_the_auto_classes_load_it(name):
    model = AutoModelForAudioClassification.from_pretrained(MODELS / name)
    extractor = AutoFeatureExtractor.from_pretrained(MODELS / name)
    assert logits_of(model, extractor)["logits"] == close(golden("predictions")[name]["logits"])


def test_stock_and_onnx_files_predict_as_before():
    wanted = golden("predictions")
    assert stock_answers()["logits"] == close(wanted["stock"]["logits"])
    got = onnx_answers()
    assert got["labels"] == wanted["onnx"]["labels"]
    assert got["logits"] == close(wanted["onnx"]["logits"])
    assert got["probabilities"] == close(wanted["onnx"]["probabilities"])


def test_the_command_line_writes_the_same_timeline(tmp_path):
    sound = sound_file(tmp_path)
    assert main(["predict", str(MODELS / "full"), str(sound), "--out", str(tmp_path / "out")]) == 0
    got, wanted = json.loads((tmp_path / "out" / "sound.laennec.json").read_text()), golden("timeline")
    assert set(wanted) <= set(got)
    for key in set(wanted) - {"recording", "timeline", "decision"}:
        assert got[key] == wanted[key], key
    assert len(got["timeline"]) == len(wanted["timeline"])
    for row, expected in zip(got["timeline"], wanted["timeline"], strict=True):
        assert row == pytest.approx(expected, abs=2e-6)


@pytest.fixture
def study_place(tmp_path, monkeypatch):
    """The working directory of the run's training: the corpus in icbhi, the run in run."""
    numpy_twins.icbhi2017(tmp_path / "icbhi")
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    shutil.copytree(GOLDEN / "interrupted", tmp_path / "interrupted")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("unpainted")
def test_a_finished_run_is_scored_and_exported(study_place):
    stored = GOLDEN / "run"
    assert main(["evaluate", "run", "--out", "again"]) == 0
    wanted, got = (pd.read_parquet(p / "predictions.parquet") for p in (stored / "evaluation-test", Path("again")))
    pd.testing.assert_frame_equal(got[wanted.columns], wanted, check_exact=False, rtol=1e-5, atol=1e-5)
    figures = json.loads((stored / "evaluation-test" / "metrics.json").read_text())["values"]
    assert json.loads(Path("again/metrics.json").read_text())["values"] == pytest.approx(figures, rel=1e-4)
    scored = json.loads(Path("run/run.json").read_text())["evaluations"]
    before = json.loads((stored / "run.json").read_text())["evaluations"]
    assert len(scored) == len(before) + 1 == 2
    assert main(["export", "run", "--out", "exported"]) == 0
    card = Path("exported/README.md").read_text()
    assert "Intervals: percentiles of bootstrap draws over patients" in card
    assert logits_of(*load_model("exported"))["logits"] == close(golden("predictions")["full"]["logits"])


def test_an_interrupted_run_resumes_to_the_same_weights(study_place):
    """The interrupted run has the recipe and the seed of the finished run and was stopped after an epoch."""
    recipe = ["train", str(GOLDEN / "run.yaml"), "--head.standardise", "true", "--output_dir"]
    checkpoint = Path("interrupted/checkpoints/train/checkpoint-5")
    assert checkpoint.is_dir() and not Path("interrupted/run.json").exists()
    steps = []
    counted = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    assert main([*recipe, "interrupted"]) == 0
    counted.remove()
    assert len(steps) == 5, "five of ten steps were left"
    wanted, got = (load_file(Path(run) / "model" / "model.safetensors") for run in ("run", "interrupted"))
    assert set(got) == set(wanted)
    for name, weight in wanted.items():
        np.testing.assert_allclose(got[name], weight, rtol=1e-4, atol=1e-5, err_msg=name)
    histories = [json.loads((Path(run) / "run.json").read_text())["history"] for run in ("run", "interrupted")]
    assert histories[1][-1]["loss"] == pytest.approx(histories[0][-1]["loss"], rel=1e-5)
    assert len(histories[0]) == len(histories[1]) == 2


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", TWINS, ids=case_name)
def test_a_twin_has_the_same_fingerprints(case, twins):
    assert_same_prints(case, twins)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", REAL, ids=case_name)
def test_a_real_corpus_has_the_same_fingerprints(case, shared_root):
    assert_same_prints(case, shared_root)


def numbers(values):
    """A result as JSON values, without sentences, with numbers rounded to eight digits."""
    if isinstance(values, dict):
        return {str(key): numbers(value) for key, value in values.items() if key not in WORDS}
    if isinstance(values, list | tuple | np.ndarray):
        return [numbers(value) for value in values]
    if isinstance(values, float | np.floating):
        return float(f"{values:.8g}") if np.isfinite(values) else None
    return int(values) if isinstance(values, np.integer | np.bool_) else values


def scores():
    """All results that the evaluation computes from the stored predictions alone: {name: numbers}."""
    table = pd.read_parquet(GOLDEN / "predictions.parquet")
    train, validation, test = (table[table["split"] == part] for part in ("train", "validation", "test"))
    draw = np.random.RandomState(4)
    found = {}
    tuned = {
        "thresholds": {"crackle": 0.4, "wheeze": -0.2},
        "temperatures": {"crackle": 1.5, "wheeze": 0.6},
        "intercepts": {"crackle": 0.3, "wheeze": -0.1},
    }
    found["two labels"] = evaluate_predictions(test, **TWO, **tuned, train_table=train)
    found["four classes"] = evaluate_predictions(test, **FOUR, seed=3)
    for rule, calibration in (("youden", "temperature"), ("f1", "platt"), ("icbhi", "none"), ("sensitivity", "platt")):
        found[f"fitted {rule}"] = fit_on_validation(
            validation, TWO["label_names"], rule=rule, calibration=calibration, sensitivity=0.8
        )
    found["fitted classes"] = fit_classes_on_validation(validation, FOUR["label_names"])
    found["smoothing chosen"] = choose_smoothing(validation, **TWO)
    found["smoothed"] = compare_smoothing(test, 0.4, **TWO)
    found["distances"] = class_distances(draw.standard_normal((len(test), 6)), list(test["label"]), FOUR["label_names"])
    found["four properties"] = four_properties(found["distances"])
    for task, names in SPRSOUND.items():
        truth, answers = (list(draw.choice(names, 40)) for _ in range(2))
        answers = [t if k % 3 else a for k, (t, a) in enumerate(zip(truth, answers, strict=True))]
        found[f"SPRSound {task}"] = sprsound_task(task, truth, answers)
    total = sprsound_total({task: found[f"SPRSound {task}"]["Score"] for task in SPRSOUND})
    return numbers(found | {"SPRSound total": {"Score": total}})


def of_scores(found):
    """An evaluation without intervals (formerly bootstrap percentiles) and warnings (today there are more)."""
    if isinstance(found, dict):
        others = ("interval", "warn", "bootstrap", "n_draws", "seed")
        return {name: of_scores(value) for name, value in found.items() if not name.startswith(others)}
    return [of_scores(one) for one in found] if isinstance(found, list) else found


def assert_equal_scores(got, wanted, place):
    """Check that `got` contains every name of `wanted` with the same value; it may contain more."""
    if isinstance(wanted, dict):
        assert isinstance(got, dict) and set(wanted) <= set(got), place
        for key, value in wanted.items():
            assert_equal_scores(got[key], value, f"{place}, {key}")
    elif isinstance(wanted, list):
        assert isinstance(got, list) and len(got) == len(wanted), place
        for number, pair in enumerate(zip(got, wanted, strict=True)):
            assert_equal_scores(*pair, f"{place}, {number}")
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-9), place
    else:
        assert got == wanted, place


@pytest.fixture(scope="module")
def scored():
    return scores()


@pytest.mark.parametrize("what", golden("scores") if (GOLDEN / "scores.json").exists() else ())
def test_a_stored_table_has_the_same_scores(what, scored):
    assert_equal_scores(scored[what], of_scores(golden("scores")[what]), what)


def stand_ins(recipe, name, twins, shared):
    """Flags that replace corpora by small copies and downloads by tiny encoders, and train for two steps."""
    flags = {
        "train.max_steps": 2,
        "train.batch_size": min(recipe.train.batch_size, 8),
        "schedule.pretrain_epochs": min(recipe.schedule.pretrain_epochs, 1),
        "sampler.samples": min(recipe.sampler.samples, 2),
        "sampler.negatives": min(recipe.sampler.negatives, 4),
    }
    if recipe.features.duration_s:
        flags["features.duration_s"] = min(recipe.features.duration_s, 1.5)
    folders = {"icbhi2017": "icbhi", "synthetic": "icbhi", "sprsound": "sprsound"}
    folder = folders.get(recipe.corpus.name) or name.split("/")[1].split("_")[0]
    flags["corpus.data_dir"] = str(twins / folder)
    if recipe.corpus.name == "icbhi2017":
        flags["corpus.allow_missing"] = True
    kind = recipe.encoder.type
    if kind == "cnn":
        flags["encoder.config.channels"] = [4, 8]
    elif kind == "beats":
        flags["encoder.weights"] = str(shared / "conformance" / "beats_tiny.pt")
    elif kind == "mobilenet" and not recipe.encoder.weights:
        flags["encoder.config.width_mult"] = 0.05
    elif recipe.encoder.weights:
        flags["encoder.weights"] = str(twins / "base_mobilenet" if kind == "mobilenet" else MODELS / f"base_{kind}")
    return flags


class EnoughError(Exception):
    """Stops a training after the wanted steps, because the rest would take most of the time."""


def terms_of(run, recipe, most):
    """Loss terms of at most the first `most` steps of a training, over all phases: {term: [step 1, step 2]}."""
    steps = []

    def each_step(self, args, state, control, **_):
        control.should_log = True
        return flow(self, args, state, control)

    def collect(self, args, state, control, logs):
        if terms := {key.removeprefix("term_"): value for key, value in logs.items() if key.startswith("term_")}:
            steps.append(terms)
        if len(steps) == most:
            raise EnoughError
        return log(self, args, state, control, logs)

    flow, log = DefaultFlowCallback.on_step_end, CallbackHandler.on_log
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DefaultFlowCallback, "on_step_end", each_step)
        patch.setattr(CallbackHandler, "on_log", collect)
        with contextlib.suppress(EnoughError):
            run(recipe)
    names = sorted({name for step in steps for name in step})
    return {name: [step[name] for step in steps if name in step] for name in names}


def first_steps(name, twins, shared, out, pretraining=False):
    """Loss terms of a recipe's first two steps in each phase of training, or of pre-training."""
    flags = stand_ins(Recipe.from_yaml(RECIPES[name]), name, twins, shared) | {"output_dir": str(out)}
    for pattern, former in FORMER.items():
        flags |= former if fnmatch(name, pattern) else {}
    if "standardise:" not in RECIPES[name].read_text():
        flags["head.standardise"] = True  # the default of the first edition
    if pretraining:
        flags |= {"pretrain.max_steps": 2, "pretrain.batch_size": 2}
        return terms_of(pretrain, Recipe.from_yaml(RECIPES[name], **flags), 2)
    recipe = Recipe.from_yaml(RECIPES[name], **flags)
    return terms_of(train, recipe, 2 if recipe.schedule.name == "joint" else 4)  # others have two phases


@pytest.fixture(scope="module")
def two_step_twins(twins):
    return make_base(twins)


def make_base(twins):
    """The small copies of the corpora, and encoder weights for the mobilenet recipes."""
    load_model(MODELS / "mobilenet")[0].encoder.save_pretrained(twins / "base_mobilenet")
    return twins


def assert_same_steps(key, got):
    """First steps agree to 1e-6, later steps to 1e-5, because processors sum a gradient in different orders."""
    wanted = golden("steps")[key]
    assert set(got) == set(wanted)
    for term, values in wanted.items():
        assert len(got[term]) == len(values), term
        assert got[term][0] == close(values[0], rel=1e-6, abs=1e-6), term
        assert got[term] == close(values, rel=1e-5, abs=1e-6), term


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_the_same_first_steps(name, two_step_twins, tmp_path, request):
    beats = "type: beats" in RECIPES[name].read_text()
    shared = request.getfixturevalue("shared_root") if beats else None
    assert_same_steps(name, first_steps(name, two_step_twins, shared, tmp_path / "run"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PRETRAINED)
def test_a_recipe_pre_trains_with_the_same_first_steps(name, two_step_twins, tmp_path):
    assert_same_steps(f"{name} pretrain", first_steps(name, two_step_twins, None, tmp_path / "run", True))
