"""What the reference pages say of things that carry no description in the code."""

# (field, meaning) of the record of a run.
RUN = [
    ("`program`", "The program and its version."),
    ("`command`", "The command line, as a list."),
    ("`folder`", "The folder in which the command ran."),
    ("`started`, `finished`", "UTC, ISO 8601."),
    ("`seconds`", "From start to end."),
    ("`ending`", "`finished`; `stopped` by `--max-errors` or `--fail-fast`; `interrupted`."),
    ("`artifact`", "Its folder, its name and its checksum."),
    (
        "`identity`",
        "What the numbers depend on besides scan and row: artifact, engine and its SHA-256, "
        "instruction sets, packages, version, a hash of the code. `--resume` refuses to mix two.",
    ),
    ("`options`", "All options of the run, as [here](options.md#cohortoptions)."),
    ("`inputs`", "Scans, table, the table's SHA-256, number of cases; or the merged shards."),
    ("`output`", "The table's path and SHA-256."),
    ("`counts`", "How many rows of which kind the table has: see below."),
    ("`taken_over`", "How many of the predictions (`ok`) an earlier run had made."),
    ("`usage`", "Seconds of work per stage, how busy each was, which one bounds the speed."),
    ("`notes`", "Warnings: an engine that stands in for another, a run that ended without a word."),
    ("`joined`", "Which columns name subjects and sessions, and how many scans have a row."),
    ("`host`", "The machine's name."),
    ("`machine`", "Processor, instruction sets, cores, memory, system, Python."),
    ("`packages`", "Versions of the packages that the numbers may depend on."),
]

# (file, meaning) of the folder of an explanation.
LABEL_MAPS = (
    (
        "`sub-XX[/ses-YY]/anat/sub-XX[_ses-YY]_dseg.nii.gz`",
        "uint8, on the (first) scan's own grid: the place of each voxel's label, 0 is the "
        "background and all that no box holds.",
    ),
    ("`dseg.tsv`", "`index` and `name` of each label."),
)
CACHE = (
    (
        "`boxes/SETTING/`",
        "The decoded scans of one preprocessing, check of scans and version of the code. One that "
        "no study needs any more may be deleted.",
    ),
    ("`boxes/SETTING/setting.json`", "What the setting is."),
    (
        "`boxes/SETTING/HOST-PROCESS-RANDOM.index`",
        "A line for each scan: a checksum, and JSON: hashes of the files' places, stamps and "
        "content, what the boxes are like or why the scan cannot be used, and where the boxes "
        "lie. Written by one process, and only ever longer.",
    ),
    (
        "`boxes/SETTING/HOST-PROCESS-RANDOM-000.bin`",
        "The boxes, float32 `[N boxes, C channels, D, H, W]` of each scan, at most 2 GiB.",
    ),
    (
        "`features/NETWORK/SCAN.npy`",
        "What the frozen layers of a network make of a scan, float32.",
    ),
)
EXPLANATION = [
    (
        "`SUBJECT[_SESSION]_map.nii.gz`",
        "float32, on the (first) scan's own grid, in the unit of the answer (probability, or the "
        "target's unit). Occlusion: what the answer loses when the cube around the voxel is "
        "hidden, positive where hiding it lowers the answer. Gradients: what a voxel of the "
        "model's box adds. 0 outside the boxes and the brain.",
    ),
    (
        "`SUBJECT[_SESSION]_regions.csv`",
        "With `--atlas`: `region`; `share` of the map's absolute values that lies in it, 0 to 1; "
        "`mean` of the map over it, in the unit of the answer. The largest share first.",
    ),
]

# (file, meaning) of the folder of an evaluation.
ARTIFACT = [
    (
        "`manifest.json`",
        "What the engines compute and from what: preprocessing, the fitted encoder of the table, "
        "classes or unit, versions, figures of the test part, how it was trained, how each engine "
        "was compared, `population` (whom it was trained and tested on, in counts), `calibration`, "
        "`typical_scans`, `table_summary` ([how sure it is](../how-to/how-sure.md)), hashes of "
        "every file and of itself.",
    ),
    (
        "`card.md`",
        "The [model card](../how-to/model-card.md), made from the manifest when it was exported. "
        "`hfrt inspect --card` prints it from the manifest, whatever the file says.",
    ),
    ("`model.native`, `model.onnx`, ...", "The engines' files; of ONNX also trunk and head."),
    ("`typical_scans.safetensors`", "What the network's features of usual scans are."),
    ("`scans.safetensors`", "What scans are compared with: the template, the mean boxes."),
]

