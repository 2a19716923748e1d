"""Cycles with their neighbours as context, from the table to the encoder's input, on real recordings and whole runs."""

import json
import math
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from laennec.audio.augmentation import Gain, SpecAugment, TimeShift, WaveformAugmentation
from laennec.audio.cycles import cut, read_annotation
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import read_recording
from laennec.configuration import LaennecConfig
from laennec.corpora import CycleWaveforms, load_corpus
from laennec.encoders import load_encoder
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.modeling import LaennecForAudioClassification
from laennec.training.data.batches import (
    CycleDataset,
    Neighbours,
    collate_cycles,
    cycle_numbers,
    refuse_lost_neighbours,
    view_seed,
)
from laennec.training.data.mixing import BatchFeatures
from laennec.training.data.split_data import make_split
from laennec.training.data.targets import targets_of
from laennec.training.embeddings import EmbeddingCache, cycle_keys
from laennec.training.recipe import Recipe, TargetSettings
from laennec.training.run import train

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "training" / "cache_keys.json").read_text())
AUGMENTATION = WaveformAugmentation(gain=Gain(1.0, -6.0, 6.0), shift=TimeShift(0.5))


@pytest.fixture(scope="module")
def icbhi(shared_data, tmp_path_factory):
    """Cycles of three real recordings, in random row order, one without a label."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        with pytest.warns(UserWarning, match="recordings of ICBHI 2017 .*are missing"):
            table = load_corpus("icbhi2017", shared_data / "icbhi2017_subset", protocol="none", allow_missing=True)[
                "all"
            ]
        names = sorted(set(table["recording_id"]))[:3]
        rows = [row for row, name in enumerate(table["recording_id"]) if name in names]
        table = table.select(np.random.default_rng(0).permutation(rows))
        values = table.to_pandas()
        values.loc[4, ["crackle", "wheeze", "label"]] = None
        return datasets.Dataset.from_pandas(values, features=table.features, preserve_index=False)


def dataset_of(table, k, augmentation=None, rate=16000):
    targets = targets_of(table, TargetSettings())
    kept = table.select(targets.kept)
    neighbours = Neighbours(table, CycleWaveforms(table, rate), targets.kept, k) if k else None
    sounds = CycleWaveforms(kept, rate)
    return kept, CycleDataset(sounds, targets, kept["cycle_id"], rate, 3, augmentation, neighbours=neighbours)


def naive(table, row, k, rate, epoch, view):
    """A cycle and its neighbours in time order, the index of the cycle, and the ids; augmentation follows the ids."""
    rows = [r for r in table if r["recording_id"] == row["recording_id"]]
    rows.sort(key=lambda r: r["start_s"])
    place = [r["cycle_id"] for r in rows].index(row["cycle_id"])
    first = max(place - k, 0)
    sound = read_recording(row["recording_path"], rate).waveform
    pieces = []
    for r in rows[first : place + k + 1]:
        piece = cut(sound, rate, r["start_s"], r["end_s"])
        if epoch is not None:
            number = int(cycle_numbers([r["cycle_id"]])[0])
            piece = AUGMENTATION(piece, rate, seed=view_seed(3, view), epoch=epoch, cycle_index=number)
        pieces.append(piece)
    return pieces, place - first, [r["cycle_id"] for r in rows[first : place + k + 1]]


@pytest.mark.parametrize(("k", "epoch", "views"), [(1, None, 1), (2, 4, 1), (1, 4, 2)])
def test_a_batch_holds_what_a_naive_loop_over_the_recordings_makes(icbhi, k, epoch, views):
    kept, dataset = dataset_of(icbhi, k, AUGMENTATION)
    dataset.views = views
    keys = range(6) if epoch is None else [(row, epoch) for row in range(6)]
    batch = collate_cycles([dataset[key] for key in keys])
    assert batch["context_rows"].shape[0] == 6 * views and len(batch["labels"]) == 6
    for view in range(views):
        for row in range(6):
            pieces, own, names = naive(icbhi, kept[row], k, 16000, epoch, view)
            joined = [int(i) for i in batch["context_rows"][view * 6 + row] if i >= 0]
            assert len(joined) == len(pieces) and joined[own] == view * 6 + row
            for index, piece in zip(joined, pieces, strict=True):
                assert int(batch["lengths"][index]) == len(piece)
                assert np.array_equal(batch["waveforms"][index, : len(piece)].numpy(), piece)
                assert not batch["waveforms"][index, len(piece) :].any()
            others = [i for i in joined if i != view * 6 + row]
            numbers = batch["neighbour_numbers"][
                [i - 6 * views - view * len(batch["neighbour_numbers"]) for i in others]
            ]
            assert numbers.tolist() == cycle_numbers([n for n in names if n != kept[row]["cycle_id"]]).tolist()


def test_a_cycle_without_a_label_is_context_but_no_example(icbhi):
    kept, dataset = dataset_of(icbhi, 1)
    silent = icbhi[4]["cycle_id"]
    assert silent not in kept["cycle_id"] and len(dataset) == len(icbhi) - 1
    around = {other[2] for row in range(len(dataset)) for side in dataset.neighbours.named(row) for other in side}
    assert silent in around


def model_in_context(encoder=None, **settings):
    torch.manual_seed(0)
    encoder = encoder or load_encoder(None, type="cnn", channels=[4, 8])
    config = LaennecConfig(encoder_config=encoder.config, num_labels=2, concatenated_context=True, **settings)
    return LaennecForAudioClassification(config, encoder)


@pytest.mark.parametrize("views", [1, 2])
def test_a_neighbour_has_the_same_masks_as_the_cycle_itself(icbhi, views):
    extractor = LaennecFeatureExtractor("song2021", length="natural", context_cycles=1)
    spec = SpecAugment(8, 8)
    kept, dataset = dataset_of(icbhi, 1)
    dataset.views = views
    inputs, _ = BatchFeatures(extractor, 3, spec_augment=spec)(
        collate_cycles([dataset[(row, 2)] for row in range(5)]), training=True
    )
    for view in range(views):
        for row in range(5):
            pieces, own, names = naive(icbhi, kept[row], 1, 16000, None, 0)
            masked = []
            for piece, name in zip(pieces, names, strict=True):
                values = LaennecFeatureExtractor("song2021", length="natural")(piece, sampling_rate=16000).input_values
                numbers = cycle_numbers([name])
                masked.append(spec(values, None, seed=view_seed(3, view), epochs=[2], cycle_indices=numbers)[0])
            joined = torch.cat(masked)
            place = view * 5 + row
            assert int(inputs["context_mask"][place].sum()) == len(joined)
            torch.testing.assert_close(inputs["context_values"][place, : len(joined)], joined, atol=1e-4, rtol=0)
            alone = masked[own]
            torch.testing.assert_close(inputs["input_values"][place, : len(alone)], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["cnn", "mobilenet", "ast", "beats", "statistics"])
@pytest.mark.parametrize("pooling", ["encoder", "mean"])
def test_any_encoder_gives_a_cycle_alone_and_in_context(icbhi, kind, pooling):
    """The embedding concatenates both, whatever else is in the batch; without neighbours both halves are equal."""
    small = {
        "cnn": {"channels": [4, 8]}, "mobilenet": {"width_mult": 0.1}, "statistics": {},
        "ast": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "beats": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
            "patch_dim": 8, "position_groups": 4,
        },
    }[kind]  # fmt: skip
    if kind == "statistics" and pooling == "mean":
        pytest.skip("its tokens are not of its embedding's width")
    torch.manual_seed(0)
    encoder = load_encoder(None, type=kind, **small)
    model = model_in_context(encoder, pooling=pooling).eval()
    plain = LaennecForAudioClassification(LaennecConfig(encoder_config=encoder.config, pooling=pooling), encoder).eval()
    preset = {"cnn": "song2021", "mobilenet": "efficientat", "beats": "beats"}.get(kind, "ast")
    extractor = LaennecFeatureExtractor(preset, length="natural", context_cycles=1)
    _, dataset = dataset_of(icbhi, 1, rate=extractor.sampling_rate)
    items = [dataset.sound(row) for row in range(4)]
    batch = extractor(items, sampling_rate=extractor.sampling_rate, filtered=True)
    with torch.inference_mode():
        out = model(**batch)
        own = plain.embed(batch.input_values, batch.attention_mask)
        joined = plain.embed(batch.context_values, batch.context_mask)
        torch.testing.assert_close(out.embeddings, torch.cat([own, joined], 1))
        for row, item in enumerate(items):
            alone = model(**extractor(item, sampling_rate=extractor.sampling_rate, filtered=True)).logits[0]
            torch.testing.assert_close(alone, out.logits[row], atol=2e-4, rtol=1e-4)
        bare = extractor(items[0].own, sampling_rate=extractor.sampling_rate, filtered=True)
        first, second = model(**bare).embeddings.chunk(2, 1)
        assert torch.equal(first, second)
        assert torch.equal(model(bare.input_values, bare.attention_mask).embeddings, torch.cat([first, second], 1))
        with pytest.raises(ValueError, match="without concatenated context"):
            plain(**batch)


def test_without_context_cache_keys_are_unchanged(tmp_path):
    names = GOLDEN["fingerprints"]  # of the presets that existed then
    assert {name: LaennecFeatureExtractor(name).fingerprint() for name in names} == GOLDEN["fingerprints"]
    cycle = "101_1b1_Al_sc_Meditron#00"
    table = {"audio_sha256": ["a" * 64], "start_s": [0.036], "end_s": [0.579], "cycle_id": [cycle]}
    assert [cycle_keys(table, "16000 None", draw)[0].hex() for draw in ("", "0 1")] == GOLDEN["cycle_keys"]
    encoder = load_encoder(None, type="cnn", channels=[4, 8])
    for weight in encoder.parameters():
        weight.data.fill_(0.5)
    model = LaennecForAudioClassification(LaennecConfig(encoder_config=encoder.config, num_labels=2), encoder)
    cache = EmbeddingCache(tmp_path, model, LaennecFeatureExtractor("song2021"))
    in_context = LaennecFeatureExtractor("song2021", context_cycles=1)
    assert EmbeddingCache(tmp_path, model, in_context).folder != cache.folder


def test_embeddings_with_different_context_have_different_keys(icbhi):
    keys = {
        k: cycle_keys(*(lambda kept, d: (kept, "16000 None", "", d.neighbours))(*dataset_of(icbhi, k)))
        for k in range(3)
    }
    single = {  # a recording of one cycle: the same sound, but the embedding in context is wider
        k: cycle_keys(kept, "", "", d.neighbours) for k in (0, 1) for kept, d in [dataset_of(icbhi.select([0]), k)]
    }
    assert single[0] != single[1]
    for one, other in ((0, 1), (0, 2)):
        assert not set(keys[one]) & set(keys[other])
    values = icbhi.to_pandas()
    row = int(values[values.recording_id == values.recording_id[0]].sort_values("start_s").index[1])
    values.loc[row, "end_s"] -= 0.01
    moved = datasets.Dataset.from_pandas(values, features=icbhi.features, preserve_index=False)
    kept, dataset = dataset_of(moved, 1)
    changed = cycle_keys(kept, "16000 None", "", dataset.neighbours)
    differing = {kept[i]["cycle_id"] for i in range(len(kept)) if changed[i] != keys[1][i]}
    assert len(differing) == 3 and values.cycle_id[row] in differing  # the changed cycle and its two neighbours
    plain, drawn = (cycle_keys(kept, "", draw, dataset.neighbours) for draw in ("", "0 1"))
    assert not set(plain) & set(drawn)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": {"context_cycles": -1}}, "features.context_cycles is -1"),
        ({"features": {"context_cycles": 1.5}}, "features.context_cycles is 1.5"),
        ({"augment": {"mix": {"method": "mixup"}}}, "augment.mix combines cycles of several recordings"),
        ({"augment": {"mix": {"method": "patch_mix"}}}, "augment.mix combines cycles of several recordings"),
        ({"augment": {"concatenate_probability": 0.2}}, "augment.concatenate_probability combines cycles"),
        ({"corpus": {"name": "sprsound", "level": "record"}}, "corpus.level: record"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(changes, words):
    with pytest.raises(InputError, match=words):
        Recipe(**({"features": {"context_cycles": 1}} | changes))


def test_splits_that_leave_no_neighbours_are_one_line(tiny_recipe, tmp_path):
    settings = tiny_recipe | {"features": {"preset": "song2021", "length": "natural", "context_cycles": 1}}
    settings["corpus"] = tiny_recipe["corpus"] | {"protocol": "random-80-20"}
    recipe = Recipe(**(settings | {"output_dir": str(tmp_path / "run")}))
    with pytest.raises(InputError, match=r"protocol random-80-20 puts cycles of one recording \(1\d\d_"):
        train(recipe)
    assert not (tmp_path / "run").exists()
    single = {"train": {"recording_id": ["a", "b"]}, "test": {"recording_id": ["c"]}}
    tables = {name: datasets.Dataset.from_dict(columns) for name, columns in single.items()}
    with pytest.raises(InputError, match="no training recording has a second cycle"):
        refuse_lost_neighbours(tables, "official", 1)
    refuse_lost_neighbours(tables, "official", 0)


def run(settings, out, **changes):
    recipe = Recipe(**(settings | changes))
    recipe.output_dir = str(out)
    return train(recipe)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_run_in_context_selects_and_predicts_with_the_same_input(tiny_recipe, tmp_path, frozen):
    """The validation loss of training equals that of the written predictions, which other code computes."""
    changes = {
        "features": {"preset": "song2021", "length": "repeat", "duration_s": 1.0, "context_cycles": 2},
        "encoder": {"type": "cnn", "config": {"channels": [4, 8]}, "trainable": "frozen" if frozen else "full"},
        "augment": {"gain": {"probability": 1.0}, "copies": 2} | ({} if frozen else {"spec": {}}),
    }
    out = run(tiny_recipe, tmp_path / "run", **changes)
    record = json.loads((out / "run.json").read_text())
    table = pd.read_parquet(out / "predictions-validation.parquet")
    logits = torch.tensor(table[["logit_crackle", "logit_wheeze"]].to_numpy())
    truth = torch.tensor(table[["crackle", "wheeze"]].to_numpy(dtype=float))
    loss = float(torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), truth))
    assert math.isclose(loss, min(h["validation"]["loss"] for h in record["history"]), rel_tol=1e-3)
    assert record["config"]["features"]["context_cycles"] == 2
    model, extractor = load_model(out)
    assert model.config.concatenated_context and extractor.context_cycles == 2
    # naive: cut each validation cycle and its context from the recording
    for _, rows in list(table.groupby("recording_id"))[:2]:
        folder = Path(tiny_recipe["corpus"]["data_dir"])
        name = rows.recording_id.iloc[0]
        spans = [(c.start_s, c.end_s) for c in read_annotation(folder / f"{name}.txt")]
        sound = read_recording(folder / f"{name}.wav", extractor.sampling_rate).waveform
        fitted = LaennecFeatureExtractor("song2021", length="repeat", duration_s=1.0)
        for place, (_, row) in enumerate(rows.sort_values("start_s").iterrows()):
            features = [
                fitted(cut(sound, 16000, *span), sampling_rate=16000).input_values
                for span in spans[max(place - 2, 0) : place + 3]
            ]
            with torch.inference_mode():
                answer = model(features[min(place, 2)], context_values=torch.cat(features, 1)).logits[0]
            assert answer.tolist() == pytest.approx([row.logit_crackle, row.logit_wheeze], abs=1e-4)


def test_few_labels_keep_the_neighbours_of_the_whole_split(icbhi):
    """Cycles outside a label fraction are still context for those inside, also for repeated ones."""
    rows = np.array([5, 2, 5])
    extractor = LaennecFeatureExtractor("song2021", context_cycles=1)
    part = make_split("train", icbhi, Recipe(**{}), extractor, None, True, rows)
    whole = make_split("train", icbhi, Recipe(**{}), extractor, None, True)
    for place, row in enumerate(rows):
        assert part.dataset.neighbours.named(place) == whole.dataset.neighbours.named(row)
        one, other = part.dataset.sound(place), whole.dataset.sound(int(row))
        assert all(np.array_equal(a, b) for a, b in zip(one.pieces, other.pieces, strict=True))
        assert part.keys()[place] == whole.keys()[row]


def test_a_model_and_a_front_end_that_do_not_match_are_named(tiny_run, tmp_path):
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    path = tmp_path / "model" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"context_cycles": 1}))
    with pytest.raises(InputError, match=r"the model takes no concatenated context.*context_cycles 1"):
        load_model(tmp_path / "model")
