"""Damaged files of people and other programs: every reader gives a result or an error of one line.

The readers and the ways of damage are those of the fuzzer in tests/soak, which runs longer and is guided by coverage.
"""

import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "soak"))

from decoders import KINDS, verdict, write_files  # noqa: E402
from fuzz import WORDS, restructured  # noqa: E402
from readers import GROUPS, Reader, fault_of  # noqa: E402

from laennec.errors import InputError, in_known_form, one_line  # noqa: E402
from laennec.files import journal_line  # noqa: E402

READERS = [reader for group in GROUPS.values() for reader in group]


def by_bytes(content: bytes, draw: random.Random) -> bytes:
    """File content damaged at random bytes, without regard to its format."""
    at, end = sorted(draw.choices(range(len(content) + 1), k=2))
    word = draw.choice(WORDS).encode(errors="replace")
    return draw.choice(
        (content[:at], content[:at] + word + content[at:], content[:at] + word + content[end:], content[:at] * 2)
    )


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(reader: Reader, tmp_path: Path) -> None:
    draw = random.Random(reader.name)
    for seed in reader.seeds:
        assert fault_of(reader, tmp_path, seed) is None
        for _ in range(12):
            content = (restructured(seed, reader.form, draw) if draw.random() < 0.5 else None) or by_bytes(seed, draw)
            assert (fault := fault_of(reader, tmp_path, content)) is None, (fault, content)


# inputs that the fuzzer found; each revealed a bug of laennec
FOUND = {
    "evidence of a run": b'{"config": {"train": 1}, "corpus": {}}',
    "journal": journal_line(journal=3, identity={})
    + journal_line(name=["k"], content="a", status=[], others=[], timeline={}),
    "manifest of a checkpoint": b'{"files": {"trainer_state.json": {"bytes": 1e999, "sha256": ""}}}',
    "metrics": b'{"evaluations": 1.5}',
    "state of a checkpoint": b'{"best_model_checkpoint": true}',
    "run record": b'{"config": {"name": "\\ud800"}, "corpus": {"name": "x"}}',
    "metadata.jsonl": b'{"file_name": "' + b"y" * 400 + b'"}\n',
    "predictions": b"crackle,wheeze,label,logit_crackle,logit_wheeze,logit_normal\n0,1,crackle,\x011.5,0,1\n",
    "recipe": b"loss:\n  auxiliary: {'a\\n\xe2\x80\xa8dd': {loss: supcon}}\naugment: {mix: {method: mixup}}\n",
}


@pytest.mark.parametrize("name", FOUND)
def test_inputs_that_the_fuzzer_found_stay_fixed(name: str, tmp_path: Path) -> None:
    (reader,) = [reader for reader in READERS if reader.name == name]
    assert fault_of(reader, tmp_path, FOUND[name]) is None


def test_a_bug_of_a_reader_is_told_from_an_input_error(tmp_path: Path) -> None:
    def broken(folder: Path, content: bytes) -> object:
        raise KeyError("ours")

    def in_two_lines(folder: Path, content: bytes) -> object:
        error = InputError("never seen")
        error.__class__ = type("Loud", (InputError,), {"__str__": lambda self: "two\nlines"})
        raise error

    assert "KeyError" in str(fault_of(Reader("x", broken, ()), tmp_path, b""))
    assert "several lines" in str(fault_of(Reader("x", in_two_lines, ()), tmp_path, b""))


def test_a_message_is_one_line_whatever_it_names() -> None:
    assert str(InputError("a\nb\x1b[2Jc\u2028d")) == r"a\nb\x1b[2Jc\u2028d"
    assert one_line("Ärger, 7 µs – überall") == "Ärger, 7 µs – überall"
    said = pytest.raises(InputError, match=r"^f: not of the form that laennec writes \(KeyError: 'x'\); do$")
    with said, in_known_form("f", "do"):
        {}["x"]
    with pytest.raises(ZeroDivisionError), in_known_form("f", "do"):
        raise ZeroDivisionError


def test_malformed_recordings_are_read_or_refused_the_same_way_by_all_readers(tmp_path: Path) -> None:
    said = [(way, verdict(path)) for path, way in write_files(tmp_path, 13 * len(KINDS), seed=7)]
    assert {words for _, words in said} == {"audio", "typed error"}
    assert all(words == "audio" for way, words in said if way == "sound")
