"""metrics.jsonl: the lines that a training writes, read back whole or from the end, and how far it is.

Losses are nats per image over the global batch or epoch, times Unix seconds. Lines after the step that a run
resumes from are dropped first, so the file reads like that of an unbroken run. Whoever reads a line that no
training has written gets a DamagedFile.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import BinaryIO

import msgspec

from data_prep.errors import DamagedFile
from data_prep.json_records import Record, decode, read_lines, whole_lines
from vae.run_dir import METRICS_FILE

# metrics.jsonl of a long run is read from its end: so much, and more if that holds no start or save. A
# thousand runs are shown within half a second, so its lines are told apart before JSON is read.
TAIL_BYTES = 16 * 1024
STEPS = (b'{"kind":"step"', b'{"kind": "step"')
STARTS_AND_SAVES = (b'{"kind":"start"', b'{"kind": "start"', b'{"kind":"save"', b'{"kind": "save"')


class Line(Record, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What every line has."""

    step: int
    """Steps taken so far."""
    time: float = 0.0


class StartLine(Line, frozen=True, tag="start"):
    """An attempt begins."""

    total_steps: int
    steps_per_epoch: int
    restarts: int = 0


class StepLine(Line, frozen=True, tag="step"):
    """The losses of one step."""

    epoch: float
    loss: float
    bce: float
    kl: float
    lr: float
    images_per_s: float
    grad_norm: float | None = None
    """Norm of the gradient of the loss per image."""


class EpochLine(Line, frozen=True, tag="epoch"):
    """Means over an epoch, and the validation losses if there was one."""

    epoch: int
    train_loss: float
    train_bce: float
    train_kl: float
    val_loss: float | None = None
    val_bce: float | None = None
    val_kl: float | None = None
    val_seconds: float | None = None


class SaveLine(Line, frozen=True, tag="save"):
    """A checkpoint was saved; what the attempt has used so far.

    It stands behind the lines of the steps that were taken while the checkpoint was being written.
    """

    seconds: float
    """So long the training stood still."""
    beside_s: float = 0.0
    """... and went on until the checkpoint was on disk."""
    train_s: float | None = None
    save_s: float = 0.0
    saves: int = 0
    val_s: float = 0.0
    cores: float | None = None
    """CPU cores that rank 0 kept busy on average."""
    host_gb: float | None = None
    gpu_gb: float | None = None


MetricsLine = StartLine | StepLine | EpochLine | SaveLine
DECODER: msgspec.json.Decoder[MetricsLine] = msgspec.json.Decoder(MetricsLine)


def read_metrics(run_dir: Path) -> list[MetricsLine]:
    """All whole lines of metrics.jsonl, oldest first."""
    return read_lines(run_dir / METRICS_FILE, DECODER)


def reached_step(lines: Sequence[MetricsLine]) -> int:
    """The last step that lines tell of; 0 without any."""
    return max((line.step for line in lines), default=0)


def slowest_stop_s(run_dir: Path) -> float:
    """Longest time a run has taken to save, and to validate beside it if that is due; 0 = unknown.

    A stop may have to wait for one checkpoint and write another: twice that.
    """
    lines = read_metrics(run_dir)
    saves = [line.seconds + line.beside_s for line in lines if isinstance(line, SaveLine)]
    validations = [line.val_seconds or 0.0 for line in lines if isinstance(line, EpochLine)]
    return max(saves, default=0.0) + max(validations, default=0.0)


@dataclass(frozen=True)
class Progress:
    """How far a training is; all 0 or None before its first line."""

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    images_per_s: float | None = None
    eta_s: float | None = None


def read_progress(run_dir: Path) -> Progress:
    """How far the training of a run is."""
    return progress_of(*read_ends(run_dir))


def progress_of(start: StartLine | None, tail: Sequence[MetricsLine]) -> Progress:
    """How far a training is, from the first line of metrics.jsonl and its last ones."""
    if start is None:
        return Progress()
    step = reached_step(tail)
    steps = [line for line in tail if isinstance(line, StepLine)]
    loss, images_per_s = (steps[-1].loss, steps[-1].images_per_s) if steps else (None, None)
    epoch, eta_s = step / max(start.steps_per_epoch, 1), _eta_s(start.total_steps - step, tail)
    return Progress(step, start.total_steps, epoch, loss, images_per_s, eta_s)


def _eta_s(steps_left: int, tail: Sequence[MetricsLine]) -> float | None:
    """Seconds to go at the pace between the last two step lines of the newest attempt; None without two."""
    # no pace over the time in which it waited to go on
    own = takewhile(lambda line: not isinstance(line, StartLine), reversed(tail))
    newest = list(islice((line for line in own if isinstance(line, StepLine)), 2))
    if len(newest) < 2 or newest[0].step <= newest[1].step:
        return None
    pace_s = (newest[0].time - newest[1].time) / (newest[0].step - newest[1].step)
    return max(0.0, steps_left * pace_s)


def read_ends(run_dir: Path) -> tuple[StartLine | None, list[MetricsLine]]:
    """The first line of metrics.jsonl, and those since a start or save: of the steps, only the last two."""
    path = run_dir / METRICS_FILE
    try:
        with path.open("rb") as file:
            first, tail = file.readline(), _last_lines(file)
    except (FileNotFoundError, NotADirectoryError):
        return None, []
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}", "see who may read it") from error
    start = decode(first, DECODER, f"{path}, line 1,") if first.endswith(b"\n") else None
    lines = [decode(line, DECODER, str(path)) for line in _newest(tail)]
    return start if isinstance(start, StartLine) else None, lines


def _newest(lines: list[bytes]) -> list[bytes]:
    """These lines with no more than the last two steps among them."""
    steps = (number for number in reversed(range(len(lines))) if lines[number].startswith(STEPS))
    begin = next(islice(steps, 1, None), 0)
    return [line for line in lines[:begin] if not line.startswith(STEPS)] + lines[begin:]


def _last_lines(file: BinaryIO) -> list[bytes]:
    """The whole lines at the end of a file, back to a start or save line at least."""
    size, length = file.seek(0, os.SEEK_END), TAIL_BYTES
    while True:
        file.seek(max(0, size - length))
        content = file.read(length)
        content = content[: content.rfind(b"\n") + 1]
        if length >= size or any(b"\n" + mark in content for mark in STARTS_AND_SAVES):
            return whole_lines(content)[length < size :]  # the first may have begun before
        length *= 4
