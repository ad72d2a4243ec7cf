"""The errors that users meet. Every message says what, where, and what to do.

A message names a parameter of the function that was called in backticks, as Python spells it:
"`max_memory` 20 MiB: ...". The command line writes its own option there instead (`--max-memory`);
nothing else in the package knows how options are spelt.
"""

from __future__ import annotations

import re
from typing import Any

# Every code, and what it means. A code is stable: programs may branch on it. A message may change.
CODES: dict[str, str] = {
    # scans
    "scan-unreadable": "the scan's file is missing, a folder, or may not be read",
    "scan-read-failed": "the disk or the network failed while the scan's file was read",
    "scan-truncated": "the scan's file ends too early: a copy or a download that was cut off",
    "scan-damaged": "the scan's header or its compressed data is damaged",
    "scan-format-unknown": "the file is neither NIfTI nor MGH",
    "scan-not-3d": "the file holds no single 3D volume",
    "scan-type-unsupported": "the voxels are no real numbers of a usual data type",
    "scan-not-t1": "header or name say that it is no T1 image: labels, a statistic, a phase image",
    "scan-orientation-unknown": "the header does not say where left and right are",
    "scan-affine-invalid": "the header's affine is not that of a brain scan",
    "scan-box-outside": "a box lies (mostly) outside the scan, which may not be in MNI space",
    "scan-not-in-template-space": "where its header puts it, the scan does not look like a brain",
    "scan-not-stripped": "the scan is bright around the brain: its skull is still there",
    "scan-contrast": "the brain is too even or too uneven for a T1-weighted image",
    "scan-unlike-training": "a box does not look like those of the training's scans",
    "scan-not-finite": "voxels inside a box are NaN or infinite",
    "scan-constant": "all voxels have one value: there is no image",
    "scan-name-conflict": "folder and file name disagree about subject or session",
    "scan-space-not-mni": "the scan's name says that it is not in MNI space",
    "scan-folder-unreadable": "a folder below the scans' may not be read",
    # raw scans
    "scan-too-thin": "a raw scan has too few slices for a brain",
    "scan-not-registered": "a raw scan could not be laid on the template well enough",
    "scan-noisy": "a raw scan's signal to noise ratio is too low",
    "scan-mask-alone": "a brain mask without its scan",
    "scan-mask-missing": "there is no brain mask beside a raw scan, although masks were asked for",
    "scan-mask-wrong": "a brain mask does not lie where its scan's brain does",
    "dicom-unreadable": "a DICOM file or series cannot be read",
    "dicom-no-series": "the folder holds no DICOM series of images",
    "dicom-several-series": "the folder holds several DICOM series",
    "dicom-not-mr": "the DICOM series is no MR scan",
    "dicom-not-one-volume": "the DICOM slices do not make one volume",
    "dicom-no-position": "a DICOM slice does not say where it lies",
    "dicom-slices-uneven": "DICOM slices are missing, uneven, or shifted against each other",
    # tables
    "table-missing": "no table was given, and the network reads one",
    "table-not-found": "there is no such table",
    "table-unreadable": "the table may not be read",
    "table-not-text": "the table is a spreadsheet, or text in an unknown encoding",
    "table-quotes-broken": "a quote in the table is not closed, or stands in the wrong place",
    "table-empty": "the table has no header or no row",
    "table-no-subject-column": "no column of the table is known to hold subjects",
    "table-duplicate-column": "two columns of the table have one name",
    "table-ambiguous-column": "two columns may name the subjects, or the sessions",
    "table-missing-column": "the table lacks a column that is needed",
    "table-ragged-row": "a row has more or fewer cells than the header",
    "table-row-without-subject": "a row names no subject",
    "table-duplicate-row": "several rows are of one subject and session",
    "table-not-a-number": "a cell that must hold a number holds something else",
    "table-unknown-category": "a cell holds a value that is not in the list of its column",
    "table-missing-value": "a cell is empty, and nothing can take its place",
    "table-impossible-value": "a number that cannot be: an age of -4 to learn from or as a truth",
    "table-number-unclear": "the point in a column's numbers may separate thousands",
    "table-category-spelling": "one category of a column is spelt in two ways",
    "table-feature-empty": "no training row has a value of this feature",
    "what-if-unknown-column": "the model reads no column of this name",
    "what-if-wrong-values": "what shall vary is no list or range of values, or has too many",
    # how sure
    "level-unknown": "the artifact does not say how sure its answers are",
    "level-too-high": "too few calibration cases for sets and intervals of this level",
    "calibration-none": "no calibration case can be used",
    # cohorts
    "cohort-not-found": "there is no such file or folder of scans",
    "cohort-unreadable": "the folder of scans, or its `.bidsignore`, may not be read",
    "cohort-no-scan": "no scan was found",
    "cohort-bidsignore-invalid": "a line of `.bidsignore` is no pattern",
    "cohort-unknown-id": "a subject that was asked for has neither a scan nor a row",
    "cohort-no-usable-case": "no case is left to train on",
    "cohort-class-missing": "no case has this class, so it cannot be learnt",
    "cohort-target-constant": "the target has one value in all cases: there is nothing to learn",
    "cohort-too-small": "there are too few subjects, in all or of a class, for so many parts",
    "scan-without-row": "no row of the table belongs to the scan",
    "scan-row-left-out": "the scan's row was left out of the table",
    "scan-session-unknown": "the scan's session is unknown, and the table has several",
    "scan-channel-missing": "a case lacks the image of a channel",
    "split-missing": "the given split says nothing of a case",
    "split-invalid": "the given split makes no training, validation and test part",
    "split-subject-twice": "the given split has a subject in two parts",
    "scan-ambiguous": "several scans are of one subject and session",
    "scan-passed-over": "another scan is used: another run or copy, or the one that was chosen",
    "row-without-scan": "no scan was found for the row",
    # evaluation
    "evaluation-no-truth": "no case has a truth that predictions could be compared with",
    "evaluation-all-seen": "every case stood in the training: there is nothing to test with",
    # explanations
    "atlas-unusable": "there is no such atlas, or its volume or its table of names cannot be used",
    # configuration
    "config-not-found": "there is no such configuration file",
    "config-unreadable": "the configuration file may not be read, or is not YAML",
    "config-no-preset": "the configuration does not name its preset",
    "config-unknown-preset": "there is no preset of this name",
    "config-invalid": "a field is unknown, out of range, or contradicts another",
    "config-target-is-feature": "a feature is the target, or holds it",
    # options
    "option-conflict": "two options exclude each other, or one needs another",
    "option-wrong": "there is no such option, or its value is out of range or of another type",
    # models and training
    "device-unavailable": "this machine (or this build of PyTorch) has no such device",
    "model-volume-too-small": "the network needs more voxels along an axis",
    "network-import": "network.import names nothing that makes a network, or it fails",
    "network-unfit": "an imported network takes or gives something else than the study needs",
    "network-changed": "the code or the weights of an imported network are not what they were",
    "network-features": "what the frozen layers of a network make of scans cannot be kept",
    "model-no-output": "a network has no last layer of a known name",
    "model-embedding-invalid": "the embedding does not fit the network, or is not finite",
    "hyperfy-layer-unknown": "a pattern names no layer whose weights can be generated",
    "hyperfy-layer-unfit": "a layer cannot be generated: its weights are shared, or it does more",
    "hyperfy-twice": "the network's layers are generated already",
    "hyperfy-rank": "the rank is not below that of any layer that is named",
    "condition-wrong": "the condition is missing, has another shape, or meets another batch",
    "checkpoint-not-found": "there is no such file of weights",
    "checkpoint-unreadable": "the file does not hold a state dict of tensors alone",
    "checkpoint-not-finite": "a weight is NaN or infinite",
    "checkpoint-mismatch": "the weights are not those of the network that is expected",
    "run-not-found": "the folder is no run, or holds none that has finished",
    "run-unreadable": "a file of the run cannot be read",
    "run-exists": "a run of this name is there already",
    "run-cohort-changed": "the cohort has changed since the run began",
    "run-checkpoint-unreadable": "a run cannot be continued from its last epoch",
    "study-refused": "several things are wrong with a study; the message lists them",
    "training-diverged": "the training loss, or an answer of the network, is not finite",
    "training-process-died": "the process of a training ended without a word",
    "training-peer-lost": "another process of the same training has ended, or cannot be reached",
    "training-processes-differ": "the processes of a training do not see the same data or program",
    "training-too-many-processes": "a training has more processes than a step has samples",
    "tracker-failed": "MLflow or Weights & Biases cannot be reached, or refuses",
    "search-no-result": "no trial of a search reached its end",
    "comparison-no-result": "no training of a comparison has a result",
    # artifacts
    "artifact-ambiguous": "several artifacts are here, and none is named",
    "artifact-changed": "the manifest was edited after it was written",
    "artifact-damaged": "the manifest or a file of the artifact is damaged or cannot be read",
    "artifact-incomplete": "a file that the manifest names is missing",
    "artifact-lacks-engine": "the artifact has no file of this engine",
    "artifact-lacks-summary": "the artifact says nothing of its training table",
    "artifact-missing": "there is no artifact where one is named or looked for",
    "artifact-segments": "the artifact labels voxels where a class or a number is needed, or the "
    "other way round",
    "artifact-too-new": "the artifact is of a newer format: upgrade hyperfusion_rt",
    "artifact-too-old": "the artifact is of an older format, or lacks something: export again",
    # engines
    "engine-build-failed": "the network cannot be built by TensorRT, or not for this GPU",
    "engine-cannot-load": "the engine's library is here, but cannot load or run the file",
    "engine-cannot-split": "the engine does not give a scan's features, which were to be kept",
    "engine-file-damaged": "an engine file is damaged, or no engine file",
    "engine-file-unreadable": "an engine file cannot be opened",
    "engine-file-version": "an engine file is of another format; export the run again",
    "engine-none-runs": "no engine of the artifact runs on this machine",
    "engine-provider-unusable": "ONNX Runtime's provider is not here, or finds no GPU",
    "engine-unknown": "there is no engine, or no ONNX Runtime provider, of this name",
    "engine-wrong-input": "an input is missing, or has another shape than the network reads",
    "engine-wrong-setting": "the engine has no such number of threads, precision or instructions",
    "gpu-failed": "a call of CUDA failed",
    "gpu-missing": "there is no NVIDIA GPU that can be used, or its library cannot be loaded",
    # export
    "bench-no-contender": "no contender is left to time",
    "bench-no-run": "the run behind the artifact is not there, or is another one",
    "import-input": "the input of an imported network is not one image",
    "import-output": "the output of an imported network is not what was said of it",
    "export-precision-unknown": "there is no such precision",
    "export-example": "the example of a network that is compiled does not fit it",
    "export-differs": "what was exported differs from torch in float64; nothing was written",
    "export-exists": "what is to be written exists: choose another place, or replace it",
    "export-network-untraceable": "torch.export cannot trace the network",
    "export-not-onnx": "the network cannot be written as ONNX: it is beyond 2 GB, say",
    "export-place": "an artifact or a model repository cannot be written at this place",
    "export-precision-drifts": "the narrow type changes the results by more than is tolerated",
    "export-run-unfinished": "not every member of the run is trained",
    "export-unsupported-operation": "the network does something that engines cannot do",
    "precision-unsupported": "nothing that is to be made has this precision",
    "repository-invalid": "a model repository in which something does not fit",
    "rule-needs-classes": "the members' answers are combined by a rule for classes, of numbers",
    "serve-name": "a name that a served model cannot have",
    # networks of ONNX files
    "onnx-damaged": "the file is no ONNX file, a damaged one, or breaks ONNX's rules",
    "onnx-input": "an input has an open or impossible shape, or another than is given",
    "onnx-opset": "the file is of another opset than those that are read",
    "onnx-unreadable": "the file, or one beside it that holds its weights, cannot be read",
    "onnx-unsupported": "the network does something that engines cannot do; all of it is named",
    # outputs and runs
    "engine-output-not-finite": "the network gave NaN or infinity; are the inputs plausible?",
    "feature-cache-unusable": "the kept features cannot be read or written",
    "journal-damaged": "the journal is not one, or is of another version",
    "journal-locked": "another process writes the same table",
    "journal-of-another-run": "what is done was done by another artifact, engine or program",
    "journal-unfinished": "the run before did not finish: resume it, or begin anew",
    "not-tried": "the run ended before this case",
    "out-of-budget": "more memory is needed than the run may take",
    "output-cannot-be-written": "the folder cannot be written, or the disk is full",
    "output-exists": "the output is there already, and may not be replaced",
    "output-wrong-name": "the output's name has no known ending, or would replace what is read",
    "ray-failed": "the Ray cluster cannot be reached, or gave up",
    "shard-missing": "not all shards are there and finished",
    "shard-of-another-run": "the shards are not of one run",
    "bids-filter-invalid": "a BIDS filter has no t1w, or an unknown entity or value",
    "bids-description-unreadable": "a dataset's dataset_description.json cannot be read",
    "bids-filter-no-match": "a BIDS filter chooses none of the scans",
    "bids-filter-unreadable": "a BIDS filter may not be read, or is not JSON",
    "bids-label": "ids that are not different as BIDS labels",
    "bids-no-dataset": "the folder is no BIDS dataset, or its table is missing",
    "bids-no-result": "no participant has a result yet, or one cannot be read",
    "bids-other-dataset": "the output folder holds another dataset or another artifact's results",
    "bids-unknown-label": "a participant or session that the dataset does not have",
    # everything
    "folder-gone": "the working folder was deleted, or may not be entered",
    "missing-extra": "an optional package is not installed; the message gives the command",
    "out-of-memory": "there was not enough memory for this case",
    "run-interrupted": "an interrupt (Ctrl-C or SIGTERM) came before there was a result",
    "unexpected": "an error that the program does not know; please report it",
    "usage-wrong": "an unknown command or option, a missing argument, or a value of another type",
}

