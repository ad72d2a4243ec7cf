"""The card says what the manifest holds, names nobody, and says what it does not know."""

import csv
import json
import re
import shutil

import pytest

from hyperfusion_rt.artifact.card import Item, card, cell, reporting_items
from hyperfusion_rt.artifact.card_facts import known_failures
from hyperfusion_rt.artifact.description import describe
from hyperfusion_rt.artifact.manifest import Artifact, digest_of
from hyperfusion_rt.artifact.population import GroupFigures, PartCounts, Performance, told
from hyperfusion_rt.errors import ArtifactError
from hyperfusion_rt.export import export_run
from hyperfusion_rt.training.run_folder import Run

HEADINGS = [
    "What it is", "Intended use", "Not a medical device", "Training population",
    "The table's columns", "Images", "Performance", "Calibration", "How sure one answer is",
    "Unlike the training", "Known failures", "Engines", "Licence and citation", "TRIPOD+AI",
    "CLAIM, 2024 update",
]  # fmt: skip


@pytest.fixture
def manifest(session_artifact):
    return Artifact.open(session_artifact).manifest


@pytest.fixture
def moved(session_run, session_cohort, tmp_path):
    """A copy of the run, and of its study beside it: `study(change)` of the table's lines."""
    study = tmp_path / "study"
    study.mkdir()
    for name in ("scans", ".hfrt_cache", "hfrt.yaml"):
        (study / name).symlink_to(session_cohort / name)
    folder = shutil.copytree(session_run.folder, tmp_path / "moved")

    def there(change=lambda lines: lines):
        lines = (session_cohort / "data.csv").read_text().splitlines()
        (study / "data.csv").write_text("\n".join(change(lines)) + "\n")
        (folder / "study.json").write_text(json.dumps({"root": str(study)}))
        return Run.open(folder)

    return there


def test_the_card_of_a_trained_run(session_artifact, session_run, manifest, hfrt, tmp_path):
    text = (session_artifact / "card.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    status, out, _ = hfrt(tmp_path, "inspect", session_artifact, "--card")
    assert (status, out) == (0, text)
    status, out, _ = hfrt(tmp_path, "inspect", session_artifact, "--card", "--json")
    assert json.loads(out) == {"card": text}
    assert f"| scans | 24 | 8 | {session_run.metrics['cases']['test']} |" in text
    assert "40 scans of 40 people" in text
    assert "not a medical device" in text
    age = manifest.members[0].columns[0]
    assert f"| AGE | numeric | {age.low:g} to {age.high:g}, median {age.fill:g} | 0% | 0% |" in text
    assert "| 12a | use of the data | scans: 24 (24 people) for training" in text
    assert "adamw, learning rate" in text
    # A table needs an empty line above it.
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("| ---")]
    assert all(lines[i - 2] == "" for i in starts)


def test_a_card_names_nobody(session_artifact, session_cohort, session_run):
    with open(session_cohort / "data.csv", newline="") as file:
        ids = [row["subject"] for row in csv.DictReader(file)]
    assert len(ids) == 40
    for name in ("card.md", "manifest.json"):
        text = (session_artifact / name).read_text()
        assert not [one for one in ids if one in text]
        assert str(session_cohort) not in text


def test_a_population_tells_no_count_of_few_people(manifest):
    population = manifest.population
    assert (population.cases, population.people) == (40, 40)
    assert [part.cases for part in population.parts] == [24, 8, 8]
    groups = [group for part in population.parts for group in (part.sex, part.age, part.classes)]
    counts = [count for group in groups for count in group.values()]
    assert None in counts
    assert all(count is None or count == 0 or count >= 5 for count in counts)
    for group in groups:
        assert list(group.values()).count(None) != 1  # the others and the sum would tell it
    tested = population.performance
    assert (tested.cases, tested.people) == (8, 8)
    assert all(group.figures == {} for group in (*tested.sex, *tested.age))  # 8 are too few
    assert all(one.cases >= 5 for one in tested.reliability)
    assert sum(one.cases for one in tested.reliability) == 8


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"F": 30, "M": 20}, {"F": 30, "M": 20}),
        ({"F": 30, "M": 0}, {"F": 30, "M": 0}),
        ({"F": 30, "M": 3}, {"F": None, "M": None}),
        ({"a": 1, "b": 1, "c": 30, "d": 9}, {"a": None, "b": None, "c": 30, "d": None}),
        ({"a": 4, "b": 4, "c": 30}, {"a": None, "b": None, "c": 30}),
        ({"a": 3}, {"a": None}),
        ({}, {}),
    ],
)
def test_what_is_told(counts, expected):
    assert told(counts) == expected


