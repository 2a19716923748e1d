"""What is fitted on validation patients: probabilities, thresholds, logit adjustments, smoothing."""

from typing import Any

from laennec.errors import InputError


def refuse_test_split(table: Any, action: str) -> str | None:
    """Refuse a predictions table of a test split; its splits as text, None where it has none."""
    splits = sorted({str(split) for split in table["split"]}) if "split" in table.columns else []
    if any("test" in split.lower() for split in splits):
        raise InputError(f"predictions of split {', '.join(splits)}: {action} on validation, never on test")
    return ", ".join(splits) or None
