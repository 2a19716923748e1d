"""The smallest encoder of every kind, random but with weights that make a difference."""

import torch
from transformers import PreTrainedModel

from laennec.encoders import load_encoder

SPEECH = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
STABLE = {**SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WHISPER = {
    "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "max_source_positions": 100,
}  # fmt: skip
BERT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_depthwise_kernel_size": 5, "output_hidden_size": 16,
}  # fmt: skip
CLAP = {
    "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2], "window_size": 4,
    "patch_stride": [16, 16], "patch_size": 16,
}  # fmt: skip
AST = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "max_length": 128,
    "layer_norm_eps": 1e-6,
}  # fmt: skip
BEATS = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32, "patch_dim": 12,
    "position_kernel": 9, "position_groups": 2, "num_buckets": 16, "max_distance": 20,
}  # fmt: skip
AUDIOMAE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
# name of the case -> type and settings; other families of laennec's own, then those of transformers
OWN: dict[str, tuple[str, dict]] = {
    "ast": ("ast", AST),
    "ast-interpolated": ("ast", {**AST, "time_positions": "interpolate"}),
    "audiomae": ("audiomae", AUDIOMAE),
    "audiomae-fc-norm": ("audiomae", {**AUDIOMAE, "fc_norm": True}),
    "beats": ("beats", BEATS),
    "cnn": ("cnn", {"channels": [4, 8]}),
    "mobilenet": ("mobilenet", {"width_mult": 0.1}),
    "statistics": ("statistics", {}),
}
TINY: dict[str, tuple[str, dict]] = {
    "whisper": ("whisper", WHISPER),
    "whisper-128": ("whisper", {**WHISPER, "num_mel_bins": 128}),
    "wav2vec2": ("wav2vec2", SPEECH),
    "wav2vec2-stable": ("wav2vec2", STABLE),
    "hubert": ("hubert", SPEECH),
    "hubert-stable": ("hubert", STABLE),
    "wavlm": ("wavlm", SPEECH),
    "wavlm-stable": ("wavlm", STABLE),
    "data2vec-audio": ("data2vec-audio", {**SPEECH, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}),
    "unispeech": ("unispeech", SPEECH),
    "unispeech-sat": ("unispeech-sat", STABLE),
    "wav2vec2-bert": ("wav2vec2-bert", BERT),
    "wav2vec2-bert-relative": ("wav2vec2-bert", {**BERT, "position_embeddings_type": "relative"}),
    "wav2vec2-bert-rotary": ("wav2vec2-bert", {**BERT, "position_embeddings_type": "rotary"}),
    "clap": ("clap", CLAP),
    "clap-fused": ("clap", {**CLAP, "enable_fusion": True}),
}


def tiny(case: str, seed: int = 0, **more: object) -> PreTrainedModel:
    """The model of a case in eval mode; its weights are large enough for errors to show."""
    torch.manual_seed(seed)
    kind, settings = (OWN | TINY)[case]
    encoder = load_encoder(None, type=kind, **settings | more)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if value.ndim > 1 and "embed_positions" not in name:
                fan_in = value[0].numel()
                value.normal_(0.0, fan_in**-0.5)
            elif value.ndim == 1 and name.endswith("bias"):
                value.normal_(0.0, 0.3)
    return encoder


def batch_of(lengths: list[int], mels: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features of cycles of so many frames, padded to the longest, and their mask."""
    values = torch.randn(len(lengths), max(lengths), mels, generator=torch.Generator().manual_seed(1))
    return values, (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
