"""The base of all option models: the options of a function, each declared and documented once.

Python, the command line, the journal and the records of a run read the same object.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from hyperfusion_rt.config import Frozen
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.machine import at_most_cores

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(value: object) -> object:
    """Bytes, from `4G`, `500M` or a number."""
    if isinstance(value, int) and value <= 0:
        raise ValueError("input should be greater than 0")
    if not isinstance(value, str):
        return value
    number, unit = (value[:-1], value[-1].upper()) if value[-1:].isalpha() else (value, "")
    try:
        found = float(number) * _UNITS.get(unit, 0 if unit else 1)
    except ValueError:
        found = 0
    if not 0 < found < 2**60:
        raise ValueError("write it as 4G or 500M")
    return int(found)


# Bytes; in text, 4G or 500M.
Size = Annotated[int | None, BeforeValidator(parse_size)]
Threads = Annotated[
    int | None,
    Field(ge=1, description="Threads; default, and at most: the cores this process may use."),
    AfterValidator(at_most_cores),
]


class Options(Frozen):
    """Immutable; a value that is wrong is a ConfigError that names its field.

    Raises:
        ConfigError: an unknown option, or a value that is out of range or of another type.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, make: Callable[[Any], Options]) -> Options:
        try:
            return make(values)
        except ValidationError as error:
            raise ConfigError(
                "; ".join(cls._explain(item) for item in error.errors()), code="option-wrong"
            ) from None

    @classmethod
    def _explain(cls, error: Any) -> str:
        name = str(error["loc"][0])
        if error["type"] == "extra_forbidden":
            close = difflib.get_close_matches(name, cls.model_fields, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else ""
            return f"there is no option '{name}'{hint}"
        message = error["msg"].removeprefix("Value error, ")
        return f"`{name}` {error['input']}: {message[:1].lower()}{message[1:]}"
