"""One image file cannot cost more than its share of time and memory, whatever is in it, and ends no pack."""

import io
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from bombs import (
    DEFLATED,
    FILES,
    PLAIN,
    deflated_image,
    dicom_file,
    element,
    image_elements,
    scans_jpeg,
    tiff,
)
from costs import Cost, clerk, plan_of
from pictures import grey, jpeg, kaggle
from PIL import Image
from tiny import REPOSITORY, child_environment

from data_prep.decode_pool import Worker
from data_prep.image import make_picture
from data_prep.items import Item

pytest.importorskip("pydicom")


CostOf = Callable[[Path], Cost]


@pytest.fixture(scope="module")
def cost_of() -> Iterator[CostOf]:
    with clerk() as cost_of:
        yield cost_of


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, cost_of: CostOf) -> dict[str, Cost]:
    """What it costs to start a worker and decode a small picture, by kind."""
    folder = tmp_path_factory.mktemp("honest")
    (folder / "a.jpeg").write_bytes(jpeg(grey(0)))
    pixels = element(0x7FE00010, b"OW", bytes(range(256)) * 32)
    (folder / "a.dcm").write_bytes(dicom_file(PLAIN, image_elements(64, 64) + pixels))
    costs = {suffix: cost_of(folder / f"a{suffix}") for suffix in (".jpeg", ".dcm")}
    assert [cost.reason for cost in costs.values()] == ["", ""]
    return costs


@pytest.mark.parametrize("name", FILES)
def test_no_crafted_file_costs_more_than_two_seconds_and_512_mb(
    tmp_path: Path, start: dict[str, Cost], cost_of: CostOf, name: str
) -> None:
    make, pattern = FILES[name]
    (tmp_path / name).write_bytes(make())
    cost = cost_of(tmp_path / name)
    assert re.search(pattern, cost.reason)
    assert cost.seconds - start[".dcm" if name.endswith(".dcm") else ".jpeg"].seconds < 2
    assert cost.memory_mb < 512


def test_the_largest_honest_picture_fits(tmp_path: Path, cost_of: CostOf) -> None:
    Image.new("RGB", (6_300, 6_300), "grey").save(tmp_path / "a.png", compress_level=1)
    cost = cost_of(tmp_path / "a.png")
    assert cost.reason == ""
    assert cost.memory_mb < 512


def test_the_largest_honest_radiograph_fits(tmp_path: Path, cost_of: CostOf) -> None:
    """40 megapixels of 16 bits, rescaled: floats are made of a few rows at a time."""
    values = np.arange(6_300 * 6_300, dtype=np.uint16)
    rescale = element(0x00281052, b"DS", b"0") + element(0x00281053, b"DS", b"1.5")
    pixels = element(0x7FE00010, b"OW", values.tobytes())
    (tmp_path / "a.dcm").write_bytes(dicom_file(PLAIN, image_elements(6_300, 6_300) + rescale + pixels))
    cost = cost_of(tmp_path / "a.dcm")
    assert cost.reason == ""
    assert cost.memory_mb < 512


def test_memory_beyond_the_limit_is_a_reason_and_not_a_death() -> None:
    code = """
from data_prep import limits
from data_prep.image import BadImageError, stage
limits.bound_this_process()
try:
    with stage("is damaged", "while it is decoded"):
        bytearray(600 << 20)
except BadImageError as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "needs more than 384 MiB to be decoded\n"


def test_file_that_crashes_its_decoder_is_put_aside_and_the_rest_decoded(tmp_path: Path) -> None:
    names = ["a.jpeg", "b.jpeg", "c.jpeg"]
    for seed, name in enumerate(names):
        (tmp_path / name).write_bytes(jpeg(grey(seed)))
    worker = Worker(plan_of(tmp_path, is_dicom=False))
    items = [Item(name, "a", "", "") for name in names]
    assert len(worker.decode(items)) == 3
    assert worker.process is not None
    os.kill(worker.process.pid or 0, signal.SIGSEGV)
    first, *others = worker.decode(items)
    worker.end()
    assert getattr(first, "reason", "") == "crashes its decoder; it may be damaged"
    assert [len(pixels) for _, pixels in others] == [256 * 256] * 2


def test_one_worker_outlives_a_file_that_takes_too_long(tmp_path: Path) -> None:
    source = kaggle(tmp_path / "source", train=10, test=4)
    (source / "train" / "NORMAL" / "scans.jpeg").write_bytes(scans_jpeg(500, 4_000))
    words = [str(source), str(tmp_path / "out"), "--size", "32", "--workers", "1", "--max-bad", "0.1"]
    command = [sys.executable, "jobs/pack.py", *words]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=child_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "scans.jpeg takes far longer to decode than a picture of its size" in done.stderr
    assert "quarantined: 1 x takes far longer" in done.stdout


def test_a_second_picture_is_found_without_counting_them_all(tmp_path: Path) -> None:
    """A picture alone is still decoded right after the question."""
    picture = make_picture(tiff(side_px=64), ".tif", 32, "stretch")
    assert (picture.width_px, int(picture.pixels.max())) == (64, 0)
    buffer = io.BytesIO()
    grey(1).save(buffer, "TIFF", compression="tiff_lzw")
    assert make_picture(buffer.getvalue(), ".tif", 32, "stretch").pixels.std() > 10


def test_listing_inflates_no_more_than_a_megabyte(tmp_path: Path) -> None:
    """195 kB made 1.8 GB and minutes on a login node; here 21 files are listed."""
    patient = element(0x00100020, b"LO", b"PATIENT-7")
    content = dicom_file(DEFLATED, deflated_image())
    plain = dicom_file(PLAIN, patient + struct.pack("<HH", 0x0010, 0x4000) + b"UT\0\0\xff\xff\xff\x7f")
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        (source / f"{number}.dcm").write_bytes(content)
    (source / "plain.dcm").write_bytes(plain)
    code = """
import resource, sys
from pathlib import Path
from data_prep.sources import find_items
items = find_items(sys.argv[1], Path(sys.argv[2]), may_write=False).items
print(len(items), len({item.group for item in items}))
used = resource.getrusage(resource.RUSAGE_SELF)
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(status["VmHWM"].split()[0], used.ru_utime + used.ru_stime)
"""
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    counts, used = done.stdout.splitlines()
    assert counts == "21 2"
    memory_kb, seconds = map(float, used.split())
    assert memory_kb < 200_000
    assert seconds < 5
