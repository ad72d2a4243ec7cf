"""Networks that others wrote, on our native engine and its peers: are they right, and how fast?

    python benchmarks/networks.py                      # writes networks.md and networks.json
    HFRT_ISA=avx2 python benchmarks/networks.py        # held to AVX2: networks-avx2.*
    python benchmarks/networks.py --only dynunet       # one of them; prints, writes nothing
    python benchmarks/networks.py --deepbet WHEEL      # with the two networks of deepbet's wheel

Random weights, but deepbet's. Each network goes through `compile` and, as an ONNX file, through the
import and the peers: ONNX Runtime, and OpenVINO with its latency hint in float32. Before anything
is timed each is compared with the network in float64. All have the same threads and take turns.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import statistics
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

import hyperfusion_rt
from hyperfusion_rt.bench.contenders import open_onnxruntime, open_openvino
from hyperfusion_rt.bench.race import machine_limits, race
from hyperfusion_rt.machine import describe_machine, usable_cores

HERE = Path(__file__).parent
OURS = "native, of the module"
IMPORTED = "native, of the ONNX file"
PEERS = ("ONNX Runtime", "OpenVINO f32")
_HELD = ", OpenVINO held to AVX2, too; ONNX Runtime knows no such switch"
# Of the outputs' scale: every network's must.
PARITY = 1e-5
# Peers are fed an image and a table, as in the other benchmarks; these networks have none.
NO_TABLE = np.empty((1, 0), np.float32)


class SFCN(nn.Module):
    """The brain-age network of Peng et al. 2021: six blocks, 40 soft bins."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        sizes = [1, 32, 64, 128, 256, 256, 64]
        for i, (cin, cout) in enumerate(itertools.pairwise(sizes)):
            last = i == 5
            layers += [nn.Conv3d(cin, cout, 1 if last else 3, padding=0 if last else 1)]
            layers += [nn.BatchNorm3d(cout), *([] if last else [nn.MaxPool3d(2)]), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.AvgPool3d((5, 6, 5)), nn.Dropout(0.5), nn.Conv3d(64, 40, 1))

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 1, D, H, W]` → `[B, 40]`."""
        return F.log_softmax(self.head(self.features(image)).flatten(1), 1)


class MedNeXtBlock(nn.Module):
    """A block of MedNeXt-S with kernel 3: depthwise, wide with GRN, and back."""

    def __init__(self, channels: int = 32, ratio: int = 2) -> None:
        super().__init__()
        wide = channels * ratio
        self.depthwise = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.GroupNorm(channels, channels)
        self.wide, self.back = nn.Conv3d(channels, wide, 1), nn.Conv3d(wide, channels, 1)
        self.gamma = nn.Parameter(torch.randn(1, wide, 1, 1, 1) * 0.1)
        self.beta = nn.Parameter(torch.randn(1, wide, 1, 1, 1) * 0.1)

    def forward(self, image: Tensor) -> Tensor:
        """The shape of `image [B, C, D, H, W]`."""
        y = F.gelu(self.wide(self.norm(self.depthwise(image))))
        size = torch.linalg.vector_norm(y, dim=(2, 3, 4), keepdim=True)
        y = self.gamma * (y * (size / (size.mean(1, keepdim=True) + 1e-6))) + self.beta + y
        return image + self.back(y)


def shaken(module: nn.Module) -> nn.Module:
    """In eval mode, with statistics and weights of its normalisation that are not trivial."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm3d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
        if isinstance(m, nn.BatchNorm3d | nn.GroupNorm | nn.InstanceNorm3d) and m.affine:
            m.weight.data.uniform_(0.5, 1.5)
            m.bias.data.normal_(0, 0.1)
    return module.eval()


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Name → (how it is made, its image without the batch)."""
    from monai.networks import nets as n

    image = (1, 96, 96, 96)
    return {
        "DynUNet": (lambda: n.DynUNet(3, 1, 2, [3] * 5, [1, 2, 2, 2, 2], [2] * 4), image),
        "SegResNet": (lambda: n.SegResNet(spatial_dims=3, in_channels=1, out_channels=2), image),
        "SegResNet, 16 filters": (
            lambda: n.SegResNet(3, init_filters=16, in_channels=1, out_channels=2), image
        ),
        "UNet": (lambda: n.UNet(3, 1, 2, (16, 32, 64, 128, 256), (2,) * 4, num_res_units=2), image),
        "BasicUNet": (lambda: n.BasicUNet(3, 1, 2), image),
        "AttentionUnet": (lambda: n.AttentionUnet(3, 1, 2, (16, 32, 64, 128), (2, 2, 2)), image),
        "ResNet18": (
            lambda: n.resnet18(spatial_dims=3, n_input_channels=1, num_classes=3), image
        ),
        "DenseNet121": (
            lambda: n.DenseNet121(spatial_dims=3, in_channels=1, out_channels=3), image
        ),
        "SEResNeXt50": (lambda: n.SEResNext50(spatial_dims=3, in_channels=1, num_classes=3), image),
        "EfficientNet-B0": (
            lambda: n.EfficientNetBN(
                "efficientnet-b0", spatial_dims=3, in_channels=1, num_classes=3, pretrained=False
            ),
            image,
        ),
        "SFCN": (SFCN, (1, 160, 192, 160)),
        "MedNeXt block": (MedNeXtBlock, (32, 64, 64, 64)),
    }  # fmt: skip


@dataclass
class Row:
    """Of one network: ms and differences from float64 by contender, or what went wrong."""

    name: str
    shape: tuple[int, ...]
    gflop: float
    ms: dict[str, float]
    off: dict[str, float]
    failed: dict[str, str]

    @property
    def ratio(self) -> float | None:
        """The faster peer's time over ours."""
        peers = [self.ms[p] for p in PEERS if p in self.ms]
        return min(peers) / self.ms[OURS] if peers and OURS in self.ms else None


def write_onnx(module: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """The network as an ONNX file for one image `shape`, named as contenders are fed."""
    with torch.no_grad():
        torch.onnx.export(
            module,
            (torch.zeros(1, *shape),),
            path,
            input_names=["image"],
            dynamo=False,
            opset_version=17,
        )


def contenders(module: Any, image: Tensor, path: Path, threads: int) -> dict[str, Any]:
    """How each is opened; `module` None: the file alone."""
    made = {
        IMPORTED: lambda: hyperfusion_rt.compile(path, threads=threads),
        "ONNX Runtime": lambda: partial(open_onnxruntime(path, threads), tabular=NO_TABLE),
        "OpenVINO f32": lambda: partial(open_openvino(path, threads, 1, "f32"), tabular=NO_TABLE),
    }
    if module is not None:
        made = {OURS: lambda: hyperfusion_rt.compile(module, image, threads=threads), **made}
    return made


def measure(
    name: str,
    module: nn.Module | None,
    shape: tuple[int, ...],
    path: Path,
    exact: Callable[[Tensor], Tensor],
    threads: int,
    rounds: int,
) -> Row:
    """Compare every contender with `exact`, then race them; `module` None: the file alone."""
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = exact(image.double()).numpy()
    row = Row(name, shape, 0.0, {}, {}, {})
    calls: dict[str, Callable[[], Any]] = {}
    for label, start in contenders(module, image, path, threads).items():
        try:
            engine = start()
            found = np.asarray(engine(image.numpy()), np.float64).reshape(expected.shape)
        except Exception as error:  # what fails is a row of the table, not its end
            row.failed[label] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        row.off[label] = float(np.abs(found - expected).max() / np.abs(expected).max())
        calls[label] = lambda e=engine: e(image.numpy())
        if label in (OURS, IMPORTED):
            plan = engine._plan
            row.gflop = sum(op.gflop for op in plan.trunk.ops)
    if IMPORTED in calls and OURS in calls and module is not None:
        del calls[IMPORTED]  # the same plan
    row.ms = {label: statistics.median(times) for label, times in race(calls, rounds).items()}
    if OURS not in row.ms and IMPORTED in row.ms:
        row.ms[OURS] = row.ms.pop(IMPORTED)
    return row


def deepbet(wheel: Path, scratch: Path) -> dict[str, tuple[Path, tuple[int, ...], Any]]:
    """The two networks of deepbet's wheel (MIT), as ONNX files in `scratch`."""
    found = {}
    with zipfile.ZipFile(wheel) as content:
        for name, size in (("bbox_model", 128), ("model", 256)):
            content.extract(f"data/models/{name}.pt", scratch)
            module = torch.jit.load(scratch / f"data/models/{name}.pt").eval()
            path, shape = scratch / f"deepbet-{name}.onnx", (1, size, size, size)
            write_onnx(module, shape, path)
            exact = copy.deepcopy(module).double()
            found[f"deepbet {name}"] = (path, shape, exact)
    return found


def table(rows: list[Row]) -> list[str]:
    """Speed and parity in Markdown."""
    lines = [
        "| network | image | GFLOP | native ms | ONNX Runtime ms | OpenVINO f32 ms | "
        "faster peer over native |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = [f"{r.ms[k]:.1f}" if k in r.ms else "-" for k in (OURS, *PEERS)]
        ratio = f"{r.ratio:.2f}" if r.ratio else "-"
        size = " x ".join(map(str, r.shape))
        lines.append(f"| {r.name} | {size} | {r.gflop:.1f} | {' | '.join(cells)} | {ratio} |")
    lines += [
        "",
        "Largest difference from the network in float64, of the outputs' scale:",
        "",
        "| network | native, module | native, ONNX file | ONNX Runtime | OpenVINO f32 |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        cells = []
        for k in (OURS, IMPORTED, *PEERS):
            off = r.off.get(k)
            wrong = off is not None and not off <= PARITY
            cells.append("-" if off is None else f"{off:.1e}{' **above 1e-5**' if wrong else ''}")
        lines.append(f"| {r.name} | {' | '.join(cells)} |")
    failures = [f"- {r.name}, {k}: {why}" for r in rows for k, why in r.failed.items()]
    return [*lines, "", *(["What failed:", "", *failures] if failures else ["Nothing failed."])]


def main(
    rounds: int = 7,
    threads: int | None = None,
    only: str = "",
    wheel: Annotated[
        Path | None, typer.Option("--deepbet", help="deepbet's wheel, from PyPI.")
    ] = None,
) -> None:
    """Measure every network."""
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    isa = os.environ.get("HFRT_ISA", "")
    if isa == "avx2":
        # Before the peers' libraries read them.
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    rows = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scratch = Path(folder)
        for name, (make, shape) in networks().items():
            if only.lower() not in name.lower():
                continue
            torch.manual_seed(0)
            module = shaken(make())
            path = scratch / "network.onnx"
            write_onnx(module, shape, path)
            exact = copy.deepcopy(module).double()
            rows.append(measure(name, module, shape, path, exact, threads, rounds))
            print("\n".join(table(rows[-1:])), flush=True)
        for name, (path, shape, exact) in (deepbet(wheel, scratch) if wheel else {}).items():
            if only.lower() in name.lower():
                rows.append(measure(name, None, shape, path, exact, threads, rounds))
                print("\n".join(table(rows[-1:])), flush=True)
    if only:
        return
    machine, (limit, copied) = describe_machine(), machine_limits(threads)
    header = [
        "# Networks that others wrote", "",
        "Written by `python benchmarks/networks.py --deepbet WHEEL`"
        + (f" with HFRT_ISA={isa}{_HELD if isa == 'avx2' else ''}" if isa else "")
        + f". Medians of {rounds}, contenders in turn, {threads} threads each, batch 1, compared "
        "with float64 before timing.", "",
        f"Machine: {'; '.join(f'{k} {v}' for k, v in machine.items())}.", "",
        f"Limits in this run: {limit:.0f} GFLOP/s (float32 multiply-adds in registers), "
        f"{copied:.0f} GB/s (copy, read and write). GFLOP are those of the direct algorithm.", "",
    ]  # fmt: skip
    target = HERE / f"networks{f'-{isa}' if isa else ''}.md"
    target.write_text("\n".join([*header, *table(rows)]) + "\n", encoding="utf-8")
    content = {"machine": machine, "threads": threads, "rows": [vars(r) for r in rows]}
    target.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
