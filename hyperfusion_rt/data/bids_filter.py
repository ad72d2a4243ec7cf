"""A filter of BIDS files, as fMRIPrep's `--bids-filter-file`: which T1-weighted files are scans.

    {"t1w": {"acquisition": "mprage", "run": [1, 2], "ceagent": null}}

An entity's value is a text, a number, null (the name does not have the entity), `"*"` (it has it,
whatever the label), or a list of these, of which one must fit. PyBIDS's `Query.NONE`, `Query.ANY`,
`Query.REQUIRED` and `Query.OPTIONAL` are understood as texts, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hyperfusion_rt.data.bids_name import SUFFIX, entities_of, named_by
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_file import stem
from hyperfusion_rt.data.scan_space import PASSED_OVER
from hyperfusion_rt.data.table_file import suggest
from hyperfusion_rt.errors import CohortError, ConfigError
from hyperfusion_rt.files import sha256

KIND = "t1w"  # whose filter is read; a file may have others, `bold` say
_EXTENSION = "extension"
_DATATYPE = "datatype"
# Short names, as files have them, and the long ones of PyBIDS and of the BIDS schema.
_ENTITIES: dict[str, tuple[str, ...]] = {
    "sub": ("subject",),
    "ses": ("session",),
    "sample": (),
    "task": (),
    "acq": ("acquisition",),
    "ce": ("ceagent",),
    "trc": ("tracer",),
    "stain": ("staining",),
    "rec": ("reconstruction",),
    "dir": ("direction",),
    "run": (),
    "mod": ("modality",),
    "echo": (),
    "flip": (),
    "inv": ("inversion",),
    "mt": ("mtransfer",),
    "part": (),
    "proc": ("processing",),
    "hemi": ("hemisphere",),
    "space": (),
    "cohort": (),
    "split": (),
    "chunk": (),
    "seg": ("segmentation",),
    "atlas": (),
    "res": ("resolution",),
    "den": ("density",),
    "label": (),
    "desc": ("description",),
    SUFFIX: (),
    _DATATYPE: (),
    _EXTENSION: (),
}
_SHORT = {name: key for key, longs in _ENTITIES.items() for name in (key, *longs)}
# Their labels are numbers: `run-1` and `run-01` are one.
_COUNTED = ("run", "echo", "flip", "inv", "split", "chunk")
_ABSENT = ("query.none", "<query.none: 1>")
_PRESENT = ("*", "query.any", "query.required", "<query.required: 2>", "<query.any: 2>")
_EITHER = ("query.optional", "<query.optional: 3>")

# What one value wants: a label, True for any label, None for no such entity.
Wanted = str | bool | None


@dataclass(frozen=True)
class BidsFilter:
    """What the names of the scans must say; `wanted` by the entities' short names."""

    path: Path
    wanted: dict[str, tuple[Wanted, ...]]

    def missed(self, scan: Scan) -> str | None:
        """What the scan's name does not say; None where the filter chooses it."""
        file = scan.path
        found = entities_of(file)
        if found is None:
            return "its name is not of the BIDS kind"
        if scan.session is not None:  # its folder may say it
            found.setdefault("ses", scan.session)
        found |= {_EXTENSION: named_by(file).name[len(stem(named_by(file))) :].lstrip(".")}
        found |= {_DATATYPE: "anat"}
        for key, values in self.wanted.items():
            label = found.get(key)
            if not any(_fits(key, label, value) for value in values):
                has = f"{key} is {label!r}" if label else f"no {key}"
                return f"{has}, and {_in_words(values)} is wanted"
        return None

    def takes_suffix(self, file: Path) -> bool:
        """Whether it names suffixes, and `file`'s is one; "any" names none."""
        label = (entities_of(file) or {}).get(SUFFIX)
        named = [value for value in self.wanted.get(SUFFIX, ()) if isinstance(value, str)]
        return any(_fits(SUFFIX, label, value) for value in named)

    @property
    def named(self) -> tuple[str, ...]:
        """The entities of which it wants a label, and not just any."""
        return tuple(k for k, v in self.wanted.items() if any(isinstance(one, str) for one in v))

    def require(self, scans: Sequence[Scan], paths: Sequence[str | Path]) -> None:
        """That it chooses one of `scans`, which are all under `paths`.

        Raises:
            CohortError: it does not.
        """
        missed = [self.missed(scan) for scan in scans]
        if scans and None not in missed:
            where = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
            first = f"{scans[0].path.name}: {missed[0]}"
            raise CohortError(
                f"{where}: `bids_filter` {self.path} chooses none of the {len(scans)} scans here; "
                f"change it or leave it out ({first})",
                code="bids-filter-no-match",
            )

    def settle(self, scan: Scan) -> Scan:
        """`scan`, passed over if it is not chosen."""
        why = self.missed(scan)
        if why is None:
            return scan
        return replace(scan, defect=f"not chosen by {self.path.name}: {why}", code=PASSED_OVER)


