"""The reader of shards: whatever somebody may have put into one, it takes only what `write_shard` writes."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from doors import run_door
from packed_folders import sign
from tiny import REPOSITORY, child_environment

from data_prep.errors import DataError
from data_prep.manifest import read_manifest
from data_prep.shard_reader import is_complete, open_shard, read_records, read_rejects
from data_prep.verify import verify

COUNT, NAME = 10, "val-00000.h5"
HUGE = 2_000_000_000

Forgery = Callable[[h5py.File], object]


def column(name: str, values: object, **options: object) -> Forgery:
    """Put another column in the place of `name`."""

    def forge(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=values, **options)

    return forge


def link(name: str, target: object) -> Forgery:
    """Put a link in the place of a column."""

    def forge(file: h5py.File) -> None:
        del file[name]
        file[name] = target

    return forge


def virtual(file: h5py.File) -> None:
    """Labels that are put together from another file."""
    layout = h5py.VirtualLayout((COUNT,), np.uint8)
    layout[:] = h5py.VirtualSource("other.h5", "labels", (COUNT,))
    del file["labels"]
    file.create_virtual_dataset("labels", layout)


def group(file: h5py.File) -> None:
    del file["labels"]
    file.create_group("labels")


def attribute(name: str, value: object) -> Forgery:
    def forge(file: h5py.File) -> None:
        del file.attrs[name]
        file.attrs[name] = value

    return forge


LABELS = np.arange(COUNT, dtype=np.uint8) % 2
KEYS = [f"val/{number}".encode() for number in range(COUNT)]
FORGERIES: dict[str, tuple[Forgery, str]] = {
    "another file": (
        link("labels", h5py.ExternalLink("other.h5", "/labels")),
        "labels is missing, or a link",
    ),
    "a device": (link("key", h5py.ExternalLink("/dev/zero", "/key")), "key is missing, or a link"),
    "a soft link": (link("labels", h5py.SoftLink("/labels2")), "labels is missing, or a link"),
    "a type": (link("crc32", np.dtype("u4")), "crc32 is not a table with 1 axes"),
    "a group": (group, "labels is not a table"),
    "raw bytes of a file": (
        column("labels", None, shape=(COUNT,), dtype="u1", external=[("/etc/passwd", 0, COUNT)]),
        "labels does not lie in the file",
    ),
    "virtual": (virtual, "labels does not lie in the file"),
    "two axes": (column("labels", LABELS.reshape(2, 5)), "labels is not a table with 1 axes"),
    "one value": (column("labels", np.uint8(1)), "labels is not a table with 1 axes"),
    "nothing": (column("labels", h5py.Empty("u1")), "labels is not a table"),
    "not a number": (column("labels", np.full(COUNT, np.nan, np.float32)), "labels holds float32"),
    "wide": (column("labels", LABELS.astype(np.int64)), "labels holds int64"),
    "swapped bytes": (column("crc32", np.zeros(COUNT, ">u4")), "crc32 holds >u4"),
    "short": (column("labels", LABELS[:-1]), "labels has 9 values"),
    "long": (column("key", np.asarray([*KEYS, b"more"])), "key has 11 values"),
    "a bomb": (
        column("labels", None, shape=(HUGE,), dtype="u1", chunks=(1 << 20,), compression="gzip"),
        "labels does not lie in the file",
    ),
    "never written": (
        column("labels", None, shape=(HUGE,), dtype="u1"),
        "labels has not as many bytes as values",
    ),
    "compressed": (column("key", np.asarray(KEYS), compression="gzip"), "key does not lie in the file"),
    "an unknown class": (column("labels", LABELS + 1), "a label is beyond the class names"),
    "other labels": (column("labels", LABELS * 0), r"class_counts is \(10, 0\), the manifest says \(5, 5\)"),
    "no UTF-8": (column("key", np.asarray([b"\xff\xfe", *KEYS[1:]])), "can't decode byte 0xff"),
    "a control character": (column("key", np.asarray([b"\x1b[31m", *KEYS[1:]])), "a key is not printable"),
    "texts on a heap": (
        column("key", KEYS, dtype=h5py.string_dtype()),
        "key has not as many bytes",
    ),
    "smaller images": (column("images", np.zeros((COUNT, 16, 16), np.uint8)), "image_size_px is 16"),
    "oblong images": (column("images", np.zeros((COUNT, 32, 16), np.uint8)), "its images are not as many"),
    "deep images": (column("images", np.zeros((COUNT, 32, 32), np.uint16)), "its images are not as many"),
    "a compressed image": (
        column("images", np.zeros((COUNT, 32, 32), np.uint8), compression="gzip"),
        "images does not lie in the file",
    ),
    "no count": (attribute("num_images", "ten"), "num_images is not one number"),
    "another count": (attribute("num_images", 9), "values, not one for each image|not as many"),
    "no number": (attribute("num_images", np.nan), "num_images is not one number"),
    "many counts": (attribute("num_images", [10, 10]), "num_images is not one number"),
    "an empty mark": (attribute("complete", h5py.Empty("i8")), "complete is not one number"),
    "an odd mark": (attribute("complete", [1] * 1000), "complete is not one number"),
    "another format": (attribute("format", 2), "not a complete one of format 1"),
}


@pytest.fixture
def forged(tmp_path: Path, shards: Path, request: pytest.FixtureRequest) -> Path:
    """A packed folder with a forgery in its validation shard, and digests that fit."""
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    with h5py.File(folder / "other.h5", "w") as file:
        file["labels"] = LABELS
    with h5py.File(folder / NAME, "r+") as file:
        file["labels2"] = LABELS
        request.param(file)
    sign(folder)
    return folder


@pytest.mark.parametrize(("forged", "message"), FORGERIES.values(), ids=FORGERIES.keys(), indirect=["forged"])
def test_a_forged_shard_is_refused_in_one_line_although_its_digests_fit(forged: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_shard(forged, read_manifest(forged).splits["val"][0])
    assert str(caught.value).count("\n") == 0
    done = run_door("pack", forged, "--verify")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 2), done.stderr
    assert NAME in done.stderr


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        (column("source_width_px", np.zeros(COUNT, np.int64)), "source_width_px holds numbers below 1"),
        (column("source_bytes", np.zeros(COUNT)), "source_bytes holds float64"),
        (column("group", np.zeros(COUNT, np.int64)), "group holds int64"),
        (column("source_mode", np.asarray([b"\xff"] * COUNT)), "can't decode byte 0xff"),
    ],
    indirect=["forged"],
)
def test_columns_for_the_audit_are_checked_like_the_others(forged: Path, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_records(forged / NAME)


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        (column("quarantined", "[{}]"), "missing required field"),
        (column("quarantined", '[{"x":' + "[" * 100_000), "recursion"),
        (column("quarantined", b"\xff"), "quarantined is not in the file|malformed|invalid"),
        (
            column("quarantined", ["[]", "[]"], dtype=h5py.string_dtype()),
            "quarantined is not a table with 0 axes",
        ),
        (column("quarantined", 7), "unpack requires|quarantined is not in the file"),
    ],
    indirect=["forged"],
)
def test_an_odd_list_of_rejects_is_refused(forged: Path, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rejects(forged / NAME)


@pytest.mark.parametrize("value", [["tyni"], 7, h5py.Empty("i8"), np.bytes_(b"tyni")], ids=repr)
def test_a_shard_with_an_odd_plan_is_not_complete(tmp_path: Path, shards: Path, value: object) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    assert is_complete(folder / NAME, "tiny")
    content = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(content.replace(b"tiny", b"tyni"))  # deleted attributes leave their text
    with h5py.File(folder / NAME, "r+") as file:
        attribute("plan_sha256", value)(file)
    assert not is_complete(folder / NAME, "tiny")


LOOK = """
import resource, sys
from pathlib import Path
from data_prep.errors import DataError
from data_prep.manifest import read_manifest
from data_prep.shard_reader import open_shard, read_rejects
used_mb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
folder, before = Path(sys.argv[1]), used_mb()
info = read_manifest(folder).splits["val"][0]
for look in (lambda: open_shard(folder, info), lambda: read_rejects(folder / "val-00000.h5")):
    try:
        look()
    except DataError as error:
        print(error)
