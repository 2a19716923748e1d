"""The spectrogram of a recording for plots, up to 2 kHz, where lung sounds are.

Decisions: it is accumulated block by block, and its columns are averaged in pairs whenever there are more than a plot
can show, so hours need no more memory than minutes.
"""

import numpy as np
from numpy.typing import NDArray

from laennec.audio.recording import Waveform
from laennec.audio.streaming import RecordingStream

TOP_HZ, RANGE_DB = 2000.0, 55.0
_HEART_HZ = 100.0
_MOST_BINS = 160

FloatArray = NDArray[np.float32]


class Spectrogram:
    """The mean power of a recording in columns of equal length, accumulated from its blocks.

    Args:
        frame_s: Length of a frame, about.
        overlap: Number of frames that cover a sample.
        most_columns: Columns are averaged in pairs where there are more.
    """

    def __init__(self, frame_s: float = 0.064, overlap: int = 2, most_columns: int = 1600) -> None:
        self.frame_s, self.overlap, self.most_columns = frame_s, overlap, most_columns
        self.columns: FloatArray = np.zeros((0, 0), np.float32)  # (columns, bins), mean power
        self.column_s = 0.0
        self.top_hz = 0.0  # upper edge of the highest bin
        self._sound: Waveform = np.zeros(0, np.float32)
        self._frames: FloatArray = np.zeros((0, 0), np.float32)  # too few for a column yet
        self._per_column = 1
        self._size = 0

    def add(self, stream: RecordingStream, block: Waveform) -> None:
        """Add the next block of a recording."""
        self.extend(block, stream.sampling_rate)

    def extend(self, block: Waveform, rate: int) -> None:
        """Add the next block of sound."""
        if not self._size:
            self._size = max(2 ** round(np.log2(self.frame_s * rate)), 8)
            bins = min(self._size // 2, int(TOP_HZ / rate * self._size))
            self.top_hz = bins * rate / self._size
            self.columns = np.zeros((0, bins), np.float32)
            self._frames = np.zeros((0, bins), np.float32)
        hop = self._size // self.overlap
        self.column_s = self._per_column * hop / rate
        sound = np.concatenate([self._sound, block])
        frames = max((len(sound) - self._size) // hop + 1, 0)
        if frames:
            windows = np.lib.stride_tricks.sliding_window_view(sound, self._size)[: frames * hop : hop]
            taper = np.hanning(self._size).astype(np.float32)
            spectrum = np.fft.rfft(windows * taper)[:, : self.columns.shape[1]]
            self._accumulate((spectrum.real**2 + spectrum.imag**2).astype(np.float32))
            self.column_s = self._per_column * hop / rate
        self._sound = sound[frames * hop :]

    def _accumulate(self, power: FloatArray) -> None:
        power = np.concatenate([self._frames, power])
        while True:
            columns = len(power) // self._per_column
            whole = power[: columns * self._per_column].reshape(columns, self._per_column, power.shape[1])
            whole = whole.mean(1) if columns else self.columns[:0]
            if len(self.columns) + columns <= self.most_columns:
                break
            if len(self.columns) % 2:  # an odd last column becomes frames again
                power = np.concatenate([np.repeat(self.columns[-1:], self._per_column, 0), power])
                self.columns = self.columns[:-1]
            self.columns = (self.columns[::2] + self.columns[1::2]) * np.float32(0.5)
            self._per_column *= 2
        self.columns = np.concatenate([self.columns, whole], dtype=np.float32)
        self._frames = power[columns * self._per_column :]

    def level_db(self) -> FloatArray:
        """Level in dB relative to the loudest above 100 Hz, (bins, columns), merged into at most 160 bins."""
        power = self.columns
        if not power.size:
            return np.zeros((1, 1), np.float32)
        # heart sounds and handling noise are below 100 Hz and louder than the lungs
        first = min(int(_HEART_HZ / max(self.top_hz, 1.0) * power.shape[1]), power.shape[1] - 1)
        loudest = max(float(np.percentile(power[:, first:], 99.8)), 1e-20)
        merged = -(-power.shape[1] // _MOST_BINS)
        if merged > 1:
            bins = power.shape[1] // merged
            power = power[:, : bins * merged].reshape(len(power), bins, merged).mean(2)
        return np.asarray(np.clip(10 * np.log10(power / loudest + 1e-12), -RANGE_DB, 0).T, dtype=np.float32)
