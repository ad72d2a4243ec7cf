"""What a file is that is no scan, told from its name and first bytes, and what to do with it."""

from __future__ import annotations

from pathlib import Path

# The longest start that `name_of` looks at.
START = 200
# (first bytes, ending, what it is, what to do). A packed file may have lost its ending, and an
# ending may lie: either is enough.
_PACKED = (
    (b"\x28\xb5\x2f\xfd", ".zst", "Zstandard (zst)", "zstd -d"),
    (b"BZh", ".bz2", "bzip2 (bz2)", "bunzip2"),
    (b"\xfd7zXZ\x00", ".xz", "xz", "unxz"),
    (b"\x1f\x9d", ".z", "compress (Z)", "uncompress"),
    (b"PK\x03\x04", ".zip", "zip", "unzip"),
    (b"7z\xbc\xaf\x27\x1c", ".7z", "7-Zip (7z)", "7z x"),
    (b"\x1f\x8b", "", "gzip twice", "gunzip"),
)
_OTHER = (
    (b"version https://git-lfs", "a Git LFS pointer, not the scan itself", "run: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the scan itself", "run: datalad get"),
    (b"NRRD", "an NRRD file", "convert it to .nii.gz"),
    (b"\x89HDF", "an HDF5 or MINC file", "convert it to .nii.gz"),
    (b"CDF\x01", "a MINC file", "convert it to .nii.gz"),
    (b"<!doctype html", "a web page, such as of a failed download", "download it again"),
    (b"<html", "a web page, such as of a failed download", "download it again"),
)


def name_of(path: Path, start: bytes) -> str | None:
    """What the file is, and what to do; None where neither its name nor its `start` says it."""
    name = path.name.lower()
    for magic, ending, kind, command in _PACKED:
        if start.startswith(magic) or (ending and name.endswith(ending)):
            return f"packed with {kind}; unpack it first: {command} {path.name}"
    for magic, kind, advice in _OTHER:
        if start.lower().lstrip().startswith(magic.lower()):
            return f"is {kind}; {advice}"
    if b"/annex/objects/" in start:  # a relative link, as a file
        return "is a git-annex pointer, not the scan itself; run: datalad get"
    if start[128:132] == b"DICM":
        return "is a DICOM file; put the series into a folder, and read it with `source` raw"
    if name.endswith((".hdr", ".img")):
        return "is part of a .hdr/.img pair; convert the pair to .nii.gz"
    if len(start) >= START and not any(start):
        return "holds nothing but zeros: a copy that was cut off; copy it again"
    return None


def gone_annex(path: Path) -> bool:
    """Whether `path` is a link of git-annex whose content is not here."""
    try:
        return "annex/objects" in str(path.readlink())
    except OSError:
        return False
