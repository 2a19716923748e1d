import pytest

from laennec.training.recipe import ConfigError, Recipe, load_recipe, recipe_from_dict, setting_keys


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_an_unknown_key_is_an_error_that_names_the_nearest_valid_one(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key 'train.epoch'; did you mean 'train.epochs'"):
        load_recipe(write(tmp_path, "train: {epoch: 3}"))
    with pytest.raises(ConfigError, match=r"did you mean 'corpus'|did you mean 'corpus\."):
        load_recipe(write(tmp_path, "corpora: {name: synthetic}"))
    with pytest.raises(ConfigError, match=r"did you mean 'train.learning_rate'"):
        load_recipe(write(tmp_path, "encoder: {learning_rate: 3}"))
    with pytest.raises(ConfigError, match=r"augment.noise.min_snr'; did you mean 'augment.noise.min_snr_db'"):
        load_recipe(write(tmp_path, "augment: {noise: {min_snr: 3}}"))


def test_flags_override_the_file_by_full_key_or_by_its_last_part(tmp_path):
    path = write(tmp_path, "train: {epochs: 3, batch_size: 4}")
    recipe = load_recipe(
        path,
        {"train.epochs": "7", "batch-size": "2", "loss.auxiliary.add.weight": "0.5", "augment.gain.max_gain_db": "3"},
    )
    assert (recipe.train.epochs, recipe.train.batch_size) == (7, 2)
    assert recipe.loss.auxiliary == {"add": {"weight": 0.5}}
    assert recipe.augment.gain is not None and recipe.augment.gain.max_gain_db == 3.0


def test_a_flag_gives_several_settings_of_a_group_and_leaves_the_others(tmp_path):
    path = write(tmp_path, "augment: {gain: {max_gain_db: 3}, mix: {method: mixup}}\ntrain: {epochs: 3, batch_size: 4}")
    given = {
        "train": "{epochs: 7}",
        "augment.gain": {"probability": 0.25},
        "augment.mix": "null",
        "encoder.lora": "{rank: 2}",
    }
    recipe = load_recipe(path, given)
    assert (recipe.train.epochs, recipe.train.batch_size) == (7, 4)
    assert recipe.augment.gain is not None and recipe.augment.mix is None and recipe.encoder.lora.rank == 2
    assert (recipe.augment.gain.max_gain_db, recipe.augment.gain.probability) == (3, 0.25)
    with pytest.raises(ConfigError, match=r"train is a group of settings, not 3"):
        load_recipe(path, {"train": "3"})
    with pytest.raises(ConfigError, match=r"did you mean 'augment.gain'"):
        load_recipe(path, {"augment.gan": "{probability: 1}"})


def test_an_ambiguous_flag_names_the_candidates(tmp_path):
    with pytest.raises(ConfigError, match=r"--corpus.name or --sampler.name|several settings"):
        load_recipe(write(tmp_path, ""), {"probability": "1"})


def test_a_wrong_flag_names_the_nearest_setting(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'train.learning_rate'"):
        load_recipe(write(tmp_path, ""), {"train.learning_rat": "1"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epochs: many}", r"train.epochs is 'many'; it must be int"),
        ("train: {epochs: true}", r"train.epochs is True; it must be int"),
        ("train: 5", r"train is a group of settings"),
        ("- a\n- b", r"a recipe is a mapping"),
        ("a: [", r"not valid YAML"),
        ("loss: {task: ce}", r"a multi_label head needs bce"),
        ("encoder: {type: resnet}", r"encoder.type is 'resnet'; it can be"),
        ("encoder: {frozen: true}\nloss: {auxiliary: {add: {}}}", r"nothing to train while encoder.frozen"),
        ("encoder: {frozen: true, trainable: lora, weights: a}", r"encoder.frozen is true, but .* is lora"),
        ("encoder: {trainable: half}", r"encoder.trainable is 'half'; it can be full, frozen, last_n, lora"),
        ("encoder: {trainable: last_n, weights: a}", r"last_n needs a number of layers"),
        ("encoder: {train_last_layers: 2}", r"encoder.trainable is full and encoder.train_last_layers 2"),
        ("encoder: {trainable: lora}", r"leave random weights as they are; give encoder.weights"),
        ("encoder: {lora: {rank: 0}}", r"encoder.lora: rank 0, .*give a rank of at least 1"),
        ("encoder: {lora: {target_modules: []}}", r"encoder.lora: .*and a name"),
        ("encoder: {lora: {ranks: 4}}", r"did you mean 'encoder.lora.rank'"),
        ("encoder: {trainable: frozen}\nsampler: {name: length_bucketed}", r"hold embeddings, which have no length"),
        ("corpus: {validation_fraction: 1.5}", r"between 0 and 1"),
        ("train: {batch_size: 0}", r"train.batch_size is 0; it must be at least 1"),
        ("train: {evaluation_batch_size: 0}", r"train.evaluation_batch_size is 0; it must be at least 1"),
        ("train: {threads: 0}", r"train.threads is 0; it must be at least 1"),
        ("train: {workers: -1}", r"train.workers is -1; it must be at least 0"),
        ("train: {save_steps: -3}", r"train.save_steps is -3; it must be at least 0"),
        ("train: {learning_rate: -1}", r"train.learning_rate is -1; it must be at least 0"),
        ("train: {learning_rate: .nan}", r"train.learning_rate is nan; it must be at least 0"),
        ("train: {warmup_fraction: 2}", r"train.warmup_fraction is 2; it must lie in \[0, 1\)"),
        ("train: {max_steps: 0}", r"train.max_steps is 0; it must be at least 1, or -1"),
        ("train: {bf16: 1}", r"train.bf16 is 1; it must be bool"),
        ("train: {compile: [yes]}", r"train.compile is \[True\]; it must be bool"),
        ("seed: -1", r"seed is -1; it must be a whole number from 0"),
        ("head: {dropout: 1}", r"head.dropout is 1; it must lie in \[0, 1\)"),
        ("loss: {task_weight: -1}", r"loss.task_weight is -1; it must be at least 0"),
        ("loss: {task: focal, focal_gamma: -2}", r"loss.focal_gamma is -2; it must be at least 0"),
        ("augment: {concatenate_probability: 1.2}", r"augment.concatenate_probability is 1.2; it must lie in \[0, 1\]"),
        ("augment: {gain: {probability: 2}}", r"augment.gain: .*probability must lie in"),
    ],
)
def test_bad_values_are_one_line_that_names_the_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_yaml_tags_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_recipe(write(tmp_path, "name: !!python/object/apply:os.system ['true']"))


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot read"):
        load_recipe(tmp_path / "nothing.yaml")


def test_a_recipe_survives_its_own_dictionary(tmp_path):
    recipe = load_recipe(write(tmp_path, "augment: {gain: {}, spec: {freq_masks: 3}}\ntrain: {learning_rate: 1e-3}"))
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert recipe.train.learning_rate == 1e-3


def test_frozen_and_trainable_say_the_same(tmp_path):
    for text in ("encoder: {frozen: true}", "encoder: {trainable: frozen}", "encoder: {trainable: full, frozen: true}"):
        recipe = load_recipe(write(tmp_path, text))
        assert recipe.encoder.frozen and recipe.encoder.trainable == "frozen"
        assert recipe_from_dict(recipe.to_dict()) == recipe
    assert not load_recipe(write(tmp_path, "encoder: {trainable: full}")).encoder.frozen


def test_every_setting_is_reachable_by_a_dotted_key():
    keys = setting_keys()
    assert "augment.spec.time_masks" in keys and "train.epochs" in keys and "seed" in keys
    assert len(keys) == len(set(keys)) and isinstance(Recipe(), Recipe)
