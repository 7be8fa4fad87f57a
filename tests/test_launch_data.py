"""slurm/launch_data.py: which images a launch trains on."""

from pathlib import Path

import pytest
from pictures import kaggle

from data_prep import pack_plan
from data_prep.errors import DataError, SettingsError
from data_prep.pack_plan import PackOptions, plan, read_plan
from slurm.launch_data import find_data, safe_name, write_data_plan


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_packed_images_say_themselves_what_they_are(shards: Path) -> None:
    data = find_data(str(shards), None)
    assert (data.folder, data.image_size_px, data.num_train_images) == (shards, 32, 70)
    assert data.plan is None
    write_data_plan(data)  # nothing to do
    with pytest.raises(SettingsError, match="are 32 px wide, not the 64 px asked for"):
        find_data(str(shards), 64)


def test_a_source_is_planned_and_nothing_is_written_until_it_is_wanted(here: Path) -> None:
    data = find_data("phantom:48", 64)
    assert (data.folder, data.image_size_px) == (here / "shards" / "phantom-48", 64)
    assert data.plan is not None
    assert (data.num_train_images, len(data.plan.shards)) == (39, 3)
    assert list(here.iterdir()) == []
    write_data_plan(data)
    assert read_plan(data.folder) == data.plan


def test_a_plan_that_is_there_is_not_written_again(here: Path) -> None:
    write_data_plan(find_data("phantom:48", 64))
    stamp = (here / "shards" / "phantom-48" / "plan.json").stat().st_mtime_ns
    write_data_plan(find_data("phantom:48", 64))
    assert (here / "shards" / "phantom-48" / "plan.json").stat().st_mtime_ns == stamp


def test_a_source_is_listed_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    find_items = pack_plan.find_items

    def count(source: str, *settings: object) -> object:
        listed.append(source)
        return find_items(source, *settings)

    monkeypatch.setattr(pack_plan, "find_items", count)
    source = kaggle(here / "source", train=20, test=10)
    data = find_data(str(source), 32)
    write_data_plan(data)
    assert listed == [str(source)]


def test_another_plan_in_that_folder_is_noticed_however_late(here: Path) -> None:
    data = find_data("phantom:48", 64)
    plan("phantom:64", data.folder, PackOptions(size_px=64))  # somebody else, in the meantime
    with pytest.raises(DataError, match="belongs to another pack: images: 64 there, 48 in the source"):
        write_data_plan(data)


def test_a_csv_is_named_without_its_ending() -> None:
    assert safe_name("phantom:48") == "phantom-48"
    assert safe_name("..") == "data"
    assert safe_name("my X-rays (1)") == "my-X-rays-1"


def test_a_launch_says_how_to_name_the_classes_of_dicom_files(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pydicom")
    from dicoms import write_dicom

    for number in range(24):
        write_dicom(here / "s" / f"DOE_{number % 3}" / f"{number}.dcm", PatientID=str(number))
    data = find_data("s", 32)
    assert data.plan is not None
    assert data.plan.class_names == ("unlabelled",)
    (note,) = [
        line for line in caplog.messages if "python jobs/pack.py SOURCE OUT --label-from folder" in line
    ]
    assert "DOE" not in note


def test_other_shards_of_that_name_are_left_alone_with_a_way_out(here: Path) -> None:
    write_data_plan(find_data("phantom:48", 64))
    plan("phantom:64", here / "shards" / "phantom-80", PackOptions(size_px=64))
    with pytest.raises(DataError, match="belongs to another pack") as caught:
        find_data("phantom:80", 64)
    way = "pack into another folder (python jobs/pack.py phantom:80 OTHER; then launch --data OTHER)"
    assert str(caught.value.hint).startswith(way)
