"""Export a run as one ONNX file or for OpenVINO, from the waveform to the calibrated probabilities.

Decisions: the front end is part of the file, so nobody can serve the model with other features. Inside, the sounds of a
batch go through the network one after the other, without padding, because masks took four fifths of the time of a small
network. Thresholds and the recording filter (a recursion, which a graph cannot express) are in onnx.json. The file is
compared with the model in onnxruntime. In an int8 file, dense layers compute in int8; the weights of convolutions are
stored as int8 and compute in float, because int8 everywhere cost a frozen mobilenet 0.11 of crackle AUROC on SPRSound's
validation patients. The effect of int8 is measured on validation cycles, never on a test split. OpenVINO reads the ONNX
file without `convert_model`, which would report its use to its makers.
"""

import contextlib
import copy
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.filterbanks import GraphFrontEnd
from laennec.cache import sha256_of
from laennec.corpora.base import column_of
from laennec.errors import InputError
from laennec.evaluation.metrics import auroc
from laennec.evaluation.predictions import read_predictions
from laennec.inference.backends import fingerprint_of
from laennec.inference.onnx_model import FACTS, SOURCES, OnnxSession, file_digests, padded
from laennec.model_settings import FILLED, NEUTRAL
from laennec.modeling import LaennecForAudioClassification
from laennec.training.record import read_record, versions, write_record

OPSET = 18
TOLERANCE = 1e-4
FLOAT_FILE, INT8_FILE = "model.onnx", "model_int8.onnx"
OPENVINO_FILE, OPENVINO_FACTS = "model.xml", "openvino.json"
_PREDICTIONS = "predictions-validation.parquet"
_INPUTS = {"waveforms": "float32 (batch, samples), at sampling_rate", "lengths": "int64 (batch,), samples of each"}
_OUTPUTS = {
    "logits": "float32 (batch, labels), before calibration",
    "probabilities": "float32 (batch, labels), calibrated: sigmoid or softmax of (logit / temperature + intercept)",
    "embeddings": "float32 (batch, dim), input of the head",
}
# int8 saves nothing on smaller kernels and costs most on the first one (0.019 of that crackle AUROC)
_FEW_WEIGHTS = 4096
_LARGEST_FILE = 1_900_000_000  # limit of a single ONNX file
# batches that are compared: the seconds of each sound
_COMPARED_S: tuple[tuple[float, ...], ...] = ((0.6,), (2.7, 1.1, 0.5), (11.3, 10.0), (1.0, 1.0, 0.9, 0.4, 0.8))


class _Whole(nn.Module):
    """Front end, model and calibration in one."""

    def __init__(self, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor) -> None:
        super().__init__()
        self.front, self.model = GraphFrontEnd(extractor), model

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedding = self.model.embed(self.front(waveform))
        logits = self.model.head(embedding)
        return logits, self.model.probabilities(logits), embedding


def write_onnx(
    folder: Path,
    model: LaennecForAudioClassification,
    extractor: LaennecFeatureExtractor,
    run: str | Path,
    int8: bool = False,
) -> dict[str, Any]:
    """Write the ONNX file and onnx.json, and compare the file with the model."""
    if model.config.concatenated_context:
        raise InputError(
            f"{run}: no ONNX export: the model uses concatenated context (features.context_cycles); use --format full"
        )
    for name in ("onnx", "onnxscript"):
        _package(name)
    if int8 and not (Path(run) / _PREDICTIONS).is_file():
        raise InputError(
            f"{run}: int8 is compared on the validation cycles of a run; give the folder of a finished run"
        )
    model = (model if model.dtype == torch.float32 else copy.deepcopy(model).float()).eval().requires_grad_(False)
    path = folder / FLOAT_FILE
    graph = _one_sound(model, extractor, run)
    _save(_in_batches(graph, extractor), path)
    facts = _facts(model, extractor, _compare(path, OnnxSession(path), model, extractor))
    if int8:
        facts["fingerprint"] = None  # of float weights
        _save(_in_batches(_quantised(graph, folder), extractor), folder / INT8_FILE)
        facts["file"] = INT8_FILE
        facts["int8"] = _int8_effect(folder, model, extractor, Path(run))
        for part in folder.glob(f"{FLOAT_FILE}*"):
            part.unlink()
    # predict refuses a file beside weights or settings that it was not made from
    beside = {name: sha256_of(folder / name) for name in SOURCES if (folder / name).is_file()}
    facts["sources"] = beside | file_digests(folder / facts["file"])
    write_record(folder / FACTS, facts)
    return facts


