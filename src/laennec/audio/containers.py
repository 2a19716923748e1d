"""What the header of an audio file declares, compared with the size of the file.

Decisions: libsndfile decodes a WAV, AIFF, AU, CAF or Ogg file that was cut short without an error, so its declared
length is checked here before it is decoded. A file's type is read from its content, never from its extension. In a WAV
header, a length of 0 or of all ones means unknown: the recorder wrote to a pipe and could not go back. An MP3 without a
Xing, Info or VBRI table declares no length, so a cut one cannot be detected. A cut FLAC file is detected by libsndfile
or by counting the decoded frames.
"""

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

_MAX_CHUNKS = 4096  # of which no more are read, in a file of empty chunks
_OGG_PAGE_MAX = 65307
_RIFF_MAGIC = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<", b"FORM": ">"}
_W64_MAGIC = b"riff\x2e\x91\xcf\x11"


@dataclass(frozen=True)
class Declared:
    """What a header declares about the sound data."""

    missing: str = ""  # the part of the file that is cut short; "" for none
    # offset of a 4-byte length that a streaming writer left at 0 although sound follows, else None
    open_length_at: int | None = None


class SoundBytes:
    """A file object for libsndfile that tolerates damaged headers.

    Seeks to invalid positions do nothing, and a length left at 0 reads as all ones, because libsndfile takes 0 for an
    empty recording. `failed` is the error of the disk that ended reading; None for none.
    """

    def __init__(self, file: BinaryIO, open_length_at: int | None = None) -> None:
        self._file: Any = file
        self._at = open_length_at
        self.failed: OSError | None = None
        self.tell = file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek if the position is valid; return the position afterwards."""
        with suppress(OSError, ValueError):
            self._file.seek(offset, whence)
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; return the number of bytes read."""
        start = self.tell()
        try:
            count: int = self._file.readinto(buffer)
        except OSError as error:
            self.failed = error
            return 0
        if self._at is not None:
            first, last = max(self._at, start), min(self._at + 4, start + count)
            if first < last:
                memoryview(buffer).cast("B")[first - start : last - start] = b"\xff" * (last - first)
        return count


def read_declared(file: BinaryIO, size: int) -> Declared:
    """Compare the length that a header declares with the size of the file, by a few small reads."""
    start = _after_id3(file, size)
    magic = _bytes_at(file, start, 12)
    if magic[:4] in _RIFF_MAGIC:
        return _riff(file, size, start, magic)
    if magic[:8] == _W64_MAGIC:
        return _long_chunks(file, size, start + 40, 24)
    if magic[:4] == b"caff":
        return _long_chunks(file, size, start + 8, 12)
    if magic[:4] in (b".snd", b"dns."):
        return _au(file, size, start)
    return _ogg(file, size) if magic[:4] == b"OggS" else _mpeg(file, size, start)


def _bytes_at(file: BinaryIO, position: int, count: int) -> bytes:
    if position >> 62:  # a header may name any 64-bit position
        return b""
    file.seek(position)
    return file.read(count)


def _after_id3(file: BinaryIO, size: int) -> int:
    """Offset at which the audio file begins: after an ID3v2 tag, which some tools put before MP3, WAV or FLAC."""
    head = _bytes_at(file, 0, 10)
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    length = (head[6] & 127) << 21 | (head[7] & 127) << 14 | (head[8] & 127) << 7 | head[9] & 127
    end = 10 + length + (10 if head[5] & 16 else 0)
    return end if end < size else 0


def _cut(declared: int, held: int, part: str) -> Declared:
    return Declared(part if declared > held else "")


def _riff(file: BinaryIO, size: int, start: int, magic: bytes) -> Declared:
    """WAV, RF64 and AIFF: chunks of a name, a length and a body."""
    order = _RIFF_MAGIC[magic[:4]]
    data_id = b"SSND" if magic[:4] == b"FORM" else b"data"
    (total,) = struct.unpack(order + "I", magic[4:8].ljust(4, b"\0"))
    position, data_size_64 = start + 12, None
    for _ in range(_MAX_CHUNKS):
        head = _bytes_at(file, position, 8)
        if len(head) < 8:
            break
        (length,) = struct.unpack(order + "I", head[4:])
        held = size - position - 8
        if head[:4] == b"ds64":
            sizes = _bytes_at(file, position + 8, 16)
            data_size_64 = struct.unpack("<Q", sizes[8:])[0] if len(sizes) == 16 else None
        if head[:4] == data_id:
            if length == 0xFFFFFFFF:
                unknown = data_size_64 is None or data_size_64 == 2**64 - 1
                return Declared() if unknown else _cut(data_size_64 or 0, held, "data chunk")
            if length == 0 and held > 0 and start + 8 + total != size:
                return Declared(open_length_at=position + 4)
            return _cut(length, held, f"{data_id.decode()} chunk")
        if length > held and length != 0xFFFFFFFF:
            return Declared("header (it ends before the sound data)")
        position += 8 + length + (length & 1)
    return Declared()


def _long_chunks(file: BinaryIO, size: int, position: int, head_size: int) -> Declared:
    """Wave64 (whose lengths include their 24-byte heads and are rounded up to 8) and CAF: 64-bit lengths."""
    wave64 = head_size == 24
    for _ in range(_MAX_CHUNKS):
        head = _bytes_at(file, position, head_size)
        if len(head) < head_size:
            break
        (length,) = struct.unpack("<q" if wave64 else ">q", head[-8:])
        body = max(0, length - head_size if wave64 else length)  # 0 or less means unknown
        if head[:4] == b"data":
            return _cut(body, size - position - head_size, "data chunk")
        position += head_size + ((body + 7) // 8 * 8 if wave64 else body)
    return Declared()


def _au(file: BinaryIO, size: int, start: int) -> Declared:
    head = _bytes_at(file, start, 12)
    if len(head) < 12:
        return Declared()
    offset, length = struct.unpack((">" if head[:4] == b".snd" else "<") + "II", head[4:])
    return _cut(0 if length == 0xFFFFFFFF else length, size - start - offset, "sound data")


def _ogg(file: BinaryIO, size: int) -> Declared:
    """The last page must be whole and be marked as the end of its stream."""
    tail_start = max(0, size - 2 * _OGG_PAGE_MAX)
    tail = _bytes_at(file, tail_start, size - tail_start)
    at = tail.rfind(b"OggS")
    page = tail[at:] if at >= 0 else b""
    if len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        return Declared("last Ogg page")
    return Declared() if page[5] & 4 else Declared("end of the Ogg stream (no closing page)")


def _mpeg(file: BinaryIO, size: int, start: int) -> Declared:
    """MP3 declares its length only in an optional table inside the first frame."""
    frame = _bytes_at(file, start, 256)
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return Declared()
    first_version, single = frame[1] & 0x08, frame[3] >> 6 == 3
    side = (17 if single else 32) if first_version else (9 if single else 17)
    for at in (4 + side, 6 + side):  # without and with a checksum after the frame header
        if frame[at : at + 4] in (b"Xing", b"Info"):
            (flags,) = struct.unpack(">I", frame[at + 4 : at + 8])
            field = at + 8 + (4 if flags & 1 else 0)
            (length,) = struct.unpack(">I", frame[field : field + 4]) if flags & 2 else (0,)
            return _cut(length, size - start, "sound data")
    if frame[36:40] == b"VBRI":
        return _cut(struct.unpack(">I", frame[46:50])[0], size - start, "sound data")
    return Declared()
