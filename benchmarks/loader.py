"""Reading batches of packed images in random order, side by side: ours, peers, and the memory's limit.

One process, 256x256 uint8, to a torch uint8 tensor on the CPU, from the page cache. Every case reads the same
images in the form that its documentation recommends for raw arrays, with 0 and 2 workers where it has such.
The limit is a memcpy of the same bytes, in order, into as many buffers as ours has.

    python benchmarks/loader.py                               # phantoms, made on the spot
    python benchmarks/loader.py --shards DIR --batch 32       # the training images of a packed folder
    python benchmarks/loader.py --ffcv VENV/bin/python        # FFCV too, from an environment that has it
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import count, cycle
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import side_by_side
import torch
from loader_peers import PEERS, Epoch, EpochWith
from side_by_side import Case

from data_prep import phantom
from data_prep.manifest import write_manifest
from data_prep.shards import ImageRecord, write_shard
from vae.training.data_loader import RING_BUFFERS, BatchPlan, ImageSplit, batches, load_split

SIZE_PX = 256
SHARD_IMAGES = 4096  # the packer's default
DISTINCT_FILMS = 64  # drawing takes 10 ms; the others are these, rolled
EPOCHS = 8  # of a turn of the fast ones
CPU = torch.device("cpu")
LIMIT, OURS = "limit: memcpy", "ours"


def main() -> None:
    """Measure and print Markdown tables."""
    parser = side_by_side.parser(__doc__)
    parser.add_argument("--shards", type=Path, help="packed images; default: phantoms")
    parser.add_argument("--images", type=int, default=2 * SHARD_IMAGES, help="phantoms to make (%(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 256], help="images in a batch (32 256)")
    help_text = "an interpreter that can import ffcv (default: what $FFCV_PYTHON says)"
    parser.add_argument(
        "--ffcv", type=Path, metavar="PYTHON", default=os.environ.get("FFCV_PYTHON"), help=help_text
    )
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run(flags, Path(scratch))


def run(flags: argparse.Namespace, scratch: Path) -> None:
    """All tables, with what they need in `scratch`."""
    # Make what is read.
    shards = flags.shards or make_shards(scratch / "shards", flags.images)
    split = load_split(shards, "train")
    images = np.lib.format.open_memmap(
        scratch / "images.npy", "w+", np.uint8, (len(split), split.image_size_px, split.image_size_px)
    )
    split.read_into(images, np.arange(len(split)))
    # Measure.
    print(side_by_side.conditions("torch", "numpy", "h5py", "webdataset", "mosaicml-streaming", "datasets"))
    peers = {name: make(images, scratch) for name, make in PEERS.items()}
    for batch in flags.batch:
        cases = [Case(name, counted(epoch)) for name, epoch in epochs(split, peers, images, batch)]
        children = [ffcv(flags.ffcv, scratch, batch, threads) for threads in (1, 2)] if flags.ffcv else []
        found = side_by_side.measure([*cases[:3], *(case for case, _ in children), *cases[3:]], flags.rounds)
        for _, child in children:
            child.communicate()
        title = f"{len(split):,} images in batches of {batch}"
        print(f"\n{title}\n", *side_by_side.table(found, "images/s", OURS, LIMIT), sep="\n")
        if flags.plot and batch == flags.batch[0]:
            side_by_side.draw(flags.plot, found, title, "images/s")
    # Memory.
    print("\nMemory of a process that trains on nothing, two epochs in batches of 256\n")
    sizes = [flags.shards] if flags.shards else [shards, make_shards(scratch / "more", 4 * flags.images)]
    print(*memory_table(sizes), sep="\n")


def make_shards(folder: Path, num_images: int) -> Path:
    """Pack phantoms into a training split, in shards of the packer's size."""
    films = [phantom.render(number, bool(number % 2), SIZE_PX) for number in range(DISTINCT_FILMS)]
    folder.mkdir()
    names = []
    for start in range(0, num_images, SHARD_IMAGES):
        names.append(f"train-{start:07d}.h5")
        attributes = {"class_names": '["NORMAL", "PNEUMONIA"]', "split": "train", "plan_sha256": "benchmark"}
        numbers = range(start, min(start + SHARD_IMAGES, num_images))
        rolled = ((n, np.roll(films[n % DISTINCT_FILMS], n // DISTINCT_FILMS)) for n in numbers)
        items = (
            (ImageRecord(f"{n}", n % 2, "", "0" * 64, 1, 1, 1, "L"), film.tobytes()) for n, film in rolled
        )
        write_shard(folder / names[-1], SIZE_PX, attributes, items)
    write_manifest(folder, {"size_px": SIZE_PX}, ("NORMAL", "PNEUMONIA"), names)
    return folder


def epochs(
    split: ImageSplit, peers: Mapping[str, EpochWith], images: np.ndarray, batch: int
) -> Iterator[tuple[str, Epoch]]:
    """Every case but FFCV: its name, and what gives its batches; the limit and ours first."""
    mean, plan = float(images.mean()), BatchPlan(len(split), batch, seed=0)
    starts = count(0, EPOCHS * plan.steps_per_epoch)

    def ours() -> Iterator[torch.Tensor]:
        first = next(starts)
        return batches(split, plan, first, first + EPOCHS * plan.steps_per_epoch, CPU)

    def first_epoch() -> Iterator[torch.Tensor]:
        fresh = replace(split, checked=np.zeros_like(split.checked))
        return batches(fresh, plan, 0, plan.steps_per_epoch, CPU)

    yield LIMIT, lambda: memcpy(images, batch)
    yield OURS, checked(ours, mean)
    yield f"{OURS}, first epoch: every image is checked", first_epoch
    for name, epoch_with in peers.items():
        for workers in (0, 2):
            print(f"{name}, {workers} workers", file=sys.stderr)
            yield f"{name}, {workers} workers", checked(epoch_with(batch, workers), mean)


def memcpy(images: np.ndarray, batch: int) -> Iterator[torch.Tensor]:
    """The images in order, copied into a ring of buffers."""
    shape = batch, *images.shape[1:]
    ring = cycle([np.empty(shape, np.uint8) for _ in range(RING_BUFFERS)])
    for _ in range(EPOCHS):
        for start in range(0, len(images) - batch + 1, batch):
            buffer = next(ring)
            np.copyto(buffer, images[start : start + batch])
            yield torch.from_numpy(buffer)


def checked(epoch: Epoch, mean: float) -> Epoch:
    """`epoch`, after it was seen to give images of this mean."""
    seen = [batch.numpy().mean() for batch in epoch()]
    assert abs(np.mean(seen) / mean - 1) < 0.01, f"{np.mean(seen)}, not {mean}"
    return epoch


def counted(epoch: Epoch) -> Callable[[], float]:
    """How many images an epoch had."""
    return lambda: sum(len(batch) for batch in epoch())


def ffcv(python: Path, scratch: Path, batch: int, threads: int) -> tuple[Case, "subprocess.Popen[str]"]:
    """FFCV in a process of its own, which reads the images once for every line it is sent."""
    script = Path(__file__).with_name("loader_ffcv.py")
    files = scratch / "images.npy", scratch / f"{threads}.beton"
    command = [str(word) for word in (python, script, *files, batch, threads, EPOCHS)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    told, answers = child.stdin, child.stdout

    def turn() -> float:
        print(file=told, flush=True)
        return float(answers.readline())

    return Case(f"FFCV, {threads} threads", turn), child


def memory_table(folders: list[Path]) -> Iterator[str]:
    """What two epochs add to a process, by the size of the data."""
    header = ["images", "data", "private memory, peak", "of it the buffers", "pages of the map at the end"]
    yield side_by_side.row(header)
    yield side_by_side.row(["---"] * len(header))
    buffers = RING_BUFFERS * 256 * SIZE_PX**2
    for folder in folders:
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            num_images, private, mapped = fresh.submit(memory, folder).result()
        sizes = [f"{size / 2**20:,.0f} MiB" for size in (num_images * SIZE_PX**2, private, buffers, mapped)]
        yield side_by_side.row([f"{num_images:,}", *sizes])


def memory(folder: Path) -> tuple[int, int, int]:
    """Images of a split, and the bytes of private and of mapped memory that reading them adds."""
    private, mapped = resident()
    split = load_split(folder, "train")
    plan = BatchPlan(len(split), 256, seed=0)
    peak = 0
    for _ in batches(split, plan, 0, 2 * plan.steps_per_epoch, CPU):
        peak = max(peak, resident()[0])
    return len(split), peak - private, resident()[1] - mapped


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: its own, and those of files it has mapped."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) << 10, int(lines["RssFile"].split()[0]) << 10


if __name__ == "__main__":
    main()
