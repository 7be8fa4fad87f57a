"""What a checkpoint costs a training, side by side in one run: torch.save, torch's async_save, and ours.

Every case takes the same steps of the same training, with one save at their beginning; the steps alone are
the yardstick. What a save costs is the time by which they take longer: the stall, during which no step runs,
and what the steps lose to the writing beside them. The limits are measured in the same run:
copying the bytes in memory, and writing and fsyncing as many.

Then a resume, in fresh processes: from the end of the imports to the first step.

    python benchmarks/checkpoint.py --plot benchmarks/plots/checkpoint.svg
"""

import argparse
import importlib
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from side_by_side import conditions, draw, parser, row
from torch.distributed.checkpoint.state_dict import get_state_dict
from train import pack_phantoms

from data_prep.files import fsync_path
from vae.config import RunConfig
from vae.run_dir import CHECKPOINTS_DIR
from vae.study import prepare_run
from vae.training import checkpoint, trainer
from vae.training.accelerator import start_accelerator
from vae.training.background_save import Saver
from vae.training.data_loader import BatchPlan, batches, load_split
from vae.training.metrics_log import MetricsLog
from vae.training.trainer import train_step
from vae.training.training_state import TrainingState, build_training_state

BATCH = 32
# A save as often as the issue asks for.
EVERY_S = 10.0


class Training:
    """A training of `linear` that takes as many steps as it is asked for."""

    def __init__(self, shards: Path, run_dir: Path, precision: str) -> None:
        self.config = RunConfig(data=str(shards), precision=precision, trackers=(), epochs=10_000)  # type: ignore[arg-type]
        prepare_run(run_dir, self.config)
        accelerator = start_accelerator(self.config, run_dir)
        split = load_split(shards, "train")
        self.plan = BatchPlan(len(split), BATCH, 0)
        self.state = build_training_state(self.config, accelerator, total_steps=1 << 30)
        self.log = MetricsLog(run_dir, self.config, accelerator, 1 << 20, 1 << 30)
        self.saver = Saver(self.state, self.log, split.fingerprint)
        self.run_dir, self.step = run_dir, 0
        self._stream = batches(split, self.plan, 0, 1 << 30, accelerator.device)

    def take(self, count: int) -> None:
        """So many steps, with what the training does for its saves at each."""
        for _ in range(count):
            train_step(self.state, next(self._stream), self.plan, self.step, wants_norm=False)
            self.step += 1
            self.saver.note_saved()

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that a checkpoint holds."""
        moments = [part for parts in self.state.optimizer.state.values() for part in parts.values()]
        return [*self.state.model.state_dict().values(), *moments]


# What runs while the training stands still; it returns what waits until the bytes are on the disk.
Save = Callable[[], Callable[[], object]]


def ways(training: Training, folder: Path) -> dict[str, Save]:
    """Every way of saving the training, into `folder` or into the run."""
    state, saver = training.state, training.saver

    def torch_save() -> Callable[[], object]:
        path = folder / "checkpoint.pt"
        torch.serialization.set_crc32_options(True)  # its default, which ours has changed
        torch.save({"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}, path)
        return lambda: fsync_path(path)

    def async_save() -> Callable[[], object]:
        model, optimizer = get_state_dict(state.model, state.optimizer.optimizer)  # type: ignore[attr-defined]
        place = folder / f"async-{training.step}"
        return dcp.async_save({"model": model, "optimizer": optimizer}, checkpoint_id=place).result  # type: ignore[union-attr,attr-defined]

    def foreground() -> Callable[[], object]:
        saver.save(training.step, [0.0, 0.0])
        return lambda: None

    def beside() -> Callable[[], object]:
        saver.begin(training.step, [0.0, 0.0])
        return saver.wait

    return {
        "torch.save": torch_save,
        "torch.distributed.checkpoint.async_save": async_save,
        "ours, in the foreground": foreground,
        "ours, beside the steps": beside,
    }


@dataclass
class Costs:
    """What one way of saving costs, a figure a round; in seconds a save."""

    stall: list[float] = field(default_factory=list)
    """No step runs."""
    lost: list[float] = field(default_factory=list)
    """So much longer the steps take in all, the stall included."""
    durable: list[float] = field(default_factory=list)
    """From the beginning until the bytes are on the disk."""
    peak_gb: float = 0.0
    """Memory beside the training's own."""


