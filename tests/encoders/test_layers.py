"""An embedding made of several layers: which they are, how they combine, and that a saved model finds them again."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from laennec import LaennecConfig, LaennecForAudioClassification
from laennec.encoders import LayersConfig, at_layers, encoder_from_config, load_encoder
from laennec.encoders.base import AudioEncoder
from laennec.errors import InputError
from laennec.training.recipe import Recipe

CHOSEN = [1, -1, "embedding"]


def cnn() -> AudioEncoder:
    torch.manual_seed(0)
    return load_encoder(None, type="cnn", channels=[4, 8, 16]).eval()


def sounds(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 90, 64, generator=torch.Generator().manual_seed(1))


def test_layers_are_those_that_hooks_see_one_after_the_other() -> None:
    inner, seen = cnn(), {}
    encoder = at_layers(inner, CHOSEN)
    assert encoder.config.widths == [4, 16, 16]
    for place in (0, 2):
        inner.blocks[place].register_forward_hook(lambda _, __, out, place=place: seen.__setitem__(place, out))
    found = encoder(sounds()).pooler_output
    first, last = (seen[place][0] if isinstance(seen[place], tuple) else seen[place] for place in (0, 2))
    expected = torch.cat([first.mean((2, 3)), last.mean((2, 3)), inner(sounds()).pooler_output], 1)
    torch.testing.assert_close(found, expected)


def test_a_layer_is_taken_once() -> None:
    with pytest.raises(InputError, match=r"encoder\.layers: layer -1 is given twice; give each layer once"):
        at_layers(cnn(), [3, -1])


def test_threads_do_not_take_each_others_layers() -> None:
    encoder = at_layers(cnn(), CHOSEN)
    parts = list(sounds(24).split(1))

    def embed(part: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return encoder(part).pooler_output

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(embed, parts * 4))
    for part, one in zip(parts * 4, found, strict=True):
        assert torch.equal(one, embed(part))


def test_a_weighted_mean_learns_its_weights() -> None:
    torch.manual_seed(0)
    inner = load_encoder(None, type="cnn", channels=[8, 8]).eval()
    encoder = at_layers(inner, [1, 2], "weighted_mean")
    first, second = at_layers(inner, [1, 2])(sounds()).pooler_output.split(8, 1)
    torch.testing.assert_close(encoder(sounds()).pooler_output, (first + second) / 2)
    encoder(sounds()).pooler_output.square().sum().backward()
    assert encoder.config.hidden_size == 8 and float(encoder.layer_weights.grad.abs().sum()) > 0


def test_a_weighted_mean_is_trained_with_the_last_layers_and_refused_where_it_would_stay() -> None:
    mean = {"layers": [1, 2], "combine_layers": "weighted_mean"}
    inner = load_encoder(None, type="cnn", channels=[8, 8])
    model = LaennecForAudioClassification.from_encoder(inner, trainable="last_n", last_layers=1, **mean)
    learns = [name for name, weight in model.encoder.named_parameters() if weight.requires_grad]
    assert "layer_weights" in learns and not any(".blocks.0." in name for name in learns)
    for trainable in ("frozen", "lora"):
        with pytest.raises(InputError, match="weighted_mean needs trainable: full or last_n"):
            LaennecForAudioClassification.from_encoder(inner, trainable=trainable, **mean)


def model_of(trainable: str = "full", encoder: object = None, **settings: object) -> LaennecForAudioClassification:
    return LaennecForAudioClassification.from_encoder(
        encoder or cnn(), trainable=trainable, layers=CHOSEN, **settings
    ).eval()  # type: ignore[arg-type]


def test_a_saved_model_has_its_layers(tmp_path) -> None:
    model = model_of()
    assert model.head.classifier.in_features == model.embedding_dim == 36
    model.save_pretrained(tmp_path)
    loaded = LaennecForAudioClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(input_values=sounds()).logits, model(input_values=sounds()).logits)
    config = LaennecConfig.load(tmp_path).encoder_config
    assert isinstance(config, LayersConfig) and config.layers == CHOSEN
    assert encoder_from_config(config).config.widths == [4, 16, 16]


def test_a_frozen_head_finds_the_layers_of_its_base(tmp_path) -> None:
    cnn().save_pretrained(tmp_path / "base")
    model = model_of("frozen", str(tmp_path / "base"))
    model.save_pretrained(tmp_path / "head")
    assert LaennecConfig.load(tmp_path / "head").head_only
    loaded = LaennecForAudioClassification.from_pretrained(tmp_path / "head", base=tmp_path / "base")
    assert torch.equal(loaded(input_values=sounds()).logits, model(input_values=sounds()).logits)


def test_other_layers_than_those_trained_are_refused(tmp_path) -> None:
    model_of().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    assert "-1,\n" in path.read_text()
    path.write_text(path.read_text().replace("-1,\n", "3,\n"))
    with pytest.raises(InputError, match=r"config.json says layers and combination \[1, 3, 0, 0\], the weights"):
        LaennecForAudioClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": [True]},
        {"layers": ["last"]},
        {"layers": [1, 1], "widths": [2, 2]},
        {"layers": [1], "widths": [4, 4, 4]},
        {"layers": [1], "widths": [-4]},
        {"layers": [1] * 101, "widths": [4] * 101},
        {"combination": "sum"},
    ],
)
def test_settings_of_a_file_are_checked(settings) -> None:
    with pytest.raises(ValueError, match=r"give numbers of layers|it can be concatenate or weighted_mean"):
        LayersConfig(encoder_config=cnn().config, **settings)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="layer 4: the encoder has 3 layers: give 1 to 3, or -1"):
        at_layers(cnn(), [1, 4])
    with pytest.raises(InputError, match=r"encoder.layers: layers \[1, 2\] have widths \[4, 8\] and no mean"):
        at_layers(cnn(), [1, 2], "weighted_mean")


def test_pooling_of_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="layers are averaged over time already"):
        model_of(pooling="mean")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": [1], "group_frames": 20}, "encoder.layers and encoder.group_frames cannot both be set"),
        ({"layers": [1, 2], "combine_layers": "weighted_mean", "trainable": "frozen"}, "needs encoder.trainable: full"),
        ({"layers": [1], "combine_layers": "weighted_mean"}, "needs two encoder.layers; with concatenate the head"),
        ({"layers": ["last"]}, "encoder.layers"),
    ],
)
def test_recipes_refuse_what_does_not_combine(settings, said) -> None:
    with pytest.raises(InputError, match=said):
        Recipe(encoder=settings)