_PARAMETER = re.compile(r"`([a-z_]+)`")


class HyperFusionError(Exception):
    """Base class: the command line prints it as one line, without a traceback.

    Attributes:
        code: one of `CODES`.
    """

    def __init__(self, message: str, *, code: str = "unexpected") -> None:
        super().__init__(message)
        if code not in CODES:
            raise ValueError(f"{code!r} is not in CODES")
        self.code = code

    @property
    def parameter(self) -> str | None:
        """The parameter that the message speaks of first, if it does."""
        found = _PARAMETER.search(str(self))
        return found[1] if found else None

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross processes: keyword arguments must come along.
        return _again, (type(self), str(self), self.code)


def _again(kind: type[HyperFusionError], message: str, code: str) -> HyperFusionError:
    error = kind.__new__(kind)
    HyperFusionError.__init__(error, message, code=code)
    return error


class ScanError(HyperFusionError):
    """A scan that cannot be used: unreadable, malformed, or not where the box is."""


class TableError(HyperFusionError):
    """A table, or one of its rows, that cannot be used."""


class CohortError(HyperFusionError):
    """Scans and rows that cannot be joined."""


class ConfigError(HyperFusionError):
    """A configuration that is wrong or cannot be found."""


class ArtifactError(HyperFusionError):
    """An artifact that is damaged, incomplete, or of another format version."""


class EngineError(HyperFusionError):
    """An engine that is unknown, not installed, or not in the artifact."""


class MissingExtraError(HyperFusionError):
    """A package that an optional feature needs is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs '{package}', which is not installed: "
            f"pip install 'hyperfusion_rt[{extra}]'",
            code="missing-extra",
        )


def reason_of(error: Exception, where: object) -> tuple[str, str]:
    """(code, one line) for a case that failed, whatever raised.

    An error of ours says it all itself. A package that is missing is no case's fault: every other
    case would fail, too.

    Raises:
        HyperFusionError: a package cannot be imported.
    """
    if isinstance(error, MissingExtraError):
        raise error
    if isinstance(error, ImportError):
        raise HyperFusionError(
            f"the package {error.name or 'that is needed'} cannot be imported: {error}; "
            "install hyperfusion_rt again, with pip",
            code="missing-extra",
        ) from error
    if isinstance(error, MemoryError):
        return "out-of-memory", f"{where}: there was not enough memory for it"
    if isinstance(error, HyperFusionError):
        return error.code, str(error)
    return "unexpected", f"{where}: unexpected {type(error).__name__}: {error}"
