"""Which subject and session a scan belongs to, by the ids that a table has.

An id is matched whole. Only the name of a file that lies in no subject's folder may have something
behind the id (`AB_T1w.nii.gz`); what is no usual ending there is said.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping

from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_file import stem
from hyperfusion_rt.data.table_file import normalise_id

SEPARATORS = "_-."
_BETWEEN = re.compile(r"[_.-]")
# Every kind of dash, underscore, point and space between the parts of an id.
_LOOSE = re.compile(r"[\s_.\-\u2010-\u2015\u2212]+")
_SESSION = re.compile(r"(?:^|_)ses-([a-z0-9+]+)", re.IGNORECASE)
# An entity of BIDS that says how a scan was made, not whose it is.
_ENTITY = re.compile(
    "(?:ses|acq|run|rec|ce|space|desc|res|den|echo|part|task|label|hemi|mod|inv|flip|mt|dir|proc|"
    "cohort|from|to|mode)-[a-z0-9+]+",
    re.IGNORECASE,
)
# What programs and people write behind an id of a T1-weighted scan.
_ENDING = re.compile(
    r"t1w?|t1weighted|mp2?rage|spgr|fspgr|tfe|anat|anatomical|mri?|smri|nifti|nii|brain|head|scan|"
    r"image|img|vol|volume|bet|hd|bet2|synthstrip|stripped|skullstripped|strip|noskull|ss|masked|"
    r"mni(?:152)?(?:lin|nlin)?\w*|icbm\w*|template|tpl|reg|registered|affine|aff|linear|lin|warp|"
    r"warped|norm|normalised|normalized|flirt|fnirt|ants|n[34]|bfc|biascorrected|corrected|unbiased|"
    r"orig|preproc|preprocessed|processed|final|conformed|reoriented|ras|lpi|iso|"
    r"\d(?:p\d+)?mm|std|to|in|and|3d|2d|sag|ax|cor|[is]\d{4,}",
    re.IGNORECASE,
)


def plain_id(text: str) -> tuple[str, ...]:
    """The parts of an id without what is easily written in another way.

    That is upper and lower case, which separator stands between the parts, zeros in front.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return tuple(part.lstrip("0") or "0" for part in _LOOSE.split(text) if part)


def split(scan: Scan, ids: Collection[str]) -> tuple[str, str]:
    """The subject of `ids` that a scan belongs to, and what follows it in a flat file's name.

    The longest id that the name begins with; the scan's own one if there is none.
    """
    name = scan.subject
    if name in ids or normalise_id(stem(scan.path)) != name:
        return name, ""
    ends = [n for n, character in enumerate(name) if character in SEPARATORS]
    return next(((name[:n], name[n + 1 :]) for n in reversed(ends) if name[:n] in ids), (name, ""))


def shorter(scan: Scan, subject: str, ids: Collection[str]) -> list[tuple[str, str]]:
    """Ids shorter than `subject` that a flat file's name begins with, and what follows them."""
    name = scan.subject
    if normalise_id(stem(scan.path)) != name:
        return []
    ends = [n for n, character in enumerate(name) if character in SEPARATORS]
    return [(name[:n], name[n + 1 :]) for n in ends if n < len(subject) and name[:n] in ids]


def session_of(
    scan: Scan, subject: str, rest: str, sessions: Iterable[str | None]
) -> tuple[str | None, str]:
    """A scan's session, and what of `rest` does not say it.

    The scan's own one, or the one of `sessions` that a folder below the subject's is called, or
    that follows the subject in the file's name (`rest`).
    """
    known = {session for session in sessions if session}
    named = _SESSION.search(rest)
    if scan.session or named:
        return scan.session or normalise_id(named[1] if named else ""), rest
    folders = [normalise_id(part) for part in scan.path.parts[:-1]]
    if subject in folders:
        below = folders[len(folders) - folders[::-1].index(subject) :]
        found = {part for part in below if part in known}
        return (found.pop() if len(found) == 1 else None), rest
    ends = [n for n, character in enumerate(rest) if character in SEPARATORS] + [len(rest)]
    at = next((n for n in reversed(ends) if rest[:n] in known), None)
    return (None, rest) if at is None else (rest[:at], rest[at + 1 :])


def is_usual_ending(rest: str) -> bool:
    """Whether what follows an id in a file's name says how the scan was made, not whose it is."""
    parts = [part for part in re.split(r"[_.]", rest) if part]
    return all(
        _ENTITY.fullmatch(part)
        or all(_ENDING.fullmatch(word) for word in _BETWEEN.split(part) if word)
        for part in parts
    )


def rival(name: str, subject: str, plain: Mapping[tuple[str, ...], Collection[str]]) -> str | None:
    """Another id that the file `name` may mean as well as `subject`: more of the name is like it.

    `plain`: the ids of the table by `plain_id`.
    """
    parts = plain_id(name)
    for n in range(len(parts), len(plain_id(subject)), -1):
        others = [other for other in plain.get(parts[:n], ()) if other != subject]
        if others:
            return others[0]
    return None


def near(name: str, plain: Mapping[tuple[str, ...], Collection[str]], *, flat: bool) -> str:
    """`"; is it '7' there? Leading zeros count"`, or nothing when no id is that close.

    `flat`: the id may also be the beginning of `name`.
    """
    parts = plain_id(name)
    for n in range(len(parts), 0 if flat else len(parts) - 1, -1):
        for other in plain.get(parts[:n], ()):
            if name.lstrip("0").startswith(other.lstrip("0")):
                return f"; is it {other!r} there? Leading zeros count"
            if name.casefold().startswith(other.casefold()):
                return f"; is it {other!r} there? Upper and lower case count"
            return f"; is it {other!r} there? Ids must be spelt alike"
    as_number = [i for i in plain.get((*parts, "0"), ()) if i.endswith(".0")]
    if name.endswith(".0"):
        as_number += plain.get(parts[:-1], ())
    if as_number:
        return f"; is it {as_number[0]!r} there? A spreadsheet has made a number of the id"
    return ""
