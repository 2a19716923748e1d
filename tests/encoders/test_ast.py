from pathlib import Path

import pytest
import torch
from transformers import ASTConfig, ASTForAudioClassification, ASTModel

from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import read_recording
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


def batch_of(lengths: list[int], mels: int = 36) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(len(lengths), max(lengths), mels, generator=torch.Generator().manual_seed(1))
    return values, (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()


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
    values, _ = batch_of([frames])
    with torch.no_grad():
        expected, out = stock(values), encoder(values)
    assert out.last_hidden_state.shape[1] == 2 + 3 * steps
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)


def test_real_cycles_cost_their_own_length_and_nothing_of_their_neighbours(shared_data: Path) -> None:
    encoder = make(num_mel_bins=128, max_length=1024)
    extractor = LaennecFeatureExtractor("ast")
    recordings = sorted((shared_data / "icbhi2017_subset").glob("*.flac"))
    lengths = (0.2, 2.7, 6.0)
    waves = [
        read_recording(path, 16000).waveform[: round(16000 * seconds)]
        for seconds, path in zip(lengths, recordings, strict=False)
    ]
    with torch.no_grad():
        together = encoder(**extractor(waves, sampling_rate=16000))
        alone = [encoder(**extractor(wave, sampling_rate=16000)) for wave in waves]
    # 18, 268 and 598 frames: a step of 12 bands every 10 frames, where 10.24 s would take 101
    assert [one.last_hidden_state.shape[1] for one in alone] == [2 + 12 * steps for steps in (1, 26, 59)]
    assert together.token_mask.sum(1).tolist() == [one.last_hidden_state.shape[1] for one in alone]
    for i, one in enumerate(alone):
        torch.testing.assert_close(together.pooler_output[i], one.pooler_output[0], atol=1e-5, rtol=1e-5)
        real = together.last_hidden_state[i][together.token_mask[i]]
        torch.testing.assert_close(real, one.last_hidden_state[0], atol=1e-5, rtol=1e-5)


def test_kinds_of_attention_agree_under_a_mask() -> None:
    values, mask = batch_of([40, 96])
    results = []
    for attention in ("eager", "sdpa"):
        encoder = make()
        encoder.set_attn_implementation(attention)
        out = encoder(values, mask).pooler_output
        out.square().sum().backward()
        results.append((out.detach(), {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("time_positions", ["cut", "interpolate"])
def test_a_cycle_in_a_batch_has_the_tokens_it_has_alone(time_positions: str) -> None:
    encoder = make(time_positions=time_positions)
    lengths = [3, 16, 25, 26, 96, 140]  # the last is longer than the position table
    values, mask = batch_of(lengths)
    poisoned = values.masked_fill(mask[:, :, None] == 0, 7.0)
    with torch.no_grad():
        together = encoder(poisoned, mask)
        for i, n in enumerate(lengths):
            alone = encoder(values[i : i + 1, :n])
            torch.testing.assert_close(together.pooler_output[i], alone.pooler_output[0], atol=1e-5, rtol=1e-5)
            real = together.last_hidden_state[i][together.token_mask[i]]
            torch.testing.assert_close(real, alone.last_hidden_state[0], atol=1e-5, rtol=1e-5)
            steps = max(1, (n - 16) // 10 + 1)  # patches whose 16 frames are all real
            assert len(real) == 2 + 3 * steps


def test_positions_are_cut_and_stretched_along_time_only() -> None:
    encoder = make()
    bands, known = 3, 9
    grid = torch.arange(bands)[:, None] * 100.0 + torch.arange(known)[None, :]  # 100 x band + step
    table = torch.cat([torch.tensor([-1.0, -2.0]), grid.flatten()])[None, :, None].expand(1, -1, 16)
    encoder.audio_spectrogram_transformer.embeddings.position_embeddings.data.copy_(table)

    def rows(steps: int, choice: str = "cut") -> torch.Tensor:
        encoder.config.time_positions = choice
        positions = encoder._positions(bands, known, steps, torch.tensor([steps]))[0, :, 0].detach()
        assert positions[:2].tolist() == [-1, -2]
        return positions[2:].reshape(bands, steps)

    assert rows(4).tolist() == [[b * 100.0 + s for s in range(4)] for b in range(bands)]
    for steps, choice in ((18, "cut"), (18, "interpolate"), (5, "interpolate")):
        expected = torch.nn.functional.interpolate(grid[:, None], size=steps, mode="linear", align_corners=False)[:, 0]
        torch.testing.assert_close(rows(steps, choice), expected)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    values, mask = batch_of([40, 96])
    gradients = []
    for checkpointed in (False, True):
        encoder = make().train()
        if checkpointed:
            encoder.gradient_checkpointing_enable()
            assert encoder.is_gradient_checkpointing
        encoder(values, mask).pooler_output.square().sum().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])


def test_random_weights_give_moderate_gradients() -> None:
    torch.manual_seed(0)
    encoder = load_encoder(None, type="ast", **{k: v for k, v in tiny().to_dict().items() if k in SIZES})
    tables = encoder.audio_spectrogram_transformer.embeddings
    for weight in (tables.cls_token, tables.distillation_token, tables.position_embeddings):
        assert 0.005 < float(weight.detach().std()) < 0.05
    values, mask = batch_of([40, 96])
    encoder(values, mask).pooler_output.square().mean().backward()
    norm = torch.stack([p.grad.norm() for p in encoder.parameters() if p.grad is not None]).norm()
    assert 0 < float(norm) < 100


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_mel_bins", "max_length")


def test_bfloat16_works_with_a_mask() -> None:
    values, mask = batch_of([40, 96])
    encoder = make()
    with torch.no_grad():
        full = encoder(values, mask).pooler_output
        half = encoder.to(torch.bfloat16)(values, mask).pooler_output
    assert half.dtype == torch.bfloat16
    assert float(torch.cosine_similarity(full, half.float()).min()) > 0.98


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


def exchanged(values: torch.Tensor, taken: torch.Tensor, partner: torch.Tensor, patch: int = 16) -> torch.Tensor:
    """Whole blocks of features taken from the partner, one by one."""
    mixed = values.clone()
    for row, band, step in taken.nonzero().tolist():
        time, mel = slice(patch * step, patch * (step + 1)), slice(patch * band, patch * (band + 1))
        mixed[row, time, mel] = values[partner[row], time, mel]
    return mixed


def test_exchanging_patch_tokens_is_exchanging_blocks_of_features_where_patches_do_not_overlap() -> None:
    encoder = make(frequency_stride=16, time_stride=16, num_mel_bins=32)
    values, _ = batch_of([96, 96, 96], 32)
    assert encoder.token_grid(96, 32) == (2, 6)
    taken = torch.rand(3, 2, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    partner = torch.tensor([1, 2, 0])
    with torch.no_grad():
        found = encoder(values, token_mix=TokenMix(taken, partner))
        expected = encoder(exchanged(values, taken, partner))
        plain = encoder(values)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found.pooler_output, plain.pooler_output, atol=1e-3)
    nothing = TokenMix(torch.zeros_like(taken), partner)
    with torch.no_grad():
        assert torch.equal(encoder(values, token_mix=nothing).last_hidden_state, plain.last_hidden_state)


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
    values, mask = batch_of(lengths)
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
