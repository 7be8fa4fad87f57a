"""Every kind of source becomes one list of items, each with its class, split and patient."""

import os
import subprocess
from pathlib import Path

import pytest
from pictures import grey, jpeg, kaggle

from data_prep.errors import DataError
from data_prep.folder_source import kermany_patient
from data_prep.items import escape, unescape
from data_prep.sources import find_items


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


@pytest.mark.parametrize("nested", ["", "chest_xray", "chest_xray/chest_xray"])
def test_kaggle_layout_is_found_however_deep_it_is(tmp_path: Path, nested: str) -> None:
    kaggle(tmp_path / nested, train=4, test=2)
    touch(tmp_path, "__MACOSX/chest_xray/train/NORMAL/._IM-1.jpeg", f"{nested}/train/NORMAL/.DS_Store")
    items = find_items(str(tmp_path), tmp_path).items
    assert len(items) == 12
    assert {(item.split, item.label) for item in items} == {
        (split, label) for split in ("train", "test") for label in ("NORMAL", "PNEUMONIA")
    }


def test_second_copy_beside_the_splits_is_ignored(tmp_path: Path) -> None:
    """The Kaggle archive holds everything twice."""
    kaggle(tmp_path, train=4, test=2)
    kaggle(tmp_path / "chest_xray", train=4, test=2)
    assert len(find_items(str(tmp_path), tmp_path).items) == 12


def test_plain_class_folders_have_no_split(tmp_path: Path) -> None:
    touch(tmp_path, "COVID/a.png", "NORMAL/b.png")
    items = find_items(str(tmp_path), tmp_path).items
    assert [(item.key, item.label, item.split) for item in items] == [
        ("COVID/a.png", "COVID", ""),
        ("NORMAL/b.png", "NORMAL", ""),
    ]


def test_class_is_the_first_folder_and_deeper_ones_are_not(tmp_path: Path) -> None:
    touch(tmp_path / "a", "COVID/patient1/a.png", "NORMAL/patient2/study/b.png")
    assert [item.label for item in find_items(str(tmp_path / "a"), tmp_path).items] == ["COVID", "NORMAL"]
    touch(tmp_path / "b", "train/NORMAL/deep/a.png", "test/b.png")
    assert [(i.split, i.label) for i in find_items(str(tmp_path / "b"), tmp_path).items] == [
        ("test", "unlabelled"),
        ("train", "NORMAL"),
    ]


def test_parent_of_data_sets_with_splits_is_refused(tmp_path: Path) -> None:
    kaggle(tmp_path / "full_224", train=4, test=2)
    kaggle(tmp_path / "originals", train=4, test=2)
    with pytest.raises(DataError, match="would be taken for classes") as caught:
        find_items(str(tmp_path), tmp_path)
    assert str(caught.value.hint).startswith(
        f"did you mean {tmp_path / 'full_224'} or {tmp_path / 'originals'}? "
    )


@pytest.mark.parametrize("inner", ["NORMAL/train/a.png", "train/NORMAL/test/a.png", "deep/set/train/X/a.png"])
def test_class_with_a_split_of_its_own_is_refused(tmp_path: Path, inner: str) -> None:
    touch(tmp_path, "PNEUMONIA/b.png", inner)
    if not inner.startswith("train"):
        touch(tmp_path, inner.replace("train", "test"))
    with pytest.raises(DataError, match="would be taken for classes"):
        find_items(str(tmp_path), tmp_path)


def test_linked_folder_is_entered_but_a_circle_is_not(tmp_path: Path) -> None:
    touch(tmp_path / "far", "a.png")
    touch(tmp_path / "source", "NORMAL/b.png")
    (tmp_path / "source" / "COVID").symlink_to(tmp_path / "far")
    (tmp_path / "source" / "NORMAL" / "up").symlink_to(tmp_path / "source")
    keys = [item.key for item in find_items(str(tmp_path / "source"), tmp_path).items]
    assert keys == ["COVID/a.png", "NORMAL/b.png"]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person12_bacteria_34.jpeg", "bacteria-12"),
        ("person12_virus_34.jpeg", "virus-12"),
        ("IM-0115-0001.jpeg", "IM-115"),
        ("NORMAL2-IM-0115-0001.jpeg", "NORMAL2-IM-115"),
        ("scan.png", ""),
    ],
)
def test_patient_is_kind_and_number(name: str, patient: str) -> None:
    """By the number alone, 170 of 202 test patients of the Kermany set would seem to be in train."""
    assert kermany_patient(name) == patient


@pytest.mark.parametrize(
    "name", ["plain.png", "with space.png", "line\nbreak.png", "back\\slash.png", "\\x41.png"]
)
def test_any_name_survives_the_round_trip(name: str) -> None:
    assert unescape(escape(name)) == name
    assert escape(name).isprintable()


