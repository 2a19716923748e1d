import importlib

import pytest

import laennec


@pytest.mark.parametrize("name", [n for n in laennec.__all__ if n not in ("__version__", "DEFAULT_MODEL")])
def test_every_public_name_is_there_and_says_what_it_does(name):
    thing = getattr(laennec, name)
    assert thing.__doc__ and thing.__module__.startswith("laennec.")
    assert name in dir(laennec)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        laennec.nothing  # noqa: B018


def test_the_version_is_that_of_the_package():
    assert laennec.__version__ == importlib.metadata.version("laennec")


def test_errors_name_the_arguments_of_python(tmp_path, tiny_run):
    model = laennec.load_model()
    wrong = {
        "data_dir": lambda: laennec.load_corpus("sprsound"),
        "check data_dir": lambda: laennec.load_corpus("sprsound", tmp_path / "nowhere"),
        "window_s": lambda: laennec.Predictor(*model, window_s=0),
        "hop_s": lambda: laennec.Predictor(*model, window_s=1, hop_s=2),
        "thresholds": lambda: laennec.Predictor(*model, thresholds={"stridor": 0.5}),
        "backend 'cuda'": lambda: laennec.Predictor.from_pretrained(laennec.DEFAULT_MODEL, backend="cuda"),
        "choose split": lambda: laennec.score(tiny_run, split="nowhere"),
        "spans 'window'": lambda: laennec.score(tiny_run, spans="window"),
        "(out, or": lambda: laennec.score(tiny_run / "model", corpus={"name": "synthetic"}),
        "jobs 0": lambda: laennec.score(tiny_run, jobs=0, out=tmp_path / "out"),
        "format: unknown": lambda: laennec.export_run(tiny_run, format="onyx"),
    }
    for name, call in wrong.items():
        with pytest.raises(laennec.errors.InputError) as error:
            call()
        assert name in str(error.value)
