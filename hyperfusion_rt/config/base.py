"""What all sections of a configuration have in common."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo


class Frozen(BaseModel):
    """Immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Finite(Frozen):
    """Whose numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def no_truth_value(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """`yes` is no number: it would be read as 1."""
    kind = cls.model_fields[str(info.field_name)].annotation
    if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
        raise ValueError(f"must be a number; YAML reads this as {str(value).lower()}")
    return value
