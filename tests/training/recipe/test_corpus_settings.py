"""A recipe's list of corpora: how it is read, recorded and overridden, and which lists are refused."""

import pytest
import yaml

from laennec.errors import InputError
from laennec.training.recipe import Recipe

BOTH = [
    {"name": "sprsound", "data_dir": "data/sprsound", "protocol": "sprsound-official"},
    {"name": "icbhi2017", "data_dir": "data/icbhi", "protocol": "patient-5fold"},
]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({"name": "both", "corpus": BOTH}))
    return tmp_path / "both.yaml"


def test_a_list_of_corpora_is_recorded_and_read_back(path):
    recipe = Recipe.from_yaml(path)
    assert recipe.corpus.name == "sprsound+icbhi2017"
    assert [one.protocol for one in recipe.corpus.each] == ["sprsound-official", "patient-5fold"]
    assert Recipe.from_record(recipe.to_dict()) == recipe == Recipe(**yaml.safe_load(path.read_text()))
    alone = Recipe(corpus=BOTH[0]).corpus
    assert alone.each == [alone]


def test_data_of_every_corpus_are_looked_for(path, tmp_path, monkeypatch):
    (tmp_path / "data" / "icbhi").mkdir(parents=True)
    monkeypatch.setenv("LAENNEC_DATA", str(tmp_path))
    monkeypatch.chdir(path.root)
    sprsound, icbhi = Recipe.from_yaml(path).corpus.each
    assert icbhi.data_dir == str(tmp_path / "data" / "icbhi") and sprsound.data_dir == "data/sprsound"
    given = [dict(one) for one in BOTH]
    assert Recipe.from_yaml(path, corpus=given).corpus.each[1].data_dir == icbhi.data_dir
    assert given == BOTH, "the list of a study stays as it was written"


def test_a_flag_sets_one_corpus_or_those_that_it_is_for(path):
    recipe = Recipe.from_yaml(path, **{"corpus.icbhi2017.data_dir": "d", "fold": "2", "corpus.split_seed": 3})
    sprsound, icbhi = recipe.corpus.each
    assert (sprsound.data_dir, icbhi.data_dir) == ("data/sprsound", "d")
    assert (sprsound.fold, icbhi.fold) == (0, 2), "a protocol without folds has no fold to choose"
    assert sprsound.split_seed == icbhi.split_seed == recipe.corpus.split_seed == 3
    again = recipe.with_overrides({"corpus.sprsound.protocol": "corpus-out", "corpus.icbhi2017.options.x": 1})
    assert again.corpus.each[0].protocol == "corpus-out" and again.corpus.each[1].options == {"x": 1}
    assert recipe.corpus.each[0].protocol == "sprsound-official", "the original stays as it was"
    assert Recipe.from_yaml(path, corpus=BOTH[0]).corpus.each[0].name == "sprsound"


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("data_dir", "d", "several corpora; write --corpus.sprsound.data_dir or --corpus.icbhi2017.data_dir"),
        ("corpus.physionet2016.fold", 1, "the recipe has no corpus 'physionet2016'"),
        ("corpus.icbhi.fold", 1, "the recipe has no corpus 'icbhi'; did you mean 'icbhi2017'"),
        ("corpus.icbhi2017.folds", 1, r"unknown key 'corpus.folds'; did you mean 'corpus.fold'"),
        ("corpus.icbhi2017.label_fraction", 0.5, "a corpus of a list cannot have label_fraction"),
        ("corpus.icbhi2017.split_seed", 1, "split_seed is 0 and 1; give all corpora the same"),
    ],
)
def test_a_flag_that_no_corpus_of_the_list_can_have_is_one_line(path, flag, value, words):
    with pytest.raises(InputError, match=words):
        Recipe.from_yaml(path, **{flag: value})


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ([], "corpus: the list names no corpus"),
        ([BOTH[0], {"data_dir": "there"}], "no name for the corpus in there; give corpus.name"),
        ([BOTH[0], BOTH[0]], "corpus: sprsound is listed twice"),
        ([BOTH[0], {"name": "icbhi2017", "folds": 1}], "unknown key 'corpus.folds'; did you mean 'corpus.fold'"),
        ([BOTH[0], {"name": "icbhi2017", "fold": "one"}], "corpus.fold is 'one'; it must be a valid integer"),
        ([BOTH[0], "icbhi2017"], "is a group of settings, not 'icbhi2017'"),
        ({"corpora": BOTH, "fold": 1}, "corpus.fold is for one corpus, and there are several; set corpus.sprsound"),
        ([{"corpora": BOTH}], "a corpus of a list cannot have label_fraction or corpora"),
    ],
)
def test_a_list_that_makes_no_sense_is_one_line(corpus, words):
    with pytest.raises(InputError, match=words):
        Recipe(corpus=corpus)


def test_context_needs_cycles_whatever_corpus_they_are_of():
    whole = [one | {"level": "recording"} for one in BOTH]
    with pytest.raises(InputError, match=r"with corpus.level: recording a recording is one row"):
        Recipe(corpus=whole, features={"context_cycles": 1})


def test_a_balanced_sampler_names_its_columns():
    assert Recipe(corpus=BOTH, sampler={"name": "balanced", "columns": ["corpus", "device"]}).sampler.columns
    with pytest.raises(InputError, match=r"sampler.name is balanced; name sampler.columns, e.g. \[corpus, device\]"):
        Recipe(corpus=BOTH, sampler={"name": "balanced"})
