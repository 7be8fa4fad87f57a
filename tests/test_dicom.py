"""DICOM radiographs look as in a viewer, and nothing that names a patient leaves the file."""

import json
import os
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from bombs import PLAIN, dicom_file, element, image_elements  # noqa: E402
from dicoms import RAMP, write_dicom  # noqa: E402

from data_prep.dicom import make_dicom_picture  # noqa: E402
from data_prep.errors import DataError  # noqa: E402
from data_prep.image import BadImageError  # noqa: E402
from data_prep.pack_plan import PackOptions, plan  # noqa: E402
from data_prep.packer import finalize, pack_part  # noqa: E402
from data_prep.shard_reader import open_shard, read_records  # noqa: E402
from data_prep.sources import Naming, find_items, find_paths  # noqa: E402


def pixels_of(path: Path) -> np.ndarray:
    return make_dicom_picture(path.read_bytes(), 64, "stretch").pixels


def test_twelve_and_sixteen_bits_fill_the_grey_range(tmp_path: Path) -> None:
    expected = np.round(RAMP / 4095 * 255)
    assert np.abs(pixels_of(write_dicom(tmp_path / "12.dcm")) - expected).max() <= 1
    sixteen = (RAMP * 16).astype(np.uint16)
    assert np.abs(pixels_of(write_dicom(tmp_path / "16.dcm", sixteen, bits=16)) - expected).max() <= 1


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1")
    assert np.abs(pixels_of(path) - np.round(255 - RAMP / 4095 * 255)).max() <= 1


def test_window_maps_its_ends_to_black_and_white(tmp_path: Path) -> None:
    """Centre 2048.5, width 1001: black up to 1548, white from 2548 (DICOM PS3.3 C.11.2.1.2)."""
    path = write_dicom(tmp_path / "a.dcm", WindowCenter=2048.5, WindowWidth=1001)
    expected = np.round(np.clip((RAMP - 1548.0) / 1000, 0, 1) * 255)
    assert np.abs(pixels_of(path) - expected).max() <= 1


def test_exact_and_sigmoid_windows_follow_the_standard(tmp_path: Path) -> None:
    """DICOM PS3.3 C.11.2.1.3."""
    tags = {"WindowCenter": 2000, "WindowWidth": 1000}
    exact = pixels_of(write_dicom(tmp_path / "a.dcm", VOILUTFunction="LINEAR_EXACT", **tags))
    assert np.abs(exact - np.round(np.clip((RAMP - 1500.0) / 1000, 0, 1) * 255)).max() <= 1
    sigmoid = pixels_of(write_dicom(tmp_path / "b.dcm", VOILUTFunction="SIGMOID", **tags))
    assert np.abs(sigmoid - np.round(255 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000)))).max() <= 1


def test_lookup_table_is_applied_after_rescaling(tmp_path: Path) -> None:
    """The table turns 0..4095 around and has 12 bits; rescaling, even by 1 and 0, makes floats of them."""
    lut = pydicom.Dataset()
    lut.LUTDescriptor = [4096, 0, 12]
    lut.LUTData = np.arange(4095, -1, -1, dtype=np.uint16).tobytes()
    lut["LUTData"].VR = "OW"
    path = write_dicom(tmp_path / "a.dcm", VOILUTSequence=[lut], RescaleSlope=1, RescaleIntercept=0)
    assert np.abs(pixels_of(path) - np.round(255 - RAMP / 4095 * 255)).max() <= 1


