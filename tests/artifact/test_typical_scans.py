"""What features of scans are usual: distances by hand, the file, a damaged file."""

import numpy as np
import pytest

from hyperfusion_rt.artifact.typical_scans import FILE, Typical, TypicalScans, pooled
from hyperfusion_rt.errors import ArtifactError
from hyperfusion_rt.files import sha256


def vectors(count, features=40, seed=0):
    """Two classes, correlated features of very different sizes."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).normal(size=(5, features))
    classes = np.arange(count) % 2
    found = rng.normal(size=(count, 5)) @ mixing + 0.3 * rng.normal(size=(count, features))
    return (found + 2 * classes[:, None]) * np.logspace(-3, 3, features), classes


def test_usual_scans_lie_near_one_and_odd_ones_far():
    fitted, classes = vectors(400)
    typical = Typical.fit(fitted, classes)
    new = typical.distances(vectors(400, seed=1)[0])
    assert 0.8 < np.median(new) < 1.3
    odd, _ = vectors(20, seed=2)
    odd[:, 0] += 20 * fitted[:, 0].std()  # the smallest feature of all
    assert typical.distances(odd).min() > np.quantile(new, 0.99)
    # Against the correlation, by no more than usual features vary.
    turned, _ = vectors(20, seed=3)
    turned[:, :20] = fitted.mean(0)[:20] - (turned[:, :20] - fitted.mean(0)[:20])
    assert np.median(typical.distances(turned)) > 2 * np.median(new)


def test_a_distance_by_hand():
    means, axes = np.array([[0.0, 0.0], [10.0, 0.0]]), np.array([[1.0], [0.0]])
    typical = Typical(means, np.array([1.0, 2.0]), axes, np.array([4.0]), 0.25)
    # To the second class: (2, 1 / 2): 2² / 4 + 0.5² / 0.25, over 2 features.
    assert typical.distances(np.array([[12.0, 1.0]])) == pytest.approx([1.0])
    assert typical.distances(np.array([[0.0, 0.0]])) == pytest.approx([0.0])


def test_features_that_never_vary_and_few_scans():
    fitted, classes = vectors(12)
    fitted[:, 3] = 5.0
    typical = Typical.fit(fitted, classes)
    assert typical.axes.shape == (40, 4)  # a direction for three scans at most
    assert np.isfinite(typical.distances(fitted)).all()
    other = fitted.copy()
    other[:, 3] = 6.0
    assert typical.distances(other).min() > 10 * typical.distances(fitted).max()


def test_what_is_pooled():
    volume = np.arange(16.0).reshape(1, 2, 2, 2, 2).astype(np.float32)
    features = {"m0.a": volume, "m0.b": np.ones((1, 3), np.float32), "m1.a": volume}
    found = pooled(features, 1)
    np.testing.assert_allclose(found[0, :2], [3.5, 11.5])
    np.testing.assert_allclose(found[0, 2:4], np.arange(8).std())
    assert found.shape == (1, 7)
    assert pooled({"other": volume}, 1).shape == (1, 0)


@pytest.fixture
def stored(tmp_path):
    typical = Typical.fit(*vectors(60))
    content = {"file": FILE, "fitted": 60, "cases": 30, "threshold": 1.2, "false_alarms": 0.04}
    return tmp_path, typical, TypicalScans(sha256=typical.write(tmp_path), **content)


def test_the_file_gives_the_same_distances(stored):
    folder, typical, content = stored
    again = Typical.read(folder, content)
    new = vectors(30, seed=1)[0]
    # The file has float32.
    np.testing.assert_allclose(again.distances(new), typical.distances(new), rtol=1e-4)


def test_a_damaged_file_is_refused(stored):
    folder, _, content = stored
    path = folder / FILE
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="was changed; copy") as error:
        Typical.read(folder, content)
    assert error.value.code == "artifact-damaged"
    path.write_bytes(b"no safetensors")
    with pytest.raises(ArtifactError, match="cannot be read") as error:
        Typical.read(folder, content.model_copy(update={"sha256": sha256(path)}))
    assert error.value.code == "artifact-damaged"
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing") as error:
        Typical.read(folder, content)
    assert error.value.code == "artifact-incomplete"
    outside = content.model_copy(update={"file": f"../{FILE}"})
    with pytest.raises(ArtifactError, match="is missing"):
        Typical.read(folder, outside)
