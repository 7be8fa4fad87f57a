"""Metrics logging while a run trains: metrics.jsonl, trackers, and a progress bar or plain lines."""

import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from accelerate import Accelerator
from torch import Tensor

from data_prep.errors import RunError
from data_prep.files import write_text
from data_prep.json_records import append_line, encode_line
from data_prep.progress import terminal_bar
from vae.config import RunConfig, to_dict
from vae.metrics import EpochLine, MetricsLine, SaveLine, StartLine, StepLine, reached_step, read_metrics
from vae.run_dir import METRICS_FILE
from vae.training import checkpoint
from vae.training.collectives import reduce_sum

log = logging.getLogger(__name__)


@dataclass(eq=False)
class MetricsLog:
    """Collects the losses of all ranks and writes them down. Use as a context manager around the steps.

    `flush_losses`, `log_*` and `epoch_sums` all-reduce over ranks, so every rank must call them.
    """

    run_dir: Path
    config: RunConfig
    accelerator: Accelerator
    steps_per_epoch: int
    total_steps: int
    before_failure: Callable[[], object] = lambda: None
    """Called before the last good checkpoint is looked for; one may just be being written."""

    def __post_init__(self) -> None:
        self._unflushed: list[Tensor] = []  # (bce, kl) sums of the steps since the last flush
        self._epoch_sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        self.restart_pace()
        is_hidden = not self.accelerator.is_main_process
        self._bar = terminal_bar("steps", "{task.fields[note]}", is_hidden)
        self._task = self._bar.add_task(self.run_dir.name, total=self.total_steps, note="")
        # of this attempt, for the save lines; see vae/goodput.py
        self._start_s, self._start_cpu_s = time.time(), time.process_time()
        self._save_s, self._saves, self._val_s = 0.0, 0, 0.0

    def start(self, step: int, epoch_sums: list[float], restarts: int) -> tuple[int, float]:
        """Begin an attempt at `step`, with the epoch's sums so far; rank 0 alone. As `drop_lines_after`."""
        self._epoch_sums += torch.tensor(epoch_sums, dtype=torch.float64, device=self._epoch_sums.device)
        redone = drop_lines_after(self.run_dir, step)
        self._start_s, self._start_cpu_s = time.time(), time.process_time()
        totals = {"total_steps": self.total_steps, "steps_per_epoch": self.steps_per_epoch}
        self._write(StartLine(step=step, time=self._start_s, restarts=restarts, **totals))
        ranks = f"{self.accelerator.num_processes} rank(s) on {self.accelerator.device.type}"
        log.info("%s: begins at step %d of %d with %s", self.run_dir.name, step, self.total_steps, ranks)
        self._bar.update(self._task, completed=step)
        return redone

    def __enter__(self) -> "MetricsLog":
        settings = {name: str(value) for name, value in to_dict(self.config).items()}
        self.accelerator.init_trackers(self.run_dir.name, settings, own_folders(self.run_dir))
        self._bar.start()
        self.restart_pace()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def add(self, losses: Tensor) -> None:
        """Note one step's (bce, kl) sums over this rank's images, [2], without waiting for the device."""
        self._unflushed.append(losses)
        self._epoch_sums += losses
        self._pace_steps += 1
        self._bar.advance(self._task)

    def flush_losses(self, step: int) -> Tensor | None:
        """All-reduce and check the losses since the last call; waits for the device.

        Returns the newest step's (bce, kl) per image, [2]. Raises RunError if a loss is NaN or infinite.
        """
        if not self._unflushed:
            return None
        first = step - len(self._unflushed) + 1
        losses = reduce_sum(torch.stack(self._unflushed)) / self.config.batch_size
        self._unflushed.clear()
        is_finite = losses.isfinite().all(dim=1)
        if not is_finite.all():
            self.before_failure()
            bad_step, latest = first + int((~is_finite).nonzero()[0]), checkpoint.find_latest(self.run_dir)
            good = f"last good checkpoint: {latest}" if latest else "there is no checkpoint before it"
            raise RunError(
                f"{self.run_dir.name}: the loss is not finite at step {bad_step}; {good}",
                "in another --study: lower --run.lr, set --run.clip_norm, or use --run.precision fp32",
            )
        return losses[-1]

    def log_step(self, step: int, lr: float, grad_norm: Tensor | None) -> None:
        """Write the losses of `step` down."""
        per_image = self.flush_losses(step)
        assert per_image is not None  # log steps follow a step
        bce, kl = per_image.tolist()
        # unknown or infinite where fp16 skips a step; JSON knows no infinity
        norm = math.inf if grad_norm is None else float(grad_norm) / self.config.batch_size
        # over all ranks since the last log line, save or validation
        pace = self._pace_steps * self.config.batch_size / max(time.monotonic() - self._pace_start, 1e-9)
        self.restart_pace()
        line = StepLine(
            step=step,
            time=time.time(),
            epoch=step / self.steps_per_epoch,
            loss=bce + self.config.beta * kl,
            bce=bce,
            kl=kl,
            lr=lr,
            grad_norm=norm if math.isfinite(norm) else None,
            images_per_s=pace,
        )
        self._publish(line, f"loss {line.loss:,.1f} nats/image, {line.images_per_s:,.0f} images/s")

    def log_epoch(self, step: int, validation: dict[str, float]) -> None:
        """Write the means of the epoch that ends at `step` down, and what `validate` gave if it ran."""
        self.flush_losses(step)
        self._val_s += validation.get("val_seconds", 0.0)
        images = self.steps_per_epoch * self.config.batch_size
        bce, kl = (reduce_sum(self._epoch_sums) / images).tolist()
        self._epoch_sums.zero_()
        line = EpochLine(
            step=step,
            time=time.time(),
            epoch=step // self.steps_per_epoch,
            train_loss=bce + self.config.beta * kl,
            train_bce=bce,
            train_kl=kl,
            **validation,
        )
        val = f", val {line.val_loss:,.1f}" if validation else ""
        losses = f"train {line.train_loss:,.1f}{val} nats/image"
        self._publish(line, f"epoch {line.epoch} of {self.config.epochs}: {losses}", "epoch/")
        self.restart_pace()  # validation is not training

    def log_save(self, step: int, seconds: float, beside_s: float = 0.0) -> None:
        """Note that the checkpoint of `step` is whole, what it cost, and what the attempt has used so far.

        The training stood still for `seconds`, and went on for `beside_s` until the checkpoint was on disk.
        """
        self._save_s, self._saves = self._save_s + seconds, self._saves + 1
        now_s = time.time()
        elapsed_s, cpu_s = now_s - self._start_s, time.process_time() - self._start_cpu_s
        used = {
            "train_s": elapsed_s - self._save_s - self._val_s,
            "save_s": self._save_s,
            "val_s": self._val_s,
            "cores": cpu_s / max(elapsed_s, 1e-9),
            "host_gb": peak_memory_gb(),
        }
        if self.accelerator.device.type == "cuda":
            used["gpu_gb"] = torch.cuda.max_memory_allocated() / 2**30
        rounded = {name: round(value, 3) for name, value in used.items()}
        costs = {"seconds": round(seconds, 3), "beside_s": round(beside_s, 3)}
        self._write(SaveLine(step=step, time=now_s, saves=self._saves, **costs, **rounded))

    def epoch_sums(self) -> list[float]:
        """(bce, kl) sums over all ranks of the epoch so far, for a checkpoint in the middle of it."""
        return reduce_sum(self._epoch_sums).tolist()

    def restart_pace(self) -> None:
        """Leave the time until now out of the next line's images per second."""
        self._pace_start, self._pace_steps = time.monotonic(), 0

    def _publish(self, line: StepLine | EpochLine, text: str, prefix: str = "") -> None:
        """Hand a line's numbers to the trackers, write it down, and say `text` to people."""
        numbers = {name: value for name, value in msgspec.structs.asdict(line).items() if value is not None}
        del numbers["step"], numbers["time"], numbers["epoch"]
        self.accelerator.log({f"{prefix}{name}": value for name, value in numbers.items()}, step=line.step)
        self._write(line)
        self._bar.update(self._task, note=text)
        if self._bar.disable and self.accelerator.is_main_process:
            log.info("%s: step %d of %d: %s", self.run_dir.name, line.step, self.total_steps, text)

    def _write(self, line: MetricsLine) -> None:
        if self.accelerator.is_main_process:
            try:
                append_line(self.run_dir / METRICS_FILE, line)
            except OSError as error:
                raise RunError(
                    f"cannot write {self.run_dir / METRICS_FILE}: {error.strerror}", checkpoint.NO_ROOM
                ) from error


