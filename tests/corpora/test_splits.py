"""Splits: the published counts of ICBHI 2017, promises, and properties of every draw."""

import itertools
import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laennec.corpora.leaks import leak_check, metadata_frame, refuse_leaks
from laennec.corpora.splits import PROTOCOLS, SplitResult, assign_groups, fingerprint, split_table
from laennec.errors import InputError

LABELS = ["normal", "crackle", "wheeze", "both"]
ALIAS = {"226_1b1_Pl_sc_Meditron": "226_1b1_Pl_sc_LittC2SE"}


@pytest.fixture(scope="module")
def icbhi(shared_data: Path) -> pd.DataFrame:
    """All 6,898 cycles of ICBHI 2017 from the annotation files, without audio."""
    rows = []
    for file in sorted((shared_data / "icbhi2017_annotations").glob("*.txt")):
        patient, _, location, mode, device = file.stem.split("_")
        for number, line in enumerate(file.read_text().split("\n")):
            if line.strip():
                _, _, crackle, wheeze = line.split("\t")
                label = LABELS[int(crackle) + 2 * int(wheeze)]
                rows.append((f"{file.stem}#{number:02d}", file.stem, patient, label, location, mode, device))
    names = ["cycle_id", "recording_id", "patient_id", "label", "chest_location", "acquisition_mode", "device"]
    return pd.DataFrame(rows, columns=names)


@pytest.fixture(scope="module")
def official(shared_data: Path) -> dict[str, str]:
    lines = (shared_data / "icbhi2017_tables" / "ICBHI_challenge_train_test.txt").read_text().split()
    return {ALIAS.get(name, name): part for name, part in zip(lines[::2], lines[1::2], strict=True)}


@pytest.fixture(scope="module")
def published_folds(shared_data: Path) -> dict[str, int]:
    words = (shared_data / "icbhi2017_tables" / "patient_list_foldwise.txt").read_text().split()
    return {patient: int(fold) for patient, fold in zip(words[::2], words[1::2], strict=True)}


@pytest.fixture(scope="module")
def facts(shared_root: Path) -> dict:
    return json.loads((shared_root / "conformance" / "icbhi2017_facts.json").read_text())["cases"][0]["expected"]


def counts(table: pd.DataFrame, rows: np.ndarray) -> dict[str, int]:
    return {**{label: int((table["label"].iloc[rows] == label).sum()) for label in LABELS}, "total": len(rows)}


def patients(table: pd.DataFrame, rows: np.ndarray) -> set[str]:
    return set(table["patient_id"].iloc[rows])


def small(people: int = 10, recordings: int = 2, cycles: int = 4) -> pd.DataFrame:
    """A table of people x recordings x cycles, with labels that depend on the person."""
    rows = []
    for person, recording, cycle in itertools.product(range(people), range(recordings), range(cycles)):
        name = f"{101 + person}_1b{recording + 1}_Al_sc_Meditron"
        label = LABELS[(person * 7 + cycle * 3) % 4]
        rows.append((f"{name}#{cycle:02d}", name, str(101 + person), label, ["Al", "Pr", "Tc"][person % 3], "sc"))
    columns = ["cycle_id", "recording_id", "patient_id", "label", "chest_location", "acquisition_mode"]
    return pd.DataFrame(rows, columns=columns)


def ids(table: pd.DataFrame, split: SplitResult) -> dict[str, set[str]]:
    return {name: set(table["cycle_id"].iloc[rows]) for name, rows in split.splits.items()}


