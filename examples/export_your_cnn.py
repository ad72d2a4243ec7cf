"""A 3D CNN of your own as a native CPU engine, compared with torch in float64."""

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import hyperfusion_rt

torch.manual_seed(0)
network = nn.Sequential(  # a small U-Net without its skip: a mask of two classes
    nn.Conv3d(1, 16, 3, stride=2, padding=1),
    nn.InstanceNorm3d(16, affine=True),
    nn.LeakyReLU(0.1),
    nn.Conv3d(16, 32, 3, padding=1, groups=4),
    nn.GroupNorm(8, 32),
    nn.GELU(),
    nn.ConvTranspose3d(32, 8, 2, stride=2),
    nn.ReLU(),
    nn.Conv3d(8, 2, 1),
    nn.Softmax(1),
).eval()
image = torch.randn(2, 1, 32, 32, 32)

engine = hyperfusion_rt.compile(network, image)  # any batch later; compared on this one
mask = engine(image)  # [2, 2, 32, 32, 32]; arrays in, arrays out; tensors in, tensors out

with tempfile.TemporaryDirectory() as folder:
    engine.save(Path(folder) / "mask.engine")
    loaded = hyperfusion_rt.load_network(Path(folder) / "mask.engine", threads=2)  # without torch
    again = loaded(image.numpy())

exact = copy.deepcopy(network).double()(image.double()).detach().numpy()
difference = np.abs(again - exact).max() / np.abs(exact).max()
print(f"largest difference from float64, of the outputs' scale: {difference:.0e}")
assert difference < 1e-4
assert np.array_equal(again, mask.numpy())
