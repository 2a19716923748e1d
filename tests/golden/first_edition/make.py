"""Record the golden files with the first edition: python tests/golden/first_edition/make.py WHAT...

WHAT is models, run, fingerprints, scores, steps or demo. Files that are there already are replaced.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from transformers import ASTConfig  # noqa: E402

import numpy_twins  # noqa: E402
import test_first_edition as golden  # noqa: E402
from laennec import LaennecFeatureExtractor  # noqa: E402
from laennec.cli import main  # noqa: E402
from laennec.encoders import AstEncoder, load_encoder  # noqa: E402
from laennec.training.trainer import LaennecTrainer  # noqa: E402

ICBHI = {"name": "icbhi2017", "data_dir": "icbhi", "protocol": "patient-60-20-20", "allow_missing": True}
PLAIN = {
    "corpus": ICBHI,
    "features": {"preset": "song2021", "length": "natural"},
    "encoder": {"type": "cnn", "config": {"channels": [4, 8]}},
    "train": {"epochs": 3, "batch_size": 16, "learning_rate": 3e-2, "selection_metric": "loss"},
}
WEIGHTIER = 15  # a random transformer of this size hears hardly anything otherwise
AST = {"type": "ast", "weights": "base_ast"}
FOUR = {"target": {"problem_type": "single_label", "column": "label"}, "loss": {"task": "ce"}}
TASKS = {
    "event": {"labels": list(dict.fromkeys(numpy_twins.EVENTS)), "smooth": True},
    "record": {
        "level": "record",
        "labels": ["Normal", "CAS", "DAS", "CAS & DAS", "Poor Quality"],
        "batch_size": 2,
        "windows": 2,
    },
}
# name -> the export's format and what takes the place of PLAIN's settings
KINDS = {
    "head": (
        "head",
        {
            "features": {"preset": "ast"},
            "encoder": {**AST, "frozen": True},
            "head": {"hidden_dim": 4, "calibration": "platt", "threshold_rule": "f1"},
        },
    ),
    "lora": (
        "lora",
        {**FOUR, "features": {"preset": "ast"}, "encoder": {**AST, "trainable": "lora", "lora": {"rank": 2}}},
    ),
    "stock": (
        "stock",
        {
            "features": {"preset": "ast", "length": "zero_frames", "duration_s": 2.0},
            "encoder": AST,
            "head": {"layer_norm": True, "threshold_rule": "icbhi"},
        },
    ),
    "onnx": (
        "onnx",
        {
            "features": {"preset": "whisper", "length": "natural"},
            "encoder": {"type": "cnn", "config": {"channels": [4, 8], "num_mel_bins": 80}},
        },
    ),
    "mobilenet": (
        "full",
        {
            "features": {"preset": "efficientat"},
            "encoder": {"type": "mobilenet", "weights": "base_mobilenet"},
            "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "selection_metric": "loss"},
        },
    ),
    "tasks": (
        "full",
        {
            "corpus": {"name": "sprsound", "data_dir": "sprsound", "validation_fraction": 0.4},
            "features": {"preset": "song2021", "length": "repeat", "duration_s": 1.0},
            "tasks": TASKS,
        },
    ),
    "context": (
        "full",
        {"features": {"preset": "song2021", "length": "natural", "context_cycles": 1}, "head": {"pooling": "mean"}},
    ),
}


def store(name, values):
    """Write JSON, an entry a line."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def shared_root():
    return Path(os.environ.get("LAENNEC_SHARED_DATA", HERE.parents[3] / "shared" / "data")).parent


def run(*arguments):
    assert main([str(a) for a in arguments]) == 0, arguments


def train(name, recipe, *flags):
    Path(f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **recipe}))
    run("train", f"{name}.yaml", "--output_dir", name, *flags)


