"""One network to one ONNX file with a dynamic batch axis."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from hyperfusion_rt.errors import HyperFusionError, MissingExtraError
from hyperfusion_rt.files import replacing

OPSET = 20


def to_onnx(network: nn.Module, path: Path, *, shape: tuple[int, int, int], width: int) -> None:
    """Write `network` in eval mode, float32, to `path`.

    Inputs `image [batch, 1, D, H, W]` and `tabular [batch, T]`, output `output [batch, C]`.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        HyperFusionError: the exporter cannot express the network.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "train", "the export to ONNX") from None
    # Two samples: with one, torch.export would take the batch axis for a constant.
    image, tabular = torch.zeros(2, 1, *shape), torch.zeros(2, width)
    batch = torch.export.Dim("batch", min=1, max=4096)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network.eval().float(),
                (image, tabular),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image", "tabular"],
                output_names=["output"],
                dynamic_shapes=({0: batch}, {0: batch}),
                verbose=False,
            )
    except Exception as error:
        raise HyperFusionError(f"{path.name}: the network cannot be exported: {error}") from error
    assert program is not None
    model = program.model_proto
    onnx.checker.check_model(model)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
