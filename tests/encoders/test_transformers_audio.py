"""transformers' audio encoders behind the adapter: padding, natural length, transformers' own numbers."""

import copy
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
from tiny_encoders import TINY, tiny

from laennec.audio.features import LaennecFeatureExtractor
from laennec.encoders import load_encoder
from laennec.encoders.adapters import stack_of
from laennec.encoders.speech import WaveformEncoder
from laennec.encoders.transformers_audio import sinusoids
from laennec.errors import InputError

# families whose transformers model, given a mask, lets padding into real tokens
LEAKY = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech")


def front_end(encoder) -> LaennecFeatureExtractor:
    return LaennecFeatureExtractor(encoder.presets[0], length="natural")


@pytest.fixture(scope="module")
def real(shared_data: Path):
    """Real breathing of several lengths, at any rate."""
    path = sorted((shared_data / "icbhi2017_subset").glob("*.flac"))[0]
    wave, rate = sf.read(path, dtype="float32", frames=sf.info(path).samplerate * 4)

    def cut(sampling_rate: int, seconds: tuple[float, ...] = (1.1, 0.62, 0.3, 0.04)) -> list[np.ndarray]:
        whole = soxr.resample(wave, rate, sampling_rate)
        return [whole[int(0.3 * i * sampling_rate) :][: round(s * sampling_rate)] for i, s in enumerate(seconds)]

    return cut


@pytest.mark.parametrize("case", TINY)
def test_a_cycle_alone_has_what_transformers_model_gives_it(case, real) -> None:
    encoder = tiny(case)
    extractor = front_end(encoder)
    if "clap" in case:
        extractor = LaennecFeatureExtractor(encoder.presets[0])
    wave = real(extractor.sampling_rate, (2.0,))[0]
    values = extractor(wave, sampling_rate=extractor.sampling_rate).input_values
    with torch.no_grad():
        ours = encoder(values, torch.ones(values.shape[:2], dtype=torch.long))
        if isinstance(encoder, WaveformEncoder):
            theirs = encoder.model(values[:, :, 0]).last_hidden_state
        elif "whisper" in case:
            values = values[:, :200]
            ours = encoder(values)
            theirs = encoder.model(values.transpose(1, 2)).last_hidden_state  # 200 frames fill its table of 100
        elif "clap" in case:
            fused = case == "clap-fused"
            theirs = encoder.model(
                input_features=values[:, None].expand(-1, 4 if fused else 1, -1, -1), is_longer=torch.zeros(1, 1)
            )
            torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, atol=1e-5, rtol=1e-5)
            theirs = theirs.last_hidden_state.flatten(2).transpose(1, 2)
        else:
            theirs = encoder.model(values).last_hidden_state
    torch.testing.assert_close(ours.last_hidden_state, theirs, atol=1e-5, rtol=1e-5)
    assert encoder.config.hidden_size == ours.pooler_output.shape[1]


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("case", LEAKY)
def test_transformers_own_masking_would_not_be_enough(case, real) -> None:
    # were it ever enough, what the adapter adds could go
    encoder = tiny(case)
    extractor = front_end(encoder)
    waves = real(extractor.sampling_rate, (1.1, 0.3))
    batch = extractor(waves, sampling_rate=extractor.sampling_rate)
    with torch.no_grad():
        padded = encoder.model(batch.input_values[:, :, 0], attention_mask=batch.attention_mask).last_hidden_state[1]
        alone = encoder.model(batch.input_values[1:, : len(waves[1]), 0]).last_hidden_state[0]
    assert float((padded[: len(alone)] - alone).abs().max()) > 1e-3


@pytest.mark.parametrize("case", ["whisper", "hubert", "wavlm", "data2vec-audio", "wav2vec2-bert"])
def test_training_sees_no_padding_either(case, real) -> None:
    encoder = tiny(case)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    extractor = front_end(encoder)
    waves = real(extractor.sampling_rate, (0.8, 0.3))
    batch = extractor(waves, sampling_rate=extractor.sampling_rate)
    weight = next(p for n, p in encoder.named_parameters() if p.requires_grad and p.ndim > 1)
    encoder.train()
    encoder(batch.input_values, batch.attention_mask).pooler_output.square().sum().backward()
    together = weight.grad.clone()
    encoder.zero_grad()
    for wave in waves:
        one = extractor(wave, sampling_rate=extractor.sampling_rate)
        encoder(one.input_values, one.attention_mask).pooler_output.square().sum().backward()
    torch.testing.assert_close(together, weight.grad, atol=1e-4, rtol=1e-3)
    unused = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []  # training on several devices wants a gradient for every weight