def own_folders(run_dir: Path) -> dict[str, dict[str, str]]:
    """What to start trackers with that would else write into the working directory, often a copy of the code.

    accelerate hands tensorboard and aim a folder itself; two listen to nothing but the environment. What the
    user has set there stands.
    """
    folder = run_dir.resolve()
    os.environ.setdefault("MLFLOW_TRACKING_URI", (folder / "mlruns").as_uri())
    os.environ.setdefault("COMET_OFFLINE_DIRECTORY", str(folder / "comet"))
    return {
        "wandb": {} if "WANDB_DIR" in os.environ else {"dir": str(folder)},  # it makes wandb/ there
        "dvclive": {"dir": str(folder / "dvclive")},
        "swanlab": {"logdir": str(folder / "swanlog")},
    }


def drop_lines_after(run_dir: Path, step: int) -> tuple[int, float]:
    """Have metrics.jsonl end at `step`; returns the last step in it before, and the seconds dropped."""
    lines = read_metrics(run_dir)
    dropped = [line for line in lines if line.step > step]
    kept = b"".join(encode_line(line) for line in lines if line.step <= step)
    write_text(run_dir / METRICS_FILE, kept.decode())
    seconds = dropped[-1].time - dropped[0].time if dropped else 0.0
    return reached_step(lines), seconds


def peak_memory_gb() -> float:
    """The most memory this process has held, in GiB; pages of mapped shards count as well."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
