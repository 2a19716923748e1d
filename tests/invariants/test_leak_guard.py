"""Splits that promise disjoint patients share none, and one recording under two names is detected."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from laennec.cli.main import main
from laennec.corpora.splits import PROTOCOLS, split_table
from laennec.errors import InputError

pytestmark = pytest.mark.usefixtures("unpainted")

LABELS = ["normal", "crackle", "wheeze", "both"]
NAMES = st.text("abc01 _-#'ñ中", min_size=1, max_size=6) | st.integers(0, 300).map(str) | st.just("nan")
PEOPLE = st.lists(
    st.tuples(
        st.lists(st.integers(1, 5), min_size=1, max_size=4),  # cycles of each recording
        st.sampled_from([None, *LABELS]),  # the label of all cycles, or None for mixed labels
        st.sampled_from(["Al", "Pr", "Tc", None]),
        st.sampled_from(["Meditron", "Litt3200"]),
        st.sampled_from(["sc", "mc"]),
    ),
    min_size=1,
    max_size=14,
)
# one patient has nearly all cycles
LOPSIDED = [([5] * 40, None, "Al", "Meditron", "mc")] + [([1], "normal", "Al", "Litt3200", "sc")] * 8


def corpus_of(people, names, draw):
    """A cycle table of these patients with any names, in random order; many recordings have similar names."""
    rows = []
    for person, (recordings, only, place, device, mode) in enumerate(people):
        patient = names[person] if person < len(names) else f"p{person}"
        for number, cycles in enumerate(recordings):
            name = f"{patient}_1b{number % 3}_{person}{number}_{mode}_{device}"
            for cycle in range(cycles):
                label = only or LABELS[draw.integers(4)]
                rows.append((f"{name}#{cycle}", name, patient, label, place, device, mode, f"{person} {number}"))
    columns = [
        "cycle_id",
        "recording_id",
        "patient_id",
        "label",
        "chest_location",
        "device",
        "acquisition_mode",
        "audio_sha256",
    ]
    return pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=int(draw.integers(2**31)))


def split(table, protocol, fold, fraction, seed, draw):
    """The split, or None where the corpus has too few patients for it."""
    given = {}
    recordings, patients = sorted(set(table["recording_id"])), sorted(set(table["patient_id"]))
    if protocol.startswith("official"):
        given["official_split"] = {r: ("train", "test")[int(draw.random() < 0.4)] for r in recordings}
    if protocol == "patient-5fold" and draw.random() < 0.5:
        given["folds"] = {p: int(draw.integers(5)) for p in patients} | {"elsewhere": fold}
    try:
        return split_table(table, protocol, fold=fold, validation_fraction=fraction, seed=seed, **given), given
    except InputError:
        return None


ANY_CORPUS = given(
    people=PEOPLE,
    names=st.lists(NAMES, unique=True, max_size=14),
    protocol=st.sampled_from(
        ["official", "official-strict", "patient-5fold", "patient-60-20-20", "recording-80-20", "random-80-20"]
    ),
    fold=st.integers(0, 4),
    fraction=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]),
    seed=st.integers(0, 2**32),
)


def keeps_its_promise(people, names, protocol, fold, fraction, seed):
    """Split a random corpus and check what the protocol promises of the split."""
    draw = np.random.default_rng(seed)
    table = corpus_of(people, names, draw)
    fold = fold if protocol == "patient-5fold" else 0
    made = split(table, protocol, fold, fraction, seed, draw)
    event("split" if made else "too few people")
    if made is None:
        patients = table["patient_id"].nunique()
        assert protocol.startswith("official") or protocol == "patient-5fold" or patients < 6 or len(table) < 12
        return
    result, given_too = made
    part = pd.Series("", index=table.index)
    for name, rows in result.splits.items():
        part.iloc[rows] = part.iloc[rows] + name  # a row in two splits would get two names
    assert set(part) <= {"train", "validation", "test"}
    for one, other in itertools.combinations(result.splits, 2):
        left, right = table[part == one], table[part == other]
        promise = PROTOCOLS[protocol].promise(one, other)
        assert not set(left["cycle_id"]) & set(right["cycle_id"])
        assert promise == "cycle" or not set(left["recording_id"]) & set(right["recording_id"])
        assert promise != "patient" or not set(left["patient_id"]) & set(right["patient_id"])
    again = table.sample(frac=1, random_state=7)
    other = split_table(again, protocol, fold=fold, validation_fraction=fraction, seed=seed, **given_too)
    assert other.fingerprint == result.fingerprint
    for name, rows in other.splits.items():
        assert set(again["cycle_id"].iloc[rows]) == set(table["cycle_id"].iloc[result.splits[name]])


@settings(max_examples=80, deadline=None)  # thousands in tests/soak/truths.py
@ANY_CORPUS
@example(people=LOPSIDED, names=[], protocol="patient-60-20-20", fold=0, fraction=0.2, seed=1)
@example(people=LOPSIDED, names=[], protocol="patient-5fold", fold=3, fraction=0.5, seed=2)
@example(people=LOPSIDED, names=[], protocol="official-strict", fold=0, fraction=0.2, seed=3)
def test_what_a_protocol_promises_holds_on_any_corpus(**corpus):
    keeps_its_promise(**corpus)


# ---------------------------------------------------------------- one sound, two names


def first_of(corpus):
    return min(corpus.glob("*.wav"))


# changes of a sound: (float64 samples, rate) -> (samples, suffix, subtype)
FORMS = {
    "the same file": None,
    "flac": lambda x, rate: (x, ".flac", "PCM_16"),
    "a deeper file": lambda x, rate: (x, ".wav", "PCM_24"),
    "floating point": lambda x, rate: (x, ".wav", "FLOAT"),
    "a shallower file": lambda x, rate: (x, ".wav", "PCM_U8"),
    "two channels": lambda x, rate: (np.stack([x, x], 1), ".wav", "PCM_16"),
    "silence before it": lambda x, rate: (np.concatenate([np.zeros(777), x]), ".wav", "PCM_16"),
    "a cut": lambda x, rate: (x[rate // 2 + 13 : -rate // 3], ".wav", "PCM_16"),
}


def doubled(corpus, folder, form, cycles=True):
    """A copy of the corpus with one recording twice, the second time under another patient and in another form."""
    shutil.copytree(corpus, folder)
    source = first_of(folder)
    rest = source.stem.split("_", 1)[1]
    if form is None:
        target = Path(shutil.copy(source, folder / f"999_{rest}.wav"))
    else:
        samples, rate = soundfile.read(source)
        made, ending, subtype = form(samples, rate)
        target = folder / f"999_{rest}{ending}"
        soundfile.write(target, made, rate, subtype=subtype)
    lines = source.with_suffix(".txt").read_text()
    if not cycles:
        lines = "0.1\t0.9\t0\t1\n1.0\t1.8\t0\t0\n"
    target.with_suffix(".txt").write_text(lines)
    return source, target


@pytest.mark.parametrize("form", FORMS)
def test_prepare_names_both_files(small_corpus, tmp_path, capsys, form):
    source, target = doubled(
        small_corpus, tmp_path / "corpus", FORMS[form], cycles=form not in ("silence before it", "a cut")
    )
    command = ["prepare", "synthetic", "--data-dir", str(tmp_path / "corpus")]
    assert main([*command, "--check"]) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert "the same sound under 2 names" in line and str(source) in line and str(target) in line
    # without a split nothing is refused, but a warning is printed
    assert main([*command, "--protocol", "none"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert str(source) in line and str(target) in line


def test_different_sounds_are_accepted(small_corpus, tmp_path, capsys):
    assert main(["prepare", "synthetic", "--data-dir", str(small_corpus), "--check"]) == 0
    assert "no problems" in capsys.readouterr().out


def recipe_with(tiny_recipe, folder, path, seed):
    corpus = {**tiny_recipe["corpus"], "data_dir": str(folder), "split_seed": seed}
    path.write_text(yaml.safe_dump({**tiny_recipe, "corpus": corpus}))
    return path


def seed_that_separates(folder, source, target, apart=True):
    """A split seed that puts the two recordings into train and test, or both into train (`apart=False`)."""
    from laennec.corpora import load_corpus

    for seed in range(40):
        parts = load_corpus("synthetic", folder, seed=seed)
        where = {r: name for name, table in parts.items() for r in table["recording_id"]}
        if {where[source.stem], where[target.stem]} == ({"train", "test"} if apart else {"train"}):
            return seed
    raise AssertionError("no seed")


@pytest.mark.parametrize("form", ["flac", "a shallower file"])
def test_training_refuses_a_split_with_one_sound_in_train_and_test(tiny_recipe, small_corpus, tmp_path, capsys, form):
    folder = tmp_path / "corpus"
    source, target = doubled(small_corpus, folder, FORMS[form])
    recipe = recipe_with(tiny_recipe, folder, tmp_path / "r.yaml", seed_that_separates(folder, source, target))
    for command in ("train", "pretrain"):
        more = ["--pretrain.epochs", "1"] if command == "pretrain" else []
        assert main([command, str(recipe), "--output_dir", str(tmp_path / command), *more]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "promises that no patient is shared, but the same sound under 2 names" in said
        assert str(source) in said and str(target) in said and not (tmp_path / command).exists()


def test_a_cut_is_said_aloud_and_stamped_on_every_number(tiny_recipe, small_corpus, tmp_path, capsys, caplog):
    folder, out = tmp_path / "corpus", tmp_path / "run"
    source, target = doubled(small_corpus, folder, FORMS["a cut"], cycles=False)
    recipe = recipe_with(tiny_recipe, folder, tmp_path / "r.yaml", seed_that_separates(folder, source, target))
    assert main(["train", str(recipe), "--output_dir", str(out), "--train.epochs", "1"]) == 0
    assert "the same sound under 2 names" in caplog.text
    origin = json.loads((out / "run.json").read_text())["corpus"]["provenance"]
    assert str(target) in origin["same_sounds"][0]
    assert "the same sound is in two splits whose patients should differ: " in origin["stamp"]
    assert source.stem in origin["stamp"] and target.stem in origin["stamp"]
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 0
    assert "note: the same sound is in two splits" in capsys.readouterr().out
