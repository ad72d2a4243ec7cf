"""Files and folders are replaced whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.files import (
    cache_folder,
    replacing,
    replacing_folder,
    replacing_folders,
    write_text,
)


@pytest.fixture
def folder(tmp_path):
    """One that exists, with a file."""
    path = tmp_path / "here" / "a.hfrt"
    path.mkdir(parents=True)
    (path / "x").write_text("old")
    return path


def content(root):
    """Every file below `root` and its text, and every empty folder."""
    paths = [p for p in root.rglob("*") if p.is_file() or not any(p.iterdir())]
    return {str(p.relative_to(root)): p.read_text() if p.is_file() else None for p in paths}


def spoil(block, error, write):
    """Raise `error` in `block` after `write` has written something."""
    with block as new:
        write(new)
        raise error


def failing_rename(monkeypatch, refused):
    """Have `Path.rename` fail where `refused(source, target)`."""
    plain = Path.rename

    def rename(source, target):
        if refused(source, target):
            raise OSError(28, "No space left on device")
        return plain(source, target)

    monkeypatch.setattr(Path, "rename", rename)


def test_a_file_is_replaced_or_stays(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with replacing(path) as temporary:
        temporary.write_text("one")
    assert path.read_text() == "one"
    with pytest.raises(ValueError, match="wrong"):
        spoil(replacing(path), ValueError("wrong"), lambda temporary: temporary.write_text("two"))
    assert content(tmp_path) == {"new/x.txt": "one"}


def test_a_folder_is_made_with_its_parents(tmp_path):
    with replacing_folder(tmp_path / "deep" / "er" / "a") as new:
        (new / "x").write_text("new")
        assert not (tmp_path / "deep" / "er" / "a").exists()
    assert content(tmp_path) == {"deep/er/a/x": "new"}


def test_a_folder_is_replaced_whole(folder, tmp_path):
    with replacing_folder(folder) as new:
        (new / "y").write_text("new")
        assert content(folder) == {"x": "old"}
    assert content(tmp_path) == {"here/a.hfrt/y": "new"}


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_the_old_one(folder, tmp_path, error):
    with pytest.raises(type(error)):
        spoil(replacing_folder(folder), error, lambda new: (new / "y").write_text("new"))
    assert content(tmp_path) == {"here/a.hfrt/x": "old"}


def test_a_full_disk_is_said(folder, tmp_path):
    with (
        pytest.raises(HyperFusionError, match=r"a\.hfrt: cannot be written: No space.*unchanged"),
        replacing_folder(folder),
    ):
        raise OSError(28, "No space left on device")
    assert content(tmp_path) == {"here/a.hfrt/x": "old"}


def test_the_old_one_comes_back_where_the_new_one_cannot_be_put(folder, tmp_path, monkeypatch):
    failing_rename(monkeypatch, lambda s, t: t == folder and not s.name.endswith(".old"))
    with (
        pytest.raises(HyperFusionError, match=r"No space left on device; .* unchanged") as error,
        replacing_folder(folder),
    ):
        pass
    assert error.value.code == "output-cannot-be-written"
    assert content(tmp_path) == {"here/a.hfrt/x": "old"}


def test_an_old_one_that_cannot_come_back_is_kept_and_named(folder, tmp_path, monkeypatch):
    failing_rename(monkeypatch, lambda source, target: target == folder)
    with pytest.raises(HyperFusionError, match="before is in ") as error, replacing_folder(folder):
        pass
    kept = Path(str(error.value).rsplit(" in ", 1)[1])
    assert kept.parent == folder.parent
    assert (kept / "a.hfrt.old" / "x").read_text() == "old"


@pytest.mark.parametrize("target", ["folder", "nothing"])
def test_a_link_is_replaced_and_what_it_points_to_is_not(folder, tmp_path, target):
    link = tmp_path / "link"
    link.symlink_to(folder if target == "folder" else tmp_path / "nothing")
    with replacing_folder(link) as new:
        (new / "y").write_text("new")
    assert not link.is_symlink()
    assert content(tmp_path) == {"here/a.hfrt/x": "old", "link/y": "new"}


def test_its_permissions_are_those_of_a_new_folder(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing_folder(tmp_path / "a"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o750


def test_a_place_that_is_no_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(HyperFusionError, match="cannot be written"),
        replacing_folder(tmp_path / "file" / "a"),
    ):
        pytest.fail("the block runs")


MODELS = ("ad", "ad_trunk", "ad_head")


def models(root):
    """A repository with three models and another one; where they stand."""
    for name in (*MODELS, "other"):
        (root / "repo" / name).mkdir(parents=True)
        (root / "repo" / name / "config").write_text("old")
    return [root / "repo" / name for name in MODELS]


def write_models(paths, place):
    with replacing_folders(paths, place) as scratch:
        assert scratch.parent == place
        for name in MODELS:
            (scratch / name).mkdir()
            (scratch / name / "config").write_text("new")


def test_several_folders_are_replaced(tmp_path):
    write_models(models(tmp_path), tmp_path)
    new = {f"repo/{name}/config": "new" for name in MODELS}
    assert content(tmp_path) == {**new, "repo/other/config": "old"}


@pytest.mark.parametrize("failing", MODELS)
@pytest.mark.parametrize("where", ["old", "new"])
def test_several_old_folders_come_back(tmp_path, monkeypatch, failing, where):
    """The disk is full at the second model, say."""
    paths = models(tmp_path)
    before = content(tmp_path)
    here = (tmp_path / "repo").parts
    failing_rename(
        monkeypatch,
        lambda source, target: (
            source.name == failing and (source.parts[: len(here)] == here) == (where == "old")
        ),
    )
    with pytest.raises(HyperFusionError, match="No space left on device"):
        write_models(paths, tmp_path)
    assert content(tmp_path) == before


def test_one_that_is_not_made_again_is_removed(tmp_path):
    with replacing_folders(models(tmp_path)) as scratch:
        (scratch / "ad").mkdir()
    assert content(tmp_path) == {"repo/ad": None, "repo/other/config": "old"}


def test_a_file_that_its_writer_made_for_its_owner_alone_follows_the_umask(tmp_path):
    with replacing(tmp_path / "a") as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_tells_of_persons_is_its_owners_alone(tmp_path):
    path = tmp_path / "a"
    write_text(path, "one", private=True)
    assert mode(path) == 0o600
    path.chmod(0o640)  # somebody shares it: the next night's file stays shared
    write_text(path, "two", private=True)
    assert mode(path) == 0o640


def test_any_name_can_be_written(tmp_path):
    write_text(tmp_path / "M\udcfc", "é M\udcfc")
    assert (tmp_path / "M\udcfc").read_text(encoding="utf-8") == r"é M\udcfc"


@pytest.mark.parametrize("environment", [{"HOME": ""}, {"XDG_CACHE_HOME": "here", "HOME": "/x"}])
def test_the_cache_folder_is_never_a_relative_one(environment, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder().is_absolute()
