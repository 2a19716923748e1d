"""Every stage, doctor: decoding and resampling, tried on a tone.

Decisions: a container is judged by a file written and read back by laennec's own reader, at another rate, against
the tone that went in. WAV and FLAC are needed (the corpora are made of them), the others may be missing.
"""

import io

from laennec.doctor.finding import Finding, Verdict, finding, note, ok, problem

_ROOM = "Audio"
_RATE, _WANTED = 8000, 16000
_NEEDED = ("WAV", "FLAC")
_KINDS = (*_NEEDED, "OGG", "MP3")
_AGAIN = "pip install --force-reinstall soundfile soxr"


def examine() -> list[Finding]:
    """Decode and resample."""
    return [
        finding(_ROOM, "libraries", _libraries, _AGAIN),
        finding(_ROOM, "decoding", _decoding, _AGAIN),
        finding(_ROOM, "resampling", _resampling, _AGAIN),
    ]


def _libraries() -> Verdict:
    import soundfile
    import soxr

    return ok(f"soundfile {soundfile.__version__} ({soundfile.__libsndfile_version__}), soxr {soxr.__version__}")


def _decoding() -> Verdict:
    import numpy as np
    import soundfile

    from laennec.audio.recording import read_recording

    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(_RATE) / _RATE)).astype(np.float32)
    read, broken = [], {}
    for kind in _KINDS:
        try:
            file = io.BytesIO()
            soundfile.write(file, tone, _RATE, format=kind)
            file.seek(0)
            heard = read_recording(file, _RATE).waveform
            # codecs that lose something may add a little silence at the ends
            if abs(float(np.std(heard)) - float(np.std(tone))) > 0.05:
                raise ValueError("another sound comes out than went in")
            read.append(kind.lower())
        except Exception as error:
            broken[kind] = " ".join(str(error).split())[:120]
    if not broken:
        return ok(f"reads {', '.join(read)}")
    said = f"cannot read {'; '.join(f'{kind.lower()} ({why})' for kind, why in broken.items())}"
    if set(broken) & set(_NEEDED):
        return problem(said, _AGAIN)
    return note(said, f"recordings of that kind are refused; a newer libsndfile reads them: {_AGAIN}")


def _resampling() -> Verdict:
    import numpy as np
    import soxr

    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(_RATE) / _RATE)
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(_WANTED) / _WANTED)
    inner = slice(_WANTED // 4, -_WANTED // 4)  # a filter rings where a sound begins and ends
    off = float(np.abs(soxr.resample(tone, _RATE, _WANTED, quality="HQ") - wanted)[inner].max())
    if not off < 1e-3:
        return problem(f"a tone from {_RATE} to {_WANTED} Hz is off by {off:.1g}", _AGAIN)
    return ok(f"soxr, a tone from {_RATE} to {_WANTED} Hz is right to {off:.0e}")
