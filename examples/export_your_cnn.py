"""A 3D CNN of your own as a native CPU engine, compared with torch in float64."""

import copy

import numpy as np
import torch
from torch import nn

from hyperfusion_rt.export.fuse.fuser import plan
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.runtime.engines.native import NativeEngine

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv3d(1, 16, 3, padding=1),
    nn.BatchNorm3d(16),
    nn.ReLU(),
    nn.MaxPool3d(2),
    nn.Conv3d(16, 32, 3, padding=1),
    nn.LeakyReLU(0.1),
    nn.AdaptiveAvgPool3d(1),
    nn.Flatten(),
    nn.Linear(32, 3),
).eval()

graph = lower(network, {"image": (1, 32, 32, 32)})  # shapes without the batch axis
engine = NativeEngine(plan(graph))

image = np.random.default_rng(0).standard_normal((2, 1, 32, 32, 32), np.float32)
y = engine(image)  # float32 [2, 3]

exact = copy.deepcopy(network).double()(torch.from_numpy(image).double()).detach().numpy()
difference = np.abs(y - exact).max() / np.abs(exact).max()
print(f"largest difference from float64, of the outputs' scale: {difference:.0e}")
assert difference < 1e-4  # the tolerance of every fp32 export
