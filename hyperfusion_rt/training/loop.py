"""The training loop of one member: the epochs, the checkpoint to resume from, the best weights.

Every epoch draws its random numbers from (seed, epoch) alone. So a run that was killed continues
from its last checkpoint to the same numbers as one that was not (on one device and thread count).
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyperfusion_rt.config import Config
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.errors import ConfigError, HyperFusionError, TableError
from hyperfusion_rt.files import replacing, write_text
from hyperfusion_rt.metrics import balanced_accuracy
from hyperfusion_rt.models import (
    initialise_generators,
    load_embedding,
    network_of,
    outputs_count,
)
from hyperfusion_rt.models.baselines import TabularNetwork
from hyperfusion_rt.models.output import in_unit, start_at
from hyperfusion_rt.rules import combine
from hyperfusion_rt.training.cuda_graph import Captured
from hyperfusion_rt.training.dataset import Dataset
from hyperfusion_rt.training.run_folder import Member

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


@dataclass(frozen=True)
class Scale:
    """What a network answers of a number: (number - mean) / spread. Classes: as they are."""

    mean: float = 0.0
    spread: float = 1.0

    @classmethod
    def of(cls, config: Config, targets: NDArray[np.float64]) -> Scale:
        """Of the training part's `targets [N]`."""
        if config.tabular.classes or not config.training.standardise_target:
            return cls()
        spread = float(targets.std())
        return cls(float(targets.mean()), spread if spread > 0 else 1.0)


class Loss:
    """Cross-entropy with class weights, or the mean squared error."""

    def __init__(self, config: Config, device: torch.device) -> None:
        weights = config.training.class_weights
        if weights and len(weights) != outputs_count(config):
            raise ConfigError(
                f"training.class_weights has {len(weights)} numbers for "
                f"{outputs_count(config)} classes",
                code="config-invalid",
            )
        self.classes = bool(config.tabular.classes)
        self.weight = torch.tensor(weights, device=device) if weights else None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`outputs [B, C]` against `targets float [B]`."""
        if self.classes:
            return nn.functional.cross_entropy(outputs, targets.long(), self.weight)
        return nn.functional.mse_loss(outputs[:, 0], targets)


@torch.inference_mode()
def predict(
    network: nn.Module, dataset: Dataset, split: Split, indices: NDArray[np.int64], batch: int
) -> NDArray[np.float64]:
    """Raw outputs `[len(indices), N boxes, C]` in eval mode, float32 arithmetic."""
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
    """Probabilities or numbers `[N, C]` from members' raw `outputs [M, N, boxes, C]`."""
    how = config.training.combine
    cases = range(outputs.shape[1])
    return np.stack([combine(outputs[:, i], bool(config.tabular.classes), how) for i in cases])


