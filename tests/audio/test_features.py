import json
import pickle
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from laennec.audio.cycles import cut
from laennec.audio.features import FEATURE_VERSION, PRESETS, LaennecFeatureExtractor
from laennec.audio.filterbanks import TooShortError, log_mel, mel_filters, window_function
from laennec.audio.presets import FrontEnd
from laennec.errors import InputError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/audio/front_ends.json").read_text())
# id -> settings that undo or keep the normalisation, and the unit of one log step in the case's values
CASES = {
    "ast_fbank_raw": ("ast", {"mean": 0.0, "std": 0.5}),
    "ast_fbank_normalised": ("ast", {}),
    "beats_fbank_pretraining": ("beats", {}),
}


def reference_signal(rate: int, samples: int = 128000) -> np.ndarray:
    t = np.arange(samples) / rate
    burst = np.exp(-(((t % 1) - 0.5) ** 2) / 0.02)
    wave = 0.5 * np.sin(2 * np.pi * 220 * t) + 0.3 * np.sin(2 * np.pi * 1500 * t) * burst
    return (wave + 0.05 * np.sin(2 * np.pi * 37 * t)).astype(np.float32)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def naive_log_mel(wave: np.ndarray, front: FrontEnd) -> np.ndarray:
    """One clip, one frame at a time, in float64: the definition."""
    x = wave.astype(np.float64)
    x = (x - x.mean() if front.subtract_mean else x) * front.waveform_scale
    if front.pre_emphasis_on == "signal" and front.pre_emphasis:
        x = np.array([x[t + 1] - front.pre_emphasis * x[t] for t in range(len(x) - 1)])
    x = np.pad(x, front.reflect_samples, mode="reflect")
    window, filters = window_function(front).double().numpy(), mel_filters(front).double().numpy()
    rows = []
    for start in range(0, len(x) - front.window_samples + 1, front.hop_samples):
        frame = x[start : start + front.window_samples]
        frame = frame - frame.mean() if front.remove_frame_mean else frame
        if front.pre_emphasis_on == "frame":
            frame = frame - front.pre_emphasis * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * window, front.fft_samples)) ** 2
        energy = power @ filters
        floor = front.log_floor
        rows.append(np.log(np.maximum(energy, floor) if front.log_floor_rule == "max" else energy + floor))
    values = np.array(rows[:-1] if front.drop_last_frame else rows)
    if front.dynamic_range:
        values = np.maximum(values, values.max() - front.dynamic_range)
    values = (values - front.mean) / (2 * front.std)
    if front.normalise == "bins":
        values = (values - values.mean(0)) / np.sqrt(values.var(0, ddof=1) + 1e-7)
    whole = len(values) // front.stack_frames * front.stack_frames
    return values[:whole].reshape(-1, front.feature_size)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: c["id"])
def test_equals_the_published_front_ends(case: dict) -> None:
    preset, overrides = CASES[case["id"]]
    extractor = LaennecFeatureExtractor(preset, **overrides)
    values = extractor(reference_signal(16000), sampling_rate=16000).input_values[0].double()
    step = 2 * extractor.front.std  # from normalised to log units
    assert list(values.shape) == case["shape"]
    # at the scale of 16-bit values, bands without sound hold float32 rounding, which differs between CPUs
    rounding = 40 if preset == "beats" else 1
    for frame, mel, expected in case["entries"]:
        assert abs(float(values[frame, mel]) - expected) * step < 1e-3 * rounding
    assert abs(float(values.mean()) - case["mean"]) * step < 1e-5 * rounding
    assert float(values.std()) == pytest.approx(case["std"], rel=1e-5 * rounding)
    assert float(values.min()) == pytest.approx(case["min"], abs=1e-5)
    assert float(values.max()) == pytest.approx(case["max"], abs=1e-5)


