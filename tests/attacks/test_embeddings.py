"""Damaged or exchanged embeddings: resumed commands and searches refuse them."""

import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.explore.index import EmbeddingIndex, read_embeddings
from laennec.inference.batch.run import Predictor
from laennec.inference.embed import EMBEDDINGS, Embedder, embed
from laennec.inference.outputs import with_provenance


@pytest.fixture(scope="module")
def embedder(tiny_run):
    return Embedder(Predictor(*load_model(tiny_run)))


@pytest.fixture(scope="module")
def sounds(small_corpus):
    return sorted(small_corpus.glob("*.wav"))[:2]


@pytest.fixture(scope="module", params=["parquet", "npz"])
def made(request, embedder, sounds, tmp_path_factory):
    """The embeddings of two recordings, in files of this format."""
    out = tmp_path_factory.mktemp("embedded")
    embed(embedder, sounds, out, formats=(request.param,))
    return out, request.param


@pytest.fixture
def embedded(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "out"), made[1]


def content(folder):
    rows, values, provenance = read_embeddings(folder)
    return rows.to_json(), values.tobytes(), provenance


def flipped(path, draw):
    whole = path.read_bytes()
    place = draw.randrange(len(whole))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
    return whole


def test_a_flipped_bit_of_a_recordings_embeddings_is_not_joined(embedded, embedder, sounds):
    out, format = embedded
    before, draw, refused = content(out), random.Random(3), 0
    file = out / f"{sounds[0].stem}.laennec.{format}"
    for _ in range(40):
        whole = flipped(file, draw)
        try:
            embed(embedder, sounds, out, formats=(format,))
            assert content(out) == before
        except InputError as error:
            assert str(file) in str(error) and "remove it and run again" in str(error)
            refused += 1
        file.write_bytes(whole)
    assert refused
    file.unlink()
    embed(embedder, sounds, out, formats=(format,))
    assert content(out) == before


def test_embeddings_under_the_name_of_another_recording_are_not_joined(embedded, embedder, sounds):
    out, format = embedded
    shutil.copy(out / f"{sounds[0].stem}.laennec.{format}", out / f"{sounds[1].stem}.laennec.{format}")
    with pytest.raises(InputError, match="damaged, or of another recording"):
        embed(embedder, sounds, out, formats=(format,))


def test_a_flipped_bit_of_an_index_is_not_searched(embedded):
    out, _ = embedded
    before, draw, refused = content(out), random.Random(4), 0
    for _ in range(120):
        whole = flipped(out / EMBEDDINGS, draw)
        try:
            assert content(out) == before
        except InputError:
            refused += 1
        (out / EMBEDDINGS).write_bytes(whole)
    assert refused


def replaced(name, values):
    return lambda table: table.set_column(table.schema.get_field_index(name), name, pa.array(values(len(table))))


def provenance(**changes):
    def change(table):
        told = json.loads(table.schema.metadata[b"laennec"]) | changes
        return table.replace_schema_metadata(with_provenance(told))

    return change


STRANGE = {
    "start in a text": replaced("start_s", lambda n: ["0"] * n),
    "no end": replaced("end_s", lambda n: pa.nulls(n, pa.float64())),
    "NaN for a start": replaced("start_s", lambda n: [np.nan] * n),
    "no recording": replaced("recording", lambda n: pa.nulls(n, pa.string())),
    "a patient that is a number": replaced("patient_id", lambda n: [7] * n),
    "rows of different lengths": replaced("embedding", lambda n: [[1.0], [1.0, 2.0, 3.0], *[[1.0, 2.0]] * (n - 2)]),
    "texts for embeddings": replaced("embedding", lambda n: ["x"] * n),
    "a similarity already": lambda table: table.append_column("similarity", pa.array([1.0] * len(table))),
    "a layer in a text": provenance(layer="x"),
    "layers": provenance(layer=[1]),
    "nested too deeply": lambda table: table.replace_schema_metadata({"laennec": "[" * 100_000}),
    "another layer by hand": lambda table: table.replace_schema_metadata(
        table.schema.metadata | {b"laennec": table.schema.metadata[b"laennec"].replace(b'"layer": null', b'"layer": 1')}
    ),
}


@pytest.mark.parametrize("attack", STRANGE)
def test_an_invalid_index_is_one_line(embedded, tiny_run, sounds, attack):
    out, _ = embedded
    table = pq.read_table(out / EMBEDDINGS)
    changed = STRANGE[attack](table)
    pq.write_table(changed.replace_schema_metadata(changed.schema.metadata or table.schema.metadata), out / EMBEDDINGS)
    with pytest.raises(InputError, match="table of embeddings"):
        EmbeddingIndex.open(out, tiny_run).search(sounds[0], span=(0, 0.5))


def test_the_parts_of_a_cluster_do_not_hide_a_later_index(embedded):
    out, _ = embedded
    (out / "laennec.embeddings").mkdir()
    shutil.copy(out / EMBEDDINGS, out / "laennec.embeddings" / "part-00000.parquet")
    with pytest.raises(InputError, match="remove the older of the two"):
        read_embeddings(out)
