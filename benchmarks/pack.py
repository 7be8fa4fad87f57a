"""Packing speed, fidelity and memory, side by side in one run, from each format that radiographs come in.

The yardstick is what is usually written: one process, Pillow to RGB, bilinear resize, then grey, or pydicom's
pixels stretched to 8 bits, into a growing gzip dataset. Every round packs everything once per case. Pictures
of 16 bits come as DICOM, uncompressed or JPEG 2000; PNGs of 16 bits are refused, for none says which greys
are black and white.

    python benchmarks/pack.py             # phantoms, made on the spot in every format
    python benchmarks/pack.py SOURCE      # a folder of X-rays as JPEG
"""

import io
import logging
import shutil
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

# The workers import this file: what they do not need is imported where it is used.
import h5py
import numpy as np
from PIL import Image

from data_prep import phantom
from data_prep.items import unescape
from data_prep.manifest import read_manifest
from data_prep.pack_plan import PackOptions, plan
from data_prep.packer import finalize, pack_part
from data_prep.shard_reader import open_shard
from data_prep.sources import find_items

if TYPE_CHECKING:
    from side_by_side import Case

SIZE_PX, PHANTOM_PX = 256, 1200
OPTIONS = PackOptions(max_bad=1.0)
NUM_PHANTOMS = 24
# A JPEG 2000 takes twenty times as long as the others: a few, each listed once.
NUM_SLOW = 16
FORMATS, SLOW_FORMAT = ("JPEG", "PNG, 8 bits", "DICOM, 16 bits"), "DICOM, 16 bits, JPEG 2000"


# --- the ways ------------------------------------------------------------------------------------------


def usual(paths: list[Path], out: Path) -> None:
    """What is usually written."""
    with h5py.File(out, "w") as file:
        images = file.create_dataset(
            "images", (0, SIZE_PX, SIZE_PX), "u1", maxshape=(None, SIZE_PX, SIZE_PX), compression="gzip"
        )
        for number, path in enumerate(paths):
            read = usual_dicom if path.suffix == ".dcm" else usual_picture
            images.resize(number + 1, axis=0)
            images[number] = np.asarray(read(path))


def usual_picture(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
    return image.convert("L")


def usual_dicom(path: Path) -> Image.Image:
    import pydicom

    greys = pydicom.dcmread(path).pixel_array.astype(float)
    greys = 255 * (greys - greys.min()) / (greys.max() - greys.min())
    return Image.fromarray(greys.astype(np.uint8)).resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)


def ours(source: str, workers: int, out: Path) -> None:
    """Plan, pack with checksums and fsync, audit, manifest."""
    plan(source, out, OPTIONS)
    pack_part(out, workers=workers)
    finalize(out)


def cases(source: Path, name: str, peaks_mb: dict[str, float], scratch: Path) -> "list[Case]":
    """The three ways with the files of one format; notes the largest worker."""
    from side_by_side import Case

    paths = sorted(path for path in source.rglob("*") if path.is_file())
    folders = (scratch / f"{name} {number}" for number in count())

    def run(work: Callable[[Path], None]) -> float:
        out = next(folders)
        work(out)
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
        return len(paths)

    def watched(out: Path) -> None:
        with Memory() as memory:
            ours(str(source), 2, out)
        peaks_mb[name] = max(peaks_mb.get(name, 0.0), memory.peak_mb)

    return [
        Case(f"{name}: usual, 1 process", lambda: run(lambda out: usual(paths, out))),
        Case(f"{name}: ours, 1 process", lambda: run(lambda out: ours(str(source), 1, out))),
        Case(f"{name}: ours, 2 workers", lambda: run(watched)),
    ]


class Memory:
    """Watches the largest resident size of this process's children, in MB."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            for listing in Path("/proc/self/task").glob("*/children"):
                for pid in listing.read_text().split():
                    self.peak_mb = max(self.peak_mb, resident_mb(pid))


def resident_mb(pid: str) -> float:
    """Peak resident memory of a process in MB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next(
        (int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmHWM")), 0.0
    )


def fidelity_db(source: str, out: Path) -> list[float]:
    """PSNR of every packed image against a full decode with bicubic resize, in dB."""
    root, found = find_items(source, out).root, []
    for shards in read_manifest(out).splits.values():
        for shard in (open_shard(out, info) for info in shards):
            for key, pixels in zip(shard.keys, shard.images, strict=True):
                full = Image.open(io.BytesIO((root / unescape(key)).read_bytes())).convert("L")
                exact = np.asarray(full.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC), float)
                error = float(np.mean((exact - pixels) ** 2))
                found.append(10 * np.log10(255**2 / error) if error else 99.0)
    return found


