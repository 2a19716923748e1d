"""Corpora as tables of respiratory cycles. Names are imported when they are first used."""

import importlib
from typing import Any

_MODULES = {
    "CYCLE_FEATURES": "base",
    "Corpus": "base",
    "CorpusOptions": "base",
    "PROTOCOLS": "splits",
    "split_table": "splits",
    "AnnotatedRecording": "recordings",
    "Event": "recordings",
    "UnusableRecordingsError": "recordings",
    "AuditReport": "check",
    "check_corpus": "check",
    "CycleWaveforms": "waveforms",
    "decode_all": "waveforms",
    "Icbhi2017": "icbhi2017",
    "SprSound": "sprsound",
    "PhysioNet2016": "physionet2016",
    "Folder": "folder.corpus",
    "Hub": "hub.corpus",
    "Synthetic": "synthetic",
    "load_corpus": "load",
    "check_duplicates": "load",
    "provenance": "load",
    "concatenate_corpora": "several",
    "export_corpus": "hub.publish",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'laennec.corpora' has no attribute {name!r}")
    return getattr(importlib.import_module(f"laennec.corpora.{_MODULES[name]}"), name)
