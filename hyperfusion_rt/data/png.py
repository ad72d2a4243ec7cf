"""PNG files (ISO/IEC 15948) of 8 bits a channel, and outlines as paths of an SVG."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_COLOUR = {1: 0, 4: 6}  # channels → the header's kind: grey; red, green, blue, alpha


def png(pixels: Bytes) -> bytes:
    """The file of uint8 [rows, columns], grey, or [rows, columns, 4], with alpha."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    rows, columns, *more = pixels.shape
    channels = more[0] if more else 1
    # Every row begins with its filter: 1, each pixel less the one to its left.
    left = np.zeros_like(pixels)
    left[:, 1:] = pixels[:, :-1]
    flat = (pixels - left).reshape(rows, columns * channels)
    filtered = np.hstack([np.ones((rows, 1), np.uint8), flat])
    header = struct.pack(">IIBBBBB", columns, rows, 8, _COLOUR[channels], 0, 0, 0)
    packed = zlib.compress(filtered.tobytes(), 6)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def outline(inside: Mask) -> str:
    """The border of a mask [rows, columns] as a path of an SVG, one unit a pixel."""
    padded = np.pad(inside, 1)
    parts = []
    for turned, draw in ((padded, "M{b} {a}h{n}"), (padded.T, "M{a} {b}v{n}")):
        edges = turned[1:] != turned[:-1]
        for a, row in enumerate(edges):
            steps = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]])))
            parts += [
                draw.format(a=a, b=int(first) - 1, n=int(last - first))
                for first, last in zip(steps[::2], steps[1::2], strict=True)
            ]
    return "".join(parts)
