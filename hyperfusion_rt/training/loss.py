"""What training minimises, and the scale on which a number is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, huber_loss, kl_div, l1_loss, mse_loss

from hyperfusion_rt.config import Config
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models import answers_sd, bins_count, outputs_count
from hyperfusion_rt.models.distribution import soft_labels
from hyperfusion_rt.models.gaussian import negative_log_likelihood

_OF_NUMBERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse_loss,
    "l1": l1_loss,
    "huber": huber_loss,
}


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
    """Cross-entropy with class weights, or the error that `training.loss` names."""

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
        # On the CPU: what targets weigh is asked for every step, and the device must not wait.
        self.each = np.array(weights, np.float32).astype(np.float64) if weights else None
        self.smoothing = config.training.label_smoothing
        kind = config.training.loss
        self.bins, self.deviates = bins_count(config), answers_sd(config)
        # The table's own network answers a number whatever the others do.
        self.error = _OF_NUMBERS.get(kind, mse_loss)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """`outputs [B, C]`, of bins their logits, against `targets float [B]`."""
        if self.bins and outputs.shape[1] == self.bins:
            # The Kullback-Leibler divergence: 0 where the distribution is right.
            logs = outputs.log_softmax(1)
            return kl_div(logs, soft_labels(targets, self.bins), reduction="batchmean")
        if self.classes:
            truth = targets.long()
            return cross_entropy(outputs, truth, self.weight, label_smoothing=self.smoothing)
        return self._of_numbers(outputs, targets)

    def weight_of(self, targets: NDArray[np.float64]) -> float:
        """What the loss of these `targets [B]` weighs among others: it is a mean."""
        if self.classes and self.each is not None:
            return float(self.each[targets.astype(np.int64)].sum())
        return float(len(targets))

    def _of_numbers(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.deviates and outputs.shape[1] == 2:
            return negative_log_likelihood(outputs, targets)
        return self.error(outputs[:, 0], targets)

    def of_validation(self, outputs: Tensor, targets: Tensor) -> float:
        """The loss of answers `[N, C]` to `targets float [N]`, on the CPU.

        As in training, without smoothing; of bins, the mean squared error.
        """
        if not self.classes:
            return float(self._of_numbers(outputs, targets))
        weight = None if self.weight is None else self.weight.cpu().to(outputs.dtype)
        return float(cross_entropy(outputs, targets.long(), weight))