def put(folder, place):
    """Copy a folder without what only people read."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("README.md", "*.html", "pictures", ".eval_results"))


def bare(path):
    """Take the exporter's notes (source lines of this machine) out of an ONNX file."""
    model = onnx.load(path)
    graphs = [model.graph, *model.functions]
    for thing in (model, *graphs, *(node for graph in graphs for node in graph.node), *model.graph.value_info):
        del thing.metadata_props[:]
        thing.ClearField("doc_string")
    onnx.save(model, path)


def make_bases():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ast = AstEncoder._from_config(ASTConfig(**sizes, max_length=256, layer_norm_eps=1e-6))
    sizes = {"d_model": 4, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 4}
    whisper = load_encoder(None, type="whisper", **sizes)
    for name, encoder in (("base_ast", ast), ("base_whisper", whisper)):
        with torch.no_grad():
            for part, weight in encoder.named_parameters():
                weight.mul_(1 if weight.ndim == 1 or "position" in part or "token" in part else WEIGHTIER)
        encoder.save_pretrained(name)
    # batch statistics of the sound keep the random network from answering the same to every sound
    mobilenet = load_encoder(None, type="mobilenet", width_mult=0.05).train()
    for part in mobilenet.modules():
        if hasattr(part, "running_var"):
            part.momentum = 1.0
    with torch.no_grad():
        pieces = np.split(numpy_twins.waveform(rate_hz=32000).astype(np.float32), 12)
        mobilenet(**LaennecFeatureExtractor("efficientat", length="natural")(pieces, sampling_rate=32000))
    mobilenet.save_pretrained("base_mobilenet")
    for base in ("base_ast", "base_whisper"):
        put(base, golden.MODELS / base)


