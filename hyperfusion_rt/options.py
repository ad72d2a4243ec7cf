"""The base of all option models: the options of a function, each declared and documented once.

Python, the command line, the journal and the records of a run read the same object.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from hyperfusion_rt.config import Frozen
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.machine import at_most_cores

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
