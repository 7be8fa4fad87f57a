"""Of DICOM files only pixels, geometry and salted hashes leave: a secret planted in them is found nowhere."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from bombs import DEFLATED, deflated_zeros, dicom_file, element, fragments, image_elements  # noqa: E402
from dicoms import RAMP, write_dicom  # noqa: E402
from pictures import grey, jpeg  # noqa: E402
from pydicom.dataelem import RawDataElement  # noqa: E402
from pydicom.tag import Tag  # noqa: E402
from pydicom.uid import JPEG2000Lossless, RLELossless  # noqa: E402
from tiny import REPOSITORY, child_environment  # noqa: E402

SECRET = "QZDOEJANE"
RAW = SECRET.encode()
NUM_FILES = 30
# A tag of each kind of text that a radiograph may hold.
TEXTS = {
    "PatientName": f"{SECRET}^J",
    "PatientID": SECRET,
    "OtherPatientIDs": SECRET,
    "PatientAddress": SECRET,
    "PatientComments": SECRET,
    "InstitutionName": SECRET,
    "AccessionNumber": SECRET,
    "StationName": SECRET,
    "StudyDescription": SECRET,
    "ImageComments": SECRET,
    "BodyPartExamined": SECRET,
    "TextValue": SECRET,
    "LongCodeValue": SECRET,
    "RetrieveURL": f"http://{SECRET}",
    "RetrieveAETitle": SECRET,
}
# Tags that are read, as something else than they should be.
ODD = [
    (0x0008_0005, b"CS"),
    (0x0010_0020, b"UI"),
    (0x0010_0020, b"DS"),
    (0x0010_0020, b"SQ"),
    (0x0010_0020, b"UN"),
    (0x0010_0020, b"ZZ"),
    (0x0028_0004, b"CS"),
    (0x0028_0008, b"IS"),
    (0x0028_0010, b"IS"),
    (0x0028_0101, b"DS"),
    (0x0028_0301, b"CS"),
    (0x0028_1050, b"DS"),
    (0x0028_1051, b"LO"),
    (0x0028_1052, b"DS"),
    (0x0028_1056, b"LO"),
]


def plant(folder: Path) -> None:
    """30 files, good, odd and broken, in folders and under names that are secret, too."""
    writers = list(file_writers())
    assert len(writers) == NUM_FILES
    for number, write in enumerate(writers):
        write(folder / f"{SECRET}_{number % 4}" / SECRET / f"{SECRET}-{number}.dcm")
    odd = folder / f"{SECRET}_0"
    (odd / f"{SECRET}.txt").write_text(SECRET)
    (odd / f"{SECRET}-link.dcm").symlink_to(f"/nowhere/{SECRET}")
    (odd / f"{SECRET}-circle.dcm").symlink_to(f"{SECRET}-circle.dcm")
    os.mkfifo(odd / f"{SECRET}-pipe.dcm")


def file_writers() -> Iterator[Callable[[Path], object]]:
    for number in range(6):
        yield partial(write_named, number)
    for syntax in (RLELossless, JPEG2000Lossless):
        yield partial(write_compressed, syntax)
    for tag, vr in ODD:
        yield partial(write_bytes, odd_file(tag, vr))
    head = element(0x00100010, b"PN", RAW) + element(0x00100020, b"LO", RAW)
    plain = head + image_elements(64, 64) + element(0x7FE00010, b"OW", RAMP.tobytes())
    broken_jpeg = image_elements(64, 64, 8) + fragments(jpeg(grey(0)).replace(b"JFIF", RAW) + RAW)
    yield partial(write_bytes, dicom_file(DEFLATED, deflated_zeros(300)))
    yield partial(write_bytes, dicom_file(DEFLATED, head))
    yield partial(write_bytes, dicom_file(SECRET, plain))
    yield partial(write_bytes, dicom_file("1.2.840.10008.1.2.4.50", head + broken_jpeg))
    yield partial(write_bytes, dicom_file("1.2.840.10008.1.2.1", plain)[:-5000])
    yield partial(write_bytes, bytes(128) + b"DICM" + RAW * 20)
    yield partial(write_bytes, RAW * 100)


def write_bytes(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def odd_file(tag: int, vr: bytes) -> bytes:
    """A whole radiograph, in which one element that is read holds a name."""
    given = [(0x00080005, b"CS", b"ISO_IR 100"), (0x00100020, b"LO", RAW)]
    elements = {number: element(number, kind, value) for number, kind, value in given}
    geometry = image_elements(64, 64)
    body = {**elements, tag: element(tag, vr, RAW)}
    early = b"".join(body[number] for number in sorted(body) if number < 0x00280000)
    late = b"".join(body[number] for number in sorted(body) if number > 0x00280000)
    pixels = element(0x7FE00010, b"OW", RAMP.tobytes())
    return dicom_file("1.2.840.10008.1.2.1", early + geometry + late + pixels)


def secret_dataset(path: Path, number: int) -> "pydicom.Dataset":
    """A radiograph with the secret in every kind of text, in sequences and in private tags."""
    write_dicom(path, RAMP + number, **TEXTS)
    data = pydicom.dcmread(path)
    inner = pydicom.Dataset()
    inner.PatientName = inner.PatientID = inner.CodeMeaning = SECRET
    outer = pydicom.Dataset()
    outer.CodeMeaning, outer.ConceptCodeSequence = SECRET, [inner]
    data.RequestAttributesSequence = data.OtherPatientIDsSequence = [outer]
    data.private_block(0x0009, SECRET, create=True).add_new(1, "LO", SECRET)
    raw = RawDataElement(Tag(0x0008103E), "UN", len(RAW), RAW, 0, False, True)
    data[0x0008103E] = raw
    data.preamble = (RAW * 15)[:128].ljust(128)
    data.PatientID = f"{SECRET}{number}"
    return data


def write_named(number: int, path: Path) -> None:
    secret_dataset(path, number).save_as(path)


def write_compressed(syntax: str, path: Path) -> None:
    data = secret_dataset(path, 9)
    data.compress(syntax)
    data.save_as(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    plant(tmp_path / "source")
    return tmp_path / "source"


def run(tmp_path: Path, *words: str | Path, max_file_bytes: int = resource.RLIM_INFINITY) -> str:
    """Everything that a front door says, in a process whose files all lie below `tmp_path`/here."""
    here = tmp_path / "here"
    (here / "tmp").mkdir(parents=True, exist_ok=True)
    environment = {**child_environment(), "TMPDIR": str(here / "tmp")}
    door, *rest = map(str, words)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / f"{door}.py"), *rest],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes)),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def run_all(tmp_path: Path, *commands: tuple[str | Path, ...]) -> list[str]:
    """The same of several in one process, one after another."""
    code = """
