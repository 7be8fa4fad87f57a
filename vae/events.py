"""events.jsonl: what happened to a run, attempt by attempt; a resume adds to it and drops nothing.

metrics.jsonl reads like that of an unbroken run; here stands what interruptions did to it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from data_prep.json_records import Record, append_line, read_lines
from vae.run_dir import EVENTS_FILE


class Event(Record, frozen=True, kw_only=True, omit_defaults=True, tag_field="event"):
    """What every event has."""

    step: int
    """Steps taken so far."""
    time: float = msgspec.field(default_factory=time.time)
    """Unix seconds."""


class AttemptStarted(Event, frozen=True, tag="attempt"):
    """Training begins, or goes on from a checkpoint, at `step`."""

    job: str = ""
    """Job id, with the array index if it has one; empty for a run that is trained by hand."""
    restart: int = 0
    reached_step: int = 0
    """The last step that the attempt before it has written down; 0 for the first."""
    redone_s: float = 0.0
    """Training time of the steps after `step` that it has written down, which are done again now."""


class StopSignalled(Event, frozen=True, tag="stop"):
    """A rank was asked to stop; the run is saved at `step`, and this attempt is over."""


class Saved(Event, frozen=True, tag="save"):
    """A checkpoint of `step` is complete."""

    seconds: float


class Completed(Event, frozen=True, tag="end"):
    """The last step is done and saved."""


AnyEvent = AttemptStarted | StopSignalled | Saved | Completed
DECODER: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def read_events(run_dir: Path) -> list[AnyEvent]:
    """All events of a run, oldest first; none of a run that older code has trained. May raise DamagedFile."""
    return read_lines(run_dir / EVENTS_FILE, DECODER)


def add_event(run_dir: Path, event: AnyEvent) -> None:
    """Write down what has just happened; only rank 0 does."""
    append_line(run_dir / EVENTS_FILE, event)


@dataclass(frozen=True)
class Course:
    """What happened in one attempt."""

    started: AttemptStarted
    events: list[AnyEvent]
    """What happened until the next attempt, `started` left out."""

    @property
    def saved_step(self) -> int:
        """The step it could be resumed from when it ended."""
        return max([self.started.step, *(event.step for event in self.events if isinstance(event, Saved))])

    @property
    def was_signalled(self) -> bool:
        """Whether it ended because it was asked to, and saved."""
        return any(isinstance(event, StopSignalled) for event in self.events)


def by_attempt(events: Sequence[AnyEvent]) -> list[Course]:
    """The events attempt by attempt; what stands before the first start belongs to none."""
    courses: list[Course] = []
    for event in events:
        if isinstance(event, AttemptStarted):
            courses.append(Course(event, []))
        elif courses:
            courses[-1].events.append(event)
    return courses
