"""slurm/status_tables.py: tables that a person and a pipe can read."""

from pathlib import Path

import pytest
from tiny import finish

from slurm.status_tables import last_change, scores_table, states_table, studies_table
from slurm.study_state import RunStatus
from vae.goodput import duration
from vae.metrics import Progress
from vae.run_state import RunState


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0 s"),
        (0.35, "0.35 s"),
        (9.6, "9.6 s"),
        (89, "89 s"),
        (90, "2 min"),
        (5400, "1 h 30 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_have_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_is_shown_only_while_training() -> None:
    def table(state: RunState) -> str:
        progress = Progress(250, 1000, 2.5, 5.0, 64.0, eta_s=375.0)
        return states_table([RunStatus("linear-s0", state, progress=progress)])

    assert "6 min" in table(RunState.TRAINING)
    assert "6 min" not in table(RunState.STOPPED)


def test_comparable_scores_carry_no_note() -> None:
    scores = {"rfid_paper": 0.25, "psnr": 31.5}
    assert "note" not in scores_table([RunStatus("linear-s0", RunState.DONE, scores=scores)])
    smoke = RunStatus("linear-s0", RunState.DONE, scores=scores, label="smoke, not comparable")
    assert "note" in scores_table([smoke])


def test_a_note_is_shown_as_it_is() -> None:
    detail = "train FAILED, [/data/x] is full :fire: [bold]"
    assert detail in states_table([RunStatus("linear-s0", RunState.FAILED, detail)])


def test_a_study_changes_when_a_run_of_it_does(tmp_path: Path) -> None:
    runs = [RunStatus("linear-s0", RunState.DONE), RunStatus("direct-s0", RunState.QUEUED)]
    (tmp_path / "chest").mkdir()
    before = last_change(tmp_path / "chest", runs)
    finish(tmp_path / "chest" / "linear-s0")
    assert last_change(tmp_path / "chest", runs) >= before
    row = studies_table({tmp_path / "chest": runs}).splitlines()[1]
    assert row.split()[:6] == ["chest", "1", "of", "2", "1", "queued"]


def test_a_collapse_is_noted_beside_the_scores() -> None:
    scores = {"psnr": 11.5, "active_units": 0.0}
    table = scores_table([RunStatus("linear-s0", RunState.DONE, scores=scores, label="smoke")])
    assert "smoke; posterior collapse: no latent tells images apart" in table
