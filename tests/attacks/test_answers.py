"""Models that output NaN or infinity: the error names them, and no result is written."""

import json
import math
import random
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.calibration.recalibrate import read_validation
from laennec.evaluation.evaluate import load_model
from laennec.files import json_text
from laennec.inference.batch.run import Predictor, predict
from laennec.inference.embed import Embedder, embed


class TestNonFinitePredictions:
    """NaN is neither above nor below a threshold, so it is no prediction."""

    @pytest.fixture
    def broken(self, tiny_run, tmp_path):
        """A function that copies the model and makes the weights of one part overflow."""

        def make(part, value):
            folder = shutil.copytree(tiny_run / "model", tmp_path / "model")
            weights = load_file(folder / "model.safetensors")
            for name in weights:
                if name.startswith(part) and weights[name].is_floating_point() and "spread" not in name:
                    weights[name] = torch.full_like(weights[name], value)
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
            return folder

        return make

    @pytest.fixture
    def sounds(self, small_corpus):
        return sorted(small_corpus.glob("*.wav"))[:2]

    @pytest.mark.parametrize("value", [3e38, -3e38])
    @pytest.mark.parametrize("command", ["predict", "embed", "print", "stream", "encode"])
    def test_they_are_refused_by_model_and_file(self, broken, sounds, tmp_path, capsys, command, value):
        source, sound = broken("encoder" if command in ("embed", "encode") else "head", value), str(sounds[0])
        model, extractor = load_model(source)
        if command == "stream":
            with pytest.raises(InputError, match="NaN or infinity") as error:
                list(Predictor(model, extractor).stream(sound))
            said = str(error.value)
        elif command == "encode":
            with pytest.raises(InputError, match="NaN or infinity") as error:
                model.encode(sound, extractor=extractor)
            said = str(error.value)
        else:
            out = [] if command == "print" else ["--out", str(tmp_path / "out")]
            assert main(["embed" if command == "embed" else "predict", str(source), sound, *out]) == 2
            captured = capsys.readouterr()
            said = captured.err.splitlines()[-1]
            assert "nan" not in captured.out
        assert sound in said and str(source) in said and "NaN or infinity" in said
        if (tmp_path / "out").exists():
            assert [p.name for p in (tmp_path / "out").glob(f"{sounds[0].stem}*")] == []
            assert "NaN or infinity" in pd.read_csv(tmp_path / "out" / "laennec.failed.csv")["reason"][0]

    @pytest.mark.parametrize("write", [predict, embed])
    def test_the_other_recordings_are_predicted(self, tiny_run, sounds, tmp_path, write):
        made = Predictor(*load_model(tiny_run))
        original, calls = made.backend.embed, []

        def sometimes(waveforms):
            calls.append(len(waveforms))
            return original(waveforms) * (np.nan if len(calls) == 1 else 1)

        made.backend.embed = sometimes
        done = write(Embedder(made) if write is embed else made, sounds, tmp_path)
        assert done.failed[0][0] == str(sounds[0]) and done.predicted == [str(sounds[1])]
        for path in tmp_path.glob("*.json"):
            json.loads(path.read_text(), parse_constant=pytest.fail)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_no_file_holds_them_as_json(self, value):
        with pytest.raises(InputError, match="not written as JSON"):
            json_text({"x": [value]})


def test_nothing_is_fitted_to_damaged_predictions(tiny_run, tmp_path):
    run, draw, refused = shutil.copytree(tiny_run, tmp_path / "run"), random.Random(5), 0
    path = run / "predictions-validation.parquet"
    whole, before = path.read_bytes(), read_validation(path)
    end = len(whole) - int.from_bytes(whole[-8:-4], "little")  # end of the pages; the footer has no checksum
    for place in draw.sample(range(4, end - 8), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        try:
            assert read_validation(path).equals(before)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused
