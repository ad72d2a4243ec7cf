"""The network of the table alone: it is a baseline, and the AD embedding starts from it."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfusion_rt.config import Config
from hyperfusion_rt.metrics import balanced_accuracy
from hyperfusion_rt.models import outputs_count
from hyperfusion_rt.models.baselines import TabularNetwork
from hyperfusion_rt.training.loss import Loss
from hyperfusion_rt.training.optimiser import make_optimiser, rate, set_rate
from hyperfusion_rt.training.sampling import batches

_BATCH = 32


def pretrained(
    config: Config,
    seed: int,
    tabular: NDArray[np.float32],
    targets: NDArray[np.float64],
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
) -> TabularNetwork:
    """The table's network, trained for `training.embedding_epochs` at `training.embedding_lr`.

    `tabular [N, T]`, `targets [N]` (class indices, or numbers as the network answers them); `train`
    and `validation`: row numbers. With `adam` it keeps the best epoch of the validation part, as
    published; with `adamw` the rate falls along a cosine and the last epoch is kept: the best of
    100 epochs on some 60 rows is luck.
    """
    training = config.training
    size, slope = config.network.embedding, config.network.embedding_slope
    network = TabularNetwork(tabular.shape[1], outputs_count(config), size, slope)
    decay = training.weight_decay
    if training.optimizer == "adamw":
        decay = training.decay_of_embedding
    epochs = training.embedding_epochs
    own = training.model_copy(
        update={
            "lr": training.embedding_lr,
            "weight_decay": decay,
            "epochs": max(epochs, 1),
            "warmup_epochs": 0.0,
            "schedule": "constant" if training.optimizer == "adam" else "cosine",
        }
    )
    optimiser = make_optimiser(network, own)
    rows, truth = torch.from_numpy(tabular), torch.from_numpy(targets).float()
    loss = Loss(config, torch.device("cpu"))
    image = rows.new_empty(0)
    best, kept = -math.inf, network.state_dict()
    step, steps = 0, epochs * -(-len(train) // _BATCH)
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, 1, epoch])
        network.train()
        for batch in batches(train, _BATCH, rng):
            index = torch.from_numpy(batch)
            set_rate(optimiser, rate(own, step, steps))
            optimiser.zero_grad()
            loss(network(image, rows[index]), truth[index]).backward()
            optimiser.step()
            step += 1
        if training.optimizer == "adamw":
            continue
        network.eval()
        with torch.inference_mode():
            answers = network(image, rows[torch.from_numpy(validation)])
        score = _score(config, answers.numpy(), targets[validation])
        if score > best:
            best = score
            kept = {name: value.clone() for name, value in network.state_dict().items()}
    if training.optimizer == "adam":
        network.load_state_dict(kept)
    return network


def _score(config: Config, answers: NDArray[np.float32], truth: NDArray[np.float64]) -> float:
    if config.tabular.classes:
        return balanced_accuracy(truth, answers.argmax(1), outputs_count(config))
    return -float(np.square(answers[:, 0] - truth).mean())