import json, sys
from pathlib import Path
from doors import run_door
for door, *words in json.loads(sys.argv[1]):
    done = run_door(door, *words, cwd=Path.cwd())
    print(done.stdout + done.stderr, end="\\0", flush=True)
"""
    here = tmp_path / "here"
    (here / "tmp").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", code, json.dumps([list(map(str, words)) for words in commands])]
    environment = {**child_environment(), "TMPDIR": str(here / "tmp")}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=True)
    said = done.stdout.split("\0")
    assert len(said) == len(commands) + 1
    assert "Traceback" not in done.stdout + done.stderr
    return [*said, done.stderr]


def crash(source: Path, out: Path) -> str:
    """What is said when the packer itself ends with a traceback, in the middle."""
    code = """
import sys
from pathlib import Path
from data_prep.pack_plan import PackOptions, plan
from data_prep.packer import pack_part

def crash(count):
    if count:
        raise RuntimeError("crash")

plan(sys.argv[1], Path(sys.argv[2]), PackOptions(size_px=32, max_bad=1))
pack_part(Path(sys.argv[2]), progress=crash)
"""
    command = [sys.executable, "-c", code, str(source), str(out)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert "RuntimeError: crash" in done.stderr
    return done.stdout + done.stderr


def told(folder: Path, *, quarantine: bool) -> list[str]:
    """Files below `folder` that hold the secret in their content or name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not quarantine:
        files = [path for path in files if path.name != "quarantine.jsonl"]
    found = [path for path in files if RAW.lower() in path.read_bytes().lower()]
    return [str(path) for path in (*found, *folder.rglob(f"*{SECRET}*"))]


