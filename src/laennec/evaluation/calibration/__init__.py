"""Fitting on validation patients: calibration, thresholds, logit adjustments and smoothing."""

from typing import Any

from laennec.errors import InputError


def refuse_test_split(table: Any, action: str) -> str | None:
    """Refuse a predictions table of a test split; return its splits as text, None if they are not given."""
    splits = sorted({str(split) for split in table["split"]}) if "split" in table.columns else []
    if any("test" in split.lower() for split in splits):
        raise InputError(f"predictions of split {', '.join(splits)}: {action} on validation, never on test")
    return ", ".join(splits) or None
