"""Splits: a patient is on one side only, and what the source gives is kept where it can be used."""

import re
from pathlib import Path

import pytest
from pictures import grey, jpeg, kaggle

from data_prep.errors import DataError
from data_prep.pack_plan import PackOptions, plan

OPTIONS = PackOptions(size_px=32, shard_images=16)


def test_tiny_validation_split_is_cut_anew_and_a_fair_one_stays(tmp_path: Path) -> None:
    tiny = plan(str(kaggle(tmp_path / "tiny", train=40, val=1)), tmp_path / "a", OPTIONS, write=False)
    assert sum(len(shard.items) for shard in tiny.shards if shard.split == "val") > 2
    fair = plan(str(kaggle_with_own_val(tmp_path / "fair")), tmp_path / "b", OPTIONS, write=False)
    assert sum(len(shard.items) for shard in fair.shards if shard.split == "val") == 8


def kaggle_with_own_val(root: Path) -> Path:
    kaggle(root, train=40)
    for number in range(8):
        (root / "val" / "NORMAL").mkdir(parents=True, exist_ok=True)
        (root / "val" / "NORMAL" / f"IM-{5000 + number}-1.jpeg").write_bytes(jpeg(grey(900 + number)))
    return root


def test_patient_on_two_sides_of_the_source_is_refused(tmp_path: Path) -> None:
    root = kaggle(tmp_path, train=4)
    (root / "test" / "NORMAL" / "IM-0001-0099.jpeg").write_bytes(jpeg(grey(1)))
    with pytest.raises(DataError, match=r"^1 patient has images in two splits, such as IM-1: ") as caught:
        plan(str(root), tmp_path / "out", OPTIONS)
    assert re.search(
        r"train/NORMAL/IM-0001-000\d.jpeg in train, test/NORMAL/IM-0001-0099.jpeg in test$", str(caught.value)
    )


def test_source_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    """One patient, or one image a class: all of it was cut for test, with exit code 0."""
    for number in range(6):
        path = tmp_path / "one" / "NORMAL" / f"IM-0001-{number:04d}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(grey(number)))
    with pytest.raises(DataError, match=r"no image is left to train on: 0 for train, 0 for val, 6 for test"):
        plan(str(tmp_path / "one"), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()
    kaggle(tmp_path / "none", train=0, test=4)
    with pytest.raises(DataError, match="no image is left to train on"):
        plan(str(tmp_path / "none"), tmp_path / "out", OPTIONS)


def test_split_that_is_cut_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kaggle(tmp_path / "train-only", train=40, test=0)
    plan(str(tmp_path / "train-only"), tmp_path / "a", OPTIONS, write=False)
    assert [line.partition(" of")[0] for line in caplog.messages] == ["cut for val: 8", "cut for test: 8"]
    assert caplog.messages[1].endswith("in whole patients, as the source has none")
    caplog.clear()
    plan(str(kaggle_with_own_val(tmp_path / "fair")), tmp_path / "b", OPTIONS, write=False)
    assert caplog.messages == []
