"""Settings in a YAML file: known keys, checked values, and errors in one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from laennec.errors import InputError, did_you_mean
from laennec.untrusted import read_mapping


class Section(BaseModel):
    """A mapping of known keys in a YAML file; an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, Mapping) else ():
            if key not in cls.model_fields:
                raise ValueError(f"unknown key {key!r}{did_you_mean(str(key), cls.model_fields, cutoff=0)}")
        return values

    @classmethod
    def read(cls, path: str | Path, what: str) -> Self:
        """Read a YAML file; `what` it holds is named in errors."""
        return cls.checked(read_mapping(path, what, "give the path of a YAML file"), path)

    @classmethod
    def checked(cls, values: Mapping[str, Any], path: str | Path) -> Self:
        """Check values that were read from a file."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            text = first["msg"].removeprefix("Value error, ")
            if first["type"] == "model_type":
                text = f"is {first['input']!r:.80}; it must be keys and values"
            elif text.startswith("Input should be"):
                text = f"is {first['input']!r:.80}; it must{text.removeprefix('Input should')}"
            place = ".".join(map(str, first["loc"]))
            raise InputError(": ".join(filter(None, [str(path), place, text]))) from error