def test_cases_of_few_people_are_not_told():
    assert told({"CN": 20, "AD": 9, "MCI": 12}, {"CN": 20, "AD": 3, "MCI": 6}) == {
        "CN": 20, "AD": None, "MCI": None,
    }  # fmt: skip


def test_items_have_their_numbers():
    items = reporting_items()
    tripod = [str(one.item) for one in items["tripod_ai"]]
    assert len(tripod) == len(set(tripod)) == 52
    assert list(dict.fromkeys(re.match(r"\d+", one)[0] for one in tripod)) == [
        str(n) for n in range(1, 28)
    ]
    assert [one.item for one in items["claim_2024"]] == list(range(1, 45))
    assert all(one.answer or one.open for of in items.values() for one in of)


def test_an_item_is_open_where_a_fact_is_missing():
    item = Item(item=1, topic="t", answer="{a} and {b}", open="the rest")
    assert item.said({"a": "1", "b": "2"}) == "1 and 2; open: the rest"
    assert item.said({"a": "1"}) == "open: the rest"
    assert Item(item=1, topic="t", answer="{a}").said({}) == "open: not known of this artifact"


def test_every_fact_of_the_items_is_known_of_a_trained_run(manifest):
    from hyperfusion_rt.artifact.card_facts import facts

    known = facts(manifest)
    for of in reporting_items().values():
        for one in of:
            one.answer.format_map(known)


def test_cells_mean_themselves():
    assert cell("a|b\n<i> *x* [y]") == "a\\|b &lt;i> \\*x\\* \\[y]"


def test_a_card_that_was_edited_does_not_mislead(session_artifact, tmp_path, hfrt):
    folder = shutil.copytree(session_artifact, tmp_path / "a.hfrt")
    before = (folder / "card.md").read_text()
    (folder / "card.md").write_text("# A medical device\n")
    with pytest.raises(ArtifactError, match=r"card\.md: is damaged") as error:
        describe(folder)
    assert error.value.code == "artifact-damaged"
    status, out, _ = hfrt(tmp_path, "inspect", folder, "--card")
    assert (status, out) == (0, before)
    (folder / "card.md").unlink()
    status, _, err = hfrt(tmp_path, "inspect", folder)
    assert status == 1
    assert "card.md: is missing" in err


def test_bad_options_of_the_card(session_artifact, session_run, tmp_path, hfrt):
    status, _, err = hfrt(tmp_path, "inspect", session_artifact, "--card", "--plan")
    assert status == 1
    assert "--card and --plan: choose one" in err
    status, _, err = hfrt(tmp_path, "inspect", session_run.folder, "--card")
    assert status == 1
    assert "not an artifact" in err
    assert "hfrt export" in err


