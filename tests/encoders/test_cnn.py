from pathlib import Path

import pytest
import torch
from tiny_encoders import batch_of

from laennec.audio.features import LaennecFeatureExtractor
from laennec.encoders import CnnConfig, CnnEncoder, encoder_digest, encoder_from_config, load_encoder
from laennec.errors import InputError


def make(**kwargs: object) -> CnnEncoder:
    torch.manual_seed(0)
    encoder = encoder_from_config(CnnConfig(**kwargs)).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, 0.2, 0.3)
    return encoder


def test_has_the_shapes_of_table_1() -> None:
    encoder = make()
    shapes: list[tuple[int, ...]] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape)))
    wave = torch.randn(2, 20000) * 0.1
    out = encoder(**LaennecFeatureExtractor("song2021")(wave, sampling_rate=16000))
    assert shapes == [(2, 32, 64, 320), (2, 64, 32, 160), (2, 128, 16, 80), (2, 256, 8, 40)]
    assert out.pooler_output.shape == (2, 256)
    assert out.last_hidden_state.shape == (2, 40, 256)
    convs = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convs] == [32, 32, 64, 64, 128, 128, 256, 256]
    assert {m.kernel_size for m in convs} == {(3, 3)}


def test_equals_a_plain_stack_of_layers() -> None:
    encoder = make(channels=(4, 6, 8))
    values, _ = batch_of([48], 64)
    x = values.transpose(1, 2).unsqueeze(1)
    for number, block in enumerate(encoder.blocks):
        x = torch.nn.functional.max_pool2d(x, 2) if number else x
        for conv, norm in zip(block.convs, block.norms, strict=True):
            plain = torch.nn.BatchNorm2d(norm.num_features).eval()
            plain.load_state_dict(norm.state_dict())
            x = torch.relu(plain(conv(x)))
    torch.testing.assert_close(encoder(values).pooler_output, x.mean((2, 3)))


def test_the_digest_sees_every_weight_and_no_counter() -> None:
    encoder = make(channels=(4, 6))
    before = encoder_digest(encoder)
    encoder.blocks[0].norms[0].num_batches_tracked.add_(5)
    assert encoder_digest(encoder) == before
    encoder.blocks[1].norms[1].running_mean[3] += 1e-6
    assert encoder_digest(encoder) != before


def test_loading_errors_are_one_line_with_a_remedy(tmp_path: Path) -> None:
    make(channels=(4, 6)).save_pretrained(tmp_path / "cnn")
    with pytest.raises(InputError, match="holds a cnn encoder, not ast"):
        load_encoder(tmp_path / "cnn", type="ast")
    with pytest.raises(InputError, match="weights are not those"):
        load_encoder(tmp_path / "cnn", channels=[4, 6, 8])
    with pytest.raises(InputError, match="no setting 'chanels'; did you mean 'channels'"):
        load_encoder(None, type="cnn", chanels=(4,))
    for channels in ([], [4, 0], ["4"]):
        with pytest.raises(InputError, match=r"channels is .*; it must be a list of whole numbers above 0"):
            load_encoder(None, type="cnn", channels=channels)
    with pytest.raises(InputError, match="num_mel_bins is -1; it must be a whole number above 0"):
        load_encoder(None, type="cnn", num_mel_bins=-1)
    with pytest.raises(InputError, match="nobody/nothing: not found locally and the Hub cannot be reached"):
        load_encoder("nobody/nothing")
    with pytest.raises(InputError, match=r"absent\.pt: no such file"):
        load_encoder("absent.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no encoder can be loaded from this folder"):
        load_encoder(tmp_path / "empty")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="holds a 'bert' model, which is not a supported encoder"):
        load_encoder(tmp_path / "bert")
    (tmp_path / "cnn/model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="no encoder can be loaded"):
        load_encoder(tmp_path / "cnn")
    with pytest.raises(ValueError, match="needs its type"):
        load_encoder(None)
    with pytest.raises(ValueError, match="it can be ast, beats, cnn, mobilenet"):
        load_encoder(None, type="vgg")


def test_an_encoder_can_run_twice_in_a_step_padded_or_not():
    """Context does so: cycles of one length alone, and joined ones of several lengths."""
    torch.manual_seed(0)
    encoder = load_encoder(None, type="cnn", channels=[4, 8]).train()
    values, mask = torch.randn(2, 40, 64), torch.ones(2, 40, dtype=torch.long)
    shorter = mask.clone()
    shorter[1, 25:] = 0
    whole, padded = encoder(values, mask).pooler_output, encoder(values, shorter).pooler_output
    again = load_encoder(None, type="cnn", channels=[4, 8]).train()
    again.load_state_dict(encoder.state_dict())
    (whole.square().sum() + padded.square().sum()).backward()
    again(values, mask).pooler_output.square().sum().backward()
    again(values, shorter).pooler_output.square().sum().backward()
    for one, two in zip(encoder.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-4)


def test_mean_and_spread_are_over_real_frames_only():
    encoder = load_encoder(None, type="statistics", num_mel_bins=3)
    x = torch.randn(2, 7, 3)
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    x[1, 4:] = 99
    out = encoder(x, mask).pooler_output
    assert torch.allclose(out[0], torch.cat([x[0].mean(0), x[0].std(0, correction=0)]), atol=1e-6)
    assert torch.allclose(out[1], torch.cat([x[1, :4].mean(0), x[1, :4].std(0, correction=0)]), atol=1e-6)
    assert out.shape[1] == encoder.config.hidden_size == 6