class TestPublishedCounts:
    def test_official_gives_the_published_cycles_and_patients(self, icbhi, official, facts) -> None:
        split = split_table(icbhi, "official", official_split=official, validation_fraction=0)
        assert list(split.splits) == ["train", "test"]
        for name, rows in split.splits.items():
            assert counts(icbhi, rows) == facts["official_cycles"][name]
            assert len(patients(icbhi, rows)) == facts["official_patients"][name]
            assert icbhi["recording_id"].iloc[rows].nunique() == facts["official_recording_split"][name]
            by_device = facts["official_cycles_by_device"][name]
            for device, expected in by_device.items():
                assert counts(icbhi, rows[icbhi["device"].iloc[rows] == device]) == expected

    def test_official_reports_and_stamps_its_known_leak(self, icbhi, official, facts) -> None:
        split = split_table(icbhi, "official", official_split=official)
        leak = split.leaks.between("test", "train")
        assert list(leak.patients) == facts["official_patients"]["in_both"] == ["156", "218"]
        assert leak.recordings == ()
        assert leak.simultaneous == ("156_2b3", "156_5b3", "156_8b3")  # 218 was recorded sequentially, not "mc"
        assert split.stamp == "official split: patients 156 and 218 are in train and test"
        assert split.leaks.shared[0].startswith("train and test share 2 patients (156, 218), 3 simultaneous sessions")

    def test_official_strict_moves_the_two_patients_to_test(self, icbhi, official, facts) -> None:
        split = split_table(icbhi, "official-strict", official_split=official, validation_fraction=0)
        expected = facts["strict_patient_disjoint_test_wins"]
        for name, rows in split.splits.items():
            assert counts(icbhi, rows) == expected["cycles"][name]
            assert len(patients(icbhi, rows)) == expected["patients"][name]
        assert not split.leaks.shared
        assert split.stamp is None

    @pytest.mark.parametrize("fold", [1, 4])
    def test_published_folds_give_the_published_counts(self, icbhi, published_folds, facts, fold) -> None:
        split = split_table(icbhi, "patient-5fold", fold=fold, folds=published_folds)
        expected = facts["respirenet_folds"][str(fold)]
        test = split.splits["test"]
        assert counts(icbhi, test) == expected["cycles"]
        assert len(patients(icbhi, test)) == expected["patients"]
        assert icbhi["recording_id"].iloc[test].nunique() == expected["recordings"]
        assert not split.leaks.shared

    @pytest.mark.parametrize("seed", [0, 1])
    def test_official_validation_is_a_stratified_fifth_of_train_without_test_patients(
        self, icbhi, official, seed
    ) -> None:
        split = split_table(icbhi, "official", official_split=official, seed=seed)
        chosen = patients(icbhi, split.splits["validation"])
        assert not chosen & patients(icbhi, split.splits["test"])
        assert not chosen & patients(icbhi, split.splits["train"])
        assert {"156", "218"} <= patients(icbhi, split.splits["train"])
        whole = counts(icbhi, np.concatenate([split.splits["train"], split.splits["validation"]]))
        for label, number in counts(icbhi, split.splits["validation"]).items():
            assert number / whole[label] == pytest.approx(0.2, abs=0.04), label

    def test_60_20_20_is_stratified_by_chest_location(self, icbhi) -> None:
        split = split_table(icbhi, "patient-60-20-20")
        assert not split.leaks.shared
        for name, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
            places = Counter(icbhi["chest_location"].iloc[split.splits[name]])
            for place, number in Counter(icbhi["chest_location"]).items():
                assert places[place] / number == pytest.approx(share, abs=0.04), (name, place)

    def test_the_leaky_protocols_leak_and_say_so(self, icbhi) -> None:
        cycles = split_table(icbhi, "random-80-20")
        assert cycles.stamp == "leaky: random cycles"
        assert len(cycles.splits["test"]) == round(0.2 * 6898)
        assert len(cycles.splits["validation"]) == round(0.2 * (6898 - len(cycles.splits["test"])))
        assert len(cycles.leaks.between("train", "test").recordings) > 500
        recordings = split_table(icbhi, "recording-80-20")
        assert recordings.stamp == "leaky: random recordings"
        leak = recordings.leaks.between("train", "test")
        assert leak.recordings == ()
        assert len(leak.patients) > 30
        assert len(leak.simultaneous) > 50
        assert recordings.leaks.between("validation", "test").recordings == ()


