import datasets
import numpy as np
import pytest
import soundfile
import torch

from laennec.audio.augmentation import Gain, PitchShift, TimeShift, TimeStretch, WaveformAugmentation, WhiteNoise
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.mixing import LabelUnion, lungmix_label
from laennec.errors import InputError
from laennec.training.data.batches import (
    Concatenation,
    CycleDataset,
    EmbeddingDataset,
    collate_cycles,
    cycle_numbers,
)
from laennec.training.data.split_data import make_filter
from laennec.training.data.targets import Targets, target_of, targets_of
from laennec.training.data.training_data import dataset_from_table
from laennec.training.recipe import TargetSettings
from laennec.training.recipe.settings import FeatureSettings
from laennec.training.tables import truth_table


@pytest.fixture
def table():
    return datasets.Dataset.from_dict(
        {
            "cycle_id": ["a", "b", "c", "d", "e"],
            "crackle": [0, 1, 0, 1, None],
            "wheeze": [0, 0, 1, 1, None],
            "label": [0, 1, 2, 3, None],
            "events": [["Normal"], ["Fine Crackle"], ["Wheeze"], ["Wheeze", "Fine Crackle"], []],
            "diagnosis": ["COPD", "Asthma", None, "COPD", "COPD"],
        }
    )


def test_two_labels_come_from_the_flags_and_rows_without_any_are_left_out(table):
    targets = targets_of(table, TargetSettings())
    assert targets.names == ["crackle", "wheeze"]
    assert targets.labels.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert targets.class_ids.tolist() == [0, 1, 2, 3]
    classes = targets_of(table, TargetSettings(problem_type="single_label"))
    assert classes.names == ["normal", "crackle", "wheeze", "both"] and classes.labels.tolist() == [0, 1, 2, 3]
    assert targets.kept.tolist() == [0, 1, 2, 3]


def test_any_column_can_be_the_target(table):
    targets = targets_of(table, TargetSettings(problem_type="single_label", column="diagnosis"))
    assert targets.names == ["Asthma", "COPD"]
    assert targets.labels.tolist() == [1, 0, 1, 1] and targets.kept.tolist() == [0, 1, 3, 4]
    events = targets_of(table, TargetSettings(problem_type="multi_label", column="events"))
    assert events.names == ["Fine Crackle", "Normal", "Wheeze"]
    assert events.labels.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]]


def test_unlabelled_rows_of_the_hub_and_nan_are_unknown(table):
    names = ["normal", "crackle", "wheeze", "both"]
    classes = table.remove_columns("label").add_column("label", [0, 1, -1, 3, -1])
    classes = classes.cast_column("label", datasets.ClassLabel(names=names))
    targets = targets_of(classes, TargetSettings(problem_type="single_label"))
    assert targets.labels.tolist() == [0, 1, 3] and targets.kept.tolist() == [0, 1, 3]
    assert truth_table(classes, "test")["label"].isna().tolist() == [False, False, True, False, True]
    floats = table.remove_columns("crackle").add_column("crackle", [0.0, 1.0, float("nan"), 1.0, 0.0])
    assert targets_of(floats, TargetSettings()).kept.tolist() == [0, 1, 3]


@pytest.mark.parametrize("value", [2, -1, 0.5])
def test_a_label_that_is_neither_0_nor_1_is_an_error(table, value):
    wrong = table.remove_columns("crackle").add_column("crackle", [0, 1, 0, value, None])
    with pytest.raises(InputError, match=rf"column 'crackle', row 3: {value} is neither 0 nor 1; give 0, 1, or null"):
        targets_of(wrong, TargetSettings())


def test_a_class_that_training_did_not_have_is_an_error(table):
    with pytest.raises(InputError, match=r"'COPD' of column 'diagnosis' is none of Asthma"):
        targets_of(table, TargetSettings(problem_type="single_label", column="diagnosis"), ["Asthma"])
    with pytest.raises(InputError, match=r"target.column is 'mood'"):
        target_of(table, TargetSettings(column="mood"))
    with pytest.raises(InputError, match=r"'rhonchus', which is no column"):
        targets_of(table, TargetSettings(names=["crackle", "rhonchus"]))


