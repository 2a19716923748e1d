"""How transformers' Auto classes learn of laennec without `import laennec` costing seconds.

Decisions: `import laennec` must stay instant, yet be enough for
`AutoModelForAudioClassification.from_pretrained(...)`. The model registers itself when it is imported; what is placed
into transformers here only has it imported at the moment when an Auto class asks for a "laennec" model. Importing it
any earlier would be slow, and circular while transformers is still being loaded. The pipeline of audio classification
is replaced by ours, which hands other models on to transformers' own.
"""

import importlib
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MODEL_TYPE = "laennec"
_PIPELINE_HOME = "laennec.inference.pipeline"


class _Registered(dict[Any, Any]):
    """What was registered with a mapping of transformers, ours included although it is not imported yet."""

    def __contains__(self, key: object) -> bool:
        return key == _MODEL_TYPE or super().__contains__(key)

    def __missing__(self, key: Any) -> Any:
        if key != _MODEL_TYPE:
            raise KeyError(key)
        importlib.import_module("laennec.modeling")
        return dict.__getitem__(self, key)


class _RegisteredExtractors(dict[Any, Any]):
    """Feature extractors are looked for by class name among all values."""

    def values(self) -> Any:
        importlib.import_module("laennec.modeling")
        return super().values()


def _announce_config(module: ModuleType) -> None:
    mapping = module.CONFIG_MAPPING
    mapping._extra_content = _Registered(mapping._extra_content)


def _announce_extractor(module: ModuleType) -> None:
    mapping = module.FEATURE_EXTRACTOR_MAPPING
    mapping._extra_content = _RegisteredExtractors(mapping._extra_content)


def _announce_pipeline(module: ModuleType) -> None:
    task = module.SUPPORTED_TASKS["audio-classification"]
    # where transformers resolves names itself, ours is imported with the first pipeline of this task only
    if hasattr(module, "_resolve_impl"):
        task["impl"] = f"{_PIPELINE_HOME}.LaennecPipeline"
    else:
        task["impl"] = importlib.import_module(_PIPELINE_HOME).LaennecPipeline


_ANNOUNCE: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _announce_config,
    "transformers.models.auto.feature_extraction_auto": _announce_extractor,
    "transformers.pipelines": _announce_pipeline,
}


class _ThenAnnounce(Loader):
    """Loads an Auto module as its own loader would, then announces the model to it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _ANNOUNCE[module.__name__](module)


class _AutoFinder(MetaPathFinder):
    """Finds the Auto modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _ANNOUNCE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenAnnounce(spec.loader)
        return spec


def register_with_transformers() -> None:
    """Have the model known to transformers' Auto classes: those that are loaded, and those that will be."""
    for name, announce in _ANNOUNCE.items():
        if name in sys.modules:
            announce(sys.modules[name])
    sys.meta_path.insert(0, _AutoFinder())
