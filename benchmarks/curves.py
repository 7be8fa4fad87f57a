"""Do the fast ways learn as the report's loop does? Loss curves of several seeds, side by side.

    python benchmarks/curves.py [--shards DIR] [--steps 40] [--seeds 3]

All train on the same batches of packed images. Prints the mean loss of each third of the training, in nats
per image, with the lowest and highest seed: the curves agree where the ranges overlap.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.pyplot as plt
import numpy as np
import torch
from accelerate.state import AcceleratorState
from reference import ReportVAE, report_step
from side_by_side import conditions, parser, row
from train import BATCH, VARIANTS, pack_phantoms

from vae.config import RunConfig
from vae.training.accelerator import start_accelerator
from vae.training.data_loader import BatchPlan, ImageSplit, batches, load_split, to_unit
from vae.training.trainer import train_step
from vae.training.training_state import build_training_state

PARTS = 3


def report_losses(variant: str, split: ImageSplit, seed: int, steps: int) -> Iterator[float]:
    """The report's loop, in fp32."""
    torch.manual_seed(seed)
    model = ReportVAE(direct=variant == "direct")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for batch in batches(split, BatchPlan(len(split), BATCH, seed), 0, steps, torch.device("cpu")):
        yield report_step(model, optimizer, to_unit(batch).contiguous()).item() / BATCH


def our_losses(precision: str, variant: str, split: ImageSplit, seed: int, steps: int) -> Iterator[float]:
    """Our training step."""
    AcceleratorState._reset_state()
    config = RunConfig(variant=variant, seed=seed, precision=precision, trackers=())  # type: ignore[arg-type]
    accelerator = start_accelerator(config, Path(tempfile.gettempdir()))
    plan = BatchPlan(len(split), BATCH, seed)
    state = build_training_state(config, accelerator, steps)
    for step, batch in enumerate(batches(split, plan, 0, steps, accelerator.device)):
        bce, kl = train_step(state, batch, plan, step, wants_norm=False)[0].tolist()
        yield (bce + config.beta * kl) / BATCH


Curves = list[list[float]]
"""The loss of each step, for each seed."""


def show(name: str, curves: Curves) -> str:
    """One row of the table: each part's mean over the seeds, and their range."""
    parts = np.array([[part.mean() for part in np.array_split(np.array(curve), PARTS)] for curve in curves])
    cells = [
        f"{m:,.0f} ({low:,.0f} - {high:,.0f})"
        for m, low, high in zip(parts.mean(0), parts.min(0), parts.max(0), strict=True)
    ]
    return row([name, *cells])


def draw_curves(path: Path, found: dict[str, dict[str, Curves]]) -> None:
    """The mean of the seeds and their range at each step, a panel for each variant."""
    plt.rcParams["svg.hashsalt"] = path.name  # the same figures give the same file
    figure, panels = plt.subplots(1, len(found), figsize=(8, 3.5), layout="constrained")
    for axes, (variant, ways) in zip(panels, found.items(), strict=True):
        for name, curves in ways.items():
            values = np.array(curves)
            steps = np.arange(1, values.shape[1] + 1)
            axes.plot(steps, values.mean(0), label=name, linewidth=1)
            axes.fill_between(steps, values.min(0), values.max(0), alpha=0.25)
        axes.set(title=variant, xlabel="step", ylabel="loss, nats per image", yscale="log")
    panels[0].legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--shards", type=Path, help="packed images; default: phantoms")
    flags.add_argument("--steps", type=int, default=40)
    flags.add_argument("--seeds", type=int, default=3)
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        split = load_split(given.shards or pack_phantoms(Path(scratch) / "shards"), "train")
        print(f"{conditions('torch')}; {given.steps} steps of {BATCH}, {given.seeds} seeds")
        found: dict[str, dict[str, Curves]] = {}
        for variant in VARIANTS:
            ways: dict[str, Callable[[str, ImageSplit, int, int], Iterator[float]]] = {
                "report's loop": report_losses,
                "ours, fp32": partial(our_losses, "fp32"),
                "ours, bf16": partial(our_losses, "bf16"),
            }
            print(f"\n{row([variant, *(f'part {n + 1} of {PARTS}' for n in range(PARTS))])}")
            print(row(["---"] * (PARTS + 1)))
            found[variant] = {}
            for name, way in ways.items():
                curves = [list(way(variant, split, seed, given.steps)) for seed in range(given.seeds)]
                found[variant][name] = curves
                print(show(name, curves), flush=True)
        if given.plot:
            draw_curves(given.plot, found)


if __name__ == "__main__":
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    main()
