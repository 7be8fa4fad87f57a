"""How an attempt begins: what provenance, events and metrics say of it, even after a kill."""

import time
from pathlib import Path

import msgspec

from vae.events import AttemptStarted, add_event, by_attempt, read_events
from vae.metrics import StartLine, read_metrics
from vae.provenance import Attempt, read_attempts, record_attempt
from vae.training.metrics_log import MetricsLog, drop_lines_after


def start_attempt(
    metrics_log: MetricsLog, step: int, epoch_sums: list[float], data_fingerprint: str, attempt: Attempt
) -> None:
    """Write down that an attempt begins at `step`; rank 0 does."""
    run_dir, accelerator = metrics_log.run_dir, metrics_log.accelerator
    ranks = {"world_size": accelerator.num_processes, "device": accelerator.device.type, "from_step": step}
    attempt = msgspec.structs.replace(attempt, **ranks, precision=accelerator.mixed_precision)
    add_missing_start(run_dir)
    # reads the lines of the attempt before, which the metrics log is about to drop
    restarts = record_attempt(run_dir, data_fingerprint, attempt)
    redone = metrics_log.start(step, epoch_sums, restarts)
    add_start(run_dir, attempt, redone, time.time())


def add_missing_start(run_dir: Path) -> None:
    """Note an attempt that was killed when provenance.json knew of it, and events.jsonl did not yet."""
    attempts, starts = read_attempts(run_dir), by_attempt(read_events(run_dir))
    if len(attempts) != len(starts) + 1:
        return
    killed = attempts[-1]
    started_s = killed.started_s or 0.0
    own = [line for line in read_metrics(run_dir) if line.time >= started_s]
    if all(isinstance(line, StartLine) for line in own):
        add_start(run_dir, killed, drop_lines_after(run_dir, killed.from_step or 0), started_s)


def add_start(run_dir: Path, attempt: Attempt, redone: tuple[int, float], started_s: float) -> None:
    """Write down the event by which an attempt begins; `redone` is what `drop_lines_after` gave."""
    counts = {"step": attempt.from_step or 0, "restart": attempt.restart, "reached_step": redone[0]}
    add_event(run_dir, AttemptStarted(time=started_s, job=attempt.job, redone_s=redone[1], **counts))
