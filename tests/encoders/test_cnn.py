from pathlib import Path

import pytest
import torch
from transformers import AutoModel

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


def batch_of(lengths: list[int], mels: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(len(lengths), max(lengths), mels, generator=torch.Generator().manual_seed(1))
    return values, (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()


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
    values, _ = batch_of([48])
    x = values.transpose(1, 2).unsqueeze(1)
    for number, block in enumerate(encoder.blocks):
        x = torch.nn.functional.max_pool2d(x, 2) if number else x
        for conv, norm in zip(block.convs, block.norms, strict=True):
            plain = torch.nn.BatchNorm2d(norm.num_features).eval()
            plain.load_state_dict(norm.state_dict())
            x = torch.relu(plain(conv(x)))
    torch.testing.assert_close(encoder(values).pooler_output, x.mean((2, 3)))


@pytest.mark.parametrize("grad", [False, True])
def test_a_cycle_in_a_batch_has_the_embedding_it_has_alone(grad: bool) -> None:
    encoder = make(channels=(8, 8, 16, 16))
    lengths = [1, 2, 7, 8, 9, 63, 100]
    values, mask = batch_of(lengths)
    poisoned = values.masked_fill(mask[:, :, None] == 0, float(9))
    with torch.set_grad_enabled(grad):
        together = encoder(poisoned, mask)
        for i, n in enumerate(lengths):
            alone = encoder(values[i : i + 1, :n])
            torch.testing.assert_close(together.pooler_output[i], alone.pooler_output[0], atol=1e-5, rtol=1e-5)
            real = together.last_hidden_state[i][together.token_mask[i]]
            torch.testing.assert_close(real, alone.last_hidden_state[0], atol=1e-5, rtol=1e-5)
            assert len(real) == -(-n // 8)


def test_training_statistics_ignore_padding_and_gradients_flow() -> None:
    values, mask = batch_of([17, 40])
    short, long = make(channels=(4, 8)).train(), make(channels=(4, 8)).train()
    short(values, mask).pooler_output.square().sum().backward()
    longer = torch.nn.functional.pad(values, (0, 0, 0, 23), value=3.0)
    long(longer, torch.nn.functional.pad(mask, (0, 23))).pooler_output.square().sum().backward()
    torch.testing.assert_close(short.state_dict(), long.state_dict(), atol=1e-5, rtol=1e-5)
    for (name, a), b in zip(short.named_parameters(), long.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3, msg=name)
        assert float(a.grad.abs().sum()) > 0


def test_bfloat16_stays_near() -> None:
    values, mask = batch_of([30, 64])
    encoder = make()
    with torch.no_grad():
        full = encoder(values, mask).pooler_output
        half = encoder.to(torch.bfloat16)(values, mask).pooler_output
    assert half.dtype == torch.bfloat16
    assert float(torch.cosine_similarity(full, half.float()).min()) > 0.99


def test_a_saved_encoder_comes_back_exactly(tmp_path: Path) -> None:
    encoder = make(channels=(4, 6))
    encoder.save_pretrained(tmp_path)
    again = load_encoder(tmp_path, type="cnn")
    assert again.config.hidden_size == 6
    assert not again.training
    torch.testing.assert_close(again.state_dict(), encoder.state_dict(), rtol=0, atol=0)
    assert type(AutoModel.from_pretrained(tmp_path)) is CnnEncoder
    assert encoder_digest(again) == encoder_digest(encoder)


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
    with pytest.raises(InputError, match="holds a 'bert' model, which is no encoder here"):
        load_encoder(tmp_path / "bert")
    (tmp_path / "cnn/model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="no encoder can be loaded") as error:
        load_encoder(tmp_path / "cnn")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="needs its type"):
        load_encoder(None)
    with pytest.raises(ValueError, match="it can be ast, beats, cnn, mobilenet"):
        load_encoder(None, type="resnet")


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
