"""Checkpoints that do not match their encoder: commands print one line with the keys, exit with 2 and run no code."""

import json
import os
import pickle
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_encoders import AST, BEATS

from laennec.cli.main import main
from laennec.encoders import load_encoder
from laennec.errors import InputError
from runs import one_line

SPEECH = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": [4] * 7,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
WHISPER = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
# type -> front end, settings, and changes of config.json to more layers, fewer layers and a larger width
ENCODERS = {
    "mobilenet": ("efficientat", {"width_mult": 0.1}, None, None, {"width_mult": 0.4}),
    "cnn": ("song2021", {"channels": [4, 8]}, {"channels": [4, 8, 8]}, {"channels": [4]}, {"channels": [4, 16]}),
    "ast": ("ast", AST, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"hidden_size": 32}),
    "beats": ("beats", BEATS, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"hidden_size": 48}),
    "whisper": ("whisper", WHISPER, {"encoder_layers": 3}, {"encoder_layers": 1}, {"d_model": 32}),
    "hubert": ("waveform", SPEECH, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"hidden_size": 32}),
}


class Opens:
    """A pickle that creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An encoder of each type with random weights, saved in the folder layout of a download."""
    root = tmp_path_factory.mktemp("encoders")
    for kind, (_, settings, *_) in ENCODERS.items():
        load_encoder(None, type=kind, **settings).save_pretrained(root / kind)
    return root


@pytest.fixture
def assert_refused(tiny_recipe, tmp_path, capfd):
    """Check that training with these weights prints one line, exits with 2 and keeps the earlier run."""

    def check(kind, weights, *said, features=None):
        recipe = tiny_recipe | {
            "encoder": {"type": kind, "weights": str(weights)},
            "features": {"preset": features or ENCODERS[kind][0]},
        }
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
        out = tmp_path / "run"
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in ("run.json", "recipe.json"):
            (out / name).write_text('{"name": "earlier"}')
        capfd.readouterr()
        assert main(["train", str(tmp_path / "r.yaml"), "--output_dir", str(out), "--overwrite"]) == 2
        err = "\n".join(line for line in capfd.readouterr().err.splitlines() if "it/s]" not in line)
        assert err.startswith("laennec: ") and "\n" not in err and ";" in err and len(err) < 700, err
        for part in (str(weights), *said):
            assert part in err, (part, err)
        assert (out / "run.json").read_text() == '{"name": "earlier"}'

    return check


def edited(folder, tmp_path, tensors=None, config=None):
    """A copy of an encoder's folder with other tensors or another configuration."""
    copy = shutil.copytree(folder, tmp_path / "edited", dirs_exist_ok=True)
    if tensors is not None:
        state = load_file(copy / "model.safetensors")
        tensors(state)
        save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        values = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(values | config))
    return copy


def drop_seven(state):
    for name in sorted(state)[:7]:
        del state[name]


def add_six(state):
    state.update({f"other.{number}": torch.zeros(1) for number in range(6)})


@pytest.mark.parametrize("kind", ENCODERS)
def test_missing_and_extra_keys_are_listed_shortened_and_refused(kind, folders, assert_refused, tmp_path):
    names = sorted(load_file(folders / kind / "model.safetensors"))
    bare = names[0].removeprefix("model.")
    assert_refused(
        kind, edited(folders / kind, tmp_path, drop_seven), bare.rsplit(".", 1)[-1], "missing", "and 3 more)"
    )
    extra = edited(folders / kind, tmp_path, add_six)
    assert_refused(kind, extra, "other.0 is left over (and other.1, other.2, other.3 and 2 more)")


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("how", ["deeper", "shallower", "wider"])
def test_another_depth_or_width_than_config_json_says(kind, how, folders, assert_refused, tmp_path):
    change = dict(zip(("deeper", "shallower", "wider"), ENCODERS[kind][2:], strict=True))[how]
    if change is None:
        pytest.skip("has no such setting")
    said = {"deeper": "missing", "shallower": "left over", "wider": "of another shape"}[how]
    assert_refused(kind, edited(folders / kind, tmp_path, config=change), said, " more)", "its depth or width differs")


@pytest.mark.parametrize("kind", ["mobilenet", "cnn", "ast", "whisper"])
def test_weights_with_nan_are_refused(kind, folders, tmp_path):
    def spoil(state):
        name = next(name for name in sorted(state) if name.endswith("weight"))
        state[name] = torch.full_like(state[name], float("nan"))

    with pytest.raises(InputError, match=r"edited.*weight holds values that are not finite; get the checkpoint again"):
        load_encoder(edited(folders / kind, tmp_path, spoil), type=kind)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("mobilenet", {"width_mult": "x"}),
        ("mobilenet", {"width_mult": 0}),
        ("whisper", {"encoder_layers": -1}),
        ("ast", {"num_hidden_layers": 10**9}),
    ],
)
def test_settings_that_no_encoder_can_have_are_one_line(kind, values, folders, tmp_path):
    (name,) = values
    said = "num_hidden_layers" if kind == "whisper" else name
    with pytest.raises(InputError, match=f"{kind}.*{said}"):
        load_encoder(None, type=kind, **values)
    # for a config.json, the message begins with the folder
    with pytest.raises(InputError) as refused:
        load_encoder(edited(folders / kind, tmp_path, config=values), type=kind)
    assert str(refused.value).startswith(f"{tmp_path / 'edited'}: ")


