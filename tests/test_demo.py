"""The demo replaces its own folder only when told, and never another one."""

import pytest

from hyperfusion_rt.demo import demo
from hyperfusion_rt.errors import ConfigError


def test_a_folder_that_is_not_a_demos_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(ConfigError, match="is not a demo's folder") as caught:
            demo(tmp_path, subjects=60, held_out=30, force=force)
        assert caught.value.code == "output-exists"
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_demo_is_replaced_only_with_force(tmp_path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "optimum.json").write_text("")
    with pytest.raises(ConfigError, match="or replace it with `force`") as caught:
        demo(tmp_path, subjects=60, held_out=30)
    assert caught.value.code == "output-exists"
    assert (tmp_path / "cohort" / "optimum.json").exists()
