"""The synthetic corpus: layout, exact labels, determinism, and sounds that can be learned."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from laennec.audio.cycles import check_annotation, read_annotation
from laennec.corpora.icbhi2017 import read_demographics, read_diagnoses, read_folds, read_official_split
from laennec.corpora.synthetic import _DISEASES, DEVICES, Synthetic, draw_cycle, draw_patient, write_corpus
from laennec.errors import InputError
from laennec.files import lock_of

NAME = re.compile(r"(\d{3})_\d[bp]\d_(Al|Ar|Pl|Pr|Ll|Lr|Tc)_(mc|sc)_(AKGC417L|Meditron|Litt3200|LittC2SE)")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpora") / "small", patients=16, max_rate_hz=8000)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At the rates of the devices, all four of them."""
    folder = tmp_path_factory.mktemp("corpora") / "native"
    return write_corpus(folder, patients=8, recordings_per_patient=1, cycles_per_recording=3)


def recordings(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.wav"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class TestLayout:
    def test_every_recording_has_a_name_an_annotation_and_a_place_in_every_table(self, corpus) -> None:
        names = [path.stem for path in recordings(corpus)]
        assert len(names) == 32
        assert all(NAME.fullmatch(name) for name in names)
        assert sorted(path.stem for path in corpus.glob("*_?c_*.txt")) == names
        people = {name.split("_")[0] for name in names}
        assert people == {str(number) for number in range(101, 117)}
        split = read_official_split(corpus / "ICBHI_challenge_train_test.txt")
        assert sorted(split) == names
        parts = {person: {split[name] for name in names if name.startswith(person)} for person in people}
        assert all(len(of) == 1 for of in parts.values())
        assert {frozenset(of) for of in parts.values()} == {frozenset({"train"}), frozenset({"test"})}
        assert set(read_folds(corpus / "patient_list_foldwise.txt")) == people
        assert set(read_folds(corpus / "patient_list_foldwise.txt").values()) == set(range(5))
        assert set(read_diagnoses(corpus / "ICBHI_Challenge_diagnosis.txt")) == people
        facts = read_demographics(corpus / "ICBHI_Challenge_demographic_information.txt")
        assert set(facts) == people
        assert all(
            fact["age_years"] > 0 and fact["sex"] in ("F", "M") and 10 < fact["bmi"] < 50 for fact in facts.values()
        )

    def test_files_have_the_rate_and_format_of_their_device(self, native) -> None:
        found = set()
        for path in recordings(native):
            device = DEVICES[path.stem.split("_")[-1]]
            info = soundfile.info(path)
            assert (info.samplerate, info.subtype, info.channels) == (device.sampling_rate, device.subtype, 1)
            found.add((path.stem.split("_")[-1], info.samplerate))
        assert found == {("AKGC417L", 44100), ("Meditron", 44100), ("Litt3200", 4000), ("LittC2SE", 44100)}

    def test_cycles_follow_each_other_without_a_gap_inside_the_audio(self, corpus) -> None:
        for path in recordings(corpus):
            assert check_annotation(path.with_suffix(".txt"), soundfile.info(path).duration) == []
            cycles = read_annotation(path.with_suffix(".txt"))
            assert 5 <= len(cycles) <= 7
            assert all(one.end_s == other.start_s for one, other in itertools.pairwise(cycles))
            assert all(0.5 < cycle.end_s - cycle.start_s < 8 for cycle in cycles)

    def test_mc_recordings_hold_one_breathing_at_several_places(self, corpus) -> None:
        sessions: dict[str, list[Path]] = {}
        for path in recordings(corpus):
            patient, visit, _, mode, _ = path.stem.split("_")
            sessions.setdefault(f"{patient}_{visit}_{mode}", []).append(path)
        several = {name: paths for name, paths in sessions.items() if len(paths) > 1}
        assert {name[-2:] for name in several} == {"mc", "sc"}
        for name, (one, other) in several.items():
            left, right = soundfile.read(one)[0], soundfile.read(other)[0]
            texts = one.with_suffix(".txt").read_text(), other.with_suffix(".txt").read_text()
            assert (texts[0] == texts[1]) == name.endswith("mc")
            if name.endswith("mc"):
                assert len(left) == len(right)
                assert 0.02 < np.corrcoef(np.diff(left), np.diff(right))[0, 1] < 0.99


class TestDeterminism:
    def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(self, tmp_path) -> None:
        options = {"patients": 2, "recordings_per_patient": 1, "cycles_per_recording": 2, "max_rate_hz": 4000}
        one = contents(write_corpus(tmp_path / "one", seed=3, **options))
        assert contents(write_corpus(tmp_path / "two", seed=3, **options)) == one
        other = contents(write_corpus(tmp_path / "three", seed=4, **options))
        assert not set(one.values()) & {text for name, text in other.items() if name != "patient_list_foldwise.txt"}

    def test_a_larger_corpus_contains_the_smaller_one(self, tmp_path) -> None:
        options = {"recordings_per_patient": 2, "cycles_per_recording": 2, "max_rate_hz": 4000}
        small = contents(write_corpus(tmp_path / "small", patients=3, **options))
        large = contents(write_corpus(tmp_path / "large", patients=5, **options))
        for name, content in small.items():
            if name.endswith("json"):
                continue
            assert large[name].startswith(content) if not NAME.match(name) else large[name] == content, name


class TestLabels:
    def test_a_cycle_holds_what_its_label_says(self) -> None:
        patient = draw_patient(0, 0)
        sounds = {label: draw_cycle(patient, label, 2.5, ("key",)) for label in ("normal", "crackle", "wheeze", "both")}
        plain = sounds.pop("normal")
        added = {label: sound - plain for label, sound in sounds.items()}
        assert all(len(sound) == 20000 for sound in added.values())
        sounding = {label: np.mean(np.abs(sound) > 1e-9) for label, sound in added.items()}
        assert 0 < sounding["crackle"] < 0.1 and 0.2 < sounding["wheeze"] < 0.45  # clicks; a tone of a third of it
        spectrum = np.abs(np.fft.rfft(added["wheeze"]))
        assert 100 < spectrum.argmax() * 8000 / 20000 < 1000
        assert sounding["both"] > sounding["crackle"]

    @pytest.mark.parametrize("seed", range(4))
    def test_the_class_mix_is_near_that_of_icbhi(self, seed) -> None:
        mixes = [_DISEASES[draw_patient(seed, index).diagnosis][2] for index in range(24)]
        assert np.mean(mixes, axis=0) == pytest.approx([0.528, 0.270, 0.128, 0.073], abs=0.04)


class TestWholeOrAbsent:
    def test_the_lock_of_a_killed_writer_does_not_stay(self, tmp_path) -> None:
        folder = tmp_path / "corpus"
        write_corpus(folder, patients=1, recordings_per_patient=1, cycles_per_recording=1, max_rate_hz=4000)
        lock_of(folder).touch()
        assert Synthetic.locate(folder, None, {}) == (folder, {})
        assert list(tmp_path.iterdir()) == [folder]

    def test_a_synthetic_corpus_is_replaced_and_anything_else_is_not(self, tmp_path) -> None:
        options = {"patients": 1, "recordings_per_patient": 1, "cycles_per_recording": 1, "max_rate_hz": 4000}
        write_corpus(tmp_path / "mine", seed=1, **options)
        before = contents(tmp_path / "mine")
        write_corpus(tmp_path / "mine", seed=2, **options)
        assert contents(tmp_path / "mine") != before
        (tmp_path / "recordings").mkdir()
        (tmp_path / "recordings" / "101_1b1_Al_sc_Meditron.wav").write_bytes(b"years of work")
        with pytest.raises(InputError, match="is no synthetic corpus"):
            write_corpus(tmp_path / "recordings", **options)
        assert (tmp_path / "recordings" / "101_1b1_Al_sc_Meditron.wav").read_bytes() == b"years of work"

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("patients", 0),
            ("patients", 900),
            ("recordings_per_patient", 0),
            ("cycles_per_recording", -1),
            ("max_rate_hz", 3000),
            ("max_rate_hz", 8001),
        ],
    )
    def test_impossible_numbers_are_named(self, tmp_path, option, value) -> None:
        with pytest.raises(InputError, match=f"{option} is {value}"):
            write_corpus(tmp_path / "corpus", **{option: value})
        assert list(tmp_path.iterdir()) == []
