"""A physical model of what a stethoscope hears, from turbulent air to the samples of a device.

Decisions: sounds are made at 8 kHz (lung sounds lie below 2.5 kHz); chest, stethoscope, noise and the change to the
device's own rate are then one multiplication in the frequency domain, with causal responses so that nothing sounds
before it begins. What is put in is returned as events with exact times, and nothing else in the mixture is a crackle
or a wheeze: heart sounds, friction of the chest piece and noise are shaped so as not to pass for one. Every draw comes
from a counter-based generator keyed by names (seed, patient, stretch, cycle): no sound depends on which others exist.

Figures: two-cycle duration about 5 ms (fine) and 15 ms (coarse), initial deflection 0.5 to 0.9 ms and 1.25 ms, wheezes
of 100 to 1000 Hz that last longer than 80 ms (CORSA guidelines, Sovijarvi et al., European Respiratory Review 2000).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

SOURCE_RATE_HZ = 8000

FINE: Final = "fine crackle"
COARSE: Final = "coarse crackle"
WHEEZE: Final = "wheeze"
Kind = Literal["fine crackle", "coarse crackle", "wheeze"]

Signal = npt.NDArray[np.float64]
Spectrum = npt.NDArray[np.complex128]


def stream(*key: object) -> np.random.Generator:
    """A counter-based generator that depends on nothing but the key."""
    digest = hashlib.sha256("\n".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@dataclass(frozen=True)
class Event:
    """One adventitious sound that was put in.

    Attributes:
        start_s: Where it begins, in seconds.
        end_s: Where it has died away.
        kind: Fine crackle, coarse crackle or wheeze.
        frequency_hz: Mean fundamental of a wheeze; None for a crackle.
    """

    start_s: float
    end_s: float
    kind: Kind
    frequency_hz: float | None = None


@dataclass(frozen=True)
class Response:
    """A smooth causal frequency response: high-pass, low-pass and one resonance.

    Attributes:
        highpass_hz: Corner of the high-pass, of first order.
        lowpass_hz: Corner of the low-pass.
        lowpass_order: Number of its equal poles, 6 dB per octave each.
        peak_hz: Centre of the resonance.
        peak_db: Its gain; 0 for none.
        peak_q: Its sharpness.
    """

    highpass_hz: float
    lowpass_hz: float
    lowpass_order: int
    peak_hz: float = 200.0
    peak_db: float = 0.0
    peak_q: float = 1.0

    def muffled(self, factor: float) -> "Response":
        """The same path through more tissue: its low-pass corner divided by the factor."""
        return replace(self, lowpass_hz=self.lowpass_hz / factor)

    def at(self, frequency_hz: Signal) -> Spectrum:
        """The complex gain at these frequencies, same shape."""
        s = 1j * frequency_hz
        gain = s / (s + self.highpass_hz) * (self.lowpass_hz / (s + self.lowpass_hz)) ** self.lowpass_order
        width = self.peak_hz / self.peak_q
        boosted = s**2 + s * width * 10 ** (self.peak_db / 20) + self.peak_hz**2
        return np.asarray(gain * boosted / (s**2 + s * width + self.peak_hz**2))


@dataclass(frozen=True)
class Stethoscope:
    """A recording device.

    Attributes:
        sampling_rate: Of its files, in Hz.
        subtype: Sample format of its files.
        response: From the skin to the file.
        noise_db: Its own noise, relative to breath at peak flow.
        level_dbfs: How loud its files are.
        simultaneous: Whether it takes several chest locations at once (ICBHI's "mc").
    """

    sampling_rate: int
    subtype: Literal["PCM_16", "PCM_24"]
    response: Response
    noise_db: float
    level_dbfs: float
    simultaneous: bool


DEVICES = {
    "AKGC417L": Stethoscope(44100, "PCM_16", Response(12, 5000, 1), -50, -14, True),
    "Meditron": Stethoscope(44100, "PCM_16", Response(20, 1400, 2), -54, -22, False),
    "Litt3200": Stethoscope(4000, "PCM_16", Response(18, 800, 5, 560, 9, 2.5), -66, -24, False),
    "LittC2SE": Stethoscope(44100, "PCM_24", Response(20, 900, 2, 170, 5, 1.1), -46, -20, True),
}

# (chest wall, gain of the breath, gain of the heart); the trachea lets through far more than the lung's tissue
CHEST = {
    "Tc": (Response(60, 1300, 2, 700, 4, 1.0), 1.5, 0.5),
    "Al": (Response(50, 520, 2), 1.0, 1.0),
    "Ar": (Response(50, 540, 2), 1.0, 0.6),
    "Pl": (Response(50, 430, 2), 0.9, 0.4),
    "Pr": (Response(50, 440, 2), 0.9, 0.35),
    "Ll": (Response(50, 400, 2), 0.8, 0.7),
    "Lr": (Response(50, 410, 2), 0.8, 0.3),
}


def crackle(two_cycle_s: float, deflection_s: float, rate: int = SOURCE_RATE_HZ) -> Signal:
    """One crackle: a damped sinusoid whose period widens.

    The phase is 4 pi (t / two_cycle)^a: two cycles end at the two-cycle duration, and a is such that the first half
    cycle ends at the initial deflection width.

    Args:
        two_cycle_s: Two-cycle duration in seconds.
        deflection_s: Initial deflection width in seconds, below a quarter of the two-cycle duration.
        rate: Sampling rate in Hz.

    Returns:
        Waveform of twice the two-cycle duration, largest deflection 1.
    """
    exponent = np.log(0.25) / np.log(deflection_s / two_cycle_s)
    time = np.arange(round(2 * two_cycle_s * rate)) / rate
    decay = np.exp(-1.6 * time / two_cycle_s) * np.clip(2 - time / two_cycle_s, 0, 1)
    wave = np.sin(4 * np.pi * (time / two_cycle_s) ** exponent) * decay
    return np.asarray(wave / np.abs(wave).max())


def wheeze(duration_s: float, frequency_hz: float, rng: np.random.Generator, rate: int = SOURCE_RATE_HZ) -> Signal:
    """One wheeze: a slowly gliding fundamental with a few weaker harmonics.

    Args:
        duration_s: Length in seconds, above 0.08.
        frequency_hz: Mean fundamental, 100 to 1000 Hz; the glide stays in that range.
        rng: Draws glide, vibrato, harmonics and swell.
        rate: Sampling rate in Hz.

    Returns:
        Waveform whose root mean square is 1 in the middle.
    """
    position = (np.arange(round(duration_s * rate)) + 0.5) / (duration_s * rate)
    glide, vibrato = rng.uniform(-0.25, 0.12), rng.uniform(0, 0.025)
    wobble = np.sin(2 * np.pi * (rng.uniform(1, 4) * duration_s * position + rng.random()))
    bend = glide * (position - 0.5) + vibrato * wobble
    fundamental = np.clip(frequency_hz * (1 + bend - bend.mean()), 100, 1000)
    phase = 2 * np.pi * np.cumsum(fundamental) / rate
    fall_db, count = rng.uniform(9, 18), int(rng.integers(2, 5))
    wave = sum(10 ** (-fall_db * k / 20) * np.sin((k + 1) * phase + rng.uniform(0, 2 * np.pi)) for k in range(count))
    edge_s = min(0.06, duration_s / 3)
    edges = np.clip(np.minimum(position, 1 - position) * duration_s / edge_s, 0, 1)
    swell = np.sin(np.pi / 2 * edges) ** 2 * (
        1 + 0.25 * np.sin(2 * np.pi * (position * rng.uniform(0.5, 2) + rng.random()))
    )
    return np.asarray(wave * swell * np.sqrt(2))


def flow(duration_s: float, inspiration_share: float, rate: int = SOURCE_RATE_HZ) -> tuple[Signal, Signal]:
    """Air flow of a cycle, 0 to 1, as (inspiration, expiration): a rounded arch; a quick rise, a slow fall and rest."""
    position = np.arange(round(duration_s * rate)) / (duration_s * rate)
    inward = np.clip(position / inspiration_share, 0, 1)
    outward = np.clip((position - inspiration_share - 0.01) / (0.9 - inspiration_share), 0, 1)
    arch = np.sin(np.pi * inward) ** 0.8
    release = outward**0.6 * np.exp(-1.8 * outward) * np.cos(np.pi / 2 * outward)
    return np.asarray(arch), np.asarray(release / release.max())


def breath(duration_s: float, inspiration_share: float, rng: np.random.Generator, rate: int = SOURCE_RATE_HZ) -> Signal:
    """Turbulent noise of one cycle without adventitious sounds, before the chest wall.

    Noise grows with flow and brightens with it: a low band follows the flow, a higher band its square. Expiration is
    quieter and duller than inspiration. Root mean square about 1 at the peak of inspiration.
    """
    sound = np.zeros(round(duration_s * rate))
    for current, gain, low_hz, high_hz in zip(
        flow(duration_s, inspiration_share, rate), (1, 0.5), (230, 150), (650, 340), strict=True
    ):
        noise = rng.standard_normal(len(sound))
        turbulence = np.exp(0.25 * coloured(rng.standard_normal(len(sound)), 8, 2, rate))
        low, high = coloured(noise, low_hz, 2, rate), coloured(noise, high_hz, 2, rate)
        sound += gain * turbulence * (0.8 * current * low + 0.6 * current**2 * high)
    return sound


def coloured(noise: Signal, corner_hz: float, order: int, rate: int = SOURCE_RATE_HZ) -> Signal:
    """White noise through a low-pass of that many poles, scaled to keep its root mean square near 1."""
    size = -(-len(noise) // 1000) * 1000  # lengths with large prime factors transform several times slower
    gain = (1 + (np.fft.rfftfreq(size, 1 / rate) / corner_hz) ** 2) ** (-order / 2)
    return np.asarray(np.fft.irfft(np.fft.rfft(noise, size) * gain / np.sqrt(np.mean(gain**2)), size)[: len(noise)])


def crackles(
    duration_s: float, inspiration_share: float, kind: Kind, severity: float, rng: np.random.Generator
) -> tuple[Signal, list[Event]]:
    """The crackles of one cycle: fine ones many and late in inspiration, coarse ones fewer, early and in expiration."""
    fine = kind == FINE
    count = int(rng.integers(5, 11)) + round(4 * severity) if fine else int(rng.integers(3, 6)) + round(2 * severity)
    loudness = (4.5 if fine else 5.0) * (0.6 + 0.8 * severity)
    sound, events = np.zeros(round(duration_s * SOURCE_RATE_HZ)), []
    for _ in range(count):
        if fine:
            place = inspiration_share * (0.5 + 0.46 * rng.beta(1.6, 1.2))
            shape = float(np.clip(rng.normal(5.0, 0.9), 3.5, 8.0)) / 1e3, rng.uniform(0.5, 0.9) / 1e3
        else:
            early = rng.random() < 0.6
            place = inspiration_share * rng.uniform(0.06, 0.5) if early else rng.uniform(inspiration_share + 0.06, 0.75)
            shape = (
                float(np.clip(rng.normal(15, 2), 11, 21)) / 1e3,
                float(np.clip(rng.normal(1.25, 0.1), 1.0, 1.5)) / 1e3,
            )
        wave = crackle(*shape) * loudness * np.exp(0.35 * rng.standard_normal()) * rng.choice((-1.0, 1.0))
        events.append(Event(*_add(sound, wave, place * duration_s), kind))
    return sound, sorted(events, key=lambda event: event.start_s)


def wheezes(
    duration_s: float, inspiration_share: float, frequency_hz: float, severity: float, rng: np.random.Generator
) -> tuple[Signal, list[Event]]:
    """The wheezes of one cycle: in expiration, now and then a second voice or one in inspiration."""
    sound, events = np.zeros(round(duration_s * SOURCE_RATE_HZ)), []
    begin, end = inspiration_share + 0.05, 0.88
    spans = [(begin, end)]
    if rng.random() < 0.2:
        spans.append((0.15 * inspiration_share, 0.9 * inspiration_share))
    if rng.random() < 0.25:
        spans.append((begin, end))
    for voice, (first, last) in enumerate(spans):
        room_s = (last - first) * duration_s
        length_s = float(np.clip(room_s * rng.uniform(0.45, 0.95), 0.1, room_s))
        start_s = first * duration_s + rng.uniform(0, room_s - length_s)
        centre = frequency_hz * np.exp(0.07 * rng.standard_normal()) * (1.5 if voice == 2 else 1.0)
        centre = float(np.clip(centre, 115, 880))
        # high voices come from larger airways and are louder at the source: the chest wall takes more from them
        loudness = (0.15 + 0.3 * severity) * (1 + (centre / 400) ** 2) ** 0.5 * np.exp(0.4 * rng.standard_normal())
        wave = wheeze(length_s, centre, rng)
        events.append(Event(*_add(sound, wave * loudness, start_s), WHEEZE, centre))
    return sound, sorted(events, key=lambda event: event.start_s)


def heartbeats(duration_s: float, beats_per_minute: float, rng: np.random.Generator) -> Signal:
    """First and second heart sounds, largest deflection about 1, with a rhythm that wanders a little."""
    sound = np.zeros(round(duration_s * SOURCE_RATE_HZ))
    beat_s = rng.uniform(0, 60 / beats_per_minute)
    while beat_s < duration_s:
        period_s = 60 / beats_per_minute * (1 + 0.04 * rng.standard_normal())
        systole_s = 0.2 + 0.13 * period_s
        for delay_s, gain, (low_hz, high_hz), fade_s in ((0, 1.0, (38, 62), 0.035), (systole_s, 0.7, (52, 82), 0.024)):
            time = np.arange(round(0.14 * SOURCE_RATE_HZ)) / SOURCE_RATE_HZ
            tone = np.sin(2 * np.pi * low_hz * time) + 0.6 * np.sin(2 * np.pi * high_hz * time + rng.uniform(0, 2))
            wave = gain * tone * np.sin(np.pi / 2 * np.clip(time / 0.012, 0, 1)) ** 2 * np.exp(-time / fade_s)
            _add(sound, wave, beat_s + delay_s)
        beat_s += period_s
    return sound


def friction(duration_s: float, rng: np.random.Generator) -> Signal:
    """The chest piece moving on skin: now and then a soft burst of noise, longer and duller than any crackle."""
    sound = np.zeros(round(duration_s * SOURCE_RATE_HZ))
    for _ in range(rng.poisson(0.12 * duration_s)):
        wave = coloured(rng.standard_normal(round(rng.uniform(0.05, 0.14) * SOURCE_RATE_HZ)), rng.uniform(60, 150), 4)
        wave *= np.hanning(len(wave)) * rng.uniform(0.5, 2.5)
        _add(sound, wave, rng.uniform(0, max(duration_s - 0.2, 0.1)))
    return sound


def auscultate(
    sources: Sequence[tuple[Signal, Response | None, float]], device: Stethoscope, rate: int, rng: np.random.Generator
) -> Signal:
    """What the device writes: every source through its path, response and noises, at the file's rate and level.

    Args:
        sources: (waveform at `SOURCE_RATE_HZ`, path to the skin or None, gain); waveforms of one length, whose
            duration makes a whole number of samples at both rates.
        device: The stethoscope.
        rate: Sampling rate of the file in Hz.
        rng: Draws the noises and the level.

    Returns:
        Waveform at `rate`, within -0.98 to 0.98.
    """
    samples = len(sources[0][0])
    length = samples * rate // SOURCE_RATE_HZ
    frequency = np.arange(length // 2 + 1) * rate / length
    common = min(samples, length) // 2  # bins below both Nyquist frequencies
    heard = np.zeros(len(frequency), dtype=np.complex128)
    for waveform, path, gain in sources:
        spectrum = np.fft.rfft(waveform)[:common] * gain * (length / samples)
        heard[:common] += spectrum * path.at(frequency[:common]) if path else spectrum
    # noise as a density per hertz, the same whatever the rate of the file
    noise = rng.standard_normal(len(frequency)) + 1j * rng.standard_normal(len(frequency))
    noise *= np.sqrt(length / 2 * rate / SOURCE_RATE_HZ)
    body, room, electronics = 10 ** (np.array([34, -22, device.noise_db]) / 20 + rng.normal(0, [0.25, 0.2, 0.15]))
    outside = noise * (body / (1 + (frequency / 15) ** 2) + room / (1 + (frequency / 250) ** 2))
    # the same draws read from the other end are as good as new ones for a part of the spectrum far away
    inside = noise[::-1] * electronics / (1 + (frequency / 9000) ** 2)
    written = np.fft.irfft((heard + outside) * device.response.at(frequency) + inside, length)
    level = 10 ** ((device.level_dbfs + rng.normal(0, 3)) / 20) / np.sqrt(np.mean(written**2))
    return np.asarray(written * min(level, 0.98 / np.abs(written).max()))


def _add(sound: Signal, wave: Signal, start_s: float) -> tuple[float, float]:
    """Add a wave at a time and give start and end to the sample; what would stand over the end is left off."""
    first = min(round(start_s * SOURCE_RATE_HZ), len(sound) - 1)
    wave = wave[: len(sound) - first]
    sound[first : first + len(wave)] += wave
    return first / SOURCE_RATE_HZ, (first + len(wave)) / SOURCE_RATE_HZ