def write_openvino(
    folder: Path, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor, run: str | Path
) -> None:
    """Write model.xml, model.bin and openvino.json, and compare the files with the model."""
    openvino, path = _package("openvino"), folder / OPENVINO_FILE
    facts = write_onnx(folder, model, extractor, run)
    core = openvino.Core()
    try:
        openvino.save_model(core.read_model(folder / FLOAT_FILE), path, compress_to_fp16=False)
        compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:  # an operation that OpenVINO does not support
        reason = " ".join(str(error).split())[-160:]
        raise InputError(f"{run}: no OpenVINO export: {reason}; use --format onnx") from error
    apart = _compare(path, lambda sounds: list(compiled(padded(sounds)).values()), model, extractor)
    for part in (*folder.glob(f"{FLOAT_FILE}*"), folder / FACTS):
        part.unlink()
    own = {"file": OPENVINO_FILE, "largest_difference_of_logits": apart}
    kept = {name: value for name, value in facts.items() if name not in ("opset", "fingerprint", "sources")}
    write_record(folder / OPENVINO_FACTS, kept | own)


def _one_sound(model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor, run: str | Path) -> Any:
    """The graph of one waveform (1, samples), as an ONNX model."""
    # a frozen encoder switches gradients off inside, which a graph cannot express
    frozen, model.config.frozen_encoder = model.config.frozen_encoder, False
    sound = torch.zeros(1, 3 * extractor.sampling_rate)
    sound.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0))
    samples = torch.export.Dim("samples", min=2 * extractor.front.min_samples)
    try:
        # with gradients on, the exporter fuses convolutions and their normalisations
        with _quiet("torch.onnx"), torch.enable_grad():
            program: Any = torch.onnx.export(
                _Whole(model, extractor).eval(),
                (sound,),
                dynamo=True,
                dynamic_shapes={"waveform": {1: samples}},
                input_names=["waveform"],
                output_names=list(_OUTPUTS),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types for an unknown operation
        deepest: BaseException = error
        while deepest.__cause__ is not None:  # the first cause is the last in the chain
            deepest = deepest.__cause__
        reason = next((line.strip() for line in str(deepest).splitlines() if line.strip()), type(deepest).__name__)
        raise InputError(
            f"{run}: no ONNX export of {type(model.encoder).__name__}: {reason[:160]}; use --format full"
        ) from error
    finally:
        model.config.frozen_encoder = frozen
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]  # they contain paths of this machine's source files
    return proto