@pytest.mark.parametrize(
    "tags",
    [
        {"BurnedInAnnotation": "YES"},
        {"WindowCenter": 5, "WindowWidth": 1},
        {"PhotometricInterpretation": "RGB"},
        {"NumberOfFrames": 2},
        {"Rows": 2},
        {"PixelData": b""},
    ],
)
def test_what_is_not_one_grey_frame_is_refused(tmp_path: Path, tags: dict[str, object]) -> None:
    path = write_dicom(tmp_path / "a.dcm", **{k: v for k, v in tags.items() if k != "PixelData"})
    content = path.read_bytes()
    if "PixelData" in tags:
        content = content[:-1000]
    with pytest.raises(BadImageError):
        make_dicom_picture(content, 64, "stretch")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    "numbers",
    [
        {0x0028_1050: b"5", 0x0028_1051: b"nan"},
        {0x0028_1050: b"inf", 0x0028_1051: b"5"},
        {0x0028_1050: b"5", 0x0028_1051: b"5", 0x0028_1052: b"nan", 0x0028_1053: b"1"},
        {0x0028_1052: b"0", 0x0028_1053: b"1e300"},
        {0x0028_1050: b"5", 0x0028_1051: b"-9"},
    ],
)
def test_window_or_slope_that_is_no_number_is_no_picture(numbers: dict[int, bytes]) -> None:
    """Not-a-number, made a byte, is any byte."""
    texts = b"".join(element(tag, b"DS", value) for tag, value in numbers.items())
    content = dicom_file(PLAIN, image_elements(64, 64) + texts + element(0x7FE00010, b"OW", RAMP.tobytes()))
    with pytest.raises(BadImageError):
        make_dicom_picture(content, 32, "stretch")


