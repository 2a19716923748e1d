"""Careless or hostile corpora and tables: each loads as a corpus or gives an error of one line.

An attack writes a folder and returns what `laennec prepare --check` and loading must give: a pattern that both messages
match, with the file and, for a table, the line; or the rows of the loaded corpus.
"""

import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import unicodedata
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from laennec.corpora import check_corpus, load_corpus, recordings
from laennec.corpora.hub.exported import AUDIO_TYPE, FORMAT, MANIFEST
from laennec.errors import InputError, one_line

HEADER = "recording,start_s,end_s,label,patient_id\n"
NFC, NFD = (unicodedata.normalize(form, "Rénaud") for form in ("NFC", "NFD"))


def sound(path, seconds=2.0, rate=8000, channels=1, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode("utf-8", "surrogateescape"))
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (int(seconds * rate), channels))
    kind = settings | {"format": path.suffix[1:].upper()}
    with path.open("wb") as file:  # libsndfile cannot open every file name
        soundfile.write(file, samples.astype(np.float32), rate, **kind)


def pair(folder):
    """Two recordings of two seconds."""
    for name in ("a.wav", "b.wav"):
        sound(folder / name)


def outcome(corpus, folder, cache, **options):
    """Problems of the check, the error of loading, and the table; checks that each message is one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            listed = check_corpus(corpus, folder, cache_dir=cache, **options).problems
        except InputError as error:
            listed = [str(error)]
        try:
            raised = ""
            table = load_corpus(corpus, folder, protocol="none", cache_dir=cache, **options)["all"]
        except InputError as error:
            raised, table = str(error), None
    for line in map(one_line, (*listed, raised)):  # as the report shows them
        assert "\n" not in line and len(line) < 1500, line
    return listed, raised, table


def assert_outcome(corpus, folder, cache, words, **options):
    listed, raised, table = outcome(corpus, folder, cache, **options)
    if isinstance(words, list):
        assert (listed, raised) == ([], "")
        named = ("recording_id", "start_s", "end_s", "patient_id")
        rows = [tuple(row[name] for name in named) for row in table]
        assert [f"{name} {start:g} {end:g} {patient}" for name, start, end, patient in rows] == words
    else:
        assert any(re.search(words, line) for line in listed), listed
        assert re.search(words, raised), raised
    return table


# ---------------------------------------------------------------- a table beside two recordings

TABLES = {
    "stray quotes around rows": (
        HEADER + 'a,0,1,"normal,P1\nb,0,1,crackle,P2\nb,1,2,wheeze",P2\n',
        "c.csv, line 2: a q",
    ),
    "quote never closed": (HEADER + 'a,0,1,normal,P1\nb,0,1,"crackle,P2\nb,1,2,wheeze,P2\n', "c.csv, line 3: a quote"),
    "quote before a comma": (HEADER + 'a,0,1,"normal,P1"\n', "c.csv, line 2: 4 values under 5 columns"),
    "quote within a value": (HEADER + 'a,0,1,nor"mal,P1\n', "c.csv, line 2: a quote"),
    "text after a quote": (HEADER + 'a,0,1,"normal" x,P1\n', "c.csv, line 2: a quote"),
    "single stray quote in the header": ('"' + HEADER + "a,0,1,normal,P1\n", "c.csv, line 1: a quote"),
    "value on two lines": (HEADER + 'a,0,1,normal,"P\n1"\n', "c.csv, line 2: a quote"),
    "quotes as they should be": (HEADER + '"a","0", "1" ,"normal","P ""1"""\n', ['a 0 1 P "1"']),
    "a NUL": (HEADER + "a,0,1,normal,P1\nb,0,1,nor\0mal,P2\n", "c.csv, line 3: holds a NUL"),
    "utf-16": ((HEADER + "a,0,1,normal,P1\n").encode("utf-16"), "c.csv: .*UTF-8"),
    "utf-16 without a mark": ((HEADER + "a,0,1,normal,P1\n").encode("utf-16-le"), "c.csv, line 1: holds a NUL"),
    "utf-32": ((HEADER + "a,0,1,normal,P1\n").encode("utf-32"), "c.csv: .*UTF-8"),
    "latin-1": ((HEADER + "a,0,1,normal,Zoë\n").encode("latin-1"), "c.csv: .*UTF-8"),
    "byte order mark": (("\ufeff" + HEADER + "a,0,1,normal,P1\n").encode(), ["a 0 1 P1"]),
    "two byte order marks": (
        ("\ufeff\ufeff" + HEADER + "a,0,1,normal,P1\n").encode(),
        "c.csv, line 1: the header must",
    ),
    "line ends of old Macs": (
        (HEADER + "a,0,1,normal,P1\nb,0,1,normal,P2\n").replace("\n", "\r"),
        ["a 0 1 P1", "b 0 1 P2"],
    ),
    "line ends of three kinds": (
        HEADER + "a,0,1,normal,P1\r\nb,0,1,normal,P2\rb,1,2,wheeze,P2\n",
        ["a 0 1 P1", "b 0 1 P2", "b 1 2 P2"],
    ),
    "line ends of no table": (HEADER + "a,0,1,normal,P\u20281\nb,0,1,x,P2\n", ["a 0 1 P\u20281", "b 0 1 P2"]),
    "too few values": (HEADER + "a,0,1,normal,P1\nb,0,1,normal\n", "c.csv, line 3: 4 values under 5 columns"),
    "too many values": (HEADER + "a,0,1,normal,P1,\n", "c.csv, line 2: 6 values under 5 columns"),
    "decimal commas between commas": (HEADER + "a,0,0,5,normal,P1\n", "c.csv, line 2: 6 values under 5 columns"),
    "decimal commas between semicolons": (HEADER.replace(",", ";") + "a;0,25;1,5;normal;P1\n", ["a 0.25 1.5 P1"]),
    "a column twice": ("recording,label,label\na,normal,wheeze\n", "c.csv, line 1: .* name each column once"),
    "a column twice in another case": ("recording,Stridor,stridor\na,0,1\n", "c.csv, line 1: .* each column once"),
    "a column of labels twice": ("recording,stridor,stridor\na,0,1\nb,1,1\n", "c.csv, line 1: .* each column once"),
    "huge field": (HEADER + f"a,0,1,normal,{'P' * 200_000}\n", "c.csv, line 2: cannot be read .*field limit"),
    "a million blanks": (HEADER + f'a,0,1,normal,{" " * 1_000_000}"\n', "c.csv, line 2: a quote"),
    "no rows": (HEADER, "c.csv: the table has no rows"),
    "rows of delimiters": (HEADER + ",,,,\n;;;;\n", "c.csv, line 3: 1 values under 5 columns"),
    "nothing": ("", "c.csv"),
    "100 000 columns, one of them twice": (
        ",".join(map(str, range(100_000))) + ",0\n",
        "c.csv, line 1: .* column once",
    ),
    "a line of Excel": ("sep=;\n" + HEADER.replace(",", ";") + "a;0;1;normal;P1\n", "c.csv, line [12]: "),
    "patients 1 and 01": (HEADER + "a,0,1,normal,1\nb,0,1,normal,01\n", "'01' and '1' may be one person"),
    "patients 1 and 1.0": (HEADER + "a,0,1,normal,1\nb,0,1,normal,1.0\n", "'1' and '1.0' may be one person"),
    "patients P7 and P007": (HEADER + "a,0,1,normal,P7\nb,0,1,normal,P007\n", "'P007' and 'P7' may be one person"),
    "patients 1 and +1": (HEADER + "a,0,1,normal,1\nb,0,1,normal,+1\n", "'1' may be one person"),
    "patients 1 and 1e0": (HEADER + "a,0,1,normal,1\nb,0,1,normal,1e0\n", "'1' and '1e0' may be one person"),
    "patients P-1 and P_1": (HEADER + "a,0,1,normal,P-1\nb,0,1,normal,P_1\n", "'P-1' and 'P_1' may be one person"),
    "patients p 1 and p1": (HEADER + "a,0,1,normal,p 1\nb,0,1,normal,p1\n", "'p 1' and 'p1' may be one person"),
    "patients A-b and ab": (HEADER + "a,0,1,normal,A-b\nb,0,1,normal,ab\n", "'A-b' and 'ab' may be one person"),
    "patients 1-1 and 11": (HEADER + "a,0,1,normal,1-1\nb,0,1,normal,11\n", ["a 0 1 1-1", "b 0 1 11"]),
    "patients p1 and P1": (HEADER + "a,0,1,normal,p1\nb,0,1,normal,P1\n", "'P1' and 'p1' may be one person"),
    "patients with more blanks": (HEADER + "a,0,1,normal,J X\nb,0,1,normal,J  X\n", "'J  X' and 'J X' may be one"),
    "patients in full-width digits": (HEADER + "a,0,1,normal,12\nb,0,1,normal,\uff11\uff12\n", "may be one person"),
    "patients 1 and 10 and 1.5": (HEADER + "a,0,1,normal,1\nb,0,1,normal,10\n", ["a 0 1 1", "b 0 1 10"]),
    "a patient in two normal forms": (
        HEADER + f"a,0,1,normal,{NFC}\nb,0,1,normal,{NFD}\n",
        [f"a 0 1 {NFC}", f"b 0 1 {NFC}"],
    ),
    "two patients for one recording": (
        HEADER + "a,0,1,normal,1\na,1,2,normal,01\n",
        "c.csv, line 3: patient_id '01' diff",
    ),
    "two labels for one cycle": (HEADER + "a,0,1,normal,P1\na,0,1,crackle,P1\n", "c.csv, line 3: .* than in line 2"),
    "crackle and wheeze for one cycle": (HEADER + "a,0,1,wheeze,P1\na,0,1,crackle,P1\n", "c.csv, line 3: .* in line 2"),
    "normal and stridor for one cycle": (HEADER + "a,0,1,stridor,P1\na,0,1,normal,P1\n", "c.csv, line 3: .* in line 2"),
    "two labels that go together": (HEADER + "a,0,1,stridor,P1\na,0,1,rhonchi,P1\n", ["a 0 1 P1"]),
    "two rows of 0 and 1": ("recording,stridor,rhonchi\na,0,1\na,1,0\n", "c.csv, line 3: .* than in line 2"),
    "two labels for one recording": ("recording,label\na,normal\na,wheeze\n", "c.csv, line 3: .* than in line 2"),
    "negative time": (HEADER + "a,-0.5,1,normal,P1\n", "c.csv, line 2: starts at -0.5 s, before"),
    "time beyond the end": (HEADER + "a,0,2.5,normal,P1\n", "c.csv, line 2: ends at 2.5 s"),
    "time that is no number": (HEADER + "a,nan,1,normal,P1\n", "c.csv, line 2: times nan and 1"),
    "time without end": (HEADER + "a,0,1e999,normal,P1\n", "c.csv, line 2: times 0.0 and inf"),
    "time of a programmer": (HEADER + "a,0,0_1,normal,P1\n", "c.csv, line 2: .*must be times in seconds"),
    "time of a clock": (HEADER + "a,00:00:01,00:00:02,normal,P1\n", "c.csv, line 2: .*must be times in seconds"),
    "cycle of no length": (HEADER + "a,1,1,normal,P1\n", "c.csv, line 2: ends at 1 s but starts at 1 s"),
    "labels in another case": (HEADER + "a,0,1,NORMAL,P1\nb,0,1,Crackle + WHEEZE,P2\n", ["a 0 1 P1", "b 0 1 P2"]),
    "recording of another folder": (
        HEADER + "../../etc/passwd,0,1,normal,P1\n",
        "c.csv, line 2: recording .* not in the",
    ),
    "recording of no system": (HEADER + f"{'x' * 9000},0,1,normal,P1\n", "c.csv, line 2: recording 'x"),
    "recording that paints": (HEADER + "\x1b[31ma,0,1,normal,P1\n", "c.csv, line 2: recording .*not in the folder"),
    "age of 400 digits": ("recording,label,age\na,normal," + "9" * 400 + "\n", "c.csv, line 2: age_years"),
    "a label called like a column": ("recording,label\na,start_s\nb,start_s+x\n", "'start_s' has the name of a column"),
}


