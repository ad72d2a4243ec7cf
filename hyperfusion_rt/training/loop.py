"""The training loop of one member: the epochs, the checkpoint to resume from, the best weights.

Every epoch draws its random numbers from (seed, epoch) alone. So a run that was killed continues
from its last checkpoint to the same numbers as one that was not (on one device and thread count).
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyperfusion_rt.config import Config
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.errors import ConfigError, HyperFusionError, TableError
from hyperfusion_rt.files import write_bytes, write_text
from hyperfusion_rt.metrics import balanced_accuracy
from hyperfusion_rt.models import (
    answers_sd,
    image_shape,
    initialise_generators,
    load_embedding,
    network_of,
)
from hyperfusion_rt.models.distribution import Distribution
from hyperfusion_rt.models.gaussian import Gaussian
from hyperfusion_rt.models.output import in_unit, start_at
from hyperfusion_rt.models.own import own_of
from hyperfusion_rt.models.trunk import Trunk
from hyperfusion_rt.rules import combine, mixture
from hyperfusion_rt.training.augmentation import ImageAugmentation, TableAugmentation
from hyperfusion_rt.training.dataset import Dataset
from hyperfusion_rt.training.feed import Feed
from hyperfusion_rt.training.group import Group
from hyperfusion_rt.training.kept_features import KeptFeatures
from hyperfusion_rt.training.learner import Learner
from hyperfusion_rt.training.loss import Loss, Scale
from hyperfusion_rt.training.memory import check_budget, estimate, step_memory
from hyperfusion_rt.training.optimiser import rate
from hyperfusion_rt.training.own_network import start_weights
from hyperfusion_rt.training.pretraining import pretrained
from hyperfusion_rt.training.run_folder import Member
from hyperfusion_rt.training.sampling import batches, epoch_samples
from hyperfusion_rt.training.trackers import Tracker, Trackers

Progress = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True)
class Split:
    """One member's view of the data: case indices and encoded rows `tabular float32 [N, T]`.

    A case that the encoder cannot read (a category that no training case has) is in no part; its
    row of `tabular` is NaN.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    tabular: NDArray[np.float32]
    encoder: TabularEncoder


def split_of(dataset: Dataset, config: Config, member: int) -> Split:
    """The split of `member`; its encoder is fitted on its training rows only."""
    names = dataset.parts.names(member)
    train, validation, test = (
        np.flatnonzero(names == name) for name in ("train", "validation", "test")
    )
    rows = dataset.rows
    encoder = TabularEncoder.fit([rows[i] for i in train], config.tabular)
    tabular = np.full((len(rows), encoder.width), np.nan, np.float32)
    readable = np.ones(len(rows), bool)
    for index, row in enumerate(rows):
        try:
            tabular[index] = encoder.encode_row(row)
        except TableError:
            readable[index] = False
    validation, test = validation[readable[validation]], test[readable[test]]
    return Split(train, validation, test, tabular, encoder)


@torch.inference_mode()
def predict(
    network: nn.Module,
    dataset: Dataset,
    split: Split,
    indices: NDArray[np.int64],
    batch: int,
    group: Group | None = None,
) -> NDArray[np.float64]:
    """Raw outputs `[len(indices), N boxes, C]` in eval mode, float32 arithmetic.

    Each process of `group` runs its part of the cases, and gets the outputs of all.
    """
    if group is not None and not group.alone:
        own = predict(network, dataset, split, indices[group.part(len(indices))], batch)
        every = group.all(own)
        return np.concatenate([found for found in every if len(found)] or [own])
    network.eval()
    device = next(network.parameters()).device
    found = []
    for start in range(0, len(indices), batch):
        chosen = indices[start : start + batch]
        images = torch.from_numpy(dataset.images(chosen)).to(device)
        tabular = torch.from_numpy(split.tabular[chosen]).to(device)
        boxes = images.shape[1]
        outputs = network(images.flatten(0, 1), tabular.repeat_interleave(boxes, 0))
        found.append(outputs.unflatten(0, (-1, boxes)).double().cpu().numpy())
    if not found:
        return np.empty((0, len(dataset.cache.preprocessing.boxes), 1))
    return np.concatenate(found)


