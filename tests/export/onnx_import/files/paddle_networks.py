"""Writes the files `paddle_*`: networks of Paddle by way of paddle2onnx, with Paddle's answer.

pip install paddlepaddle paddle2onnx && python paddle_networks.py
"""

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional

OPSET = 17


class Segmenter(nn.Layer):
    """Down and up again."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv3D(1, 4, 3, padding=1), nn.InstanceNorm3D(4), nn.PReLU(4))
        self.down = nn.Conv3D(4, 8, 3, stride=2, padding=1)
        self.up, self.both = nn.Conv3DTranspose(8, 4, 2, stride=2), nn.Conv3D(8, 4, 3, padding=1)
        self.larger = nn.Upsample(size=[8, 8, 8], mode="trilinear", data_format="NCDHW")
        self.last = nn.Conv3D(4, 2, 1)

    def forward(self, x):
        """`[B, 1, 8, 8, 8]` → `[B, 2, 8, 8, 8]`."""
        first = self.first(x)
        up = self.up(functional.hardswish(self.down(first)))
        x = functional.elu(self.both(paddle.concat([up, first], 1)))
        x = self.larger(functional.avg_pool3d(x, 2))
        return functional.softmax(self.last(x), axis=1)


class Flat(nn.Layer):
    """A network of two axes of voxels."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2D(3, 6, 3, padding=1), nn.BatchNorm2D(6)
        self.each, self.head = nn.Conv2D(6, 6, 3, stride=2, groups=6), nn.Linear(6, 2)

    def forward(self, x):
        """`[B, 3, 17, 14]` → `[B, 2]`."""
        x = self.each(functional.relu6(self.norm(self.first(x))))
        x = functional.interpolate(x, size=[14, 12], mode="bilinear")
        x = functional.max_pool2d(x, 3, 2, padding=1, ceil_mode=True)
        return self.head(x.mean([2, 3]))


def main():
    """Write them."""
    rng = np.random.default_rng(0)
    for make, shape in ((Segmenter, (1, 8, 8, 8)), (Flat, (3, 17, 14))):
        paddle.seed(0)
        network = make()
        network.eval()
        name = f"paddle_{make.__name__.lower()}"
        spec = [paddle.static.InputSpec([None, *shape], "float32", "x")]
        paddle.onnx.export(network, name, input_spec=spec, opset_version=OPSET)
        x = rng.normal(size=(2, *shape)).astype(np.float32)
        np.savez_compressed(f"{name}.npz", x=x, y=network(paddle.to_tensor(x)).numpy())


if __name__ == "__main__":
    main()