def test_equals_what_the_efficientat_authors_compute(shared_root: Path) -> None:
    expected = np.load(shared_root / "conformance/mn04_reference.npz")["log_mel"][:, 0].transpose(0, 2, 1)
    second = (0.1 * np.random.RandomState(0).randn(128000)).astype(np.float32)
    out = LaennecFeatureExtractor("efficientat")([reference_signal(32000), second], sampling_rate=32000)
    np.testing.assert_allclose(out.input_values.numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("preset", [name for name, front in PRESETS.items() if not front.is_waveform])
def test_equals_the_definition_frame_by_frame(preset: str) -> None:
    front = PRESETS[preset]
    for seed, samples in enumerate((front.min_samples, 3001, 12345)):
        wave = noise(samples, seed) + 0.02
        values, counts = log_mel(torch.from_numpy(wave)[None], torch.tensor([samples]), front)
        expected = naive_log_mel(wave, front)
        assert int(counts[0]) == len(expected) == front.frames(samples)
        np.testing.assert_allclose(values[0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_clip_in_a_batch_has_the_features_it_has_alone(preset: str) -> None:
    extractor = LaennecFeatureExtractor(preset, length="natural")
    rate = extractor.sampling_rate
    waves = [noise(n, seed) + 0.05 * seed for seed, n in enumerate((extractor.front.min_samples, 5003, 40000, 1600))]
    batch = extractor(waves, sampling_rate=rate)
    assert batch.attention_mask.dtype == torch.int64
    for i, wave in enumerate(waves):
        alone = extractor(wave, sampling_rate=rate)
        frames = alone.input_values.shape[1]
        assert frames == extractor.frames(len(wave)) == int(batch.attention_mask[i].sum())
        assert bool(alone.attention_mask.all())
        torch.testing.assert_close(batch.input_values[i, :frames], alone.input_values[0], atol=1e-5, rtol=0)
        assert float(batch.input_values[i, frames:].abs().sum()) == 0.0


def test_what_lies_beyond_a_length_is_never_read() -> None:
    extractor = LaennecFeatureExtractor("efficientat")
    clean = torch.from_numpy(np.stack([noise(9000), noise(9000, 1)]))
    dirty = clean.clone()
    dirty[0, 5000:] = float("nan")
    lengths = torch.tensor([5000, 9000])
    clean[0, 5000:] = 0.0
    torch.testing.assert_close(extractor.features(dirty, lengths), extractor.features(clean, lengths), rtol=0, atol=0)
    out = extractor(dirty, sampling_rate=32000, lengths=[5000, 9000])
    torch.testing.assert_close(out.input_values, extractor.features(clean, lengths)[0], rtol=0, atol=0)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = torch.from_numpy(np.stack([noise(20000, s) for s in range(5)]))
    lengths = torch.tensor([20000, 400, 16000, 19999, 8000])
    extractor = LaennecFeatureExtractor("ast")
    whole = extractor.features(waves, lengths)[0]
    for chunk in (1, 7, 130):
        monkeypatch.setattr("laennec.audio.filterbanks._CHUNK_FRAMES_CPU", chunk)
        torch.testing.assert_close(extractor.features(waves, lengths)[0], whole, atol=1e-5, rtol=0)


def naive_fit(wave: np.ndarray, samples: int, rule: str, fade: int, keep: str) -> np.ndarray:
    """One waveform at its length, by numpy."""
    if len(wave) > samples:
        start = {"first": 0, "last": len(wave) - samples, "center": (len(wave) - samples) // 2}[keep]
        return wave[start : start + samples]
    if rule == "crop":
        return wave
    if rule == "zero":
        before = (samples - len(wave)) // 2
        return np.pad(wave, (before, samples - len(wave) - before))
    whole = samples // len(wave) * len(wave) if rule == "repeat_pad" else samples
    fitted = np.pad(np.resize(wave, whole), (0, samples - whole)).astype(np.float32)
    if fade:
        fitted[-fade:] *= 1 - np.linspace(0, 1, fade, dtype=np.float32)
    return fitted


@pytest.mark.parametrize("rule", ["repeat", "repeat_pad", "zero", "crop"])
@pytest.mark.parametrize("keep", ["first", "last", "center"])
def test_batched_length_rules_equal_the_rule_for_one_waveform(rule: str, keep: str) -> None:
    target, fade = 3200, 500 if rule == "repeat" else 0
    extractor = LaennecFeatureExtractor("ast", length=rule, duration_s=0.2, fade_s=fade / 16000, keep=keep)
    waves = [noise(n, n) for n in (900, 3199, 3200, 3201, 7000)]
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waves], batch_first=True)
    fitted, lengths = extractor.fit(padded, torch.tensor([len(w) for w in waves]))
    for i, wave in enumerate(waves):
        expected = naive_fit(wave, target, rule, fade, keep)
        assert int(lengths[i]) == len(expected)
        np.testing.assert_allclose(fitted[i, : len(expected)].numpy(), expected, atol=1e-6)
    if rule != "crop":
        assert bool(extractor(waves, sampling_rate=16000).attention_mask.all())


@pytest.mark.parametrize("keep", ["first", "last", "center"])
@pytest.mark.parametrize("samples", [1, 700, 3199, 3200, 3201, 7000])
def test_repeated_waveforms_are_equal_to_the_bit_with_and_without_padding(samples: int, keep: str) -> None:
    extractor = LaennecFeatureExtractor("ast", length="repeat", duration_s=0.2, keep=keep)
    waves, lengths = torch.from_numpy(np.stack([noise(samples, seed) for seed in (1, 2)])), torch.full((2,), samples)
    alone, padded = (extractor.fit(each, lengths) for each in (waves, torch.nn.functional.pad(waves, (0, 9))))
    for one, other in zip(alone, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def fitted(wave: Any, rate: int, duration_s: float, rule: str, fade_s: float = 0.0, keep: str = "first") -> np.ndarray:
    extractor = LaennecFeatureExtractor(
        "waveform", sampling_rate=rate, low_hz=0.0, high_hz=rate / 2, window_samples=2, length=rule,
        duration_s=duration_s, fade_s=fade_s, keep=keep,
    )  # fmt: skip
    wave = torch.tensor(np.array(wave, np.float32))[None]
    return extractor.fit(wave, torch.tensor([wave.shape[1]]))[0][0].numpy()


def test_lengths_by_reference(shared_root: Path) -> None:
    cases = {
        case["id"]: (case["inputs"], case["expected"])
        for name in ("audio_frontend", "waveform_rules")
        for case in json.loads((shared_root / "conformance" / f"{name}.json").read_text())["cases"]
    }
    for name in ("cut_pad_repeat_5", "cut_pad_zero_40"):
        inputs, expected = cases[name]
        fade_s = 1 / 16 if inputs["pad_types"] == "repeat" else 0.0
        found = fitted(inputs["audio"], inputs["sample_rate"], inputs["desired_length"], inputs["pad_types"], fade_s)
        np.testing.assert_allclose(found, expected["audio"], rtol=1e-6, atol=1e-7)
    inputs, expected = cases["cycleguardian_align_short"]
    found = fitted(inputs["audio"], inputs["sample_rate"], inputs["desiredLength"], "repeat", keep="last")
    np.testing.assert_allclose(found, expected["audio"], rtol=1e-6, atol=1e-7)
    inputs, expected = cases["patchmix_cycle_chain"]  # the authors fade the recording before they cut it
    rate, recording = inputs["sample_rate"], np.array(inputs["recording"], np.float32)
    ramp = np.linspace(0, 1, rate // 16, dtype=np.float32)
    recording[: len(ramp)] *= ramp
    recording[-len(ramp) :] *= 1 - ramp
    for (start_s, end_s, *_), wanted in zip(inputs["annotations"], expected["cycles"], strict=True):
        piece = cut(recording, rate, start_s, end_s)
        found = fitted(piece, rate, inputs["desired_length"], inputs["pad_types"], 1 / 16)
        assert len(piece) == wanted["length"]
        np.testing.assert_allclose(found, wanted["padded"], rtol=1e-5, atol=1e-6)


def test_a_too_short_waveform_is_named() -> None:
    extractor = LaennecFeatureExtractor("ast")
    with pytest.raises(
        TooShortError, match=r"waveform 1: 399 samples \(24\.9 ms at 16000 Hz\).*400.*25\.0 ms.*repeat"
    ) as e:
        extractor([noise(400), noise(399)], sampling_rate=16000)
    assert (e.value.index, e.value.samples) == (1, 399)
    assert isinstance(e.value, InputError)
    with pytest.raises(TooShortError):
        extractor(np.zeros(0, np.float32), sampling_rate=16000)
    with pytest.raises(TooShortError):
        LaennecFeatureExtractor("song2021")(np.zeros(0, np.float32), sampling_rate=16000)
    # the unchecked core gives it no frame
    values, mask = extractor.features(torch.zeros(2, 800), torch.tensor([300, 800]))
    assert mask.sum(1).tolist() == [0, 3]
    assert float(values[0].abs().sum()) == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([np.zeros(16000), np.array([0.0] * 800 + [np.nan])], "waveform 1 .*not finite"),
        (np.full(16000, np.inf), "not finite"),
        ([np.zeros((2, 16000))], r"shape \(2, 16000\); give one channel"),
        (np.zeros((1, 2, 16000)), r"shape \(1, 2, 16000\)"),
        (np.zeros(16000, np.int16), "int16; give floats"),
        ([], "no waveform"),
    ],
)
def test_bad_waveforms_are_refused_with_a_remedy(bad: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LaennecFeatureExtractor("ast")(bad, sampling_rate=16000)


def test_the_rate_must_be_given_and_right() -> None:
    extractor = LaennecFeatureExtractor("ast")
    with pytest.raises(ValueError, match="no sampling_rate was given; pass sampling_rate=16000"):
        extractor(noise(16000))
    with pytest.raises(ValueError, match=r"44100 Hz .*16000 Hz; resample"):
        extractor(noise(16000), sampling_rate=44100)


def test_sixteen_bit_values_are_warned_about() -> None:
    with pytest.warns(UserWarning, match="divide 16-bit values by 32768"):
        LaennecFeatureExtractor("beats")(noise(16000) * 32768, sampling_rate=16000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LaennecFeatureExtractor("beats")(noise(16000), sampling_rate=16000)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"preset": "mfcc"}, ValueError, "it can be ast, beats"),
        ({"lenght": "zero"}, TypeError, "did you mean 'length'"),
        ({"length": "mirror"}, ValueError, "length is 'mirror'; it should be 'natural', 'repeat'"),
        ({"length": "repeat"}, ValueError, "needs duration_s"),
        ({"duration_s": 8.0}, ValueError, "no effect with length='natural'"),
        ({"length": "zero", "duration_s": 0.01}, ValueError, "shorter than one window"),
        ({"length": "zero", "duration_s": 1.0, "fade_s": 0.1}, ValueError, "fade_s"),
        ({"high_hz": 9000.0}, ValueError, "do not fit 16000 Hz"),
        ({"std": 0.0}, ValueError, "std"),
        ({"feature_version": 99}, InputError, "feature version 99"),
    ],
)
def test_settings_without_meaning_are_refused(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LaennecFeatureExtractor(**kwargs)


@pytest.mark.parametrize(
    "how", [{"preset": preset} for preset in PRESETS] + [{"preset": "ast", "length": "crop", "duration_s": 1.5}]
)
def test_a_saved_extractor_comes_back_whole(how: dict, tmp_path: Path) -> None:
    extractor = LaennecFeatureExtractor(**how, mean=-3.3333333333333335)
    extractor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert set(asdict(extractor.front)) <= set(saved)  # every number, not the preset's name alone
    assert saved["feature_version"] == FEATURE_VERSION and saved["feature_size"] == extractor.front.feature_size
    for again in (LaennecFeatureExtractor.from_pretrained(tmp_path), pickle.loads(pickle.dumps(extractor))):
        assert again.to_dict() == extractor.to_dict()
        assert again.front == extractor.front
        assert again.fingerprint() == extractor.fingerprint()


def test_the_fingerprint_moves_with_everything_that_matters_and_nothing_else() -> None:
    base = LaennecFeatureExtractor("ast")
    variants = [
        LaennecFeatureExtractor("ast", mean=0.0),
        LaennecFeatureExtractor("ast", window="povey"),
        LaennecFeatureExtractor("ast", length="repeat", duration_s=8.0),
        LaennecFeatureExtractor("ast", length="repeat", duration_s=8.0, fade_s=0.1),
        LaennecFeatureExtractor("ast", length="repeat", duration_s=8.0, keep="last"),
        LaennecFeatureExtractor("beats"),
    ]
    assert len({e.fingerprint() for e in [base, *variants]}) == 7
    same = LaennecFeatureExtractor("beats", **asdict(PRESETS["ast"]))
    assert same.fingerprint() == base.fingerprint()


def test_it_is_called_as_transformers_calls_it() -> None:
    extractor = LaennecFeatureExtractor("ast")
    out = extractor(noise(16000).tolist(), sampling_rate=16000, return_tensors="np", padding=True, truncation=False)
    assert isinstance(out["input_values"], np.ndarray)
    assert out["input_values"].shape == (1, 98, 128)
    assert list(extractor(noise(16000), sampling_rate=16000, return_attention_mask=False)) == ["input_values"]
    with pytest.raises(TypeError, match="max_length=1024"):
        extractor(noise(16000), sampling_rate=16000, max_length=1024)
    single = [extractor(noise(n), sampling_rate=16000) for n in (4000, 8000)]
    rows = [{k: v[0].numpy() for k, v in s.items()} for s in single]
    padded = extractor.pad(rows, return_tensors="pt")
    together = extractor([noise(4000), noise(8000)], sampling_rate=16000)
    torch.testing.assert_close(padded["input_values"], together.input_values, atol=1e-5, rtol=0)
    assert padded["attention_mask"].tolist() == together.attention_mask.tolist()


@pytest.mark.parametrize("preset", ["whisper", "whisper-128", "clap", "clap-fused"])
def test_filters_that_are_not_kaldis_are_librosas(preset):
    import librosa

    front = PRESETS[preset]
    slaney = front.mel_scale == "slaney"
    wanted = librosa.filters.mel(
        sr=front.sampling_rate, n_fft=front.fft_samples, n_mels=front.num_mel_bins, fmin=front.low_hz,
        fmax=front.high_hz, htk=not slaney, norm="slaney" if slaney else None, dtype=np.float64,
    )  # fmt: skip
    np.testing.assert_allclose(mel_filters(front).numpy(), wanted.T, atol=1e-8)
