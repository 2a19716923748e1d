from pathlib import Path

import pytest
import torch
from tiny_encoders import batch_of
from transformers import ASTConfig, ASTForAudioClassification, ASTModel

from laennec.encoders import AstEncoder, encoder_digest, encoder_from_config, load_encoder
from laennec.encoders.base import TokenMix
from laennec.errors import InputError


def tiny(**kwargs: object) -> ASTConfig:
    """Random weights need a larger epsilon: transformers' 1e-12 lets zero tokens explode in the layer norm."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ASTConfig(**(sizes | {"layer_norm_eps": 1e-6, "num_mel_bins": 36, "max_length": 96} | kwargs))


def make(**kwargs: object) -> AstEncoder:
    torch.manual_seed(0)
    encoder = encoder_from_config(tiny(**kwargs)).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    return encoder


def test_equals_transformers_ast_at_the_trained_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny(num_mel_bins=128, max_length=1024)
    published = ASTForAudioClassification._from_config(config).eval()
    for parameter in published.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    published.save_pretrained(tmp_path)  # as the checkpoints on the Hub: a classifier, and a prefix before the names
    encoder = load_encoder(tmp_path, type="ast")
    values = torch.randn(1, 1024, 128)
    with torch.no_grad():
        expected = published.audio_spectrogram_transformer(values)
        for mask in (None, torch.ones(1, 1024, dtype=torch.long)):
            out = encoder(values, mask)
            torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
            torch.testing.assert_close(out.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)
    assert bool(out.token_mask.all())
    assert encoder.num_special_tokens == 2


def resized(encoder: AstEncoder, steps: int, choice: str) -> torch.Tensor:
    """The position table for so many time steps, one place after the other."""
    table, bands, known = encoder.audio_spectrogram_transformer.embeddings.position_embeddings.detach()[0], 3, 9
    rows = [table[0], table[1]]
    for band in range(bands):
        for step in range(steps):
            place = float(step)
            if choice == "interpolate" or steps > known:
                place = min(max((step + 0.5) * known / steps - 0.5, 0.0), known - 1.0)
            left = int(place)
            right = min(left + 1, known - 1)
            one, other = table[2 + band * known + left], table[2 + band * known + right]
            rows.append(one + (place - left) * (other - one))
    return torch.stack(rows)[None]


@pytest.mark.parametrize("frames", [16, 40, 96, 268])
@pytest.mark.parametrize("choice", ["cut", "interpolate"])
def test_equals_transformers_ast_with_a_table_made_for_the_length(frames: int, choice: str) -> None:
    encoder = make(time_positions=choice)
    stock = ASTModel._from_config(tiny(max_length=frames)).eval()
    state = encoder.audio_spectrogram_transformer.state_dict()
    steps = (frames - 16) // 10 + 1
    stock.load_state_dict(state | {"embeddings.position_embeddings": resized(encoder, steps, choice)})
    values, _ = batch_of([frames], 36)
    with torch.no_grad():
        expected, out = stock(values), encoder(values)
    assert out.last_hidden_state.shape[1] == 2 + 3 * steps
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)


def test_a_saved_encoder_comes_back_exactly_and_as_stock_ast(tmp_path: Path) -> None:
    encoder = make(time_positions="interpolate")
    encoder.save_pretrained(tmp_path)
    again = load_encoder(tmp_path)
    assert again.config.time_positions == "interpolate"
    torch.testing.assert_close(again.state_dict(), encoder.state_dict(), rtol=0, atol=0)
    assert encoder_digest(again) == encoder_digest(encoder)
    stock = ASTModel.from_pretrained(tmp_path)
    torch.testing.assert_close(stock.state_dict(), encoder.audio_spectrogram_transformer.state_dict(), rtol=0, atol=0)
    ASTModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "bare")  # names without the prefix
    assert encoder_digest(load_encoder(tmp_path / "bare")) == encoder_digest(encoder)


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="missing or of another shape"):
        load_encoder(tmp_path, max_length=256)
    with pytest.raises(InputError, match="is missing or of another shape"):
        load_encoder(tmp_path, num_hidden_layers=3)
    with pytest.raises(ValueError, match="cut or interpolate"):
        load_encoder(tmp_path, time_positions="stretch")


def test_the_token_grid_is_that_of_the_patch_embedding_at_any_length() -> None:
    encoder = make()
    for frames in (1, 15, 16, 25, 26, 96, 140):
        with torch.no_grad():
            out = encoder(torch.zeros(1, frames, 36))
        bands, steps = encoder.token_grid(frames, 36)
        assert out.last_hidden_state.shape[1] == 2 + bands * steps


def test_exchanged_patches_leave_masks_alone_and_padding_out() -> None:
    encoder = make(time_positions="interpolate")
    lengths = [30, 96, 56]
    values, mask = batch_of(lengths, 36)
    bands, steps = encoder.token_grid(96, 36)
    own = torch.tensor([encoder.token_grid(n, 36)[1] for n in lengths])
    partner = torch.tensor([1, 2, 0])
    within = torch.arange(steps) < torch.minimum(own, own[partner])[:, None]
    mix = TokenMix(within[:, None].expand(-1, bands, -1), partner)
    with torch.no_grad():
        found = encoder(values, mask, token_mix=mix)
        poisoned = encoder(values.masked_fill(mask[:, :, None] == 0, 7.0), mask, token_mix=mix)
        assert torch.equal(found.token_mask, encoder(values, mask).token_mask)
    torch.testing.assert_close(found.pooler_output, poisoned.pooler_output)
    real = found.token_mask[..., None]
    torch.testing.assert_close(found.last_hidden_state * real, poisoned.last_hidden_state * real)