def make_run():
    """The finished run, and the same run as it lay when it was interrupted in its second epoch."""
    shutil.copy(HERE / "run.yaml", ".")
    run("train", "run.yaml", "--output_dir", "run")
    run("evaluate", "run", "--draws", 50)
    put("run", HERE / "run")
    plain, steps = LaennecTrainer.training_step, []

    def breaks(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 7:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    LaennecTrainer.training_step = breaks
    assert main(["train", "run.yaml", "--output_dir", "interrupted"]) == 130
    LaennecTrainer.training_step = plain
    put("interrupted", HERE / "interrupted")


def make_models():
    make_bases()
    run("train", HERE / "run.yaml", "--output_dir", "full")
    run("export", "full", "--out", "exported/full")
    for name, (kind, changed) in KINDS.items():
        train(name, PLAIN | changed)
        run("export", name, "--format", kind, "--out", f"exported/{name}")
    for seed in (0, 1):
        train(f"member{seed}", PLAIN | {"name": "member"}, "--seed", seed)
    run("ensemble", "member0", "member1", "--out", "ensemble")
    run("export", "ensemble", "--out", "exported/ensemble")
    for folder in Path("exported").iterdir():
        put(folder, golden.MODELS / folder.name)
    bare(golden.MODELS / "onnx" / "model.onnx")
    answers = {name: golden.answers_of(name, Path()) for name in golden.LOADED}
    store("predictions", answers | {"stock": golden.stock_answers(), "onnx": golden.onnx_answers()})
    run("predict", golden.MODELS / "full", golden.sound_file(Path()), "--out", "timeline")
    store("timeline", json.loads(Path("timeline/sound.json").read_text()))


def make_fingerprints():
    """Columns of each table once, for all protocols split the same rows."""
    found, known = {}, set()
    shared = shared_root()
    for case, root in [*((c, Path("twins")) for c in golden.TWINS), *((c, shared) for c in golden.REAL)]:
        prints = golden.prints_of(case, root)
        if (table := (*case[:2], case[2].get("level"))) in known:
            del prints["columns"]
        known.add(table)
        found[golden.case_name(case)] = prints
    assert len(found) == len(golden.TWINS) + len(golden.REAL)
    store("fingerprints", found)


def predictions(patients=8, cycles=8):
    """A predictions table of each part, with what the subgroups and the shortcuts look at."""
    draw, parts = np.random.RandomState(3), []
    for part in ("train", "validation", "test"):
        n = patients * cycles
        patient = np.repeat(np.arange(patients), cycles)
        crackle, wheeze = (draw.rand(n) < 0.4).astype(int), (draw.rand(n) < 0.35).astype(int)
        start = np.tile(np.arange(cycles) * 2.0, patients)
        noise = np.where(patient % 3 == 0, 2.0, 1.0)[:, None] * draw.standard_normal((n, 2))
        logits = (2.0 * np.stack([crackle, wheeze], 1) - 1.0 + noise).round(3).astype(np.float32)
        table = pd.DataFrame(
            {
                "cycle_id": [f"{part}{p}#{k % cycles:02d}" for k, p in enumerate(patient)],
                "recording_id": [f"{part}{p}_{k % 2}" for k, p in enumerate(patient)],
                "patient_id": [f"{part}{p}" for p in patient],
                "device": np.where(patient % 3 == 0, "Meditron", "Litt3200"),
                "chest_location": draw.choice(["Al", "Ar", "Tc"], n),
                "sex": np.where(patient == 1, None, np.where(patient % 2, "F", "M")),
                "age_years": np.where(patient == 1, np.nan, 2.0 + 9 * patient),
                "start_s": start,
                "end_s": (start + 1 + draw.rand(n) * 0.8 + 0.3 * crackle).round(3),
                "crackle": crackle,
                "wheeze": wheeze,
                "label": np.array(["normal", "crackle", "wheeze", "both"])[crackle + 2 * wheeze],
                "split": part,
                "logit_normal": np.float32(0.0),
                "logit_crackle": logits[:, 0],
                "logit_wheeze": logits[:, 1],
                "logit_both": logits.sum(1),
                "level_db": (draw.rand(n) * -20 - 5 * wheeze).round(2),
                "bandwidth_hz": (1000 + 800 * draw.rand(n)).round(1),
            }
        )
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def make_scores():
    predictions().to_parquet(HERE / "predictions.parquet")
    store("scores", golden.scores())


def make_steps():
    twins, found = golden.make_base(Path("twins")), {}
    for names, pretraining in ((golden.RECIPES, False), (golden.PRETRAINED, True)):
        for name in names:
            key = f"{name} pretrain" if pretraining else name
            found[key] = golden.first_steps(name, twins, shared_root(), Path("runs") / key, pretraining)
    store("steps", found)


def make_demo():
    """The commands of `make demo`, and the numbers that they write."""
    recipe = golden.RECIPES["demo/add_cnn"]
    run("train", recipe)
    run("evaluate", "runs/demo")
    run("export", "runs/demo", "--format", "full")
    run("predict", "runs/demo/export-full", "runs/demo-corpus", "--out", "runs/demo/predictions")
    record = json.loads(Path("runs/demo/run.json").read_text())
    metrics = json.loads(Path("runs/demo/evaluation-test/metrics.json").read_text())
    rows = pd.read_csv("runs/demo/predictions/predictions.csv")
    found = {
        "note": "of the first edition's synthetic sound; may move where that is rewritten: record the new numbers then",
        "training": {key: record[key] for key in ("cycles", "patients", "best_epoch", "best_metric")},
        "last epoch": record["history"][-1],
        "operating points": record["operating_points"],
        "test": {key: metrics[key] for key in ("counts", "values", "intervals")},
        "floors": {row["name"]: row["values"].get("icbhi.Score") for row in metrics["floors"]},
        "timelines": {"rows": len(rows), **rows.drop(columns="recording").mean().round(6).to_dict()},
    }
    store("demo", found | {"fingerprints": {k: v for k, v in record["corpus"].items() if k == "fingerprint"}})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for what in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            os.environ["LAENNEC_CACHE"] = str(Path(place) / "cache")
            golden.make_twins(Path("twins"))
            for name in ("icbhi", "sprsound"):
                Path(name).symlink_to(f"twins/{name}")
            globals()[f"make_{what}"]()
