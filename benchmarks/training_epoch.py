"""Trains a few epochs of a study and prints a JSON list of each epoch's seconds and loss.

    PYTHON benchmarks/training_epoch.py ours STUDY '{"training": {"epochs": 3}}'
    PYTHON benchmarks/training_epoch.py plain STUDY '{...}'

`ours`: as `hfrt train`; it runs with an older version of the package, too. `plain`: a loop as it
is written first: nibabel reads each scan anew in every epoch, a loop over the samples makes each
one's weights and convolves with them, and nothing is prepared ahead.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from hyperfusion_rt.cli.terminal import share_the_cores

if sys.argv[1] != "plain":  # as the command does, before torch is imported
    share_the_cores()

import nibabel
import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch.nn.functional import conv3d

from hyperfusion_rt.config import load_config
from hyperfusion_rt.models import layers
from hyperfusion_rt.training.dataset import gather
from hyperfusion_rt.training.loop import Trainer, split_of
from hyperfusion_rt.training.optimiser import make_optimiser, rate, set_rate
from hyperfusion_rt.training.run_folder import Member
from hyperfusion_rt.training.sampling import batches, epoch_samples
from hyperfusion_rt.training.train import Callbacks, train


def ours(root, change):
    """Epochs of `hfrt train`."""
    found = []
    config = load_config(root / "hfrt.yaml", change)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        train(
            config,
            root,
            parent=Path(folder),
            callbacks=Callbacks(on_epoch=lambda member, epoch, row: found.append(row)),
        )
        whole = time.perf_counter() - began
    return [{"seconds": row["seconds"], "loss": row["train_loss"], "whole": whole} for row in found]


def memory(root, change):
    """Expected and taken, which counts the pages of mapped scans."""
    from hyperfusion_rt.training import loop
    from hyperfusion_rt.training.memory import peak_memory
    from hyperfusion_rt.training.options import TrainOptions

    config, expected = load_config(root / "hfrt.yaml", change), []
    loop.check_budget = lambda needed, most, batch, parts, size: expected.append(needed(parts))
    with tempfile.TemporaryDirectory() as folder:
        train(config, root, parent=Path(folder), options=TrainOptions(max_memory="1T"))
    dataset = gather(config, root)
    mapped = len(dataset.cases) * 4 * np.prod(config.preprocessing.images_shape)
    found = {"expected": expected[0], "taken": peak_memory(), "mapped": mapped}
    return {name: round(value / 2**20) for name, value in found.items()}


def convolve(x, generated, *, stride=1, padding=0, dilation=1, groups=1):
    """A convolution with generated weights, sample by sample."""
    e, generator, h, g0, h0 = generated
    made = []
    for i in range(len(x)):
        weight = torch.tensordot(e[i], generator, 1)
        bias = e[i] @ h
        weight = weight if g0 is None else weight + g0
        bias = bias if h0 is None else bias + h0
        made.append(conv3d(x[i : i + 1], weight, bias, stride, padding, dilation, groups))
    return torch.cat(made)


class Scans(torch.utils.data.Dataset):
    """Each case's box, from its scan: read, resampled to the box's grid, normalised."""

    def __init__(self, config, cases, rows, targets, chosen):
        self.config, self.cases, self.rows, self.targets = (
            config.preprocessing,
            cases,
            rows,
            targets,
        )
        self.chosen = chosen

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, index):
        case, side = self.chosen[index]
        file = nibabel.load(self.cases[case].scan)
        data, box = file.get_fdata(), self.config.boxes[side]
        shape, spacing = np.array(self.config.shape), self.config.spacing
        # From the box's voxels to millimetres, to the scan's voxels.
        step = np.array([-spacing if box.mirror else spacing, spacing, spacing])
        start = np.array(box.center) - step * (shape - 1) / 2
        to = np.linalg.inv(file.affine)
        matrix = to[:3, :3] @ np.diag(step)
        image = affine_transform(data, matrix, to[:3, :3] @ start + to[:3, 3], shape, order=1)
        inside = image > 0
        values = image[inside]
        image = np.where(inside, (image - values.mean()) / values.std(), 0)
        return image[None].astype(np.float32), self.rows[case], np.float32(self.targets[case])


def plain(root, change):
    """Epochs of a plain loop, with the network, optimiser and order of samples of `hfrt train`."""
    config = load_config(root / "hfrt.yaml", change)
    dataset = gather(config, root)  # cases, rows and parts; its boxes are read by validation alone
    layers.convolve = convolve
    training = config.training
    trainer = Trainer(config, dataset, Member(root / "unused"), 0, torch.device("cpu"))
    network = trainer.build()
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    split = split_of(dataset, config, 0)
    optimiser = make_optimiser(network, training)
    found = []
    for epoch in range(training.epochs):
        began = time.perf_counter()
        rng = np.random.default_rng([trainer.seed, 0, epoch])
        torch.manual_seed(int(rng.integers(1 << 62)))
        samples = epoch_samples(split.train, dataset.targets, False, rng)
        order = batches(samples, training.batch_size, rng)
        network.train()
        total = count = 0
        for step, batch in enumerate(order):
            sides = rng.integers(len(config.preprocessing.boxes), size=len(batch))
            chosen = list(zip(batch.tolist(), sides.tolist(), strict=True))
            scans = Scans(config, dataset.cases, split.tabular, trainer.targets, chosen)
            image, tabular, target = next(
                iter(torch.utils.data.DataLoader(scans, batch_size=len(batch)))
            )
            set_rate(
                optimiser, rate(training, epoch * len(order) + step, training.epochs * len(order))
            )
            optimiser.zero_grad()
            loss = trainer.loss(network(image, tabular), target)
            loss.backward()
            optimiser.step()
            total += loss.item() * len(batch)
            count += len(batch)
        validate(network, config, dataset, split, trainer)
        found.append({"seconds": time.perf_counter() - began, "loss": total / count})
    return found


def validate(network, config, dataset, split, trainer):
    """The validation part, read from its scans, too."""
    network.eval()
    boxes = range(len(config.preprocessing.boxes))
    chosen = [(int(case), side) for case in split.validation for side in boxes]
    scans = Scans(config, dataset.cases, split.tabular, trainer.targets, chosen)
    with torch.no_grad():
        for image, tabular, _ in torch.utils.data.DataLoader(scans, batch_size=16):
            network(image, tabular)


if __name__ == "__main__":
    way, study, text = sys.argv[1:4]
    print(
        json.dumps(
            {"ours": ours, "plain": plain, "memory": memory}[way](Path(study), json.loads(text))
        )
    )
