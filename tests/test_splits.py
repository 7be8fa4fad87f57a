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