@pytest.mark.parametrize("attack", TABLES)
def test_a_table_is_read_correctly_or_refused_with_its_line(attack, tmp_path):
    text, words = TABLES[attack]
    pair(tmp_path / "mine")
    (tmp_path / "mine" / "c.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_outcome("folder", tmp_path / "mine", tmp_path / "cache", words)


def test_a_repeated_row_counts_once(tmp_path):
    pair(tmp_path / "mine")
    (tmp_path / "mine" / "c.csv").write_text(HEADER + "a,0,1,normal,P1\na,0.0,1.0,normal,P1\nb,0,1,normal,P2\n")
    assert_outcome("folder", tmp_path / "mine", tmp_path / "cache", ["a 0 1 P1", "b 0 1 P2"])


# ---------------------------------------------------------------- a label file beside a recording

LABELS = {
    "a NUL in a label track": ("0\t1\tnor\0mal\n", "a.txt, line 1: holds a NUL"),
    "two labels for one time": ("0\t1\tnormal\n0\t1\tcrackle\n", "a.txt, line 2: .* than in line 1"),
    "a label twice": ("0\t1\tnormal\n0\t1\tnormal\n", ["a 0 1 a"]),
    "decimal commas": ("0,25\t1,5\tnormal\n", ["a 0.25 1.5 a"]),
    "line ends of old Macs in a track": ("0\t1\tnormal\r1\t2\twheeze\r", ["a 0 1 a", "a 1 2 a"]),
    "icbhi flags beyond 1": ("0 1 2 0\n", "a.txt, line 1: flags '2'"),
    "utf-16 track": ("0\t1\tnormal\n".encode("utf-16"), "a.txt: is not UTF-8 text"),
    "sound instead of text": (bytes(range(256)), "a.txt: is not UTF-8 text"),
    "a column of Raven twice": (
        "Selection\tBegin Time (s)\tEnd Time (s)\tLabel\tLabel\n1\t0\t1\tnormal\twheeze\n", "a.txt, line 1: .* once"),
    "a row of Raven cut short": ("Selection\tBegin Time (s)\tEnd Time (s)\tLabel\n1\t0\n", "a.txt, line 2: 2 columns"),
    "empty": ("", "a.txt: the annotation is empty"),
}  # fmt: skip


@pytest.mark.parametrize("attack", LABELS)
def test_a_label_file_is_read_correctly_or_refused(attack, tmp_path):
    text, words = LABELS[attack]
    sound(tmp_path / "mine" / "a.wav")
    (tmp_path / "mine" / "a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_outcome("folder", tmp_path / "mine", tmp_path / "cache", words)


# ---------------------------------------------------------------- other contents of the folder


def enormous(folder):
    soundfile.write(folder / "x.wav", np.array([0.1, 1e30, 0.2] * 999, np.float32), 8000, subtype="FLOAT")


def a_socket(folder):
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("x.wav")
    finally:
        os.chdir(here)


def two_names_on_two_lines(folder):
    sound(folder / "x\ny.wav")
    sound(folder / "x\ny.flac")


def nested(folder):
    sound(folder / "/".join(["d" * 40] * 60) / "x.wav")


def cycle_of_links(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "up").symlink_to(folder)
    sound(folder / "deep" / "x.wav")


def no_unicode(folder):
    sound(folder / os.fsdecode(b"x\xff\xfe.wav"))


FOLDERS = {
    "a recording of one sample": (lambda f: sound(f / "x.wav", 1 / 8000), "x.wav: (silent|.*shorter than one frame)"),
    "a recording of two samples": (lambda f: sound(f / "x.wav", 2 / 8000), "x.wav.*shorter than one frame|^$"),
    "samples of 1e30": (enormous, "x.wav: a sample is 1e"),
    "1024 channels": (lambda f: sound(f / "x.wav", 0.5, channels=1024), 1),
    "a folder called sound": (lambda f: (f / "x.wav").mkdir(), "x.wav: (is a folder|cannot be read)"),
    "sound in a folder called sound": (lambda f: sound(f / "x.wav" / "y.wav"), "x.wav: (is a folder|cannot be read)"),
    "a pipe": (lambda f: os.mkfifo(f / "x.wav"), "x.wav: (is not a regular file|cannot be read)"),
    "a socket": (a_socket, "x.wav: (is not a regular file|cannot be read)"),
    "an endless device": (lambda f: (f / "x.wav").symlink_to("/dev/zero"), "x.wav: (is not a regular|cannot be read)"),
    "a link to nothing": (lambda f: (f / "x.wav").symlink_to("gone.wav"), "x.wav: (no such file|cannot be read)"),
    "a link to itself": (lambda f: (f / "x.wav").symlink_to("x.wav"), "x.wav: (cannot be opened|cannot be read)"),
    "links in a circle": (cycle_of_links, 1),
    "folders sixty deep": (nested, 1),
    "a name of bytes": (no_unicode, "x.*: .*name"),
    "a name on two lines": (lambda f: sound(f / "x\ny.wav"), 1),
    "two names on two lines": (two_names_on_two_lines, "a second recording of this name"),
    "names that differ in case": (lambda f: (sound(f / "x.wav"), sound(f / "X.wav")), 2),
    "a name in two normal forms": (lambda f: (sound(f / f"{NFC}.wav"), sound(f / f"{NFD}.wav")), 2),
    "two kinds of one name": (lambda f: (sound(f / "x.wav"), sound(f / "x.flac")), "x.wav: a second recording of this"),
    "nothing at all": (lambda f: None, ": no recordings"),
}


@pytest.mark.parametrize("attack", FOLDERS)
def test_a_folder_with_other_contents_is_read_or_refused(attack, tmp_path):
    make, words = FOLDERS[attack]
    (tmp_path / "mine").mkdir()
    make(tmp_path / "mine")
    listed, raised, table = outcome("folder", tmp_path / "mine", tmp_path / "cache", unlabelled=True)
    both = " ".join(listed) + raised
    if isinstance(words, int):
        assert both == "" and len(table) == words
    else:
        assert re.search(words, both), (listed, raised)


PLACES = {
    "a table that is a folder": lambda f: (f / "c.csv").mkdir(),
    "a table that is a pipe": lambda f: os.mkfifo(f / "c.csv"),
    "a table without end": lambda f: (f / "c.csv").symlink_to("/dev/zero"),
    "a table that links to itself": lambda f: (f / "c.csv").symlink_to("c.csv"),
    "a label file that is a folder": lambda f: (f / "a.txt").mkdir(),
    "a label file that is a pipe": lambda f: os.mkfifo(f / "a.txt"),
}


@pytest.mark.parametrize("attack", PLACES)
def test_a_table_or_label_that_is_not_a_regular_file_is_refused(attack, tmp_path):
    pair(tmp_path / "mine")
    PLACES[attack](tmp_path / "mine")
    listed, raised, table = outcome("folder", tmp_path / "mine", tmp_path / "cache")
    assert listed and raised and table is None


def test_a_name_in_another_normal_form_is_found(tmp_path):
    sound(tmp_path / "mine" / f"{NFD}.wav")
    (tmp_path / "mine" / "c.csv").write_text(HEADER + f"{NFC},0,1,normal,P1\n")
    assert_outcome("folder", tmp_path / "mine", tmp_path / "cache", [f"{NFD} 0 1 P1"])


def test_nothing_is_written_beside_the_recordings(tmp_path):
    """Stands for a read-only folder, because root may write to every folder."""
    pair(tmp_path / "mine")
    (tmp_path / "mine" / "c.csv").write_text(HEADER + "a,0,1,normal,P1\n")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mine", *(tmp_path / "mine").rglob("*"))}
    assert_outcome("folder", tmp_path / "mine", tmp_path / "cache", ["a 0 1 P1"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mine", *(tmp_path / "mine").rglob("*"))} == before


def test_ten_thousand_events_of_one_recording(tmp_path):
    sound(tmp_path / "mine" / "a.wav", 10)
    times = np.sort(np.random.default_rng(0).permutation(900_000)[:10_000]) / 100_000
    rows = "".join(f"a,{time:.5f},{time + 1:.5f},stridor,P1\n" for time in times)
    (tmp_path / "mine" / "c.csv").write_text(HEADER + rows)
    report = load_corpus("folder", tmp_path / "mine", protocol="none", cache_dir=tmp_path / "cache")
    assert len(report["all"]) == 10_000


# ---------------------------------------------------------------- other corpora


def icbhi(folder, **tables):
    for name in ("101_1b1_Al_sc_Meditron", "102_1b1_Ar_sc_Meditron"):
        sound(folder / f"{name}.wav")
        (folder / f"{name}.txt").write_text("0.0\t1.0\t0\t1\n1.0\t2.0\t0\t0\n")
    for name, text in tables.items():
        (folder / f"{name}.txt").write_text(text)


def diagnosis(text):
    return lambda folder: icbhi(folder, ICBHI_Challenge_diagnosis=text)


def people(text):
    return lambda folder: icbhi(folder, ICBHI_Challenge_demographic_information=text)


def one_patient_twice(folder):
    icbhi(folder)
    sound(folder / "0101_1b1_Al_sc_Meditron.wav")
    (folder / "0101_1b1_Al_sc_Meditron.txt").write_text("0.0\t1.0\t0\t1\n")


def sprsound(text):
    def make(folder):
        name = "65000001_4.0_0_p1_1"
        sound(folder / "train" / "wav" / f"{name}.wav")
        (folder / "train" / "json").mkdir(parents=True)
        (folder / "train" / "json" / f"{name}.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def events(*listed):
    return sprsound(json.dumps({"record_annotation": "CAS", "event_annotation": list(listed)}))


def event(start, end, kind="Wheeze"):
    return {"start": start, "end": end, "type": kind}


def heart(text, records=None):
    def make(folder):
        pair(folder / "training-a")
        (folder / "training-a" / "REFERENCE.csv").write_text(text)
        if records is not None:
            records(folder / "training-a" / "RECORDS")

    return make


def listing(name, text):
    def make(folder):
        pair(folder)
        (folder / name).write_text(text)

    return make


OTHERS = {
    "icbhi: two diagnoses": ("icbhi2017", diagnosis("101\tCOPD\n101\tAsthma\n102\tNA\n"), "line 2: patient 101"),
    "icbhi: quotes": ("icbhi2017", diagnosis('101\t"COPD\n102\tURTI"\n'), "line 1: it has quotes; use"),
    "icbhi: a NUL": ("icbhi2017", diagnosis("101\tCOPD\n102\t\0\n"), "line 2: holds a NUL"),
    "icbhi: infinite age": ("icbhi2017", people("101 inf F 20 NA NA\n"), "line 1: age, BMI"),
    "icbhi: a child of no height": ("icbhi2017", people("101 3 F NA 9 1e-300\n"), "line 1: age, BMI"),
    "icbhi: two ages": ("icbhi2017", people("101 3 F NA 9 90\n101 4 F NA 9 90\n"), "line 2: patient 101 differs"),
    "icbhi: patients 101 and 0101": ("icbhi2017", one_patient_twice, "'0101' and '101' may be one person"),
    "sprsound: nested too deeply": ("sprsound", sprsound("[" * 200_000), "json: not JSON"),
    "sprsound: utf-16": ("sprsound", sprsound('{"record_annotation": "CAS"}'.encode("utf-16")), "json: not JSON"),
    "sprsound: 5000 digits": ("sprsound", sprsound('{"event_annotation": [' + "9" * 5000 + "]}"), "json"),
    "sprsound: events twice": (
        "sprsound",
        sprsound('{"event_annotation": [{"start": 0, "end": 900, "type": "Wheeze"}], "event_annotation": []}'),
        "'event_annotation' is there twice",
    ),
    "sprsound: a time of a programmer": ("sprsound", events(event("0", "9_00")), "event 1: .*must be times"),
    "sprsound: NaN": ("sprsound", events(event(float("nan"), 900)), "event 1: times nan"),
    "sprsound: beyond any float": ("sprsound", events(event(0, 10**400)), "event 1: .*must be times"),
    "sprsound: a truth for a time": ("sprsound", events(event(False, True)), "event 1: .*must be times"),
    "sprsound: an event of lists": ("sprsound", events(event([0], {}, ["Wheeze"])), r"event 1: type \['Wheeze'\]"),
    "sprsound: a time of text": ("sprsound", events(event("0", "nine")), "event 1: .*must be times"),
    "physionet: stray quote": ("physionet2016", heart('a,"1\nb,-1"\n'), "REFERENCE.csv, line 1: a quote"),
    "physionet: ragged": ("physionet2016", heart("a,1\nb,-1,1,9\n"), "REFERENCE.csv, line 2: 'b,-1,1,9' is not"),
    "physionet: RECORDS a folder": (
        "physionet2016", heart("a,1\nb,-1\n", lambda p: p.mkdir()), ["a 0 2 None", "b 0 2 None"]),
    "physionet: RECORDS of bytes": ("physionet2016", heart("a,1\nb,-1\n", lambda p: p.write_bytes(b"\xff")), "no rec"),
    "hub: stray quote": ("hub", listing("metadata.csv", 'file_name,label\na.wav,"x\nb.wav,y"\n'), "line 2: a quote"),
    "hub: a column twice": ("hub", listing("metadata.csv", "file_name,label,label\na.wav,x,y\n"), "line 1: .* once"),
    "hub: ragged": ("hub", listing("metadata.csv", "file_name,label\na.wav,x,y\n"), "metadata.csv, line 2: "),
    "hub: a sound twice": ("hub", listing("metadata.csv", "file_name,label\na.wav,x\na.wav,y\n"), "two sounds are"),
    "hub: a list for a name": ("hub", listing("metadata.jsonl", '{"file_name": [1], "label": {}}\n'), "not in the"),
    "hub: nested too deeply": ("hub", listing("metadata.jsonl", "[" * 200_000), "line 1: not JSON"),
    "hub: a name of bytes": ("hub", lambda f: no_unicode(f / "x"), "its name is not in UTF-8"),
    "hub: a NUL": ("hub", listing("metadata.csv", "file_name,label\na.wav,\0\n"), "csv, line 2: holds a NUL"),
}  # fmt: skip


@pytest.mark.parametrize("attack", OTHERS)
def test_files_of_other_corpora(attack, tmp_path):
    corpus, make, words = OTHERS[attack]
    make(tmp_path / "mine")
    assert_outcome(corpus, tmp_path / "mine", tmp_path / "cache", words)


# ---------------------------------------------------------------- archives


def archive(members, **settings):
    def make(path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **settings) as opened:
            for name, content in members.items():
                opened.writestr(name, content)

    return make


def told_less(path):
    """A member that contains more than both of its headers declare."""
    archive({"a.txt": bytes(1 << 22)})(path)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 1 << 22), struct.pack("<I", 9)))


def packed_by(method, damage=True):
    def make(path):
        with zipfile.ZipFile(path, "w", method) as opened:
            opened.writestr("a.txt", os.urandom(4000))
        if damage:
            content = bytearray(path.read_bytes())
            content[60:90] = bytes(30)
            path.write_bytes(content)

    return make


def unknown_method(path):
    archive({"a.txt": b"0 1 0 0"})(path)
    content = path.read_bytes()
    for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        place = content.index(mark) + at
        content = content[:place] + struct.pack("<H", 99) + content[place + 2 :]
    path.write_bytes(content)


ARCHIVES = {
    "sixteen times too much": (archive({f"{n}.txt": bytes(1 << 20) for n in range(16)}), "unpacks to more than 1 MiB"),
    "more than it declares": (told_less, "cannot be unpacked"),
    "too many members": (archive({f"{n}.txt": b"" for n in range(60)}), "holds more than 50 files"),
    "a name of 300 letters": (archive({"x" * 300 + ".txt": b""}), "name is too long"),
    "a file that is a folder": (archive({"a.txt": b"", "a.txt/b.txt": b""}), "a file, not a folder"),
    "damaged deflate": (packed_by(zipfile.ZIP_DEFLATED), "cannot be unpacked"),
    "damaged bzip2": (packed_by(zipfile.ZIP_BZIP2), "cannot be unpacked"),
    "damaged lzma": (packed_by(zipfile.ZIP_LZMA), "cannot be unpacked"),
    "a method of nobody": (unknown_method, "cannot be unpacked"),
    "no archive": (lambda path: path.write_bytes(b"PK\3\4" + bytes(400)), "cannot be unpacked"),
    "an archive in an archive": (archive({"inner.zip": b"PK"}), "holds no recordings"),
    "a name that leads out": (archive({"../a.txt": b""}), "would leave the folder"),
}


@pytest.mark.parametrize("attack", ARCHIVES)
def test_an_archive_is_refused_and_leaves_nothing(attack, tmp_path, monkeypatch):
    make, words = ARCHIVES[attack]
    monkeypatch.setattr(recordings, "_LEAST_LIMIT", 1 << 20, raising=False)
    monkeypatch.setattr(recordings, "_MOST_MEMBERS", 50, raising=False)
    make(tmp_path / "x.zip")
    with pytest.raises(InputError, match=words):
        recordings.unpack(tmp_path / "x.zip", tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "unpacked").rglob("*") if path.suffix == ".txt"]


def test_an_archive_with_any_bytes_changed_is_read_or_refused(tmp_path):
    content, refused = bytes(range(200)), 0
    for seed in (82, 280, 316, *range(30)):
        rng = np.random.default_rng(seed)
        archive(dict.fromkeys(("a.txt", "d/b.txt", "c.wav"), content))(tmp_path / "x.zip")
        changed = bytearray((tmp_path / "x.zip").read_bytes())
        for place in rng.integers(0, len(changed), 6):
            changed[place] = rng.integers(0, 256)
        (tmp_path / "x.zip").write_bytes(changed)
        try:
            unpacked = recordings.unpack(tmp_path / "x.zip", tmp_path / "cache")
        except InputError:
            refused += 1
            continue
        assert {path.read_bytes() for path in unpacked.rglob("*") if path.is_file()} <= {content}, seed
    assert refused > 0


def test_the_limit_counts_unpacked_bytes_not_declared_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "_LEAST_LIMIT", 1 << 20, raising=False)
    archive({f"{n}.txt": bytes(1 << 20) for n in range(16)})(tmp_path / "x.zip")
    original = zipfile.ZipFile.infolist

    def little(opened):
        for info in original(opened):
            info.file_size = 0
        return original(opened)

    monkeypatch.setattr(zipfile.ZipFile, "infolist", little)
    left = [bytes(1 << 20)] * 16
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda file, size: left.pop() if left else b"")
    with pytest.raises(InputError, match="unpacks to more than 1 MiB"):
        recordings.unpack(tmp_path / "x.zip", tmp_path / "cache")