def save_once(save: Save, durable: list[float]) -> tuple[float, threading.Thread]:
    """Begin a save; the seconds of its stall, and the thread that will add when it was durable."""
    started_s = time.perf_counter()
    wait = save()
    stall_s = time.perf_counter() - started_s

    def watch() -> None:
        wait()
        durable.append(time.perf_counter() - started_s)

    watcher = threading.Thread(target=watch)
    watcher.start()
    return stall_s, watcher


def play(training: Training, save: Save | None, steps: int, costs: Costs) -> float:
    """So many steps, with one save before them; the seconds of all."""
    started_s, watcher = time.perf_counter(), None
    if save:
        stall_s, watcher = save_once(save, costs.durable)
        costs.stall.append(stall_s)
    training.take(steps)
    seconds = time.perf_counter() - started_s
    if watcher:
        watcher.join()
        training.saver.note_saved()
    return seconds


def measure(training: Training, folder: Path, rounds: int, window_s: float) -> tuple[dict[str, Costs], float]:
    """The costs of every way, in turns; and the seconds of a step without any."""
    training.take(4)
    started_s = time.perf_counter()
    training.take(4)
    steps = max(4, round(window_s / (time.perf_counter() - started_s) * 4))
    found, alone_s = {}, []
    for name, save in ways(training, folder).items():  # warm-up: memory that is taken once
        alone_gb, first = peak_gb(partial(play, training, None, 2, Costs())), Costs()
        found[name] = Costs(peak_gb=peak_gb(partial(play, training, save, 4, first)) - alone_gb)
        print(f"{name}: the first stall {first.stall[0]:.3f} s", file=sys.stderr)
    for number in range(rounds):
        base_s = play(training, None, steps, Costs())
        alone_s.append(base_s / steps)
        print(f"round {number + 1}: {steps} steps alone: {base_s:.3f} s", file=sys.stderr)
        for name, save in ways(training, folder).items():
            costs = found[name]
            costs.lost.append(play(training, save, steps, costs) - base_s)
            told = f"stall {costs.stall[-1]:.3f} s, lost {costs.lost[-1]:.3f} s"
            print(f"round {number + 1}: {name}: {told}", file=sys.stderr)
        for old in folder.glob("async-*"):
            shutil.rmtree(old)
    return found, statistics.median(alone_s)


def limits(training: Training, folder: Path, rounds: int) -> dict[str, float]:
    """The least that a save could cost: its bytes copied in memory, and as many written and fsynced."""
    source = torch.ones(sum(tensor.nbytes for tensor in training.tensors), dtype=torch.uint8)
    copy, found = torch.empty_like(source), dict[str, list[float]](copy=[], write=[])
    for _ in range(rounds + 1):
        started_s = time.perf_counter()
        copy.copy_(source)
        found["copy"].append(time.perf_counter() - started_s)
        started_s = time.perf_counter()
        with (folder / "bytes").open("wb") as file:
            file.write(memoryview(copy.numpy()))  # type: ignore[arg-type]
            os.fsync(file.fileno())
        found["write"].append(time.perf_counter() - started_s)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def peak_gb(work: Callable[[], object]) -> float:
    """The most memory that this process holds during some work."""
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    work()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))


def tell(found: dict[str, Costs], alone_s: float, limit: dict[str, float], num_bytes: int) -> Iterator[str]:
    """The table in Markdown, and the yardsticks below it."""
    head = ["case", "stall, s", f"stall every {EVERY_S:.0f} s", "slower beside it, s"]
    head += [
        f"images/s with a save every {EVERY_S:.0f} s, of those without",
        "durable after, s",
        "memory, GB",
    ]
    yield row(head)
    yield row(["---"] * len(head))
    for name, costs in found.items():
        stall, lost = statistics.median(costs.stall), statistics.median(costs.lost)
        cells = [
            name,
            f"{stall:.3f} ({min(costs.stall):.3f} - {max(costs.stall):.3f})",
            f"{stall / EVERY_S:.1%}",
        ]
        cells += [f"{lost - stall:.2f}", f"{1 - lost / EVERY_S:.1%}"]
        yield row([*cells, f"{statistics.median(costs.durable):.2f}", f"{costs.peak_gb:.2f}"])
    yield ""
    yield (
        f"{num_bytes / 1e6:,.0f} MB; without saves {BATCH / alone_s:.1f} images/s. The limits: copying the "
        f"bytes in memory {limit['copy']:.3f} s, writing and fsyncing as many {limit['write']:.2f} s"
    )


