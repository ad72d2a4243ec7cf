"""Writing files and folders so that nothing is lost: a temporary one beside, then a rename."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hyperfusion_rt.errors import HyperFusionError

PRIVATE = 0o600  # the mode of a new file that tells of persons


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    After an error (a full disk, say) the old file is still there and the temporary one is gone.
    The file's permissions follow the umask. `private`, for what tells of persons: a new file is
    its owner's alone (mode 0600), and one that is replaced keeps the mode that it was given.

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
        yield temporary
        # Here, not before: whoever wrote it may have made a new file, for its owner alone.
        temporary.chmod(_private_mode(path) if private else 0o666 & ~_umask())
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise HyperFusionError(
            f"{path}: cannot be written: {error.strerror or error}; "
            "what stood there before is unchanged",
            code="output-cannot-be-written",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that replaces the folder `path`; see `replacing_folders`."""
    path = Path(path)
    with replacing_folders([path]) as scratch:
        new = scratch / path.name
        new.mkdir()
        yield new


@contextlib.contextmanager
def replacing_folders(paths: Sequence[Path], place: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder; what the block makes there by the names of `paths` replaces them.

    All of them or none: after an error, in the block or while they are moved, everything is as it
    was before and the temporary folder is gone. One that the block does not make is removed. A
    link is replaced itself, and what it points to is left alone. `place`: where the temporary
    folder stands, on the file system of `paths`; by default beside the first.

    Raises:
        HyperFusionError: a folder cannot be written, or the disk is full.
    """
    place = place or paths[0].parent
    scratch: Path | None = None
    try:
        place.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{paths[0].name}.", dir=place))
        yield scratch
        _swap(scratch, paths)
        shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        left = scratch is not None and _has_old(scratch, paths)
        raise HyperFusionError(
            f"{paths[0]}: cannot be written: {error.strerror or error}; what stood there before is "
            + (f"in {scratch}" if left else "unchanged"),
            code="output-cannot-be-written",
        ) from error
    finally:
        # Nobody loses what stood there before and could not be put back.
        if scratch is not None and not _has_old(scratch, paths):
            shutil.rmtree(scratch, ignore_errors=True)


def _swap(scratch: Path, paths: Sequence[Path]) -> None:
    """Move what stands at `paths` into `scratch`, and the new ones out of it."""
    moved: list[tuple[Path, Path]] = []  # (from, to)

    def move(source: Path, target: Path) -> None:
        source.rename(target)  # on one file system: nothing is copied, nothing can fill up
        moved.append((source, target))

    try:
        for path in paths:
            if os.path.lexists(path):
                move(path, _old(scratch, path))
        for path in paths:
            if (scratch / path.name).exists():
                move(scratch / path.name, path)
    except BaseException:
        for source, target in reversed(moved):
            target.rename(source)
        raise


def _old(scratch: Path, path: Path) -> Path:
    return scratch / f"{path.name}.old"


def _has_old(scratch: Path, paths: Sequence[Path]) -> bool:
    return any(os.path.lexists(_old(scratch, path)) for path in paths)


def cache_folder() -> Path:
    """Where this program keeps what it can make again: `$XDG_CACHE_HOME/hyperfusion_rt`.

    Without a home it is a place that cannot be written. A relative folder is none: it would be
    another one wherever the program is started.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        folder = Path()
    return (folder if folder.is_absolute() else Path(os.devnull)) / "hyperfusion_rt"


def _private_mode(path: Path) -> int:
    """0600, or what somebody has chosen for the file that stands there."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return PRIVATE


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def shown(text: str) -> str:
    """`text` as UTF-8 can hold it: a byte of a file's name that is none reads `\\udcfc`.

    So are such names written wherever a person, or another program, reads them.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write `text` as UTF-8 (see `shown`), whole or not at all; `private` as of `replacing`."""
    with replacing(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def stamp(path: Path) -> str | None:
    """What tells a file from a changed or another one without reading it; None if it is not there.

    Size, times of change (content, and inode: a file that was moved here differs) and inode, as
    version control systems take them; of a folder, a hash of its files' names and stamps.
    """
    try:
        found = path.stat()
        if not stat.S_ISDIR(found.st_mode):
            return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_ino}"
        inside = [f"{p.name}:{stamp(p)}" for p in sorted(path.iterdir()) if p.is_file()]
        return hashlib.sha256("\n".join(inside).encode()).hexdigest()
    except OSError:
        return None


def stamp_of(paths: Sequence[Path]) -> str | None:
    """The `stamp` of several files as one; None if one is not there."""
    found = [stamp(path) for path in paths]
    return None if None in found else "+".join(map(str, found))


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
