"""The artifact: a folder `NAME.hfrt/` that inference needs and nothing else.

    manifest.json          what the engines compute, from which inputs, and how that was checked
    card.md                what a reader should know before using it, in words; see `artifact.card`
    model.onnx, ...        one file per engine: all members on all boxes of a case, and what they
                           say together; also in two parts (trunk and head) where an engine keeps
                           these apart

The manifest carries the SHA-256 of every file and of itself. A file that was changed, a manifest
that was edited, and a format that is newer than this program are refused. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from hyperfusion_rt.artifact.calibration import Calibration
from hyperfusion_rt.artifact.population import Population
from hyperfusion_rt.artifact.scan_reference import ScanReference, read_reference
from hyperfusion_rt.artifact.table_summary import TableSummary
from hyperfusion_rt.artifact.typical_scans import Typical, TypicalScans
from hyperfusion_rt.config import (
    OLDER_TASKS,
    Frozen,
    Precision,
    Preprocessing,
    Rule,
    TableSpec,
    Task,
)
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.fingerprint import TrainingCases
from hyperfusion_rt.data.scan_check import Reference
from hyperfusion_rt.errors import ArtifactError
from hyperfusion_rt.files import sha256, write_text

FORMAT_VERSION = 9
# Version 3 had no `scan_reference`, and every scan's background was what is exactly 0. Those to
# 4 knew two tasks, `ad` and `brain-age`, one channel, and no target but ages and classes. Those to
# 5 knew no standard deviations, those to 6 no `table.map`, those to 7 nothing of the training's
# people and table but hashes of the cases, and no card, those to 8 no segmentations.
OLDEST_VERSION = 3
MANIFEST = "manifest.json"
Part = Literal["whole", "trunk", "head", "source", "log"]


class Comparison(Frozen):
    """What was compared at export, at every batch size.

    `largest_difference`: of the members' raw outputs, relative to their scale; at most `tolerance`.
    `drift`: of the result (probability, or a number in the target's unit; of a segmentation the
    part of the voxels that get another label); at most `drift_tolerance`. `by`: what ran: the
    engine itself, or in its place (where there is no GPU) ONNX Runtime with the same graph, or the
    graph with emulated rounding.
    """

    by: Literal["engine", "ONNX Runtime, same graph", "emulated"] = "engine"

    against: str
    cases: int
    real_cases: bool
    batches: tuple[int, ...]
    largest_difference: float
    tolerance: float
    drift: float
    drift_tolerance: float


class Build(Frozen):
    """How a TensorRT engine was built. `batch`: smallest, usual, largest.

    `narrow` operations have the precision; `kept` (layer → its largest number on the calibration
    scans) stay float32 because of their range. `emulated_drift`: of the result, by rounding alone.
    """

    version: str
    batch: tuple[int, int, int]
    workspace_gib: float
    capabilities: tuple[int, ...]
    gpu: str | None
    driver: str | None
    seconds: float
    layers: int
    narrow: int
    kept: dict[str, float]
    emulated_drift: float
    source_sha256: str
    status: Literal["run and compared", "built, not run"]


class EngineFile(Frozen):
    """One file that one engine executes: all members and boxes, or a part of that.

    `whole`: `image [B, N·C, D, H, W], tabular [B, ΣT] → output [B, C], members [B, M·N·C]`, N boxes
    and M members; of a segmentation `output [B, N·L, D, H, W]`, a score for each of L labels.
    `trunk`: `image →` features; `head`: features, tabular → output, members. Of
    TensorRT also `source`, the ONNX file that it was built from and can be built from again, and
    `log`, what the builder said.
    """

    engine: str
    part: Part
    file: str
    sha256: str
    size: int
    precision: Precision
    device: str
    comparison: Comparison
    build: Build | None = None


class Provenance(Frozen):
    """Where the artifact comes from.

    `training`, `augmentation`: how it was trained, of the latter what is not off; empty of older
    artifacts and of imported networks.
    """

    created: str
    run: str
    network: dict[str, Any]
    parameters: int
    gflop: float
    versions: dict[str, str]
    cases: dict[str, int]
    metrics: dict[str, Any]
    training: dict[str, Any] = Field({})
    augmentation: dict[str, Any] = Field({})


class CardFile(Frozen):
    """The card as it was exported."""

    file: str
    sha256: str


class Manifest(Frozen):
    """The content of `manifest.json`. `members` holds one fitted tabular encoder each.

    `unit`: of the answer: `probability`, or that of the target ("" where it has none).
    `labels`: of a segmentation, the first is the background; its answer is each other label's
    volume in ml.
    `answers_sd`: whether members answer `[2]`, a number and its standard deviation; `output` is
    then the mean of each, and what both are together `rules.mixture` says of `members`.
    `target_spread`: the standard deviation of a target that is a number, in the training part.
    `training_cases`: hashes by which a case is known that it was trained on; None of older
    artifacts, and where the export left them out. `table_summary`: what the training table was
    like; `calibration`: how sure its answers are; `typical_scans`: what scans
    are usual; `population`: whom it was trained and tested on;
    all None of older artifacts, of imported networks, and where the study was not at hand.
    """

    format_version: int
    name: str
    task: Task | Literal["segmentation"]
    classes: tuple[str, ...]
    labels: tuple[str, ...] = ()
    unit: str
    answers_sd: bool = False
    target_spread: float | None = None
    preprocessing: Preprocessing
    table: TableSpec
    members: tuple[TabularEncoder, ...]
    combine: Rule
    engines: tuple[EngineFile, ...]
    provenance: Provenance
    scan_reference: ScanReference | None = None
    training_cases: TrainingCases | None = None
    table_summary: TableSummary | None = None
    calibration: Calibration | None = None
    typical_scans: TypicalScans | None = None
    population: Population | None = None
    card: CardFile | None = None
    checksum: str = ""

    @model_validator(mode="before")
    @classmethod
    def _as_before(cls, given: Any) -> Any:
        """The task as older versions called it."""
        if isinstance(given, dict) and given.get("task") in OLDER_TASKS:
            given = {**given, "task": OLDER_TASKS[given["task"]]}
            if given["task"] == "regression" and isinstance(given.get("table"), dict):
                given["table"] = {**given["table"], "unit": given.get("unit", "")}
        return given

    @property
    def compared_in(self) -> str:
        """In what `Comparison.drift` is."""
        return "of the voxels" if self.labels else self.unit

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of a case, as engines take it: `[N·C, D, H, W]`, N boxes of C channels each."""
        prep = self.preprocessing
        return len(prep.boxes) * len(prep.channels), *prep.shape

    def digest(self) -> str:
        """The SHA-256 of everything but the checksum itself."""
        return digest_of(self.model_dump(mode="json"))