def make(augmentation=None, concatenation=None, seed=0):
    sounds = [np.full(4 + row, float(row + 1), np.float32) for row in range(4)]
    flags = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    targets = Targets(["crackle", "wheeze"], flags, np.arange(4), np.arange(4))
    return CycleDataset(sounds, targets, ["a", "b", "c", "d"], 16000, seed, augmentation, concatenation)


def failing(waveform, sampling_rate, generator):
    return None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_that_fails_names_its_cycle_in_one_line(workers):
    dataset = make(WaveformAugmentation(transforms=(failing,)))
    loader = torch.utils.data.DataLoader(dataset, sampler=[(2, 0)], num_workers=workers)
    with pytest.raises(InputError, match=r"^c: the transform failing must return one dimension .* not \(\)$"):
        list(loader)


def test_two_views_are_two_draws_of_which_the_first_is_that_of_one_view():
    augmentation = WaveformAugmentation(gain=Gain(1.0, -6.0, 6.0))
    single, double = make(augmentation), make(augmentation, Concatenation(1.0, np.array([2])))
    single.concatenation = double.concatenation
    double.views = 2
    item = double[(1, 5)]
    (second,) = item["other_views"]
    assert np.array_equal(item["waveform"], single[(1, 5)]["waveform"])
    assert len(second) == len(item["waveform"]) and not np.allclose(second, item["waveform"])
    assert np.array_equal(second, double[(1, 5)]["other_views"][0])
    assert not np.allclose(second, double[(1, 6)]["other_views"][0])
    assert double[1]["other_views"] == []


def test_random_crops_differ_by_epoch_and_view_and_prediction_uses_the_whole_cycle():
    dataset = make(None)
    dataset.crop_samples, dataset.views = 3, 2
    dataset.waveforms = [np.arange(7, dtype=np.float32)] * 4
    whole = dataset[3]["waveform"]
    parts = [
        sound for epoch in range(20) for sound in (dataset[(3, epoch)]["waveform"], *dataset[(3, epoch)]["other_views"])
    ]
    starts = [next(k for k in range(5) if np.array_equal(part, whole[k : k + 3])) for part in parts]
    assert set(starts) == set(range(5)) and starts[::2] != starts[1::2]
    assert np.array_equal(dataset[(3, 4)]["waveform"], parts[8])
    dataset.crop_samples = 9
    assert np.array_equal(dataset[(3, 0)]["waveform"], whole)


def test_first_views_stand_before_second_ones_and_labels_once():
    dataset = make(WaveformAugmentation(gain=Gain(1.0, -6.0, 6.0)))
    dataset.views, dataset.groups = 2, {"device drop": np.array([0, -1, 1, 1])}
    batch = collate_cycles([dataset[(0, 1)], dataset[(3, 1)]])
    assert batch["waveforms"].shape == (4, 7) and batch["lengths"].tolist() == [4, 7, 4, 7]
    assert np.array_equal(batch["waveforms"][3], dataset[(3, 1)]["other_views"][0])
    assert batch["labels"].shape == (2, 2) and batch["class_ids"].tolist() == [0, 3]
    assert batch["group_ids"]["device drop"].tolist() == [0, 1]
    host = batch["on_host"]  # copies on the CPU, so that draws do not wait for the GPU
    assert all(isinstance(values, np.ndarray) for values in host.values())
    assert host["epochs"].tolist() == [1, 1] and host["lengths"].tolist() == batch["lengths"].tolist()


def test_targets_carry_the_metadata_of_the_rows_that_are_kept(table):
    assert targets_of(table, TargetSettings()).metadata["cycle_id"] == ["a", "b", "c", "d"]
    assert targets_of(table, TargetSettings()).metadata["diagnosis"] == ["COPD", "Asthma", None, "COPD"]


def test_cycle_numbers_follow_the_id_not_the_row():
    assert cycle_numbers(["x", "y"])[1] == cycle_numbers(["y"])[0]
    assert (cycle_numbers([str(i) for i in range(1000)]) >= 0).all()


