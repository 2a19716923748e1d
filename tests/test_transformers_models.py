"""Models with transformers' encoders: saved, exported head-only, loaded, trained, and with LoRA."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
from tiny_encoders import TINY
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from laennec import LaennecConfig, LaennecFeatureExtractor, LaennecForAudioClassification
from laennec.encoders import encoder_digest, load_encoder
from laennec.errors import InputError

FAMILIES = {kind: TINY[kind][1] for kind in ("whisper", "hubert", "wavlm", "data2vec-audio", "wav2vec2-bert", "clap")}


@pytest.fixture(scope="module")
def breathing(shared_data: Path):
    """A function: real breath sounds at a given sampling rate."""
    path = sorted((shared_data / "icbhi2017_subset").glob("*.flac"))[0]
    wave, rate = sf.read(path, dtype="float32", frames=4 * sf.info(path).samplerate)

    def at(sampling_rate: int) -> list[np.ndarray]:
        whole = soxr.resample(wave, rate, sampling_rate)
        return [whole[: round(1.3 * sampling_rate)], whole[sampling_rate : round(1.5 * sampling_rate)]]

    return at


def classifier(encoder, **settings) -> LaennecForAudioClassification:
    names = ["crackle", "wheeze"]
    config = LaennecConfig(
        encoder_config=encoder.config, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
        **settings,
    )  # fmt: skip
    return LaennecForAudioClassification(config, encoder).eval()


def random_encoder(kind: str):
    torch.manual_seed(0)
    return load_encoder(None, type=kind, **FAMILIES[kind])


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_full_model_comes_back_through_the_auto_classes(kind: str, breathing, tmp_path: Path) -> None:
    encoder = random_encoder(kind)
    digest = encoder_digest(encoder)
    model = classifier(encoder, projection_dim=4)
    assert encoder_digest(model.encoder) == digest  # a model does not change the weights of its encoder
    LaennecFeatureExtractor(encoder.presets[0]).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again = AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(again.encoder) is type(encoder) and encoder_digest(again.encoder) == digest
    features = extractor(breathing(extractor.sampling_rate), sampling_rate=extractor.sampling_rate)
    with torch.no_grad():
        assert torch.equal(again(**features).logits, model(**features).logits)
        assert again(**features).embeddings.shape == (2, 16)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_head_alone_comes_back_with_its_base_and_with_no_other(kind: str, breathing, tmp_path: Path) -> None:
    random_encoder(kind).save_pretrained(tmp_path / "base")
    base = load_encoder(tmp_path / "base")
    model = classifier(base, frozen_encoder=True, base_model_name_or_path=str(tmp_path / "base"))
    model.save_pretrained(tmp_path / "head")
    assert (tmp_path / "head" / "model.safetensors").stat().st_size < 5000
    again = LaennecForAudioClassification.from_pretrained(tmp_path / "head")
    extractor = LaennecFeatureExtractor(base.presets[0])
    features = extractor(breathing(extractor.sampling_rate), sampling_rate=extractor.sampling_rate)
    with torch.no_grad():
        assert torch.equal(again(**features).logits, model(**features).logits)
    torch.manual_seed(1)
    load_encoder(None, type=kind, **FAMILIES[kind]).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="not the encoder this head was trained on"):
        LaennecForAudioClassification.from_pretrained(tmp_path / "head", base=tmp_path / "other")


LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
# names of the query and value layers, or of the feed-forward layers where LoRA cannot change those
TARGETS = {
    "wavlm": ["intermediate_dense", "output_dense"],
    "wav2vec2-bert": ["linear_q", "linear_v"],
    "clap": ["query", "value"],
}


def trained(model, features, steps: int = 3):
    """Train the model for some steps; return it in eval mode."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(steps):
        model(**features, labels=torch.eye(2)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("kind", FAMILIES)
def test_adapters_and_last_layers_of_every_family_learn(kind: str, breathing, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    random_encoder(kind).save_pretrained(tmp_path / "base")
    base = load_encoder(tmp_path / "base")
    extractor = LaennecFeatureExtractor(base.presets[0])
    features = extractor(breathing(extractor.sampling_rate), sampling_rate=extractor.sampling_rate)
    model = classifier(base, base_model_name_or_path=str(tmp_path / "base"))
    model.add_adapters({**LORA, "target_modules": TARGETS.get(kind, ["q_proj", "v_proj"])})
    with torch.no_grad():
        before = model(**features).embeddings
    trained(model, features)
    with torch.no_grad():
        after = model(**features)
    assert float((after.embeddings - before).abs().max()) > 1e-5
    model.save_pretrained(tmp_path / "adapters")
    again = LaennecForAudioClassification.from_pretrained(tmp_path / "adapters").eval()
    with torch.no_grad():
        assert torch.equal(again(**features).logits, after.logits)
    model = classifier(load_encoder(tmp_path / "base"))
    model.train_last_layers(1)
    learns = {n for n, p in model.encoder.named_parameters() if p.requires_grad}
    start = {n: v.clone() for n, v in model.encoder.named_parameters()}
    trained(model, features)
    moved = {n for n, v in model.encoder.named_parameters() if not torch.equal(v, start[n])}
    assert moved and moved <= learns < set(start)


def test_adapters_on_layers_that_wavlm_bypasses_are_refused() -> None:
    pytest.importorskip("peft")
    model = classifier(random_encoder("wavlm"))
    with pytest.raises(InputError, match=r"uses the weights of q_proj directly.*intermediate_dense"):
        model.add_adapters({**LORA, "target_modules": ["q_proj", "v_proj"]})
