"""Before the work: is a place to write to none of what is read, and can it be written?"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from hyperfusion_rt.data.scan_file import is_scan
from hyperfusion_rt.errors import ConfigError, HyperFusionError


def check_file(name: str, path: Path, inputs: Sequence[Path], artifact: Path) -> None:
    """Of a file that the option `name` gives.

    Raises:
        ConfigError: it is a folder, an input, a scan, or part of the artifact.
    """
    if path.is_dir():
        raise ConfigError(f"`{name}` {path}: is a folder; name a file", code="output-wrong-name")
    place = path.resolve()
    in_artifact = artifact.resolve() in (place, *place.parents)
    if place in {one.resolve() for one in inputs} or in_artifact or is_scan(place):
        raise ConfigError(
            f"`{name}` {path}: would write over what is read; choose another name",
            code="output-wrong-name",
        )


def check_folder(
    out: Path,
    inputs: Sequence[Path],
    artifact: Path,
    files: Collection[str] = (),
    name: str = "out",
) -> None:
    """Of the folder that the option `name` gives, into which `files` are written; nothing of it is
    left.

    Raises:
        ConfigError: it is a file, lies in the artifact, or would replace what is read.
        HyperFusionError: the folder cannot be made or written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"`{name}` {out}: is no folder; name another", code="output-wrong-name")
    taken = {path.resolve() for path in inputs}
    place = out.resolve()
    if artifact.resolve() in (place, *place.parents) or taken & {place / file for file in files}:
        raise ConfigError(
            f"`{name}` {out}: would write over what is read; choose another folder",
            code="output-wrong-name",
        )
    try:
        missing = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        for folder in missing:  # nothing is left of a run that fails
            folder.rmdir()
    except OSError as error:
        raise HyperFusionError(
            f"`{name}` {out}: cannot be written: {error.strerror or error}; name another folder",
            code="output-cannot-be-written",
        ) from None