class TestWhisper:
    """Natural length, on the real encoder."""

    @pytest.fixture(scope="class")
    def encoder(self, shared_root: Path):
        return load_encoder(shared_root / "weights/whisper_base_encoder")

    @staticmethod
    def by_hand(model, values: torch.Tensor) -> torch.Tensor:
        """One cycle, step by step with plain tensors: (frames, mels) -> (tokens, dim)."""
        f = torch.nn.functional
        x = f.gelu(f.conv1d(values.T[None], model.conv1.weight, model.conv1.bias, padding=1))
        x = f.gelu(f.conv1d(x, model.conv2.weight, model.conv2.bias, stride=2, padding=1))[0].T
        tokens, dim = x.shape
        rates = torch.exp(-np.log(1e4) / (dim // 2 - 1) * torch.arange(dim // 2, dtype=torch.float64))
        place = torch.arange(tokens)[:, None] * rates
        known = model.embed_positions.weight[:tokens]
        x = x + torch.cat([known, torch.cat([place.sin(), place.cos()], 1)[len(known) :].to(x)])
        for layer in model.layers:
            a, y = layer.self_attn, layer.self_attn_layer_norm(x)
            q, k, v = ((p(y).unflatten(1, (a.num_heads, -1)).transpose(0, 1)) for p in (a.q_proj, a.k_proj, a.v_proj))
            weights = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(-1)
            x = x + a.out_proj((weights @ v).transpose(0, 1).flatten(1))
            x = x + layer.fc2(f.gelu(layer.fc1(layer.final_layer_norm(x))))
        return model.layer_norm(x)

    @staticmethod
    def features(shared_data: Path, seconds: float) -> torch.Tensor:
        path = sorted((shared_data / "icbhi2017_subset").glob("*.flac"))[1]
        wave, rate = sf.read(path, dtype="float32", frames=11 * sf.info(path).samplerate)
        wave = soxr.resample(wave, rate, 16000)[: round(16000 * seconds)]
        return LaennecFeatureExtractor("whisper")(wave, sampling_rate=16000).input_values

    @pytest.mark.parametrize("seconds", [0.4, 10.2])
    def test_natural_length_equals_a_plain_computation(self, encoder, shared_data, seconds) -> None:
        # in double precision: single has no more than 3 digits left where activations are in the hundreds
        double = copy.deepcopy(encoder).double()
        values = self.features(shared_data, seconds).double()
        with torch.no_grad():
            ours = double(values).last_hidden_state[0]
            torch.testing.assert_close(ours, self.by_hand(double.model, values[0]), atol=1e-5, rtol=1e-5)
        assert len(ours) == round(50 * seconds)

    def test_3000_frames_equal_transformers_encoder_with_the_whole_table(self) -> None:
        settings = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
        whole = load_encoder(None, type="whisper", **settings)
        values = torch.randn(1, 3000, 80, generator=torch.Generator().manual_seed(0))
        cut = load_encoder(None, type="whisper", max_source_positions=500, **settings)
        state = {n: v for n, v in whole.state_dict().items() if "embed_positions" not in n}
        cut.load_state_dict(state, strict=False)
        with torch.no_grad():
            theirs = whole.model(values.transpose(1, 2)).last_hidden_state
            torch.testing.assert_close(whole(values).last_hidden_state, theirs, atol=1e-5, rtol=1e-5)
            # positions beyond a table that was cut go on as the whole table does
            torch.testing.assert_close(cut(values).last_hidden_state, theirs, atol=1e-4, rtol=1e-4)

    def test_the_position_table_follows_the_formula(self, encoder) -> None:
        table = encoder.model.embed_positions.weight
        torch.testing.assert_close(sinusoids(*table.shape), table, atol=5e-4, rtol=0)  # half precision


def test_layers_are_dropped_and_features_masked_only_when_asked() -> None:
    hubert, whisper = tiny("hubert").config, tiny("whisper").config
    assert (hubert.layerdrop, hubert.mask_time_prob, hubert.apply_spec_augment) == (0.0, 0.0, False)
    assert whisper.encoder_layerdrop == 0.0
    assert load_encoder(None, type="hubert", **TINY["hubert"][1], layerdrop=0.3).config.layerdrop == 0.3
    with pytest.raises(InputError, match=r"mask_time_prob = 0.0 here; augment.spec draws feature masks"):
        load_encoder(None, type="hubert", mask_time_prob=0.1)


class TestWrongUse:
    """One clear line each."""

    def test_features_of_another_front_end(self) -> None:
        for case, said in (("whisper", "set features.preset to whisper"), ("hubert", "waveform or waveform-raw")):
            with pytest.raises(InputError, match=rf"128 values a frame.*{said}"):
                tiny(case)(torch.zeros(1, 50, 128))
        with pytest.raises(InputError, match=r"features\.preset to whisper-128"):
            tiny("whisper-128")(torch.zeros(1, 50, 80))

    def test_a_cycle_longer_than_claps_picture(self) -> None:
        with pytest.raises(InputError, match=r"1002 frames, but CLAP takes 1001 at most \(10 s\).*repeat_pad"):
            tiny("clap")(torch.zeros(1, 1002, 64))

    def test_a_layout_that_lets_padding_in(self) -> None:
        with pytest.raises(InputError, match="conv_pos_batch_norm"):
            load_encoder(None, type="hubert", **TINY["hubert"][1], conv_pos_batch_norm=True)

    def test_settings_that_do_not_exist_or_have_another_type(self) -> None:
        with pytest.raises(InputError, match=r"whisper encoders have no setting 'encoder_layer'.*'encoder_layers'"):
            load_encoder(None, type="whisper", encoder_layer=3)
        with pytest.raises(InputError, match=r"hidden_size.*correct encoder\.config"):
            load_encoder(None, type="hubert", hidden_size="wide")


@pytest.mark.parametrize("case", TINY)
def test_what_comes_last_in_the_stack_is_what_the_tokens_come_from(case, real) -> None:
    encoder = tiny(case)
    layers, after = stack_of(encoder)
    assert len(layers) == 2
    encoder.requires_grad_(False)
    for module in (layers[-1], *after):
        module.requires_grad_(True)
    extractor = front_end(encoder)
    wave = real(extractor.sampling_rate, (0.4,))
    out = encoder(**extractor(wave, sampling_rate=extractor.sampling_rate))
    out.pooler_output.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    # nothing that learns comes after what is named: with it zeroed or at rest, tokens are constants of the stack
    seen = []
    (after[-1] if after else layers[-1]).register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        tokens = encoder(**extractor(wave, sampling_rate=extractor.sampling_rate)).last_hidden_state
    last = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    torch.testing.assert_close(last.sum(), tokens.sum(), atol=1e-3, rtol=1e-4)
