"""A hyperfied network where networks are run: compilers, exporters, threads, processes, copies."""

import copy
import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout

import pytest
import torch
from torch import nn

from hyperfusion_rt import hyperfy
from hyperfusion_rt.kernels.ops import whole_ops

from .networks import Decoder, ResNet, inputs_of

BATCH = torch.export.Dim("batch", min=1, max=64)
DYNAMIC = {"inputs": ({0: BATCH}, {0: BATCH})}


def made(kind=ResNet, rank=None, **options):
    torch.manual_seed(0)
    return hyperfy(kind(**options).eval(), kind.layers, condition=5, rank=rank)


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("kind", [ResNet, Decoder])
def test_the_exporter_keeps_the_batch_open(kind, rank):
    module = made(kind, rank).double()
    x, row = (t.double() for t in inputs_of(kind, 2))
    program = torch.export.export(module, (x, row), dynamic_shapes=DYNAMIC)
    assert not [n for n in program.graph.nodes if "hfrt" in str(n.target)]
    for size in (1, 3):
        inputs = tuple(t.double() for t in inputs_of(kind, size))
        torch.testing.assert_close(program.module()(*inputs), module(*inputs))


OPS = {
    ResNet: ["hyper_conv3d"] * 3 + ["hyper_linear"],
    Decoder: ["hyper_conv3d"] * 3 + ["hyper_conv_transpose3d"],
}


@pytest.mark.parametrize("kind", [ResNet, Decoder])
def test_our_export_gets_a_node_for_each_layer(kind):
    module = made(kind).double()
    x, row = (t.double() for t in inputs_of(kind, 2))
    with whole_ops(), torch.no_grad():
        program = torch.export.export(module, (x, row), dynamic_shapes=DYNAMIC)
    targets = [str(node.target) for node in program.graph.nodes]
    assert [t for t in targets if "hfrt" in t] == [f"hfrt.{op}.default" for op in OPS[kind]]
    inputs = tuple(t.double() for t in inputs_of(kind, 3))
    torch.testing.assert_close(program.module()(*inputs), module(*inputs))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rank"), [(ResNet, None), (ResNet, 2), (Decoder, None)])
def test_onnx_runtime_says_the_same(kind, rank):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX export of hyperfy NOT checked")
    module = made(kind, rank)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # The exporter's own deprecations.
        program = torch.onnx.export(
            module,
            inputs_of(kind, 2),
            dynamo=True,
            opset_version=20,
            input_names=["x", "condition"],
            dynamic_shapes=DYNAMIC,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for size in (1, 3):
        x, row = inputs_of(kind, size)
        (found,) = session.run(None, {"x": x.numpy(), "condition": row.numpy()})
        near(torch.from_numpy(found), module(x, row).detach())


@pytest.mark.slow
@pytest.mark.parametrize("again", [None, False])
@pytest.mark.parametrize("rank", [None, 2])
def test_the_compiler_takes_it_whole(rank, again):
    module = made(rank=rank, again=again)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (2, 3):
        x, row = inputs_of(ResNet, size)
        found, expected = compiled(x, condition=row), module(x, row)
        near(found, expected)
        upstream = torch.randn_like(found)
        pairs = [torch.autograd.grad(y, list(module.parameters()), upstream)
                 for y in (found, expected)]  # fmt: skip
        near(*pairs)


@pytest.mark.filterwarnings("ignore:The backward|None of the inputs:UserWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_find_the_condition_of_their_call(reentrant):
    plain, again = made(), made(again=reentrant)
    x, _ = inputs_of(ResNet, 2)
    rows = torch.randn(2, 2, 5)
    # Both calls come before the parts run again.
    losses = [sum(module(x, row).square().sum() * (i + 1) for i, row in enumerate(rows))
              for module in (plain, again)]  # fmt: skip
    for loss in losses:
        loss.backward()
    pairs = zip(plain.named_parameters(), again.parameters(), strict=True)
    for (_, expected), found in pairs:
        near(found.grad, expected.grad)


def test_threads_and_calls_within_calls():
    module = made()
    x, _ = inputs_of(ResNet, 2)
    rows = [torch.randn(2, 5) for _ in range(24)]
    with torch.no_grad():
        expected = [module(x, row) for row in rows]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda row: module(x, row), rows))
        for a, b in zip(found, expected, strict=True):
            near(a, b)
        # A hook in the middle of a call makes another.
        seen = []

        def call_again(*_):
            if not seen:
                seen.append(None)
                seen.append(module(x, rows[1]))

        handle = module.network.layer2[0].bn1.register_forward_hook(call_again)
        near(module(x, rows[0]), expected[0])
        near(seen[1], expected[1])
        handle.remove()


@pytest.mark.parametrize("rank", [None, 2])
def test_autocast(rank):
    for kind in (ResNet, Decoder):
        module = made(kind, rank)
        x, row = inputs_of(kind, 2)
        expected = module(x, row)
        with torch.autocast("cpu", torch.bfloat16):
            found = module(x, row)
        assert found.dtype == torch.bfloat16
        assert (found - expected).abs().max() <= 0.1 * expected.abs().max()
        found.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_half_precision_and_devices_follow_the_layer():
    module = hyperfy(nn.Sequential(nn.Linear(3, 2)).bfloat16(), "0", condition=4)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    y = module(torch.zeros(2, 3).bfloat16(), torch.zeros(2, 4).bfloat16())
    assert y.dtype == torch.bfloat16