def test_the_card_of_an_older_artifact(session_artifact, tmp_path, hfrt):
    folder = shutil.copytree(session_artifact, tmp_path / "a.hfrt")
    (folder / "card.md").unlink()
    content = json.loads((folder / "manifest.json").read_text())
    content["format_version"] = 7
    del content["population"], content["card"]
    del content["provenance"]["training"], content["provenance"]["augmentation"]
    content["checksum"] = digest_of(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    said = dict(describe(folder).sections["what it is"])
    assert said["trained and tested on"].startswith("not known")
    status, out, _ = hfrt(tmp_path, "inspect", folder, "--card")
    assert status == 0
    assert "Not known: the network was imported, an older version exported it" in out
    assert "What the run says: scans: 24 for training" in out
    assert "| balanced accuracy |" in out
    assert "By sex and by age: not known." in out
    assert "| 25 | training | open: not known of this artifact |" in out


@pytest.mark.slow
def test_the_card_of_an_imported_checkpoint(tmp_path, hfrt):
    from hyperfusion_rt.bench.measure import random_run

    run = random_run("ad", 2, tmp_path / "runs")
    out = tmp_path / "a.hfrt"
    made = export_run(run, out, engines=["native"])
    assert made.manifest.population is None
    assert made.manifest.provenance.training == {}
    (note,) = made.notes
    assert "was not trained here; the artifact does not say whom it was trained on" in note
    text = (out / "card.md").read_text()
    assert "Not known: this artifact carries no figures of a test part." in text
    assert "its figures on new cases are not known" in text
    assert "| x0 | numeric | not known | not known | not known |" in text
    assert "none in training rows" not in text
    open_items = re.search(r"CLAIM.*?(\d+) of 44 are\nopen", text, re.DOTALL)
    assert int(open_items[1]) > 30
    status, _, err = hfrt(tmp_path, "export", "--run", run.folder, "--engine", "native", "--json")
    assert status == 0
    assert err.startswith("note: ")


def test_a_study_that_is_gone(moved, tmp_path, hfrt):
    run = moved()
    shutil.rmtree(tmp_path / "study")
    status, out, err = hfrt(tmp_path, "export", "--run", run.folder, "--engine", "native", "--json")
    assert status == 0
    content = json.loads(out)
    assert content["population"] is None
    (note,) = content["notes"]
    assert str(tmp_path / "study") in note
    assert "export again where the study is as it was" in note
    assert note.split(";")[0] in err
    # How it was trained is the run's own knowledge.
    assert content["provenance"]["training"]["parts"] == 5


@pytest.mark.slow
def test_a_study_that_has_changed(moved, tmp_path):
    def older(lines):
        header = lines[0].split(",")
        cells = lines[1].split(",")
        cells[header.index("AGE")] = "66.6"
        return [lines[0], ",".join(cells), *lines[2:]]

    made = export_run(moved(), tmp_path / "same.hfrt", engines=["native"])
    assert not [note for note in made.notes if "whom it was trained on" in note]
    assert made.manifest.population is not None
    made = export_run(moved(older), tmp_path / "other.hfrt", engines=["native"])
    assert made.manifest.population is None
    assert "the study is not what it was" in made.notes[0]
    assert "resume" not in made.notes[0]
    assert "Not known" in (tmp_path / "other.hfrt" / "card.md").read_text()


def test_known_failures_are_named(manifest):
    """Weak classes, groups that are worse, and classes that were hardly seen."""
    metrics = {
        **manifest.provenance.metrics,
        "balanced_accuracy": 0.7, "balanced_accuracy_95": [0.6, 0.8], "absent": ["MCI"],
        "recall": {"CN": 0.9, "MCI": None, "AD": 0.2}, "chance": 0.5,
    }  # fmt: skip
    classes = {"CN": 0, "MCI": 7, "AD": 92}
    group = {"balanced_accuracy": 0.4, "balanced_accuracy_95": [0.3, 0.5]}
    fine = {"balanced_accuracy": 0.6, "balanced_accuracy_95": [0.4, 0.75]}
    population = manifest.population.model_copy(
        update={
            "parts": (
                PartCounts(name="train", cases=99, people=99, classes=classes),
            ),
            "performance": Performance(
                cases=50, people=50,
                sex=(GroupFigures(name="F", cases=25, figures=group),
                     GroupFigures(name="M", cases=25, figures=fine)),
            ),
        }
    )  # fmt: skip
    provenance = manifest.provenance.model_copy(update={"metrics": metrics})
    found = "\n".join(
        known_failures(
            manifest.model_copy(update={"provenance": provenance, "population": population})
        )
    )
    assert "no test case is of class MCI" in found
    assert "class AD is found less often than by guessing: recall 0.200, chance 0.500" in found
    assert "recall 0.900" not in found
    assert "it is worse for sex F: balanced accuracy 0.400, of all 0.700" in found
    assert "worse for sex M" not in found
    assert "no case of CN" in found
    assert "7 cases of MCI only" in found
    assert "not shown to be better than guessing" not in found


@pytest.mark.slow
def test_the_card_of_a_brain_age(tmp_path):
    from hyperfusion_rt.config import load_config
    from hyperfusion_rt.data.simulate import simulate_cohort
    from hyperfusion_rt.training.train import train

    simulate_cohort(tmp_path / "ages", task="brain-age", subjects=24, seed=1, spacing=2)
    change = {
        "network": {"features": 2},
        "training": {"epochs": 1, "parts": 3, "loss": "gaussian"},
    }
    run = train(load_config(tmp_path / "ages" / "hfrt.yaml", change), tmp_path / "ages", name="r")
    made = export_run(run, tmp_path / "a.hfrt", engines=["native"])
    population = made.manifest.population
    assert [part.cases for part in population.parts] == [8, 8, 8]
    for part in population.parts:
        assert len(part.quantiles) == 5
        assert list(part.quantiles) == sorted(part.quantiles)
        assert part.classes == {}
    assert population.performance.reliability == ()
    text = card(made.manifest)
    target = made.manifest.table.target
    assert f"| {target}: 50% are below |" in text
    assert "years |" in text
    assert "| mean absolute error |" in text
    assert "how often the truth lies within the predicted standard" in text
    assert f"a number, {target} in years, with its standard deviation" in text
