"""ResNet on spectrograms: transformers' numbers, cycles of one length."""

from pathlib import Path

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from laennec.configuration import LaennecConfig
from laennec.encoders import at_layers, encoder_digest, load_encoder
from laennec.encoders.adapters import add_lora
from laennec.errors import InputError
from laennec.modeling import LaennecForAudioClassification
from laennec.training.recipe import Recipe
from laennec.training.run import train

TINY = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
VALUES = torch.randn(2, 96, 40, generator=torch.Generator().manual_seed(0))


def test_a_published_checkpoint_of_three_channels_sees_the_one_thrice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = ResNetForImageClassification(ResNetConfig(**TINY, layer_type="basic")).eval()
    published.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, type="resnet")
    image = VALUES.transpose(1, 2)[:, None].repeat(1, 3, 1, 1)
    with torch.no_grad():
        expected, found = published.resnet(image), encoder(VALUES)
    assert found.last_hidden_state.shape == (2, 12, 16) and bool(found.token_mask.all())
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state.mean(2).transpose(1, 2))
    torch.testing.assert_close(found.pooler_output, expected.pooler_output.flatten(1))


def test_random_weights_are_a_resnet_18_of_one_channel_and_come_back(tmp_path: Path) -> None:
    encoder = load_encoder(None, type="resnet")
    # torchvision's resnet18 without its classifier has 11,176,512, of which 2 * 64 * 49 are for two more channels
    assert sum(value.numel() for value in encoder.parameters()) == 11_176_512 - 2 * 64 * 49
    assert encoder.config.hidden_size == 512 and encoder.config.num_channels == 1
    encoder.save_pretrained(tmp_path)
    assert encoder_digest(load_encoder(tmp_path)) == encoder_digest(encoder)


@pytest.mark.parametrize("training", [False, True])
def test_padding_is_refused_and_a_mask_of_ones_is_no_mask(training: bool) -> None:
    encoder = load_encoder(None, type="resnet", **TINY).train(training)
    mask = torch.ones(2, 96, dtype=torch.long)
    torch.testing.assert_close(encoder(VALUES, mask).pooler_output, encoder(VALUES).pooler_output)
    mask[1, 50:] = 0
    with pytest.raises(InputError, match=r"50 to 96 frames.*set features.length: repeat with features.duration_s"):
        encoder(VALUES, mask)


def test_the_last_stages_can_be_trained_and_there_is_nothing_for_lora() -> None:
    encoder = load_encoder(None, type="resnet", **TINY)
    model = LaennecForAudioClassification(LaennecConfig(encoder_config=encoder.config), encoder)
    model.train_last_layers(1)
    learns = {name for name, value in encoder.named_parameters() if value.requires_grad}
    assert learns and all(name.startswith("model.encoder.stages.1.") for name in learns)
    with pytest.raises(InputError, match="ResNetAudioEncoder has no linear layers"):
        add_lora(encoder, {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["q_proj"]})


def test_a_recipe_needs_cycles_of_one_length(tiny_recipe: dict, tmp_path: Path) -> None:
    values = tiny_recipe | {"encoder": {"type": "resnet", "config": TINY}}
    with pytest.raises(InputError, match="ResNet takes cycles of one length"):
        train(Recipe(**values, output_dir=str(tmp_path / "natural")))
    values |= {"features": {"preset": "song2021", "length": "repeat", "duration_s": 2.0}}
    assert (train(Recipe(**values, output_dir=str(tmp_path / "repeat"))) / "run.json").is_file()


def test_layers_combine_into_one_embedding() -> None:
    inner = load_encoder(None, type="resnet", **TINY)
    encoder = at_layers(inner, [1, -1, "embedding"])
    found = encoder(VALUES).pooler_output
    assert encoder.config.widths == [8, 16, 16] and found.shape == (2, 40)
    torch.testing.assert_close(found[:, 24:], inner(VALUES).pooler_output)
