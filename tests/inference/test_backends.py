"""What runs the network: torch, or an ONNX file without an import of torch; both give the same answers."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pandas as pd
import pytest

from laennec.audio.recording import read_recording
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.evaluate import score
from laennec.inference.backends import fingerprint_of, load_for_prediction
from laennec.inference.onnx_model import FACTS, OnnxModel
from laennec.inference.predictor import Predictor
from laennec.training.embeddings import EmbeddingCache
from laennec.training.recipe import Recipe
from laennec.training.run import train


@pytest.fixture(scope="module")
def both(tiny_run, tmp_path_factory):
    """A model with its ONNX file beside the weights."""
    out = tmp_path_factory.mktemp("both") / "model"
    assert main(["export", str(tiny_run), "--format", "full-onnx", "--out", str(out)]) == 0
    return out


@pytest.fixture
def copied(both, tmp_path):
    return shutil.copytree(both, tmp_path / "copied")


def test_the_model_in_the_package_starts_without_torch(some_recordings, tmp_path):
    script = (
        "import sys; from laennec.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'transformers', 'datasets', 'sklearn'} & set(sys.modules)))"
    )
    words = ["predict", str(some_recordings[0]), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []" and "backend: onnx" in done.stdout
    assert main([*words[:2], "--backend", "torch", "--out", str(tmp_path / "torch")]) == 0
    answers = [
        json.loads((tmp_path / name / f"{some_recordings[0].stem}.laennec.json").read_text())
        for name in ("out", "torch")
    ]
    assert answers[0]["timeline"] and answers[0]["decision"] == answers[1]["decision"]
    for row, other in zip(*(answer["timeline"] for answer in answers), strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def test_backends_agree_on_windows_annotations_and_embeddings(both, some_recordings, tmp_path):
    (tmp_path / "spans.labels.txt").write_text("0.1\t1.0\tcrackle\n1.0\t2.7\tnormal\n")
    predictors = {name: Predictor.from_pretrained(both, backend=name) for name in ("onnx", "torch")}
    assert [p.backend.name for p in predictors.values()] == ["onnx", "torch"]
    assert len({p.fingerprint() for p in predictors.values()}) == 1
    for annotation in (None, tmp_path / "spans.labels.txt"):
        found = [p(some_recordings[0], annotation) for p in predictors.values()]
        assert found[0].spans == found[1].spans and found[0].decision == found[1].decision
        np.testing.assert_allclose(found[0].probabilities, found[1].probabilities, atol=1e-4)
    sounds = [read_recording(path, predictors["torch"].extractor.sampling_rate).waveform for path in some_recordings]
    embeddings = [p.backend.embed(sounds) for p in predictors.values()]
    np.testing.assert_allclose(*embeddings, atol=1e-3)
    # alone or beside others, in any order: the same bits
    assert np.array_equal(embeddings[0][::-1], predictors["onnx"].backend.embed(sounds[::-1]))
    assert np.array_equal(embeddings[0][:1], predictors["onnx"].backend.embed(sounds[:1]))


def test_auto_takes_the_file_only_where_it_belongs_to_the_weights(both, copied, tiny_run, monkeypatch):
    assert isinstance(load_for_prediction(both)[0], OnnxModel)
    assert not isinstance(load_for_prediction(both, backend="torch")[0], OnnxModel)
    assert not isinstance(load_for_prediction(tiny_run)[0], OnnxModel)
    monkeypatch.setattr("laennec.inference.backends._has_gpu", lambda: True)
    assert not isinstance(load_for_prediction(both)[0], OnnxModel)
    monkeypatch.undo()
    settings = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(settings | {"summary": "thresholds of another fit"}))
    assert load_for_prediction(copied)[0].config.summary == "thresholds of another fit"


def test_a_model_without_a_file_is_exported_once(tiny_run, some_recordings, monkeypatch):
    first = Predictor.from_pretrained(tiny_run, backend="onnx")
    assert first.backend.name == "onnx" and not isinstance(first.model, OnnxModel)
    monkeypatch.setattr("laennec.hub.onnx.write_onnx", lambda *_, **__: pytest.fail("exported again"))
    again, torch = (Predictor.from_pretrained(tiny_run, backend=name) for name in ("onnx", "torch"))
    assert np.array_equal(again(some_recordings[0]).probabilities, first(some_recordings[0]).probabilities)
    np.testing.assert_allclose(
        again(some_recordings[0]).probabilities, torch(some_recordings[0]).probabilities, atol=1e-4
    )
    assert again.identity(False) != torch.identity(False)


def test_a_file_alone_is_a_model(copied, some_recordings, monkeypatch, capsys):
    for name in ("config.json", "model.safetensors"):
        (copied / name).unlink()
    monkeypatch.setenv("OMP_NUM_THREADS", "1,1")  # one number for each level of nesting
    assert main(["predict", str(copied), str(some_recordings[0])]) == 0
    assert "backend: onnx" in capsys.readouterr().out
    assert main(["predict", str(copied), str(some_recordings[0]), "--backend", "torch"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["predict", str(copied), str(some_recordings[0]), "--backend", "jax"]) == 2
    assert "auto, torch, onnx" in capsys.readouterr().err
    (copied / "model.onnx").unlink()
    for backend in ("onnx", "auto"):
        assert main(["predict", str(copied), str(some_recordings[0]), "--backend", backend]) == 2
        assert "model.onnx: is missing; get the model again" in capsys.readouterr().err


def test_a_frozen_encoder_is_run_by_onnxruntime_where_the_recipe_says_so(tiny_recipe, tmp_path, monkeypatch):
    def trained(**encoder):
        settings = {"encoder": tiny_recipe["encoder"] | {"trainable": "frozen"} | encoder}
        return train(Recipe(**tiny_recipe | settings | {"output_dir": str(tmp_path / encoder.get("backend", "torch"))}))

    torch, run = trained(), trained(backend="onnx")
    tables = [pd.read_parquet(folder / "predictions-validation.parquet") for folder in (run, torch)]
    logits = [table.filter(like="logit_").to_numpy() for table in tables]
    assert not np.array_equal(*logits)  # it was another backend
    np.testing.assert_allclose(*logits, atol=1e-2)  # after an epoch on embeddings that differ by 1e-4
    monkeypatch.setattr("laennec.hub.onnx.write_onnx", lambda *_, **__: pytest.fail("exported again"))
    assert score(run, out=tmp_path / "scored").folder == tmp_path / "scored"
    with pytest.raises(InputError, match="onnx runs a frozen encoder"):
        trained(backend="onnx", trainable="full")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperatures", {"crackle": 0}),
        ("thresholds", {"crackle": 7}),
        ("operating_points", {"windows": {"temperatures": {"crackle": -1}}}),
        ("labels", ["crackle", "crackle"]),
        ("min_samples", 0),
        ("file", "../model.onnx"),
        ("span", -3),
    ],
)
def test_settings_that_cannot_be_are_one_line(copied, key, value, some_recordings, capsys):
    facts = json.loads((copied / "onnx.json").read_text())
    (copied / "onnx.json").write_text(json.dumps(facts | {key: value}))
    assert main(["predict", str(copied), str(some_recordings[0]), "--backend", "onnx"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"onnx.json: {key}" in said


def test_a_damaged_file_is_one_line(copied, some_recordings, capsys):
    path = copied / "model.onnx"
    path.write_bytes(path.read_bytes()[:-500])
    assert main(["predict", str(copied), str(some_recordings[0]), "--backend", "onnx"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{path}: damaged" in said


def test_a_waveform_is_predicted_as_its_file_is(both, some_recordings):
    predictor = Predictor.from_pretrained(both)
    recording = read_recording(some_recordings[0])
    from_file = predictor(some_recordings[0])
    from_array = predictor(recording.waveform, sampling_rate=recording.sampling_rate)
    assert np.array_equal(from_array.probabilities, from_file.probabilities) and from_array.spans == from_file.spans
    assert from_array.recording == "waveform" and "<audio" in from_array._repr_html_()
    for wrong in ({}, {"sampling_rate": 0}):
        with pytest.raises(InputError, match="sampling"):
            predictor(recording.waveform, **wrong)
    integers = (recording.waveform / np.abs(recording.waveform).max() * 32767).astype(np.int16)
    for waveform in (recording.waveform[None], integers, integers.astype(np.float32), integers.astype(float)):
        with pytest.raises(InputError, match=r"floats in \[-1, 1\]"):
            predictor(waveform, sampling_rate=recording.sampling_rate)


def test_a_model_of_the_hub_is_downloaded_without_its_weights(both, hub, user, some_recordings):
    hub.add("tester/quick", both)
    said = user.types("predict", "tester/quick", some_recordings[0])
    assert said.code == 0 and "backend: onnx" in said.out, said
    assert not [asked for asked in hub.asked("GET") if "model.safetensors" in asked.line]


def test_a_fingerprint_covers_settings_that_no_weight_shows(both):
    known = load_for_prediction(both, backend="onnx")[0].fingerprint()
    model, extractor = load_for_prediction(both, backend="torch")
    assert fingerprint_of(model, extractor) == known
    model.config.head_relu = not model.config.head_relu
    relu = fingerprint_of(model, extractor)

    model.encoder.config.num_mel_bins += 1
    assert len({known, relu, fingerprint_of(model, extractor)}) == 3


def test_a_replaced_onnx_file_is_refused_or_is_another_model(copied):
    known = load_for_prediction(copied, backend="onnx")[0].fingerprint()
    file, facts = copied / "model.onnx", copied / FACTS
    proto = onnx.load(file)
    proto.producer_name = "somebody"
    onnx.save(proto, file)
    with pytest.raises(InputError, match=r"damaged, or not the file that onnx\.json was written with"):
        load_for_prediction(copied, backend="onnx")
    said = json.loads(facts.read_text())
    del said["sources"]["model.onnx"]
    facts.write_text(json.dumps(said))
    assert load_for_prediction(copied, backend="onnx")[0].fingerprint() != known


def test_an_onnx_file_that_fails_at_run_time_is_named(copied):
    proto = onnx.load(copied / "model.onnx")
    (last,) = [node for node in proto.graph.node if "logits" in node.output]
    last.output[list(last.output).index("logits")] = "of_any_shape"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7, 5, 2]), "wrong"))
    wrong = onnx.helper.make_node("Reshape", ["of_any_shape", "wrong"], ["logits"])
    proto.graph.node.insert(list(proto.graph.node).index(last) + 1, wrong)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, copied / "model.onnx")
    said = json.loads((copied / FACTS).read_text())
    del said["sources"]["model.onnx"]
    (copied / FACTS).write_text(json.dumps(said))
    model, _ = load_for_prediction(copied, backend="onnx")
    with pytest.raises(InputError, match=r"model.onnx: onnxruntime cannot run this file"):
        model.logits([np.zeros(4000, np.float32)])


def test_cached_embeddings_belong_to_the_settings_of_their_encoder(both, tmp_path):
    model, extractor = load_for_prediction(both, backend="torch")
    before = EmbeddingCache(tmp_path, model, extractor).folder
    assert EmbeddingCache(tmp_path, *load_for_prediction(both, backend="torch")).folder == before
    model.encoder.config.num_mel_bins += 1
    assert EmbeddingCache(tmp_path, model, extractor).folder != before
