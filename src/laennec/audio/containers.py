"""What an audio file's header promises, held against what the file contains.

Decisions: libsndfile decodes a cut-off WAV, AIFF, AU or Ogg file without a word, so the promise is read here before
it decodes. Content decides what a file is, never its extension. A length of 0 or of all ones in a WAV header is a
recorder that could not seek back (a pipe), not a promise. An MP3 without a Xing, Info or VBRI table promises nothing,
so a cut one cannot be told; a cut FLAC file is noticed by libsndfile or by counting the decoded frames.
"""

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

_MAX_CHUNKS = 4096  # a file made of empty chunks must not keep us walking
_OGG_PAGE_MAX = 65307
_RIFF_MAGIC = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<", b"FORM": ">"}
_W64_MAGIC = b"riff\x2e\x91\xcf\x11"


@dataclass(frozen=True)
class Promise:
    """What the header says about the sound data.

    Attributes:
        missing_bytes: How many promised bytes the file does not hold; 0 where nothing is missing or promised.
        detail: Which part of the file is cut, for the message.
        open_length_at: Offset of a 4-byte length that a streaming writer left at 0 although sound follows, else None.
        byte_order: struct's sign for that field.
    """

    missing_bytes: int = 0
    detail: str = ""
    open_length_at: int | None = None
    byte_order: str = "<"


class ForgivingFile:
    """A file for libsndfile, which seeks wherever a damaged header sends it: what cannot be done is not done."""

    def __init__(self, file: BinaryIO) -> None:
        self.tell = file.tell
        self.read = file.read
        self.readinto = file.readinto  # type: ignore[attr-defined]
        self._seek = file.seek

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go there, or stay; where it is now."""
        with suppress(OSError, ValueError):
            return self._seek(offset, whence)
        return self.tell()


class OpenLength:
    """A file with a length of all ones in place of 0, which libsndfile would take for an empty recording."""

    def __init__(self, file: BinaryIO, at: int) -> None:
        self.tell, self.seek = file.tell, file.seek
        self._file, self._at = file, at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; how many bytes of it."""
        start = self.tell()
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        first, last = max(self._at, start), min(self._at + 4, start + count)
        if first < last:
            memoryview(buffer).cast("B")[first - start : last - start] = b"\xff" * (last - first)
        return count

    def read(self, count: int) -> bytes:
        """At most so many bytes."""
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(buffer)])


def read_promise(file: BinaryIO, size: int) -> Promise:
    """Compare the header of an audio file with its size; costs a few small reads whatever the file's length.

    Args:
        file: Seekable file at any position; its position afterwards is not defined.
        size: The file's size in bytes.
    """
    start = _after_id3(file, size)
    magic = _bytes_at(file, start, 12)
    if magic[:4] in _RIFF_MAGIC:
        return _riff(file, size, start, magic)
    if magic[:8] == _W64_MAGIC:
        return _wave64(file, size, start)
    if magic[:4] == b"caff":
        return _caf(file, size, start)
    if magic[:4] in (b".snd", b"dns."):
        return _au(file, size, start)
    if magic[:4] == b"OggS":
        return _ogg(file, size)
    return _mpeg(file, size, start)


def _bytes_at(file: BinaryIO, position: int, count: int) -> bytes:
    if position >> 62:  # a header may name any 64-bit place, a file cannot be asked for it
        return b""
    file.seek(position)
    return file.read(count)


def _after_id3(file: BinaryIO, size: int) -> int:
    """Where the sound file proper begins: after an ID3v2 tag, which tools put before MP3, WAV and FLAC alike."""
    head = _bytes_at(file, 0, 10)
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    length = (head[6] & 127) << 21 | (head[7] & 127) << 14 | (head[8] & 127) << 7 | head[9] & 127
    end = 10 + length + (10 if head[5] & 16 else 0)
    return end if end < size else 0


def _cut(promised: int, held: int, what: str) -> Promise:
    return Promise(missing_bytes=max(0, promised - held), detail=what)


def _riff(file: BinaryIO, size: int, start: int, magic: bytes) -> Promise:
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
            if length == 0xFFFFFFFF and data_size_64 is not None:
                return _cut(0 if data_size_64 == 2**64 - 1 else data_size_64, held, "data chunk")
            if length == 0xFFFFFFFF:
                return Promise()
            if length == 0 and held > 0 and start + 8 + total != size:
                return Promise(open_length_at=position + 4, byte_order=order)
            return _cut(length, held, f"{data_id.decode()} chunk")
        if length > held and length != 0xFFFFFFFF:
            return _cut(length, held, "header (it ends before the sound data)")
        position += 8 + length + (length & 1)
    return Promise()


def _wave64(file: BinaryIO, size: int, start: int) -> Promise:
    position = start + 40
    for _ in range(_MAX_CHUNKS):
        head = _bytes_at(file, position, 24)
        if len(head) < 24:
            break
        (length,) = struct.unpack("<Q", head[16:])  # counts its own 24 bytes
        if head[:4] == b"data":
            streaming = length in (0, 24, 2**64 - 1)
            return Promise() if streaming else _cut(length, size - position, "data chunk")
        position += max(24, (length + 7) // 8 * 8)
    return Promise()


def _caf(file: BinaryIO, size: int, start: int) -> Promise:
    position = start + 8
    for _ in range(_MAX_CHUNKS):
        head = _bytes_at(file, position, 12)
        if len(head) < 12:
            break
        (length,) = struct.unpack(">q", head[4:])
        if head[:4] == b"data":
            return Promise() if length == -1 else _cut(length, size - position - 12, "data chunk")
        position += 12 + max(0, length)
    return Promise()


def _au(file: BinaryIO, size: int, start: int) -> Promise:
    head = _bytes_at(file, start, 12)
    if len(head) < 12:
        return Promise()
    offset, length = struct.unpack((">" if head[:4] == b".snd" else "<") + "II", head[4:])
    return Promise() if length in (0, 0xFFFFFFFF) else _cut(length, size - start - offset, "sound data")


def _ogg(file: BinaryIO, size: int) -> Promise:
    """The last page must be whole and be marked as the end of its stream."""
    tail_start = max(0, size - 2 * _OGG_PAGE_MAX)
    tail = _bytes_at(file, tail_start, size - tail_start)
    at = tail.rfind(b"OggS")
    page = tail[at:] if at >= 0 else b""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return Promise(missing_bytes=1, detail="last Ogg page")
    length = 27 + page[26] + sum(page[27 : 27 + page[26]])
    if length > len(page):
        return _cut(length, len(page), "last Ogg page")
    return Promise() if page[5] & 4 else Promise(missing_bytes=1, detail="end of the Ogg stream (no closing page)")


def _mpeg(file: BinaryIO, size: int, start: int) -> Promise:
    """MP3 says its length only in an optional table inside the first frame."""
    frame = _bytes_at(file, start, 256)
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return Promise()
    first_version, single = frame[1] & 0x08, frame[3] >> 6 == 3
    side = (17 if single else 32) if first_version else (9 if single else 17)
    for at in (4 + side, 6 + side):  # with and without a checksum after the frame header
        if frame[at : at + 4] in (b"Xing", b"Info"):
            (flags,) = struct.unpack(">I", frame[at + 4 : at + 8])
            field = at + 8 + (4 if flags & 1 else 0)
            (length,) = struct.unpack(">I", frame[field : field + 4]) if flags & 2 else (0,)
            return _cut(length, size - start, "sound data")
    if frame[36:40] == b"VBRI":
        return _cut(struct.unpack(">I", frame[46:50])[0], size - start, "sound data")
    return Promise()