def test_collating_pads_with_zeros_and_keeps_true_lengths():
    dataset = make()
    batch = collate_cycles([dataset[(0, 1)], dataset[(3, 1)]])
    assert batch["lengths"].tolist() == [4, 7] and batch["waveforms"].shape == (2, 7)
    assert batch["waveforms"][0].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert batch["epochs"].tolist() == [1, 1] and batch["labels"].dtype == torch.float32


def test_embeddings_take_the_copy_of_their_epoch():
    embeddings = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    dataset = EmbeddingDataset(embeddings, np.arange(6).reshape(2, 3), ["a", "b", "c"])
    assert dataset[(1, 3)]["embeddings"].tolist() == embeddings[1, 1].tolist()
    assert dataset[1]["embeddings"].tolist() == embeddings[0, 1].tolist()
    batch = dataset.__getitems__([(1, 3), 2, (0, 4)])
    assert batch["embeddings"].tolist() == [embeddings[1, 1].tolist(), *embeddings[0, [2, 0]].tolist()]
    assert batch["labels"].tolist() == [4, 2, 0] and batch["cycle_numbers"].tolist() == [1, 2, 0]


FOUR = ["normal", "crackle", "wheeze", "both"]
PARTS = {
    "noise": {"augmentation": WaveformAugmentation(noise=WhiteNoise(0.7))},
    "shift": {"augmentation": WaveformAugmentation(shift=TimeShift(0.7))},
    "stretch": {"augmentation": WaveformAugmentation(stretch=TimeStretch(0.7))},
    "pitch": {"augmentation": WaveformAugmentation(pitch=PitchShift(0.7))},
    "gain": {"augmentation": WaveformAugmentation(gain=Gain(0.7))},
    "concatenation": {"concatenation": Concatenation(0.7, np.arange(12))},
}


