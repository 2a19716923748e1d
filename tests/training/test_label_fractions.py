"""Which cycles a draw of labels has, and what is learnt from them."""

import numpy as np
import pytest

from laennec.errors import InputError
from laennec.training.label_fractions import (
    cell_recipe,
    labelled_rows,
    labelled_split,
    parse_fractions,
    parse_modes,
    refuse_missing_labels,
)
from laennec.training.recipe import EncoderSettings, Recipe
from laennec.training.split_data import load_decoded, make_extractor, make_split
from laennec.training.targets import Targets

OFFICIAL_TRAIN = (2063, 1215, 501, 363)  # of ICBHI 2017: normal, crackle, wheeze, both
FRACTIONS = (0.01, 0.1, 0.5, 1.0)


@pytest.fixture(scope="module")
def official():
    classes = np.repeat(np.arange(4), OFFICIAL_TRAIN)
    np.random.default_rng(0).shuffle(classes)
    return classes, [f"cycle {k}" for k in range(len(classes))]


def test_each_class_gives_its_share(official):
    classes, ids = official
    counts = {f: np.bincount(classes[labelled_rows(classes, ids, f, 0, 0)], minlength=4).tolist() for f in FRACTIONS}
    assert counts == {
        0.01: [21, 12, 5, 4],
        0.1: [206, 122, 50, 36],
        0.5: [1032, 608, 251, 182],
        1.0: list(OFFICIAL_TRAIN),
    }


def test_a_smaller_fraction_lies_within_a_larger_one(official):
    classes, ids = official
    for draw in range(3):
        sets = [set(labelled_rows(classes, ids, f, 0, draw).tolist()) for f in FRACTIONS]
        assert sets[0] < sets[1] < sets[2] < sets[3]


