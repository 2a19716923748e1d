"""What a study still needs, and about how long it takes: `laennec study --dry-run`.

Decisions: nothing is downloaded. The estimate is one forward pass on a cycle of average length, times three for a
training step, times cycles and epochs. The CPU is timed on that pass, one cycle at a time; for a GPU its floating-point
operations are counted, at an assumed share of the peak. A study file states the number and mean length of the cycles of
each corpus (`data`), because the corpus may not be here yet; cycles of all splits count.
"""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import CONFIG_NAME, cached_file

from laennec.corpora.load import find_corpus
from laennec.encoders import ENCODERS, load_encoder, wrapped
from laennec.errors import InputError
from laennec.study.plan import Cell, Data, Study
from laennec.training.data.split_data import make_extractor
from laennec.training.recipe import CorpusSettings, Recipe

GPU, GPU_FLOPS, GPU_SHARE = "NVIDIA H100", 989e12, 0.2  # dense bf16 peak (SXM), FLOP/s, and the assumed share of it
_STEP = 3  # a forward pass, and a backward pass of twice its operations


@dataclass(frozen=True)
class Hours:
    """Hours that the trainings of a study take on one thread of this CPU, and on the GPU."""

    cpu: float
    gpu: float


def missing(study: Study) -> list[str]:
    """One line for each missing corpus or checkpoint, with its address and licence."""
    lines = []
    for cell in study.cells:
        recipe = recipe_of(cell)
        lines += [line for one in recipe.corpus.each for line in _missing_corpus(one, study.data)]
        lines += _missing_weights(recipe, cell)
    return list(dict.fromkeys(lines))


def recipe_of(cell: Cell) -> Recipe:
    """The recipe of a cell with its settings, before any pre-training."""
    return Recipe.from_yaml(cell.recipe, **cell.settings)


def _missing_corpus(c: CorpusSettings, data: Mapping[str, Data]) -> Iterator[str]:
    corpus = find_corpus(c.name)
    here = c.data_dir is not None and os.path.exists(c.data_dir)
    if here or corpus is None or c.name == "synthetic":
        return
    facts = data.get(_data_key(c), Data())
    address = facts.source or corpus.homepage
    licence = f" (licence: {facts.licence or corpus.licence})" if facts.source or corpus.homepage else ""
    name = c.data_dir or str(c.options.get("repo") or c.name)
    where = f"get it from {address}{licence}" if address else "give --data-dir"
    yield f"data: {name} ({corpus.title or c.name}): {where}"


def _missing_weights(recipe: Recipe, cell: Cell) -> Iterator[str]:
    weights = recipe.encoder.weights
    if weights is None or os.path.exists(weights) or cell.pretrained_as:
        return
    encoder = ENCODERS.get(recipe.encoder.type)
    if Path(weights).suffix in (".pt", ".pth", ".bin", ".safetensors"):
        known = f": get it from {encoder.homepage} (licence: {encoder.licence})" if encoder and encoder.homepage else ""
        yield f"weights: {weights}{known}"
        return
    try:
        cached_file(weights, CONFIG_NAME, revision=recipe.encoder.revision, local_files_only=True)
    except OSError:
        yield f"weights: {weights}: will be downloaded from https://huggingface.co/{weights}"


def hours(study: Study) -> Hours | None:
    """Hours of all trainings of a study; None where its file does not state the size of a corpus."""
    cpu = gpu = 0.0
    measured: dict[str, tuple[float, float]] = {}
    pretrained: set[tuple[str, int]] = set()
    for cell in study.cells:
        recipe = recipe_of(cell)
        facts = study.data.get(_data_key(recipe.corpus))
        if facts is None or facts.cycles is None or facts.seconds is None:
            return None
        key = str((recipe.encoder, recipe.features, facts.seconds))
        if key not in measured:
            measured[key] = _forward_pass(recipe, facts.seconds)
        seconds, operations = measured[key]
        passes = facts.cycles * _passes(recipe)
        if recipe.pretrain is not None and cell.pretrained_as and (cell.pretrained_as, cell.seed) not in pretrained:
            pretrained.add((cell.pretrained_as, cell.seed))
            passes += facts.cycles * 2 * _STEP * recipe.pretrain.epochs
        cpu, gpu = cpu + passes * seconds, gpu + passes * operations
    return Hours(cpu / 3600, gpu / (GPU_SHARE * GPU_FLOPS) / 3600)


def _data_key(c: CorpusSettings) -> str:
    """The key of a corpus in `data` of a study file."""
    return str(c.options.get("repo") or Path(c.data_dir or c.name).name)


def _passes(recipe: Recipe) -> float:
    """Cost of a training, in forward passes of each cycle of the corpus."""
    t, s, mix = recipe.train, recipe.schedule, recipe.augment.mix
    if recipe.encoder.frozen:
        return float(recipe.augment.copies)
    views = max([int((given or {}).get("views", 1)) for given in recipe.loss.auxiliary.values()], default=1)
    contrast = 2 if mix is not None and recipe.loss.auxiliary else 1
    epochs = t.epochs + s.pretrain_epochs + (t.epochs / _STEP if s.name == "alternating" else 0)
    if s.name == "two_stage":
        epochs = s.pretrain_epochs + t.epochs / _STEP
    return _STEP * epochs * max(views, contrast) * recipe.corpus.label_fraction


def _forward_pass(recipe: Recipe, seconds: float) -> tuple[float, float]:
    """CPU seconds and floating-point operations of a recipe's encoder on one cycle, random weights if none are here."""
    e = recipe.encoder
    weights = e.weights if e.weights and os.path.exists(e.weights) else None
    if e.class_ is not None:
        raise InputError(f"encoder.class is {e.class_}: no hours are estimated for own encoders; leave --dry-run out")
    encoder = wrapped(load_encoder(weights, type=e.type, **e.config), e.group_frames, e.group_step).eval()
    extractor = make_extractor(recipe.features.model_copy(update={"context_cycles": 0, "mean": None, "std": None}))
    noise = torch.randn(max(int(seconds * extractor.sampling_rate), extractor.front.min_samples)).mul_(0.1).numpy()
    given = {k: v for k, v in extractor(noise, extractor.sampling_rate).items() if "context" not in k}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(**given)
    start = time.process_time()
    with torch.no_grad():
        encoder(**given)
    return time.process_time() - start, float(counter.get_total_flops())
