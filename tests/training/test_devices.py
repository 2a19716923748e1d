"""bf16, gradient checkpointing and compiled layers do not change what is learned."""

import json
import logging

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from laennec.audio.features import LaennecFeatureExtractor
from laennec.cli.main import main
from laennec.encoders import load_encoder, wrapped
from laennec.modeling import LaennecConfig, LaennecForAudioClassification
from laennec.training.devices import (
    compile_layers,
    configure_process,
    device_settings,
    has_gpu,
    training_device,
    uncompiled,
)

AST = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16, "max_length": 128,
    "layer_norm_eps": 1e-6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
BEATS = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32, "patch_dim": 12,
    "position_kernel": 9, "position_groups": 2, "num_buckets": 16, "max_distance": 20,
    "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
WHISPER = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "dropout": 0.0}
SPEECH = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": [4] * 7,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "feat_proj_dropout": 0.0,
}  # fmt: skip
CASES = {
    "ast": ("ast", AST, 0), "beats": ("beats", BEATS, 0), "whisper": ("whisper", WHISPER, 0),
    "hubert": ("waveform", SPEECH, 0), "ast in groups": ("ast", AST, 20),
}  # fmt: skip


def make(kind):
    preset, settings, group = CASES[kind]
    torch.manual_seed(0)
    encoder = wrapped(load_encoder(None, type=kind.split()[0], **settings), group, 15)
    model = LaennecForAudioClassification(LaennecConfig(encoder_config=encoder.config, num_labels=2), encoder)
    return model.train(), LaennecFeatureExtractor(preset)


def batches(extractor):
    """Batches of different lengths: padded cycles, cycles of equal length, a single cycle."""
    draw = np.random.default_rng(0)
    for seconds in ((1.0, 0.6, 0.3), (0.7, 0.9, 0.5), (0.4, 0.4, 0.4), (0.8, 0.3, 0.5), (1.1, 0.2, 0.7), (0.9,)):
        sounds = [draw.standard_normal(int(s * 16000)).astype(np.float32) * 0.1 for s in seconds]
        yield extractor(sounds, sampling_rate=16000)


@pytest.mark.parametrize("kind", CASES)
def test_compiled_layers_give_the_same_gradients_in_few_graphs_for_all_lengths(kind):
    plain, extractor = make(kind)
    model, _ = make(kind)
    graphs = []

    def counting(graph, inputs):
        graphs.append(len(inputs))
        return graph.forward

    torch._dynamo.reset()
    compile_layers(model, backend=counting)
    graphs.clear()
    for batch in batches(extractor):
        for each in (plain, model):
            each.zero_grad()
            each(**batch).logits.square().sum().backward()
        largest = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
        for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
            if p.grad is not None:
                assert float((p.grad - q.grad).abs().max()) <= 1e-5 * largest, name
    seen = len(graphs)
    # graphs with and without a mask, for several cycles and for one
    assert 1 <= seen <= 4
    model.eval()
    with torch.no_grad(), uncompiled(True):  # validation uses the uncompiled layers, as prediction does
        assert torch.equal(model(**batch).logits, plain.eval()(**batch).logits)
    assert len(graphs) == seen


def test_layers_that_cannot_be_compiled_train_uncompiled_with_one_line(caplog):
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    model, extractor = make("ast")
    cnn = LaennecForAudioClassification.from_encoder(load_encoder(None, type="cnn", channels=[4, 8]))
    with caplog.at_level(logging.WARNING), inductor.patch({"cpp.cxx": (None, "/no/compiler")}):
        compile_layers(model)
        compile_layers(cnn)
    cannot, convolutions = (record.getMessage() for record in caplog.records if "train.compile" in record.getMessage())
    assert "No working C++ compiler found" in cannot and "goes on uncompiled" in cannot and "\n" not in cannot
    compile_layers(model.head)  # what trains where the encoder is frozen
    assert "the encoder is frozen" in caplog.records[-1].getMessage()
    assert "the encoder laennec-cnn has no transformer layers; training goes on" in convolutions
    model(**next(batches(extractor)))


@pytest.fixture
def curve(tiny_recipe, tmp_path):
    """A function: losses of two epochs and the weights after them."""

    def run(kind, name, *settings, code=0):
        encoder = {"ast": {"type": "ast", "config": AST}, "cnn": tiny_recipe["encoder"]}[kind]
        features = {"preset": "ast"} if kind == "ast" else tiny_recipe["features"]
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(tiny_recipe | {"encoder": encoder, "features": features}))
        out = tmp_path / name
        assert main(["train", str(tmp_path / "r.yaml"), "--output_dir", str(out), *settings]) == code
        if code:
            return None
        history = json.loads((out / "run.json").read_text())["history"]
        return [entry["loss"] for entry in history], load_file(out / "model" / "model.safetensors")

    return run


@pytest.mark.soak
def test_bf16_and_gradient_checkpointing_learn_the_same(curve):
    losses, weights = curve("ast", "plain")
    found, others = curve("ast", "recomputed", "--train.gradient_checkpointing", "true")
    assert found == pytest.approx(losses, abs=1e-6)
    assert all(np.abs(weights[name] - others[name]).max() < 1e-5 for name in weights)
    found, others = curve("ast", "bf16", "--train.bf16", "true")
    assert found != losses and found == pytest.approx(losses, abs=0.02)
    assert {str(value.dtype) for value in others.values()} == {"float32"}  # weights stay float32


def test_gradient_checkpointing_without_transformer_layers_is_one_line(curve, capsys):
    curve("cnn", "run", "--train.gradient_checkpointing", "true", code=2)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "train.gradient_checkpointing" in err and "leave it out" in err


def test_batches_are_prefetched_and_pinned_only_with_a_gpu():
    alone, beside = device_settings(None, False), device_settings(None, True)
    assert alone["use_cpu"] and not beside["use_cpu"]
    assert (alone["dataloader_num_workers"], alone["dataloader_pin_memory"]) == (0, False)
    assert 1 <= beside["dataloader_num_workers"] <= 8 and beside["dataloader_prefetch_factor"]
    assert beside["dataloader_pin_memory"] and beside["accelerator_config"] == {"non_blocking": True}
    assert (
        device_settings(3, False)["dataloader_num_workers"] == device_settings(3, True)["dataloader_num_workers"] == 3
    )


def test_several_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert device_settings(None, True)["dataloader_num_workers"] == 7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device_settings(None, True)["dataloader_num_workers"] == 1


def test_a_gpu_that_accelerate_is_told_to_leave_alone_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert has_gpu() and training_device() == torch.device("cuda", 1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert not has_gpu() and training_device() == torch.device("cpu")


def test_a_warning_about_the_data_is_printed_by_the_first_process_of_a_launch_alone(monkeypatch):
    printed = {}
    for rank in ("1", "0"):  # rank 0 comes last, because it does not change the log level
        monkeypatch.setenv("RANK", rank)
        configure_process(torch.get_num_threads())
        printed[rank] = logging.getLogger("laennec.training.tables").isEnabledFor(logging.WARNING)
    assert printed == {"0": True, "1": False}
