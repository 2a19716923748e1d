"""Every encoder against the same demands: padding, short cycles, precision, gradients, saving."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from tiny_encoders import OWN, TINY, batch_of, tiny
from transformers import AutoModel

from laennec.audio.features import LaennecFeatureExtractor
from laennec.encoders import ENCODERS, at_layers, encoder_digest, load_encoder
from laennec.encoders.adapters import stack_of
from laennec.encoders.base import TokenMix
from laennec.errors import InputError

CASES = {**OWN, **TINY}
NO_LAYERS = {"statistics"}
DROPOUTS = ("dropout", "activation_dropout", "attention_dropout")


def front_end(encoder) -> LaennecFeatureExtractor:
    preset = {"cnn": "song2021", "statistics": "efficientat"}.get(encoder.kind) or encoder.presets[0]
    return LaennecFeatureExtractor(preset, length="natural")


def shifted(encoder):
    """The encoder with biases after its normalisations, so that padding would become visible."""
    torch.manual_seed(1)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, 0.3, 0.3)
    return encoder


@pytest.fixture(scope="module")
def sounds(shared_data: Path):
    """Real breathing of several lengths, at any rate."""
    path = sorted((shared_data / "icbhi2017_subset").glob("*.flac"))[0]
    wave, rate = soundfile.read(path, dtype="float32", frames=soundfile.info(path).samplerate * 4)

    def cut(sampling_rate: int, seconds: tuple[float, ...]) -> list[np.ndarray]:
        whole = soxr.resample(wave, rate, sampling_rate)
        return [whole[int(0.3 * i * sampling_rate) :][: round(s * sampling_rate)] for i, s in enumerate(seconds)]

    return cut


@pytest.mark.parametrize("case", CASES)
def test_a_cycle_in_a_batch_has_the_tokens_it_has_alone(case, sounds) -> None:
    encoder = shifted(tiny(case))
    extractor = front_end(encoder)
    rate = extractor.sampling_rate
    waves = [*sounds(rate, (2.1, 1.1, 0.3, 0.1)), sounds(rate, (0.5,))[0][: extractor.front.min_samples]]
    batch = extractor(waves, sampling_rate=rate)
    mean, spread = batch.input_values.mean(), batch.input_values.std()  # so that one tolerance fits all features
    batch["input_values"] = (batch.input_values - mean) / spread
    # neither the values in the padding matter nor their number
    poisoned = batch.input_values.masked_fill(batch.attention_mask[:, :, None] == 0, 7.0)
    longer = torch.nn.functional.pad(batch.input_values, (0, 0, 0, 0 if "clap" in case else 333))
    longer_mask = torch.nn.functional.pad(batch.attention_mask, (0, longer.shape[1] - poisoned.shape[1]))
    with torch.no_grad():
        together = [encoder(poisoned, batch.attention_mask), encoder(longer, longer_mask)]
        alone = [encoder((extractor(wave, sampling_rate=rate).input_values - mean) / spread) for wave in waves]
    for row, one in enumerate(alone):
        assert bool(one.token_mask.all()) and bool(torch.isfinite(one.pooler_output).all())
        for out in together:
            real = out.last_hidden_state[row][out.token_mask[row]]
            torch.testing.assert_close(real, one.last_hidden_state[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(out.pooler_output[row], one.pooler_output[0], atol=1e-5, rtol=1e-5)
    assert float(torch.pdist(torch.cat([one.pooler_output for one in alone[:3]])).min()) > 1e-3  # cycles differ


@pytest.mark.parametrize("case", sorted(CASES.keys() - NO_LAYERS))
def test_a_cycle_in_a_batch_has_the_layers_it_has_alone(case, sounds) -> None:
    encoder = shifted(tiny(case))
    extractor = front_end(encoder)
    rate = extractor.sampling_rate
    waves = sounds(rate, (2.1, 1.1, 0.3))
    batch = extractor(waves, sampling_rate=rate)
    scale = batch.input_values.abs().max()
    layers = at_layers(encoder, [1, -1, "embedding"], mels=extractor.feature_size)
    assert layers.config.hidden_size == sum(layers.config.widths) and len(layers.config.widths) == 3
    with torch.no_grad():
        together = layers(batch.input_values / scale, batch.attention_mask).pooler_output
        alone = [layers(extractor(wave, sampling_rate=rate).input_values / scale).pooler_output[0] for wave in waves]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("case", "special"), [("ast", 2), ("audiomae", 1), ("audiomae-fc-norm", 1), ("clap", 0)])
def test_the_embedding_of_a_layer_is_the_mean_of_the_tokens_that_a_hook_sees(case, special) -> None:
    kind, settings = CASES[case]
    deeper = {"depths": [1, 1, 1], "num_attention_heads": [2, 2, 2]} if case == "clap" else {}  # fewer tokens each
    encoder, seen = load_encoder(None, type=kind, **settings | deeper).eval(), []
    layers = at_layers(encoder, [1])
    stack_of(encoder)[0][0].register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        found = layers(torch.randn(2, 96, front_end(encoder).feature_size)).pooler_output
    hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert hidden.ndim == 3
    torch.testing.assert_close(found, hidden[:, special:].mean(1))


@pytest.mark.parametrize("case", sorted(NO_LAYERS))
def test_an_encoder_without_layers_refuses_them(case) -> None:
    with pytest.raises(InputError, match=r"no stack of layers; leave encoder\.layers out"):
        at_layers(tiny(case), [1], mels=front_end(tiny(case)).feature_size)


@pytest.mark.parametrize("case", OWN)
def test_a_mask_of_ones_is_no_mask_and_bfloat16_stays_near(case) -> None:
    encoder = shifted(tiny(case))
    values = torch.randn(2, 90, front_end(encoder).front.feature_size, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 90, dtype=torch.long)
    with torch.no_grad():
        for one, other in zip(encoder(values, mask).to_tuple(), encoder(values).to_tuple(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
        mask[1, 50:] = 0
        full = encoder(values, mask).pooler_output
        half = encoder.to(torch.bfloat16)(values.bfloat16(), mask).pooler_output
    assert half.dtype == torch.bfloat16
    assert float(torch.cosine_similarity(full, half.float()).min()) > 0.98


@pytest.mark.parametrize("case", ["cnn", "mobilenet"])
def test_training_statistics_ignore_padding(case) -> None:
    values = torch.randn(2, 90, 64 if case == "cnn" else 128, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(90)[None] < torch.tensor([40, 90])[:, None]).long()
    short, long = shifted(tiny(case)).train(), shifted(tiny(case)).train()
    longer = torch.nn.functional.pad(values, (0, 0, 0, 64), value=5.0)
    short(values, mask).pooler_output.sum().backward()
    long(longer, torch.nn.functional.pad(mask, (0, 64))).pooler_output.sum().backward()
    torch.testing.assert_close(short.state_dict(), long.state_dict(), atol=1e-5, rtol=1e-4)
    for (name, one), other in zip(short.named_parameters(), long.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("case", ["ast", "audiomae", "beats", "whisper", "hubert", "wav2vec2-bert"])
def test_kinds_of_attention_and_checkpointing_change_no_gradient(case, sounds) -> None:
    results = []
    for attention, checkpointed in (("eager", False), ("sdpa", True)):
        encoder = tiny(case).train()
        if case != "wav2vec2-bert":  # which has one kind of attention
            encoder.set_attn_implementation(attention)
        if checkpointed:
            encoder.gradient_checkpointing_enable()
            assert encoder.is_gradient_checkpointing
        for module in encoder.modules():
            for name in ("p", *DROPOUTS):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        extractor = front_end(encoder)
        batch = extractor(sounds(extractor.sampling_rate, (0.5, 0.2)), sampling_rate=extractor.sampling_rate)
        out = encoder(batch.input_values, batch.attention_mask).pooler_output
        out.square().sum().backward()
        results.append((out.detach(), {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["ast", "audiomae", "beats", "mobilenet"])
def test_random_weights_give_moderate_gradients(kind) -> None:
    torch.manual_seed(0)
    encoder = load_encoder(None, type=kind, **OWN[kind][1])
    values = torch.randn(2, 96, 128, generator=torch.Generator().manual_seed(1))
    encoder.train()(values, torch.ones(2, 96, dtype=torch.long)).pooler_output.square().mean().backward()
    norm = torch.stack([p.grad.norm() for p in encoder.parameters() if p.grad is not None]).norm()
    assert 0 < float(norm) < 100


@pytest.mark.parametrize("case", CASES)
def test_a_saved_encoder_comes_back_exactly(case, tmp_path) -> None:
    encoder = tiny(case)
    encoder.save_pretrained(tmp_path)
    again = load_encoder(tmp_path)
    assert not again.training and again.config.hidden_size == encoder.config.hidden_size
    torch.testing.assert_close(again.state_dict(), encoder.state_dict(), rtol=0, atol=0)
    assert encoder_digest(again) == encoder_digest(encoder)
    assert case not in OWN or encoder.kind == "ast" or type(AutoModel.from_pretrained(tmp_path)) is type(encoder)


@pytest.mark.parametrize("case", [*OWN, "whisper", "wav2vec2", "wavlm", "wav2vec2-bert"])
def test_features_that_are_no_batch_of_frames_are_refused(case) -> None:
    encoder = tiny(case)
    extractor = front_end(encoder)
    size, shortest, rate = extractor.front.feature_size, extractor.front.min_samples, extractor.sampling_rate
    for shape, said in (((2, 0, size), "hold no frame"), ((0, 50, size), "hold no cycle"), ((50, size), "instead of")):
        with pytest.raises(InputError, match=said) as refused:
            encoder(input_values=torch.zeros(shape))
        assert ";" in str(refused.value)
    if case != "cnn":  # which takes any number
        with pytest.raises(InputError, match=f"{size + 16}"):
            encoder(input_values=torch.zeros(2, 400, size + 16))
    sound = np.zeros(shortest, np.float32)
    with pytest.raises(InputError, match=rf"waveform 0: {shortest - 1} samples .* one frame takes {shortest}"):
        extractor(sound[: shortest - 1], sampling_rate=rate)
    with pytest.raises(InputError, match=f"the waveforms have 8000 Hz but these features need {rate} Hz"):
        extractor(sound, sampling_rate=8000)


PATCHES = {"frequency_stride": 16, "time_stride": 16, "num_mel_bins": 32}


@pytest.mark.parametrize(
    ("case", "settings", "lengths", "grids"),
    [
        ("ast", PATCHES, [96, 96, 96], {96: (2, 6)}),
        ("beats", {}, [96, 96, 40], {96: (8, 6), 40: (8, 2), 3: (8, 1)}),
    ],
)
def test_exchanging_tokens_is_exchanging_blocks_of_features(case, settings, lengths, grids) -> None:
    """Where patches do not overlap."""
    encoder, mels = tiny(case, **settings), settings.get("num_mel_bins", 128)
    values, mask = batch_of(lengths, mels)
    assert {frames: encoder.token_grid(frames, mels) for frames in grids} == grids
    bands, steps = grids[96]
    partner = torch.tensor([1, 2, 0])
    taken = torch.rand(3, bands, steps, generator=torch.Generator().manual_seed(2)) < 0.5
    real = torch.tensor([length // 16 for length in lengths])  # where both cycles have real frames
    taken &= torch.arange(steps) < torch.minimum(real, real[partner])[:, None, None]
    mixed = values.clone()
    for row, band, step in taken.nonzero().tolist():
        time, mel = slice(16 * step, 16 * (step + 1)), slice(16 * band, 16 * (band + 1))
        mixed[row, time, mel] = values[partner[row], time, mel]
    with torch.no_grad():
        found, expected = encoder(values, mask, token_mix=TokenMix(taken, partner)), encoder(mixed, mask)
        plain = encoder(values, mask)
        nothing = encoder(values, mask, token_mix=TokenMix(torch.zeros_like(taken), partner))
    assert torch.equal(found.token_mask, expected.token_mask)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found.pooler_output, plain.pooler_output, atol=1e-3)
    assert torch.equal(nothing.last_hidden_state, plain.last_hidden_state)


def test_released_weights_have_their_address_and_licence_in_the_documents():
    page = (Path(__file__).resolve().parents[2] / "docs" / "how_to" / "train.md").read_text()
    released = [kind for kind in ENCODERS.values() if kind.licence]
    assert len(released) >= 4
    for kind in released:
        assert kind.homepage and f"<{kind.homepage}> | {kind.licence} |" in page, kind
