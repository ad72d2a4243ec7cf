"""Run pytest on the package that stands beside `tests`, not on an editable installation.

python tests/native/sanitized.py PYTEST_ARGUMENTS
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.meta_path = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

from hyperfusion_rt import _native  # noqa: E402

assert Path(_native.__file__).is_relative_to(ROOT), f"{_native.__file__} is another build"
sys.exit(pytest.main(sys.argv[1:]))
