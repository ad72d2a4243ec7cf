"""`warp`: the native kernel and plain PyTorch against PyTorch's `grid_sample`."""

import pytest
import torch

from hyperfusion_rt import _native
from hyperfusion_rt.kernels.warp import warp

SHAPES = [(4, 6, 5), (3, 2, 33), (2, 1, 3), (1, 1, 1), (5, 4, 16)]


def made(shape, channels=2, batch=3, elastic=True, seed=0):
    """Images with a background, turned and bent beyond their border."""
    torch.manual_seed(seed)
    images = torch.randn(batch, channels, *shape, dtype=torch.float64)
    images *= torch.rand_like(images) > 0.3
    matrix = torch.eye(3, dtype=torch.float64) + 0.2 * torch.randn(batch, 3, 3, dtype=torch.float64)
    shift = 2 * torch.randn(batch, 3, dtype=torch.float64)
    field = torch.randn(batch, 3, *shape, dtype=torch.float64) if elastic else None
    return images, matrix, shift, field


def expected(images, matrix, shift, field):
    """Of float64: values, and the brain's weight."""
    shape = images.shape[2:]
    centre = (torch.tensor(shape, dtype=torch.float64) - 1) / 2
    voxels = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), -1) - centre
    points = torch.einsum("bij,dhwj->bdhwi", matrix, voxels) + shift[:, None, None, None] + centre
    if field is not None:
        points = points + field.movedim(1, -1)
    sizes = torch.tensor(shape)
    grid = torch.where(sizes > 1, 2 * points / (sizes - 1).clamp_min(1) - 1, 0).flip(-1)
    both = torch.cat([images, (images != 0).double()], 1)
    found = torch.nn.functional.grid_sample(both, grid, padding_mode="border", align_corners=True)
    values, weight = found.chunk(2, 1)
    return values / weight.clamp_min(0.5) * (weight > 0.5), weight


@pytest.mark.parametrize("elastic", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_grid_sample_of_the_brain(shape, elastic):
    given = made(shape, elastic=elastic)
    values, weight = expected(*given)
    clear = (weight - 0.5).abs() > 1e-5  # a weight of half may round to either side
    exact, inside = warp(*given)
    torch.testing.assert_close(exact * clear, values * clear, rtol=0, atol=1e-12)
    assert torch.equal((inside > 0) & clear, (weight > 0.5) & clear)
    native = [None if t is None else t.float() for t in given]
    values32, inside32 = warp(*native)
    assert values32.dtype == inside32.dtype == torch.float32
    torch.testing.assert_close(values32.double() * clear, values * clear, rtol=0, atol=2e-5)
    assert torch.equal(inside32.double() * clear, inside * clear)
    assert clear.float().mean() > 0.9


@pytest.mark.parametrize("isa", _native.available_isas())
def test_every_instruction_set_and_number_of_threads(isa):
    images, matrix, shift, field = (t.float() for t in made((6, 5, 19)))
    expected_, inside = warp(images, matrix, shift, field)
    for threads in (1, 2, 5):
        found, brain = torch.full_like(images, 7), torch.full_like(images, 7)
        arrays = (t.numpy() for t in (images, matrix, shift, field, found, brain))
        _native.warp(*arrays, threads, isa)
        torch.testing.assert_close(found, expected_, rtol=0, atol=1e-5)
        assert torch.equal(brain, inside)


def test_an_axis_of_one_voxel_is_interpolated():
    images = torch.arange(1.0, 7.0).view(1, 1, 2, 1, 3)
    # The middle of the first axis for all voxels; beyond the border of the second.
    matrix = torch.diag_embed(torch.tensor([[0.0, 1.0, 0.0]]))
    values, inside = warp(images, matrix, torch.tensor([[0.0, 7.0, 0.5]]))
    assert torch.equal(values, torch.full_like(values, 4.0))
    assert torch.equal(inside, torch.ones_like(inside))


@pytest.mark.parametrize("wrong", ["matrix", "shift", "elastic"])
def test_shapes_that_do_not_fit_are_refused(wrong):
    given = dict(zip(("images", "matrix", "shift", "elastic"), made((3, 4, 5)), strict=True))
    given = {name: tensor.float() for name, tensor in given.items()}
    given[wrong] = given[wrong][:1]
    with pytest.raises(ValueError, match=wrong):
        warp(**given)


def test_a_place_that_is_no_number_reads_inside_the_volume():
    images, matrix, shift, _ = (t.float() for t in made((3, 4, 20)))
    matrix[0, 0, 0] = torch.nan
    values, _ = warp(images, matrix, shift)
    torch.testing.assert_close(values[1:], warp(images[1:], matrix[1:], shift[1:])[0])
    assert values[0].abs().max() <= images.abs().max()
