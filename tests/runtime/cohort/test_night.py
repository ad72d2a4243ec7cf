"""A cohort overnight: kills, full disks, shards, formats, limits, kept features, a Ray cluster."""

import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.files import stamp
from hyperfusion_rt.runtime.cohort.journal import read_journal

CASES = 150


@pytest.fixture(scope="module")
def night(session_cohort, session_artifact, tmp_path_factory):
    """A cohort of many names on few scans, and its undisturbed predictions."""
    root = tmp_path_factory.mktemp("night")
    (root / "scans").mkdir()
    shutil.copytree(session_artifact, root / "base.hfrt")
    scans = sorted((session_cohort / "scans").iterdir())
    with open(session_cohort / "data.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    subject = next(iter(rows[0]))
    with open(root / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for n in range(CASES):
            writer.writerow({**rows[n % len(rows)], subject: f"N{n:03d}"})
            shutil.copy(scans[n % len(scans)], root / "scans" / f"N{n:03d}.nii.gz")
    done = infer(root, "--out", "expected.csv")
    assert done.returncode == 0, done.stderr
    return root


def command(*options: object) -> list[str]:
    start = [sys.executable, "-m", "hyperfusion_rt.cli", "infer", "scans", "--tabular", "data.csv"]
    return [*start, "--engine", "native", "--explain", "none", *map(str, options)]


def infer(root: Path, *options: object, **more) -> subprocess.CompletedProcess:
    return subprocess.run(command(*options), cwd=root, capture_output=True, text=True, **more)


def table(path: Path) -> dict[str, dict[str, str]]:
    """Subject → its line without the times; each subject once."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    found = {row["subject"]: {k: v for k, v in row.items() if k != "seconds"} for row in rows}
    assert len(found) == len(rows)
    return found


def values(path: Path) -> dict[str, tuple[float, ...]]:
    """Subject → all bits of its numbers."""
    return {p.subject: (*p.values, p.spread) for p in read_journal(path).predictions}


@pytest.mark.slow
def test_twenty_kills_lose_and_repeat_nothing(night):
    rng = random.Random(3)
    path = night / "killed.csv.journal"
    killed, progress = 0, []
    for _ in range(60):
        process = subprocess.Popen(
            command("--out", "killed.csv", "--resume", "--threads", 1),
            cwd=night,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = path.stat().st_size if path.exists() else 0
        while process.poll() is None and not (path.exists() and path.stat().st_size > before):
            time.sleep(0.002)  # it starts
        time.sleep(rng.uniform(0, 0.35))
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += process.returncode == -signal.SIGKILL
        progress.append(len(read_journal(path).cases))
        if killed == 20:
            break
        if process.returncode == 0:  # done before it was killed: begin again
            path.unlink()
    assert killed == 20
    assert len(set(progress)) > 5  # the kills met it at work
    done = infer(night, "--out", "killed.csv", "--resume")
    assert done.returncode == 0, done.stderr
    assert table(night / "killed.csv") == table(night / "expected.csv")
    assert values(path) == values(night / "expected.csv.journal")
    cases = [line for line in path.read_bytes().splitlines() if line.startswith(b'{"case"')]
    assert len(cases) == CASES


@pytest.mark.slow
def test_a_killed_run_is_reported_and_not_overwritten(night):
    process = subprocess.Popen(command("--out", "k.csv", "--threads", 1), cwd=night)
    path = night / "k.csv.journal"
    while process.poll() is None and not (path.exists() and b'"case"' in path.read_bytes()):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    again = infer(night, "--out", "k.csv")
    assert again.returncode == 1
    assert "did not finish" in again.stderr
    assert "--resume" in again.stderr
    done = infer(night, "--out", "k.csv", "--resume")
    assert done.returncode == 0
    assert "ended without a word (killed, out of memory, or the machine stopped)" in done.stderr
    assert "were done before" in done.stdout
    record = json.loads((night / "k.csv.run.json").read_text())
    assert 0 < record["taken_over"] < CASES
    assert table(night / "k.csv") == table(night / "expected.csv")


@pytest.mark.slow
def test_an_interrupted_run_writes_what_is_done(night):
    process = subprocess.Popen(
        command("--out", "i.csv", "--threads", 1), cwd=night, stderr=subprocess.PIPE
    )
    path = night / "i.csv.journal"
    while process.poll() is None and not (path.exists() and b'"case"' in path.read_bytes()):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert b"continue with --resume" in process.communicate()[1]
    assert process.returncode == 130
    rows = table(night / "i.csv")
    assert len(rows) == CASES
    assert any(row["reason"] == "not tried: interrupted before this case" for row in rows.values())
    assert infer(night, "--out", "i.csv", "--resume").returncode == 0
    assert table(night / "i.csv") == table(night / "expected.csv")


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_can_be_continued(night):
    limit = 20_000  # bytes in a file: the journal stops in the middle of a line

    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    full = infer(night, "--out", "full.csv", preexec_fn=small)
    assert full.returncode == 1
    assert "full.csv.journal: cannot be written" in full.stderr
    assert "make room, then continue with --resume" in full.stderr
    assert not (night / "full.csv").exists()
    kept = len(read_journal(night / "full.csv.journal").cases)
    assert 0 < kept < CASES
    done = infer(night, "--out", "full.csv", "--resume")
    assert done.returncode == 0
    assert f"{kept} were done before" in done.stdout
    assert table(night / "full.csv") == table(night / "expected.csv")


@pytest.mark.slow
def test_every_night_only_what_is_new(night, tmp_path):
    root = tmp_path / "more"
    shutil.copytree(night, root, symlinks=True)
    assert infer(root, "--out", "expected.csv").returncode == 0
    expected = table(root / "expected.csv")
    (root / "scans" / "N007.nii.gz").write_bytes(b"damaged")
    os.utime(root / "scans" / "N008.nii.gz")
    first = infer(root, "--resume", "--out", "expected.csv")
    assert first.returncode == 3
    assert "1 predicted" in first.stdout  # N008, whose file was touched
    assert f"{CASES - 2} were done before" in first.stdout
    rows = table(root / "expected.csv")
    assert "damaged" in rows["N007"]["reason"] or "neither" in rows["N007"]["reason"]
    assert {s: r for s, r in rows.items() if s != "N007"} == {
        s: r for s, r in expected.items() if s != "N007"
    }
    shutil.copy(night / "scans" / "N007.nii.gz", root / "scans")
    again = infer(root, "--resume", "--out", "expected.csv")
    assert again.returncode == 0
    assert table(root / "expected.csv") == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--batch", 1), 0),
        (("--batch", 7), 0),
        (("--threads", 1), 0),
        (("--threads", 1, "--batch", 3, "--feature-cache", "fc1"), 0),
        (("--max-memory", "2G"), 0),
    ],
)
def test_the_same_bits_in_any_batch_with_any_threads(night, options, status):
    done = infer(night, "--out", "b.csv", "--force", *options)
    assert done.returncode == status, done.stderr
    assert table(night / "b.csv") == table(night / "expected.csv")
    assert values(night / "b.csv.journal") == values(night / "expected.csv.journal")


def test_alone_and_among_others(night):
    done = infer(night, "--out", "one.csv", "--subject", "N011", "--subject", "sub-N012")
    assert done.returncode == 0
    rows = table(night / "one.csv")
    expected = table(night / "expected.csv")
    assert rows == {name: expected[name] for name in ("N011", "N012")}


@pytest.mark.slow
def test_shards_merge_to_the_whole(night, hfrt):
    for n in (1, 2, 3):
        done = infer(night, "--out", "s.csv", "--shard", f"{n}/3")
        assert done.returncode == 0
        assert f"s.shard-{n}-of-3.csv" in done.stdout
    parts = [table(night / f"s.shard-{n}-of-3.csv") for n in (1, 2, 3)]
    assert min(len(part) for part in parts) > CASES / 6
    status, _, err = hfrt(night, "merge", *[f"s.shard-{n}-of-3.csv" for n in (1, 2)])
    assert (status, "of 3 shards, 3 is missing" in err) == (1, True)
    path = night / "s.shard-2-of-3.csv.journal"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b'{"end"')])
    status, _, err = hfrt(night, "merge", ".", "--out", "merged.csv")
    assert status == 1
    assert "shard 2/3 has not finished" in err
    assert "--shard 2/3 --resume" in err
    path.write_bytes(whole)
    status, _, err = hfrt(night, "merge", ".", "--out", "merged.csv", "--report", "m.html")
    assert status == 0
    # What is said is of warnings only.
    assert all("warning" in line or "more" in line for line in err.splitlines())
    assert table(night / "merged.csv") == table(night / "expected.csv")
    assert (night / "m.html").exists()
    shutil.copy(path, night / "t.shard-1-of-3.csv.journal")
    status, _, err = hfrt(night, "merge", ".", "t.shard-1-of-3.csv")
    assert status == 1
    assert "given twice" in err
    (night / "t.shard-1-of-3.csv.journal").unlink()


@pytest.mark.slow
def test_merge_takes_the_last_run_of_one_table(night, tmp_path, hfrt):
    root = tmp_path / "two"
    (root / "scans").mkdir(parents=True)
    shutil.copytree(night / "base.hfrt", root / "base.hfrt")
    for n in range(8):
        shutil.copy(night / "scans" / f"N{n:03d}.nii.gz", root / "scans")
    lines = (night / "data.csv").read_text().splitlines()
    (root / "data.csv").write_text("\n".join(lines[:9]) + "\n")
    for n in (1, 2):
        assert infer(root, "--out", "s.csv", "--shard", f"{n}/2").returncode == 0
    (root / "data.csv").write_text("\n".join([lines[0], *lines[2:9]]) + "\n")  # N000 withdrew
    assert infer(root, "--out", "s.csv", "--shard", "1/2", "--resume").returncode in (0, 3)
    status, _, err = hfrt(root, "merge", ".")
    assert (status, "they have another table" in err) == (1, True)
    assert infer(root, "--out", "s.csv", "--shard", "2/2", "--resume").returncode in (0, 3)
    status, _, err = hfrt(root, "merge", ".")
    assert status == 3  # N000's scan has no row now
    rows = table(root / "predictions.csv")
    assert len(rows) == 8
    assert rows["N000"]["status"] == "error"
    assert "no row" in rows["N000"]["reason"]
    status, _, err = hfrt(root, "merge", ".", "--out", "s.shard-1-of-2.csv")
    assert (status, "would write over what is read" in err) == (1, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "scans.csv", "--report", "scans.csv.journal"), "is --out, or of it"),
        (("--out", "p.xlsx"), "must end in .csv, .tsv, .parquet, .jsonl"),
        (("--report", "scans"), "is a folder"),
        (("--resume", "--force"), "choose one"),
        (("--derivative", "d", "--shard", "1/2"), "leave out --shard"),
        (("--derivative", "d"), "is no BIDS dataset"),
        (("--workers", "2"), "need --executor ray"),
    ],
)
def test_options_that_cannot_be(night, hfrt, options, message):
    status, _, err = hfrt(night, "infer", "scans", "--tabular", "data.csv", *options)
    assert status == 1
    assert message in err


def test_a_table_that_goes_away_meanwhile(cohort, hfrt, monkeypatch):
    from hyperfusion_rt.runtime import predictor as module

    run = module.run_pipeline

    def gone(*args, **kwargs):
        (cohort / "data.csv").unlink()
        return run(*args, **kwargs)

    monkeypatch.setattr(module, "run_pipeline", gone)
    status, _, err = hfrt(cohort, "infer", "scans", "--tabular", "data.csv", "--engine", "native")
    assert status == 0
    # What is said is of warnings only.
    assert all("warning" in line or "more" in line for line in err.splitlines())
    assert json.loads((cohort / "predictions.csv.run.json").read_text())["inputs"]["table_sha256"]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3"])
def test_a_shard_that_cannot_be(night, hfrt, text):
    status, _, err = hfrt(
        night, "infer", "scans", "--tabular", "data.csv", "--out", "n.csv", "--shard", text
    )
    assert status == 1
    assert "write it as 2/8" in err


@pytest.mark.slow
def test_formats(cohort, hfrt):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: no Parquet was written")
    import pyarrow.parquet as pq

    (cohort / "scans" / "BAD.nii.gz").write_bytes(b"x")
    for name in ("p.csv", "p.tsv", "p.jsonl", "p.parquet"):
        status, _, _ = hfrt(cohort, "infer", "scans", "--tabular", "data.csv", "--out", name)
        assert status == 3
    expected = values(cohort / "p.csv.journal")
    lines = [json.loads(line) for line in (cohort / "p.jsonl").read_text().splitlines()]
    rows = pq.read_table(cohort / "p.parquet").to_pylist()
    assert [list(row) for row in rows[:1]] == [list(row) for row in lines[:1]]
    for found in (lines, rows):
        numbers = {
            row["subject"]: (row["p_CN"], row["p_MCI"], row["p_AD"], row["member_spread"])
            for row in found
            if row["status"] == "ok"
        }
        assert numbers == expected  # all bits
    with open(cohort / "p.tsv", newline="") as file:
        assert len(list(csv.DictReader(file, delimiter="\t"))) == len(lines)
    record = json.loads((cohort / "p.csv.run.json").read_text())
    assert record["inputs"]["table_sha256"]
    assert record["counts"]["ok"] == 8
    assert {"numpy", "nibabel"} <= set(record["packages"])
    assert record["machine"]["processor"]
    assert record["command"][1] == "infer"


def test_without_pyarrow_it_says_so_before_the_work(cohort, hfrt, monkeypatch):
    from hyperfusion_rt.runtime.outputs import table as output

    monkeypatch.setattr(output.importlib.util, "find_spec", lambda name: None)
    status, _, err = hfrt(
        cohort,
        "infer",
        "scans",
        "--tabular",
        "data.csv",
        "--out",
        "p.parquet",
        "--engine",
        "native",
    )
    assert status == 1
    assert "pip install 'hyperfusion_rt[parquet]'" in err
    assert not (cohort / "p.parquet.journal").exists()


@pytest.mark.parametrize(
    ("options", "failed"), [(("--fail-fast",), 1), (("--max-errors", 2), 3), ((), 8)]
)
def test_stopping_after_errors(cohort, hfrt, options, failed):
    for scan in sorted((cohort / "scans").iterdir()):
        scan.unlink()
        scan.write_bytes(b"spoilt")
    status, _, _ = hfrt(cohort, "infer", "scans", "--tabular", "data.csv", *options)
    assert status == 3
    rows = table(cohort / "predictions.csv").values()
    assert sum(row["status"] == "error" for row in rows) == failed
    stopped = [row for row in rows if row["status"] == "not-tried"]
    assert len(stopped) == 8 - failed
    assert all(row["reason"].startswith("not tried: the run was stopped") for row in stopped)
    record = json.loads((cohort / "predictions.csv.run.json").read_text())
    assert record["ending"] == ("stopped" if stopped else "finished")


@pytest.mark.slow
def test_memory_that_is_allowed_is_kept(night, tmp_path):
    import nibabel as nib

    big = np.zeros((400, 400, 300), np.int16)
    affine = np.array([[0.5, 0, 0, -100], [0, 0.5, 0, -120], [0, 0, 0.5, -80], [0, 0, 0, 1]])
    nib.Nifti1Image(big, affine).to_filename(tmp_path / "N003.nii.gz")
    code = """
import sys
from pathlib import Path
from hyperfusion_rt.runtime.cohort.infer import infer
from hyperfusion_rt.runtime.options import CohortOptions
limit = int(float(sys.argv[1]) * 2**20)
options = CohortOptions(engine="native", force=True, out="m.csv", max_memory=limit)
result = infer([Path(sys.argv[2])], Path("data.csv"), options)
status = Path("/proc/self/status").read_text()
peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
print(result.summary["ok"], peak / limit, result.failed[0].reason if result.failed else "")
"""

    def run(mib: float, scans: Path = night / "scans") -> subprocess.CompletedProcess:
        start = [sys.executable, "-c", code, str(mib), str(scans)]
        return subprocess.run(start, cwd=night, capture_output=True, text=True)

    least = run(1)
    assert "take" in least.stderr
    assert "before any scan; allow more" in least.stderr
    taken = float(least.stderr.split("engine take ")[1].split(" MiB")[0].replace(",", ""))
    refused = run(taken + 12, tmp_path / "N003.nii.gz")
    assert "N003.nii.gz: needs" in refused.stdout
    assert "and `max_memory` leaves" in refused.stdout
    enough = run(taken + 12)
    ok, share, *_ = enough.stdout.split()
    assert int(ok) == CASES
    assert float(share) < 1


@pytest.mark.parametrize("text", ["0", "x", "4Q", "-1G", "G"])
def test_memory_that_cannot_be(night, hfrt, text):
    arguments = ("infer", "scans", "--tabular", "data.csv", "--out", "n.csv")
    status, _, err = hfrt(night, *arguments, f"--max-memory={text}")
    assert status == 1
    assert "write it as 4G" in err


@pytest.mark.parametrize("engine", ["native", "onnx"])
def test_kept_features_give_the_same_numbers(cohort, engine, monkeypatch):
    from hyperfusion_rt.runtime import case_input as module

    def predict(cache=None):
        opened = hyperfusion_rt.load(cohort / "base.hfrt", engine=engine, feature_cache=cache)
        return {p.subject: p for p in opened.predict(cohort / "scans", cohort / "data.csv")}

    plain, first = predict(), predict(cohort / "cache")
    known = [s for s, p in plain.items() if p.status == "ok"]
    assert len(known) == 8
    for subject in known:
        if engine == "native":
            assert plain[subject].values == first[subject].values
        np.testing.assert_allclose(plain[subject].values, first[subject].values, atol=1e-6)
        assert (plain[subject].warnings, plain[subject].status) == (
            first[subject].warnings,
            first[subject].status,
        )

    def no_reading(*args):
        raise AssertionError("a scan was read")

    monkeypatch.setattr(module, "read_volume", no_reading)
    monkeypatch.setattr(module, "read_file", no_reading)
    again = predict(cohort / "cache")
    assert {s: again[s].values for s in known} == {s: first[s].values for s in known}
    # Another table: other numbers, no scan read.
    text = (cohort / "data.csv").read_text().splitlines()
    rows = list(csv.DictReader(text))
    for row in rows:
        row["AGE"] = "55"
    with open(cohort / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    older = predict(cohort / "cache")
    assert all(older[s].status == "ok" for s in known)
    assert any(older[s].values != first[s].values for s in known)
    monkeypatch.undo()
    fresh = predict(cohort / "cache2")
    assert {s: fresh[s].values for s in known} == {s: older[s].values for s in known}


def test_features_belong_to_the_content(cohort):
    cache = cohort / "cache"
    scans = sorted((cohort / "scans").iterdir())[:2]
    data = cohort / "data.csv"

    def predict():
        opened = hyperfusion_rt.load(cohort / "base.hfrt", engine="native", feature_cache=cache)
        return [p.values for p in opened.predict(scans, data) if p.status == "ok"]

    first = predict()
    contents = [scan.read_bytes() for scan in scans]
    for scan, content in zip(scans, reversed(contents), strict=True):
        scan.unlink()  # a link to the session's file
        scan.write_bytes(content)
    swapped = predict()
    assert swapped != first
    uncached = hyperfusion_rt.load(cohort / "base.hfrt", engine="native")
    assert swapped == [p.values for p in uncached.predict(scans, data) if p.status == "ok"]
    # Another artifact must not find them.
    manifest = Artifact.open(cohort / "base.hfrt").manifest
    other = hyperfusion_rt.load(cohort / "base.hfrt", engine="onnx", feature_cache=cache)
    assert other.identity()["artifact"] == manifest.checksum
    assert other._cache.get(other._cache.digest_of(scans[0], stamp(scans[0]))) is None


def test_a_damaged_cache_says_what_to_do(cohort, hfrt):
    (cohort / "cache").mkdir()
    (cohort / "cache" / "features.sqlite").write_bytes(b"not a database, but long enough" * 99)
    arguments = ("infer", "scans", "--tabular", "data.csv", "--feature-cache", "cache")
    status, _, err = hfrt(cohort, *arguments, "--engine", "native")
    assert status == 1
    assert "features.sqlite: cannot be used" in err
    assert "delete it" in err


def test_an_engine_without_features_says_so(session_run, session_cohort, tmp_path):
    from hyperfusion_rt.export import export_run

    folder = export_run(session_run, tmp_path / "t.hfrt", engines=("torch",)).folder
    with pytest.raises(EngineError, match="use `engine` native or onnx"):
        hyperfusion_rt.load(folder, engine="torch", feature_cache=tmp_path / "c")


def test_an_unreadable_scan_is_a_row(cohort, hfrt, monkeypatch):
    first, second, *_ = sorted((cohort / "scans").iterdir())
    first.unlink()
    first.mkdir()
    read = Path.read_bytes

    def denied(path):
        if path.name == second.name:
            raise PermissionError(13, "Permission denied")
        return read(path)

    # Patched: the suite may run as root, who is never denied.
    monkeypatch.setattr(Path, "read_bytes", denied)
    status, _, _ = hfrt(cohort, "infer", "scans", "--tabular", "data.csv", "--engine", "native")
    assert status == 3
    rows = table(cohort / "predictions.csv")
    assert "cannot be read: Permission denied" in rows[second.name.split(".")[0]]["reason"]


@pytest.mark.slow
def test_ray_with_a_worker_killed(night):
    pytest.importorskip("ray", reason="ray is not installed: the cluster was not tested")
    ray = ("--out", "r.csv", "--executor", "ray", "--workers", 2, "--threads", 1)
    process = subprocess.Popen(
        command(*ray), cwd=night, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    path = night / "r.csv.journal"
    while process.poll() is None and not (path.exists() and b'"case"' in path.read_bytes()):
        time.sleep(0.005)
    actors = [pid for pid, name in commands() if name.startswith("ray::MapWorker")]
    assert actors
    os.kill(actors[0], signal.SIGKILL)
    done = len(read_journal(path).cases)
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 0, out
    assert done < CASES
    assert table(night / "r.csv") == table(night / "expected.csv")
    assert values(path) == values(night / "expected.csv.journal")


def commands() -> list[tuple[int, str]]:
    """Process ids and command lines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found.append((int(folder.name), text))
    return found
