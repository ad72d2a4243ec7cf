"""What a file among the scans is, without opening it: a scan, another format, or no file at all."""

from __future__ import annotations

import errno
import stat
from functools import lru_cache
from pathlib import Path

from hyperfusion_rt.data.other_files import gone_annex

EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh")

_PACKED = "is packed in a way that is not read; pack it as .nii.gz"
_CONVERT = "is of a format that is not read; convert it to .nii.gz"
_PAIR = "is half of a pair of .hdr and .img; convert the pair to one .nii.gz"
# Brain scans that are not read, by what their names end in, and what to do.
_FOREIGN = {
    **dict.fromkeys((".nii.zst", ".nii.bz2", ".nii.xz", ".nii.lz4", ".nii.z"), _PACKED),
    **dict.fromkeys((".nii.zip", ".nii.7z", ".nii.tar", ".mgh.gz", ".mgz.gz"), _PACKED),
    **dict.fromkeys((".img", ".img.gz"), _PAIR),
    **dict.fromkeys((".nrrd", ".nhdr", ".mnc", ".mif", ".mif.gz"), _CONVERT),
    **dict.fromkeys((".brik", ".brik.gz"), _CONVERT),
}
_ENDINGS = (*EXTENSIONS, *_FOREIGN)
_KINDS = (
    (stat.S_ISFIFO, "is a named pipe, not a file"),
    (stat.S_ISSOCK, "is a socket, not a file"),
    (stat.S_ISBLK, "is a device, not a file"),
    (stat.S_ISCHR, "is a device, not a file"),
)


def is_scan(file: Path) -> bool:
    """Whether a file's name ends as a scan's does."""
    return file.name.lower().endswith(EXTENSIONS)


def stem(path: Path) -> str:
    """A file's name without what it ends in as a scan."""
    return _stem(path.name)


# Each pass over a study's files asks again.
@lru_cache(maxsize=1 << 16)
def _stem(name: str) -> str:
    lower = name.lower()
    extension = next((e for e in _ENDINGS if lower.endswith(e)), "")
    return name[: len(name) - len(extension)]


def foreign(file: Path) -> str | None:
    """Why a brain scan of another format is not read; None for everything else.

    An `.img` is one only with its `.hdr` beside it.
    """
    lower = file.name.lower()
    if not lower.endswith(tuple(_FOREIGN)):
        return None
    ending = next(e for e in _FOREIGN if lower.endswith(e))
    if ending.startswith(".img"):
        headers = [f"{stem(file)}.{kind}" for kind in ("hdr", "hdr.gz")]
        # The usual spelling first: a folder of many pairs is not listed for each of them.
        if not any((file.parent / name).exists() for name in headers):
            names = {name.lower() for name in headers}
            if not any(other.name.lower() in names for other in file.parent.iterdir()):
                return None
    return _FOREIGN[ending]


def not_a_file(path: Path) -> str | None:
    """Why there is no file to read at `path`; None for a file. Nothing is opened."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return broken_link(path) or "is not there any more"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link that leads back to itself"
        return f"cannot be read: {error.strerror or error}"
    return next((text for test, text in _KINDS if test(mode)), None)


def broken_link(path: Path) -> str | None:
    """Where a link leads whose file is not there, and what to do; None if it is no such link."""
    if not path.is_symlink() or path.exists():
        return None
    if gone_annex(path):
        return "has not been fetched by git-annex: run `git annex get` or `datalad get` on it"
    return f"is a link to {path.readlink()}, which is not there"
