"""What a run tells while it runs: metrics.jsonl, trackers, and a progress bar or plain lines.

metrics.jsonl holds one JSON object a line; losses are nats per image over the global batch or epoch.
Lines after the step a run resumes from are dropped first, so the file reads like that of an unbroken run.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from data_prep.errors import RunError
from data_prep.files import write_text
from vae.config import RunConfig, to_dict
from vae.metrics import read_metrics
from vae.study import METRICS_FILE
from vae.training import checkpoint
from vae.training.collectives import reduce_sum

log = logging.getLogger(__name__)


class MetricsLog:
    """Collects the losses of all ranks and writes them down. Use as a context manager around the steps.

    The methods named `flush_losses`, `log_*` and `totals` add up over ranks, so every rank must call them.
    """

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        accelerator: Accelerator,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        self.run_dir = run_dir
        self.config = config
        self.accelerator = accelerator
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self._unflushed: list[Tensor] = []  # (bce, kl) sums of the steps since the last settle
        self._epoch_sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        self._pace_start, self._pace_steps = time.monotonic(), 0
        self._progress: Progress | None = None
        # of this attempt, for the save lines; see vae/goodput.py
        self._start_s, self._start_cpu_s = time.time(), time.process_time()
        self._save_s, self._saves, self._val_s = 0.0, 0, 0.0

    def start(self, step: int, epoch_sums: list[float], restarts: int) -> None:
        """Begin an attempt at `step`, with the sums of the epoch it is in the middle of."""
        if not self.accelerator.is_main_process:
            return
        self._epoch_sums += torch.tensor(epoch_sums, dtype=torch.float64, device=self._epoch_sums.device)
        kept = [line for line in read_metrics(self.run_dir) if line["step"] <= step]
        write_text(self.run_dir / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in kept))
        totals = {"total_steps": self.total_steps, "steps_per_epoch": self.steps_per_epoch}
        self._start_s, self._start_cpu_s = time.time(), time.process_time()
        self._write({"kind": "start", "step": step, **totals, "restarts": restarts})
        ranks = f"{self.accelerator.num_processes} rank(s) on {self.accelerator.device.type}"
        log.info("%s: begins at step %d of %d with %s", self.run_dir.name, step, self.total_steps, ranks)
        if sys.stderr.isatty():
            self._progress = _progress_bar()
            self._task = self._progress.add_task(
                self.run_dir.name, total=self.total_steps, completed=step, note=""
            )

    def __enter__(self) -> MetricsLog:
        self.accelerator.init_trackers(
            self.run_dir.name, config={k: str(v) for k, v in to_dict(self.config).items()}
        )
        if self._progress:
            self._progress.start()
        self._restart_pace()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.stop()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def add(self, losses: Tensor) -> None:
        """Note one step's (bce, kl) sums over this rank's images, [2], without waiting for the device."""
        self._unflushed.append(losses)
        self._epoch_sums += losses
        self._pace_steps += 1
        if self._progress:
            self._progress.advance(self._task)

    def flush_losses(self, step: int) -> Tensor | None:
        """Check all losses since the last settle; returns the newest step's (bce, kl) per image, [2].

        Raises:
            RunError: a loss is NaN or infinite; names its step and the last good checkpoint.
        """
        if not self._unflushed:
            return None
        first = step - len(self._unflushed) + 1
        losses = reduce_sum(torch.stack(self._unflushed)) / self.config.batch_size
        self._unflushed.clear()
        is_finite = losses.isfinite().all(dim=1)
        if not is_finite.all():
            self._stop_for_bad_loss(first + int((~is_finite).nonzero()[0]))
        return losses[-1]

    def _stop_for_bad_loss(self, step: int) -> None:
        latest = checkpoint.find_latest(self.run_dir)
        good = f"last good checkpoint: {latest}" if latest else "there is no checkpoint before it"
        raise RunError(
            f"{self.run_dir.name}: the loss is not finite at step {step}; {good}",
            "in another --study: lower --run.lr, set --run.clip_norm, or use --run.precision fp32",
        )

    def log_step(self, step: int, lr: float, grad_norm: Tensor | None) -> None:
        """Write the losses of `step` down."""
        per_image = self.flush_losses(step)
        assert per_image is not None  # log steps follow a step
        bce, kl = per_image.tolist()
        values = {"loss": bce + self.config.beta * kl, "bce": bce, "kl": kl, "lr": lr}
        if grad_norm is not None and math.isfinite(norm := float(grad_norm)):  # fp16 may skip a step with inf
            values["grad_norm"] = norm / self.config.batch_size
        values["images_per_s"] = self._pace()
        self.accelerator.log(values, step=step)
        self._write({"kind": "step", "step": step, "epoch": step / self.steps_per_epoch, **values})
        self._say(step, f"loss {values['loss']:,.1f} nats/image, {values['images_per_s']:,.0f} images/s")

    def log_epoch(self, step: int, validation: dict[str, float] | None) -> None:
        """Write the means of the epoch that ends at `step` down, and the validation losses if any.

        `val_seconds` among the latter is what the validation has cost.
        """
        self.flush_losses(step)
        self._val_s += (validation or {}).get("val_seconds", 0.0)
        images = self.steps_per_epoch * self.config.batch_size
        bce, kl = (reduce_sum(self._epoch_sums) / images).tolist()
        self._epoch_sums.zero_()
        values = {
            "train_loss": bce + self.config.beta * kl,
            "train_bce": bce,
            "train_kl": kl,
            **(validation or {}),
        }
        epoch = step // self.steps_per_epoch
        self.accelerator.log({f"epoch/{name}": value for name, value in values.items()}, step=step)
        self._write({"kind": "epoch", "step": step, "epoch": epoch, **values})
        seen = f", val {values['val_loss']:,.1f}" if validation else ""
        self._say(
            step,
            f"epoch {epoch} of {self.config.epochs}: train {values['train_loss']:,.1f}{seen} nats/image",
        )
        self._restart_pace()  # validation is not training

    def log_save(self, step: int, seconds: float) -> None:
        """Note that a checkpoint was saved, what it cost, and what the attempt has used so far."""
        self._save_s, self._saves = self._save_s + seconds, self._saves + 1
        self._write({"kind": "save", "step": step, "seconds": round(seconds, 3), **self._used()})
        self._restart_pace()

    def _used(self) -> dict[str, float]:
        """Seconds of this attempt by purpose; CPU cores this process kept busy, and its peaks in GiB."""
        elapsed_s = time.time() - self._start_s
        used = {
            "train_s": elapsed_s - self._save_s - self._val_s,
            "save_s": self._save_s,
            "saves": self._saves,
            "val_s": self._val_s,
            "cores": (time.process_time() - self._start_cpu_s) / max(elapsed_s, 1e-9),
            "host_gb": peak_memory_gb(),
        }
        if self.accelerator.device.type == "cuda":
            used["gpu_gb"] = torch.cuda.max_memory_allocated() / 2**30
        return {name: round(value, 3) for name, value in used.items()}

    def epoch_sums(self) -> list[float]:
        """(bce, kl) sums over all ranks of the epoch so far, for a checkpoint in the middle of it."""
        return reduce_sum(self._epoch_sums).tolist()

    def _restart_pace(self) -> None:
        self._pace_start, self._pace_steps = time.monotonic(), 0

    def _pace(self) -> float:
        """Images per second over all ranks since the last log line, save or validation."""
        pace = self._pace_steps * self.config.batch_size / max(time.monotonic() - self._pace_start, 1e-9)
        self._restart_pace()
        return pace

    def _say(self, step: int, text: str) -> None:
        if self._progress:
            self._progress.update(self._task, note=text)
        elif self.accelerator.is_main_process:
            log.info("%s: step %d of %d: %s", self.run_dir.name, step, self.total_steps, text)

    def _write(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.run_dir / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "time": time.time()}) + "\n")


def peak_memory_gb() -> float:
    """The most memory this process has held, in GiB; pages of mapped shards count as well."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _progress_bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
    )
    return Progress(
        *columns,
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
