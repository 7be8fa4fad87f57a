"""Packing speed, fidelity and memory, side by side in one run.

The yardstick is what is usually written: one process, Pillow to RGB, bilinear resize, then grey, into a
growing gzip dataset. Every round packs everything once per case; medians and their ratio to the yardstick are
printed.

    python benchmarks/pack.py SOURCE      # a folder of X-rays; without it, phantom JPEGs made on the spot
"""

import argparse
import io
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import h5py
import numpy as np
from PIL import Image

from data_prep.items import unescape
from data_prep.pack_plan import PackOptions, plan
from data_prep.packer import finalize, pack_part
from data_prep.shard_reader import open_shard
from data_prep.sources import find_items
from vae.provenance import versions

SIZE_PX = 256
OPTIONS = PackOptions(max_bad=1.0)


def usual(paths: list[Path], out: Path) -> None:
    """What is usually written."""
    with h5py.File(out, "w") as file:
        images = file.create_dataset(
            "images", (0, SIZE_PX, SIZE_PX), "u1", maxshape=(None, SIZE_PX, SIZE_PX), compression="gzip"
        )
        for number, path in enumerate(paths):
            image = Image.open(path).convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
            images.resize(number + 1, axis=0)
            images[number] = np.asarray(image.convert("L"))


def ours(source: str, workers: int, out: Path) -> None:
    """Plan, pack with checksums and fsync, audit, manifest."""
    plan(source, out, OPTIONS)
    pack_part(out, workers=workers)
    finalize(out)


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
    from data_prep.manifest import read_manifest

    root, found = find_items(source, out).root, []
    for shards in read_manifest(out).splits.values():
        for shard in (open_shard(out, info) for info in shards):
            for key, pixels in zip(shard.keys, shard.images, strict=True):
                full = Image.open(io.BytesIO((root / unescape(key)).read_bytes())).convert("L")
                exact = np.asarray(full.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC), float)
                error = float(np.mean((exact - pixels) ** 2))
                found.append(10 * np.log10(255**2 / error) if error else 99.0)
    return found


def make_jpegs(folder: Path) -> str:
    """Phantom radiographs of the size of real ones, as JPEG class folders."""
    from data_prep import phantom

    for key, label, *_ in phantom.items(60):
        place = folder / label
        place.mkdir(parents=True, exist_ok=True)
        number = int(key.rpartition("/")[2])
        pixels = phantom.render(number, label == "PNEUMONIA", 1200)
        Image.fromarray(pixels).save(place / f"{number}.jpeg", quality=92)
    return str(folder)


def repeated(source: str, times: int, folder: Path) -> str:
    """A source of class folders in which every image is linked several times, split by none."""
    listed = find_items(source, folder)
    for item in listed.items:
        for number in range(times):
            place = folder / item.label / f"{number}-{item.key.replace('/', '-')}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(listed.root / unescape(item.key))
    return str(folder)


def timed(work: Callable[..., None], *arguments: object) -> float:
    """Seconds that `work(*arguments)` takes."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", nargs="?")
    parser.add_argument(
        "--repeat", type=int, default=4, help="times each file is listed; a real set is larger"
    )
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Memory() as memory:
        source = flags.source or make_jpegs(Path(scratch) / "jpegs")
        source = repeated(source, flags.repeat, Path(scratch) / "repeated")
        listed = find_items(source, Path(scratch))
        paths = [listed.root / unescape(item.key) for item in listed.items]
        seconds: dict[str, list[float]] = {
            "usual, 1 process": [],
            "ours, 1 process": [],
            "ours, 2 workers": [],
        }
        for number in range(flags.rounds):
            out = Path(scratch) / str(number)
            out.mkdir()
            seconds["usual, 1 process"].append(timed(usual, paths, out / "usual.h5"))
            seconds["ours, 1 process"].append(timed(ours, source, 1, out / "one"))
            seconds["ours, 2 workers"].append(timed(ours, source, 2, out / "two"))
            print(f"round {number + 1} of {flags.rounds}", file=sys.stderr)
        psnr = sorted(fidelity_db(source, out / "two"))
        shutil.rmtree(out)
    speeds = {name: [len(paths) / took for took in found] for name, found in seconds.items()}
    base = statistics.median(speeds["usual, 1 process"])
    machine = platform.processor() or platform.machine()
    print(f"\n{len(paths)} images, {machine}, {time.strftime('%Y-%m-%d')}, {versions()}\n")
    print("| case | images/s, median | lowest - highest | x usual |\n| --- | --- | --- | --- |")
    for name, found in speeds.items():
        middle = statistics.median(found)
        print(f"| {name} | {middle:,.0f} | {min(found):,.0f} - {max(found):,.0f} | {middle / base:.2f} |")
    low = psnr[len(psnr) // 20]
    print(f"\nPSNR to full bicubic: median {statistics.median(psnr):.1f} dB, 5th percentile {low:.1f} dB")
    print(f"largest worker: {memory.peak_mb:.0f} MB resident")


if __name__ == "__main__":
    main()
