"""What the reference pages say of things that carry no description in the code."""

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
    ("`options`", "All options of the run, as [here](options.md#cohortoptions)."),
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
        "`case` (subject, session, status, code, reason, values, spread, seconds, quality, scan, "
        "stamp), `row` (hash of the cells that the network reads)",
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