EVALUATION = [
    (
        "`evaluation.html`",
        "The page: figures with intervals and chance, confusion, curves, groups, what is not "
        "counted and why. It names no subject.",
    ),
    (
        "`evaluation.json`",
        "`target`, `classes`, `unit`, `counts`, `not_counted` (why, and how many), `figures` "
        "(`NAME_95`: the 95 % interval; `reasons`: why one is null), `groups` by sex and age, "
        "`certainty` (`level`; coverage and size of sets or intervals: `all`, and `groups` by true "
        "class, sex, age, sex and age; `ages` as predicted and corrected; `unlike`: the share of "
        "scans unlike the training's), "
        "`seen_in_training` (no test, with `--include-seen`), `own_test_set`, `notes`, and as in "
        "the record of a run: `artifact`, `identity`, `options`, `inputs`, `machine`.",
    ),
    (
        "`cases.csv`",
        "The columns of the table of predictions, with `truth`; `correct` (yes, no) or `error` "
        "(predicted - true); `sex` and `age`, as the table has them; `counted` (yes, no).",
    ),
]

# (file, meaning) of the folder of a comparison.
COMPARISON = [
    (
        "`comparison.html`",
        "The page: figures with intervals, pairs, curves, confusion, groups, what failed. It names "
        "no subject.",
    ),
    (
        "`comparison.csv`, `.md`, `.tex`",
        "A line per model: every figure with its 95 % interval. The CSV has one for each `set` "
        "(cohort, external). Markdown and LaTeX (booktabs) also have the pairs.",
    ),
    (
        "`pairs.csv`",
        "A line per figure and pair `a`, `b`: `difference` (a - b) with its interval; "
        "`p_resampled_t` over `trainings`; `p` of `test` (permutation, DeLong) over subjects; "
        "`..._holm`: corrected for all pairs of the figure.",
    ),
    ("`groups.csv`", "A line per model and group, by sex and by age: every figure."),
    (
        "`predictions.csv`",
        "Every case as each model predicted it when it was in the test part: `model`, `seed`, "
        "`fold`, `subject`, `session`, `truth`, the answer.",
    ),
    ("`results.json`", "All of it, as `--json` prints it; of each training the main figure."),
    (
        "`comparison.json`",
        "The plan: every model with its configuration, parts, seeds, external test set.",
    ),
    (
        "`cases.csv`, `external_cases.csv`",
        "Truth, sex, age and parts of each case; whether an external one is in the cohort, too.",
    ),
    (
        "`jobs/MODEL-seedK-foldJ/`",
        "Each training, a run folder; `.failed.json` beside it says why it has no result.",
    ),
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
        "stamp, certainty), `row` (hash of the cells that the network reads, as a map reads them, "
        "and of the rules: `scan_checks`, `level`, `refuse_ood`)",
        "One for each case, as it is done.",
    ),
    (
        '`"end"`',
        "`status`, `cases`, `known` (cases that failed before and have not changed), `problems` "
        "(what could not be joined), `table`, `map`, `bids_filter`, `scan_checks`, `level`, "
        "`refuse_ood`, `counts`",
        "The end of a run. A run that was killed has none.",
    ),
]

# (level, code, more fields, meaning) of the lines of a log.
LOG = [
    (
        "`info`",
        "`run-started`",
        "`artifact`, `checksum`, `engine`, `shard`; `counts`: `cases`, `taken_over`, `known`",
        "What is predicted, with which artifact, and how much of it is done already.",
    ),
    ("`warning`", "`run-warning`", "", "What a reader of the whole table should know."),
    (
        "`error`",
        "the case's ([all codes](errors.md))",
        "`subject`, `session`, `scan`",
        "A case that failed, as it happens; none for a failure that is known and unchanged.",
    ),
    (
        "`warning`",
        "`case-warning`",
        "`subject`, `session`, `scan`",
        "What a reader of a prediction that was made now should know.",
    ),
    ("`info`", "`run-ended`", "`ending`, `counts`", "Everything is written."),
    (
        "`critical`",
        "the error's",
        "`exit_status`",
        "The command ended with exit status 1, 2 or 130, without a result.",
    ),
]

# (file, meaning) of the folder of a search.
SEARCH = [
    (
        "`tune.html`",
        "The page: the best trial, all trials, their course, what mattered, what was ended early. "
        "It names no subject, and holds no figure of the test part.",
    ),
    (
        "`best.yaml`",
        "What the best trial changes of `hfrt.yaml`, to be put there.",
    ),
    (
        "`trials.csv`",
        "A line per trial: `state` (`complete`, `pruned`, `diverged`, `failed`, `running`), "
        "`figure` and `loss` of the validation part, `epochs`, `seconds`, the value of each field, "
        "`reason`.",
    ),
    (
        "`trials/trial-0007/`",
        "A [run](../how-to/train.md) each; one that was ended early has no `metrics.json`. A "
        "`.log` beside it holds what its process said, if it said anything.",
    ),
    (
        "`tune.json`",
        "What the search began with: `hfrt.yaml` and what overruled it, the space, the metric, the "
        "pruner, the seed.",
    ),
    ("`study.db`", "Optuna's study, in SQLite: other programs of Optuna open it, too."),
    ("`splits.csv`, `inputs.json`", "As of a run: every trial must have the same cases and parts."),
    ("`lock`, `locks/`", "Who works on which trial. They are empty."),
]