def test_only_pixels_and_a_salted_hash_leave_the_file(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for number in range(24):
        name = f"{'NORMAL' if number % 2 else 'PNEUMONIA'}/Doe_Jane_{number}.dcm"
        patient = f"SECRET-{number // 3}"
        write_dicom(source / name, RAMP + number, PatientID=patient, PatientName="Doe^Jane")
    plan(str(source), out, PackOptions(size_px=32))
    pack_part(out)
    manifest = finalize(out)
    groups = {}
    for split, shards in manifest.splits.items():
        for shard in shards:
            content = (out / shard.name).read_bytes()
            assert b"SECRET" not in content
            assert b"Doe" not in content
            assert all(key.startswith("dicom/") for key in open_shard(out, shard).keys)
            groups[split] = {record.group for record in read_records(out / shard.name)}
            assert open_shard(out, shard).images.std() > 50
    assert sum(len(found) for found in groups.values()) == 8  # three images each, never on two sides
    assert (out / ".patient-salt").stat().st_mode & 0o077 == 0
    salt = (out / ".patient-salt").read_bytes()
    plan(str(source), tmp_path / "dry", PackOptions(size_px=32), write=False)
    assert not (tmp_path / "dry").exists()
    (tmp_path / "other").mkdir()
    plan(str(source), tmp_path / "other", PackOptions(size_px=32))
    assert (tmp_path / "other" / ".patient-salt").read_bytes() != salt


def test_csv_names_split_label_and_patient_of_dicom_files(tmp_path: Path) -> None:
    """File names without a suffix, as archives have them; the CSV's patients win over the files'."""
    lines = ["path,label,split,patient"]
    for number in range(8):
        write_dicom(tmp_path / "s" / f"1.2.840.{number}", PatientID="ANONYMOUS")
        lines.append(
            f"1.2.840.{number},{'AB'[number % 2]},{'test' if number < 4 else 'train'},P{number // 2}"
        )
    (tmp_path / "s" / "list.csv").write_text("\n".join(lines))
    found = find_items(str(tmp_path / "s" / "list.csv"), tmp_path)
    assert found.kind == "dicom"
    assert [item.label for item in found.items] == list("ABABABAB")
    assert len({item.group for item in found.items}) == 4
    assert not any("P0" in item.group or "1.2.840" in item.key for item in found.items)


def test_patient_in_the_file_wins_over_its_name_and_no_pipe_is_waited_for(tmp_path: Path) -> None:
    source = tmp_path / "s"
    for number in range(4):
        write_dicom(source / "A" / f"IM-0001-{number:04d}.dcm", PatientID=str(number))
    os.mkfifo(source / "A" / "pipe.dcm")
    (source / "A" / "notes.txt").write_text("not an image")
    items = find_items(str(source), tmp_path).items
    assert len(items) == 6
    assert len({item.group for item in items} - {""}) == 4


def test_class_of_a_dicom_file_is_no_folder_unless_asked_for(tmp_path: Path) -> None:
    """A folder of a DICOM source is a patient's, more often than not."""
    for number in range(6):
        write_dicom(tmp_path / "s" / f"DOE_JANE_{number % 2}" / f"{number}.dcm", PatientID=str(number))
    found = find_items(str(tmp_path / "s"), tmp_path)
    assert {item.label for item in found.items} == {"unlabelled"}
    asked = find_items(str(tmp_path / "s"), tmp_path, naming=Naming("folder"))
    assert {item.label for item in asked.items} == {"DOE_JANE_0", "DOE_JANE_1"}
    assert len(asked.notes) == len(found.notes) == 1
    (tmp_path / "s" / "list.csv").write_text("path,label\nDOE_JANE_0/0.dcm,SICK\nDOE_JANE_1/1.dcm,\n")
    listed = find_items(str(tmp_path / "s" / "list.csv"), tmp_path)
    assert [item.label for item in listed.items] == ["SICK", "unlabelled"]
    with pytest.raises(DataError, match="--label-from folder is for folders"):
        find_items(str(tmp_path / "s" / "list.csv"), tmp_path, naming=Naming("folder"))


@pytest.mark.parametrize("source", ["s", "s/list.csv"])
def test_plan_holds_no_path_and_the_files_are_found_again(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from another folder, and when one file has gone meanwhile."""
    rows = ["path,patient"]
    for number in range(24):
        write_dicom(tmp_path / "s" / "JANE" / f"{number}.dcm", RAMP + number)
        rows.append(f"JANE/{number}.dcm,JANE-{number}")
    if source != "s":
        (tmp_path / "s" / "list.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    planned = plan(source, out, PackOptions(size_px=32, shard_images=8, max_bad=0.1))
    assert "JANE" not in (out / "plan.json").read_text()
    assert len({item.key for item in planned.items()}) == 24
    (tmp_path / "s" / "JANE" / "5.dcm").unlink()
    monkeypatch.chdir("/")
    pack_part(out)
    assert sum(shard.num_images for shard in finalize(out).shards()) == 23
    (line,) = (out / "quarantine.jsonl").read_text().splitlines()
    assert "cannot be read: No such file" in line


def test_plan_of_an_earlier_version_that_holds_paths_is_still_packed(tmp_path: Path) -> None:
    for number in range(24):
        write_dicom(tmp_path / "s" / f"{number}.dcm", RAMP + number, PatientID=str(number))
    out = tmp_path / "out"
    planned = plan(str(tmp_path / "s"), out, PackOptions(size_px=32))
    paths = find_paths(planned.source, Path(planned.root), "dicom", out)
    record = json.loads((out / "plan.json").read_text())
    for item in chain.from_iterable(shard["items"] for shard in record["shards"]):
        item["path"] = paths[item["key"]]
    record["source"] = "/nowhere"  # nothing can be listed again
    (out / "plan.json").write_text(json.dumps(record))
    pack_part(out)
    assert sum(shard.num_images for shard in finalize(out).shards()) == 24


@pytest.mark.filterwarnings("ignore:The value length")
def test_id_that_is_far_too_long_is_still_one_patient(tmp_path: Path) -> None:
    for number in range(2):
        write_dicom(tmp_path / "s" / f"{number}.dcm", PatientID="9" * 300)
    assert len({item.group for item in find_items(str(tmp_path / "s"), tmp_path).items} - {""}) == 1


def test_files_that_name_no_patient_are_counted(tmp_path: Path) -> None:
    for number in range(4):
        tags = {"PatientID": "1"} if number else {}
        write_dicom(tmp_path / "s" / f"{number}.dcm", **tags)
    assert find_items(str(tmp_path / "s"), tmp_path).notes == (
        "1 of 4 DICOM files name no patient: each counts as one of its own",
    )


def test_broken_dicom_is_quarantined_and_the_rest_packed(tmp_path: Path) -> None:
    for number in range(12):
        write_dicom(tmp_path / "s" / "A" / f"{number}.dcm", PatientID=str(number))
    (tmp_path / "s" / "A" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"junk")
    out = tmp_path / "out"
    plan(str(tmp_path / "s"), out, PackOptions(size_px=32, max_bad=0.1))
    pack_part(out)
    assert sum(finalize(out).num_images(split) for split in ("train", "val", "test")) == 12
    (line,) = (out / "quarantine.jsonl").read_text().splitlines()
    assert "is not a readable DICOM image" in json.loads(line)["reason"]
    assert json.loads(line)["path"] == "A/broken.dcm"
