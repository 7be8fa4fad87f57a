"""How an attempt begins: provenance, events and metrics tell the same of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import make_run

from vae.events import Completed, Saved, StopSignalled, by_attempt, read_events
from vae.provenance import read_attempts, record_attempt, this_attempt
from vae.run_dir import CHECKPOINTS_DIR, METRICS_FILE
from vae.training.trainer import train


def test_provenance_tells_every_attempt(tmp_path: Path, shards: Path) -> None:
    run_dir = make_run(tmp_path / "run", shards)
    answers = iter([False, True])
    train(run_dir, should_stop=lambda: next(answers), attempt=this_attempt(job="17"))
    train(run_dir, attempt=this_attempt(job="18"))
    provenance = json.loads((run_dir / "provenance.json").read_text())
    assert [(attempt["job"], attempt["from_step"]) for attempt in provenance["attempts"]] == [
        ("17", 0),
        ("18", 2),
    ]
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0]


def test_events_tell_every_attempt_save_and_end(tmp_path: Path, shards: Path) -> None:
    """Stopped after step 2, cut off (by an error in this process) after step 5, then brought to its end."""
    run_dir = make_run(tmp_path / "run", shards, checkpoint_every_min=1000, max_steps=7)
    answers = iter([False, True])
    train(run_dir, should_stop=lambda: next(answers), attempt=this_attempt(job="17"))
    answers = iter([False, False, False])
    with pytest.raises(StopIteration):
        train(run_dir, should_stop=lambda: next(answers), attempt=this_attempt(job="17", restart=1))
    assert train(run_dir, attempt=this_attempt(job="18")) is True
    first, second, third = by_attempt(read_events(run_dir))
    starts = [(course.started.step, course.started.reached_step) for course in (first, second, third)]
    assert starts == [(0, 0), (2, 2), (2, 6)]
    assert (second.started.job, second.started.restart, third.started.redone_s > 0) == ("17", 1, True)
    assert [type(event) for event in first.events] == [Saved, StopSignalled]
    assert (first.was_signalled, second.events, third.events[-1].step) == (True, [], 7)
    assert isinstance(third.events[-1], Completed)


@pytest.mark.parametrize("is_begun", [False, True])
def test_an_attempt_killed_while_it_began_stands_in_both_files(
    tmp_path: Path, shards: Path, is_begun: bool
) -> None:
    """provenance.json knows of it, events.jsonl does not; metrics.jsonl may have been cut already."""
    run_dir = make_run(tmp_path / "run", shards, checkpoint_every_min=60.0)
    answers = iter([False] * 4 + [True])
    train(run_dir, should_stop=lambda: next(answers), attempt=this_attempt(job="17"))
    shutil.rmtree(run_dir / CHECKPOINTS_DIR)  # as if the disk had lost it: all steps are done again
    if is_begun:
        (run_dir / METRICS_FILE).unlink()
    record_attempt(run_dir, "", this_attempt(job="18", from_step=0, restart=1))
    train(run_dir, attempt=this_attempt(job="19"))
    starts = [course.started for course in by_attempt(read_events(run_dir))]
    attempts = read_attempts(run_dir)
    assert [(start.job, start.restart, start.step) for start in starts] == [
        (attempt.job, attempt.restart, attempt.from_step) for attempt in attempts
    ]
    assert [start.job for start in starts] == ["17", "18", "19"]
    assert [start.reached_step for start in starts] == [0, 0 if is_begun else 5, 0]
    assert starts[1].time == attempts[1].started_s
