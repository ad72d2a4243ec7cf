"""Initial weights of the generators (Chang et al., Principled Weight Initialization for
Hypernetworks, ICLR 2020), and the embedding that was trained before.

    Var(weights_gen) = gain / (2^bias · fan_in · K · Var(e))
    Var(bias_gen) = gain / (2 · K · Var(e))

uniform; the generators' own biases are 0. `gain`: 2 where a ReLU follows, behind BN or not, else 1;
`bias`: 1 where the layer also generates a bias, as all of ours do.

Where only a share p of the output's variance is generated, these are p times as large, and the
ordinary weights beside them (`weights_gen.bias`, or `static` of a layer of low rank) start with

    Var = (1 - p) · gain / fan_in

Where the ordinary weights W0 are given (`hyperfy`), they stay; gain is theirs: fan_in · mean W0².
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models.ad import ADNetwork
from hyperfusion_rt.models.addition import FullRank, fan_in
from hyperfusion_rt.models.baselines import TabularNetwork
from hyperfusion_rt.models.brain_age import BrainAgeNetwork
from hyperfusion_rt.models.layers import HyperNetwork, LowRank

_BRAIN_AGE_VARIANCE = 0.25
# How much the brain-age embedding of a table of several columns varies at first.
_EMBEDDED = 0.1


def _uniform(tensor: Tensor, variance: float) -> None:
    """A uniform distribution on [-a, a] has the variance a² / 3."""
    limit = math.sqrt(3 * variance)
    nn.init.uniform_(tensor, -limit, limit)


def initialise_generator(net: HyperNetwork, variance: float) -> None:
    """Set one hypernetwork's generators, for an embedding of this variance."""
    size, part, gain = net.weights_gen.in_features, net.generated_part, net.gain
    _uniform(net.weights_gen.weight, part * gain / (2.0 * net.fan_in * size * variance))
    _uniform(net.bias_gen.weight, part * gain / (2.0 * size * variance))
    for generator in (net.weights_gen, net.bias_gen):
        if generator.bias is not None:
            nn.init.zeros_(generator.bias)
    if net.weights_gen.bias is not None and part < 1:
        _uniform(net.weights_gen.bias, (1 - part) * gain / net.fan_in)


def initialise_filters(layer: LowRank) -> None:
    """Set the filters that all samples share: what they make is as large as what they read."""
    for weight in layer.filters.parameters():
        _uniform(weight, 1 / fan_in(layer.filters))


def initialise_addition(layer: FullRank | LowRank, part: float) -> None:
    """Set what a condition adds to `layer.static`, whose weights W0 stay as they are.

    With inputs of mean square 1, and a condition whose columns have it, too, what is added varies
    `part` times as much as what is there. 0: nothing is added at first.
    """
    net, static = layer.hyper_net, layer.static
    with torch.no_grad():
        mean_square = float(static.weight.square().mean())  # type: ignore[operator]
    net.gain, net.generated_part = fan_in(static) * mean_square, part
    embedding = net.embedding_model
    _uniform(embedding.weight, 1 / embedding.in_features)  # type: ignore[arg-type, operator]
    nn.init.zeros_(embedding.bias)  # type: ignore[arg-type]
    initialise_generator(net, 1.0)
    if isinstance(layer, LowRank):
        initialise_filters(layer)


def _initialise_rest(network: nn.Module) -> None:
    """What layers of low rank have besides their generators."""
    for layer in network.modules():
        if isinstance(layer, LowRank):
            net = layer.hyper_net
            if not layer.keep:
                (weight,) = layer.static.parameters()
                _uniform(weight, (1 - net.generated_part) * net.gain / fan_in(layer.static))
            initialise_filters(layer)


def initialise_generators(network: nn.Module, tabular: Tensor) -> None:
    """Initialise every generated layer of a published network.

    AD: Var(e) is measured over the training table `tabular [N, T]`. Brain age: Var(e) = 0.25, and
    the embeddings Linear(T → 1) start at equal weights and e at 1, give or take 0.1 at most: the
    layers multiply it, and the sum of many columns would make them explode. Of the published table,
    one category, that is weights 1, bias 0, and e = 1 for every row.

    Raises:
        ConfigError: the embedding of `tabular` is not finite, so it has no variance.
    """
    _initialise_rest(network)
    if isinstance(network, BrainAgeNetwork):
        sums = tabular.double().sum(1)
        weight = min(1.0, _EMBEDDED / max(float(sums.std(correction=0)), 1e-6))
        bias = 1 - weight * float(sums.mean())
        for module in network.modules():
            if isinstance(module, HyperNetwork):
                nn.init.constant_(module.embedding_model.weight, weight)  # type: ignore[arg-type]
                nn.init.constant_(module.embedding_model.bias, bias)  # type: ignore[arg-type]
                initialise_generator(module, _BRAIN_AGE_VARIANCE)
        return
    for module in network.modules():
        if isinstance(module, HyperNetwork):
            training = module.training
            module.eval()
            with torch.no_grad():
                variance = float(module.embedding_model(tabular).var())
            module.train(training)
            if not math.isfinite(variance):
                raise ConfigError(
                    f"the embedding of the training table {tuple(tabular.shape)} has no finite "
                    "variance: encode the table without gaps first",
                    code="model-embedding-invalid",
                )
            initialise_generator(module, max(variance, 1e-6))


def load_embedding(network: nn.Module, tabular_network: nn.Module) -> None:
    """Copy the embedding of a trained `TabularNetwork` into an AD HyperFusion network.

    Raises:
        ConfigError: the networks are not of these kinds, or their embeddings differ in size.
    """
    fits = isinstance(network, ADNetwork) and network.fusion == "hyper"
    if not fits or not isinstance(tabular_network, TabularNetwork):
        raise ConfigError(
            "only an AD network with fusion 'hyper' takes a tabular embedding",
            code="model-embedding-invalid",
        )
    for module in network.modules():
        if isinstance(module, HyperNetwork):
            try:
                module.embedding_model.load_state_dict(tabular_network.embedding_model.state_dict())
            except RuntimeError as error:
                raise ConfigError(
                    f"the tabular embedding does not fit: {error}", code="model-embedding-invalid"
                ) from None
