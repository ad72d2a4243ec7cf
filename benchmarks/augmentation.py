"""How long the augmentation takes, beside libraries that do the same.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/augmentation.py    # writes augmentation.md and .json

TorchIO, MONAI, batchgeneratorsv2 and Kornia are compared where they are installed; the page names
those that are not. None is a dependency of this package, so put them into an environment of their
own that sees this package:

    python -m venv build/libs && build/libs/bin/pip install -c constraints.txt -e . \\
        torchio monai batchgeneratorsv2 kornia

Every library makes the same changes in strengths of the policy `strong`, as its documentation
advises; each change happens to every sample. All take turns in every round; the table has medians:
of CPU time for one thread, which other work on the machine hardly changes, of elapsed time for two.
`PASSIVE`: threads that wait leave the cores to such other work.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperfusion_rt.config import POLICIES, Augmentation, Preprocessing, preset
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.training.augmentation import ImageAugmentation

HERE = Path(__file__).parent
BATCHES = {"ad-small": 16, "brain-age": 4}
THREADS, ROUNDS = (1, 2), 3
STRONG: dict[str, float] = POLICIES["strong"]
ROTATION, SCALING, SHIFT = (STRONG[name] for name in ("rotation", "scaling", "shift"))
ELASTIC, BIAS, GAMMA = (STRONG[name] for name in ("elastic", "bias_field", "gamma"))
NOISE, BLUR = (STRONG[name] for name in ("noise", "blur"))
# Row → fields of `augmentation`.
AFFINE, MOVED, ALL = "affine", "affine and elastic", "all changes"
ROWS: dict[str, tuple[str, ...]] = {AFFINE: ("rotation", "scaling", "shift")}
ROWS[MOVED] = (*ROWS[AFFINE], "elastic")
ROWS[ALL] = (*ROWS[MOVED], "bias_field", "gamma", "blur", "noise")

Batch = Callable[[Tensor], Tensor]  # images `[B, 1, D, H, W]`, changed


def brains(box: Preprocessing, count: int) -> Tensor:
    """Smooth noise in an ellipsoid, of mean 0 and standard deviation 1; 0 around it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, *box.shape, generator=generator)
    smooth = torch.nn.functional.avg_pool3d(noise, 3, 1, 1)
    axes = torch.meshgrid(*(torch.linspace(-1.3, 1.3, n) for n in box.shape), indexing="ij")
    inside = sum(axis.square() for axis in axes) < 1
    values = smooth[..., inside]
    mean, spread = (one[..., None, None, None] for one in (values.mean(2), values.std(2)))
    return (smooth - mean) / spread * inside


class Ours:
    """This package."""

    name, package = "hyperfusion_rt", "hyperfusion_rt"
    device, seeding = "yes", "built in"

    def __init__(self, box: Preprocessing) -> None:
        self.box, self.first = box, 0

    def seed(self, sample: int) -> None:
        """The sample that comes first."""
        self.first = sample

    def changes(self) -> dict[str, Batch]:
        """Row → change."""
        return {row: self.make(fields) for row, fields in ROWS.items()}

    def make(self, fields: tuple[str, ...]) -> Batch:
        """The change with these fields."""
        given = Augmentation.model_validate({n: STRONG[n] for n in fields} | {"probability": 1})
        change = ImageAugmentation(given, self.box, 0)
        return lambda images: change(images, 0, range(self.first, self.first + len(images)))


class Library:
    """What libraries have in common: transforms that take one sample each."""

    name = package = device = seeding = ""

    def __init__(self, box: Preprocessing) -> None:
        self.shape, self.spacing = box.shape, box.spacing

    def seed(self, sample: int) -> None:
        """The global generators, which these libraries draw from."""
        torch.manual_seed(sample)
        np.random.seed(sample)  # noqa: NPY002

    def transforms(self) -> dict[str, list[Any]]:
        """Row → the library's transforms."""
        raise NotImplementedError

    def run(self, transforms: list[Any], image: Tensor) -> Tensor:
        """`[1, D, H, W]`, changed."""
        raise NotImplementedError

    def changes(self) -> dict[str, Batch]:
        """Row → change."""

        def batch(transforms: list[Any]) -> Batch:
            return lambda images: torch.stack([self.run(transforms, one) for one in images])

        return {row: batch(transforms) for row, transforms in self.transforms().items()}


