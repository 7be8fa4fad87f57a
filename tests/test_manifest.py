"""The manifest: whatever of it is edited or damaged, nothing begins on it."""

import json
import shutil
from pathlib import Path

import pytest
from doors import run_door
from packed_folders import make_older
from tiny import TINY_FLAGS, make_run

from data_prep.errors import DamagedFile, DataError, ToolkitError
from data_prep.manifest import MANIFEST_FILE, read_manifest
from vae.training.trainer import train


@pytest.fixture
def packed(tmp_path: Path, shards: Path) -> Path:
    """A data set of its own, to be damaged."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


@pytest.mark.parametrize(
    ("old", "new"),
    [('"format": 2', '"format": 3'), ("train-00000.h5", "../train-00000.h5"), ('"image_size_px"', '"size"')],
)
def test_manifest_that_was_edited_is_refused(packed: Path, old: str, new: str) -> None:
    path = packed / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        read_manifest(packed)


def test_folder_without_manifest_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size_px": 16}, "another split, size or classes"),
        ({"class_names": ["NORMAL"]}, "another split, size or classes"),
        ({"files": {"../../etc/passwd": ""}}, "matching regex"),
        ({"format": 3}, "has format 3; this version reads 1 and 2"),
        ({"format": 1}, "is damaged: it is not as it was written"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused_for_that(
    packed: Path, change: dict[str, object], message: str
) -> None:
    path = packed / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ToolkitError, match=message):
        read_manifest(packed)


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / MANIFEST_FILE
    assert path.read_text().count(old) >= 1
    path.write_text(path.read_text().replace(old, new, 1))


EDITS = [
    ('"num_images": 40', '"num_images": 41'),
    ('"data_offset": ', '"data_offset": 1'),
    ('"image_size_px": 32', '"image_size_px": 16'),
    ('"split": "val"', '"split": "test"'),
    ('"class_counts": [\n          20', '"class_counts": [\n          19'),
]


@pytest.mark.parametrize("is_older", [False, True])
@pytest.mark.parametrize(("old", "new"), EDITS, ids=[old.split('"')[1] for old, _ in EDITS])
def test_every_door_refuses_an_edited_manifest_in_one_line(
    packed: Path, tmp_path: Path, old: str, new: str, is_older: bool
) -> None:
    if is_older:
        make_older(packed)
    edit(packed, old, new)
    run = tmp_path / "run"
    doors = {
        "pack": [packed, "--verify"],
        "train": [run, "--run.data", packed, "--run.image_size_px", "32"],
        "launch": ["--data", packed, "--variant", "linear", "--cluster", "local", *TINY_FLAGS],
    }
    for name, words in doors.items():
        done = run_door(name, *words, cwd=tmp_path)
        error, hint = done.stderr.splitlines()[-2:]
        assert (done.returncode, error[:7], hint[:6]) == (2, "error: ", "hint: "), done.stderr
        assert packed.name in error
        assert "Traceback" not in done.stderr
    assert not run.exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("is_older", [False, True])
def test_a_run_on_an_edited_manifest_is_neither_resumed_nor_scored(
    packed: Path, tmp_path: Path, is_older: bool
) -> None:
    stopped, done = (make_run(tmp_path / name, packed) for name in ("stopped", "done"))
    steps = iter(range(5))
    assert not train(stopped, lambda: next(steps, None) is None)
    assert train(done)
    if is_older:
        make_older(packed)
    edit(packed, '"data_offset": ', '"data_offset": 1')
    for door, words in (("train", [stopped]), ("evaluate", [done, "--extractor", "smoke"])):
        result = run_door(door, *words)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 2), result.stderr
        assert str(packed) in result.stderr
