import pytest

from hyperfusion_rt import _native


def test_the_limit_is_a_rate_that_threads_add_to():
    one = max(_native.peak_gflops(1, 0.05) for _ in range(3))
    assert 1 < one < 1000
    assert max(_native.peak_gflops(2, 0.05) for _ in range(3)) > 0.8 * one
    with pytest.raises(ValueError, match="threads"):
        _native.peak_gflops(0)
