"""What the reference pages say of things that carry no description in the code yet."""

from hyperfusion_rt.runtime.outputs.table import Column

# The columns of raw scans; the last three are one per box.
_PART = "Raw scans only: the part of a box that lies inside the scan, 0 to 1; one column per box"
QUALITY = [
    Column(
        "correlation",
        "number",
        "Raw scans only: Pearson's r of the registered scan and the template inside the brain",
    ),
    Column(
        "overlap",
        "number",
        "Raw scans only: Dice coefficient of the scan's tissue and the template's, 0 to 1",
    ),
    Column("snr", "number", "Raw scans only: signal to noise ratio in white matter"),
    Column("rotation", "number", "Raw scans only: of the head against the template", "degree"),
    Column("scale", "number", "Raw scans only: volume of the brain relative to the template's"),
    *(Column(f"coverage_{box}", "number", _PART) for box in ("left", "right", "brain")),
]

# (field, meaning) of the record of a run.
RUN = [
    ("`program`", "The program and its version."),
    ("`command`", "The command line, as a list."),
    ("`folder`", "The folder in which the command ran."),
    ("`started`, `finished`", "UTC, ISO 8601."),
    ("`seconds`", "From start to end."),
    ("`ending`", "`finished`; `stopped` by `--max-errors` or `--fail-fast`; `interrupted`."),
    ("`artifact`", "Its folder and its name."),
    (
        "`identity`",
        "What the numbers depend on besides scan and row: artifact, engine and its SHA-256, "
        "instruction sets, packages, version, a hash of the code. `--resume` refuses to mix two.",
    ),
    ("`inputs`", "Scans, table, the table's SHA-256, number of cases; or the merged shards."),
    ("`output`", "The table's path and SHA-256."),
    ("`counts`", "How many cases are `ok`, `error` and `skipped`."),
    ("`taken_over`", "How many results an earlier run had made."),
    ("`usage`", "Seconds of work per stage, how busy each was, which one bounds the speed."),
    ("`notes`", "Warnings: an engine that stands in for another, a run that ended without a word."),
    ("`host`", "The machine's name."),
    ("`machine`", "Processor, instruction sets, cores, memory, system, Python."),
    ("`packages`", "Versions of the packages that the numbers may depend on."),
]

# (first key, fields, meaning) of the lines of a journal.
JOURNAL = [
    (
        '`"journal"`',
        "`journal` (format version), `identity`, `artifact`, `shard`",
        "The first line.",
    ),
    ('`"start"`', "`host`, `pid`, `time`", "One for each run that wrote here."),
    (
        '`"case"`',
        "`case` (subject, session, status, reason, values, spread, seconds, quality, scan, stamp), "
        "`row` (hash of the cells that the network reads)",
        "One for each case, as it is done.",
    ),
    (
        '`"end"`',
        "`status`, `cases`, `problems`, `table`",
        "The end of a run. A run that was killed has none.",
    ),
]

EXIT_STATUSES = {
    0: "All well.",
    1: "An error. One line on stderr says what is wrong, where, and what to do.",
    2: "Wrong usage: an unknown option, a missing argument.",
    3: "Some cases failed. The table says which and why; all other predictions stand.",
    130: "Interrupted (Ctrl-C or SIGTERM). Nothing half-made is left. `hfrt infer` has written "
    "what was done; `--resume` goes on.",
}

# model.field → meaning, for fields of `hyperfusion_rt.config` without a description.
FIELDS = {
    "Config.preset": "The preset that the configuration starts from.",
    "Config.task": "CN / MCI / AD from the hippocampi (`ad`), or age from the whole brain.",
    "Config.scans": "The folder with the scans, from where `hfrt.yaml` lies.",
    "Config.table": "The table, from where `hfrt.yaml` lies.",
    "Config.preprocessing": "From a scan to the network's input.",
    "Config.tabular": "Which columns are read, and how.",
    "Config.network": "Which network.",
    "Config.training": "The optimiser and the protocol.",
    "Preprocessing.boxes": "The parts of the brain that the network reads, one after the other.",
    "Preprocessing.shape": "Voxels of a box: left-right, posterior-anterior, inferior-superior.",
    "Preprocessing.spacing": "Size of a voxel, mm.",
    "Preprocessing.orientation": "The axes of a box: right, anterior, superior.",
    "Preprocessing.interpolation": "How a value between voxels is computed.",
    "Preprocessing.normalisation": "The voxels that are not zero get mean 0 and deviation 1.",
    "Preprocessing.min_coverage": "A scan with a smaller part of a box inside it is refused.",
    "Box.name": "Its name in messages and columns.",
    "Box.center": "Its centre, mm of MNI space (right, anterior, superior).",
    "Box.mirror": "Swap left and right, so that one network reads both hippocampi.",
    "TableSpec.features": "The columns that the network reads, in this order.",
    "TableSpec.target": "The column to be predicted.",
    "TableSpec.classes": "Each class, and the target's values that mean it. None: the target is a "
    "number.",
    "TableSpec.stratify": "Columns that should be alike in training, validation and test.",
    "TableSpec.imputer": "How gaps are filled: the training median, or a regression on the other "
    "columns in rounds.",
    "TableSpec.id_column": "The column of subjects. None: found by its usual names.",
    "TableSpec.session_column": "The column of sessions. None: found by its usual names.",
    "Feature.name": "The column's name.",
    "Feature.kind": "A number; a number that may be written as a bound (`>1700`); a category.",
    "Feature.categories": "The values of a category. None: those of the training rows.",
    "NetworkConfig.task": "Which of the two networks.",
    "NetworkConfig.fusion": "How the table enters: generated weights (`hyper`), not at all "
    "(`image`), alone (`tabular`), joined to the features (`concat`), as scale and shift (`film`, "
    "`daft`).",
    "NetworkConfig.features": "f, the channels after the first convolution.",
    "NetworkConfig.embedding": "K, the length of the embedding that generates the weights.",
    "NetworkConfig.bn_momentum": "Momentum of batch normalisation.",
    "TrainingConfig.lr": "Adam's learning rate.",
    "TrainingConfig.weight_decay": "Adam's weight decay.",
    "TrainingConfig.batch_size": "Cases in one step.",
    "TrainingConfig.epochs": "Passes over the training cases.",
    "TrainingConfig.patience": "Stop after so many epochs without a better one. 0: never.",
    "TrainingConfig.class_weights": "A factor of the loss per class.",
    "TrainingConfig.schedule": "The learning rate over the epochs.",
    "TrainingConfig.parts": "Parts of the cohort. The last is the test set.",
    "TrainingConfig.members": "Networks of the ensemble. The validation part rotates.",
    "TrainingConfig.combine": "How the members become one answer.",
    "TrainingConfig.seed": "Of everything that is drawn at random.",
}