def _in_batches(one: Any, extractor: LaennecFeatureExtractor) -> Any:
    """The graph of a batch: a loop of the graph of one sound over the rows, each cut to its own length."""
    onnx = _package("onnx")
    helper, graph = onnx.helper, one.graph
    (waveform,) = (value.name for value in graph.input)
    widths = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in graph.output}
    integer, truth, real = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.FLOAT)
    node, typed = helper.make_node, helper.make_tensor_value_info
    cut = [
        node("Unsqueeze", ["row", "axis_0"], ["place"]),
        node("Gather", ["waveforms", "place"], ["padded"]),
        node("Gather", ["lengths", "place"], ["length"]),
        node("Max", ["length", "least"], ["end"]),
        node("Slice", ["padded", "axis_0", "end", "axis_1"], [waveform]),
    ]
    squeezed = [node("Squeeze", [name, "axis_0"], [f"{name}_of_row"]) for name in widths]
    body = helper.make_graph(
        [*cut, *graph.node, *squeezed, node("Identity", ["go_on"], ["still"])],
        "one_sound",
        [typed("row", integer, []), typed("go_on", truth, [])],
        [typed("still", truth, []), *(typed(f"{name}_of_row", real, [width]) for name, width in widths.items())],
        initializer=graph.initializer,
    )
    least = 1 if extractor.length in FILLED else extractor.front.min_samples
    numbers = {"axis_0": [0], "axis_1": [1], "least": [least], "always": True}
    batch = helper.make_graph(
        [
            node("Shape", ["lengths"], ["rows"]),
            node("Squeeze", ["rows", "axis_0"], ["count"]),
            node("Loop", ["count", "always"], list(widths), body=body),
        ],
        "laennec",
        [typed("waveforms", real, ["batch", "samples"]), typed("lengths", integer, ["batch"])],
        [typed(name, real, ["batch", width]) for name, width in widths.items()],
        initializer=[onnx.numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()],
    )
    return helper.make_model(batch, opset_imports=one.opset_import, ir_version=one.ir_version, functions=one.functions)


def _save(model: Any, path: Path) -> None:
    large = model.ByteSize() > _LARGEST_FILE
    _package("onnx").save_model(model, str(path), save_as_external_data=large, location=f"{path.name}.data")


def _compare(
    path: Path, runs: Callable[[Any], Any], model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor
) -> float:
    """The largest difference between the logits of file and model; raises above the tolerance."""
    draw = np.random.Generator(np.random.Philox(key=4))
    rate = extractor.sampling_rate
    apart, largest = 0.0, 1.0
    for seconds in _COMPARED_S:
        sounds = [0.1 * draw.standard_normal(round(s * rate)).astype(np.float32) for s in seconds]
        sounds = [s for s in sounds if extractor.frames(len(s)) > 0]
        with torch.inference_mode():
            wanted = model(**extractor(sounds, sampling_rate=rate, filtered=True)).logits.numpy()
        apart = max(apart, float(np.abs(runs(sounds)[0] - wanted).max()))
        largest = max(largest, float(np.abs(wanted).max()))
    if not apart <= TOLERANCE * largest:
        raise InputError(
            f"{path}: the file differs from the run (logits by {apart:.2e}); nothing was exported; use --format full"
        )
    return apart


def _facts(model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor, apart: float) -> dict[str, Any]:
    config = model.config
    known = versions()
    return {
        "file": FLOAT_FILE,
        "opset": OPSET,
        "inputs": _INPUTS,
        "outputs": _OUTPUTS,
        "labels": config.label_names,
        "problem_type": config.problem_type,
        "sampling_rate": extractor.sampling_rate,
        "min_samples": extractor.front.min_samples,
        "recording_filter": extractor.recording_filter,
        **{name: config.per_label(name) for name in NEUTRAL},
        "operating_point": config.operating_point,
        "operating_points": config.operating_points,
        "span": config.span,
        "summary": config.summary,
        "fingerprint": fingerprint_of(model, extractor),
        "front_end": "inside the file; its settings are in preprocessor_config.json",
        "largest_difference_of_logits": apart,
        "made_with": {name: known[name] for name in ("laennec", "torch") if name in known},
    }


def _quantised(graph: Any, folder: Path) -> Any:
    """The graph with int8 weights of the model; those of the front end stay float."""
    onnx = _package("onnx")
    quantization = _package("onnxruntime.quantization")
    model, target = copy.deepcopy(graph), folder / "quantised.onnx"
    del model.graph.value_info[:]  # the exporter's optimiser leaves outdated shapes
    _quantise_convolutions(model.graph)
    first = [node.name for node in model.graph.node if any(name.startswith("front.") for name in node.input)]
    with _quiet():  # it warns of missing pre-processing, which the exporter has done
        quantization.quantize_dynamic(
            model,
            str(target),
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=quantization.QuantType.QUInt8,
            per_channel=True,
            nodes_to_exclude=first,
        )
    quantised = onnx.load(str(target))
    target.unlink()
    return quantised


