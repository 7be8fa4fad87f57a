"""Progress: a bar on a terminal, a line in the log now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from data_prep.plain_text import one_line

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


class PlainColumn(TextColumn):
    """Text beside a bar in which rich finds no markup: names of runs and folders stand in it."""

    def render(self, task: Task) -> Text:
        return Text(one_line(self.text_format.format(task=task)))


def terminal_bar(after_count: str, note: str = "", is_hidden: bool = False) -> Progress:
    """A bar with a title, a count and the time left; disabled if standard error is no terminal."""
    title, after, last = map(PlainColumn, ("{task.description}", after_count, note))
    columns = (title, BarColumn(), MofNCompleteColumn(), after, TimeRemainingColumn(), last)
    return Progress(*columns, console=Console(stderr=True), disable=is_hidden or not sys.stderr.isatty())


@contextmanager
def shown_progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """A function to call with the images done since the last call; first with those done long before."""
    if not sys.stderr.isatty():
        yield LoggedProgress(total).advance
        return
    with terminal_bar("{task.fields[speed]:,.0f} images/s") as bar:

        def advance(count: int) -> None:
            if not bar.tasks:
                bar.add_task(title, total=total, completed=count, speed=0.0)
            else:
                bar.update(bar.tasks[0].id, advance=count, speed=bar.tasks[0].speed or 0.0)

        yield advance


class LoggedProgress:
    """Images done, images per second and time left, at most every few seconds."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self.clock = total, 0, clock
        self.num_before: int | None = None  # images of an earlier attempt
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
