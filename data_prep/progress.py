"""How far a pack is: a bar on a terminal, a line in the log now and then elsewhere.

The first count it is told is what an earlier attempt packed, which says nothing about the speed.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


@contextmanager
def shown_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of images that were packed since the last call."""
    if not sys.stderr.isatty():
        yield LoggedProgress(total).advance
        return
    speed = TextColumn("{task.fields[speed]:,.0f} images/s")
    columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task("packing", total=None, speed=0.0)

        def advance(count: int) -> None:
            if bar.tasks[0].total is None:
                bar.reset(row, total=total, completed=count)
            else:
                bar.update(row, advance=count, speed=bar.tasks[0].speed or 0.0)

        yield advance


class LoggedProgress:
    """Images done, images per second and time left, at most every few seconds."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done = total, 0
        self.num_before: int | None = None  # images of an earlier attempt
        self.clock = clock
        self.start = self.last_line = clock()

    def advance(self, count: int) -> None:
        """Count images, and log a line if one is due."""
        self.done += count
        if self.num_before is None:
            self.num_before = count
            if count:
                log.info("%d of %d images are packed already", count, self.total)
            return
        now = self.clock()
        if self.done == self.total or now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            pace = (self.done - self.num_before) / max(now - self.start, 1e-9)
            left_s = (self.total - self.done) / max(pace, 1e-9)
            log.info("%d of %d images, %.0f images/s, %.0f s left", self.done, self.total, pace, left_s)
