import numpy as np
from numpy.typing import NDArray

def crop_normalise(
    voxels: NDArray[np.generic],
    slope: float,
    inter: float,
    matrix: NDArray[np.float64],
    out: NDArray[np.float32],
) -> tuple[int, int, int, float, float]: ...
def peak_gflops(threads: int, seconds: float = 0.2) -> float: ...
