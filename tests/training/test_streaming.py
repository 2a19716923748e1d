"""Streamed tables give the rows of a loaded table and read no more rows than needed."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import TrainingArguments

import laennec
from laennec import LaennecTrainer
from laennec.audio.augmentation import Gain, WaveformAugmentation
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.losses import SupConLoss
from laennec.training.data.training_data import as_training_data, dataset_from_table


@pytest.fixture(scope="module")
def parquet(small_corpus, tmp_path_factory):
    """A corpus with its sound as one Parquet file."""
    table = laennec.load_corpus("synthetic", small_corpus, protocol="none")["all"]
    path = tmp_path_factory.mktemp("parquet") / "cycles.parquet"
    sounds = [{"bytes": Path(name).read_bytes(), "path": None} for name in table["recording_path"]]
    kind = datasets.Audio(decode=False)
    table.remove_columns("recording_path").add_column("audio", sounds).cast_column("audio", kind).to_parquet(path)
    return path


def streamed(path):
    return datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)


@pytest.fixture
def model(tiny_run):
    return load_model(tiny_run)


def trainer_of(model, folder, train=None, evaluation=None, **settings):
    arguments = TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=4, report_to="none", save_strategy="no", use_cpu=True
    )
    return LaennecTrainer(model[0], arguments, train, evaluation, processing_class=model[1], **settings)


def test_items_are_those_of_the_table_and_each_epoch_draws_anew(model, parquet):
    stream = as_training_data(
        streamed(parquet), model[0].config, model[1], WaveformAugmentation(gain=Gain(1.0)), 3, True
    )
    table = datasets.load_dataset("parquet", data_files=str(parquet), split="train")
    whole = dataset_from_table(
        table, model[1], model[0].config.label_names, augmentation=WaveformAugmentation(gain=Gain(1.0)), seed=3
    )
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        items = list(stream)
        assert len(items) == len(whole) > 32  # several blocks
        for row, item in enumerate(items):
            wanted = whole[(row, epoch)]
            assert np.array_equal(item["waveform"], wanted["waveform"]) and np.array_equal(
                item["label"], wanted["label"]
            )
            assert (item["class_id"], item["cycle_number"]) == (wanted["class_id"], wanted["cycle_number"])


def test_training_and_evaluation_stream(model, parquet, tmp_path):
    table = datasets.load_dataset("parquet", data_files=str(parquet), split="train")
    wanted = trainer_of(model, tmp_path, evaluation=table).evaluate()
    trainer = trainer_of(
        model, tmp_path, streamed(parquet), streamed(parquet), losses={"supcon": SupConLoss()},
        augmentation=WaveformAugmentation(gain=Gain(1.0)),
    )  # fmt: skip
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(wanted["eval_loss"], rel=1e-6)
    before = [parameter.clone() for parameter in model[0].parameters()]
    assert trainer.train().global_step == 2
    assert not all(map(torch.equal, before, model[0].parameters()))


def test_no_more_is_read_than_is_trained_on(model, parquet, tmp_path):
    table, read = datasets.load_dataset("parquet", data_files=str(parquet), split="train"), []
    table = table.cast_column("audio", datasets.Audio(decode=False))

    def rows():
        for row in table:
            read.append(row["cycle_id"])
            yield row

    stored = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({**table.features, "audio": stored})
    stream = datasets.IterableDataset.from_generator(rows, features=features)
    trainer_of(model, tmp_path, stream).train()
    assert 8 <= len(read) <= 32 < len(table)


def test_columns_that_a_stream_lacks_are_named(model, parquet, tmp_path):
    with pytest.raises(InputError, match="no column audio"):
        trainer_of(model, tmp_path, streamed(parquet).remove_columns("audio"))
    by_patient = SupConLoss()
    by_patient.labels, by_patient.views = "patient_id", 1
    with pytest.raises(InputError, match="a streamed table does not have"):
        trainer_of(model, tmp_path, streamed(parquet), losses={"patients": by_patient})
    with pytest.raises(InputError, match="sampler has no effect on a streamed table"):
        trainer_of(model, tmp_path, streamed(parquet), sampler=torch.utils.data.RandomSampler(range(8)))


def test_streamed_recordings_are_predicted_from_memory(model, small_corpus):
    path = sorted(small_corpus.glob("*.wav"))[0]
    predictor = laennec.Predictor(*model)
    found = predictor(path.read_bytes())
    assert found.recording == "waveform" and np.array_equal(found.probabilities, predictor(path).probabilities)


def test_the_sound_of_an_exported_cycle_is_not_cut_again(model, small_corpus, tmp_path):
    folder = laennec.export_corpus("synthetic", small_corpus, tmp_path / "export", protocol="none").folder
    exported = datasets.load_dataset(str(folder), split="all")
    table = laennec.load_corpus("synthetic", small_corpus, protocol="none")["all"]
    names = model[0].config.label_names
    cut, wanted = (dataset_from_table(rows, model[1], names) for rows in (exported, table))
    lengths = [
        dict(zip(rows["cycle_id"], data.waveforms.lengths, strict=True))
        for rows, data in ((exported, cut), (table, wanted))
    ]
    assert lengths[0].keys() == lengths[1].keys() and max(table["start_s"]) > 1
    assert not {
        name: (n, lengths[0][name]) for name, n in lengths[1].items() if abs(n - lengths[0][name]) > 8
    }  # 2 samples at 4 kHz