# --- the files -----------------------------------------------------------------------------------------


@cache
def films() -> dict[str, np.ndarray]:
    """Phantom radiographs of the size of real ones, by class and number, 8 bits."""
    found = {}
    for key, label, *_ in phantom.items(NUM_PHANTOMS):
        number = int(key.rpartition("/")[2])
        found[f"{label}/{number}"] = phantom.render(number, label == "PNEUMONIA", PHANTOM_PX)
    return found


def make_files(name: str, folder: Path) -> Path:
    """The phantoms in one format, in class folders."""
    for film, greys in islice(films().items(), NUM_SLOW if name == SLOW_FORMAT else None):
        (folder / film).parent.mkdir(parents=True, exist_ok=True)
        save(greys, name, folder / film)
    return folder


def save(greys: np.ndarray, name: str, place: Path) -> None:
    """Write 8-bit greys in a format; as DICOM, in 16 bits with the noise of a detector below the eighth."""
    import pydicom
    from dicoms import write_dicom
    from pydicom.uid import JPEG2000Lossless

    if not name.startswith("DICOM"):
        suffix = ".jpeg" if name == "JPEG" else ".png"
        Image.fromarray(greys).save(place.with_suffix(suffix), quality=92)
        return
    noise = np.random.default_rng(0).integers(0, 16, greys.shape, np.uint16)
    path = write_dicom(place.with_suffix(".dcm"), greys.astype(np.uint16) * 16 + noise)
    if name.endswith("JPEG 2000"):
        data = pydicom.dcmread(path)
        data.compress(JPEG2000Lossless)
        data.save_as(path)


def repeated(source: Path, times: int, folder: Path) -> Path:
    """A source of class folders in which every image is linked several times, split by none."""
    for path in sorted(source.rglob("*.*")):
        for number in range(times):
            place = folder / path.parent.name / f"{number}-{'-'.join(path.relative_to(source).parts)}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    return folder


def make_sources(given: Path | None, times: int, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Each format, or the one that is given, and a folder of such files."""
    for name in ("JPEG",) if given else FORMATS:
        yield name, repeated(given or make_files(name, scratch / f"{name} once"), times, scratch / name)
    if given is None:
        yield SLOW_FORMAT, make_files(SLOW_FORMAT, scratch / SLOW_FORMAT)


def main() -> None:
    """Measure and print Markdown tables."""
    import side_by_side

    parser = side_by_side.parser(__doc__, rounds=3)
    parser.add_argument("source", nargs="?", type=Path)
    text = "times each file is listed; a real set is larger"
    parser.add_argument("--repeat", type=int, default=4, help=text)
    flags = parser.parse_args()
    logging.disable(logging.WARNING)  # what packing says of splits and patients
    peaks_mb: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        sources = dict(make_sources(flags.source, flags.repeat, scratch))
        ways = [cases(source, kind, peaks_mb, scratch) for kind, source in sources.items()]
        found = side_by_side.measure([case for three in ways for case in three], flags.rounds)
        ours(str(sources["JPEG"]), 2, scratch / "last")
        psnr = sorted(fidelity_db(str(sources["JPEG"]), scratch / "last"))
    print(f"{side_by_side.conditions('pillow', 'pydicom', 'h5py', 'numpy')}\n")
    for three in ways:
        own = {case.name: found[case.name] for case in three}
        print("\n".join(side_by_side.table(own, "images/s", three[0].name)), end="\n\n")
    low, middle = psnr[len(psnr) // 20], statistics.median(psnr)
    print(f"PSNR of JPEG to full bicubic: median {middle:.1f} dB, 5th percentile {low:.1f} dB")
    print("largest worker, MB resident:", ", ".join(f"{kind} {mb:.0f}" for kind, mb in peaks_mb.items()))
    if flags.plot:
        side_by_side.draw(flags.plot, found, "Packing to 256 x 256", "images/s")


if __name__ == "__main__":
    main()