def test_secret_of_30_files_is_in_no_file_and_no_stream(tmp_path: Path, source: Path) -> None:
    out, small = tmp_path / "here" / "out", ("--size", "32", "--shard-images", "8", "--workers", "2")
    said = [run(tmp_path, "pack", source, out, *small)]
    assert "are unusable, more than --max-bad 0.01" in said[0]
    said.append(run(tmp_path, "pack", source, out, *small, "--max-bad", "1", max_file_bytes=4_000))
    assert "File too large" in said[1]
    said.append(run(tmp_path, "pack", source, out, *small, "--max-bad", "1"))
    assert "packed:" in said[2], said[2]
    other = ("pack", source, out, "--size", "64")
    said += run_all(tmp_path, *(("pack", out, flag) for flag in ("--audit", "--verify")), other)
    assert "belongs to another pack" in said[5]
    said.append(crash(source, tmp_path / "here" / "crashed"))
    assert [text for text in said if SECRET.lower() in text.lower()] == []
    assert told(tmp_path / "here", quarantine=False) == []
    paths = [json.loads(line)["path"] for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert len(paths) > 10
    assert all(SECRET in path for path in paths)  # the documented exception, for the user must find them
    assert "unlabelled" in said[3]
    assert "as they were packed" in said[4]
    counts = json.loads((out / "audit.json").read_text())
    assert counts["num_images"] >= 10, counts["quarantined"]


def test_with_hash_names_the_secret_is_not_even_in_the_quarantine(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "here" / "out"
    words = ("--size", "32", "--max-bad", "1", "--hash-names", "--workers", "1")
    said = run(tmp_path, "pack", source, out, *words)
    assert "packed:" in said
    assert SECRET not in said
    assert (out / "quarantine.jsonl").stat().st_size > 1000
    assert told(tmp_path / "here", quarantine=True) == []


def test_launching_or_listing_it_wrongly_tells_nothing_either(tmp_path: Path, source: Path) -> None:
    """A CSV with a broken line, splits within classes, patients on two sides, a folder nobody may read."""
    files = sorted(path for path in source.rglob("*-[0-5].dcm"))
    rows = [f"{path.relative_to(source)},A,train,{SECRET}{number}" for number, path in enumerate(files)]
    odd = [f'{SECRET}.dcm,A,"{SECRET}', f"{SECRET}.dcm,A,{SECRET},1", f"{SECRET}.dcm,A,test,x,y", rows[0]]
    odd.append(rows[0].replace("train", "test").replace(SECRET, f"./{SECRET}", 1))
    odd += [f"{SECRET}.dcm,{SECRET * 20},test,1", f"{SECRET}\0.dcm,A,test,1"]
    commands: list[tuple[str | Path, ...]] = []
    for number, lines in enumerate(
        [["path,label,split,patient", *rows, line] for line in odd] + [[SECRET, *rows]]
    ):
        table = source / f"list{number}.csv"
        table.write_text("\n".join(lines))
        commands.append(("pack", table, tmp_path / "here" / f"csv{number}"))
    said = run_all(tmp_path, *commands)
    assert all("line" in text for text in said[: len(odd)])
    for table in source.glob("*.csv"):
        table.unlink()
    said.append(run(tmp_path, "launch", *("--variant", "both", "--data"), source, "--dry-run"))
    for split in ("train", "test"):
        write_named(0, source / SECRET / split / f"{SECRET}.dcm")
    said.append(run(tmp_path, "pack", source, tmp_path / "here" / "inner"))
    assert "would be taken for classes" in said[-1]
    (source / SECRET).rename(tmp_path / "split")
    said.append(run(tmp_path, "pack", tmp_path / "split", tmp_path / "here" / "two"))
    assert "1 patient has images in two splits" in said[-1]
    assert [text for text in said if SECRET.lower() in text.lower()] == []
    assert told(tmp_path / "here", quarantine=True) == []


def test_label_from_folder_is_asked_for_and_warned_of(tmp_path: Path) -> None:
    for number in range(24):
        write_dicom(tmp_path / "s" / "AB"[number % 2] / f"{number}.dcm", RAMP, PatientID=str(number))
    small = ("--size", "32", "--workers", "1")
    silent = run(tmp_path, "pack", tmp_path / "s", tmp_path / "here" / "a", *small)
    assert "the names of 2 folders of DICOM files are not used" in silent
    assert "--label-from folder" in silent
    asked = run(tmp_path, "pack", tmp_path / "s", tmp_path / "here" / "b", *small, "--label-from", "folder")
    assert "the names of 2 folders go into the shards as class names" in asked
    names = [
        json.loads((tmp_path / "here" / out / "manifest.json").read_text())["class_names"] for out in "ab"
    ]
    assert names == [["unlabelled"], ["A", "B"]]


def test_hash_names_hides_the_files_of_pictures_too(tmp_path: Path) -> None:
    """Their classes stay: the user has named these folders."""
    for number in range(24):
        path = tmp_path / "s" / "AB"[number % 2] / f"person{number}_virus_{SECRET}.jpeg"
        write_bytes(jpeg(grey(number)), path)
    (tmp_path / "s" / "A" / f"{SECRET}.jpeg").write_text(SECRET)
    out = tmp_path / "here" / "out"
    words = ("--size", "32", "--hash-names", "--max-bad", "0.5", "--workers", "1")
    said = run(tmp_path, "pack", tmp_path / "s", out, *words)
    assert "quarantined: files/" in said
    assert SECRET not in said
    assert "virus-1" not in said
    assert told(tmp_path / "here", quarantine=True) == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["class_names"] == ["A", "B"]
    assert sum(len(np.atleast_1d(shards)) for shards in manifest["splits"].values()) == 3