def exported(folder, *contents):
    """An export of a corpus with one Parquet file of these recordings."""
    (folder / "recordings").mkdir(parents=True)
    rows = [{"source_path": f"{n}.wav", "audio": {"bytes": c, "path": f"{n}.wav"}} for n, c in enumerate(contents)]
    shard = folder / "recordings" / "train-00000.parquet"
    schema = pa.schema({"source_path": pa.string(), "audio": AUDIO_TYPE})
    pq.write_table(pa.Table.from_pylist(rows, schema), shard, compression="zstd")
    files = {"recordings/train-00000.parquet": {"sha256": hashlib.sha256(shard.read_bytes()).hexdigest()}}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "corpus": "folder", "files": files}))


def test_an_export_is_refused_that_holds_more_than_its_size_allows(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "_LEAST_LIMIT", 1 << 20, raising=False)
    exported(tmp_path / "mine", *[bytes(1 << 20)] * 16)
    assert_outcome("folder", tmp_path / "mine", tmp_path / "cache", "mine: unpacks to more than 1 MiB")


@pytest.mark.parametrize("contents", [[bytes(1 << 20)] * 16, [bytes(16 << 20)]], ids=["equal rows", "one of zeros"])
def test_a_data_set_is_refused_that_holds_more_than_its_size_allows(tmp_path, monkeypatch, contents):
    monkeypatch.setattr(recordings, "_LEAST_LIMIT", 1 << 20)
    rows = [{"audio": {"bytes": content, "path": f"{n}.wav"}, "label": n} for n, content in enumerate(contents)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet", compression="zstd")
    assert_outcome("hub", tmp_path, tmp_path / "cache", "unpacks to more than 1 MiB")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# ---------------------------------------------------------------- memory

LONG = """
import resource, sys
import laennec.audio.features, laennec.corpora.check
from laennec.cli.main import main
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
prepare = ["prepare", "folder", "--data-dir", sys.argv[1]]
codes = [main([*prepare, "--check"]), main([*prepare, "--protocol", "none", "--sampling-rate", "16000"])]
print(codes, peak() - before)
"""


def test_memory_does_not_grow_with_the_sampling_rate(tmp_path):
    """Checks and decodes a minute at 192 kHz; reading it as a whole took 550 MB, and 20 minutes would take 11 GB."""
    (tmp_path / "mine").mkdir()
    with soundfile.SoundFile(tmp_path / "mine" / "a.flac", "w", 192_000, 1, subtype="PCM_16") as file:
        file.write(np.random.default_rng(0).uniform(-0.5, 0.5, 192_000))
        file.write(np.zeros(59 * 192_000, np.int16))
    (tmp_path / "mine" / "c.csv").write_text("recording,label,patient_id\na,normal,P1\n")
    command = [sys.executable, "-c", LONG, str(tmp_path / "mine")]
    environment = os.environ | {"LAENNEC_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    codes, grown = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert codes == "[0, 0]", done.stderr
    assert int(grown) < 300
