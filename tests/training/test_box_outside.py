"""A box that lies outside of every scan: nothing can be trained, and the error says which box."""

import pytest

from hyperfusion_rt.config import load_config
from hyperfusion_rt.errors import CohortError
from hyperfusion_rt.training.dataset import check_study, gather


def test_a_box_outside_every_scan_is_refused_by_name(cohort):
    box = {"name": "cerebellum", "center": [0, 300, 0]}
    change = {"preprocessing": {"boxes": [box]}, "training": {"parts": 3}}
    config = load_config(cohort / "hfrt.yaml", change)
    with pytest.raises(CohortError, match="no case can be used") as caught:
        gather(config, cohort)
    assert "cerebellum box around (0.0, 300.0, 0.0) mm: only 0%" in str(caught.value)
    check = check_study(config, cohort, scans=True)
    assert {left.code for left in check.left_out} >= {"scan-box-outside"}
    assert [finding.code for finding in check.refused] == ["cohort-no-usable-case"]
