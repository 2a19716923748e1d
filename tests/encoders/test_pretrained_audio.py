"""Published checkpoints of transformers' audio encoders: what is read, what is left out, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import BERT, CLAP, SPEECH, WHISPER, tiny
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapModel,
    ClapTextConfig,
    HubertConfig,
    HubertForCTC,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2ForPreTraining,
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from laennec.encoders import encoder_digest, load_encoder
from laennec.encoders.weights.checkpoints import loaded_strictly, published_features
from laennec.errors import InputError

_DECODER = {
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 40, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
_TEXT = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20,
    "max_position_embeddings": 20, "projection_dim": 8,
}  # fmt: skip


def whole_models():
    """Name -> a whole model as it is published, and where its encoder is."""
    torch.manual_seed(0)
    whisper = WhisperConfig(**WHISPER, **_DECODER)
    yield "WhisperForConditionalGeneration", WhisperForConditionalGeneration(whisper), lambda m: m.model.encoder
    yield "WhisperModel", WhisperModel(whisper), lambda m: m.encoder
    yield "WhisperForAudioClassification", WhisperForAudioClassification(whisper), lambda m: m.encoder
    yield "HubertForCTC", HubertForCTC(HubertConfig(**SPEECH, vocab_size=20)), lambda m: m.hubert
    pretraining = Wav2Vec2Config(**SPEECH, codevector_dim=8, proj_codevector_dim=8, num_codevectors_per_group=4)
    yield "Wav2Vec2ForPreTraining", Wav2Vec2ForPreTraining(pretraining), lambda m: m.wav2vec2
    bert = Wav2Vec2BertConfig(**BERT)
    yield "Wav2Vec2Bert", Wav2Vec2BertForSequenceClassification(bert), lambda m: m.wav2vec2_bert
    clap = ClapConfig(
        audio_config=ClapAudioConfig(**CLAP, hidden_size=16, projection_dim=8).to_dict(),
        text_config=ClapTextConfig(**_TEXT).to_dict(),
        projection_dim=8,
    )
    yield "ClapModel", ClapModel(clap), lambda m: m.audio_model


@pytest.mark.parametrize("which", range(7))
def test_the_encoder_of_a_whole_model_is_found(which: int, tmp_path: Path) -> None:
    name, model, part = list(whole_models())[which]
    model.save_pretrained(tmp_path / name)
    encoder = load_encoder(tmp_path / name)
    wanted = {n: v for n, v in part(model).state_dict().items() if "masked_spec_embed" not in n}
    found = encoder.model.state_dict()
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
    assert not encoder.training and encoder.config.hidden_size == 16


def old_names(state: dict) -> dict:
    """The names that weight norm had when most speech encoders were published."""
    return {
        n.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for n, v in state.items()
    }


def test_old_names_pickles_of_tensors_half_precision_and_shards(tmp_path: Path) -> None:
    encoder = tiny("hubert")
    state = {n.removeprefix("model."): v.contiguous() for n, v in encoder.state_dict().items()}
    digest = encoder_digest(encoder)
    encoder.config.save_pretrained(tmp_path)
    torch.save(old_names(state), tmp_path / "pytorch_model.bin")
    assert any(n.endswith("weight_g") for n in old_names(state))
    assert encoder_digest(load_encoder(tmp_path)) == digest
    (tmp_path / "pytorch_model.bin").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({n: state[n] for n in own}, tmp_path / file)
    index = {"weight_map": {n: file for file, own in parts.items() for n in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert encoder_digest(load_encoder(tmp_path)) == digest
    save_file({n: v.half() for n, v in state.items()}, tmp_path / "model.safetensors")  # found before the index
    assert load_encoder(tmp_path).dtype == torch.float32 and encoder_digest(load_encoder(tmp_path)) != digest


class TestRefused:
    """One line each, nothing half loaded, nothing run."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tiny("whisper").save_pretrained(tmp_path / "whisper")
        return tmp_path / "whisper"

    @staticmethod
    def assert_refused(folder: Path | str, *said: str, **kwargs: object) -> str:
        with pytest.raises(InputError) as error:
            load_encoder(folder, **kwargs)
        text = str(error.value)
        assert "\n" not in text and str(folder) in text
        for part in said:
            assert part in text, text
        return text

    @staticmethod
    def edit(folder: Path, change) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    def test_a_part_of_something_else_is_refused_where_it_does_not_belong(self, folder: Path) -> None:
        self.edit(folder, lambda state: state.update({"model.lm_head.weight": torch.zeros(2)}))
        self.assert_refused(folder, "lm_head.weight is left over")

    def test_broken_files(self, folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"not tensors at all"):
            (folder / "model.safetensors").write_bytes(content)
            self.assert_refused(folder)
        (folder / "model.safetensors").unlink()
        self.assert_refused(
            folder, "there is no model.safetensors", "give a folder with config.json and model.safetensors"
        )
        for index, said in (
            ("{}", "not an index of weights"),
            ('{"weight_map": {"a": "../other.safetensors"}}', "no file of weights beside it"),
            ('{"weight_map": {"a": "part.safetensors"}}', "part.safetensors is missing"),
        ):
            (folder / "model.safetensors.index.json").write_text(index)
            self.assert_refused(folder, said)

    def test_another_type_and_models_that_are_no_audio_encoder(self, folder: Path) -> None:
        self.assert_refused(folder, "holds a whisper encoder, not hubert", type="hubert")
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
        self.assert_refused(folder, "'bert' model, which is not a supported encoder", "whisper", "clap")

    def test_a_file_instead_of_a_folder(self, folder: Path) -> None:
        self.assert_refused(folder / "model.safetensors", "read from a folder or the Hub", type="whisper")


def test_what_a_checkpoint_says_of_its_features(tmp_path: Path) -> None:
    assert published_features(tmp_path) == {}
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    assert published_features(tmp_path) == {"sampling_rate": 8000}
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        published_features(tmp_path)
    assert published_features("someone/never-downloaded") == {}


def test_weights_that_are_filled_from_elsewhere_are_not_looked_at() -> None:
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    torch.nn.init.constant_(model["encoder"].weight, float("nan"))  # as memory that nobody has written to can hold
    info = {"missing_keys": ["encoder.weight"], "mismatched_keys": [], "unexpected_keys": []}

    def load(source: str, **settings: object) -> tuple[torch.nn.Module, dict[str, list[str]]]:
        return model, info

    assert loaded_strictly(load, "somewhere", "model", absent=("encoder.",))[0] is model
    torch.nn.init.constant_(model["head"].bias, float("inf"))
    with pytest.raises(InputError, match=r"somewhere: head\.bias holds values that are not finite"):
        loaded_strictly(load, "somewhere", "model", absent=("encoder.",))
