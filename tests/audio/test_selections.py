"""Spans out of the files of other programs, as these programs and people write them."""

import pytest

from laennec.audio.cycles import AnnotationError, read_spans

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
WANTED = [(0.5, 1.75), (2.0, 4.25)]

GOOD = {
    "icbhi": "0.5\t1.75\t0\t1\n2.0\t4.25\t1\t1\n",
    "icbhi with blanks": "0.5 1.75 0 1\n\n2.0   4.25 1 1",
    "audacity": "0.500000\t1.750000\tcrackle\n2.000000\t4.250000\tinspiration (3)\n",
    "audacity without names": "0.500000\t1.750000\t\n2.000000\t4.250000\t\n",
    "audacity with frequencies": "0.5\t1.75\tx\n\\\t100.0\t2000.0\n2.0\t4.25\ty\n\\\t-1.0\t-1.0\n",
    "audacity, two labels over one span": "0.5\t1.75\tcrackle\n0.5\t1.75\twheeze\n2.0\t4.25\tnormal\n",
    "raven": f"{RAVEN}\n1\tSpectrogram 1\t1\t0.5\t1.75\t0\t900\n2\tSpectrogram 1\t1\t2.0\t4.25\t0\t900\n",
    "raven with both views": f"{RAVEN}\n1\tWaveform 1\t1\t0.5\t1.75\t0\t9\n1\tSpectrogram 1\t1\t0.5\t1.75\t0\t9\n"
    "2\tWaveform 1\t1\t2.0\t4.25\t0\t9\n2\tSpectrogram 1\t1\t2.0\t4.25\t0\t9\n",
    "raven, few and other columns": "Begin Time (s)\tNote\tEnd Time (s)\n0.5\t\t1.75\n2.0\tloud\t4.25\n",
    "audacity, numbered": "0.5\t1.75\t1\n2.0\t4.25\t2\n",
    "audacity, decimal commas": "0,500000\t1,750000\tin\n2,000000\t4,250000\tex\n",
    "raven, decimal commas": f"{RAVEN}\n1\tS\t1\t0,5\t1,75\t0\t9\n2\tS\t1\t2,0\t4,25\t0\t9\n",
    "raven of one file": f"{RAVEN}\tBegin File\n1\tS\t1\t0.5\t1.75\t0\t9\ta.wav\n2\tS\t1\t2.0\t4.25\t0\t9\ta.wav\n",
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("writing", ["unix", "windows", "old mac", "byte order mark"])
def test_spans_of_every_kind(tmp_path, kind, writing):
    path = tmp_path / "x.txt"
    text = GOOD[kind].replace("\n", {"windows": "\r\n", "old mac": "\r"}.get(writing, "\n"))
    path.write_bytes((b"\xef\xbb\xbf" if writing == "byte order mark" else b"") + text.encode())
    assert read_spans(path, 5.0) == WANTED
    with pytest.raises(AnnotationError, match=r"ends at 4.25 s but the audio lasts 4.000 s"):
        read_spans(path, 4.0)


BAD = {
    "raven without end": ("Selection\tView\tBegin Time (s)\n1\tS\t0.5\n", "line 1: no column 'End Time (s)'"),
    "raven with commas": ("Selection,Begin Time (s),End Time (s)\n1,0.5,1\n", "line 1: no column 'Begin Time (s)'"),
    "raven row cut off": (f"{RAVEN}\n1\tS\t1\t0.5\n", "line 2: 4 columns, too few"),
    "raven without rows": (f"{RAVEN}\n", "no selections in this file"),
    "raven of two recordings": (
        f"{RAVEN}\tBegin File\n1\tS\t1\t0.5\t1.75\t0\t9\ta.wav\n2\tS\t1\t2\t4\t0\t9\tb.wav\n",
        "selections of 2 recordings",
    ),
    "thousands and decimals": ("1,000.5\t1,001.5\tcrackle\n", "line 1: '1,000.5' and '1,001.5' must be times"),
    "a list of numbers": ("0,5,5\t1.0\tcrackle\n", "line 1: '0,5,5' and '1.0' must be times"),
    "audacity row cut off": ("0.5\t1.0\tcrackle\n2.0\t3.0\n", "line 2: 2 columns, not 3"),
    "audacity point": ("0.5\t0.5\tcough\n", "line 1: ends at 0.5 s but starts at 0.5 s"),
    "backwards": ("1.5\t0.5\tcrackle\n", "line 1: ends at 0.5 s but starts at 1.5 s"),
    "not a number": ("nan\t1.0\tcrackle\n", "line 1: times nan and 1.0 must be finite"),
    "icbhi column missing": ("0.5\t1.0\t0\n1.0\t2.0\t1\n", "line 1: 3 columns, not 4"),
    "empty": ("", "the annotation is empty"),
    "only frequencies": ("\\\t100\t2000\n", "line 1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_one_line(tmp_path, kind):
    content, said = BAD[kind]
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(AnnotationError) as error:
        read_spans(tmp_path / "x.txt")
    assert said in str(error.value) and str(tmp_path / "x.txt") in str(error.value)
    assert ";" in str(error.value)