class TestSprsound:
    def table(self, shared_data: Path) -> pd.DataFrame:
        rows = []
        for part in ("train", "test_intra"):
            for file in sorted((shared_data / "sprsound" / part / "json").glob("*.json")):
                events = json.loads(file.read_text())["event_annotation"]
                for number, event in enumerate(events or [{"type": None}]):
                    rows.append((f"{file.stem}#{number}", file.stem, file.stem.split("_")[0], event["type"], part))
        return pd.DataFrame(rows, columns=["cycle_id", "recording_id", "patient_id", "label", "part"])

    def test_validation_is_like_train_and_shares_no_patient_with_it(self, shared_data) -> None:
        table = self.table(shared_data)
        split = split_table(table, "sprsound-official")
        assert list(split.splits) == ["train", "validation", "test_intra"]
        intra = patients(table, split.splits["test_intra"])
        assert len(intra) == 162
        leak = split.leaks.between("train", "test_intra")
        assert set(leak.patients) == intra - patients(table, split.splits["validation"])
        assert split.leaks.between("train", "validation").patients == ()
        assert split.leaks.between("validation", "test_intra").recordings == ()
        whole = len(split.splits["train"]) + len(split.splits["validation"])
        assert len(split.splits["validation"]) / whole == pytest.approx(0.2, abs=0.03)
        labels = table["label"].to_numpy()
        for name in ("Normal", "Fine Crackle", "Wheeze"):
            counts = [(labels[split.splits[part]] == name).sum() for part in ("train", "validation")]
            assert counts[1] / sum(counts) == pytest.approx(0.2, abs=0.05)

    def test_inter_patients_must_be_unseen(self) -> None:
        table = small(8)
        table["part"] = ["train"] * 40 + ["test_intra"] * 8 + ["test_inter"] * 16
        split = split_table(table, "sprsound-official")
        assert list(split.splits) == ["train", "validation", "test_intra", "test_inter"]
        table.loc[table.index[-1], "patient_id"] = "101"
        with pytest.raises(InputError, match=r"promises that no patient is shared, but .* 1 patient \(101\)"):
            split_table(table, "sprsound-official", validation_fraction=0)

    @pytest.mark.parametrize("part", ["test_intra", "test_inter"])
    def test_a_test_split_alone_needs_no_validation(self, part) -> None:
        split = split_table(small(3).assign(part=part), "sprsound-official")
        assert {name: len(rows) for name, rows in split.splits.items()} == {part: 24}


class TestEveryProtocol:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_every_cycle_is_in_one_split_and_dataset_equals_frame(self, protocol) -> None:
        table = small()
        table.loc[3, ["label", "chest_location"]] = None  # Poor Quality records have no label
        names = sorted(set(table["recording_id"]))
        published = {name: "test" if int(name[:3]) % 3 == 0 else "train" for name in names}
        held_out = {"published-parts": "test", "validation-folder": "validation"}.get(protocol, "test_inter")
        table["part"] = [("train", held_out)[int(name[:3]) % 3 == 0] for name in table["recording_id"]]
        table["fold"] = [str(int(name[:3]) % 3) for name in table["recording_id"]]
        table["device"] = [("Meditron", "AKGC417L")[int(name[:3]) % 3 == 0] for name in table["recording_id"]]
        split = split_table(table, protocol, official_split=published)
        assert sorted(np.concatenate(list(split.splits.values()))) == list(range(len(table)))
        assert all(len(rows) and (np.diff(rows) > 0).all() for rows in split.splits.values())
        labels = datasets.Features(
            {**dict.fromkeys(table, datasets.Value("string")), "label": datasets.ClassLabel(names=LABELS)}
        )
        as_dataset = datasets.Dataset.from_pandas(table, features=labels, preserve_index=False)
        assert split_table(as_dataset, protocol, official_split=published).fingerprint == split.fingerprint

    @pytest.mark.parametrize("protocol", ["patient-5fold", "patient-60-20-20", "random-80-20", "recording-80-20"])
    def test_row_order_does_not_matter_and_the_seed_does(self, protocol) -> None:
        table = small(16)
        mixed = table.sample(frac=1, random_state=3)
        one, other = split_table(table, protocol, seed=5), split_table(mixed, protocol, seed=5)
        assert ids(table, one) == ids(mixed, other)
        assert one.fingerprint == other.fingerprint
        assert len({split_table(table, protocol, seed=seed).fingerprint for seed in range(6)}) == 6

    def test_a_recording_stands_in_for_an_unknown_patient(self) -> None:
        table = small().assign(patient_id=None, fold=[int(name[:3]) % 4 for name in small()["recording_id"]])
        table["category"] = table["label"].map({"normal": "dog", "crackle": "cat", "wheeze": "dog", "both": "owl"})
        table["label"] = None
        split = split_table(table, "published-folds", fold=2, class_column="category", seed=3)
        assert set(table["fold"].iloc[split.splits["test"]]) == {2}
        recordings = [set(table["recording_id"].iloc[rows]) for rows in split.splits.values()]
        assert sum(map(len, recordings)) == len(set().union(*recordings)) == 20
        assert split.stamp == "patients unknown: splits share no recording but may share patients"
        with pytest.raises(InputError, match="no patient_id"):
            split_table(table, "patient-5fold")

    @pytest.mark.parametrize(
        ("people", "who"), [(4, "4 groups of test (101, 102, 103, ...) are"), (2, "2 groups of test (101, 102) are"),
                            (1, "group 101 of test is")],
    )  # fmt: skip
    def test_groups_that_the_data_set_itself_shares_are_reported(self, people, who) -> None:
        table = small(people).assign(fold=[int(name[6]) for name in small(people)["recording_id"]])
        split = split_table(table, "published-folds", fold=1, validation_fraction=0)
        assert split.stamp == f"published-folds: {who} in train or validation too"

    def test_a_published_fold_of_nobody_here_is_refused(self) -> None:
        folds = {str(101 + person): (0, 2)[person % 2] for person in range(10)} | {"226": 4}
        assert patients(small(), split_table(small(), "patient-5fold", fold=2, folds=folds).splits["test"]) == {
            "102", "104", "106", "108", "110",
        }  # fmt: skip
        with pytest.raises(InputError, match=r"none of the patients here is of the published fold 4; .* of 0, 2$"):
            split_table(small(), "patient-5fold", fold=4, folds=folds)
        with pytest.raises(InputError, match="there is no fold 1; the folds are 0, 2, 4"):
            split_table(small(), "patient-5fold", fold=1, folds=folds)

    def test_a_split_is_the_same_on_every_machine_and_version(self) -> None:
        # written down from this code: a change here changes every published split fingerprint
        split = split_table(small(), "patient-5fold", fold=1, seed=7)
        assert patients(small(), split.splits["test"]) == {"102", "106"}
        assert patients(small(), split.splits["validation"]) == {"107", "109"}
        assert split.fingerprint == "330f46b177361b7be596813e53338caab99a478de9f9a66a64339b41f2c06000"


