"""An encoder of your own: features to tokens, and a crackle/wheeze model around it.

Run it: python examples/own_encoder.py FOLDER. In a recipe:

    features: {preset: song2021}
    encoder:
      class: own_encoder:ConvEncoder
      config: {width: 32}
"""

import sys
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from laennec import LaennecFeatureExtractor, LaennecForAudioClassification, register_encoder


@register_encoder  # lets from_pretrained find the class in any program that imports this file
class ConvEncoder(nn.Module):
    """Patches of 8 frames, then 3-wide convolutions along time.

    Args:
        width: Width of a token.
        depth: Number of convolutions.
    """

    preset = "song2021"  # the front end that it expects: 64 mel bins
    layers = "convolutions"  # `trainable="last_n"` trains the last n of these layers
    citation = "@misc{conv, title={A small convolutional encoder}}"
    licence = "Apache-2.0"

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.config = {"width": width, "depth": depth}  # saved with the model, to build the encoder again
        self.patches = nn.Conv1d(64, width, kernel_size=8, stride=8)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, kernel_size=3, padding=1) for _ in range(depth))

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        """Encode cycles: (batch, frames, mels) and the mask of their own frames (batch, frames)."""
        if attention_mask is None:
            attention_mask = torch.ones(input_values.shape[:2], dtype=torch.long, device=input_values.device)
        # frames beyond a cycle's end are 0 before every convolution, so padding changes no result
        values = (input_values * attention_mask[..., None]).transpose(1, 2)
        values = nn.functional.pad(values, (0, -values.shape[2] % 8))
        hidden = self.patches(values)  # (batch, width, tokens)
        lengths = (attention_mask.sum(1) + 7) // 8
        mask = torch.arange(hidden.shape[2], device=hidden.device) < lengths[:, None]  # (batch, tokens)
        for convolution in self.convolutions:
            hidden = hidden * mask[:, None]
            hidden = hidden + convolution(hidden).relu()
        tokens = (hidden * mask[:, None]).transpose(1, 2)
        pooled = tokens.sum(1) / mask.sum(1, keepdim=True)
        return SimpleNamespace(last_hidden_state=tokens, token_mask=mask, pooler_output=pooled)


def main(folder: str) -> None:
    """Build a model, classify two sounds, save the model and load it again."""
    features = LaennecFeatureExtractor("song2021", length="natural")
    model = LaennecForAudioClassification.from_encoder(ConvEncoder(width=32), ["crackle", "wheeze"], features=features)
    sounds = [torch.randn(16_000).numpy(), torch.randn(24_000).numpy()]
    batch = features(sounds, sampling_rate=16_000)
    model.eval()
    with torch.no_grad():
        logits = model(**batch).logits
    model.save_pretrained(folder)
    features.save_pretrained(folder)
    again = LaennecForAudioClassification.from_pretrained(folder)
    with torch.no_grad():
        print("same after loading:", torch.equal(again(**batch).logits, logits))


if __name__ == "__main__":
    main(sys.argv[1])