@pytest.mark.parametrize("kind", ["mobilenet", "hubert"])
def test_a_pickle_with_code_in_a_folder_is_never_run(kind, folders, assert_refused, tmp_path):
    folder = edited(folders / kind, tmp_path)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state | {"evil": Opens(tmp_path / "ran")}, folder / "pytorch_model.bin")
    assert_refused(kind, folder, "holds code", "mkdir", "never run")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Opens(tmp_path / "ran"), protocol=2))
    assert_refused(kind, folder, "never run")
    assert not (tmp_path / "ran").exists()
    torch.save(state, folder / "pytorch_model.bin")  # the same file without code is accepted
    assert load_encoder(folder, type=kind)


@pytest.mark.parametrize(("kind", "suffix"), [("mobilenet", ".pt"), ("beats", ".safetensors")])
def test_a_pickle_with_code_as_a_released_file_is_never_run(kind, suffix, assert_refused, shared_root, tmp_path):
    released = {"mobilenet": "weights/mn04_as_mAP_432.pt", "beats": "conformance/beats_tiny.pt"}[kind]
    content = torch.load(shared_root / released, weights_only=True)
    path = tmp_path / f"released{suffix}"
    torch.save(content | {"evil": Opens(tmp_path / "ran")}, path)
    assert_refused(kind, path, "cannot be read as a file of tensors")
    path.write_bytes(pickle.dumps(Opens(tmp_path / "ran")))
    assert_refused(kind, path, "cannot be read as a file of tensors")
    assert not (tmp_path / "ran").exists()
    # control: the code runs if the file is unpickled
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()


def predict(model, sound, out):
    return main(["predict", str(model), str(sound), "--out", str(out)])


# ---------------------------------------------------------------- sampling rates and front ends


def test_a_preprocessor_config_of_another_rate_or_size_is_refused(tiny_run, small_corpus, tmp_path, capfd):
    for change, said in (
        ({"sampling_rate": 22050}, ("says 22050 Hz, but the model was trained on 16000 Hz",)),
        ({"hop_samples": 200}, ("other settings than in training",)),
        ({"sampling_rate": "fast"}, ("no usable front end",)),
    ):
        model = edited(tiny_run / "model", tmp_path)
        path = model / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        assert predict(model, small_corpus, tmp_path / "out") == 2
        one_line(capfd, ";", model, *said)
        assert not (tmp_path / "out").exists()
    path.unlink()
    assert predict(model, small_corpus, tmp_path / "out") == 2
    one_line(capfd, ";", model, "no preprocessor_config.json")


def test_trained_weights_want_the_front_end_they_were_trained_with(folders, assert_refused, shared_root, tmp_path):
    released = shared_root / "weights" / "mn04_as_mAP_432.pt"
    assert_refused("mobilenet", released, "'efficientat' (32000 Hz)", "is 'ast' (16000 Hz)", "set", features="ast")
    assert_refused("ast", folders / "ast", "'ast' (16000 Hz)", "is 'efficientat' (32000 Hz)", features="efficientat")
    assert_refused("beats", folders / "beats", "set features.preset: beats", features="ast")
    own = edited(folders / "cnn", tmp_path)  # as pre-training saves it: with the front end beside the weights
    (own / "preprocessor_config.json").write_text(json.dumps({"preset": "song2021", "sampling_rate": 16000}))
    assert_refused("cnn", own, "set features.preset: song2021", features="ast")
    other = edited(folders / "hubert", tmp_path)
    (other / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 8000}))
    assert_refused("hubert", other, "made for 8000 Hz", "gives 16000 Hz")


def test_a_rate_or_mel_bins_that_a_recipe_cannot_have(tiny_recipe, tmp_path, capfd):
    for change, said in (
        ({"features": {"preset": "ast", "sampling_rate": 8000}}, "unknown key 'features.sampling_rate'"),
        ({"encoder": {"type": "ast", "config": AST}}, "gives 64 mel bins, but this ast encoder takes 128"),
        ({"encoder": {"type": "mobilenet"}}, "encoder.config.num_mel_bins: 64"),
        ({"encoder": {"type": "ast", "config": AST | {"time_positions": "up"}}, "features": {"preset": "ast"}}, "'up'"),
        ({"encoder": {"type": "hubert", "config": SPEECH | {"num_attention_heads": 3}}}, "correct encoder.config"),
    ):
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny_recipe | change))
        assert main(["train", str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
        one_line(capfd, ";", said)
        assert not (tmp_path / "run").exists()


def test_a_hub_id_that_is_not_cached_is_one_line_offline(assert_refused):
    assert_refused("ast", "nobody/nothing", "the Hub cannot be reached or does not have it", "give a local folder")