class TestAssignGroups:
    @settings(max_examples=25, deadline=None)
    @given(
        sizes=st.lists(st.integers(1, 40), min_size=5, max_size=40),
        shares=st.sampled_from([(0.8, 0.2), (0.6, 0.2, 0.2), (0.2,) * 5]),
        seed=st.integers(0, 2**32),
        shuffle=st.randoms(use_true_random=False),
    )
    def test_every_group_whole_every_split_filled_any_row_order(self, sizes, shares, seed, shuffle) -> None:
        rows = [(f"p{number}", LABELS[(number + row) % 4]) for number, size in enumerate(sizes) for row in range(size)]
        dealt = assign_groups(*zip(*rows, strict=True), shares, seed=seed, purpose="test")
        assert set(dealt) == {f"p{number}" for number in range(len(sizes))}
        assert set(dealt.values()) == set(range(len(shares)))
        shuffle.shuffle(rows)
        assert assign_groups(*zip(*rows, strict=True), shares, seed=seed, purpose="test") == dealt

    @settings(max_examples=15, deadline=None)
    @given(sizes=st.lists(st.integers(1, 20), min_size=40, max_size=60), seed=st.integers(0, 1000))
    def test_shares_are_met_within_the_largest_group(self, sizes, seed) -> None:
        groups = [f"p{number}" for number, size in enumerate(sizes) for _ in range(size)]
        dealt = assign_groups(groups, ["one"] * len(groups), (0.8, 0.2), seed=seed, purpose="test")
        got = sum(size for number, size in enumerate(sizes) if dealt[f"p{number}"] == 1)
        assert abs(got - 0.2 * sum(sizes)) <= max(sizes)


