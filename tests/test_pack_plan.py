"""The plan: it alone decides the bytes of every shard, and a damaged one is never followed."""

import json
import os
from pathlib import Path

import msgspec
import pytest
from pictures import kaggle

from data_prep.errors import DamagedFile, DataError
from data_prep.pack_plan import PackOptions, Plan, plan, read_plan
from data_prep.packer import pack_part

OPTIONS = PackOptions(size_px=32, shard_images=16)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 JPEGs in the Kaggle layout without validation images."""
    return kaggle(tmp_path_factory.mktemp("kaggle"))


def test_plan_that_is_read_is_the_one_that_was_written(source: Path, tmp_path: Path) -> None:
    written = plan(str(source), tmp_path, OPTIONS)
    assert read_plan(tmp_path) == written


def test_digest_is_that_of_shards_packed_before() -> None:
    """With another digest half-packed folders would begin anew, and shards would change."""
    made = plan("phantom:16", Path("nowhere"), PackOptions(size_px=32), write=False)
    assert made.digest == "5cd996605398509f55dc0e8b9cb5ac32cf0346e966e090dbfa1a2b2591796c38"


def test_digest_leaves_out_where_the_source_lies_and_max_bad(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    first = plan(str(source), tmp_path / "a", OPTIONS, write=False)
    moved = plan(
        str(tmp_path / "link"), tmp_path / "a", PackOptions(32, shard_images=16, max_bad=0.5), write=False
    )
    assert first.digest == moved.digest
    assert first.digest != plan(str(source), tmp_path / "a", PackOptions(32), write=False).digest


def test_digest_is_computed_once_for_a_plan_whatever_is_packed_by_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a quarter of a second for 20,000 images, and 35 shards ask for it here."""
    plan(str(source), tmp_path, PackOptions(size_px=32, shard_images=3))
    dumped, to_builtins = [], msgspec.to_builtins
    monkeypatch.setattr(msgspec, "to_builtins", lambda value: dumped.append(value) or to_builtins(value))
    pack_part(tmp_path)
    assert len(list(tmp_path.glob("*.h5"))) > 30
    assert [type(value) for value in dumped] == [Plan]


def test_source_whose_name_is_no_text_is_planned_and_read(tmp_path: Path) -> None:
    source = kaggle(tmp_path / os.fsdecode(b"\xff\xfe"), train=4, test=2)
    written = plan(str(source), tmp_path / "out", OPTIONS)
    assert read_plan(tmp_path / "out") == written
    pack_part(tmp_path / "out")


def test_other_options_for_the_same_folder_are_refused(source: Path, tmp_path: Path) -> None:
    plan(str(source), tmp_path, OPTIONS)
    with pytest.raises(DataError, match="size_px: 32 there, 64 asked for"):
        plan(str(source), tmp_path, PackOptions(size_px=64, shard_images=16))


@pytest.mark.parametrize(
    "values",
    [
        {"size_px": 8},
        {"val_fraction": 0.0},
        {"val_fraction": 0.7},
        {"shard_images": 0},
        {"shard_images": 10**30},
        {"max_bad": 2.0},
        {"seed": -1},
        {"seed": 2**70},
    ],
)
def test_options_that_make_no_data_set_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(DataError):
        PackOptions(**values)  # type: ignore[arg-type]


def test_damaged_plan_says_what_to_do(source: Path, tmp_path: Path) -> None:
    plan(str(source), tmp_path, OPTIONS)
    (tmp_path / "plan.json").write_text('{"source": 1}')
    with pytest.raises(DamagedFile, match=r"plan\.json is damaged"):
        pack_part(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"kind": "files"', '"kind": "film"', "kind: Invalid enum value 'film'"),
        ('"size_px": 32', '"size_px": "32"', "options.size_px: Expected int, got str"),
        ('"size_px": 32', '"size_px": 3', "--size 3 is not allowed"),
        ('"seed": 0', '"seed": 0, "colour": 1', "options: Object contains unknown field colour"),
        ('"key": "', '"key": "\\udc80', "shards[0].items[0].key: Expected str matching regex"),
        ('"name": "', '"name": "../', "it cannot hold '../"),
        ('"label": "NORMAL"', '"label": "HEALTHY"', "it cannot hold 'HEALTHY'"),
    ],
)
def test_edited_plan_is_refused_and_named(
    source: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    plan(str(source), tmp_path, OPTIONS)
    path = tmp_path / "plan.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    json.loads(path.read_text())
    with pytest.raises(DamagedFile) as caught:
        read_plan(tmp_path)
    assert str(caught.value).startswith(f"{path} is damaged: {message}")
    assert caught.value.hint == "delete it and pack again"