def _quantise_convolutions(graph: Any) -> None:
    """Store the weights of convolutions as int8 with a scale per output channel, in place."""
    onnx = _package("onnx")
    kernels = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    made = []
    for tensor in [t for t in graph.initializer if t.name in kernels and t.data_type == onnx.TensorProto.FLOAT]:
        weight = onnx.numpy_helper.to_array(tensor)
        if weight.size < _FEW_WEIGHTS:
            continue
        scale = np.maximum(np.abs(weight).reshape(len(weight), -1).max(1), 1e-12).astype(np.float32) / 127
        rows = scale.reshape(-1, *[1] * (weight.ndim - 1))
        values = {
            f"{tensor.name}.bytes": np.round(weight / rows).astype(np.int8),
            f"{tensor.name}.scale": scale,
            f"{tensor.name}.zero": np.zeros(len(weight), np.int8),
        }
        graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values.items())
        made.append(
            onnx.helper.make_node("DequantizeLinear", list(values), [tensor.name], f"{tensor.name}.float", axis=0)
        )
        graph.initializer.remove(tensor)
    for node in reversed(made):
        graph.node.insert(0, node)


def _int8_effect(
    folder: Path, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor, run: Path
) -> dict[str, Any]:
    """AUROC of each label on the run's validation cycles in float and int8, and the difference."""
    sounds, predictions = _validation(run, model, extractor)
    names = model.config.label_names
    scores = {}
    for kind, file in (("float", FLOAT_FILE), ("int8", INT8_FILE)):
        logits = OnnxSession(folder / file).logits(sounds)
        table = predictions.assign(**{f"logit_{name}": logits[:, i] for i, name in enumerate(names)})
        read = read_predictions(
            table,
            problem_type="multi_label" if model.config.is_multi_label else "single_label",
            label_names=names,
            temperatures=model.config.temperatures,
        )
        scores[kind] = {name: auroc(read.truth[:, i], read.logits[:, i]) for i, name in enumerate(read.label_names)}
    return {
        "part": "validation",
        "cycles": len(sounds),
        "auroc_float": scores["float"],
        "auroc_int8": scores["int8"],
        "auroc_loss": {name: scores["float"][name] - value for name, value in scores["int8"].items()},
        "bytes_float": (folder / FLOAT_FILE).stat().st_size,
        "bytes_int8": (folder / INT8_FILE).stat().st_size,
    }


def _validation(
    run: Path, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor
) -> tuple[list[NDArray[np.float32]], Any]:
    """The waveforms of a run's validation cycles, and their predictions table in the same order."""
    from laennec.corpora.load import provenance
    from laennec.evaluation.calibration.recalibrate import read_validation
    from laennec.evaluation.scored_data import check_split, recipe_of
    from laennec.training.data.split_data import load_splits, make_split

    path = run / _PREDICTIONS
    record = read_record(run / "run.json")
    recipe = recipe_of(run, record, None)
    parts = load_splits(recipe)
    check_split(record, recipe, provenance(parts))
    part = make_split("validation", parts["validation"], recipe, extractor, model.config.label_names, False)
    predictions = read_validation(path).set_index("cycle_id")
    ids = column_of(part.table, "cycle_id")
    if missing := sorted(set(ids) ^ set(predictions.index)):
        raise InputError(
            f"{path}: does not match the validation cycles of the corpus ({missing[0]}); train the run again"
        )
    return [part.dataset.sound(row) for row in range(len(ids))], predictions.loc[ids].reset_index()


@contextlib.contextmanager
def _quiet(name: str | None = None) -> Iterator[None]:
    """No warnings in this block: of Python, and of the logger of this name or the root of all."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        extra = "openvino" if package == "openvino" else "onnx"
        raise InputError(
            f"this format needs the package {package}, which is not installed; pip install 'laennec[{extra}]'"
        ) from error