class Trainer:
    """Trains one member and keeps its folder."""

    def __init__(
        self, config: Config, dataset: Dataset, member: Member, index: int, device: torch.device
    ) -> None:
        self.config, self.dataset, self.member, self.device = config, dataset, member, device
        self.seed = config.training.seed + 1000 * index
        self.split = split_of(dataset, config, index)
        self.loss = Loss(config, device)
        self.scale = Scale.of(config, dataset.targets[self.split.train])
        self.targets = (dataset.targets - self.scale.mean) / self.scale.spread
        self.history: list[dict[str, Any]] = []
        self.best: tuple[float, float] = (-math.inf, -math.inf)
        self.best_epoch = -1

    # ---- before the first epoch

    def build(self) -> nn.Module:
        """The network with its initial weights, the embedding trained first where it has one."""
        torch.manual_seed(self.seed)
        config, width = self.config, self.split.encoder.width
        network = network_of(config, width)
        if config.network.fusion == "hyper":
            if config.network.architecture == "ad":
                load_embedding(network, self._pretrain(width))
            initialise_generators(network, torch.from_numpy(self.split.tabular[self.split.train]))
        if not config.tabular.classes:
            start_at(network, float(self.targets[self.split.train].mean()))
        # Faster for 3D convolutions on CPUs and on tensor cores alike.
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return network.to(self.device)

    def _pretrain(self, width: int) -> nn.Module:
        """The tabular-only network, whose embedding the hypernetwork starts from."""
        training = self.config.training
        mlp = TabularNetwork(width, outputs_count(self.config), self.config.network.embedding)
        optimiser = torch.optim.Adam(mlp.parameters(), lr=1e-2, weight_decay=training.weight_decay)
        tabular = torch.from_numpy(self.split.tabular)
        targets = torch.from_numpy(self.targets).float()
        loss = Loss(self.config, torch.device("cpu"))
        validation = torch.from_numpy(self.split.validation)
        truth = self.targets[self.split.validation]
        image = tabular.new_empty(0)
        best, kept = -math.inf, mlp.state_dict()
        for epoch in range(training.embedding_epochs):
            rng = np.random.default_rng([self.seed, 1, epoch])
            mlp.train()
            for batch in _batches(self.split.train, 32, rng):
                index = torch.from_numpy(batch)
                optimiser.zero_grad()
                loss(mlp(image, tabular[index]), targets[index]).backward()
                optimiser.step()
            mlp.eval()
            with torch.inference_mode():
                answers = mlp(image, tabular[validation])
            if self.loss.classes:
                count = outputs_count(self.config)
                score = balanced_accuracy(truth, answers.argmax(1).numpy(), count)
            else:
                score = -float(np.square(answers[:, 0].numpy() - truth).mean())
            if score > best:
                best = score
                kept = {name: value.clone() for name, value in mlp.state_dict().items()}
        mlp.load_state_dict(kept)
        return mlp

    # ---- the epochs

    def train(self, on_epoch: Progress | None = None, *, resume: bool = False) -> None:
        """Run the epochs that are left; the best weights are in `member.weights` afterwards."""
        training = self.config.training
        write_text(
            self.member.folder / "encoder.json", self.split.encoder.model_dump_json(indent=2)
        )
        network = self.build()
        cuda = self.device.type == "cuda"
        optimiser = torch.optim.Adam(
            network.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=cuda
        )
        half = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float16
        capture = training.cuda_graph and cuda
        # A graph cannot read casts that were kept from before it.
        amp = torch.autocast(
            self.device.type, half, enabled=training.amp and cuda, cache_enabled=not capture
        )
        forward = Captured(network, amp) if capture else network
        scaler = torch.amp.GradScaler(enabled=training.amp and cuda and half == torch.float16)
        start = self._restore(network, optimiser, scaler) if resume else 0
        board = self._board(start)
        try:
            for epoch in range(start, training.epochs):
                if training.patience and epoch - self.best_epoch > training.patience:
                    break
                began = time.perf_counter()
                for group in optimiser.param_groups:
                    group["lr"] = self._rate(epoch)
                train_loss = self._epoch(network, forward, optimiser, scaler, amp, epoch)
                row = {"epoch": epoch, "lr": self._rate(epoch), "train_loss": train_loss}
                row |= self._validate(network)
                self._keep_best(network, row)
                row["seconds"] = time.perf_counter() - began
                self.history.append(row)
                self._save(network, optimiser, scaler)
                for name, value in row.items():
                    if name != "epoch":
                        board.add_scalar(name, value, epoch)
                if on_epoch is not None:
                    on_epoch(epoch, row)
        finally:
            board.close()

    def _rate(self, epoch: int) -> float:
        training = self.config.training
        if training.schedule == "constant":
            return training.lr
        return training.lr * 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))

    def _epoch(
        self,
        network: nn.Module,
        forward: Callable[[Tensor, Tensor], Tensor],
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        amp: torch.autocast,
        epoch: int,
    ) -> float:
        rng = np.random.default_rng([self.seed, 0, epoch])
        torch.manual_seed(int(rng.integers(1 << 62)))
        network.train()
        # Summed on the device: reading each loss would wait for each step.
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for batch in _batches(self.split.train, self.config.training.batch_size, rng):
            images = self.dataset.images(batch)
            # Augmentation of the protocol: one hippocampus per sample, left or right at random.
            side = rng.integers(images.shape[1], size=len(batch))
            image = torch.from_numpy(images[np.arange(len(batch)), side]).to(self.device)
            tabular = torch.from_numpy(self.split.tabular[batch]).to(self.device)
            targets = torch.from_numpy(self.targets[batch]).float().to(self.device)
            optimiser.zero_grad(set_to_none=True)
            with amp:
                outputs = forward(image, tabular)
            loss = self.loss(outputs.float(), targets)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            total += loss.detach().double() * len(batch)
            count += len(batch)
        mean = float(total) / count
        if not math.isfinite(mean):
            raise HyperFusionError(
                f"the training loss became {mean} in epoch {epoch}: lower training.lr "
                f"(now {self._rate(epoch):g}) in hfrt.yaml",
                code="training-diverged",
            )
        return mean

    def _validate(self, network: nn.Module) -> dict[str, float]:
        indices = self.split.validation
        outputs = predict(network, self.dataset, self.split, indices, 16)
        truth = self.targets[indices]
        flat = torch.from_numpy(outputs).flatten(0, 1)
        repeated = torch.from_numpy(truth).repeat_interleave(outputs.shape[1])
        weight = None if self.loss.weight is None else self.loss.weight.cpu().double()
        values = summarise(self.config, outputs[None])
        if not self.loss.classes:
            error = values[:, 0] - truth
            return {
                "validation_loss": float((flat[:, 0] - repeated).square().mean()),
                "validation_mae": self.scale.spread * float(np.abs(error).mean()),
            }
        loss = nn.functional.cross_entropy(flat, repeated.long(), weight)
        return {
            "validation_loss": float(loss),
            "validation_balanced_accuracy": balanced_accuracy(
                truth, values.argmax(1), values.shape[1]
            ),
        }

    def _keep_best(self, network: nn.Module, row: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        # Ties of the metric, common on small validation sets, go to the smaller loss.
        first = row.get("validation_balanced_accuracy", -row.get("validation_mae", 0.0))
        score = (float(first), -row["validation_loss"])
        if score <= self.best:
            return
        self.best, self.best_epoch = score, row["epoch"]
        made = network.state_dict()
        if self.scale != Scale():
            made = in_unit(network, self.scale.mean, self.scale.spread)
        state = {name: value.contiguous().cpu() for name, value in made.items()}
        with replacing(self.member.weights) as temporary:
            save_file(state, temporary)

    # ---- what survives a kill

    def _save(
        self, network: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self.history[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.member.folder / "history.csv", stream.getvalue())
        content = {
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scaler": scaler.state_dict(),
            "history": self.history,
            "best": list(self.best),
            "best_epoch": self.best_epoch,
        }
        with replacing(self.member.folder / "checkpoint.pt") as temporary:
            torch.save(content, temporary)

    def _restore(
        self, network: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> int:
        path = self.member.folder / "checkpoint.pt"
        if not path.exists():
            return 0
        try:
            content = torch.load(path, map_location=self.device, weights_only=True)
            network.load_state_dict(content["network"])
            optimiser.load_state_dict(content["optimiser"])
            scaler.load_state_dict(content["scaler"])
            self.history = content["history"]
            self.best = (content["best"][0], content["best"][1])
            self.best_epoch = content["best_epoch"]
        except Exception as error:
            raise ConfigError(
                f"{path}: cannot be resumed from ({error}); delete it to start this member anew",
                code="run-checkpoint-unreadable",
            ) from error
        return len(self.history)

    def _board(self, start: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(self.member.folder / "tensorboard")
        return SummaryWriter(folder, purge_step=start)


def _batches(
    indices: NDArray[np.int64], size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Shuffled batches; a last batch of one sample is left out (batch norm cannot use it)."""
    order = rng.permutation(indices)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    return [batch for batch in batches if len(batch) > 1 or len(order) == 1]
