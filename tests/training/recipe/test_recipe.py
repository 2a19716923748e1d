import json
from pathlib import Path

import pydantic
import pytest

from laennec.errors import InputError
from laennec.training.recipe import Recipe, find_recipe, recipe_names, setting_keys, settings_help
from laennec.training.recipe.reading import OLD_KEYS

ROOT = Path(__file__).resolve().parents[3]


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("train: {epoch: 3}", r"unknown key 'train.epoch'; did you mean 'train.epochs'"),
        ("corpora: {name: synthetic}", r"did you mean 'corpus'|did you mean 'corpus\."),
        ("encoder: {learning_rate: 3}", r"did you mean 'train.learning_rate'"),
        ("augment: {noise: {min_snr: 3}}", r"augment.noise.min_snr'; did you mean 'augment.noise.min_snr_db'"),
        ("encoder: {lora: {ranks: 4}}", r"did you mean 'encoder.lora.rank'"),
        ("sampler: {sample: 4}", r"did you mean 'sampler.samples'"),
        ("pretrain: {viwes: [raw]}", r"did you mean 'pretrain.views'"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest_valid_one(tmp_path, text, nearest):
    with pytest.raises(InputError, match=f"recipe.yaml: .*{nearest}"):
        Recipe.from_yaml(write(tmp_path, text))


def test_overrides_replace_the_file_by_full_key_or_by_its_last_part(tmp_path):
    path = write(tmp_path, "train: {epochs: 3, batch_size: 4}\nencoder: {type: cnn}")
    given = {
        "train.epochs": "7",
        "batch-size": "2",
        "loss.auxiliary.add.weight": "0.5",
        "augment.gain.max_gain_db": "3",
    }
    recipe = Recipe.from_yaml(path, **given, train__learning_rate=0.5, encoder__config__channels=[4])
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.train.learning_rate) == (7, 2, 0.5)
    assert recipe.loss.auxiliary == {"add": {"weight": 0.5}} and recipe.encoder.config == {"channels": [4]}
    assert recipe.augment.gain is not None and recipe.augment.gain.max_gain_db == 3.0


