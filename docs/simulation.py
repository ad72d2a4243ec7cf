"""Draws `assets/simulation-place.png`: the two regions of the model `place`."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from hyperfusion_rt.data.simulate import anatomy
from hyperfusion_rt.data.simulate.template import load_template

# The right box, in mm: left to right, bottom to top; and the coronal slices.
_X, _Z = (5, 59), (-47, 18)
_SHOWN = (
    ("medial: hippocampus and temporal horn", -20, lambda a: (a, 0.0)),
    ("lateral: around the Sylvian fissure", -3, lambda a: (0.0, a)),
)


def main() -> None:
    """Write the picture."""
    template = load_template(1, "place")
    origin = template.affine[:3, 3]
    x, z = (
        slice(*(round(mm - o) for mm in ends)) for ends, o in ((_X, origin[0]), (_Z, origin[2]))
    )
    figure, axes = plt.subplots(1, 4, figsize=(10, 3.3), layout="constrained")
    for column, axis in enumerate(axes):
        name, y, regions = _SHOWN[column // 2]
        atrophy = (-2.0, 2.0)[column % 2]
        rng = np.random.default_rng(4)
        head = anatomy.make_head(template, regions(atrophy), rng)
        voxels = anatomy.scan(template, head, rng).voxels
        axis.imshow(voxels[x, round(y - origin[1]), z].T, origin="lower", cmap="gray")
        axis.set_title(f"{name.split(': ')[0]} {atrophy:+.0f}")
        axis.set_xlabel(name.split(": ")[1], fontsize=8)
        axis.set(xticks=[], yticks=[])
    path = Path(__file__).parent / "assets" / "simulation-place.png"
    figure.savefig(path, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