def digest_of(path: Path | None) -> str:
    """Which filter it was: of the file's content, empty without one."""
    return "" if path is None else sha256(path)[:12]


def read_filter(path: Path | None) -> BidsFilter | None:
    """The filter of T1-weighted files in the JSON file `path`; none of None.

    Raises:
        ConfigError: it cannot be read, is no JSON object, has no `t1w`, names an entity that there
            is not, or wants a value that is neither text, number, null nor a list of them.
    """
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=_once)
    except OSError as error:
        raise ConfigError(
            f"`bids_filter` {path}: cannot be read: {error.strerror or error}",
            code="bids-filter-unreadable",
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"`bids_filter` {path}: is no JSON: {error}", code="bids-filter-unreadable"
        ) from None
    asked = content.get(KIND) if isinstance(content, dict) else None
    if not isinstance(asked, dict):
        raise _invalid(
            path,
            f'it says nothing of "{KIND}"; write what the names of T1-weighted files must '
            f'say, such as {{"{KIND}": {{"acquisition": "mprage"}}}}',
        )
    wanted: dict[str, tuple[Wanted, ...]] = {}
    for name, value in asked.items():
        key = _SHORT.get(name.lower())
        if key is None:
            raise _invalid(path, f"there is no entity {name!r}{suggest(name, [*_SHORT])}")
        if key in wanted:
            raise _invalid(path, f"{name!r} is the entity {key!r}, which stands there twice")
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, str) and one.lower() in _EITHER for one in values):
            wanted[key] = (True, None)
        else:
            wanted[key] = tuple(_wanted(path, name, key, one) for one in values)
    return BidsFilter(path, wanted)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose names are there once."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands there twice")
        found[name] = value
    return found


def _wanted(path: Path, name: str, key: str, value: Any) -> Wanted:
    """One value as the file says it."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _invalid(
            path,
            f"{name!r} is {json.dumps(value)}; write a text, a whole number, null (not in the "
            'name), "*" (any), or a list of these',
        )
    text = str(value)
    if text.lower() in _ABSENT:
        return None
    if text.lower() in _PRESENT:
        return True
    return text.removeprefix(f"{key}-").lstrip(".")


def _fits(key: str, label: str | None, value: Wanted) -> bool:
    if label is None or value is None:
        return label is None and value is None
    if value is True:
        return True
    text = str(value)
    if key in _COUNTED and label.isdecimal() and text.isdecimal():
        return int(label) == int(text)
    # The program takes T1W for T1w.
    return label.lower() == text.lower() if key in (SUFFIX, _EXTENSION) else label == text


def _in_words(values: Sequence[Wanted]) -> str:
    words = ["none" if v is None else "any" if v is True else repr(v) for v in values]
    return " or ".join(words) or "nothing"


def _invalid(path: Path, text: str) -> ConfigError:
    return ConfigError(f"`bids_filter` {path}: {text}", code="bids-filter-invalid")
