import pytest
import torch

from laennec.encoders import load_encoder


def test_mean_and_spread_are_over_real_frames_only(tmp_path):
    encoder = load_encoder(None, type="statistics", num_mel_bins=3)
    x = torch.randn(2, 7, 3)
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    x[1, 4:] = 99
    out = encoder(x, mask).pooler_output
    assert torch.allclose(out[0], torch.cat([x[0].mean(0), x[0].std(0, correction=0)]), atol=1e-6)
    assert torch.allclose(out[1], torch.cat([x[1, :4].mean(0), x[1, :4].std(0, correction=0)]), atol=1e-6)
    assert out.shape[1] == encoder.config.hidden_size == 6
    encoder.save_pretrained(tmp_path)
    assert torch.equal(load_encoder(tmp_path)(x, mask).pooler_output, out)


def test_it_has_no_other_type():
    with pytest.raises(ValueError, match="type is 'stats'"):
        load_encoder(None, type="stats")