class TorchIO(Library):
    """https://docs.torchio.org: a Subject goes through transforms."""

    name, package = "TorchIO", "torchio"
    device = "no: CPU, sample by sample"
    seeding = "the global generator would have to be set before each sample"

    def transforms(self) -> dict[str, list[Any]]:
        """See `Library`; mm and degrees, as ours."""
        import SimpleITK
        import torchio as tio

        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
        affine: dict[str, Any] = {
            "scales": SCALING, "degrees": ROTATION, "translation": SHIFT, "default_pad_value": 0.0,
        }  # fmt: skip
        # Ours are normal, these uniform.
        elastic: dict[str, Any] = {
            "num_control_points": tuple(int(n * self.spacing // 24) + 4 for n in self.shape),
            "max_displacement": ELASTIC / 0.479**1.5 * 3**0.5, "locked_borders": 0,
        }  # fmt: skip
        moved = tio.RandomAffineElasticDeformation(affine_kwargs=affine, elastic_kwargs=elastic)
        values = [
            tio.RandomBiasField(BIAS), tio.RandomGamma(GAMMA), tio.RandomBlur(BLUR),
            tio.RandomNoise(std=NOISE),
        ]  # fmt: skip
        return {AFFINE: [tio.RandomAffine(**affine)], MOVED: [moved], ALL: [moved, *values]}

    def run(self, transforms: list[Any], image: Tensor) -> Tensor:
        """See `Library`."""
        import torchio as tio

        grid = np.diag([self.spacing] * 3 + [1])
        subject = tio.Subject(image=tio.ScalarImage(tensor=image, affine=grid))
        found: Tensor = tio.Compose(transforms)(subject).image.data
        return found


class Monai(Library):
    """https://docs.monai.io: array transforms of tensors."""

    name, package = "MONAI", "monai"
    device = "in part: bias field and noise are drawn by NumPy; sample by sample"
    seeding = "each transform's generator would have to be set before each sample"

    def __init__(self, box: Preprocessing) -> None:
        super().__init__(box)
        self.made: list[Any] = []

    def seed(self, sample: int) -> None:
        """Each transform has a generator of its own."""
        for one in self.made:
            one.set_random_state(sample)

    def transforms(self) -> dict[str, list[Any]]:
        """See `Library`; voxels and radians."""
        from monai import transforms as m

        affine: dict[str, Any] = {
            "rotate_range": [math.radians(ROTATION)] * 3, "scale_range": [SCALING] * 3,
            "translate_range": [SHIFT / self.spacing] * 3, "padding_mode": "zeros", "prob": 1,
        }  # fmt: skip
        # Uniform noise, smoothed over 10 mm; its spread becomes ours.
        sigma = 10 / self.spacing
        magnitude = ELASTIC / self.spacing * (2 * math.pi**0.5 * sigma) ** 1.5 * 3**0.5
        moved = m.Rand3DElastic((sigma, sigma), (magnitude, magnitude), **affine)
        width = (0.01, BLUR / self.spacing)
        values = [
            m.RandBiasField(coeff_range=(-BIAS, BIAS), prob=1),
            m.RandAdjustContrast(1, (math.exp(-GAMMA), math.exp(GAMMA))),
            m.RandGaussianSmooth(width, width, width, prob=1),
            m.RandGaussianNoise(1, std=NOISE),
        ]
        placed = m.RandAffine(spatial_size=self.shape, cache_grid=True, **affine)
        self.made += [placed, moved, *values]
        return {AFFINE: [placed], MOVED: [moved], ALL: [moved, *values]}

    def run(self, transforms: list[Any], image: Tensor) -> Tensor:
        """See `Library`."""
        for one in transforms:
            image = one(image)
        return image.as_tensor() if hasattr(image, "as_tensor") else image


class BatchGenerators(Library):
    """https://github.com/MIC-DKFZ/batchgeneratorsv2, of nnU-Net."""

    name, package = "batchgeneratorsv2", "batchgeneratorsv2"
    device = "no: CPU, sample by sample"
    seeding = "two global generators would have to be set before each sample"

    def transforms(self) -> dict[str, list[Any]]:
        """See `Library`; voxels and radians. It has no shift and no multiplicative bias field."""
        from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
        from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
        from batchgeneratorsv2.transforms.local.brightness_gradient import (
            BrightnessGradientAdditiveTransform,
        )
        from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
        from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

        turned: dict[str, Any] = {
            "p_rotation": 1, "rotation": (-math.radians(ROTATION), math.radians(ROTATION)),
            "p_scaling": 1, "scaling": (1 - SCALING, 1 + SCALING),
        }  # fmt: skip
        # Its magnitude is the largest displacement, about four standard deviations.
        bent: dict[str, Any] = {
            "p_elastic_deform": 1, "elastic_deform_scale": 10 / self.spacing / max(self.shape),
            "elastic_deform_magnitude": 4 * ELASTIC / self.spacing,
        }  # fmt: skip
        placed = SpatialTransform(self.shape, 0, False, **turned)
        moved = SpatialTransform(self.shape, 0, False, **turned, **bent)
        values = [
            BrightnessGradientAdditiveTransform(
                scale=lambda shape, axis: 60 / self.spacing, max_strength=2 * BIAS
            ),
            GammaTransform((math.exp(-GAMMA), math.exp(GAMMA)), 0, False, 1, 1),
            GaussianBlurTransform((0.05, BLUR / self.spacing), True, True, 1, benchmark=True),
            GaussianNoiseTransform((0, NOISE), 1, True),
        ]
        return {AFFINE: [placed], MOVED: [moved], ALL: [moved, *values]}

    def run(self, transforms: list[Any], image: Tensor) -> Tensor:
        """See `Library`. Some of its transforms write into what they are given."""
        from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

        found: Tensor = ComposeTransforms(transforms)(image=image.clone())["image"]
        return found


class Kornia(Library):
    """https://kornia.readthedocs.io: a whole batch at once; of volumes affine changes alone."""

    name, package = "Kornia", "kornia"
    device = "yes"
    seeding = "the global generator draws for a whole batch"

    def changes(self) -> dict[str, Batch]:
        """See `Library`; degrees and parts of the volume."""
        from kornia.augmentation import RandomAffine3D

        shift = tuple(SHIFT / self.spacing / n for n in reversed(self.shape))
        scale = (1 - SCALING, 1 + SCALING)
        return {AFFINE: RandomAffine3D((ROTATION,) * 3, shift, scale, align_corners=True, p=1)}


LIBRARIES: tuple[Any, ...] = (Ours, TorchIO, Monai, BatchGenerators, Kornia)


def by_sample(library: Any, change: Batch, images: Tensor) -> bool:
    """Whether a sample becomes the same beside others as alone, the library seeded once a call."""
    library.seed(5)
    alone = change(images[2:3])[0]
    library.seed(5 - 2)
    return torch.allclose(change(images)[2], alone, atol=1e-5)


def check(name: str, images: Tensor, changed: Tensor) -> None:
    """That something changes inside the brain, and there is no NaN."""
    assert changed.shape == images.shape, name
    assert torch.isfinite(changed).all(), name
    assert float((changed - images).abs()[images != 0].mean()) > 0.05, f"{name} changes nothing"


def measure(box: Preprocessing, count: int, kinds: list[Any]) -> dict[str, Any]:
    """Library → row → ms for each number of threads, and what was checked."""
    images = brains(box, count)
    corner = images[..., :2, :2, :2]
    assert not corner.any()
    found: dict[str, Any] = {kind.name: {"ms": {}} for kind in kinds}
    for threads in THREADS:
        torch.set_num_threads(threads)
        work = {}
        for kind in kinds:
            library = kind(box)
            changes = work[kind.name] = library.changes()
            for row, change in changes.items():  # a first call also warms up
                library.seed(0)
                changed = change(images.clone())
                check(f"{kind.name}, {row}", images, changed)
            found[kind.name]["background stays 0"] = not changed[..., :2, :2, :2].any()
            found[kind.name]["by sample"] = by_sample(library, changes[AFFINE], images)
        clock = time.process_time if threads == 1 else time.perf_counter
        times: dict[tuple[str, str], list[float]] = {}
        print(f"{box.shape}, {threads} threads", flush=True)
        for _ in range(ROUNDS):
            for name, changes in work.items():
                for row, change in changes.items():
                    start = clock()
                    change(images)
                    times.setdefault((name, row), []).append(clock() - start)
        for (name, row), seconds in times.items():
            ms = found[name]["ms"].setdefault(row, {})
            ms[str(threads)] = 1e3 * statistics.median(seconds)
    return found


def page(content: dict[str, Any]) -> str:
    """The tables."""
    machine = ", ".join(f"{name} {value}" for name, value in content["machine"].items())
    versions = ", ".join(f"{name} {value}" for name, value in content["versions"].items())
    lines = [
        "# Augmentation beside libraries",
        "",
        "Written by `python benchmarks/augmentation.py`. Milliseconds for a batch (CPU time for "
        f"one thread, elapsed time for two): the median of {ROUNDS} rounds, in which all take "
        "turns. Strengths are those of the policy `strong`; each change happens to every sample. "
        "*All changes*: affine, elastic, bias field, gamma, blur, noise.",
        "",
        f"Machine: {machine}. {versions}. Load at the start: {content['load']}. Where "
        "that is more than the threads, elapsed times are longer by the other work: compare them "
        "within their line.",
        "",
        "hyperfusion_rt also finds the brain, keeps its edge and normalises it again, in every "
        "row, which the others leave to further steps. Libraries draw otherwise: uniform where "
        "ours is normal, polynomials where ours are splines. batchgeneratorsv2 shifts only by "
        "cropping, and its bias field is one Gaussian that is added.",
    ]
    names = [kind.name for kind in LIBRARIES]
    for box, found in content["boxes"].items():
        shape = "×".join(map(str, preset(box).preprocessing.shape))
        lines += ["", f"## {BATCHES[box]} boxes of `{box}`, {shape} voxels", ""]
        lines += [f"| | threads | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
        for row in ROWS:
            for threads in map(str, THREADS):
                cells = []
                for name in names:
                    ms = found.get(name, {"ms": None})["ms"]
                    if ms is None:
                        cells.append("not installed")
                    else:
                        cells.append(f"{ms[row][threads]:.0f}" if row in ms else "not offered")
                lines.append(f"| {row} | {threads} | {' | '.join(cells)} |")
    lines += ["", "## Where it runs, what a sample depends on, what the background is", ""]
    lines += [
        "| | on the training device (GPU tensors) | drawn by (seed, epoch, sample) | the "
        "background (0) is no value |",
        "|---|---|---|---|",
    ]
    first = next(iter(content["boxes"].values()))
    for kind in LIBRARIES:
        if kind.name not in first:
            lines.append(f"| {kind.name} | {kind.device} | not installed | not installed |")
            continue
        one = first[kind.name]
        seeded = f"{'yes' if one['by sample'] else 'no'}: {kind.seeding}"
        # Even where it stays 0, it is a grey value for the brain's edge.
        mixed = "no: it blurs the brain's edge"
        stays = "yes" if kind is Ours else mixed
        stays += "" if one["background stays 0"] else " and gets noise"
        lines.append(f"| {kind.name} | {kind.device} | {seeded} | {stays} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is installed, and write the page."""
    warnings.filterwarnings("ignore")  # of the libraries, about strengths that they find unusual
    kinds: list[Any] = []
    for kind in LIBRARIES:
        try:
            importlib.import_module(kind.package)
        except ImportError:
            print(f"{kind.name} is not installed")
        else:
            kinds.append(kind)
    content: dict[str, Any] = {
        "machine": describe_machine(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "versions": {"torch": torch.__version__}
        | {kind.name: version(kind.package) for kind in kinds if kind is not Ours},
        "boxes": {},
    }
    for name, count in BATCHES.items():
        content["boxes"][name] = measure(preset(name).preprocessing, count, kinds)
        text = page(content)
        (HERE / "augmentation.md").write_text(text, encoding="utf-8")
        file = json.dumps(content, indent=2) + "\n"
        (HERE / "augmentation.json").write_text(file, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
