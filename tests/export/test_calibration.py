"""What cases with a known truth say of new ones: which cases, which members, what is fitted."""

import csv
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from hyperfusion_rt.artifact.calibration import Scores
from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.config import TableSpec, preset
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.errors import CohortError, ConfigError, TableError
from hyperfusion_rt.export import export_run
from hyperfusion_rt.export.calibration import Known, _coverage, calibrate, known_of
from hyperfusion_rt.export.certainty import _doubts
from hyperfusion_rt.export.options import ExportOptions
from hyperfusion_rt.metrics import conformal
from hyperfusion_rt.rules import softmax


def rows(count, **columns):
    return [
        Row(f"S{i}", None, i + 2, {name: str(values[i]) for name, values in columns.items()})
        for i in range(count)
    ]


class Study:
    """N cases; `subjects` of each, `parts` by member; the image of case i is i."""

    def __init__(self, subjects, parts, targets, table=None):
        self.cases = [SimpleNamespace(subject=name, files=()) for name in subjects]
        self.rows = table or rows(len(subjects))
        self.targets = np.array(targets, np.float64)
        self.parts = SimpleNamespace(names=lambda member: np.array(parts[member]))

    def images(self, indices):
        return np.array(indices, np.float32).reshape(-1, 1, 1, 1, 1, 1)


class Member:
    width = 1

    def __init__(self, cannot=()):
        self.cannot = cannot

    def encode_row(self, row):
        if row.subject in self.cannot:
            raise TableError("an unknown category", code="table-unknown-category")
        return np.zeros(1, np.float32)


class Linear:
    """Member m answers the number 100 m + i to case i."""

    def __init__(self, members, classes=(), cannot=(), sd=False):
        self.manifest = SimpleNamespace(
            members=[Member(cannot if m == 0 else ()) for m in range(members)],
            preprocessing=SimpleNamespace(boxes=[None]),
            classes=classes,
            combine="mean",
            answers_sd=sd,
        )
        self.count, self.sd = members, sd

    def features(self, images):
        return {"m0.x": images.reshape(len(images), 1)}

    def finish(self, features, rows):
        case = features["m0.x"]
        found = [100 * m + case for m in range(self.count)]
        if self.sd:
            found = [np.concatenate([one, np.full_like(one, 2.0)], 1) for one in found]
        return {"members": np.concatenate(found, 1)}


def test_only_members_answer_that_did_not_learn_from_a_case():
    parts = [
        ["train", "validation", "train", "test", "validation"],
        ["validation", "train", "train", "test", "validation"],
    ]
    study = Study("abcde", parts, [0, 1, 2, 3, 4])
    found = known_of(Linear(2), study, given=False)
    assert found.cases.tolist() == [0, 1, 4]  # not c, which both learned, and not the test part
    # Of a: member 1; of b: member 0; of e: both, their mean.
    assert found.values[:, 0].tolist() == [100, 1, 54]
    assert found.truth.tolist() == [0, 1, 4]
    assert found.sd is None


def test_of_given_cases_all_members_answer():
    parts = [["test"] * 3, ["test"] * 3]
    found = known_of(Linear(2), Study("abc", parts, [0, 1, 2]), given=True)
    assert found.values[:, 0].tolist() == [50, 51, 52]


def test_one_case_of_each_person():
    parts = [["train", "validation", "validation", "validation"]]
    found = known_of(Linear(1), Study(["a", "b", "b", "c"], parts, range(4)), given=False)
    assert found.cases.tolist() == [1, 3]


def test_a_row_that_a_member_cannot_read_is_left_out():
    parts = [["validation"] * 12]
    study = Study([f"S{i}" for i in range(12)], parts, range(12))
    found = known_of(Linear(1, cannot=("S3", "S9")), study, given=False)
    assert found.cases.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]
    assert found.values[:, 0].tolist() == found.cases.tolist()  # answers stay with their cases
    assert known_of(Linear(1), Study("ab", [["train"] * 2], [0, 1]), given=False) is None


def test_deviations_of_members_are_joined():
    found = known_of(Linear(2, sd=True), Study("ab", [["test"] * 2] * 2, [0, 1]), given=True)
    assert found.values[:, 0].tolist() == [50, 51]
    # The variance of the means and the mean variance.
    np.testing.assert_allclose(found.sd, np.sqrt(50**2 + 2**2))


SPEC = preset("ad").tabular
AGES = preset("brain-age").tabular


def known(values, truth, sd=None):
    return Known(
        np.arange(len(truth)),
        np.array(values),
        sd,
        np.array(truth, np.float64),
        np.empty((len(truth), 0)),
    )


def of_classes(count, seed=0, hot=2.0, **columns):
    """Probabilities that are too sure by `hot`, and truths."""
    rng = np.random.default_rng(seed)
    right = softmax(2 * rng.normal(size=(count, 3)))
    truth = (rng.random((count, 1)) > right.cumsum(1)).sum(1)
    manifest = SimpleNamespace(classes=("CN", "MCI", "AD"), table=SPEC, unit="probability")
    sex = np.where(np.arange(count) % 2, "Female", "Male")
    table = rows(count, AGE=rng.uniform(60, 69.9, count).round(1), PTGENDER=sex, **columns)
    study = Study([f"S{i}" for i in range(count)], [["validation"] * count], truth, table)
    return manifest, study, known(conformal.scaled(right, 1 / hot), truth)


