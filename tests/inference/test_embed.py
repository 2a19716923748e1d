"""Embeddings are those of the model alone, named by their spans, and kept as predictions are."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from batches import by_hand, content, copied

import laennec
from laennec.audio.cycles import cut, read_annotation, sliding_windows
from laennec.audio.recording import read_recording
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.inference.embed import Embedder, embed
from laennec.inference.predictor import Predictor


@pytest.fixture(scope="module")
def recordings(small_corpus, tmp_path_factory):
    """Three recordings with annotations, a damaged one in the middle."""
    return copied(small_corpus, tmp_path_factory.mktemp("recordings"), "a", "b_bad", "c", "embeddings")


def table_of(folder, name="laennec.embeddings"):
    return pq.read_table(folder / f"{name}.parquet")


def matrix(table):
    return np.stack(table["embedding"].to_pylist()).astype(np.float32)


def test_windows_are_embedded_as_by_the_model_alone(tiny_run, recordings, tmp_path, capsys):
    command = ["embed", str(tiny_run), str(recordings), "--window-s", "2", "--hop-s", "1", "--format", "parquet,npz"]
    assert main([*command, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "b_bad.wav" in told.err and "4 recordings, 1 failed" in told.out
    assert "b_bad.wav" in (tmp_path / "laennec.failed.csv").read_text()
    table = table_of(tmp_path, "a.laennec")
    rows, _ = by_hand(tiny_run, recordings / "a.wav", lambda d: sliding_windows(d, 2, 1))
    wanted = np.stack([output.embeddings[0] for _, _, output in rows])
    np.testing.assert_allclose(matrix(table), wanted, atol=1e-6)
    assert table.schema.field("embedding").type.list_size == wanted.shape[1]
    provenance = json.loads(table.schema.metadata[b"laennec"])
    assert provenance["laennec"] == laennec.__version__ and provenance["layer"] is None
    assert provenance["backend"] == "torch" and len(provenance["model"]) == len(provenance["extractor"]) == 64
    assert provenance["spans"] == {"from": "windows", "window_s": 2.0, "hop_s": 1.0}
    with np.load(tmp_path / "a.laennec.npz") as archive:
        assert np.array_equal(archive["embedding"], matrix(table))
        assert archive["start_s"].tolist() == table["start_s"].to_pylist()
        assert json.loads(str(archive["provenance"])) == provenance
    # all recordings in order
    whole = table_of(tmp_path)
    names = [str(recordings / f"{name}.wav") for name in ("a", "c", "embeddings")]
    assert list(dict.fromkeys(whole["recording"].to_pylist())) == names
    assert np.array_equal(matrix(whole)[: len(wanted)], matrix(table))


def test_archives_alone_give_the_same_table(tiny_run, recordings, tmp_path):
    for formats in ("parquet", "npz"):
        main(["embed", str(tiny_run), str(recordings), "--format", formats, "--out", str(tmp_path / formats)])
    assert (
        content(tmp_path / "npz")["laennec.embeddings.parquet"]
        == content(tmp_path / "parquet")["laennec.embeddings.parquet"]
    )


def test_an_interrupted_run_goes_on_and_ends_the_same(tiny_run, recordings, tmp_path):
    made = []

    class Counting(Embedder):
        def __call__(self, path, *arguments, **settings):
            made.append(path.name)
            return super().__call__(path, *arguments, **settings)

    embedder = Counting(Predictor(*load_model(tiny_run), 2, 1))
    embed(embedder, [recordings], tmp_path / "whole")
    wanted = content(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    lines = (tmp_path / "out" / "laennec.journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out" / "laennec.journal.jsonl").write_bytes(
        b"".join(lines[:4])[:-7]
    )  # the second one was being written
    (tmp_path / "out" / "laennec.embeddings.parquet").unlink()
    made.clear()
    done = embed(embedder, [recordings], tmp_path / "out")
    assert made == ["b_bad.wav", "c.wav", "embeddings.wav"] and done.resumed == 1
    assert content(tmp_path / "out") == wanted
    (tmp_path / "out" / "c.laennec.parquet").unlink()
    made.clear()
    embed(embedder, [recordings], tmp_path / "out")
    assert made == ["b_bad.wav", "c.wav"] and content(tmp_path / "out") == wanted
    (tmp_path / "out" / "c.laennec.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"c.laennec.parquet: damaged .* remove it"):
        embed(embedder, [recordings], tmp_path / "out")
    with pytest.raises(InputError, match="layer was null, now 1"):
        embed(Embedder(embedder.predictor, 1), [recordings], tmp_path / "out")


def test_annotated_spans_and_cycles_of_a_corpus_are_the_same(tiny_run, small_corpus, tmp_path, capsys):
    sound = sorted(small_corpus.glob("*.wav"))[0]
    files = ["embed", str(tiny_run), str(sound), "--annotation", str(sound.with_suffix(".txt"))]
    assert main([*files, "--out", str(tmp_path / "files")]) == 0
    corpus = ["embed", str(tiny_run), "synthetic", "--data-dir", str(small_corpus), "--protocol", "patient-60-20-20"]
    assert main([*corpus, "--out", str(tmp_path / "corpus")]) == 0
    spans = [(cycle.start_s, cycle.end_s) for cycle in read_annotation(sound.with_suffix(".txt"))]
    own = table_of(tmp_path / "files")
    rows = table_of(tmp_path / "corpus").to_pandas()
    here = rows[rows["recording"] == str(sound)].sort_values("start_s")
    assert list(zip(here["start_s"], here["end_s"], strict=True)) == spans
    np.testing.assert_allclose(np.stack(here["embedding"]), matrix(own), atol=1e-6)
    splits = laennec.load_corpus("synthetic", small_corpus, protocol="patient-60-20-20")
    known = pd.concat([table.to_pandas().assign(split=split) for split, table in splits.items()])
    merged = rows.merge(known, on=["cycle_id", "recording_id", "patient_id", "split"], suffixes=("", "_known"))
    assert len(merged) == len(known) == len(rows) and (merged["start_s"] == merged["start_s_known"]).all()
    assert set(own["cycle_id"].to_pylist()) == {None}
    capsys.readouterr()
    for wrong, said in (
        ([*corpus, "--window-s", "2"], "a corpus has its own cycles"),
        ([*files, "--protocol", "none"], "--protocol is for a corpus"),
        (["embed", str(tiny_run), str(sound), "synthetic"], "cannot be embedded together"),
        ([*files, "--format", "csv"], "unknown format 'csv'"),
    ):
        assert main([*wrong, "--out", str(tmp_path / "wrong")]) == 2
        assert said in capsys.readouterr().err


def test_a_recipe_names_its_corpus(tiny_run, small_corpus, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"corpus: {{name: synthetic, data_dir: {small_corpus}, protocol: patient-60-20-20}}\n")
    assert main(["embed", str(tiny_run), str(recipe), "--out", str(tmp_path / "out")]) == 0
    assert set(table_of(tmp_path / "out")["split"].to_pylist()) == {"train", "validation", "test"}


def test_a_layer_is_the_mean_over_its_tokens(tiny_ast, recordings):
    from laennec.audio.features import LaennecFeatureExtractor

    extractor = LaennecFeatureExtractor("ast")
    model = laennec.LaennecForAudioClassification.from_encoder(tiny_ast, features=extractor)
    model.eval()
    path = recordings / "a.wav"
    last = model.encode(path, window_s=2, layer=-1, extractor=extractor)
    assert last.index.names == ["recording", "start_s", "end_s"] and last.to_numpy().dtype == np.float32
    assert model.encode([path], window_s=2, layer=1, extractor=extractor).equals(last)  # it has one
    recording = read_recording(path, extractor.sampling_rate)
    sound = cut(recording.waveform, recording.sampling_rate, 0, 2)
    with torch.inference_mode():
        batch = extractor(sound, sampling_rate=extractor.sampling_rate, filtered=True)
        inner = model.encoder.audio_spectrogram_transformer
        seen = []
        hook = inner.layers[0].register_forward_hook(lambda *_: seen.append(_[-1]))
        out = model.encoder(**batch)
        hook.remove()
    states = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    real = out.token_mask.clone()
    real[:, : model.encoder.num_special_tokens] = False
    np.testing.assert_allclose(last.to_numpy()[0], states[real].mean(0).numpy(), atol=1e-5)
    for layer in (0, 2, -2):
        with pytest.raises(InputError, match="the encoder has 1 layers"):
            model.encode(path, layer=layer, extractor=extractor)


def test_a_convolutional_layer_leaves_padding_out(tiny_run, recordings):
    model, _ = load_model(tiny_run)
    path = recordings / "a.wav"
    assert not np.allclose(model.encode(path, layer=1).to_numpy()[:, :4], model.encode(path).to_numpy()[:, :4])
    last = model.encode(path, layer=-1).to_numpy()
    np.testing.assert_allclose(last, model.encode(path).to_numpy(), atol=1e-5)  # this one is pooled by its mean
    with pytest.warns(UserWarning, match=r"b_bad.wav"):
        assert len(model.encode(recordings, window_s=2)) > len(last)
    with pytest.raises(InputError, match=r"b_bad.wav"):
        model.encode(recordings / "b_bad.wav")


def test_two_processes_embed_as_one(recordings, tmp_path):
    for jobs in ("1", "2"):
        command = ["embed", str(recordings), "--jobs", jobs, "--format", "parquet,npz"]
        assert main([*command, "--out", str(tmp_path / jobs)]) == 2
    assert content(tmp_path / "1") == content(tmp_path / "2")
