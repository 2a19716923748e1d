"""Encoders that users bring: plain modules and transformers models, trained in part, saved, loaded, refused."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from laennec import LaennecConfig, LaennecFeatureExtractor, LaennecForAudioClassification
from laennec.encoders import encoder_digest, load_encoder, own, register_encoder, wrapped
from laennec.encoders.own import as_encoder
from laennec.errors import InputError


def encoded(layers, scale, input_values, attention_mask):
    """Frames through layers that look at one frame each; the mean over real frames."""
    if attention_mask is None:
        attention_mask = torch.ones(input_values.shape[:2], device=input_values.device)
    tokens = input_values * scale
    for layer in layers:
        tokens = layer(tokens).relu()
    weight = attention_mask[..., None].to(tokens.dtype)
    pooled = (tokens * weight).sum(1) / weight.sum(1)
    return SimpleNamespace(last_hidden_state=tokens, token_mask=attention_mask.bool(), pooler_output=pooled)


def stack(mels, width):
    return nn.ModuleList([nn.Linear(mels, width), nn.Linear(width, width), nn.Linear(width, width)])


@register_encoder
class PlainEncoder(nn.Module):
    """A module with a computed buffer that is not saved and a tensor that is no buffer."""

    preset = "song2021"
    citation = "@misc{plain}"

    def __init__(self, width=12, mels=64):
        super().__init__()
        self.config = {"width": width, "mels": mels}
        self.layers = stack(mels, width)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, mels), persistent=False)
        self.offset = torch.arange(3.0)

    def forward(self, input_values, attention_mask=None):
        return encoded(self.layers, self.scale + self.offset[1], input_values, attention_mask)


class OwnConfig(PreTrainedConfig):
    model_type = "own-test-encoder"

    def __init__(self, width=12, num_mel_bins=64, **kwargs):
        self.width = width
        self.num_mel_bins = num_mel_bins
        super().__init__(**kwargs)


@register_encoder
class OwnModel(PreTrainedModel):
    """A transformers model whose author forgot `post_init` and the width of its embedding."""

    config_class = OwnConfig
    preset = "song2021"
    layers = "blocks"

    def __init__(self, config):
        super().__init__(config)
        self.blocks = stack(config.num_mel_bins, config.width)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, config.num_mel_bins), persistent=False)

    def forward(self, input_values, attention_mask=None):
        return encoded(self.blocks, self.scale, input_values, attention_mask)


MAKERS = {"plain module": lambda: PlainEncoder(), "transformers model": lambda: OwnModel(OwnConfig())}
CLASSES = {"plain module": PlainEncoder, "transformers model": OwnModel}
LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0}


def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 25:] = 0
    return {"input_values": torch.randn(2, 40, 64, generator=generator), "attention_mask": mask}


def logits(model):
    with torch.no_grad():
        return model.eval()(**batch()).logits


@pytest.mark.parametrize("kind", MAKERS)
def test_a_model_keeps_the_weights_it_was_given_and_comes_back_to_the_bit(kind, tmp_path):
    torch.manual_seed(3)
    encoder = MAKERS[kind]()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    model = LaennecForAudioClassification.from_encoder(encoder, ["stridor", "rhonchi"], seed=1)
    after = getattr(model.encoder, "module", model.encoder).state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert model.embedding_dim == 12 and model.config.label_names == ["stridor", "rhonchi"]
    with torch.no_grad():
        pooled = encoder(**batch()).pooler_output
        assert torch.equal(model.eval()(**batch()).embeddings, pooled)
    model.save_pretrained(tmp_path)
    again = LaennecForAudioClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model)) and type(again.encoder) is type(model.encoder)
    saved = json.loads((tmp_path / "config.json").read_text())["encoder_config"]
    assert saved["hidden_size"] == 12


@pytest.mark.parametrize("kind", MAKERS)
def test_seed_and_class_decide_random_weights_and_files_hold_others(kind, tmp_path):
    def make(source=None, seed=0):
        return LaennecForAudioClassification.from_encoder(
            source, type=CLASSES[kind], encoder_config={"width": 6}, seed=seed
        )

    assert torch.equal(logits(make()), logits(make())) and not torch.equal(logits(make()), logits(make(seed=1)))
    source = make(seed=5).encoder
    inner = getattr(source, "module", source)
    save_file({n: v.contiguous() for n, v in inner.state_dict().items()}, tmp_path / "w.safetensors")
    torch.save(inner.state_dict(), tmp_path / "w.pt")
    source.save_pretrained(tmp_path / "folder")
    for place in ("w.safetensors", "w.pt", "folder"):
        model = make(tmp_path / place)
        assert encoder_digest(model.encoder) == encoder_digest(source)
        assert model.config.base_model_name_or_path == str(tmp_path / place)
    assert encoder_digest(load_encoder(tmp_path / "folder")) == encoder_digest(source)
    with pytest.raises(InputError, match=r"w\.pt: .*of another shape"):
        LaennecForAudioClassification.from_encoder(tmp_path / "w.pt", type=CLASSES[kind])


@pytest.mark.parametrize("kind", MAKERS)
def test_a_frozen_one_is_exported_without_its_base_and_finds_it_again(kind, tmp_path):
    load_encoder(None, type=CLASSES[kind], width=6).save_pretrained(tmp_path / "base")
    model = LaennecForAudioClassification.from_encoder(tmp_path / "base", type=CLASSES[kind], trainable="frozen")
    assert not any(p.requires_grad for p in model.encoder.parameters())
    model.save_pretrained(tmp_path / "head")
    assert json.loads((tmp_path / "head" / "config.json").read_text())["head_only"]
    again = LaennecForAudioClassification.from_pretrained(tmp_path / "head")
    assert torch.equal(logits(again), logits(model))
    base = load_encoder(tmp_path / "base")
    again = LaennecForAudioClassification.from_pretrained(tmp_path / "head", base=getattr(base, "module", base))
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("kind", MAKERS)
def test_its_last_layers_and_adapters_learn(kind, tmp_path):
    model = LaennecForAudioClassification.from_encoder(MAKERS[kind](), trainable="last_n", last_layers=1)
    learns = {name.split(".")[-2] for name, p in model.encoder.named_parameters() if p.requires_grad}
    assert learns == {"2"}
    load_encoder(None, type=CLASSES[kind]).save_pretrained(tmp_path / "base")
    target = "module.layers.1" if kind == "plain module" else "blocks.1"
    model = LaennecForAudioClassification.from_encoder(
        tmp_path / "base", type=CLASSES[kind], trainable="lora", lora=LORA | {"target_modules": [target]}
    )
    model(**batch(), labels=torch.eye(2)).loss.backward()
    moved = [name for name, p in model.encoder.named_parameters() if p.grad is not None]
    assert moved and all("lora_" in name for name in moved)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    model.save_pretrained(tmp_path / "adapters")
    again = LaennecForAudioClassification.from_pretrained(tmp_path / "adapters")
    assert torch.equal(logits(again), logits(model))


def test_it_may_stand_in_groups_of_frames(tmp_path):
    model = LaennecForAudioClassification.from_encoder(PlainEncoder(), group_frames=20, group_step=10)
    assert model.encoder.layers == "encoder.module.layers"
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(LaennecForAudioClassification.from_pretrained(tmp_path)), logits(model))
    grouped = wrapped(as_encoder(PlainEncoder()), 20, 10)
    assert grouped.config.hidden_size == 12


def test_the_front_end_is_named_and_gives_the_size_of_a_frame():
    features = LaennecFeatureExtractor("ast")
    model = LaennecForAudioClassification.from_encoder(PlainEncoder(mels=128), features=features)
    assert model.config.features_fingerprint == features.fingerprint() and model.config.sampling_rate == 16_000
    with pytest.raises(InputError, match=r"PlainEncoder: cannot encode features of shape \(1, 64, 128\)"):
        LaennecForAudioClassification.from_encoder(PlainEncoder(mels=64), features=features)


class NoMask(nn.Module):
    def forward(self, input_values, attention_mask=None):
        return SimpleNamespace(last_hidden_state=input_values, pooler_output=input_values.mean(1))


class WrongShape(nn.Module):
    def forward(self, input_values, attention_mask=None):
        mask = torch.ones(input_values.shape[:2])
        return SimpleNamespace(last_hidden_state=input_values, token_mask=mask[:, 1:], pooler_output=mask)


class Raises(nn.Module):
    def forward(self, input_values, attention_mask=None):
        return {}["absent"]


class NoConfig(nn.Module):
    def __init__(self, width):
        super().__init__()


class TakesBert(PreTrainedModel):
    config_class = type("BertLike", (PreTrainedConfig,), {"model_type": "bert"})


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (NoMask, "NoMask: its output has no token_mask"),
        (Raises, r"Raises: cannot encode features of shape .*\(KeyError: 'absent'\)"),
        (WrongShape, r"token_mask \(1, 63\).*must be"),
        (lambda: NoConfig(3), "NoConfig: its attribute config must be a dict of its constructor's arguments"),
        (lambda: TakesBert(TakesBert.config_class()), "model_type of its own.*'bert'"),
        (
            lambda: type("PlainEncoder", (nn.Module,), {"__module__": "x"})(),
            "another encoder is known as 'PlainEncoder'",
        ),
    ],
)
def test_what_is_no_encoder_is_refused_in_one_line(module, said):
    with pytest.raises(InputError, match=said):
        LaennecForAudioClassification.from_encoder(module())


def test_a_configuration_never_causes_an_import(tmp_path):
    """Whatever a downloaded config.json names, nothing is imported and nothing is called."""
    LaennecForAudioClassification.from_encoder(PlainEncoder()).save_pretrained(tmp_path / "model")
    (tmp_path / "never_imported_by_laennec.py").write_text("raise SystemExit('imported')")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    encoder = values["encoder_config"]
    names = [
        "os:system",
        "os.system",
        "never_imported_by_laennec:Encoder",
        "torch.nn:Linear",
        "Linear",
        "PlainEncoder2",
    ]
    cases = [encoder | {"encoder_class": name, "arguments": {"command": "touch ran"}} for name in names]
    cases += [encoder | {"model_type": name, "architectures": [name]} for name in [*names, "bert", None, {"a": 1}]]
    cases += [{"encoder_config": case, "model_type": "laennec-groups"} for case in cases]
    cases += [encoder | {"auto_map": {"AutoModel": "never_imported_by_laennec.Encoder"}, "model_type": "x"}]
    sys.path.insert(0, str(tmp_path))
    try:
        for case in cases:
            (tmp_path / "model" / "config.json").write_text(json.dumps(values | {"encoder_config": case}))
            with pytest.raises(InputError):
                LaennecForAudioClassification.from_pretrained(tmp_path / "model")
    finally:
        sys.path.remove(str(tmp_path))
    assert "never_imported_by_laennec" not in sys.modules and not (tmp_path / "ran").exists()


def test_a_class_may_be_defined_again_and_its_arguments_are_checked(monkeypatch):
    monkeypatch.setattr(own, "_modules", dict(own._modules))
    again = type("PlainEncoder", (PlainEncoder,), {"__module__": PlainEncoder.__module__})
    assert register_encoder(again) is again
    with pytest.raises(InputError, match=r"PlainEncoder: .*unexpected keyword argument 'wide'"):
        load_encoder(None, type=PlainEncoder, wide=3)
    with pytest.raises(InputError, match=r"'PlainEncoder9'.*import the module that defines it"):
        LaennecConfig(encoder_config={"model_type": "laennec-module9", "architectures": ["PlainEncoder9"]})