print(used_mb() - before)
"""


def claim(file: h5py.File, content: bytearray) -> None:
    """Let the list of rejects say that it has 4 GB."""
    place = file["quarantined"].id.get_offset()
    content[place : place + 4] = (0xF0000000).to_bytes(4, "little")


def clear_heap(file: h5py.File, content: bytearray) -> None:
    """Overwrite the texts of variable length with zeros, in which HDF5 goes round for ever."""
    place = content.index(b"GCOL") + 16
    content[place : place + 200] = bytes(200)


@pytest.mark.parametrize("damage", [None, claim, clear_heap])
def test_what_a_shard_only_claims_to_hold_takes_neither_memory_nor_time(
    tmp_path: Path, shards: Path, damage: Callable[[h5py.File, bytearray], None] | None
) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    content = bytearray((folder / NAME).read_bytes())
    with h5py.File(folder / NAME, "r+") as file:
        if damage is None:
            FORGERIES["a bomb"][0](file)
        else:
            damage(file, content)
    if damage is not None:
        (folder / NAME).write_bytes(content)
    sign(folder)
    command = [sys.executable, "-c", LOOK, str(folder)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    (error, used_mb) = done.stdout.splitlines()
    assert ("labels does not lie" if damage is None else "quarantined is not in the file") in error
    assert int(used_mb) < 100


def test_whatever_is_written_over_the_header_of_a_shard_it_is_read_or_refused(
    tmp_path: Path, shards: Path
) -> None:
    folder, rng = Path(shutil.copytree(shards, tmp_path / "shards")), random.Random(8)
    content, accepted = (folder / NAME).read_bytes(), 0
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 4, 16))):
            damaged[rng.randrange(rng.choice((3000, 12000)))] = rng.choice((0, 1, 0x80, 0xFF))
        (folder / NAME).write_bytes(damaged)
        sign(folder)
        for read in (verify, *(partial(read_one, reader) for reader in (read_records, read_rejects))):
            with suppress(DataError):
                read(folder)
                accepted += 1
    assert 0 < accepted < 280


def read_one(reader: Callable[[Path], object], folder: Path) -> None:
    reader(folder / NAME)


def test_a_good_shard_that_was_written_by_other_means_is_as_good(tmp_path: Path, shards: Path) -> None:
    """The forgeries are refused for what they are, not for having been written again."""
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    with h5py.File(folder / NAME, "r+") as file:
        file["labels2"] = LABELS
        column("labels", LABELS)(file)
        column("key", np.asarray(KEYS))(file)
    sign(folder)
    (shard,) = read_manifest(folder).splits["val"]
    opened = open_shard(folder, shard)
    assert (opened.labels.tolist(), opened.keys) == (LABELS.tolist(), [key.decode() for key in KEYS])
    assert json.loads(run_door("pack", folder, "--verify").stdout.split()[0]) == 93
