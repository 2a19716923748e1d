"""The folders of evaluations, found without reading them.

Decisions: where several splits were scored, the split must be named. Nothing slow is imported here, so that a command
refuses a wrong folder at once.
"""

from collections.abc import Sequence
from pathlib import Path

from laennec.errors import InputError

_PREFIX = "evaluation-"


def evaluation_folder(source: str | Path, split: str | None = None) -> Path:
    """The folder of an evaluation."""
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give the folder of a run, or of an evaluation")
    if (source / "metrics.json").exists():
        own = source.name.removeprefix(_PREFIX)
        if split is not None and source.name.startswith(_PREFIX) and own != split:
            raise InputError(
                f"{source}: an evaluation of {own}, not of {split}; give the run's folder, or leave split (--split) out"
            )
        return source
    found = _scored_splits(source)
    if split is not None and split not in found:
        there = f"scored splits: {', '.join(found)}" if found else "it was not scored yet"
        raise InputError(f"{source}: no evaluation of {split} ({there}); run laennec evaluate {source} --split {split}")
    if split is None and len(found) != 1:
        if found:
            listed = ", ".join(found)
            raise InputError(f"{source}: several splits were scored ({listed}); name one: split (--split) {found[0]}")
        raise InputError(f"{source}: no evaluation there; run laennec evaluate {source}")
    return source / f"{_PREFIX}{split or found[0]}"


def _scored_splits(source: Path) -> list[str]:
    return sorted(path.parent.name.removeprefix(_PREFIX) for path in source.glob(f"{_PREFIX}*/metrics.json"))


def compared_folders(sources: Sequence[str | Path], split: str | None = None) -> list[Path]:
    """The folders of the evaluations of several runs on one split; None: the one that all were scored on."""
    if len(sources) < 2:
        raise InputError("a comparison needs two runs or more; give their folders, the baseline first")
    split = split or _common_split(sources)
    return [evaluation_folder(source, split) for source in sources]


def _common_split(sources: Sequence[str | Path]) -> str | None:
    """The one split that all of several runs were scored on; None where there is none."""
    scored = []
    for source in map(Path, sources):
        if (source / "metrics.json").exists():
            if source.name.startswith(_PREFIX):
                scored.append({source.name.removeprefix(_PREFIX)})
        elif splits := _scored_splits(source):
            scored.append(set(splits))
    shared = sorted(set.intersection(*scored)) if scored else []
    if len(shared) > 1:
        raise InputError(f"these runs were all scored on {', '.join(shared)}; name one: split (--split) {shared[0]}")
    return shared[0] if shared else None
