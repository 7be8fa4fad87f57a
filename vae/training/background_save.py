"""Saving a training: from a copy, by a thread beside the steps; at once where the training ends or stops.

Only one checkpoint is written at a time. While one is, none begins: what is due by the clock comes as soon as
the thread is free, and the end of an epoch passes without one.
"""

import logging
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_prep.errors import RunError
from vae.events import Saved, add_event
from vae.training import checkpoint
from vae.training.checkpoint import StateDict
from vae.training.metrics_log import MetricsLog
from vae.training.training_state import TrainingState

log = logging.getLogger(__name__)

# Epochs are saved unless that would take more than this share of the time (epochs of a second on a GPU).
SAVING_TIME_SHARE = 0.1
# The thread that writes has no hurry: the steps beside it go first. More would starve it on a full node.
NICENESS = 10


class SaveClock:
    """When a checkpoint is due: by time, and at the end of an epoch unless saving would take over."""

    def __init__(self, every_min: float) -> None:
        self.every_s = 60 * every_min
        self.last_s, self.cost_s = time.monotonic(), 0.0

    def is_due(self, ends_epoch: bool) -> bool:
        """Whether to save now."""
        elapsed_s = time.monotonic() - self.last_s
        return elapsed_s >= self.every_s or (ends_epoch and elapsed_s * SAVING_TIME_SHARE >= self.cost_s)

    def note(self, stall_s: float) -> None:
        """Note a save for which the training stood still for so long, until now."""
        self.last_s, self.cost_s = time.monotonic(), stall_s

    def note_beside(self, seconds: float) -> None:
        """Note that it was written for so long on the cores that the steps need, too."""
        self.cost_s += seconds


class StateCopy:
    """Host memory for the copy of a state: taken once, filled anew for every save."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, ...], Tensor] = {}
        self._arrived: torch.cuda.Event | None = None

    def take(self, state: StateDict) -> StateDict:
        """A copy of `state`, good until the next one is taken; from a GPU it has to be waited for.

        The GPU copies before it begins the next step, in the order of its stream, while the host goes on.
        """
        copy: StateDict = self._copied(state, ())
        if any(buffer.is_pinned() for buffer in self._buffers.values()):
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        return copy

    def wait(self) -> None:
        """Return when the copy is complete."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def _copied(self, value: Any, place: tuple[object, ...]) -> Any:
        if isinstance(value, dict):
            return {name: self._copied(part, (*place, name)) for name, part in value.items()}
        if isinstance(value, list):
            return [self._copied(part, (*place, number)) for number, part in enumerate(value)]
        if not isinstance(value, Tensor):
            return value
        if place not in self._buffers:
            self._buffers[place] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return self._buffers[place].copy_(value, non_blocking=True)


@dataclass(frozen=True)
class Pending:
    """A checkpoint that the thread is writing."""

    step: int
    stall_s: float
    """So long the training stood still for the copy."""
    begun_s: float
    durable_s: Future[float]
    """When it was whole, as `begun_s` on the monotonic clock."""


class Saver:
    """Saves a training; a context manager around the steps that waits for what is being written.

    Every rank has one: rank 0 says when, copies and writes.
    """

    def __init__(self, state: TrainingState, metrics_log: MetricsLog, data_fingerprint: str) -> None:
        self.state, self.metrics_log, self.data_fingerprint = state, metrics_log, data_fingerprint
        self.clock = SaveClock(state.config.checkpoint_every_min)
        self._copy = StateCopy()
        self._pending: Pending | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=give_way)
        metrics_log.before_failure = self.wait  # which names the last good checkpoint

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._thread.shutdown()
        try:
            self.note_saved()
        except RunError as failure:
            if error is None:
                raise
            log.warning("%s", failure)  # the training has failed before

    def is_due(self, ends_epoch: bool) -> bool:
        """Whether to save now; never while the last one is being written."""
        is_free = self.state.accelerator.is_main_process and self._pending is None
        return is_free and self.clock.is_due(ends_epoch)

    def begin(self, step: int, epoch_sums: list[float]) -> None:
        """Copy the state as it is after `step`, and have it written while the training goes on."""
        if not self.state.accelerator.is_main_process:
            return
        started_s = time.monotonic()
        content = self._copy.take(self._content(step, epoch_sums))
        begun_s = time.monotonic()
        self.clock.note(begun_s - started_s)
        self.metrics_log.restart_pace()
        durable_s = self._thread.submit(self._write, step, content)
        self._pending = Pending(step, begun_s - started_s, begun_s, durable_s)

    def save(self, step: int, epoch_sums: list[float]) -> None:
        """Save the state as it is after `step`; on every rank, that is when the training goes on."""
        started_s = time.monotonic()
        if self.state.accelerator.is_main_process:
            self.wait()
            self.note_saved()
            seconds = self._write(step, self._content(step, epoch_sums)) - started_s
            self._note(step, seconds)
            self.metrics_log.restart_pace()
        self.state.accelerator.wait_for_everyone()

    def wait(self) -> None:
        """Return when nothing is being written."""
        if pending := self._pending:
            wait([pending.durable_s])

    def note_saved(self) -> None:
        """Note what was written in the meantime, if it is; raises RunError if it could not be written."""
        if self._pending and self._pending.durable_s.done():
            pending, self._pending = self._pending, None
            beside_s = pending.durable_s.result() - pending.begun_s
            self._note(pending.step, pending.stall_s, beside_s)
            if self.state.accelerator.device.type == "cpu":
                self.clock.note_beside(beside_s)

    def _content(self, step: int, epoch_sums: list[float]) -> StateDict:
        position = {"step": step, "epoch_sums": epoch_sums, "data_fingerprint": self.data_fingerprint}
        return {"weights": self.state.model.state_dict(), "state": {**self.state.to_save(), **position}}

    def _write(self, step: int, content: StateDict) -> float:
        """Write a checkpoint; returns when it was whole. Alone or in the thread."""
        self._copy.wait()
        keep = self.state.config.keep_checkpoints
        checkpoint.save(self.metrics_log.run_dir, step, content["weights"], content["state"], keep)
        return time.monotonic()

    def _note(self, step: int, seconds: float, beside_s: float = 0.0) -> None:
        add_event(self.metrics_log.run_dir, Saved(step=step, seconds=round(seconds, 3)))
        self.metrics_log.log_save(step, seconds, beside_s)


def give_way() -> None:
    """Let the other threads of this process go first; only Linux counts niceness by thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
