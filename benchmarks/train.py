"""Training speed, side by side in one run: the report's own loop and ours.

The report's loop reads the image files through torchvision's ImageFolder and DataLoader; ours reads packed
shards. Cases are interleaved over several rounds; medians and their ratio to the report's loop are printed.

    python benchmarks/train.py                                   # phantom images, made on the spot
    python benchmarks/train.py --source DIR/train --shards DIR   # class folders, and the same images packed
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from accelerate.state import AcceleratorState
from PIL import Image
from reference import ReportVAE, report_step
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Grayscale, Resize, ToTensor

from vae.config import RunConfig
from vae.provenance import versions
from vae.training.accelerator import start_accelerator
from vae.training.data_loader import BatchPlan, batches, load_split
from vae.training.trainer import train_step
from vae.training.training_state import build_training_state

BATCH = 32


def endless(loader: DataLoader[tuple[torch.Tensor, int]]) -> Iterator[torch.Tensor]:
    """Batches of images for ever."""
    while True:
        for images, _ in loader:
            yield images


def report_case(variant: str, source: Path, workers: int) -> Callable[[int], None]:
    """The report's loop: fp32, Adam, images decoded on the fly."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = ReportVAE(direct=variant == "direct").to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = ImageFolder(str(source), Compose([Resize((256, 256)), Grayscale(), ToTensor()]))
    loader = endless(DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=workers))

    def steps(count: int) -> None:
        running_loss = 0.0
        for _ in range(count):
            running_loss += report_step(model, optimizer, next(loader).to(device)).item()

    return steps


def our_case(variant: str, shards: Path, precision: str, is_compiled: bool = False) -> Callable[[int], None]:
    """Our training step with our batches, logging left out on both sides."""
    AcceleratorState._reset_state()
    config = RunConfig(
        variant=variant,  # type: ignore[arg-type]
        data=str(shards),
        precision=precision,  # type: ignore[arg-type]
        compile=is_compiled,
        trackers=(),
    )
    accelerator = start_accelerator(config, Path(tempfile.gettempdir()))
    split = load_split(shards, "train")
    plan = BatchPlan(len(split), BATCH, 0)
    state = build_training_state(config, accelerator, total_steps=1 << 30)
    stream = enumerate(batches(split, plan, 0, 1 << 30, accelerator.device))

    def steps(count: int) -> None:
        for _ in range(count):
            step, batch = next(stream)
            train_step(state, batch, plan, step, wants_norm=False)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()

    return steps


def cases(source: Path, shards: Path) -> dict[str, Callable[[int], None]]:
    """Every case of both variants, the report's first."""
    made: dict[str, Callable[[int], None]] = {}
    on_gpu = torch.cuda.is_available()
    for variant in ("linear", "direct"):
        made[f"{variant}: report's loop, 0 workers"] = report_case(variant, source, 0)
        if on_gpu:
            made[f"{variant}: report's loop, 8 workers"] = report_case(variant, source, 8)
        made[f"{variant}: ours, fp32"] = our_case(variant, shards, "fp32")
        for precision in ("bf16", "fp16") if on_gpu else ():
            made[f"{variant}: ours, {precision}"] = our_case(variant, shards, precision)
            made[f"{variant}: ours, {precision}, compiled"] = our_case(variant, shards, precision, True)
    return made


def unpack(shards: Path, folder: Path) -> Path:
    """Write packed training images out as JPEG class folders, for the report's loop to read."""
    split = load_split(shards, "train")
    for index, label in enumerate(split.labels):
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = split.take(torch.tensor([index]))[0, 0].numpy()
        Image.fromarray(pixels).save(place / f"{index}.jpeg", quality=90)
    return folder


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=Path, help="packed images; default: phantoms")
    parser.add_argument("--source", type=Path, help="class folders with the same training images")
    parser.add_argument("--steps", type=int, default=3, help="steps of 32 images a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        shards = flags.shards or pack_phantoms(Path(scratch) / "shards")
        source = flags.source or unpack(shards, Path(scratch) / "images")
        speeds = measure(cases(source, shards), flags.steps, flags.rounds)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    print(f"\n{device}, {torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}, {versions()}\n")
    print("| case | images/s, median | lowest - highest | x report's loop |\n| --- | --- | --- | --- |")
    for name, found in speeds.items():
        base = statistics.median(speeds[f"{name.split(':')[0]}: report's loop, 0 workers"])
        middle = statistics.median(found)
        print(f"| {name} | {middle:,.1f} | {min(found):,.1f} - {max(found):,.1f} | {middle / base:.2f} |")


def pack_phantoms(folder: Path) -> Path:
    """Pack a few hundred phantom radiographs."""
    from data_prep.pack_plan import PackOptions, plan
    from data_prep.packer import finalize, pack_part

    plan("phantom:400", folder, PackOptions())
    pack_part(folder, 0, 1, 1)
    finalize(folder)
    return folder


def measure(steps: dict[str, Callable[[int], None]], count: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of every case in every round; the cases take turns."""
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for run in steps.values():
        run(2)  # warm-up: allocation, compilation, worker start
    for _ in range(rounds):
        for name, run in steps.items():
            start = time.perf_counter()
            run(count)
            speeds[name].append(count * BATCH / (time.perf_counter() - start))
            print(f"{name}: {speeds[name][-1]:,.1f} images/s", file=sys.stderr)
    return speeds


if __name__ == "__main__":
    main()
