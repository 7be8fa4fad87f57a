"""jobs/status.py: what every run is doing, for a person and for a pipe."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doors import run_door
from fake_slurm import FakeSlurm
from slurm_jobs import TRAIN
from tiny import REPOSITORY, child_environment, finish, score, write_attempts, write_lines

from data_prep.files import write_text
from slurm.job_records import add_record
from vae.metrics import TAIL_BYTES, StartLine, StepLine
from vae.provenance import Attempt
from vae.run_dir import DONE_FILE, METRICS_FILE, RUN_FILE, SCORES_FILE
from vae.study import Study, prepare_study

START = StartLine(step=0, total_steps=1000, steps_per_epoch=100)


def step(number: int, loss: float = 5.0, images_per_s: float = 64.0, time: float | None = None) -> StepLine:
    when = number / 2 if time is None else time
    return StepLine(
        step=number, time=when, epoch=0.0, loss=loss, bce=0.0, kl=0.0, lr=0.0, images_per_s=images_per_s
    )


def test_every_run_has_a_row_and_scores_have_their_label(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    study_dir = tmp_path / "chest"
    prepare_study(study_dir, Study("chest", ("linear-s0", "direct-s0"), "smoke"))
    run_dir = study_dir / "linear-s0"
    write_lines(run_dir, START, step(240, 31234.5, 64.2), step(250, 31200.25, 64.0))
    write_attempts(run_dir, Attempt(), Attempt(), Attempt())
    finish(run_dir)
    score(run_dir, scores={"rfid_paper": {"value": 0.25}, "gfid_paper": {"value": None}})
    shown = run_door("status", "chest", "--runs-dir", tmp_path)
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
    score(tmp_path / "chest" / "linear-s0", label="", scores={})
    finish(tmp_path / "chest" / "linear-s0")
    rest, _ = watching.communicate(timeout=30)
    assert watching.returncode == 0
    assert re.findall(r"^linear-s0 +(\w+)", rest, re.M)[-1] == "done"


def test_watching_shows_files_often_and_asks_slurm_seldom(
    tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm.take_over_time(monkeypatch)
    prepare_study(tmp_path / "chest", Study("chest", ("linear-s0",), "smoke"))
    run_dir = tmp_path / "chest" / "linear-s0"
    for number in range(1, 9):
        fake_slurm.submit("chest-train" if number == 8 else "other", array="0-1")
    add_record(tmp_path / "chest", TRAIN)
    fake_slurm.start("8")
    fake_slurm.at(101, lambda: write_lines(run_dir, START, step(240)))
    fake_slurm.at(1001, lambda: (finish(run_dir), score(run_dir), fake_slurm.end("8_0")))
    shown = run_door("status", "chest", "--runs-dir", tmp_path, "--watch=2")
    assert shown.returncode == 0, shown.stderr
    states = re.findall(r"^linear-s0 +(training|done) +(240|0|)", shown.stdout, re.M)
    assert [states.count(state) for state in dict.fromkeys(states)] == [51, 450, 1]
    assert fake_slurm.asked("squeue") <= 4 + 1000 / 60
    assert fake_slurm.asked("sacct") == 0  # its files say how it ended


def test_slurm_is_not_asked_all_the_time(tmp_path: Path) -> None:
    prepare_study(tmp_path / "chest", Study("chest"))
    for seconds in ("0", "-3"):
        shown = run_door("status", "chest", "--runs-dir", tmp_path, f"--watch={seconds}")
        assert (shown.returncode, shown.stdout) == (2, "")
        assert shown.stderr == f"error: --watch {seconds}; allowed: at least 2 seconds\n"


def test_an_unknown_study_names_the_known_ones(tmp_path: Path) -> None:
    prepare_study(tmp_path / "chest", Study("chest"))
    shown = run_door("status", "cest", "--runs-dir", tmp_path)
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"error: no study 'cest'. Known in {tmp_path}: chest.\nhint: ")


def test_without_a_study_all_are_listed(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    prepare_study(tmp_path / "chest", Study("chest", ("linear-s0", "direct-s0", "spatial-s0"), "smoke"))
    run_dir = tmp_path / "chest" / "linear-s0"
    finish(run_dir)
    score(run_dir)
    write_text(tmp_path / "by-hand" / "first" / RUN_FILE, "seed: 1")
    for path in (tmp_path / "chest").rglob("*"):
        os.utime(path, (0, 0))
    os.utime(run_dir / SCORES_FILE, (3e8, 3e8))
    os.utime(tmp_path / "chest", (0, 0))
    shown = run_door("status", "--runs-dir", tmp_path)
    assert shown.returncode == 0, shown.stderr
    rows = [re.split(r"  +", line.strip()) for line in shown.stdout.splitlines()[1:]]
    assert [row[:3] for row in rows] == [
        ["by-hand", "0 of 1", "1 missing"],
        ["chest", "1 of 3", "2 missing"],
    ]
    assert rows[1][3].startswith("1979-07-05")
    write_text(tmp_path / "by-hand" / "jobs.json", "{")  # tells nothing of the other studies
    shown = run_door("status", "--runs-dir", tmp_path)
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == ["chest"]
    assert re.match(r"warning: .*jobs\.json is damaged", shown.stderr)
    nothing = run_door("status", "--runs-dir", tmp_path / "none")
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr.startswith("error: no study in ")


def test_a_damaged_run_is_shown_and_so_are_the_others(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    prepare_study(tmp_path / "chest", Study("chest", ("linear-s0", "direct-s0"), "smoke"))
    write_text(tmp_path / "chest" / "linear-s0" / DONE_FILE, '{"step": "three"}')
    shown = run_door("status", "chest", "--runs-dir", tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^linear-s0 +damaged .*done\.json is damaged: .*; remove it and", shown.stdout, re.M)
    assert re.search(r"^direct-s0 +missing ", shown.stdout, re.M)


def test_runs_that_were_trained_by_hand_need_no_study(scored_study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "try"
    shutil.copytree(scored_study, folder)
    (folder / "study.yaml").unlink()
    shown = run_door("status", folder)
    assert re.findall(r"^(\S+-s\d) +(\w+)", shown.stdout, re.M)[:3] == [
        ("direct-s0", "done"),
        ("linear-s0", "done"),
        ("linear-s1", "stopped"),
    ]
    one = run_door("status", folder / "linear-s1")
    assert re.findall(r"^(\S+-s\d) +(\w+)", one.stdout, re.M) == [("linear-s1", "stopped")]
    done = run_door("report", folder / "direct-s0")
    assert done.stdout.strip() == str(folder / "direct-s0" / "report.html"), done.stderr
    page = (folder / "direct-s0" / "report.md").read_text()
    assert page.startswith("# Run direct-s0\n")
    assert "linear-s0" not in page
    assert not (folder / "report.md").exists()


def test_help_says_what_the_states_mean() -> None:
    shown = run_door("status", "--help").stdout
    assert "examples:" in shown
    for state in ("done", "training", "queued", "failed", "cancelled", "stopped", "missing", "unknown"):
        assert re.search(rf"\b{state} ", shown)


def test_useful_share_of_the_time_is_shown_also_long_after_the_last_save(
    tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    """90 of 100 s are training; the end of the file that status reads holds neither the start nor a save."""
    study_dir, run_dir = tmp_path / "chest", tmp_path / "chest" / "linear-s0"
    prepare_study(study_dir, Study("chest", ("linear-s0",), "smoke"))
    start = StartLine(step=0, time=110.0, total_steps=1000, steps_per_epoch=100)
    write_lines(run_dir, start, *(step(number, time=110 + number / 10) for number in range(1, 901)))
    assert (run_dir / METRICS_FILE).stat().st_size > TAIL_BYTES
    write_attempts(run_dir, Attempt(started_s=100.0, from_step=0))
    shown = run_door("status", "chest", "--runs-dir", tmp_path).stdout.splitlines()
    assert shown[1].split()[-3:] == ["restarts", "useful", "note"]
    columns = ["linear-s0", "stopped", "900", "of", "1,000", "9.0", "5.0", "64", "0", "90%"]
    assert shown[2].split() == columns
