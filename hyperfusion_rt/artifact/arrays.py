"""Files of arrays beside a manifest, which says their SHA-256."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import ArtifactError
from hyperfusion_rt.files import replacing, sha256

Arrays = dict[str, NDArray[np.float32]]


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Write `arrays` as float32 (safetensors); returns the file's SHA-256."""
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()},
            temporary,
        )
    return sha256(path)


def read_arrays(folder: Path, file: str, digest: str, needed: Sequence[str]) -> Arrays:
    """What `write_arrays` wrote into `folder`; those `needed` are there, and maybe others.

    Raises:
        ArtifactError: the file is missing, changed, or no such file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / file
    advice = "copy the whole folder again, or export again"
    if path.parent != folder or not path.is_file():
        raise ArtifactError(f"{path}: is missing; {advice}", code="artifact-incomplete")
    try:
        if sha256(path) != digest:
            raise ArtifactError(f"{path}: was changed; {advice}", code="artifact-damaged")
        arrays: Arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path}: cannot be read: {error}; {advice}", code="artifact-damaged"
        ) from None
    if absent := [name for name in needed if name not in arrays]:
        raise ArtifactError(f"{path}: lacks {', '.join(absent)}; {advice}", code="artifact-damaged")
    return arrays
