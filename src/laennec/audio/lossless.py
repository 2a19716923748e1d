"""Sounds in fewer bytes, no sample changed.

Decisions: FLAC holds integers of 8 to 24 bit exactly, so these become FLAC; everything else (floating point, 32 bit,
compressed formats) stays what it is, or becomes 32-bit floating point WAV where it has to be cut. What is written is
read back and compared before it is believed. A WAV file also keeps what stands before and after its samples, so that
the file itself, with its hash, can be had again and not only its sound.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile

from laennec.audio.recording import DecodeError, Waveform

_Samples = npt.NDArray[np.int32]  # (samples, channels), the sample in the highest bits
_FLAC_SUBTYPES = {"PCM_S8": "PCM_S8", "PCM_U8": "PCM_S8", "PCM_16": "PCM_16", "PCM_24": "PCM_24"}
_SUBTYPE_OF_BYTES = {1: "PCM_S8", 2: "PCM_16", 3: "PCM_24"}
_BYTES_OF_SUBTYPE = {subtype: size for size, subtype in _SUBTYPE_OF_BYTES.items()}
_MAX_CHUNKS = 4096
_BLOCK_FRAMES = 1 << 18


@dataclass(frozen=True)
class Packed:
    """A sound file in fewer bytes.

    Attributes:
        audio: FLAC, or the file itself where FLAC cannot stand for it.
        head: What stood before the samples of a WAV file; None where `audio` is the file itself.
        tail: What stood after them.
    """

    audio: bytes
    head: bytes | None = None
    tail: bytes | None = None


def encode(frames: Waveform, sampling_rate: int, subtype: str) -> tuple[bytes, str]:
    """Write samples so that reading them gives the same samples.

    Args:
        frames: float32, shape (samples, channels), as `read_frames` gives them.
        sampling_rate: In Hz.
        subtype: The sample format they come from, in libsndfile's word.

    Returns:
        (the content of a sound file, ".flac" or ".wav").
    """
    if subtype in _FLAC_SUBTYPES:
        samples = (frames * np.float32(2.0**31)).astype(np.int32)  # exact: 24 bits are all that float32 needs here
        flac = _to_flac(samples, sampling_rate, _FLAC_SUBTYPES[subtype])
        if flac is not None:
            return flac, ".flac"
    file = io.BytesIO()
    soundfile.write(file, frames, sampling_rate, format="WAV", subtype="FLOAT")
    return file.getvalue(), ".wav"


def pack(content: bytes) -> Packed:
    """A sound file in fewer bytes, from which `unpack` makes exactly these again."""
    found = _wav_samples(content)
    if found is None:
        return Packed(content)
    first, last, channels, rate, width = found
    flac = _to_flac(_integers(content[first:last], channels, width), rate, _SUBTYPE_OF_BYTES[width])
    if flac is None:
        return Packed(content)
    packed = Packed(flac, content[:first], content[last:])
    try:
        same = unpack(packed, len(content)) == content
    except DecodeError:
        same = False
    return packed if same else Packed(content)


def unpack(packed: Packed, size: int) -> bytes:
    """The sound file that was packed.

    Args:
        packed: What `pack` gave.
        size: The file's size in bytes; not more than that is ever decoded.

    Raises:
        DecodeError: It is no such file of this size.
    """
    if packed.head is None:
        content = packed.audio
    else:
        samples = _from_flac(packed.audio, size)
        content = packed.head + samples + (packed.tail or b"")
    if len(content) != size:
        raise DecodeError("<packed>", f"{len(content)} bytes, not {size}; download it again")
    return content


def _to_flac(samples: _Samples, rate: int, subtype: str) -> bytes | None:
    """FLAC of these samples, or None where it would not hold them."""
    file = io.BytesIO()
    try:
        soundfile.write(file, samples, rate, format="FLAC", subtype=subtype)
        file.seek(0)
        read, read_rate = soundfile.read(file, dtype="int32", always_2d=True)
    except (RuntimeError, ValueError, TypeError):  # too many channels, a rate that FLAC has no word for
        return None
    return file.getvalue() if read_rate == rate and np.array_equal(read, samples) else None


def _from_flac(flac: bytes, most: int) -> bytes:
    """The samples as a WAV file has them; decoding stops when there are more than `most` bytes of them."""
    parts: list[bytes] = []
    try:
        with soundfile.SoundFile(io.BytesIO(flac)) as sound:
            width = _BYTES_OF_SUBTYPE[sound.subtype]
            while len(block := sound.read(_BLOCK_FRAMES, dtype="int32", always_2d=True)):
                parts.append(_bytes_of(block, width))
                if sum(map(len, parts)) > most:
                    raise DecodeError("<packed>", f"more than {most} bytes of samples; download it again")
    except (RuntimeError, KeyError) as error:  # soundfile's own errors are RuntimeErrors
        raise DecodeError("<packed>", "damaged or no FLAC; download it again") from error
    return b"".join(parts)


def _wav_samples(content: bytes) -> tuple[int, int, int, int, int] | None:
    """(first byte of the samples, the one after them, channels, rate, bytes a sample) of a plain integer WAV file."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return None
    position, form = 12, None
    for _ in range(_MAX_CHUNKS):
        if len(content) < position + 8:
            return None
        name, (length,) = content[position : position + 4], struct.unpack_from("<I", content, position + 4)
        first = position + 8
        if name == b"fmt " and length >= 16 and len(content) >= first + length:
            tag, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", content, first)
            if tag == 0xFFFE and length >= 26:
                (tag,) = struct.unpack_from("<H", content, first + 24)
            plain = tag == 1 and bits in (8, 16, 24) and channels > 0 and align == channels * bits // 8
            form = (channels, rate, bits // 8) if plain else None
        if name == b"data":
            last = first + length
            whole = form is not None and length > 0 and last <= len(content) and length % (form[0] * form[2]) == 0
            return (first, last, *form) if whole and form is not None else None
        position = first + length + (length & 1)
    return None


def _integers(content: bytes, channels: int, width: int) -> _Samples:
    """Little-endian samples (8 bit: unsigned) in the highest bits of int32, shape (samples, channels)."""
    if width == 1:
        wide = (np.frombuffer(content, dtype=np.uint8).astype(np.int32) - 128) << 24
    elif width == 2:
        wide = np.frombuffer(content, dtype="<i2").astype(np.int32) << 16
    else:
        padded = np.zeros((len(content) // 3, 4), dtype=np.uint8)
        padded[:, 1:] = np.frombuffer(content, dtype=np.uint8).reshape(-1, 3)
        wide = padded.reshape(-1).view("<i4").astype(np.int32)
    return wide.reshape(-1, channels)


def _bytes_of(samples: _Samples, width: int) -> bytes:
    """The reverse of `_integers`."""
    if width == 1:
        return ((samples >> 24) + 128).astype(np.uint8).tobytes()
    if width == 2:
        return (samples >> 16).astype("<i2").tobytes()
    return np.ascontiguousarray(samples.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
