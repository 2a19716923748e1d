"""From a trained model to files and repositories that other people load."""

from laennec.errors import InputError

FORMATS = ("head", "full", "full-onnx", "lora", "stock", "onnx", "onnx-int8", "openvino", "space")

# the files of a model: only these are uploaded, and only these are deleted by a later push
MODEL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "*.onnx",
    "*.onnx.data",
    "onnx.json",
    "model.xml",
    "model.bin",
    "openvino.json",
    ".eval_results/*.yaml",
)


def export_format(name: str) -> str:
    """The format of this name; "adapter" is "lora"."""
    if name not in (*FORMATS, "adapter"):
        raise InputError(f"format: unknown format {name!r}; choose from {', '.join(FORMATS)}")
    return "lora" if name == "adapter" else name