class TestLeaks:
    def test_shared_things_are_found_by_kind(self) -> None:
        table = small(4)
        table["audio_sha256"] = table["recording_id"]
        table.loc[table["recording_id"] == "103_1b1_Al_sc_Meditron", "audio_sha256"] = "101_1b1_Al_sc_Meditron"
        report = leak_check(table, {"train": np.arange(0, 16), "test": np.arange(16, 32)})
        pair = report.between("train", "test")
        assert (pair.patients, pair.recordings, pair.simultaneous) == ((), (), ())
        assert pair.duplicated_audio == (("101_1b1_Al_sc_Meditron", "103_1b1_Al_sc_Meditron"),)
        assert pair.summary == (
            "train and test share 1 duplicated recording (101_1b1_Al_sc_Meditron = 103_1b1_Al_sc_Meditron)"
        )
        with pytest.raises(InputError, match="patient-5fold"):
            refuse_leaks(report, PROTOCOLS["patient-5fold"])
        refuse_leaks(report, PROTOCOLS["recording-80-20"])

    def test_simultaneous_means_same_patient_same_index_other_location(self) -> None:
        names = ["107_2b3_Al_mc_AKGC417L", "107_2b3_Pr_mc_AKGC417L", "107_2b4_Al_mc_AKGC417L", "107_2b4_Pr_sc_AKGC417L"]
        table = pd.DataFrame({"cycle_id": names, "recording_id": names, "patient_id": ["107"] * 4})
        table["acquisition_mode"] = [name.split("_")[3] for name in names]
        pair = leak_check(table, {"train": [0, 2], "test": [1, 3]}).between("train", "test")
        assert pair.simultaneous == ("107_2b3",)
        short = table.assign(recording_id=[name.rsplit("_", 2)[0] for name in names])  # as short as names come
        assert leak_check(short, {"train": [0], "test": [1, 2, 3]}).between("train", "test").simultaneous == (
            "107_2b3",
        )
        assert pair.patients == ("107",)

    def test_classes_of_a_corpus_of_its_own_take_the_place_of_the_label(self) -> None:
        table = small(2).assign(diagnosis=["asthma", "copd"] * 8)
        assert list(metadata_frame(table, "diagnosis")["label"]) == ["asthma", "copd"] * 8
        assert list(metadata_frame(table)["label"]) == list(small(2)["label"])
        assert list(metadata_frame(small(2), "diagnosis")["label"]) == list(small(2)["label"])  # it has none

    def test_a_shared_recording_breaks_even_the_weaker_promise(self) -> None:
        report = leak_check(small(2), {"train": [0, 1], "test": [2, 3]})
        with pytest.raises(
            InputError, match=r"promises that no recording is shared, but train and test share 1 patient"
        ):
            refuse_leaks(report, PROTOCOLS["official"])
        refuse_leaks(report, PROTOCOLS["random-80-20"])

    def test_identical_audio_under_other_cycles_is_reported_and_no_copy(self) -> None:
        table = small(6)
        table["audio_sha256"] = "the same audio everywhere"
        table["start_s"] = np.arange(len(table)) * 1.0
        table["end_s"] = table["start_s"] + 1
        split = split_table(table, "patient-5fold")
        assert "duplicated recordings" in split.leaks.shared[0]
        table["start_s"], table["end_s"] = 0.0, 1.0
        with pytest.raises(InputError, match="duplicated recordings"):
            split_table(table, "patient-5fold")

    def test_what_could_not_be_checked_is_counted(self) -> None:
        table = small(2)
        table.loc[0, "patient_id"] = None
        report = leak_check(table, {"train": np.arange(8), "test": np.arange(8, 16)})
        assert report.cycles_without_patient == 1
        assert not report.shared

    def test_the_fingerprint_depends_on_contents_and_splits_but_no_order(self) -> None:
        one = fingerprint({"train": ["a", "b"], "test": ["c"]})
        assert one == fingerprint({"test": ["c"], "train": ["b", "a"]})
        assert len(one) == 64
        others = [
            {"train": ["a"], "test": ["c", "b"]},
            {"test": ["a", "b"], "train": ["c"]},
            {"train": ["ab"], "test": ["c"]},
        ]
        assert len({one, *map(fingerprint, others)}) == 4