def test_copies_are_apart_and_files_hold_them():
    module = made()
    x, row = inputs_of(ResNet, 2)
    expected = module(x, row)
    twin = copy.deepcopy(module)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for parameter in module.parameters():
        parameter.data.zero_()
    assert torch.equal(twin(x, row), expected)
    assert torch.equal(loaded(x, row), expected)


def replicas_of(module, count):
    """What `torch.nn.parallel.replicate` does, on one device: tensors in place of parameters."""
    modules = list(module.modules())
    index = {part: i for i, part in enumerate(modules)}
    made = [[part._replicate_for_data_parallel() for part in modules] for _ in range(count)]
    for copies in made:
        for part, twin in zip(modules, copies, strict=True):
            for name, child in part._modules.items():
                twin._modules[name] = copies[index[child]]
            for name, parameter in part._parameters.items():
                twin._parameters.pop(name, None)
                setattr(twin, name, None if parameter is None else parameter.clone())
    return [copies[0] for copies in made]


def test_replicas_run_side_by_side():
    module = made(rank=2)
    x, row = inputs_of(ResNet, 4)
    replicas = replicas_of(module, 2)
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda m, a, b: m(a, b), replicas, x.split(2), row.split(2)))
    near(torch.cat(parts), module(x, row))
    torch.cat(parts).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_functional_calls_and_vmap():
    module = made()
    x, row = inputs_of(ResNet, 2)
    doubled = {name: 2 * p for name, p in module.named_parameters()}
    found = torch.func.functional_call(module, doubled, (x, row))
    twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        parameter.data *= 2
    near(found, twin(x, row))
    rows = torch.stack([row, -row])
    found = torch.vmap(lambda r: module(x, r))(rows)
    near(found, torch.stack([module(x, r) for r in rows]))


def test_what_a_module_binds_to_itself_is_that_of_the_call():
    class Bound(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.way = self._way

        def _way(self, x):
            return self.fc(x)

        def forward(self, x):
            return self.way(x)

    module = hyperfy(nn.Sequential(Bound()), "0.fc", condition=4)
    x, row = torch.randn(2, 3), torch.randn(2, 4)
    assert not torch.equal(module(x, row), module(x, -row))


PROCESS = """
import sys, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from hyperfusion_rt import hyperfy

rank, place = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
torch.manual_seed(0)
plain = nn.Sequential(nn.Conv3d(1, 3, 2), nn.BatchNorm3d(3), nn.Flatten(), nn.Linear(24, 2))
module = hyperfy(plain, ["0", "3"], condition=4, rank=1, freeze=len(sys.argv) > 3)
parallel = DistributedDataParallel(module)
x, row = torch.randn(4, 1, 3, 3, 3), torch.randn(4, 4)
half = slice(2 * rank, 2 * rank + 2)
plain.eval()
module.eval()
for _ in range(2):  # A parameter without a gradient would stop the second.
    parallel(x[half], condition=row[half]).square().mean().backward()
twin = hyperfy(plain, ["0", "3"], condition=4, rank=1).eval()
twin.load_state_dict(module.state_dict())
twin(x, row).square().mean().backward()
for a, b in zip(module.parameters(), twin.parameters()):
    if a.requires_grad:
        torch.testing.assert_close(a.grad, 2 * b.grad, rtol=1e-4, atol=1e-6)
    else:
        assert a.grad is None
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [[], ["frozen"]])
def test_two_processes(tmp_path, frozen):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "meeting"), *frozen],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors


OTHERS = {
    "resnet18": (
        lambda nets: nets.resnet18(spatial_dims=3, n_input_channels=1, num_classes=2),
        ["layer4.*.conv1", "fc"],
    ),
    # Its decoder is made of transposed convolutions.
    "unet": (lambda nets: nets.UNet(3, 1, 2, (8, 16, 32), (2, 2)), ["*conv"]),
    # Depthwise convolutions, padded by modules of their own.
    "efficientnet": (
        lambda nets: nets.EfficientNetBN(
            "efficientnet-b0", spatial_dims=3, in_channels=1, num_classes=2, pretrained=False
        ),
        ["_blocks.6.*", "_fc"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_others(name, rank):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's own.
        nets = pytest.importorskip("monai.networks.nets", reason="MONAI's networks NOT checked")
    make, layers = OTHERS[name]
    torch.manual_seed(0)
    plain = make(nets).eval()
    module = hyperfy(plain, layers, condition=4, embedding=2, rank=rank, init="zero")
    x, row = torch.randn(2, 1, 32, 32, 32), torch.randn(2, 4)
    expected = plain(x)
    found = module(x, row)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    found.square().mean().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []
    program = torch.export.export(module, (x, row), dynamic_shapes=DYNAMIC)
    near(program.module()(x[:1], row[:1]), expected[:1])
