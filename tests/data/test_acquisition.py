"""How a scan was made, and whether some training scan was made so."""

import json

import numpy as np
import pytest

from hyperfusion_rt.data.acquisition import edges_of, scanner_of, unlike_edges, unlike_scanner

SIEMENS = {"Manufacturer": "Siemens", "ManufacturersModelName": " Prisma  fit", "Other": 1}


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({**SIEMENS, "MagneticFieldStrength": 3}, "Siemens Prisma fit 3 T"),
        ({**SIEMENS, "MagneticFieldStrength": 1.494}, "Siemens Prisma fit 1.5 T"),
        ({**SIEMENS, "MagneticFieldStrength": "3"}, "Siemens Prisma fit"),
        ({"MagneticFieldStrength": 3}, ""),
        ({"Manufacturer": ["GE"], "ManufacturersModelName": " "}, ""),
        ([], ""),
    ],
)
def test_the_file_beside_a_scan_names_the_scanner(said, name, tmp_path):
    scan = tmp_path / "sub-1_T1w.nii.gz"
    (tmp_path / "sub-1_T1w.json").write_text("﻿" + json.dumps(said), encoding="utf-8")
    assert scanner_of(scan) == name


def test_no_file_or_none_that_can_be_read_names_nothing(tmp_path):
    scan = tmp_path / "a.nii"
    assert scanner_of(scan) == scanner_of(tmp_path) == ""
    (tmp_path / "a.json").write_bytes(b"\xff{")
    assert scanner_of(scan) == ""
    (tmp_path / "a.json").write_text("[" * 100_000)
    assert scanner_of(scan) == ""


def test_a_scanner_is_known_or_not():
    assert unlike_scanner("GE", ("Siemens", "Philips")) == (
        "the scanner 'GE' is none of those of the training: Siemens, Philips"
    )
    assert unlike_scanner("GE", ("GE",)) == ""
    assert unlike_scanner("", ("GE",)) == ""  # the scan does not say
    assert unlike_scanner("GE", ()) == ""  # the training did not


def test_voxels_are_known_or_not():
    turned = np.eye(4)
    turned[:3, :3] = [[0.6, -1.6, 0], [0.8, 1.2, 0], [0, 0, 1.5]]
    assert edges_of(turned) == pytest.approx((1, 2))
    assert unlike_edges((1, 1), (1, 1.2)) == ""
    assert unlike_edges((0.95, 1.25), (1, 1.2)) == ""
    assert unlike_edges((1, 4), (1, 1)) == (
        "voxels of 1 to 4 mm are unlike those of the training's scans, of 1 mm"
    )
    assert unlike_edges((0.5, 0.5), (1, 1)).startswith("voxels of 0.5 mm")
