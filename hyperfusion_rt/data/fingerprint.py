"""What tells whether two files hold the same image, whatever they are called or how packed."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Literal

import numpy as np

from hyperfusion_rt.config import Frozen, Preprocessing
from hyperfusion_rt.data.table_file import normalise_id
from hyperfusion_rt.data.volumes import Volume, kept_slices

# Voxels that are compared: those of two scans of one head differ in hundreds.
_VOXELS = 4096
# Where all but so many have one value, as in a mask of a small lesion, another image may be alike.
_TELLING = 64
_SEED = 20240927
_SALT, _KEPT = 16, 8  # bytes
Seen = Literal["", "id", "scan", "both"]


def fingerprint(volume: Volume, preprocessing: Preprocessing) -> str:
    """A hash of the shape and of 4096 voxels at fixed pseudo-random places, in hexadecimal.

    Empty where too few of them differ from the rest to tell one image from another.

    Of the values, as float32: another data type with the same values has the same fingerprint, and
    so has a copy that was renamed, unpacked or packed again. Only slices are looked at that
    `read_volume` keeps for this preprocessing: one study's preprocessing, one fingerprint.
    """
    shape = volume.voxels.shape
    low, high = kept_slices(volume.affine, shape[2], preprocessing)
    places = np.random.Generator(np.random.PCG64(_SEED)).random((_VOXELS, 3))
    i, j, k = (places * (*shape[:2], high - low)).astype(np.intp).T
    found = volume.voxels[i, j, k + low].astype(np.float64)
    with np.errstate(all="ignore"):  # numbers beyond float32, NaN: they have a fingerprint, too
        # + 0: of the two zeros, one.
        values = (volume.slope * found + volume.inter + 0.0).astype("<f4")
    if _VOXELS - np.unique(values, return_counts=True)[1].max() < _TELLING:
        return ""
    digest = hashlib.blake2b(str(shape).encode(), digest_size=16)
    digest.update(values.tobytes())
    return digest.hexdigest()


class TrainingCases(Frozen):
    """Salted hashes of the subjects' ids and of the scans that a network was trained on.

    Of the training and validation parts of every member. They tell whether a given case was among
    them, and list none.
    """

    salt: str
    subjects: tuple[str, ...]
    scans: tuple[str, ...]

    @classmethod
    def of(cls, subjects: Iterable[str], fingerprints: Iterable[str]) -> TrainingCases:
        """With a new salt."""
        salt = secrets.token_hex(_SALT)
        return cls(
            salt=salt,
            subjects=tuple(sorted({_hashed(salt, normalise_id(name)) for name in subjects})),
            scans=tuple(sorted({_hashed(salt, text) for text in fingerprints if text})),
        )

    def seen(self, subject: str, fingerprints: Collection[str] = ()) -> Seen:
        """Whether a case was among them, by its `id`, its `scan` or `both`; else empty."""
        known = _hashed(self.salt, normalise_id(subject)) in self._subjects
        same = any(_hashed(self.salt, text) in self._scans for text in fingerprints if text)
        return "both" if known and same else "id" if known else "scan" if same else ""

    @cached_property
    def _subjects(self) -> frozenset[str]:
        return frozenset(self.subjects)

    @cached_property
    def _scans(self) -> frozenset[str]:
        return frozenset(self.scans)


def _hashed(salt: str, text: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + text.encode()).hexdigest()[: 2 * _KEPT]