def digest_of(content: dict[str, Any]) -> str:
    """The SHA-256 of what a manifest's file holds, but for the checksum itself."""
    signed = {name: value for name, value in content.items() if name != "checksum"}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: its folder and its checked manifest.

    `notes`: of one that was just exported, what it lacks and why.
    """

    folder: Path
    manifest: Manifest
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its folder, and the first digits of its checksum: `demo.hfrt (3f9c2a1b)`."""
        return f"{self.folder} ({self.manifest.checksum[:8]})"

    @classmethod
    def open(cls, folder: Path) -> Artifact:
        """Read and check the manifest of `folder`.

        Raises:
            ArtifactError: not an artifact, damaged, edited, or of a newer format.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(
                f"{folder}: not an artifact (no {MANIFEST}); make one with 'hfrt export'",
                code="artifact-missing",
            ) from None
        except NotADirectoryError:
            raise ArtifactError(
                f"{folder}: a file, not an artifact's folder (NAME.hfrt)", code="artifact-missing"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(
                f"{path}: cannot be read: {error}; export again", code="artifact-damaged"
            ) from None
        version = content.get("format_version") if isinstance(content, dict) else None
        if not isinstance(version, int):
            raise ArtifactError(
                f"{path}: has no format_version; export again", code="artifact-damaged"
            )
        if version < OLDEST_VERSION:
            raise ArtifactError(
                f"{path}: format version {version}, but this program reads {OLDEST_VERSION} to "
                f"{FORMAT_VERSION}; export again",
                code="artifact-too-old",
            )
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"{path}: format version {version}, but this program reads up to {FORMAT_VERSION}; "
                "upgrade hyperfusion_rt",
                code="artifact-too-new",
            )
        try:
            manifest = Manifest.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                f"{path}: damaged at {where}: {first['msg']}", code="artifact-damaged"
            ) from None
        # Of the file, not of what was made of it: older ones lack fields.
        if manifest.checksum != digest_of(content):
            raise ArtifactError(
                f"{path}: changed after it was written (its checksum is wrong); export again",
                code="artifact-changed",
            )
        return cls(folder, manifest)

    def write(self) -> Artifact:
        """Write the manifest, with its checksum, after the files it names."""
        signed = self.manifest.model_copy(update={"checksum": self.manifest.digest()})
        write_text(self.folder / MANIFEST, signed.model_dump_json(indent=2) + "\n")
        return Artifact(self.folder, signed, self.notes)

    def reference(self) -> Reference | None:
        """What scans are compared with; None of older artifacts.

        Raises:
            ArtifactError: its file is missing or was changed.
        """
        stored = self.manifest.scan_reference
        return None if stored is None else read_reference(self.folder, stored)

    def typical(self) -> Typical | None:
        """What features of usual scans are; None where the artifact does not say it.

        Raises:
            ArtifactError: its file is missing or was changed.
        """
        stored = self.manifest.typical_scans
        return None if stored is None else Typical.read(self.folder, stored)

    @property
    def engines(self) -> list[str]:
        """The names of the engines that have a file here, in order, each once."""
        return list(dict.fromkeys(file.engine for file in self.manifest.engines))

    def entry(self, engine: str) -> EngineFile:
        """What the manifest says of the whole network's file of `engine`, which it has."""
        return next(e for e in self.manifest.engines if (e.engine, e.part) == (engine, "whole"))

    def file(self, engine: str, part: Part = "whole") -> Path:
        """The file of `engine` with the whole network, or another part; the hashes of all its files
        are checked.

        Raises:
            ArtifactError: a file is missing or changed, or the artifact lacks this engine.
        """
        entries = [entry for entry in self.manifest.engines if entry.engine == engine]
        if not entries:
            options = " ".join(f"`engines` {name}" for name in (*self.engines, engine))
            raise ArtifactError(
                f"{self.folder}: has no '{engine}' engine, only {', '.join(self.engines)}; "
                f"export again with 'hfrt export {options}'",
                code="artifact-lacks-engine",
            )
        whole = [entry.file for entry in entries if entry.part == part]
        if len(whole) != 1:
            raise ArtifactError(
                f"{self.folder}: the '{engine}' engine has not one file ({part}); export again",
                code="artifact-damaged",
            )
        for entry in entries:
            self._check(entry.file, entry.sha256)
        return self.folder / whole[0]

    def check_card(self) -> None:
        """Check the hash of the card's file, where the artifact has one.

        Raises:
            ArtifactError: it is missing or was changed.
        """
        if (card := self.manifest.card) is not None:
            advice = (
                "hfrt inspect with `card` still prints what the artifact says; write what you add "
                "into a copy outside of the artifact"
            )
            self._check(card.file, card.sha256, f"; {advice}")

    def _check(self, name: str, expected: str, advice: str = "") -> None:
        """Refuse a file that is missing or has another hash."""
        path = self.folder / name
        if path.parent != self.folder:
            raise ArtifactError(
                f"{self.folder}: file name {name!r} leaves the folder", code="artifact-damaged"
            )
        try:
            found = sha256(path)
        except FileNotFoundError:
            raise ArtifactError(
                f"{path}: is missing; copy the whole folder, or export again{advice}",
                code="artifact-incomplete",
            ) from None
        except OSError as error:
            raise ArtifactError(
                f"{path}: cannot be read: {error.strerror}", code="artifact-damaged"
            ) from None
        if found != expected:
            raise ArtifactError(
                f"{path}: is damaged (its SHA-256 is {found[:12]}..., the manifest says "
                f"{expected[:12]}...); copy it again, or export again{advice}",
                code="artifact-damaged",
            )


def only_artifact(folder: Path) -> Path:
    """The only `*.hfrt` folder in `folder`: what is taken where none is named.

    Raises:
        ArtifactError: there is none, or there are several.
    """
    found = sorted(path.parent for path in folder.glob(f"*.hfrt/{MANIFEST}"))
    if not found:
        raise ArtifactError(
            f"{folder}: no artifact (*.hfrt) here; make one with 'hfrt export', or name one with "
            "`artifact`",
            code="artifact-missing",
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ArtifactError(
            f"{folder}: {len(found)} artifacts are here ({names}): "
            "name the one that is meant with `artifact`",
            code="artifact-ambiguous",
        )
    return found[0]