def twelve(single_label=False, seed=0, **draws):
    sound = np.random.default_rng(0)
    sounds = [sound.standard_normal(900 + 40 * row).astype(np.float32) for row in range(12)]
    classes = np.arange(12) % 4
    flags = np.stack([classes % 2, classes // 2], 1).astype(np.float32)
    names = FOUR if single_label else ["crackle", "wheeze"]
    targets = Targets(names, classes if single_label else flags, classes, np.arange(12))
    return CycleDataset(sounds, targets, [f"cycle {row}" for row in range(12)], 4000, seed, **draws)


def drawn(dataset, rows, batch_size, workers, epoch=3):
    """Sound and label of each cycle by its number, for any batches and workers."""
    keys = [(row, epoch) for row in rows]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, sampler=keys, num_workers=workers, collate_fn=collate_cycles
    )
    found = {}
    for batch in loader:
        for row, number in enumerate(batch["cycle_numbers"].tolist()):
            sound = batch["waveforms"][row, : batch["lengths"][row]].clone()
            found[number] = (sound, batch["labels"][row].clone(), int(batch["class_ids"][row]))
    return found


def alike(one, two):
    return [torch.equal(one[n][0], two[n][0]) and torch.equal(one[n][1], two[n][1]) for n in one]


@pytest.mark.parametrize("single_label", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_a_cycles_draw_is_the_same_whatever_batch_worker_or_order_it_came_in(part, single_label):
    dataset = twelve(single_label, **PARTS[part])
    one = drawn(dataset, range(12), 4, 0)
    assert all(alike(one, drawn(dataset, [7, 3, 11, 0, 5, 2, 9, 1, 10, 8, 6, 4], 5, 2)))
    state = np.random.get_state()[1].copy()
    torch.manual_seed(99)
    assert all(alike(one, drawn(twelve(single_label, **PARTS[part]), range(11, -1, -1), 12, 0)))
    assert (np.random.get_state()[1] == state).all()
    assert not all(alike(one, drawn(dataset, range(12), 4, 0, epoch=4)))
    assert not all(alike(one, drawn(twelve(single_label, seed=1, **PARTS[part]), range(12), 4, 0)))


@pytest.mark.parametrize("single_label", [False, True])
def test_concatenated_cycles_are_labelled_by_what_either_holds(single_label):
    union = LabelUnion(FOUR, False) if single_label else None
    dataset = twelve(single_label, concatenation=Concatenation(1.0, np.arange(12), union))
    partners = set()
    for epoch in range(8):
        for row in range(12):
            partner, item = dataset.paired_row(row, epoch), dataset[(row, epoch)]
            assert partner != row and len(item["waveform"]) == 1800 + 40 * (row + partner)
            heard = FOUR.index(lungmix_label(FOUR[row % 4], FOUR[partner % 4]))
            assert item["class_id"] == heard
            assert np.array_equal(item["label"], heard if single_label else [heard % 2, heard // 2])
            assert item["label"].dtype == dataset.targets.labels.dtype
            partners.add(partner)
    assert len(partners) == 12
    alone = twelve(concatenation=Concatenation(1.0, np.array([2])))
    assert alone.paired_row(2, 0) is None and alone.paired_row(3, 0) == 2


@pytest.fixture
def labelled_audio(tmp_path):
    """A table of three recordings with an audio column and own label columns."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(3):
        paths.append(str(tmp_path / f"{number}.wav"))
        soundfile.write(paths[-1], 0.1 * rng.standard_normal(8000), 4000)
    columns = {"audio": paths, "stridor": [0, 1, None], "rhonchi": [1, 1, 0], "label": ["a", "b", "a"]}
    return datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=False))


def test_any_table_with_audio_and_labels_is_a_data_set(labelled_audio):
    extractor = LaennecFeatureExtractor("song2021")
    data = dataset_from_table(labelled_audio, extractor, ["stridor", "rhonchi"])
    assert data.targets.labels.tolist() == [[0, 1], [1, 1]] and len(data) == 2
    assert data.waveforms.lengths.tolist() == [len(data[0]["waveform"])] * 2 == [32000] * 2
    classes = dataset_from_table(labelled_audio, extractor, ["a", "b"], "single_label")
    assert classes.targets.labels.tolist() == [0, 1, 0]
    assert len(collate_cycles([classes[0], classes[1]])["lengths"]) == 2
    half = labelled_audio.add_column("start_s", [0.5] * 3).add_column("end_s", [1.5] * 3)
    assert len(dataset_from_table(half, extractor, ["rhonchi"])[0]["waveform"]) == 16000


def test_paths_without_times_are_whole_recordings(labelled_audio):
    paths = [row["path"] for row in labelled_audio["audio"]]
    table = datasets.Dataset.from_dict({"recording_path": paths, "rhonchi": [1, 1, 0]})
    data = dataset_from_table(table, LaennecFeatureExtractor("song2021"), ["rhonchi"])
    assert data.waveforms.lengths.tolist() == [32000] * 3
    with pytest.raises(InputError, match="no column audio and no recording_path; it has rhonchi"):
        dataset_from_table(table.remove_columns("recording_path"), LaennecFeatureExtractor("song2021"), ["rhonchi"])
    with pytest.raises(InputError, match="'snore'"):
        dataset_from_table(table, LaennecFeatureExtractor("song2021"), ["snore"])


def test_augmentation_of_a_table_is_drawn_by_seed_epoch_and_row(labelled_audio):
    gain = WaveformAugmentation(gain=Gain(1.0, -6.0, 6.0))
    data = dataset_from_table(
        labelled_audio, LaennecFeatureExtractor("song2021"), ["rhonchi"], augmentation=gain, seed=3
    )
    first, again, other = (data[key]["waveform"] for key in ((0, 0), (0, 0), (0, 1)))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first, data[0]["waveform"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"filter_kind": "lowpass"}, "filter_kind is set, but features.filter_cutoff_hz is not"),
        ({"filter_cutoff_hz": 4000}, "filter_cutoff_hz is set, but features.filter_kind is not"),
    ],
)
def test_a_recording_filter_needs_its_kind_and_its_cutoff(given, words):
    with pytest.raises(InputError, match=words):
        make_filter(FeatureSettings(**given))