def test_draws_and_seeds_are_unrelated_samples(official):
    classes, ids = official
    samples = [set(labelled_rows(classes, ids, 0.1, *key).tolist()) for key in ((0, 0), (0, 1), (1, 0))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 20 < len(samples[a] & samples[b]) < 70  # 41 of 414 by chance


def test_a_draw_hangs_on_ids_and_not_on_the_order_of_rows(official):
    classes, ids = official
    order = np.random.default_rng(1).permutation(len(ids))
    there = {ids[r] for r in labelled_rows(classes, ids, 0.05, 0, 2)}
    shuffled = [ids[k] for k in order]
    assert {shuffled[r] for r in labelled_rows(classes[order], shuffled, 0.05, 0, 2)} == there
    rows = labelled_rows(classes, ids, 0.05, 0, 2)
    assert (np.diff(rows) > 0).all() and rows.dtype == np.int64


def test_a_rare_class_keeps_one_cycle():
    classes = np.array([0] * 96 + [1] * 2 + [2] * 2)
    rows = labelled_rows(classes, [str(k) for k in range(100)], 0.03, 0, 0)
    assert np.bincount(classes[rows]).tolist() == [3, 1, 1]


def test_a_fraction_without_room_for_every_class_names_the_least(official):
    classes, ids = official
    with pytest.raises(InputError, match=r"0\.0005 of 4142 training cycles is 2, too few for the 4 classes") as said:
        labelled_rows(classes, ids, 0.0005, 0, 0)
    least = float(str(said.value).split("at least ")[1].split()[0])
    assert len(np.unique(classes[labelled_rows(classes, ids, least, 0, 0)])) == 4


@pytest.mark.parametrize("text", ["0", "-0.1", "1.01", "nan", "inf", "half", "", "0.1,,0.5", "0.1,2", "1e-400"])
def test_fractions_that_are_none(text):
    with pytest.raises(InputError, match="above 0 and at most 1"):
        parse_fractions(text)


def test_fractions_and_modes_are_read():
    assert parse_fractions("1.0, 0.01,0.1,0.10") == [0.01, 0.1, 1.0]
    assert parse_modes("finetune, linear") == ["linear", "finetune"] and parse_modes("finetune") == ["finetune"]
    for text in ("", "linear,", "probe", "Linear"):
        with pytest.raises(InputError, match="linear, finetune or both"):
            parse_modes(text)


def test_a_label_that_never_or_always_occurs_teaches_nothing():
    flags = np.array([[0, 1], [1, 1]], np.float32)
    with pytest.raises(InputError, match="no cycle without wheeze"):
        refuse_missing_labels(Targets(["crackle", "wheeze"], flags, np.arange(2), np.arange(2)))
    with pytest.raises(InputError, match="no cycle with wheeze"):
        refuse_missing_labels(Targets(["crackle", "wheeze"], flags * [1, 0], np.arange(2), np.arange(2)))
    refuse_missing_labels(Targets(["a", "b"], np.array([0, 0]), np.array([0, 0]), np.arange(2)))


@pytest.fixture(scope="module")
def everything():
    """A recipe with all that a cell leaves out."""
    return Recipe(
        **{
            "name": "all",
            "output_dir": "somewhere",
            "encoder": {"type": "cnn", "config": {"channels": [4, 8]}},
            "head": {"hidden_dim": 8, "projection_dim": 16, "dropout": 0.3, "threshold_rule": "f1"},
            "loss": {"auxiliary": {"add": {"weight": 0.2}}, "class_weights": "balanced"},
            "sampler": {"name": "classes_times_samples"},
            "augment": {"shift": {"probability": 1.0}, "mix": {"method": "mixup"}},
            "train": {"epochs": 7, "learning_rate": 3e-4},
        }
    )


def test_a_cell_learns_from_the_task_loss_alone(everything):
    start = EncoderSettings(type="cnn", weights="weights/encoder")
    tuned, linear = (cell_recipe(everything, mode, start, {}) for mode in ("finetune", "linear"))
    for cell in (tuned, linear):
        assert cell.loss.auxiliary == {} and cell.augment.mix is None and cell.sampler.name == "shuffle"
        assert cell.encoder.weights == "weights/encoder" and cell.output_dir is None and cell.head.projection_dim == 0
        assert (cell.loss.class_weights, cell.head.dropout, cell.head.threshold_rule) == ("balanced", 0.3, "f1")
        assert (cell.train.epochs, cell.train.learning_rate) == (7, 3e-4)
    assert (tuned.encoder.frozen, tuned.head.hidden_dim) == (False, 8) and tuned.augment.shift.probability == 1.0
    assert (linear.encoder.frozen, linear.head.hidden_dim) == (True, 0) and linear.augment.shift is None
    given = cell_recipe(everything, "finetune", start, {"train.epochs": "2", "loss.class_weights": ""})
    assert given.train.epochs == 2 and given.loss.class_weights is None


@pytest.mark.parametrize(
    ("how", "moved"), [("full", "full"), ("frozen", "full"), ("last_n", "last_n"), ("lora", "lora")]
)
def test_finetuning_moves_what_the_run_moved_and_linear_nothing(tiny_recipe, how, moved):
    """A frozen run is asked about all of its encoder."""
    encoder = {"type": "ast", "weights": "here", "trainable": how, "train_last_layers": int(how == "last_n")}
    recipe = Recipe(**(tiny_recipe | {"features": {"preset": "ast"}, "encoder": encoder}))
    tuned, linear = (cell_recipe(recipe, mode, recipe.encoder, {}).encoder for mode in ("finetune", "linear"))
    assert (tuned.frozen, tuned.trainable, tuned.train_last_layers) == (False, moved, int(how == "last_n"))
    assert (linear.frozen, linear.trainable) == (True, "frozen")


@pytest.mark.parametrize(
    "key", ["corpus.protocol", "encoder.weights", "seed", "epochs", "features.preset", "trian.epochs"]
)
def test_settings_that_cells_share_cannot_be_given(everything, key):
    with pytest.raises(InputError, match="train, head, loss, augment"):
        cell_recipe(everything, "linear", everything.encoder, {key: "1"})


def test_an_unknown_setting_names_the_nearest(everything):
    with pytest.raises(InputError, match=r"did you mean 'train\.epochs'"):
        cell_recipe(everything, "linear", everything.encoder, {"train.epohcs": "1"})


def test_a_small_fraction_repeats_until_an_epoch_is_as_long_as_all(tiny_recipe):
    recipe = Recipe(**(tiny_recipe | {"augment": {"shift": {"probability": 1.0}}}))
    extractor = make_extractor(recipe.features)
    table = load_decoded(recipe, extractor.sampling_rate)["train"]
    full = make_split("train", table, recipe, extractor, None, False)
    rows = labelled_rows(full.targets.class_ids, full.table["cycle_id"], 0.3, 0, 0)
    part = labelled_split(recipe, table, extractor, full, rows)
    repeats = len(part.dataset) // len(rows)
    assert repeats == round(len(full.dataset) / len(rows)) > 1 and len(part.dataset) == repeats * len(rows)
    n = len(rows)
    for k, row in enumerate(rows.tolist()):
        for again in range(repeats):
            item = part.dataset[k + again * n]
            np.testing.assert_array_equal(item["waveform"], full.dataset[row]["waveform"])
            np.testing.assert_array_equal(item["label"], full.targets.labels[row])
            assert part.table["patient_id"][k + again * n] == full.table["patient_id"][row]
            assert part.targets.metadata["patient_id"][k] == full.table["patient_id"][row]
    # a repeat of an epoch is augmented anew, the first as it would be in the full set
    first, second = part.dataset[(0, 0)]["waveform"], part.dataset[(n, 0)]["waveform"]
    assert not np.array_equal(first, second)
    whole = labelled_split(recipe, table, extractor, full, np.arange(len(full.dataset)))
    assert len(whole.dataset) == len(full.dataset)
    np.testing.assert_array_equal(whole.dataset[(int(rows[0]), 0)]["waveform"], first)