def test_name_that_is_no_text_survives_the_round_trip() -> None:
    name = os.fsdecode(b"\xff\xfe-\xc3\xa9.png")
    assert escape(name) == "\\xff\\xfe-é.png"
    assert unescape(escape(name)) == name


def test_csv_names_path_label_split_and_patient(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text(
        "\ufeffpath,label,split,patient\na.png,SICK,Train,p1\nsub/b.png,WELL,test,p2\n",  # as Excel saves it
        encoding="utf-8",
    )
    source = find_items(str(tmp_path / "list.csv"), tmp_path)
    assert source.root == tmp_path
    assert [(i.key, i.label, i.split, i.group) for i in source.items] == [
        ("a.png", "SICK", "train", "p1"),
        ("sub/b.png", "WELL", "test", "p2"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", "allowed: path, label, split, patient"),
        ("path,label,colour\na.png,x,y\n", "allowed: path, label, split, patient"),
        ("path,split\na.png,holdout\n", "line 2: its split is not train, val, test or empty"),
        ("path\na.png\na.png\n", "lines 2 and 3 name the same file"),
        ("path,label\n,x\n", "line 2"),
        ("path\n" + "x" * 200_000, "line 2: field larger than field limit"),
        ("path\n", "holds no files"),
    ],
)
def test_csv_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        find_items(str(tmp_path / "list.csv"), tmp_path)
    assert message in f"{caught.value} {caught.value.hint}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["nowhere", "phantom:many", "phantom:15"])
def test_source_that_is_none_says_what_would_be(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        find_items(source, tmp_path)
    assert caught.value.hint


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files"):
        find_items(str(tmp_path), tmp_path)


def test_listing_reads_no_image(tmp_path: Path) -> None:
    """Broken files are listed like good ones; the packer finds out."""
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "broken.jpeg").write_bytes(jpeg(grey(0))[:50])
    assert len(find_items(str(tmp_path), tmp_path).items) == 1


@pytest.mark.parametrize("source", ["", "  ", "phantom:1000001", "phantom:" + "9" * 5000])
def test_source_without_bounds_or_name_is_refused_at_once(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty one was the current folder."""
    touch(tmp_path, "A/a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        find_items(source, tmp_path)
    assert len(f"{caught.value} {caught.value.hint}") < 300


@pytest.mark.parametrize("source", ["a\0b", "x" * 5000, "~nobody-of-that-name/x"])
def test_source_that_can_be_no_path_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError):
        find_items(source, tmp_path)


@pytest.mark.parametrize("source", ["/proc", "/sys/kernel"])
def test_what_the_system_makes_up_is_not_walked(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match="files that the system makes up"):
        find_items(source, tmp_path)


def test_link_to_what_the_system_makes_up_is_not_walked(tmp_path: Path) -> None:
    touch(tmp_path / "s", "A/a.png")
    (tmp_path / "s" / "B").symlink_to("/proc")
    with pytest.raises(DataError, match="files that the system makes up"):
        find_items(str(tmp_path / "s"), tmp_path)


def test_maze_of_links_is_refused_and_a_very_deep_folder_is_not(tmp_path: Path) -> None:
    """Two links in each of 30 folders make a billion ways."""
    for number in range(30):
        folder = tmp_path / "maze" / f"f{number}"
        folder.mkdir(parents=True)
        for name in "xy":
            (folder / name).symlink_to(tmp_path / "maze" / f"f{number + 1}")
    touch(tmp_path / "maze", "f30/a.png")
    with pytest.raises(DataError, match="lead to one folder more than 8 times"):
        find_items(str(tmp_path / "maze" / "f0"), tmp_path)
    deep = tmp_path / "deep" / ("a/" * 1200)
    subprocess.run(["mkdir", "-p", deep], check=True)
    try:
        (deep / "b.png").touch()
        (item,) = find_items(str(tmp_path / "deep"), tmp_path).items
        assert len(item.key) == 2405
    finally:  # too deep for pytest, too
        subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)


def test_unreadable_folder_is_told_without_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "s", "JANE/a.png")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "JANE":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot be listed to the end: Permission denied") as caught:
        find_items(str(tmp_path / "s"), tmp_path)
    assert "JANE" not in f"{caught.value}{caught.value.hint}"
    assert "! -readable" in str(caught.value.hint)


def test_folder_whose_name_is_too_long_for_a_class_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, f"{'A' * 200}/a.png")
    with pytest.raises(DataError, match="a name of more than 128 characters"):
        find_items(str(tmp_path), tmp_path)
