"""What the tests of the simulation share."""

import functools
from collections.abc import Iterator

import pytest

from hyperfusion_rt.data.simulate import template


@pytest.fixture(scope="package", autouse=True)
def prepared_once() -> Iterator[None]:
    """A template is prepared once in this process, not once per cohort."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "load_template", functools.cache(template.load_template))
        yield
