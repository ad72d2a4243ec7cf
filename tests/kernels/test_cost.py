"""The choice of strategy, and the counts behind it."""

import itertools

import torch

from hyperfusion_rt.kernels.gpu import cost


def test_the_strategy_of_the_published_shapes():
    """The published calls, and a late and an early 3x3x3 one; bytes of weights per batch."""
    late = (64, 64, (3, 3, 3), (4, 6, 4), (1, 1, 1), (1, 1, 1))
    early = (64, 64, (3, 3, 3), (24, 24, 28), (1, 1, 1), (1, 1, 1))
    f16 = (128, 256, (1, 1, 1), (8, 12, 8), (2, 2, 2))
    f4 = (32, 64, (1, 1, 1), (8, 12, 8), (2, 2, 2))
    # shape, batch, chosen, bytes of generate and of write, bytes per number 4 (G) and 2 (x)
    for shape, batch, chosen, inside, written in [
        (f16, 1, "generate", 9 * 32768 * 4, 9 * 32768 * 4 + 2 * 32768 * 2),
        (f16, 8, "generate", 8 * 9 * 32768 * 4, 9 * 32768 * 4 + 8 * 2 * 32768 * 2),
        (f16, 32, "write", 32 * 9 * 32768 * 4, 2 * 9 * 32768 * 4 + 32 * 2 * 32768 * 2),
        (f4, 32, "generate", 32 * 9 * 2048 * 4, 2 * 9 * 2048 * 4 + 32 * 2 * 2048 * 2),
        (late, 1, "generate", 9 * 110592 * 4, 9 * 110592 * 4 + 2 * 110592 * 2),
        (early, 1, "write", 126 * 9 * 110592 * 4, 9 * 110592 * 4 + 127 * 110592 * 2),
    ]:
        found = cost.costs(cost.Shape(batch, 8, *shape), 4, 2)
        assert found["generate"].bytes == inside
        assert found["write"].bytes == written
        assert cost.choose_strategy(cost.Shape(batch, 8, *shape), 4, 2) == chosen


def test_positions_and_weights_are_counted_as_the_reference_does():
    for shape, kernel, stride, padding, dilation in itertools.product(
        [(9, 8, 7)], [(3, 3, 3), (1, 2, 3)], [(1, 2, 3)], [(0, 1, 2)], [(1, 2, 1)]
    ):
        found = cost.Shape(1, 1, 2, 4, kernel, shape, stride, padding, dilation, 2)
        layer = torch.nn.Conv3d(2, 4, kernel, stride, padding, dilation, 2)
        assert found.out == layer(torch.zeros(1, 2, *shape)).shape[2:]
        assert found.weights == layer.weight.numel()
