"""Hostile models, data and settings that try to run code, to read or write elsewhere, or never to end.

Each case is one attack through the command line. The command refuses it in one line with exit code 2, or does its work
without any effect of the attack. In either case none of its code runs, other files stay unchanged, and the command ends
soon.
"""

import contextlib
import json
import os
import pickle
import shutil
import signal
import stat
import struct
import threading
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from laennec.cli.main import main

LONGEST_S = 30
DEEP = "[" * 200_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CODE = "import pathlib\npathlib.Path({ran!r}).write_text('ran')\nclass Evil:\n    pass\n"


class Runs:
    """A pickle that creates a folder when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return (os.mkdir, (self.place,))


class Stage:
    """Folder of one attack, with private files (`victim`); `ran` exists if code of the attack ran."""

    def __init__(self, place, run, corpus):
        self.place, self.run, self.corpus = place, run, corpus
        self.ran = place / "ran"
        self.victim = place / "victim"
        self.victim.mkdir()
        (self.victim / "secret.txt").write_text("a secret\n")
        self.sound = sorted(corpus.glob("*.wav"))[0]
        shutil.copy(self.sound, self.victim / "private.wav")
        shutil.copy(run / "model" / "model.safetensors", self.victim / "private.safetensors")
        self.before = self.secrets()

    def secrets(self):
        return {
            p.name: (p.read_bytes(), p.stat().st_ino, p.stat().st_mtime_ns)
            for p in sorted(self.victim.rglob("*"))
            if p.is_file()
        }

    def model(self, **config):
        """A copy of the model, with these settings in its config.json."""
        folder = shutil.copytree(self.run / "model", self.place / "model")
        if config:
            values = json.loads((folder / "config.json").read_text()) | config
            (folder / "config.json").write_text(json.dumps(values))
        return folder

    def predict(self, model, *more):
        return ["predict", str(model), str(self.sound), "--out", str(self.place / "out"), *more]

    def recipe(self, text):
        (self.place / "r.yaml").write_text(text)
        return ["train", str(self.place / "r.yaml"), "--output_dir", str(self.place / "out")]

    def prepare(self, name, folder, *options):
        return ["prepare", name, "--data-dir", str(folder), *(x for option in options for x in ("--option", option))]

    def folder(self):
        """A folder corpus: a recording and a table."""
        folder = self.place / "mine"
        folder.mkdir()
        shutil.copy(self.sound, folder / "a.wav")
        (folder / "cycles.csv").write_text("recording,start_s,end_s,label\na,0,1,normal\n")
        return folder

    def table(self, name):
        """Command for a data set of general audio whose table names this recording."""
        folder = self.place / "set"
        (folder / "audio").mkdir(parents=True)
        shutil.copy(self.sound, folder / "audio" / "a.wav")
        rows = [{"file_name": n, "label": label} for n, label in (("a.wav", "x"), (name, "y"))]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return self.prepare("hub", folder)

    def parquet(self, name, **columns):
        folder = self.place / "set"
        folder.mkdir()
        table = pa.table({"audio": [{"bytes": None, "path": name}], "label": ["x"], **columns})
        pq.write_table(table, folder / "train.parquet")
        return self.prepare("hub", folder)


# ---------------------------------------------------------------- models


def pickled_weights(stage):
    model = stage.model()
    torch.save(load_file(model / "model.safetensors") | {"evil": Runs(stage.ran)}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return stage.predict(model)


def pickle_called_safetensors(stage):
    model = stage.model()
    (model / "model.safetensors").write_bytes(pickle.dumps(Runs(stage.ran), protocol=2))
    return stage.predict(model)


def safetensors(header, length=None):
    def make(stage):
        model = stage.model()
        said = header.encode()
        (model / "model.safetensors").write_bytes(struct.pack("<Q", len(said) if length is None else length) + said)
        return stage.predict(model)

    return make


def config(**values):
    return lambda stage: stage.predict(stage.model(**values))


def text_of(name, text):
    def make(stage):
        model = stage.model()
        (model / name).write_text(text)
        return stage.predict(model)

    return make


def in_the_place_of(name, make_file):
    """A model with one file replaced by what `make_file` creates."""

    def make(stage):
        model = stage.model()
        (model / name).unlink()
        make_file(stage, model / name)
        return stage.predict(model)

    return make


def link_to(*target):
    return lambda stage, path: path.symlink_to(Path(*target) if len(target) > 1 else stage.victim / target[0])


def pipe(stage, path):
    os.mkfifo(path)


def other_sizes(name, **values):
    def make(stage):
        model = stage.model()
        path = model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return stage.predict(model)

    return make


def encoder_sizes(**values):
    def make(stage):
        inner = json.loads((stage.run / "model" / "config.json").read_text())["encoder_config"]
        return stage.predict(stage.model(encoder_config=inner | values))

    return make


def index_naming(name):
    def make(stage):
        model = stage.model()
        names = dict.fromkeys(load_file(model / "model.safetensors"), name.format(victim=stage.victim))
        (model / "model.safetensors").unlink()
        (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
        return stage.predict(model)

    return make


def adapters_of_another(stage):
    model = stage.model()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(stage.victim), "target_modules": ["x"], "r": 1}
    (model / "adapter_config.json").write_text(json.dumps(settings))
    torch.save({"evil": Runs(stage.ran)}, model / "adapter_model.bin")
    return stage.predict(model)


def base_elsewhere(name):
    def make(stage):
        (stage.victim / "encoder").mkdir(exist_ok=True)
        said = name.format(victim=stage.victim)
        return stage.predict(stage.model(head_only=True, base_model_name_or_path=said, encoder_digest="0" * 64))

    return make


def encoder(change):
    """Training from the encoder folder of a stranger, with one change."""

    def make(stage):
        from laennec.encoders import load_encoder

        folder = stage.place / "encoder"
        load_encoder(None, type="cnn", channels=[4, 8]).save_pretrained(folder)
        change(stage, folder)
        recipe = {
            "corpus": {"name": "synthetic", "data_dir": str(stage.corpus), "protocol": "patient-60-20-20"},
            "features": {"preset": "song2021"},
            "encoder": {"type": "cnn", "weights": str(folder)},
            "train": {"max_steps": 1},
        }
        return stage.recipe(yaml.safe_dump(recipe))

    return make


def linked_weights(stage, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(stage.victim / "private.safetensors")


def edited_config(**values):
    def change(stage, folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


MODELS = {
    "pickle as pytorch_model.bin": (pickled_weights, "never run"),
    "pickle named model.safetensors": (pickle_called_safetensors, "cannot load a laennec model"),
    "safetensors header of 2^63 bytes": (safetensors("{}", 2**63), "cannot load"),
    "safetensors header longer than the file": (safetensors("{}", 10_000), "cannot load"),
    "safetensors header nested without end": (safetensors('{"a":' * 50_000), "cannot load"),
    "safetensors offsets beyond the file": (
        safetensors('{"head.output.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,99999999999]}}'),
        "cannot load",
    ),
    "safetensors that is empty": (in_the_place_of("model.safetensors", lambda s, p: p.touch()), "cannot load"),
    "config.json nested without end": (text_of("config.json", '{"a":' + DEEP), "cannot load a laennec model"),
    "config.json of a billion labels": (config(num_labels=10**9, id2label=None), "num_labels is 1000000000"),
    "config.json of a huge width": (encoder_sizes(channels=[4, 10**12]), "which no model has"),
    "config.json that names a kernel of the Hub": (
        config(attn_implementation="evil/kernel"),
        "code to be downloaded and run",
    ),
    "config.json that names a kernel for its encoder": (
        encoder_sizes(_attn_implementation="evil/kernel:run"),
        "code to be downloaded and run",
    ),
    "config.json with another package's quantisation": (
        config(quantization_config={"quant_method": "awq"}),
        "quantization_config",
    ),
    "config.json that names another config file": (
        config(configuration_files=["config.0.0.1/../../victim/secret.json"]),
        ";",
    ),
    "config.json whose encoder is another architecture": (
        config(encoder_config={"model_type": "bert", "_name_or_path": "/etc"}),
        "no encoder for a 'bert' configuration",
    ),
    "base at an absolute path": (base_elsewhere("{victim}/private.safetensors"), "a path on its author's machine"),
    "base at a folder": (base_elsewhere("{victim}/encoder"), "a path on its author's machine"),
    "base above": (base_elsewhere("../../victim"), "a path on its author's machine"),
    "base at home": (base_elsewhere("~/encoder.pt"), "a path on its author's machine"),
    "base at a device": (base_elsewhere("/dev/zero"), "a path on its author's machine"),
    "base on a network share": (base_elsewhere("\\\\host\\share\\encoder.pt"), "a path on its author's machine"),
    "base at an address": (base_elsewhere("https://example.org/encoder.pt"), "a path on its author's machine"),
    "adapters that name another base": (adapters_of_another, "adapter_config.json"),
    "weights index that leads above": (index_naming("../victim/private.safetensors"), "no file of weights beside it"),
    "weights index of an absolute path": (index_naming("{victim}/private.safetensors"), "no file of weights beside it"),
    "weights that are a link elsewhere": (in_the_place_of("model.safetensors", link_to("private.safetensors")), "link"),
    "config.json that is a link elsewhere": (in_the_place_of("config.json", link_to("secret.txt")), "link"),
    "front end that is a link to a device": (
        in_the_place_of("preprocessor_config.json", link_to("/dev", "zero")),
        "link",
    ),
    "config.json that is a pipe": (in_the_place_of("config.json", pipe), ";"),
    "front end that is a pipe": (in_the_place_of("preprocessor_config.json", pipe), "not a regular file"),
    "weights that are a pipe": (in_the_place_of("model.safetensors", pipe), "not a regular file"),
    "front end nested without end": (text_of("preprocessor_config.json", '{"a":' + DEEP), "front end"),
    "front end of another class": (other_sizes("preprocessor_config.json", preset="evil"), "front end"),
    "encoder that is a link elsewhere": (encoder(linked_weights), "link"),
    "encoder with a kernel of the Hub": (encoder(edited_config(_attn_implementation="a/b")), "code to be downloaded"),
    "encoder with adapters of another": (
        encoder(lambda stage, folder: (folder / "adapter_config.json").write_text("{}")),
        "adapter_config.json",
    ),
}


# ---------------------------------------------------------------- data


def archive(*members, mode=None):
    def make(stage):
        path = stage.place / "corpus.zip"
        with zipfile.ZipFile(path, "w") as file:
            for name in members:
                info = zipfile.ZipInfo(name)
                if mode is not None:
                    info.external_attr = mode << 16
                file.writestr(info, str(stage.victim / "secret.txt") if mode else stage.sound.read_bytes())
        return stage.prepare("folder", path)

    return make


def declared_size(stage):
    """A zip file that declares more content than fits on any disk."""
    path = stage.place / "corpus.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.wav", bytes(1 << 20))
    content = path.read_bytes()
    size = struct.pack("<L", 1 << 20)
    path.write_bytes(content.replace(size, struct.pack("<L", 0xFFFFFFF0)))
    return stage.prepare("folder", path)


def mine(name, make_file, *more):
    """A folder corpus with one file replaced by what `make_file` creates."""

    def make(stage):
        folder = stage.folder()
        (folder / name).unlink(missing_ok=True)
        make_file(stage, folder / name)
        return [*stage.prepare("folder", folder), *more]

    return make


def csv_naming(name):
    def make(stage):
        folder = stage.folder()
        said = name.format(victim=stage.victim)
        (folder / "cycles.csv").write_text(f"recording,start_s,end_s,label\na,0,1,normal\n{said},0,1,normal\n")
        return stage.prepare("folder", folder)

    return make


def table_naming(name):
    return lambda stage: stage.table(name.format(victim=stage.victim))


def parquet_naming(name):
    return lambda stage: stage.parquet(name.format(victim=stage.victim))


def parquet_with_pickles(stage):
    class Pickled(pa.ExtensionType):
        def __init__(self):
            super().__init__(pa.binary(), "arrow.py_extension_type")

        def __arrow_ext_serialize__(self):
            return pickle.dumps(Runs(stage.ran))

        @classmethod
        def __arrow_ext_deserialize__(cls, storage, serialized):
            return cls()

    storage = pa.array([pickle.dumps(Runs(stage.ran))], pa.binary())
    return stage.parquet("absent.wav", evil=pa.ExtensionArray.from_storage(Pickled(), storage))


def objects_called(name):
    """A numpy object array, which is a pickle, under the name of a recording."""

    def make_file(stage, path):
        with path.open("wb") as file:
            np.save(file, np.array([Runs(stage.ran)], dtype=object), allow_pickle=True)

    return mine(name, make_file)


def saved_elsewhere(stage):
    """A data set as `save_to_disk` writes it, whose state names a file outside its folder."""
    folder = stage.place / "set"
    datasets.Dataset.from_dict({"label": ["x"]}).save_to_disk(folder)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": "../victim/secret.txt"}]
    (folder / "state.json").write_text(json.dumps(state))
    return stage.prepare("hub", folder)


DATA = {
    "zip member above": (archive("../evil.wav"), "would leave the folder"),
    "zip member above, backslashes": (archive("..\\evil.wav"), "would leave the folder"),
    "zip member absolute": (archive("/tmp/evil.wav"), "would leave the folder"),
    "zip member with a drive": (archive("C:/evil.wav"), "would leave the folder"),
    "zip member above, further in": (archive("a/b/../../../evil.wav"), "would leave the folder"),
    "zip member that is a link": (archive("a.wav", mode=stat.S_IFLNK | 0o777), "would leave the folder"),
    "zip with two members of one name": (archive("a.wav", "./a.wav"), ";"),
    "zip that says it is larger than the disk": (declared_size, ";"),
    "pickle named .wav": (mine("a.wav", lambda s, p: p.write_bytes(pickle.dumps(Runs(s.ran)))), "not audio"),
    "object array of numpy named .wav": (objects_called("a.wav"), "not audio"),
    "CSV that names a file above": (csv_naming("../victim/private"), "is not in the folder"),
    "CSV that names an absolute file": (csv_naming("{victim}/private.wav"), "is not in the folder"),
    "CSV that names a drive": (csv_naming("C:\\private.wav"), "is not in the folder"),
    "table that names an absolute file": (table_naming("{victim}/private.wav"), "is not in the folder"),
    "table that names a file above": (table_naming("../../victim/private.wav"), "is not in the folder"),
    "table that names a drive": (table_naming("C:/private.wav"), "is not in the folder"),
    "table that names a device": (table_naming("/dev/zero"), "is not in the folder"),
    "table with a NUL": (table_naming("a\0.wav"), "is not in the folder"),
    "Parquet that names an absolute file": (parquet_naming("{victim}/private.wav"), "none of that name"),
    "Parquet that names a file above": (parquet_naming("../victim/private.wav"), "none of that name"),
    "Parquet that names a device": (parquet_naming("/dev/zero"), "none of that name"),
    "Parquet that names an address": (parquet_naming("http://127.0.0.1:9/a.wav"), "none of that name"),
    "Parquet with a NUL": (parquet_naming("a\0.wav"), "none of that name"),
    "Parquet that names the folder": (parquet_naming("."), "none of that name"),
    "Parquet with pickled objects": (parquet_with_pickles, ";"),
    "data set saved with files of others": (saved_elsewhere, ";"),
}


# ---------------------------------------------------------------- settings


def recipe(text):
    return lambda stage: stage.recipe(text.format(ran=stage.ran) if "{ran}" in text else text)


def parameters(text):
    def make(stage):
        (stage.place / "laennec.parameters.yaml").write_text(text)
        return stage.predict(stage.run, "--parameters", str(stage.place / "laennec.parameters.yaml"))

    return make


def answers(text):
    def make(stage):
        run = shutil.copytree(stage.run, stage.place / "run")
        (stage.place / "answers.yaml").write_text(text)
        return ["card", str(run), "--answers", str(stage.place / "answers.yaml")]

    return make


def record(text):
    def make(stage):
        run = shutil.copytree(stage.run, stage.place / "run")
        (run / "run.json").write_text(text)
        return ["evaluate", str(run)]

    return make


TAG = "!!python/object/apply:os.mkdir ['{ran}']"
SETTINGS = {
    "recipe with a tag that runs code": (recipe(f"name: {TAG}"), "not valid YAML"),
    "recipe with a tag of a module": (recipe("name: !!python/module:antigravity"), "not valid YAML"),
    "recipe whose aliases stand for a billion values": (recipe(BOMB), "aliases counted"),
    "recipe with an alias of itself": (recipe("a: &a [*a]"), "refers to its own parent"),
    "recipe nested without end": (recipe("a: " + DEEP), "nested too deeply"),
    "recipe with a number of 5000 digits": (recipe("seed: " + "1" * 5000), "not valid YAML"),
    "recipe with a day that is none": (recipe("name: 2001-99-99"), "not valid YAML"),
    "recipe that is a device": (lambda stage: ["train", "/dev/zero"], "not a regular file"),
    "recipe that merges without end": (
        recipe("a: &a {x: 1}\n" + "".join(
            f"{n}: &{n} {{<<: [{', '.join(['*' + b] * 10)}]}}\n" for b, n in zip("abcdefgh", "bcdefghi", strict=True)
        )),
        "aliases counted",
    ),
    "parameters with a tag": (parameters("settings: !!python/name:os.system"), "not valid YAML"),
    "parameters whose aliases stand for a billion values": (parameters(BOMB), "not valid YAML"),
    "answers whose aliases stand for a billion values": (answers(BOMB), "not valid YAML"),
    "setting on the command line nested without end": (
        lambda stage: [*stage.recipe("name: x"), "--encoder.config", DEEP],
        "is not a YAML value",
    ),
    "run record nested without end": (record('{"a":' + DEEP), "not valid JSON"),
    "run record that is a list": (record("[]"), "no JSON object"),
    "run record without its settings": (record("{}"), ";"),
    "run record with settings of other types": (record('{"config": 3, "corpus": [], "evaluations": 7}'), ";"),
}  # fmt: skip


class TooLongError(AssertionError):
    """The command did not end in time."""


@contextlib.contextmanager
def ends_soon():
    def end(*_):
        raise TooLongError("did not end")

    handlers = [(number, signal.signal(number, end)) for number in (signal.SIGVTALRM, signal.SIGUSR1)]
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_S)  # CPU time, because machines may be busy
    # a blocked process uses no CPU time
    asleep = threading.Timer(4 * LONGEST_S, os.kill, (os.getpid(), signal.SIGUSR1))
    asleep.start()
    try:
        yield
    finally:
        asleep.cancel()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        for number, handler in handlers:
            signal.signal(number, handler)


@pytest.fixture
def stage(tiny_run, small_corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "cache"))
    return Stage(tmp_path, tiny_run, small_corpus)


ALL = {name: case for table in (MODELS, DATA, SETTINGS) for name, case in table.items()}


@pytest.mark.parametrize("attack", ALL)
def test_an_attack_is_refused_in_one_line(stage, capfd, attack):
    make, said = ALL[attack]
    arguments = make(stage)
    capfd.readouterr()
    with ends_soon():
        assert main(arguments) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "it/s]" not in line and ": note: " not in line]
    assert len(lines) == 1 and lines[0].startswith("laennec: ") and said in lines[0], lines
    assert len(lines[0]) < 1500
    assert not stage.ran.exists() and not (stage.place / "out").exists()
    assert stage.secrets() == stage.before


# ---------------------------------------------------------------- attacks without effect


def code_beside(stage):
    """Python files that both configurations name, as for trust_remote_code."""
    model = stage.model(
        auto_map={"AutoConfig": "evil.Evil", "AutoModelForAudioClassification": "evil.Evil"}, trust_remote_code=True
    )
    path = model / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoFeatureExtractor": "evil.Evil"}}))
    for name in ("evil.py", "__init__.py", "laennec.py", "sitecustomize.py", "torch.py"):
        (model / name).write_text(CODE.format(ran=str(stage.ran)))
    return model


def pickles_beside(stage):
    model = stage.model()
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin", "rng_state.pth", "scaler.pkl"):
        (model / name).write_bytes(pickle.dumps(Runs(stage.ran)))
    return model


@pytest.mark.parametrize("make", [code_beside, pickles_beside])
def test_code_beside_a_model_is_never_run(stage, make, monkeypatch):
    model = make(stage)
    monkeypatch.chdir(model)  # nothing is imported from the working directory either
    assert main(stage.predict(model)) == 0
    for loads in ("AutoModelForAudioClassification", "AutoFeatureExtractor", "AutoConfig"):
        import transformers

        loaded = getattr(transformers, loads).from_pretrained(str(model))
        assert type(loaded).__module__.startswith("laennec."), loaded
    listen = transformers.pipeline("audio-classification", model=str(model))
    assert {answer["label"] for answer in listen(str(stage.sound))} == {"crackle", "wheeze"}
    assert not stage.ran.exists() and stage.secrets() == stage.before


def test_a_custom_pipeline_of_a_model_is_refused(stage):
    pipelines = {"audio-classification": {"impl": "evil.Evil", "pt": ["AutoModelForAudioClassification"]}}
    model = stage.model(custom_pipelines=pipelines)
    (model / "evil.py").write_text(CODE.format(ran=str(stage.ran)))
    from transformers import pipeline

    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline("audio-classification", model=str(model))
    assert main(stage.predict(model)) == 0
    assert not stage.ran.exists()


def test_from_pretrained_of_transformers_refuses_the_same_attacks(stage):
    """`from_pretrained` of the Auto class, which looks for adapters before it calls laennec."""
    from transformers import AutoModelForAudioClassification

    for name in ("base at an absolute path", "adapters that name another base", "weights that are a link elsewhere"):
        make, said = MODELS[name]
        with pytest.raises(ValueError, match=said):
            AutoModelForAudioClassification.from_pretrained(make(stage)[1])
        shutil.rmtree(stage.place / "model")
    assert not stage.ran.exists() and stage.secrets() == stage.before


def test_a_run_follows_its_own_base_and_no_other(stage, monkeypatch, capfd):
    """A head finds its base where it was trained; on another machine only its run does, by the path in its recipe."""
    from laennec.encoders import load_encoder

    weights = stage.place / "weights"
    load_encoder(None, type="cnn", channels=[4, 8]).save_pretrained(weights)
    settings = {
        "corpus": {"name": "synthetic", "data_dir": str(stage.corpus), "protocol": "patient-60-20-20"},
        "features": {"preset": "song2021", "length": "natural"},
        "encoder": {"type": "cnn", "weights": str(weights), "trainable": "frozen"},
        "train": {"max_steps": 1, "batch_size": 8},
    }
    assert main(stage.recipe(yaml.safe_dump(settings))) == 0
    run = (stage.place / "out").rename(stage.place / "mine")
    assert main(["export", str(run), "--format", "head", "--out", str(stage.place / "head")]) == 0
    for model in (run, stage.place / "head"):
        assert main(stage.predict(model)) == 0
        shutil.rmtree(stage.place / "out")
    monkeypatch.setenv("LAENNEC_CACHE", str(stage.place / "another-machine"))
    assert main(stage.predict(run)) == 0  # the run's own recipe names it
    shutil.rmtree(stage.place / "out")
    capfd.readouterr()
    assert main(stage.predict(stage.place / "head")) == 2
    assert "a path on its author's machine" in capfd.readouterr().err
    assert main(stage.predict(stage.place / "head", "--base", str(weights))) == 0


# ---------------------------------------------------------------- traps in output folders


def linked_journal(stage, out):
    (out / "laennec.journal.jsonl").symlink_to(stage.victim / "secret.txt")


def linked_lock(stage, out):
    (out / ".laennec.journal.jsonl.lock").symlink_to(stage.victim / "secret.txt")


def piped_journal(stage, out):
    os.mkfifo(out / "laennec.journal.jsonl")


@pytest.mark.parametrize("trap", [linked_journal, linked_lock, piped_journal])
def test_a_trap_in_an_output_folder_is_refused(stage, trap, capfd):
    (stage.place / "out").mkdir()
    trap(stage, stage.place / "out")
    capfd.readouterr()
    with ends_soon():
        assert main(stage.predict(stage.run)) == 2
    said = capfd.readouterr().err.strip()
    assert said.startswith("laennec: ") and "\n" not in said, said
    assert stage.secrets() == stage.before


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("command", ["export", "evaluate"])
def test_a_link_in_the_place_of_a_results_folder_is_replaced(stage, command):
    run = shutil.copytree(stage.run, stage.place / "run")
    (stage.victim / "folder").mkdir()
    (stage.place / "results").symlink_to(stage.victim / "folder")
    assert main([command, str(run), "--out", str(stage.place / "results")]) == 0
    assert not (stage.place / "results").is_symlink() and any((stage.place / "results").iterdir())
    assert list((stage.victim / "folder").iterdir()) == [] and stage.secrets() == stage.before
    assert not [p for p in stage.place.iterdir() if p.name.startswith(".")]


def test_overwriting_a_run_takes_links_away_and_leaves_what_they_lead_to(stage, tiny_recipe):
    settings = {**tiny_recipe, "train": {**tiny_recipe["train"], "epochs": 1}}
    line = stage.recipe(yaml.safe_dump(settings))
    assert main(line) == 0
    (stage.place / "out" / "kept").symlink_to(stage.victim)
    assert main([*line, "--overwrite"]) == 0
    assert not (stage.place / "out" / "kept").exists() and stage.secrets() == stage.before


def test_nothing_is_written_to_a_path_that_a_record_names(stage, capfd):
    run = shutil.copytree(stage.run, stage.place / "run")
    record = json.loads((run / "run.json").read_text())
    record["config"]["corpus"]["data_dir"] = record["corpus"]["data_dir"] = str(stage.victim / "new")
    (run / "run.json").write_text(json.dumps(record))
    capfd.readouterr()
    assert main(["evaluate", str(run)]) == 2
    assert "is not at this path" in capfd.readouterr().err
    assert not (stage.victim / "new").exists()


# ---------------------------------------------------------------- names that spreadsheets would run


def test_names_of_recordings_are_not_written_as_formulas(stage, monkeypatch):
    monkeypatch.chdir(stage.place)
    for name in ("=cmd|'calc'!A0.wav", "+1.wav", "@SUM(A1).wav"):
        shutil.copy(stage.sound, stage.place / name)
    (stage.place / "-2.wav").write_text("no sound")
    line = ["predict", str(stage.run), "=cmd|'calc'!A0.wav", "+1.wav", "@SUM(A1).wav", "./-2.wav"]
    assert main([*line, "--out", "out"]) == 2
    for table in ("laennec.predictions.csv", "laennec.failed.csv"):
        cells = [cell for row in (stage.place / "out" / table).read_text().splitlines() for cell in row.split(",")]
        assert cells and not [cell for cell in cells if cell.lstrip('"')[:1] in ("=", "+", "@", "\t")], cells
