"""Writing files so that nothing is lost: a temporary file beside the target, then a rename."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hyperfusion_rt.errors import HyperFusionError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    After an error (a full disk, say) the old file is still there and the temporary one is gone.

    Raises:
        HyperFusionError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise HyperFusionError(
            f"{path}: cannot be written: {error.strerror or error}; "
            "what stood there before is unchanged"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where this program keeps what it can make again: `$XDG_CACHE_HOME/hyperfusion_rt`.

    Without a home it is a place that cannot be written.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "hyperfusion_rt"
    except RuntimeError:
        return Path(os.devnull) / "hyperfusion_rt"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def stamp(path: Path) -> str | None:
    """What tells a file from a changed or another one without reading it; None if it is not there.

    Size, times of change (content, and inode: a file that was moved here differs) and inode, as
    version control systems take them; of a folder, a hash of its files' names and stamps.
    """
    try:
        found = path.stat()
        if not path.is_dir():
            parts = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
            return "-".join(map(str, parts))
        inside = [f"{p.name}:{stamp(p)}" for p in sorted(path.iterdir()) if p.is_file()]
        return hashlib.sha256("\n".join(inside).encode()).hexdigest()
    except OSError:
        return None


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
