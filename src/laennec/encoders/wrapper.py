"""The configuration of an encoder around another.

Decisions: what is inside keeps its own configuration, whole, so that a wrapper is saved and made again without
knowing what it holds; the width of its embedding follows from that and is never read from a file.
"""

from typing import Any

from transformers import PreTrainedConfig

from laennec.encoders.own import config_from_dict


class WrapperConfig(PreTrainedConfig):
    """What is inside.

    Args:
        encoder_config: The inner encoder's configuration (or its dict).
        **kwargs: Handed to transformers.
    """

    def __init__(self, encoder_config: PreTrainedConfig | dict[str, Any] | None = None, **kwargs: Any) -> None:
        if isinstance(encoder_config, dict):
            encoder_config = config_from_dict(encoder_config)
        self.encoder_config = encoder_config
        kwargs.pop("hidden_size", None)
        self.hidden_size = int(getattr(encoder_config, "hidden_size", 0)) * self.width_factor()
        super().__init__(**kwargs)

    def width_factor(self) -> int:
        """How many times as wide as the inner encoder's the embedding is."""
        return 1

    def to_dict(self) -> dict[str, Any]:
        """This configuration as plain values, the inner one nested inside."""
        values: dict[str, Any] = super().to_dict()
        if isinstance(self.encoder_config, PreTrainedConfig):
            values["encoder_config"] = self.encoder_config.to_dict()
        return values
