"""jobs/status.py and slurm/tables.py: a table that a person and a pipe can read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import REPOSITORY, child_environment

from data_prep.files import write_json, write_text
from slurm.state import RunState
from slurm.status_tables import duration, scores_table, states_table
from vae.metrics import TAIL_BYTES
from vae.study import DONE_FILE, METRICS_FILE, PROVENANCE_FILE, RUN_FILE, SCORES_FILE, Study, prepare_study

STEPS = """\
{"kind": "start", "step": 0, "total_steps": 1000, "steps_per_epoch": 100, "time": 0}
{"kind": "step", "step": 240, "loss": 31234.5, "images_per_s": 64.2, "time": 120}
{"kind": "step", "step": 250, "loss": 31200.25, "images_per_s": 64.0, "time": 125}
"""


def status(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / "status.py"), *words]
    return subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=60)


def test_every_run_has_a_row_and_scores_have_their_label(tmp_path: Path) -> None:
    study_dir = tmp_path / "chest"
    prepare_study(study_dir, Study("chest", ("linear-s0", "direct-s0"), "smoke"))
    run_dir = study_dir / "linear-s0"
    write_text(run_dir / METRICS_FILE, STEPS)
    write_json(run_dir / PROVENANCE_FILE, {"attempts": [{}, {}, {}]})
    write_json(run_dir / DONE_FILE, {"weights_sha256": "ab"})
    scores = {"rfid_paper": {"value": 0.25}, "gfid_paper": {"value": None, "reason": "cannot sample"}}
    card = {"checkpoint_sha256": "ab", "extractor": "smoke", "label": "smoke, not comparable"}
    write_json(run_dir / SCORES_FILE, {**card, "scores": scores})
    shown = status("chest", "--runs-dir", str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    lines = [line.rstrip() for line in shown.stdout.splitlines()]
    assert [re.split(r"  +", line) for line in lines if line.startswith(("linear", "direct"))] == [
        ["linear-s0", "done", "250 of 1,000", "2.5", "31,200.2", "64", "2"],
        ["direct-s0", "missing", "0"],
        ["linear-s0", "0.25", "-", "-", "-", "-", "-", "-", "-", "smoke, not comparable"],
    ]
    assert "\x1b" not in shown.stdout


def test_watching_ends_when_every_run_is_done(tmp_path: Path) -> None:
    prepare_study(tmp_path / "chest", Study("chest", ("linear-s0",), "smoke"))
    command = [sys.executable, str(REPOSITORY / "jobs" / "status.py"), "chest", "--watch", "2"]
    watching = subprocess.Popen(
        [*command, "--runs-dir", str(tmp_path)], env=child_environment(), stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    first = [watching.stdout.readline() for _ in range(5)]
    assert first[2].split() == ["linear-s0", "missing", "0"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", first[4].strip())
    run_dir = tmp_path / "chest" / "linear-s0"
    card = {"checkpoint_sha256": "ab", "extractor": "smoke", "label": "", "scores": {}}
    write_json(run_dir / SCORES_FILE, card)
    write_json(run_dir / DONE_FILE, {"weights_sha256": "ab"})
    rest, _ = watching.communicate(timeout=30)
    assert watching.returncode == 0
    assert re.findall(r"^linear-s0 +(\w+)", rest, re.M)[-1] == "done"


def test_slurm_is_not_asked_all_the_time(tmp_path: Path) -> None:
    prepare_study(tmp_path / "chest", Study("chest"))
    for seconds in ("0", "-3"):
        shown = status("chest", "--runs-dir", str(tmp_path), f"--watch={seconds}")
        assert (shown.returncode, shown.stdout) == (2, "")
        assert shown.stderr == f"error: --watch {seconds}; allowed: at least 2 seconds\n"


def test_an_unknown_study_names_the_known_ones(tmp_path: Path) -> None:
    prepare_study(tmp_path / "chest", Study("chest"))
    shown = status("cest", "--runs-dir", str(tmp_path))
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"error: no study 'cest'. Known in {tmp_path}: chest.\nhint: ")


def test_without_a_study_all_are_listed(tmp_path: Path) -> None:
    prepare_study(tmp_path / "chest", Study("chest", ("linear-s0", "direct-s0", "spatial-s0"), "smoke"))
    run_dir = tmp_path / "chest" / "linear-s0"
    write_json(run_dir / DONE_FILE, {"weights_sha256": "ab"})
    write_json(run_dir / SCORES_FILE, {"checkpoint_sha256": "ab", "extractor": "smoke", "scores": {}})
    write_text(tmp_path / "by-hand" / "first" / RUN_FILE, "seed: 1")
    for path in (tmp_path / "chest").rglob("*"):
        os.utime(path, (0, 0))
    os.utime(run_dir / SCORES_FILE, (3e8, 3e8))
    os.utime(tmp_path / "chest", (0, 0))
    shown = status("--runs-dir", str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    rows = [re.split(r"  +", line.strip()) for line in shown.stdout.splitlines()[1:]]
    assert [row[:3] for row in rows] == [
        ["by-hand", "0 of 1", "1 missing"],
        ["chest", "1 of 3", "2 missing"],
    ]
    assert rows[1][3].startswith("1979-07-05")
    write_text(tmp_path / "by-hand" / "jobs.json", "{")  # tells nothing of the other studies
    shown = status("--runs-dir", str(tmp_path))
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == ["chest"]
    assert re.match(r"warning: .*jobs\.json is damaged", shown.stderr)
    nothing = status("--runs-dir", str(tmp_path / "none"))
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr.startswith("error: no study in ")


def test_runs_that_were_trained_by_hand_need_no_study(scored_study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "try"
    shutil.copytree(scored_study, folder)
    (folder / "study.yaml").unlink()
    shown = status(str(folder))
    assert re.findall(r"^(\S+-s\d) +(\w+)", shown.stdout, re.M)[:3] == [
        ("direct-s0", "done"),
        ("linear-s0", "done"),
        ("linear-s1", "stopped"),
    ]
    one = status(str(folder / "linear-s1"))
    assert re.findall(r"^(\S+-s\d) +(\w+)", one.stdout, re.M) == [("linear-s1", "stopped")]
    report = [sys.executable, str(REPOSITORY / "jobs" / "report.py"), str(folder / "direct-s0")]
    done = subprocess.run(report, env=child_environment(), capture_output=True, text=True)
    assert done.stdout.strip() == str(folder / "direct-s0" / "report.html"), done.stderr
    page = (folder / "direct-s0" / "report.md").read_text()
    assert page.startswith("# Run direct-s0\n")
    assert "linear-s0" not in page
    assert not (folder / "report.md").exists()


def test_help_says_what_the_states_mean() -> None:
    shown = status("--help").stdout
    assert "examples:" in shown
    for state in ("done", "training", "queued", "failed", "cancelled", "stopped", "missing", "unknown"):
        assert re.search(rf"\b{state} ", shown)


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


def test_time_left_is_shown_only_while_training(capsys: pytest.CaptureFixture[str]) -> None:
    def row(state: str) -> RunState:
        return RunState("linear-s0", state, "", 250, 1000, 2.5, 5.0, 64.0, 375.0, 0, {}, "")

    print(states_table([row("training")]))
    assert "6 min" in capsys.readouterr().out
    print(states_table([row("stopped")]))
    assert "6 min" not in capsys.readouterr().out


def test_comparable_scores_carry_no_note(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"rfid_paper": 0.25, "psnr": 31.5}
    state = RunState("linear-s0", "done", "", 0, 0, 0.0, None, None, None, 0, scores, "")
    print(scores_table([state]))
    assert "note" not in capsys.readouterr().out


def test_a_note_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    detail = "train FAILED, [/data/x] is full :fire: [bold]"
    state = RunState("linear-s0", "failed", detail, 0, 0, 0.0, None, None, None, 0, {}, "")
    print(states_table([state]))
    assert detail in capsys.readouterr().out


def test_useful_share_of_the_time_is_shown_also_long_after_the_last_save(tmp_path: Path) -> None:
    """90 of 100 s are training; the end of the file that status reads holds neither the start nor a save."""
    study_dir, run_dir = tmp_path / "chest", tmp_path / "chest" / "linear-s0"
    prepare_study(study_dir, Study("chest", ("linear-s0",), "smoke"))
    start = {"kind": "start", "step": 0, "total_steps": 1000, "steps_per_epoch": 100, "time": 110.0}
    steps = [{"kind": "step", "step": step, "time": 110 + step / 10} for step in range(1, 901)]
    write_text(run_dir / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in (start, *steps)))
    assert (run_dir / METRICS_FILE).stat().st_size > TAIL_BYTES
    write_json(run_dir / PROVENANCE_FILE, {"attempts": [{"started_s": 100.0, "from_step": 0}]})
    shown = status("chest", "--runs-dir", str(tmp_path)).stdout.splitlines()
    assert shown[1].split()[-3:] == ["restarts", "useful", "note"]
    assert shown[2].split() == ["linear-s0", "stopped", "900", "of", "1,000", "9.0", "0", "90%"]
