"""Which images a folder holds of each subject: one, or several kinds that make channels.

A kind is what files of many subjects have in common: the end of the file's name (`*_FLAIR.nii.gz`),
a whole name (`S01/flair.nii.gz`), or a folder (`FLAIR/S01.nii.gz`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hyperfusion_rt.config import Channel
from hyperfusion_rt.data.bids_dataset import not_searched
from hyperfusion_rt.data.scan_file import is_scan, stem
from hyperfusion_rt.data.scan_search import walk
from hyperfusion_rt.data.table_file import normalise_id

# Files beside the images that are none, or have a time axis.
_NO_IMAGE = re.compile(
    r"(?:^|[_\-.])(?:bold|dwi|sbref|epi|asl|m0scan|angio|phase\d?|mask|brainmask|dseg|probseg|seg|"
    r"segmentation|labels?|aseg|aparc|lesions?|warp|xfm|fieldmap|magnitude\d?)(?:[_\-.]|$)",
    re.IGNORECASE,
)
_T1 = re.compile(r"(?:^|[^a-z0-9])(?:t1|t1w|mprage|mp2rage|spgr|t1_?brain)(?:[^a-z0-9]|$)", re.I)
_ENTITY = re.compile(r"(?:sub|ses|run|acq|rec|space|desc|res|den|ce)-[A-Za-z0-9+]+", re.IGNORECASE)
# Folders in a subject's folder of BIDS, where the file's name says more.
_PLACES = frozenset(("anat", "pet", "func", "dwi", "perf", "fmap"))
# What a brain in MNI space without its skull is often called.
_PREPARED = re.compile("brain|strip|bet|mni|warped", re.IGNORECASE)
# A kind is of at least so many of the subjects.
_MOST = 0.5


@dataclass(frozen=True)
class Images:
    """The kinds of image in a folder.

    `channels`: what the network reads, a T1-weighted one first; empty if there is one kind alone.
    `subjects`: how many have each channel. `others`: further T1-weighted kinds, as globs.
    """

    channels: tuple[Channel, ...] = ()
    subjects: tuple[int, ...] = ()
    others: tuple[str, ...] = ()


def find_images(root: Path, ids: Collection[str], *, alone: bool = False) -> Images:
    """The kinds of image that most subjects have.

    Args:
        ids: of the table's subjects, as `normalise_id` writes them. No file is opened.
        alone: one kind is a channel, too: it is none that is found without being asked for.
    """
    if not root.is_dir():
        return Images()
    found = [file for _, inside, _ in walk(root, not_searched(root)) for file in inside]
    files = [file for file in found if is_scan(file) and not _NO_IMAGE.search(stem(file))]
    owners: dict[Path, str] = {}
    groups: dict[str, list[Path]] = {}
    for file in files:
        below = PurePosixPath(file.relative_to(root).as_posix())
        owner, kind = _split(below, stem(file), ids)
        if owner is not None:
            owners[file] = owner
            groups.setdefault(kind, []).append(file)
    subjects = set(owners.values())
    kinds = {
        kind: group
        for kind, group in groups.items()
        if len({owners[file] for file in group}) >= max(2, _MOST * len(subjects))
    }
    if len(kinds) < (1 if alone else 2):
        return Images()
    patterns = {}
    for kind, group in kinds.items():
        others = [file for other in kinds.values() if other is not group for file in other]
        pattern = _pattern(kind, group, others)
        if pattern is None:
            return Images()
        patterns[kind] = pattern
    t1 = sorted((kind for kind in kinds if _T1.search(kind)), key=_preference)
    chosen = [*t1[:1], *sorted(kind for kind in kinds if kind not in t1)]
    channels = [
        Channel(name=name, files=patterns[kind], t1_weighted=kind in t1)
        for name, kind in zip(_names(chosen), chosen, strict=True)
    ]
    return Images(
        tuple(channels),
        tuple(len({owners[file] for file in kinds[kind]}) for kind in chosen),
        tuple(patterns[kind] for kind in t1[1:]),
    )


def _preference(kind: str) -> tuple[bool, int, str]:
    """Of several T1-weighted images the one without skull in MNI space, then the shortest name."""
    return not _PREPARED.search(kind), len(kind), kind


def _split(below: PurePosixPath, name: str, ids: Collection[str]) -> tuple[str | None, str]:
    """(the subject, the kind) of a file at `below`; None where no subject of the table is named."""
    folders = below.parts[:-1]
    owner, rest = _owner(name, ids)
    if owner is None:
        owner = next((i for part in folders if (i := normalise_id(part)) in ids), None)
        rest = name
    kept = [part for part in folders if normalise_id(part) != owner and not _ENTITY.fullmatch(part)]
    if len(kept) < len(folders):
        kept = [part for part in kept if part.casefold() not in _PLACES]
    ending = "_".join(part for part in rest.split("_") if part and not _ENTITY.fullmatch(part))
    return owner, "/".join([*kept, ending])


def _owner(name: str, ids: Collection[str]) -> tuple[str | None, str]:
    """The longest id that a file's name begins with, and what follows it."""
    bare = normalise_id(name)
    for end in range(len(bare), 0, -1):
        if bare[:end] in ids and (end == len(bare) or bare[end] in "_-."):
            return bare[:end], bare[end:].lstrip("_-.")
    return None, name


def _pattern(kind: str, files: Sequence[Path], others: Sequence[Path]) -> str | None:
    """A glob that all `files` match from the right, and none of the `others`."""
    *folders, ending = kind.split("/")
    suffixes = sorted({file.name[len(stem(file)) :] for file in files})
    suffix = suffixes[0] if len(suffixes) == 1 else ".*"
    tried = []
    if folders:  # what the glob says does not name the subject
        above = "/".join(folders)
        tried += [f"{above}/*_{ending}{suffix}"] if ending else []
        tried += [f"{above}/{'*/' * depth}*{suffix}" for depth in range(3)]
    if ending:
        tried += [f"{ending}{suffix}", f"*_{ending}{suffix}", f"*{ending}{suffix}"]
    else:
        tried.append(f"*{suffix}")
    for pattern in tried:
        if all(f.match(pattern) for f in files) and not any(f.match(pattern) for f in others):
            return pattern
    return None


def _names(kinds: Sequence[str]) -> list[str]:
    """A name for each kind: the end of it that tells them apart, without what all have."""
    parts = [[part for part in re.split(r"[/_\-.]", kind) if part] for kind in kinds]
    shared = set(parts[0]).intersection(*parts[1:]) if parts[1:] else set()
    own = [dict.fromkeys(part for part in each if part not in shared) for each in parts]
    named = ["_".join(each) or "T1w" for each in own]
    return named if len(set(named)) == len(named) else [kind or "T1w" for kind in kinds]