def summarise(config: Config, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities or numbers `[N, C]` from members' raw `outputs [M, N, boxes, C]`.

    Of networks that answer standard deviations, `[N, 2]`: mean and standard deviation.
    """
    how = config.training.combine
    cases = range(outputs.shape[1])
    if answers_sd(config):
        return np.array([mixture(outputs[:, i]) for i in cases]).reshape(-1, 2)
    return np.stack([combine(outputs[:, i], bool(config.tabular.classes), how) for i in cases])


def diverged(what: str, lr: float) -> HyperFusionError:
    """That a training has come to nothing, and what helps."""
    return HyperFusionError(
        f"{what}: lower training.lr (now {lr:g}), cut the gradient (training.clip_gradient), or "
        "take another training.seed; the same again would end the same",
        code="training-diverged",
    )


class Trainer:
    """Trains one member and keeps its folder."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        member: Member,
        index: int,
        device: torch.device,
        group: Group | None = None,
    ) -> None:
        self.config, self.dataset, self.member, self.device = config, dataset, member, device
        self.group = group or Group()
        self.seed = config.training.seed + 1000 * index
        self.split = split_of(dataset, config, index)
        self.loss = Loss(config, device)
        self.scale = Scale.of(config, dataset.targets[self.split.train])
        self.targets = (dataset.targets - self.scale.mean) / self.scale.spread
        augmentation = config.augmentation
        self.augment = ImageAugmentation(augmentation, config.preprocessing, self.seed)
        self.augment_rows = TableAugmentation(
            augmentation, self.split.encoder, dataset.rows, self.seed
        )
        self.feed = Feed(
            self._inputs,
            self.augment,
            self.targets,
            len(config.preprocessing.boxes),
            self.loss,
            self.group,
            config.training.accumulate,
            device,
        )
        self.history: list[dict[str, Any]] = []
        self.best: tuple[float, float] = (-math.inf, -math.inf)
        self.best_epoch = -1

    # ---- before the first epoch

    def build(self) -> nn.Module:
        """The network with its initial weights, the embedding trained first where it has one."""
        torch.manual_seed(self.seed)
        config, encoder = self.config, self.split.encoder
        place = self.member.network
        network = network_of(config, encoder.width, encoder.input_columns, place)
        if (own := own_of(network)) is not None:
            start_weights(own, config, place)
        inner = network.network if isinstance(network, (Distribution, Gaussian)) else network
        fusion, architecture = config.network.fusion, config.network.architecture
        if fusion == "tabular" and config.training.embedding_epochs:
            return self._pretrained().to(self.device)
        if fusion == "hyper":
            from_table = config.training.embedding_start == "table"
            if architecture == "ad" and from_table and config.training.embedding_epochs:
                load_embedding(inner, self._pretrained())
            initialise_generators(inner, torch.from_numpy(self.split.tabular[self.split.train]))
        if not config.tabular.classes and not isinstance(network, Distribution):
            start_at(inner, float(self.targets[self.split.train].mean()))
        # Faster for 3D convolutions on CPUs and on tensor cores alike.
        for parameter in network.parameters():
            if parameter.dim() == 5 and parameter[0, 0].numel() > 1:
                parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
        return network.to(self.device)

    def _pretrained(self) -> nn.Module:
        split = self.split
        return pretrained(
            self.config, self.seed, split.tabular, self.targets, split.train, split.validation
        )

    # ---- the epochs

    def train(
        self,
        on_epoch: Progress | None = None,
        *,
        resume: bool = False,
        on_features: Callable[[int, int], None] | None = None,
        trackers: Sequence[Tracker] = (),
        max_memory: int | None = None,
    ) -> None:
        """Run the epochs that are left; the best weights are in `member.weights` afterwards."""
        training = self.config.training
        if self.group.writes:
            encoder = self.split.encoder.model_dump_json(indent=2)
            write_text(self.member.folder / "encoder.json", encoder)
        learner = Learner(self.build(), training, self.loss, self.device, self.group)
        start = self._restore(learner) if resume else 0
        if self.config.network.keeps_features:
            self._keep_features(learner, on_features)
        if max_memory is not None:
            self._check_memory(learner.network, max_memory)
        with self._board(start, trackers) if self.group.writes else nullcontext() as board:
            for epoch in range(start, training.epochs):
                if training.patience and epoch - self.best_epoch > training.patience:
                    break
                began = time.perf_counter()
                row = self._epoch(learner, epoch)
                learner.agree()
                row |= self._validate(learner.answers)
                self._keep(learner.answers, row)
                row["seconds"] = time.perf_counter() - began
                self.history.append(row)
                if self.group.writes:
                    self._save(learner)
                if board is not None:
                    board.write(epoch, row)
                if on_epoch is not None:
                    on_epoch(epoch, row)
        # The weights are read again, by all: nobody goes on before they are written.
        self.group.wait()
        if self.best_epoch < 0:
            raise self._diverged("no epoch gave finite answers to the validation part")

    def _check_memory(self, network: nn.Module, most: int) -> None:
        """Refuse a training that needs more than it may take."""
        training, chosen = self.config.training, self.split.train[:2]
        image, row = self._inputs(chosen, np.zeros(len(chosen), np.int64), 0)
        kept = step_memory(network, image.to(self.device), row.to(self.device))
        # Of a step that is learned from, and of the next one, which is augmented meanwhile.
        feed = 8 * image.element_size() * image.numel() // len(image)
        copies = 4 if training.ema else 3

        def needed(parts: int) -> float:
            samples = -(-training.batch_size // self.group.size)
            own = -(-training.batch_size // parts // self.group.size)
            return estimate(kept, own, network, copies, feed * samples)

        check_budget(needed, most, training.batch_size, training.accumulate, self.group.size)

    def _keep_features(
        self, learner: Learner, on_features: Callable[[int, int], None] | None
    ) -> None:
        """From here on the networks read what their frozen layers make of the scans."""
        networks = [own_of(network) for network in (learner.network, learner.answers)]
        first = networks[0]
        assert first is not None
        noise = torch.Generator().manual_seed(0)
        image = torch.randn(2, *image_shape(self.config), generator=noise)
        trunk = Trunk(first.network, image.to(self.device))
        kept = KeptFeatures(self.dataset.cache, trunk, first.network)
        seen = np.concatenate([self.split.train, self.split.validation])
        scans = [self.dataset.cases[i].files for i in seen]
        kept.fill(scans[self.group.part(len(scans))], on_features)
        self.group.wait()
        kept.fill(scans)  # what the others keep where this machine does not look
        self.dataset = replace(self.dataset, features=kept.get)
        for network in networks:
            assert network is not None
            network.trunk = trunk

    def _diverged(self, what: str) -> HyperFusionError:
        return diverged(f"{what} ({self.member.folder})", self.config.training.lr)

    def _epoch(self, learner: Learner, epoch: int) -> dict[str, Any]:
        training = self.config.training
        rng = np.random.default_rng([self.seed, 0, epoch])
        torch.manual_seed(int(rng.integers(1 << 62)))
        learner.network.train()
        # Summed on the device: reading each loss would wait for each step.
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        balanced = training.sampling == "balanced"
        samples = epoch_samples(self.split.train, self.dataset.targets, balanced, rng)
        least = 2 if training.sync_batch_norm else 2 * self.group.size
        order = batches(samples, training.batch_size, rng, least)
        steps = training.epochs * len(order)
        rates = [rate(training, epoch * len(order) + n, steps) for n in range(len(order))]
        made = self.feed(order, epoch, rng)
        for batch, parts, now in zip(order, made, rates, strict=True):
            total += learner.step(parts, now).double() * len(batch)
            count += len(batch)
        mean = float(self.group.sum(total)) / count
        if not math.isfinite(mean):
            raise self._diverged(f"the training loss became {mean} in epoch {epoch}")
        return {"epoch": epoch, "lr": rates[0], "train_loss": mean}

    def _inputs(
        self, cases: NDArray[np.int64], sides: NDArray[np.int64], epoch: int
    ) -> tuple[Tensor, Tensor]:
        """What the network reads of these cases in this epoch; `sides`: of each, which box.

        One hippocampus per sample, left or right at random, is augmentation of the protocol. The
        image is on the CPU, and not augmented there if the network is elsewhere.
        """
        rows = self.split.tabular[cases]
        if self.config.augmentation.drop_columns:
            rows = self.augment_rows(epoch, cases.tolist())
        if self.config.network.fusion == "tabular":
            return torch.empty(0), torch.from_numpy(rows)
        images = self.dataset.images(cases)
        image = torch.from_numpy(images[np.arange(len(cases)), sides])
        return image, torch.from_numpy(rows)

    def _validate(self, network: nn.Module) -> dict[str, float]:
        indices = self.split.validation
        outputs = predict(network, self.dataset, self.split, indices, 16, self.group)
        truth = self.targets[indices]
        repeated = torch.from_numpy(truth).repeat_interleave(outputs.shape[1])
        figure = "balanced_accuracy" if self.loss.classes else "mae"
        if not np.isfinite(outputs).all():
            if self.config.training.keep == "last":
                raise self._diverged("the answers to the validation part are no longer finite")
            return {"validation_loss": math.nan, f"validation_{figure}": math.nan}
        loss = self.loss.of_validation(torch.from_numpy(outputs).flatten(0, 1), repeated)
        values = summarise(self.config, outputs[None])
        if self.loss.classes:
            score = balanced_accuracy(truth, values.argmax(1), values.shape[1])
        else:
            score = self.scale.spread * float(np.abs(values[:, 0] - truth).mean())
        return {"validation_loss": loss, f"validation_{figure}": score}

    def _keep(self, network: nn.Module, row: dict[str, Any]) -> None:
        from safetensors.torch import save

        # Ties of the metric, common on small validation sets, go to the smaller loss.
        first = row.get("validation_balanced_accuracy", -row.get("validation_mae", 0.0))
        score = (float(first), -row["validation_loss"])
        # A NaN compares with nothing: as second number it would be taken, and never given up.
        better = all(map(math.isfinite, score)) and score > self.best
        if better:
            self.best, self.best_epoch = score, row["epoch"]
        elif self.config.training.keep == "best":
            return
        if not self.group.writes:
            return
        made = network.state_dict()
        if self.scale != Scale():
            made = in_unit(network, self.scale.mean, self.scale.spread)
        state = {name: value.contiguous().cpu() for name, value in made.items()}
        write_bytes(self.member.weights, save(state))

    # ---- what survives a kill

    def _save(self, learner: Learner) -> None:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self.history[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.member.folder / "history.csv", stream.getvalue())
        content = {
            **learner.state(),
            "history": self.history,
            "best": list(self.best),
            "best_epoch": self.best_epoch,
        }
        made = io.BytesIO()  # a full disk is no error of torch's own then
        torch.save(content, made)
        write_bytes(self.member.folder / "checkpoint.pt", made.getvalue())

    def _restore(self, learner: Learner) -> int:
        path = self.member.folder / "checkpoint.pt"
        try:
            content = None
            if self.group.writes and path.exists():
                content = torch.load(path, map_location="cpu", weights_only=True)
            content = self.group.first(content)
            if content is None:
                return 0
            learner.restore(content)
            self.history = content["history"]
            self.best = (content["best"][0], content["best"][1])
            self.best_epoch = content["best_epoch"]
        except Exception as error:
            if isinstance(error, HyperFusionError):
                raise
            raise ConfigError(
                f"{path}: cannot be resumed from ({error}); delete it to start this member anew",
                code="run-checkpoint-unreadable",
            ) from error
        return len(self.history)

    def _board(self, start: int, trackers: Sequence[Tracker]) -> Trackers:
        return Trackers(self.member, self.config, trackers, start)