def test_classes_have_a_temperature_thresholds_and_groups():
    manifest, study, cases = of_classes(400)
    made = calibrate(manifest, study, cases, given=False)
    assert (made.source, made.cases, made.sex, made.age) == (
        "validation", 400, "PTGENDER", "AGE",
    )  # fmt: skip
    assert made.temperature == pytest.approx(2, rel=0.2)
    assert made.ece[1] < made.ece[0]
    assert set(made.scores.groups) == {"female 60 to 69", "male 60 to 69"}
    assert [len(s) for s in made.scores.groups.values()] == [200, 200]
    values = conformal.scaled(cases.values, made.temperature)
    scores = conformal.class_scores(values, cases.truth.astype(int))
    np.testing.assert_allclose(made.scores.all, np.sort(scores), rtol=1e-5, atol=1e-12)
    held = sum(
        made.coverage[name] * np.sum(cases.truth == c) for c, name in enumerate(made.coverage)
    )
    assert 0.9 <= held / 400 < 0.92


def test_few_cases_are_not_scaled_and_small_groups_have_no_thresholds():
    made = calibrate(*of_classes(39), given=True)
    assert (made.temperature, made.source, made.scores.groups) == (1.0, "given", {})
    assert made.ece[0] == made.ece[1]


def test_a_class_without_cases_and_one_of_few_have_no_coverage():
    manifest, study, cases = of_classes(300)
    keep = np.flatnonzero(cases.truth < 2)[:60]
    two = known(cases.values[keep], cases.truth[keep])
    two = Known(keep, two.values, None, two.truth, two.vectors)
    made = calibrate(manifest, study, two, given=True)
    assert made.coverage["AD"] is None
    assert 0.8 < made.coverage["CN"] <= 1
    assert np.isfinite(made.temperature)


def test_a_threshold_of_0_is_one():
    """A network that is always right: its sets hold one class, and no set holds all."""
    values = np.tile([0.9, 0.1], (40, 1))
    truth = np.zeros(40, int)
    truth[0] = 1
    found = _coverage(values, truth, Scores(all=(0.0,) * 39 + (0.9,)), [""] * 40, ["a", "b"])
    assert found == {"a": 1.0, "b": None}
    values[:20], truth[:20] = [0.4, 0.6], 0
    values[20:], truth[20:] = [0.9, 0.1], 0
    found = _coverage(values, truth, Scores(all=(0.0,) * 40), [""] * 40, ["a", "b"])
    assert found == {"a": 0.5, "b": None}


def of_ages(count, sd=None, target="AGE", unit="years"):
    rng = np.random.default_rng(1)
    age = rng.uniform(50, 90, count)
    predicted = age + 14 - 0.2 * age + rng.normal(0, 3, count)
    spec = TableSpec.model_validate({**AGES.model_dump(), "target": target, "unit": unit})
    manifest = SimpleNamespace(classes=(), table=spec, unit=unit)
    sexes = np.where(np.arange(count) % 2, "F", "M")
    table = rows(count, SEX=sexes, **{target: age.round(2)})
    study = Study([f"S{i}" for i in range(count)], [["validation"] * count], age, table)
    deviation = None if sd is None else np.full(count, sd)
    return manifest, study, known(predicted[:, None], age, deviation)


def test_ages_have_their_bias():
    manifest, study, cases = of_ages(400)
    made = calibrate(manifest, study, cases, given=False)
    bias = made.age_bias
    assert bias.slope == pytest.approx(-0.2, abs=0.05)
    assert bias.intercept == pytest.approx(14, abs=3)
    gaps = np.array(bias.gaps.all)
    assert abs(gaps.mean()) < 1e-4
    assert gaps.std() == pytest.approx(3, rel=0.1)
    np.testing.assert_allclose(np.sort(np.abs(gaps)), bias.sizes.all, atol=1e-4)
    corrected = [bias.corrected(p, t) for p, t in zip(cases.values[:, 0], cases.truth, strict=True)]
    slope, _ = conformal.line(cases.truth, np.array(corrected) - cases.truth)
    assert abs(slope) < 1e-6
    assert set(made.errors.lines) == {"f", "m", ""}
    assert made.highest_level == 400 / 401


def test_ages_that_say_nothing_are_named():
    """Their corrected ages would be the true ones that they were given."""
    manifest, study, cases = of_ages(400)
    manifest.classes, manifest.unit = (), "years"
    assert _doubts(calibrate(manifest, study, cases, given=False), manifest) == []
    constant = known(np.full((400, 1), 70.0), cases.truth)
    (note,) = _doubts(calibrate(manifest, study, constant, given=False), manifest)
    assert "follow the true ones by 0.00 years a year" in note