class TestBadInput:
    def test_where_nearly_all_patients_are_in_test_too_the_others_all_validate(self) -> None:
        table = small(10)
        shared = {str(101 + person) for person in range(8)}
        published = {
            name: "test" if name[:3] in shared and "_1b2_" in name else "train" for name in table["recording_id"]
        }
        split = split_table(table, "official", official_split=published, validation_fraction=0.5)
        assert patients(table, split.splits["validation"]) == {"109", "110"}
        assert patients(table, split.splits["train"]) == shared

    def test_validation_folds_hold_each_patient_of_train_once(self) -> None:
        table = small(20)
        published = {name: "test" if name[:3] in ("101", "102") else "train" for name in table["recording_id"]}
        given = {"protocol": "official", "official_split": published, "validation_fraction": 0.25}
        folds = [split_table(table, **given, validation_fold=fold) for fold in range(4)]
        held_out = [patients(table, split.splits["validation"]) for split in folds]
        whole = split_table(table, **given, validation_fold="all")
        assert sorted(itertools.chain(*held_out)) == sorted(patients(table, whole.splits["train"]))
        assert "validation" not in whole.splits and {len(who) for who in held_out} == {4, 5}
        for split, who in zip(folds, held_out, strict=True):
            assert patients(table, split.splits["train"]).isdisjoint(who)
            assert split.fingerprints["test"] == whole.fingerprints["test"]

    def test_one_line_says_what_is_wrong(self) -> None:
        table = small()
        without = table.assign(patient_id=None)
        published = dict.fromkeys(table["recording_id"], "train")
        cases = [
            ("did you mean 'official'", table, "offical", {}),
            ("needs the published split", table, "official", {}),
            ("does not name 20 of the recordings", table, "official", {"official_split": {"x": "train"}}),
            ("has dev", table, "official", {"official_split": dict.fromkeys(table["recording_id"], "dev")}),
            ("no fold 5", table, "patient-5fold", {"fold": 5}),
            ("do not name 9 of the patients", table, "patient-5fold", {"folds": {"101": 0}}),
            ("no fold 3 to leave out; the folds are 1, 2", table.assign(fold=["1", "2"] * 40), "published-folds",
             {"fold": 3}),
            ("reads column 'part'", table, "sprsound-official", {}),
            ("fold 1 is not used", table, "official", {"fold": 1, "official_split": published}),
            ("validation_fraction is 1", table, "random-80-20", {"validation_fraction": 1}),
            ("at least 5 patients, but the corpus has 4", small(4), "patient-5fold", {}),
            ("at least 3 patients", small(2), "patient-60-20-20", {}),
            ("fewer than 2", small(2), "official", {"official_split": published | {"102_1b1_Al_sc_Meditron": "test"}}),
            ("only 1 cycles", small(1, 1, 1), "random-80-20", {}),
            ("80 cycles have no patient_id", without, "patient-5fold", {}),
            ("in the table twice", pd.concat([table, table]), "random-80-20", {}),
            ("without cycle_id", table.drop(columns="cycle_id"), "random-80-20", {}),
            ("makes 5 folds of", table, "official", {"validation_fold": 5, "official_split": published}),
            ("takes no validation patients from train", table, "patient-60-20-20", {"validation_fold": 0}),
        ]  # fmt: skip
        for message, bad, protocol, options in cases:
            with pytest.raises(InputError, match=message):
                split_table(bad, protocol, **options)


def test_a_left_out_device_is_alone_in_test_and_its_patients_are_nowhere_else() -> None:
    devices = ["A", "A", "B", "B", "B", "C", "C", "A", "B", "C"]
    patients = ["1", "2", "2", "3", "4", "5", "5", "6", "7", "8"]
    names = [f"r{number}" for number in range(len(devices))]
    table = pd.DataFrame(
        {"cycle_id": names, "recording_id": names, "patient_id": patients, "label": "normal", "device": devices}
    )
    for fold, device in enumerate("ABC"):
        parts = split_table(table, "device-out", fold=fold, validation_fraction=0.3).splits
        assert set(table["device"][parts["test"]]) == {device}
        assert sorted(table["device"][parts["test"]]) == sorted(d for d in devices if d == device)
        apart = set(table["patient_id"][parts["train"]]) | set(table["patient_id"][parts["validation"]])
        rest = np.concatenate([parts["test"], parts.get("test_other_devices", np.zeros(0, int))])
        assert not apart & set(table["patient_id"][rest])
        assert sorted(np.concatenate(list(parts.values()))) == list(range(len(devices)))
    assert list(table["recording_id"][split_table(table, "device-out").splits["test_other_devices"]]) == ["r2"]
    with pytest.raises(InputError, match="two of the devices 'A', 'B', 'C', 'a' may be one; write one name"):
        split_table(table.assign(device=[*devices[:-1], "a"]), "device-out", validation_fraction=0)
    with pytest.raises(InputError, match="no device 3 to leave out; there are 0 A, 1 B, 2 C"):
        split_table(table, "device-out", fold=3)
    with pytest.raises(InputError, match="no device -1 to leave out"):
        split_table(table, "device-out", fold=-1)
    with pytest.raises(InputError, match="needs the device"):
        split_table(table.assign(device=None), "device-out")


def test_three_patients_on_both_sides_are_counted(icbhi: pd.DataFrame, official: dict[str, str]) -> None:
    trained = sorted(name for name, part in official.items() if part == "train" and name[:3] not in ("156", "218"))
    moved = next(b for a, b in itertools.pairwise(trained) if a[:3] == b[:3])
    stamp = split_table(icbhi, "official", official_split=official | {moved: "test"}).stamp
    assert stamp is not None
    both = ", ".join(sorted({moved[:3], "156", "218"}))
    assert stamp.startswith(f"official split: 3 of the patients ({both}) are in train and test")