# --- a resume ---------------------------------------------------------------------------------------------

PHASES = {
    "model and optimiser": (trainer, "build_training_state"),
    "find the newest whole checkpoint: every byte hashed": (checkpoint, "find_latest"),
    "check and read its state": (checkpoint, "read_state"),
    "load weights and state": (TrainingState, "load"),
    "write down that an attempt begins": (trainer, "start_attempt"),
}


class FirstStep(Exception):
    """The training is ready."""


def resume(run_dir: Path) -> dict[str, float]:
    """Seconds from the call of `train` until its first step, phase by phase; for a process of its own."""
    spent: dict[str, float] = {}

    def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started_s = time.perf_counter()
            result = function(*arguments)
            spent[phase] = time.perf_counter() - started_s
            return result

        return call

    def first_step(*_: Any, **__: Any) -> Any:
        raise FirstStep

    importlib.import_module("torch._dynamo")  # as by the first optimizer that is made
    for phase, (place, name) in PHASES.items():
        setattr(place, name, timed(phase, getattr(place, name)))
    setattr(trainer, "train_step", first_step)  # noqa: B010  (mypy)
    started_s = time.perf_counter()
    with suppress(FirstStep):
        trainer.train(run_dir)
    whole_s = time.perf_counter() - started_s
    return {**spent, "all else": whole_s - sum(spent.values()), "**ready**": whole_s}


def measure_resume(run_dir: Path, rounds: int, is_cold: bool) -> dict[str, float]:
    """Medians of fresh processes; cold: nothing of the checkpoint is in the page cache."""
    found = []
    for _ in range(rounds):
        for path in (run_dir / CHECKPOINTS_DIR).glob("*/*") if is_cold else ():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(resume, (run_dir,)))
    return {phase: statistics.median(times[phase] for times in found) for phase in found[0]}


def compare(training: Training, folder: Path, flags: argparse.Namespace) -> None:
    """Every way of saving."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    found, alone_s = measure(training, folder, flags.rounds, flags.window)
    limit = limits(training, folder, flags.rounds)
    num_bytes = sum(tensor.nbytes for tensor in training.tensors)
    print(*tell(found, alone_s, limit, num_bytes), sep="\n")
    if flags.plot:
        seconds = {name: costs.lost for name, costs in found.items()}
        draw(
            flags.plot,
            seconds,
            f"{num_bytes / 1e6:,.0f} MB saved beside a training of `linear`",
            "s lost a save",
        )


def main() -> None:
    """Measure and print."""
    flags = parser(__doc__)
    flags.add_argument("--shards", type=Path, help="packed images; default: phantoms")
    flags.add_argument("--precision", default="auto", help="of the training (%(default)s)")
    flags.add_argument(
        "--window", type=float, default=5.0, help="seconds of steps behind a save (%(default)s)"
    )
    flags.add_argument("--folder", type=Path, help="where to save; default: a temporary folder")
    chosen = flags.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        folder = Path(scratch)
        shards = chosen.shards or pack_phantoms(folder / "shards")
        training = Training(shards, folder / "run", chosen.precision)
        with training.saver:
            compare(training, folder, chosen)
            training.saver.save(training.step, [0.0, 0.0])
        warm, cold = (measure_resume(training.run_dir, chosen.rounds, is_cold) for is_cold in (False, True))
        print("\n| from the end of the imports | s | nothing in the page cache, s |\n| --- | --- | --- |")
        print(*(row([phase, f"{warm[phase]:.2f}", f"{cold[phase]:.2f}"]) for phase in warm), sep="\n")
    print(f"\n{conditions('torch', 'safetensors')}")


if __name__ == "__main__":
    main()
