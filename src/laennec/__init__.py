"""laennec: the Hugging Face fine-tuning toolkit for lung sounds.

recording -> cycle -> features -> embedding -> losses -> head -> metrics -> export -> prediction

Decisions: names are imported on first use, so that `import laennec` is fast. The first use of a model class
(`from laennec import LaennecForAudioClassification`) registers laennec's models with transformers' Auto classes and
`pipeline`.
"""

import importlib
import os
from typing import Any

__version__ = "0.2.0"

DEFAULT_MODEL = os.path.join(os.path.dirname(__file__), "default_model")
"""Folder of the model that comes with the package; predict, app and `load_model` use it unless one is given."""

# name -> module, in the order of the steps above
_MODULES = {
    "Recording": "audio.recording",
    "DecodeError": "audio.recording",
    "read_recording": "audio.recording",
    "read_recording_sandboxed": "audio.sandbox",
    "AnnotationError": "audio.cycles",
    "Cycle": "audio.cycles",
    "read_annotation": "audio.cycles",
    "InContext": "audio.context",
    "cycles_in_context": "audio.context",
    "LaennecFeatureExtractor": "audio.features",
    "WaveformAugmentation": "audio.augmentation",
    "SpecAugment": "audio.augmentation",
    "load_corpus": "corpora.load",
    "concatenate_corpora": "corpora.several",
    "CycleWaveforms": "corpora.waveforms",
    "with_audio": "corpora.waveforms",
    "Corpus": "corpora.base",
    "AnnotatedRecording": "corpora.recordings",
    "Event": "corpora.recordings",
    "export_corpus": "corpora.hub.publish",
    "load_encoder": "encoders",
    "register_encoder": "encoders",
    "AngularDistanceDistributionLoss": "losses.add",
    "TupletContrastiveLoss": "losses.tuplet",
    "FocalLoss": "losses.focal",
    "WeightedSum": "losses.combine",
    "LaennecConfig": "configuration",
    "LaennecForAudioClassification": "modeling",
    "ensemble_models": "ensemble",
    "IcbhiScore": "evaluation.evaluate_metric",
    "icbhi_score": "evaluation.metrics",
    "evaluate_predictions": "evaluation.summary",
    "LaennecTrainer": "training.trainer",
    "LaennecTrainingArguments": "training.arguments",
    "Recipe": "training.recipe",
    "pretrain": "training.pretraining.run",
    "train": "training.run",
    "score": "evaluation.evaluate",
    "ensemble_runs": "study.ensembles",
    "load_model": "evaluation.evaluate",
    "export_run": "hub.export",
    "write_card": "hub.card",
    "LaennecPipeline": "inference.pipeline",
    "Predictor": "inference.batch.run",
    "predict": "inference.batch.run",
    "EmbeddingIndex": "explore.index",
    "serve_model": "inference.page.app",
    "Review": "review.session",
}
__all__ = ["DEFAULT_MODEL", "__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name == "losses":  # `laennec.losses.SupConLoss()` after `import laennec`
        return importlib.import_module("laennec.losses")
    if name not in _MODULES:
        raise AttributeError(f"module 'laennec' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"laennec.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
