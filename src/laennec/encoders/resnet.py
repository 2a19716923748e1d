"""ResNet on spectrograms, with the layers and checkpoints of transformers.

Decisions: features are an image of one channel, frequency by time; a checkpoint for photographs gets that channel three
times. Batch normalisation and convolutions of transformers take no mask, so padding would change the embedding of a
cycle: batches with padding are refused. With several processes, each keeps its own batch statistics
(train.sync_batch_norm has no effect here).

References: He et al., Deep Residual Learning for Image Recognition, CVPR 2016; on lung sounds Soni et al., Contrastive
Learning of Heart and Lung Sounds for Label-Efficient Diagnosis, Patterns 2022.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, ResNetConfig

from laennec.encoders.transformers_audio import TransformersEncoder
from laennec.errors import InputError

# transformers' own defaults are a ResNet-50 for photographs
_RESNET_18: dict[str, Any] = {
    "layer_type": "basic",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "num_channels": 1,
}


class ResNetAudioEncoder(TransformersEncoder):
    """ResNet (18 layers unless its configuration says otherwise) for cycles of one length.

    A token stands for 32 frames, averaged over frequency; `pooler_output` is the mean of the tokens, which is the
    average of the last feature map. `layers` are its four stages.
    """

    kind = "resnet"
    title = "ResNet-18, pre-trained on ImageNet"
    licence = "Apache-2.0"
    homepage = "https://huggingface.co/microsoft/resnet-18"
    citation = """@inproceedings{he2016deep,
  title={Deep Residual Learning for Image Recognition},
  author={He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2016}
}"""
    config_class = ResNetConfig
    source = ("resnet.modeling_resnet", "ResNetModel")
    other_parts = ("classifier.",)
    layers = "model.encoder.stages"
    feature_size = None
    _supports_sdpa = False

    def __init__(self, config: PreTrainedConfig) -> None:
        config.hidden_size = config.hidden_sizes[len(config.depths) - 1]
        super().__init__(config)

    @classmethod
    def settled(cls, values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """See `TransformersEncoder.settled`; without a checkpoint, a ResNet-18 with one channel."""
        return super().settled(values or _RESNET_18, overrides)

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        in_graph = torch.compiler.is_exporting()  # an exported graph cannot compare lengths
        if lengths is not None and not in_graph and int(lengths.min()) < values.shape[1]:
            raise InputError(
                f"a batch has cycles of {int(lengths.min())} to {values.shape[1]} frames, but ResNet takes cycles of "
                "one length; set features.length: repeat with features.duration_s, and no features.context_cycles"
            )
        # (batch, frames, mels) -> (batch, channels, mels, frames)
        image = values.transpose(1, 2).unsqueeze(1).expand(-1, self.config.num_channels, -1, -1)
        grid = self.model(image).last_hidden_state  # (batch, dim, mels / 32, frames / 32)
        return grid.mean(2).transpose(1, 2), None