def test_intervals_are_scaled_by_the_network_s_own_deviation():
    manifest, study, cases = of_ages(50, sd=3.0)
    made = calibrate(manifest, study, cases, given=False)
    plain = calibrate(manifest, study, known(cases.values, cases.truth), given=False)
    np.testing.assert_allclose(np.array(made.scores.all) * 3, plain.scores.all, rtol=1e-4)


@pytest.mark.parametrize(("target", "unit"), [("MMSE", ""), ("AGE_MONTHS", "months")])
def test_other_numbers_have_no_bias_of_age(target, unit):
    made = calibrate(*of_ages(60, target=target, unit=unit), given=False)
    assert made.age_bias is None
    assert calibrate(*of_ages(39), given=False).age_bias is None


# ---- export


@pytest.fixture
def others(session_cohort, tmp_path):
    """20 people of another study: other ids, other scans."""
    root = tmp_path / "others"
    (root / "scans").mkdir(parents=True)
    with open(session_cohort / "data.csv", newline="") as file:
        table = list(csv.DictReader(file))[:20]
    for row in table:
        scan = session_cohort / "scans" / f"{row['subject']}.nii.gz"
        image = nib.load(scan)
        voxels = np.asarray(image.dataobj).copy()
        voxels[voxels > 0] += 1
        row["subject"] = row["subject"].replace("S5", "X")
        nib.save(nib.Nifti1Image(voxels, image.affine), root / "scans" / f"{row['subject']}.nii.gz")

    def write(change=lambda row: row):
        chosen = [change(dict(row)) for row in table]
        with open(root / "data.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(row for row in chosen if row)
        return {"calibration": root / "scans", "calibration_table": root / "data.csv"}

    return write


def test_given_cases_take_the_place_of_the_validation_part(session_run, others, tmp_path):
    # A class that has no case is no mistake: its coverage is not known.
    given = others(lambda row: None if row["DX"] in ("AD", "Dementia") else row)
    made = export_run(session_run, tmp_path / "a.hfrt", engines=["native"], **given)
    calibration = made.manifest.calibration
    assert calibration.source == "given"
    assert calibration.cases < 20
    assert calibration.coverage["AD"] is None
    assert any("fewer than 40 are too few" in note for note in made.notes)
    assert any("too few scans to say which are usual" in note for note in made.notes)
    # Nothing is dropped without a word.
    lost = [note for note in made.notes if note.startswith("calibration: ")]
    assert any("left out" in note and "scan-without-row" in note for note in lost), lost
    text = " ".join((tmp_path / "a.hfrt" / "card.md").read_text().split())
    assert "people, given at export, and not learned from" in text


@pytest.mark.parametrize("hashes", [True, False])
def test_cases_of_the_training_calibrate_nothing(session_run, session_cohort, tmp_path, hashes):
    """Also where the artifact shall carry no hashes of them."""
    training = tmp_path / "scans"
    training.mkdir()
    with open(session_run.folder / "splits.csv", newline="") as file:
        learned = [r["subject"] for r in csv.DictReader(file) if "test" not in r.values()]
    for name in learned[:6]:
        (training / f"{name}.nii.gz").symlink_to(session_cohort / "scans" / f"{name}.nii.gz")
    shutil.copy(session_cohort / "data.csv", tmp_path / "data.csv")
    with pytest.raises(CohortError, match="all of its 6 cases stood in the training") as error:
        export_run(
            session_run, tmp_path / "a.hfrt", engines=["native"], calibration=training,
            calibration_table=tmp_path / "data.csv", no_training_hashes=not hashes,
        )  # fmt: skip
    assert error.value.code == "calibration-none"
    assert not (tmp_path / "a.hfrt").exists()


def test_calibration_needs_scans_and_table(tmp_path, session_run, hfrt):
    with pytest.raises(ConfigError, match="`calibration` and `calibration_table` go together"):
        ExportOptions(calibration=tmp_path)
    status, _, err = hfrt(tmp_path, "export", "--run", session_run.folder, "--calibration", "x")
    assert status == 1
    assert "--calibration and --calibration-table go together: give both" in err


def test_scans_that_are_not_there(session_run, tmp_path):
    (tmp_path / "data.csv").write_text("subject,DX\n")
    with pytest.raises(Exception, match="nowhere") as error:
        export_run(
            session_run, tmp_path / "a.hfrt", engines=["native"], calibration=tmp_path / "nowhere",
            calibration_table=tmp_path / "data.csv",
        )  # fmt: skip
    assert error.value.code


def test_few_validation_cases_are_noted(session_artifact, session_run, tmp_path):
    made = export_run(session_run, tmp_path / "a.hfrt", engines=["native"])
    assert made.manifest.calibration.cases == 16
    assert made.manifest.calibration.temperature == 1.0
    assert [note for note in made.notes if "16 validation cases: fewer than 40" in note]
    assert made.manifest.typical_scans is None
    again = Artifact.open(session_artifact).manifest.calibration
    assert again == made.manifest.calibration  # the same bits