def test_an_override_of_a_section_replaces_the_settings_that_it_names(tmp_path):
    path = write(tmp_path, "augment: {gain: {max_gain_db: 3}, mix: {method: mixup}}\ntrain: {epochs: 3, batch_size: 4}")
    given = {
        "train": "{epochs: 7}",
        "augment.gain": {"probability": 0.25},
        "augment.mix": "null",
        "encoder.lora": "{rank: 2}",
    }
    recipe = Recipe.from_yaml(path, **given)
    assert (recipe.train.epochs, recipe.train.batch_size) == (7, 4)
    assert recipe.augment.gain is not None and recipe.augment.mix is None and recipe.encoder.lora.rank == 2
    assert (recipe.augment.gain.max_gain_db, recipe.augment.gain.probability) == (3, 0.25)
    with pytest.raises(InputError, match=r"train is a group of settings, not 3"):
        Recipe.from_yaml(path, train="3")
    with pytest.raises(InputError, match=r"did you mean 'augment.gain'"):
        Recipe.from_yaml(path, **{"augment.gan": "{probability: 1}"})
    with pytest.raises(InputError, match=r"several settings have this name; write --"):
        Recipe.from_yaml(path, probability="1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epochs: many}", r"train.epochs is 'many'; it must be a valid integer"),
        ("train: {epochs: true}", r"train.epochs is True; it must be a valid integer"),
        ("train: 5", r"train is a group of settings"),
        ("- a\n- b", r"not `key: value` lines, as the recipe must be"),
        ("a: [", r"not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("target: {problem_type: multi_label}\nloss: {task: ce}", r"a multi_label head needs bce"),
        ("loss: {class_weights: some}", r"loss.class_weights is 'some'; it must be 'balanced' or a valid list"),
        ("encoder: {type: vgg}", r"encoder.type is 'vgg'; it must be 'mobilenet', "),
        ("encoder: {class: MyEncoder}", r"encoder.class: 'MyEncoder' is not a dotted name"),
        ("encoder: {trainable: frozen}\nloss: {auxiliary: {add: {}}}", r"nothing to train with encoder.trainable: fro"),
        ("encoder: {trainable: half}", r"encoder.trainable is 'half'; it must be 'full', 'frozen', 'last_n' or 'lora'"),
        ("encoder: {trainable: last_n, weights: a}", r"last_n needs a number of layers"),
        ("encoder: {train_last_layers: 2}", r"encoder.trainable is full and encoder.train_last_layers 2"),
        ("encoder: {trainable: lora}", r"would keep random weights; give encoder.weights"),
        ("encoder: {lora: {rank: 0}}", r"encoder.lora.rank is 0; it must be greater than or equal to 1"),
        ("encoder: {lora: {target_modules: []}}", r"encoder.lora.target_modules is \[\]"),
        ("encoder: {trainable: frozen}\nsampler: {name: length_bucketed}", r"hold embeddings, which have no length"),
        ("encoder: {trainable: frozen}\naugment: {mix: {}}", r"augment.mix .* frozen encoder"),
        ("corpus: {validation_fraction: 1.5}", r"corpus.validation_fraction is 1.5; it must be less than 1"),
        ("train: {batch_size: 0}", r"train.batch_size is 0; it must be greater than or equal to 1"),
        ("train: {workers: -1}", r"train.workers is -1; it must be greater than or equal to 0"),
        ("train: {learning_rate: .nan}", r"train.learning_rate is nan; it must be a finite number"),
        ("train: {warmup_ratio: 2}", r"train.warmup_ratio is 2; it must be less than 1"),
        ("train: {max_steps: 0}", r"train.max_steps is 0; it must be at least 1, or -1"),
        ("train: {betas: [0.9]}", r"train.betas is \[0.9\]; List should have at least 2 items"),
        ("train: {bf16: 1}", r"train.bf16 is 1; it must be a valid boolean"),
        ("train: {sam_rho: 0.1, gradient_accumulation_steps: 2}", r"gradient of the whole batch"),
        ("train: {epoch_cosine: true, warmup_ratio: 0.1}", r"no warm-up"),
        ("train: {gradient_accumulation_steps: 2}\nloss: {auxiliary: {add: {}}}", r"add looks at pairs of a batch"),
        ("train: {callbacks: [Mine]}", r"'Mine' is not a dotted name"),
        ("seed: -1", r"seed is -1; it must be greater than or equal to 0"),
        ("head: {dropout: 1}", r"head.dropout is 1; it must be less than 1"),
        ("head: {calibration: platt}\ntarget: {problem_type: single_label}\nloss: {task: ce}", r"is platt, which"),
        ("loss: {auxiliary: {tuplet: {}}}", r"the tuplet loss needs sampler.name: anchor_positive"),
        ("head: {sensitivity: 0.5}", r"needs head.threshold_rule: sensitivity"),
        ("sampler: {name: metadata_matched}", r"name sampler.columns"),
        ("augment: {gain: {probability: 2}}", r"augment.gain: .*probability must lie in"),
        ("augment: {mix: {method: patch_mix, domain: waveform}}", r"patch_mix mixes features or tokens"),
        ("features: {context_cycles: 1}\naugment: {mix: {}}", r"neighbours of one recording"),
        ("card: {licence: GPL}", r"card.licence is 'GPL'; it must be 'apache-2.0'"),
        ("evaluation: {metrics: [mine]}", r"'mine' is not a dotted name"),
    ],
)
def test_bad_values_are_one_line_that_names_file_and_key(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        Recipe.from_yaml(write(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "recipe.yaml"))


def test_a_recipe_is_made_in_python_with_the_same_errors():
    recipe = Recipe(name="mine", train={"epochs": 3}, encoder={"type": "cnn", "trainable": "frozen"})
    assert recipe.train.epochs == 3 and recipe.encoder.frozen
    with pytest.raises(InputError, match=r"^unknown key 'train.epoch'; did you mean 'train.epochs'\?$"):
        Recipe(train={"epoch": 3})
    changed = recipe.with_overrides({"train.epochs": 5})
    assert (changed.train.epochs, recipe.train.epochs, changed.name) == (5, 3, "mine")


def test_scaling_of_the_embedding_follows_the_encoder_unless_it_is_set():
    frozen = Recipe(encoder={"type": "cnn", "trainable": "frozen"})
    trained = frozen.with_overrides({"encoder.trainable": "full"})
    assert (frozen.standardises, trained.standardises) == (True, False)
    assert frozen.head.standardise is None and frozen.to_dict()["head"]["standardise"] is True
    assert trained.with_overrides({"head.standardise": True}).standardises
    assert Recipe.from_record(frozen.to_dict()) == frozen


def test_a_recipe_survives_its_own_dictionary(tmp_path):
    text = "augment: {gain: {}, spec: {freq_masks: 3}}\ntrain: {learning_rate: 1e-3}\nsampler: {class: a:B, size: 3}"
    recipe = Recipe.from_yaml(write(tmp_path, text))
    assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.train.learning_rate == 1e-3
    assert (recipe.sampler.class_, recipe.sampler.arguments) == ("a:B", {"size": 3})


@pytest.mark.parametrize("old", OLD_KEYS)
def test_a_key_of_the_first_edition_is_an_error_that_names_todays(tmp_path, old):
    section, _, name = old.partition(".")
    with pytest.raises(InputError, match=f"{old} is an old key; write {OLD_KEYS[old]}"):
        Recipe.from_yaml(write(tmp_path, f"{section}: {{{name}: 1}}"))
    with pytest.raises(InputError, match=f"write {OLD_KEYS[old]}"):
        Recipe.from_yaml(write(tmp_path, "name: x"), **{old: 1})


def test_a_record_of_the_first_edition_keeps_loading():
    old = {
        "encoder": {"frozen": True, "trainable": "frozen"},
        "train": {"gradient_accumulation": 2, "lr_schedule": "linear", "warmup_fraction": 0.1},
        "pretrain": {"no_partner": "drop", "parts": ["validation"], "longest_s": 2.0, "lr_schedule": "constant"},
    }
    recipe = Recipe.from_record(old)
    assert recipe.encoder.frozen and recipe.train.gradient_accumulation_steps == 2
    assert (recipe.train.lr_scheduler_type, recipe.train.warmup_ratio) == ("linear", 0.1)
    assert (recipe.pretrain.unpaired, recipe.pretrain.splits, recipe.pretrain.max_duration_s) == (
        "drop", ["validation"], 2.0,
    )  # fmt: skip
    mixed = {"encoder": {"frozen": False}, "augment": {"mix": {"method": "patch_mix", "domain": "waveform"}}}
    recipe = Recipe.from_record(mixed)
    assert not recipe.encoder.frozen and recipe.augment.mix.domain == "features"
    assert old["encoder"] == {"frozen": True, "trainable": "frozen"}


def test_dotted_names_are_not_imported_when_a_recipe_is_read(tmp_path):
    text = """
    encoder: {class: nowhere:MyEncoder}
    corpus: {name: nowhere:MyCorpus}
    sampler: {class: nowhere:MySampler, size: 3}
    augment: {custom: [{class: nowhere:Echo, gain: 0.5}]}
    loss: {auxiliary: {mine: {class: nowhere:MyLoss, weight: 0.5}}}
    train: {callbacks: [nowhere:Watch, {class: nowhere:Stop, after: 2}], arguments: {report_to: tensorboard}}
    evaluation: {metrics: [nowhere:my_metric]}
    """
    recipe = Recipe.from_yaml(write(tmp_path, text))
    assert Recipe.from_record(recipe.to_dict()) == recipe and recipe.folders == [tmp_path]
    assert recipe.with_overrides({"train.epochs": 1}).folders == [tmp_path]
    assert [(c.class_, c.arguments) for c in recipe.train.callbacks] == [
        ("nowhere:Watch", {}),
        ("nowhere:Stop", {"after": 2}),
    ]
    with pytest.raises(InputError, match=r"augment.custom: nowhere:Echo: cannot import nowhere"):
        recipe.augment.custom[0].make("augment.custom", recipe.folders)
    (tmp_path / "nowhere.py").write_text("class Echo:\n    def __init__(self, gain):\n        self.gain = gain\n")
    assert recipe.augment.custom[0].make("augment.custom", recipe.folders).gain == 0.5


def test_every_setting_has_a_key_and_a_description():
    keys = setting_keys()
    assert "augment.spec.time_masks" in keys and "train.epochs" in keys and "seed" in keys
    assert len(keys) == len(set(keys))
    lines = settings_help().splitlines()
    without = [line.split()[0] for line in lines if "): " not in line]
    assert all(key.startswith(("--augment.", "--pretrain.")) for key in without), without


def test_recipes_are_found_by_name(tmp_path, monkeypatch):
    assert "sprsound/bce_mobilenet" in recipe_names() and len(recipe_names()) > 50
    assert Recipe.from_yaml("sprsound/bce_mobilenet").name == "sprsound_bce_mobilenet"
    monkeypatch.chdir(tmp_path)
    assert find_recipe("sprsound/bce_mobilenet").is_file()
    with pytest.raises(InputError, match=r"did you mean 'sprsound/bce_mobilenet'"):
        find_recipe("sprsound/bce_mobilnet")
    with pytest.raises(InputError, match=r"nothing\.yaml: cannot read"):
        Recipe.from_yaml("nothing.yaml")


@pytest.mark.skipif(
    tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 14), reason="earlier versions say less of augmentations"
)
def test_the_schema_in_the_documents_is_that_of_the_recipe():
    written = json.loads((ROOT / "docs" / "recipe.schema.json").read_text())
    assert written == Recipe.model_json_schema(), "run: python -m docs.generate"


@pytest.mark.parametrize("config", [None, [], "text", 3])
def test_a_record_without_settings_is_one_line(config):
    with pytest.raises(InputError, match=r"run\.json: its settings are .*, no mapping"):
        Recipe.from_record(config)


def test_a_record_may_keep_the_sensitivity_of_a_rule_that_was_fitted_again():
    assert Recipe.from_record({"head": {"sensitivity": 0.5, "threshold_rule": "youden"}}).head.sensitivity == 0.5
