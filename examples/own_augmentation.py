"""An own augmentation: a callable (waveform, sampling_rate, generator) -> waveform.

In a recipe: `augment: {custom: [{class: own_augmentation:Muffle, probability: 0.5}]}`, further keys are arguments. Run
it: `python examples/own_augmentation.py`.
"""

import numpy as np
from scipy.signal import lfilter

import laennec
from laennec.audio.augmentation import WaveformAugmentation


class Muffle:
    """A stethoscope that is pressed less firmly: a first-order low-pass filter with a random cutoff.

    Args:
        probability: Share of the cycles that are changed.
        low_hz: Lowest cutoff.
        high_hz: Highest cutoff.
    """

    def __init__(self, probability: float = 0.5, low_hz: float = 300.0, high_hz: float = 1200.0) -> None:
        self.probability, self.low_hz, self.high_hz = probability, low_hz, high_hz

    def __call__(self, waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """All randomness comes from the generator, which depends on (seed, epoch, cycle), so runs can be resumed."""
        chance, place = generator.random(2)
        if chance >= self.probability:
            return waveform
        cutoff = self.low_hz + (self.high_hz - self.low_hz) * place
        keep = np.exp(-2 * np.pi * cutoff / sampling_rate)
        return lfilter([1 - keep], [1, -keep], waveform).astype(np.float32)


def main(out: str = "runs/own_augmentation", steps: int = -1) -> None:
    """Apply it to one waveform, then train with it."""
    augmentation = WaveformAugmentation(transforms=(Muffle(probability=1.0),))
    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    print("power:", augmentation(noise, 8000, seed=0, epoch=0, cycle_index=0).var() / noise.var())
    recipe = laennec.Recipe.from_yaml(
        "demo/add_cnn",
        output_dir=out,
        train__max_steps=steps,
        augment__custom=[{"class": "own_augmentation:Muffle", "probability": 0.5}],
    )
    print("run:", laennec.train(recipe))


if __name__ == "__main__":
    main()
