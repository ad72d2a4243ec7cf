"""How sure the answers of a cohort are: table, shards, resume, BIDS; scans unlike training's."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Artifact, digest_of
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.metrics import conformal
from hyperfusion_rt.runtime.cohort.infer import infer
from hyperfusion_rt.runtime.cohort.shards import merge
from hyperfusion_rt.runtime.network import Network
from hyperfusion_rt.runtime.options import CohortOptions, MergeOptions

COMMAND = ("infer", "scans", "--tabular", "data.csv", "--engine", "native", "--explain", "none")
NEW = ["prediction_set", "scan_distance"]


def changed(source, target, of):
    """A scan with other grey values inside the brain."""
    image = nib.load(source)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    brain = voxels > 0
    voxels[brain] = of(voxels[brain])
    nib.save(nib.Nifti1Image(np.rint(voxels).astype(np.int16), image.affine), target)


def noise(values):
    return np.clip(
        values + values.std() * np.random.default_rng(0).normal(size=values.shape), 1, None
    )


@pytest.fixture(scope="module")
def new_people(session_cohort, tmp_path_factory):
    """12 subjects that the artifact was not trained on."""
    root = tmp_path_factory.mktemp("new")
    (root / "scans").mkdir()
    lines = (session_cohort / "data.csv").read_text().replace("S5-", "N-").splitlines()
    (root / "data.csv").write_text("\n".join(lines[:13]) + "\n")
    for n in range(1, 13):
        scan = session_cohort / "scans" / f"S5-{n:04}.nii.gz"
        changed(scan, root / "scans" / f"N-{n:04}.nii.gz", lambda v: v + 1)
    return root


@pytest.fixture
def people(new_people, session_sure, tmp_path):
    """A copy that may be spoilt."""
    root = tmp_path / "people"
    shutil.copytree(new_people, root)
    (root / "base.hfrt").symlink_to(session_sure)
    return root


def table(path, separator=","):
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter=separator))


def older(artifact, folder, version=7, without=("calibration", "typical_scans", "table_summary")):
    """A copy that says less, as one of an older version did."""
    shutil.copytree(artifact, folder)
    content = json.loads((folder / "manifest.json").read_text())
    content["format_version"] = version
    for name in (*without, "population", "card"):
        del content[name]
    content["checksum"] = digest_of(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_the_table_says_how_sure_each_answer_is(people, hfrt, session_sure):
    status, out, _ = hfrt(people, *COMMAND)
    assert status == 0
    rows = table(people / "predictions.csv")
    names = list(rows[0])
    at = names.index("member_spread")
    assert names[at + 1 : at + 3] == NEW
    assert names[at + 3 :] == ["seen", "status", "code", "reason", "warnings", "seconds"]
    m = Artifact.open(session_sure).manifest
    limit = conformal.threshold(np.array(m.calibration.scores.all), 0.9)
    for row in rows:
        values = np.array([[float(row[f"p_{name}"]) for name in m.classes]])
        chosen = np.flatnonzero(conformal.before(values)[0] <= limit + 1e-6)
        assert row["prediction_set"].split("|") == [m.classes[c] for c in chosen]
        assert 0 < float(row["scan_distance"]) < 3
    single = sum("|" not in row["prediction_set"] for row in rows)
    assert f"prediction sets at 0.9: {single} of 12 have one class; " in out
    assert "of 12 hold the truth" in out
    assert "of 12 cases have a scan unlike the training's" in out


def test_probabilities_are_scaled_and_the_members_are_not(people, session_sure):
    predictor = hyperfusion_rt.load(session_sure, engine="native", threads=1)
    cohort = predictor.gather(people / "scans", people / "data.csv")
    images, row = predictor.read(cohort.cases[0])
    found = predictor.network.run(images.images.reshape(1, -1, *images.images.shape[2:]), row[None])
    raw = found["output"].astype(np.float64)
    temperature = predictor.manifest.calibration.temperature
    assert temperature != 1
    expected = raw ** (1 / temperature)
    expected /= expected.sum()
    (first,) = predictor.stream(cohort.cases[:1])
    np.testing.assert_allclose(first.values, expected[0], rtol=1e-6)


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet", "json"])
def test_every_format_has_the_columns(people, hfrt, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    shape = () if ending == "json" else ("--out", f"p.{ending}")
    status, out, _ = hfrt(people, *COMMAND, *shape, *(["--json"] if ending == "json" else []))
    assert status == 0
    if ending == "tsv":
        rows = table(people / "p.tsv", "\t")
    elif ending == "jsonl":
        rows = [json.loads(line) for line in (people / "p.jsonl").read_text().splitlines()]
    elif ending == "parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(people / "p.parquet").to_pylist()
    else:
        rows = json.loads(out)["predictions"]
    assert len(rows) == 12
    names = list(rows[0])
    assert names[names.index("member_spread") + 1 :][:2] == NEW
    assert {name for row in rows for name in row["prediction_set"].split("|")} <= {
        "CN",
        "MCI",
        "AD",
    }
    if ending != "tsv":
        assert all(isinstance(row["scan_distance"], float) for row in rows)


@pytest.mark.slow
def test_another_level_is_not_taken_over(people, hfrt):
    assert hfrt(people, *COMMAND)[0] == 0
    before = table(people / "predictions.csv")
    status, out, _ = hfrt(people, *COMMAND, "--resume")
    assert status == 0
    assert "12 were done before" in out
    same = table(people / "predictions.csv")
    assert [r["prediction_set"] for r in same] == [r["prediction_set"] for r in before]
    status, out, _ = hfrt(people, *COMMAND, "--resume", "--level", "0.2")
    assert status == 0
    assert "done before" not in out
    assert "prediction sets at 0.2: 12 of 12 have one class" in out
    lower = table(people / "predictions.csv")
    assert [r["p_CN"] for r in lower] == [r["p_CN"] for r in before]
    assert any(
        a["prediction_set"] != b["prediction_set"] for a, b in zip(lower, before, strict=True)
    )
    status, out, _ = hfrt(people, *COMMAND, "--resume", "--level", "0.2", "--refuse-ood")
    assert "done before" not in out


def test_shards_of_one_level_are_joined_and_others_are_not(people):
    def shard(index, level):
        options = CohortOptions(
            artifact=people / "base.hfrt", out=people / "p.csv", shard=(index, 2), engine="native",
            level=level, force=True,
        )  # fmt: skip
        infer([people / "scans"], people / "data.csv", options)

    shard(1, 0.8)
    shard(2, 0.5)
    tables = sorted(people.glob("p.shard-*-of-2.csv"))
    with pytest.raises(ConfigError, match="they have another level") as error:
        merge(tables, MergeOptions(out=people / "p.csv"))
    assert error.value.code == "shard-of-another-run"
    shard(2, 0.8)
    result = merge(tables, MergeOptions(out=people / "p.csv"))
    assert {item.certainty.level for item in result.predictions} == {0.8}
    rows = {row["subject"]: row for path in tables for row in table(path)}
    merged = table(people / "p.csv")
    assert len(merged) == 12
    assert all(rows[row["subject"]] == row for row in merged)


def test_a_derivative_describes_the_columns(people, hfrt):
    bids = people / "bids"
    for n in (1, 2):
        folder = bids / f"sub-N000{n}" / "anat"
        folder.mkdir(parents=True)
        name = f"sub-N000{n}_space-MNI152NLin6Asym_T1w.nii.gz"
        shutil.copy(people / "scans" / f"N-000{n}.nii.gz", folder / name)
    description = {"Name": "x", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    (bids / "dataset_description.json").write_text(json.dumps(description))
    rows = (people / "data.csv").read_text().replace("N-", "sub-N").replace(",", "\t").splitlines()
    rows[0] = rows[0].replace("subject", "participant_id")
    (bids / "participants.tsv").write_text("\n".join(rows[:3]) + "\n")
    status, _, err = hfrt(
        people, "infer", "bids", "--tabular", "bids/participants.tsv", "--engine", "native",
        "--derivative", "out", "--level", "0.8",
    )  # fmt: skip
    assert status == 0, err
    sidecar = json.loads((people / "out/sub-N0001/sub-N0001_sessions.json").read_text())
    assert "true one with probability 0.8" in sidecar["prediction_set"]["Description"]
    assert "beyond 1 the scan is unlike" in sidecar["scan_distance"]["Description"]
    assert "calibrated" in sidecar["p_AD"]["Description"]
    (row,) = table(people / "out/sub-N0001/sub-N0001_sessions.tsv", "\t")
    assert row["prediction_set"] != "n/a"
    # As a BIDS App: participants of two levels are not joined in silence.
    app = ("bids-app", "bids", "app")
    assert hfrt(people, *app, "participant", "--engine", "native", "--level", "0.8")[0] == 0
    one = ("--participant-label", "N0001", "--engine", "native", "--level", "0.5")
    assert hfrt(people, *app, "participant", *one)[0] == 0
    status, _, err = hfrt(people, *app, "group")
    assert status == 0
    assert "not all of one level: 0.5, 0.8" in err
    sidecar = json.loads((people / "app/group_predictions.json").read_text())
    assert "that was asked for" in sidecar["prediction_set"]["Description"]


def test_scans_unlike_the_training_s_are_warned_of_and_refused(people, hfrt):
    scans = people / "scans"
    for n, of in ((1, noise), (2, lambda v: v.max() + v.min() - v)):
        changed(scans / f"N-000{n}.nii.gz", scans / f"N-000{n}.nii.gz", of)
    status, out, err = hfrt(people, *COMMAND, "--scan-checks", "off")
    assert status == 0
    rows = {row["subject"]: row for row in table(people / "predictions.csv")}
    for name in ("N-0001", "N-0002"):
        assert float(rows[name]["scan_distance"]) > 1
        assert "the scan is unlike the training's" in rows[name]["warnings"]
    usual = [row for row in rows.values() if row["subject"] not in ("N-0001", "N-0002")]
    far = [row for row in usual if float(row["scan_distance"]) > 1]
    assert len(far) <= 3  # of 10; one in 17 is expected
    assert f"{2 + len(far)} of 12 cases have a scan unlike the training's" in out
    assert "warnings" in err
    status, _, err = hfrt(people, *COMMAND, "--scan-checks", "off", "--refuse-ood")
    assert status == 3
    refused = [r for r in table(people / "predictions.csv") if r["status"] == "error"]
    assert len(refused) == 2 + len(far)
    assert {row["code"] for row in refused} == {"scan-unlike-training"}


def test_the_same_bits_with_and_without_feature_cache(people, session_sure):
    def predicted(**options):
        predictor = hyperfusion_rt.load(session_sure, engine="native", **options)
        found = predictor.predict(people / "scans", people / "data.csv")
        return [(item.subject, item.values, item.certainty) for item in found]

    plain = predicted()
    assert all(sure.distance is not None for _, _, sure in plain)
    cache = people / "cache"
    assert predicted(feature_cache=cache) == plain
    assert predicted(feature_cache=cache) == plain  # from the cache
    assert predicted(batch=5) == plain
    lower = predicted(feature_cache=cache, level=0.3)
    assert [values for _, values, _ in lower] == [values for _, values, _ in plain]
    assert {sure.level for _, _, sure in lower} == {0.3}


def test_features_that_are_not_finite_are_an_error_of_their_case(people, session_sure, monkeypatch):
    predictor = hyperfusion_rt.load(session_sure, engine="native", batch=4)
    whole = Network.features
    poison = {}

    def features(self, images):
        found = {name: array.copy() for name, array in whole(self, images).items()}
        poison.setdefault("first", images[0].copy())
        for index, image in enumerate(images):
            if np.array_equal(image, poison["first"]):
                next(iter(found.values()))[index, 0] = np.nan
        return found

    monkeypatch.setattr(Network, "features", features)
    found = predictor.predict(people / "scans", people / "data.csv")
    (bad,) = [item for item in found if item.status == "error"]
    assert bad.code == "engine-output-not-finite"
    assert "features of the scan are not finite" in bad.reason
    assert all(np.isfinite(item.certainty.distance) for item in found if item.status == "ok")
    assert sum(item.status == "ok" for item in found) == 11


def test_figures_that_are_not_finite_are_no_silent_distance(people, session_sure, monkeypatch):
    from hyperfusion_rt.runtime import case_input

    def figures(images, reference, preprocessing):
        return np.full(10, np.nan)

    monkeypatch.setattr(case_input, "figures_of", figures)
    found = hyperfusion_rt.load(session_sure, engine="native").predict(
        people / "scans", people / "data.csv"
    )
    assert {item.code for item in found} == {"engine-output-not-finite"}


@pytest.mark.parametrize(
    ("level", "says", "code"),
    [("0.99", "16 calibration cases give at most 0.9412", "level-too-high"), ("1.2", "level", "")],
)
def test_levels_that_cannot_be_had(people, hfrt, level, says, code):
    status, out, err = hfrt(people, *COMMAND, "--level", level, "--json")
    assert status in (1, 2)
    assert says in err + out
    assert not code or json.loads(out)["error"]["code"] == code
    assert not (people / "predictions.csv").exists()


def test_an_older_artifact_works_and_says_what_it_lacks(people, hfrt, session_sure):
    (people / "base.hfrt").unlink()
    older(session_sure, people / "base.hfrt")
    status, out, _ = hfrt(people, *COMMAND)
    assert status == 0
    assert "prediction sets" not in out
    rows = table(people / "predictions.csv")
    assert not set(NEW) & set(rows[0])
    status, out, _ = hfrt(people, *COMMAND, "--level", "0.8", "--json")
    assert status == 1
    content = json.loads(out)["error"]
    assert content["code"] == "level-unknown"
    assert content["message"].startswith("--level 0.8: the artifact says nothing of how sure")
    status, _, err = hfrt(people, *COMMAND, "--refuse-ood")
    assert status == 1
    assert "--refuse-ood: base.hfrt: does not say what scans are usual; export it again" in err
    status, out, _ = hfrt(people, "inspect", "base.hfrt")
    assert status == 0
    assert out.count("export again where the study is") == 3
    status, _, err = hfrt(people, "evaluate", "base.hfrt", "scans", "--tabular", "data.csv")
    assert status == 0
    assert "does not say how sure its answers are" in err


def test_an_engine_that_cannot_be_split(people, session_sure, monkeypatch):
    monkeypatch.setattr(
        "hyperfusion_rt.runtime.network.open_parts", _no_parts
    )  # as of TensorRT and torch
    predictor = hyperfusion_rt.load(session_sure, engine="native")
    assert any("does not give a scan's features" in note for note in predictor.notes)
    found = predictor.predict(people / "scans", people / "data.csv")
    assert {item.certainty.distance for item in found} == {None}
    assert {item.certainty.level for item in found} == {0.9}
    with pytest.raises(ConfigError, match="`refuse_ood`: the native engine does not give") as error:
        hyperfusion_rt.load(session_sure, engine="native", refuse_ood=True)
    assert error.value.code == "option-conflict"


def _no_parts(*_):
    from hyperfusion_rt.errors import EngineError

    raise EngineError("cannot be split", code="engine-cannot-split")


def test_a_damaged_file_of_usual_scans_is_refused(people, session_sure):
    folder = shutil.copytree(session_sure, people / "other.hfrt")
    (folder / "typical_scans.safetensors").write_bytes(b"")
    with pytest.raises(HyperFusionError, match="was changed") as error:
        hyperfusion_rt.load(folder, engine="native")
    assert error.value.code == "artifact-damaged"


def test_inspect_says_how_sure_it_is(people, hfrt, session_sure):
    status, out, _ = hfrt(people, "inspect", "base.hfrt")
    assert status == 0
    made = Artifact.open(session_sure).manifest.calibration
    text = " ".join(out.split())
    assert "calibration cases 16 people, of the validation part" in text
    assert "highest level 0.941" in text
    assert f"temperature {made.temperature:.4g}" in text
    assert "usual scans fitted on 24 training scans; threshold" in text
    assert "summary of the table of 32 training rows, 9 columns" in text


def test_evaluate_says_how_often_sets_hold_the_truth(people, hfrt):
    status, out, err = hfrt(people, "evaluate", "base.hfrt", "scans", "--tabular", "data.csv")
    assert status == 0, err
    content = json.loads((people / "evaluation/evaluation.json").read_text())["certainty"]
    rows = table(people / "evaluation/cases.csv")
    held = [row["truth"] in row["prediction_set"].split("|") for row in rows]
    assert content["level"] == 0.9
    assert content["no_set"] == 0
    assert content["all"]["cases"] == 12
    assert content["all"]["coverage"] == pytest.approx(np.mean(held))
    sizes = [len(row["prediction_set"].split("|")) for row in rows]
    assert content["all"]["size"] == pytest.approx(np.mean(sizes))
    assert set(content["groups"]) == {"classes", "sex", "age", "sex_age"}
    assert all(of.get("too_few") for of in content["groups"]["sex_age"].values())
    far = np.mean([float(row["scan_distance"]) > 1 for row in rows])
    assert content["unlike"]["share"] == pytest.approx(far)
    assert "prediction sets at 0.9" in out
    assert "unlike the training's scans:" in out
    page = (people / "evaluation/evaluation.html").read_text()
    assert "Prediction sets at 0.9" in page
    assert "Scans unlike the training&#39;s" in page
    status, _, _ = hfrt(
        people, "evaluate", "base.hfrt", "scans", "--tabular", "data.csv", "--level", "0.5"
    )
    again = json.loads((people / "evaluation/evaluation.json").read_text())["certainty"]
    assert again["level"] == 0.5
    assert again["all"]["size"] <= content["all"]["size"]


@pytest.mark.slow
def test_a_resumed_run_asks_about_its_own_scans_only(people, hfrt):
    command = (*COMMAND[:-1], "table", "--out", "p.csv", "--resume")
    table_of = (people / "data.csv").read_text()
    (people / "data.csv").write_text("\n".join(table_of.splitlines()[:11]) + "\n")
    cached = ("--feature-cache", "kept")
    assert hfrt(people, *command, "--unmatched-scans", "ignore", *cached)[0] == 0
    page = (people / "p.html").read_text()
    assert page.count("What each cell adds") == 10
    assert "an earlier run" not in page
    (people / "data.csv").write_text(table_of)
    assert hfrt(people, *command)[0] == 0
    page = (people / "p.html").read_text()
    assert page.count("What each cell adds") == 2
    assert "10 of them an earlier run predicted" in page
    assert hfrt(people, *command, *cached)[0] == 0
    page = (people / "p.html").read_text()
    assert page.count("What each cell adds") == 12  # their features were kept


def test_what_if_says_that_the_scan_is_unlike_and_refuses_it(people, hfrt):
    scan = people / "scans" / "N-0001.nii.gz"
    changed(scan, scan, noise)
    question = ("what-if", "scans/N-0001.nii.gz", "--tabular", "data.csv", "--scan-checks", "off")
    question = (*question, "--engine", "native", "--vary", "APOE4=0,1,2")
    status, out, err = hfrt(people, *question, "--json")
    assert status == 0
    (said,) = json.loads(out)["warnings"]
    assert said.startswith("the scan is unlike the training's")
    status, _, err = hfrt(people, *question, "--out", "w.csv")
    assert f"warning: N-0001: {said}" in err
    page = (people / "w.html").read_text()
    assert "Warnings: the scan is unlike" in page
    assert "Set: " in page
    status, out, err = hfrt(people, *question, "--refuse-ood")
    assert (status, out) == (1, "")
    assert "the scan is unlike the training's" in err


def manifest_with(artifact, folder, **population):
    """A copy whose population says something else."""
    shutil.copytree(artifact, folder)
    content = json.loads((folder / "manifest.json").read_text())
    content["population"].update(population)
    content["checksum"] = digest_of(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_scans_made_as_none_of_the_training_are_warned_of(people, hfrt, session_sure):
    other = manifest_with(
        session_sure,
        people / "other.hfrt",
        spacing={"T1w": (0.9, 1.0, 1.2)},
        scanners={"Siemens Prisma 3 T": 30},
    )
    for n, model in ((1, "Signa"), (2, "Prisma")):
        made = {"Manufacturer": "GE" if n == 1 else "Siemens", "ManufacturersModelName": model}
        (people / "scans" / f"N-000{n}.json").write_text(
            json.dumps({**made, "MagneticFieldStrength": 3})
        )
    for _ in range(2):  # decoded, then with features that were kept
        status, _, _ = hfrt(people, *COMMAND, "--artifact", other, "--feature-cache", "kept")
        assert status == 0
        one, two, three = table(people / "predictions.csv")[:3]
        said = "voxels of 2 mm are unlike those of the training's scans, of 0.9 to 1.2 mm"
        assert all(said in row["warnings"] for row in (one, two, three))
        assert (
            "the scanner 'GE Signa 3 T' is none of those of the training: Siemens"
            in (one["warnings"])
        )
        assert "scanner" not in two["warnings"] + three["warnings"]
    assert hfrt(people, *COMMAND, "--artifact", session_sure)[0] == 0
    assert not any("voxels" in row["warnings"] for row in table(people / "predictions.csv"))
