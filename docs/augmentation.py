"""Draws `assets/augmentation.png`: what each field of `augmentation` does to a simulated scan."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from hyperfusion_rt.config import POLICIES, Augmentation, preset
from hyperfusion_rt.data.simulate import simulate_cohort
from hyperfusion_rt.data.volumes import extract, read_volume
from hyperfusion_rt.training.augmentation import ImageAugmentation

BOX = preset("brain-age").preprocessing
SLICE = 46  # axial, through the ventricles
# Of these samples that which a field changes most is drawn.
SAMPLES, SEED = 5, 3
TIMES = 3  # the last column, of what `strong` sets
# Of the table, no image: `drop_columns`.
FIELDS = [name for name in POLICIES["strong"] if name != "drop_columns"]
BLOCKS = 2  # side by side
LABEL, TITLE, GAP, DPI = 84, 20, 4, 100  # pixels; dots per inch


def changed(image: Tensor, **fields: float | str) -> Tensor:
    """`[SAMPLES, D, H, W]`."""
    change = ImageAugmentation(Augmentation.model_validate(fields), BOX, SEED)
    return change(image.expand(SAMPLES, -1, -1, -1, -1), 0, range(SAMPLES))[:, 0]


def rows(image: Tensor) -> dict[str, list[Tensor]]:
    """Label → volumes of a row."""
    found = {}
    for name in FIELDS:
        value = POLICIES["strong"][name]
        weak, strong = (
            changed(image, **{name: factor * value, "probability": 1}) for factor in (1, TIMES)
        )
        most = int((weak - image[:, 0]).abs().mean((1, 2, 3)).argmax())
        label = f"{name}\n{value:g}, {TIMES * value:g}"
        found[label] = [image[0, 0], weak[most], strong[most]]
    for name in ("light", "strong"):
        found[f"{name},\n3 samples"] = [*changed(image, policy=name)[:3]]
    return found


def main() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        simulate_cohort(Path(folder) / "cohort", task="ad", subjects=1, seed=2, jobs=1)
        volume = read_volume(next((Path(folder) / "cohort" / "scans").glob("*.nii.gz")))
    image = torch.from_numpy(extract(volume, BOX).images[:1])
    low, high = np.percentile(image[image != 0], (1, 99.5))

    def cell(one: Tensor) -> Tensor:
        grey = torch.where(one != 0, (one - low) / (high - low), 0).clamp(0, 1)[:, :, SLICE]
        return torch.nn.functional.pad(grey.T.flip(0), [GAP // 2] * 4, value=1)

    found = rows(image)
    lines = [torch.cat([cell(one) for one in row], 1) for row in found.values()]
    height, width = lines[0].shape
    many = len(lines) // BLOCKS
    blocks = [torch.cat(lines[i : i + many]) for i in range(0, len(lines), many)]
    margins = (LABEL, 0, TITLE, 0)
    mosaic = torch.cat([torch.nn.functional.pad(b, margins, value=1) for b in blocks], 1)
    figure = Figure(figsize=(mosaic.shape[1] / DPI, mosaic.shape[0] / DPI), dpi=DPI)
    figure.figimage(mosaic, cmap="gray", vmin=0, vmax=1)

    def text(x: float, y: float, content: str, align: str) -> None:
        place = x / mosaic.shape[1], 1 - y / mosaic.shape[0]
        figure.text(*place, content, ha=align, va="center", fontsize=8.5)

    for number, label in enumerate(found):
        block, line = divmod(number, many)
        left = block * (LABEL + width)
        text(left + LABEL - 6, TITLE + (line + 0.5) * height, label, "right")
        if line == 0:
            for column, title in enumerate(("before", "as in strong", f"{TIMES} times that")):
                text(left + LABEL + (column + 0.5) * width / 3, TITLE / 2, title, "center")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("L")
    picture.quantize(24).save(Path(__file__).parent / "assets" / "augmentation.png", optimize=True)


if __name__ == "__main__":
    main()
