"""Every error has a code that is in `CODES`; messages name parameters, not a command's options."""

import ast
import functools
import pickle
import re
from pathlib import Path

import pytest

import hyperfusion_rt
from hyperfusion_rt import errors
from hyperfusion_rt.errors import CODES, HyperFusionError, MissingExtraError

ROOT = Path(hyperfusion_rt.__file__).parent
# What looks like an option of ours and is none, by file: CSS, options of other programs.
NOT_OURS: dict[str, tuple[str, ...]] = {}

KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, HyperFusionError)
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def sources() -> list[str]:
    """Every Python file of the package, `kernels` and `export` too, once."""
    found = [ROOT, ROOT / "kernels", ROOT / "export"]
    files = {path for folder in found for path in folder.rglob("*.py")}
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


ALL = sources()
RAISED = KINDS.keys() - {"MissingExtraError"}  # which gives its code itself


def test_the_sources_are_found() -> None:
    assert {"data/volumes.py", "kernels/ops.py", "export/build.py"} <= set(ALL)
    assert all((ROOT / name).exists() for name in NOT_OURS)


def codes_of(call: ast.Call) -> list[str]:
    """The codes that a call may give; empty where they are only known when it runs."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
    match given:
        case [ast.Constant(value=str(code))]:
            return [code]
        # Passed on from another error, a scan or a row; or a problem's kind, which is a code, too.
        case [ast.Attribute(attr="code") | ast.Name(id="kind")]:
            return []
    raise AssertionError(f"line {call.lineno}: {ast.unparse(call)} gives no literal code")


@pytest.mark.parametrize("name", ALL)
def test_every_error_gives_a_code(name: str) -> None:
    for call in ast.walk(tree(name)):
        if not isinstance(call, ast.Call):
            continue
        called = call.func.attr if isinstance(call.func, ast.Attribute) else None
        called = call.func.id if isinstance(call.func, ast.Name) else called
        if called in RAISED:
            assert set(codes_of(call)) <= CODES.keys(), f"line {call.lineno}"


def test_every_code_is_used() -> None:
    used = {
        node.value
        for name in ALL
        if name != "errors.py"
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    # errors.py itself gives the codes that need no message of a caller.
    text = (ROOT / "errors.py").read_text(encoding="utf-8")
    unused = [code for code in CODES if code not in used and text.count(f'"{code}"') < 2]
    assert not unused


def test_codes_are_written_alike() -> None:
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+|unexpected", code) for code in CODES)
    assert all(meaning[0].islower() or meaning[:2].isupper() for meaning in CODES.values())
    assert not any(meaning.endswith(".") for meaning in CODES.values())


def docstrings(module: ast.Module) -> set[int]:
    """The ids of the nodes that are docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, kinds) and node.body and isinstance(node.body[0], ast.Expr)
    }


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("cli/")])
def test_no_text_names_a_command_line_option(name: str) -> None:
    module = tree(name)
    skipped = docstrings(module)
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = [] if id(node) in skipped else OPTION.findall(node.value)
            assert set(found) <= set(NOT_OURS.get(name, ())), f"line {node.lineno}: {found}"


@pytest.mark.parametrize("kind", [k for k in KINDS.values() if k is not MissingExtraError])
def test_errors_cross_processes(kind: type[HyperFusionError]) -> None:
    error = pickle.loads(pickle.dumps(kind("x: `max_memory` is too small", code="scan-truncated")))
    assert type(error) is kind
    assert str(error) == "x: `max_memory` is too small"
    assert (error.code, error.parameter) == ("scan-truncated", "max_memory")


def test_a_missing_extra_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(MissingExtraError("ray", "ray", "a cluster")))
    assert type(error) is MissingExtraError
    assert error.code == "missing-extra"
    assert "pip install 'hyperfusion_rt[ray]'" in str(error)


def test_a_code_that_is_not_listed_is_refused() -> None:
    with pytest.raises(ValueError, match="'scan-lost' is not in CODES"):
        HyperFusionError("x", code="scan-lost")
