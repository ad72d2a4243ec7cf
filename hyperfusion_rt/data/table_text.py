"""From a table's bytes to records of cells: encoding, separator, quotes."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from hyperfusion_rt.errors import TableError

# What no text holds: control characters but for tabs and line ends.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_HIGH_RUN = re.compile(r"[^\x00-\x7f]{3}")
# Excel's first line `sep=;`: it names the separator and is no header.
_NAMED_SEPARATOR = re.compile(r'"?sep=([^\r\n])"?[^\S\r\n]*(?=[\r\n]|\Z)', re.IGNORECASE)
# Excel's "Unicode text" begins with such a mark. UTF-32's begins with UTF-16's: it comes first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# (line where the record starts, its cells)
Record = tuple[int, list[str]]


def read_records(path: Path) -> tuple[str, list[Record]]:
    """The separator, and every record that is not blank.

    Raises:
        TableError: unreadable, not text, or broken quoting.
    """
    text = _decode(path)
    named = _NAMED_SEPARATOR.match(text)
    if named:
        separator, text = (
            named[1],
            text[named.end() :],
        )  # a blank line stays: lines keep their number
    else:
        separator = _separator(text)
    try:
        return separator, list(_records(text, separator))
    except _QuotingError as error:
        raise TableError(
            f"{path}, {error}; check the quotes near that line", code="table-quotes-broken"
        ) from None


class _QuotingError(Exception):
    """What the CSV reader found, with the line."""


def _decode(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise TableError(f"{path}: no such file", code="table-not-found") from None
    except OSError as error:
        raise TableError(
            f"{path}: cannot be read: {error.strerror or error}", code="table-unreadable"
        ) from None
    advice = "save the table as 'CSV UTF-8' and try again"
    if raw.startswith(b"PK\x03\x04"):
        raise TableError(
            f"{path}: is a spreadsheet or an archive, not text; {advice}", code="table-not-text"
        )
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8-sig")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise TableError(
                f"{path}: begins as {encoding.upper()} text, but does not go on so; {advice}",
                code="table-not-text",
            ) from None
        line = raw.count(b"\n", 0, error.start) + 1
        place = f"{path}, line {line}: byte {error.start} is neither UTF-8 nor Windows-1252"
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError:
            raise TableError(f"{place}; {advice}", code="table-not-text") from None
        # Almost any bytes decode as Windows-1252. Western text has lone accented letters; runs of
        # them are another code page (Cyrillic, Chinese, ...) or no text at all.
        if _HIGH_RUN.search(text):
            raise TableError(f"{place}; {advice}", code="table-not-text") from None
    control = _CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        code = ord(control.group())
        raise TableError(
            f"{path}, line {line}: is not text (control character {code}); {advice}",
            code="table-not-text",
        )
    return text


def _records(text: str, separator: str, *, strict: bool = True) -> Iterator[Record]:
    """Each record that is not blank."""
    # With strict=False an unclosed quote would swallow the rest of the file without a word.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _QuotingError(f"line {line}: {error}") from None
        if any(cell.strip() for cell in cells):
            yield line, cells


def _separator(text: str) -> str:
    """The separator under which most of the first rows are as wide as the header."""
    best, best_score = ",", (0, 1)
    for separator in "\t;,":
        try:
            widths = [len(c) for _, c in islice(_records(text, separator, strict=False), 50)]
        except _QuotingError:
            continue
        if not widths or widths[0] == 1:
            continue
        score = (widths.count(widths[0]), widths[0])
        if score > best_score:
            best, best_score = separator, score
    return best
