"""What is known of the released weights of encoders.

Decisions: facts only, each from the publication or page that the citation names. Licences are those of the released
weights, not of laennec. Facts about a corpus are attributes of its class.
"""

# encoder type -> name and licence of the weights that its authors released
ENCODERS: dict[str, tuple[str, str]] = {
    "mobilenet": ("EfficientAT MobileNetV3, pre-trained on AudioSet", "MIT"),
    "ast": ("Audio Spectrogram Transformer, pre-trained on AudioSet", "BSD-3-Clause"),
    "beats": ("BEATs, pre-trained on AudioSet", "MIT"),
    "whisper": ("the encoder of Whisper, trained on speech", "MIT"),
}
