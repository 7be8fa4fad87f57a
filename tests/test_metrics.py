"""vae/metrics.py: lines that come back as they were written, also from the end of a long file."""

from pathlib import Path

import pytest
from tiny import write_lines

from data_prep.errors import DamagedFile
from vae import metrics
from vae.metrics import (
    EpochLine,
    Progress,
    SaveLine,
    StartLine,
    StepLine,
    read_ends,
    read_metrics,
    read_progress,
    slowest_stop_s,
)

START = StartLine(step=0, time=100.0, total_steps=40, steps_per_epoch=10)


def step(number: int, time: float) -> StepLine:
    return StepLine(
        step=number, time=time, epoch=number / 10, loss=5.0, bce=4.0, kl=1.0, lr=1e-3, images_per_s=8.0
    )


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    epoch = EpochLine(step=10, epoch=1, train_loss=3.0, train_bce=2.0, train_kl=1.0, val_loss=2.5)
    save = SaveLine(step=10, seconds=0.5, train_s=9.0, saves=1, host_gb=1.5)
    lines = [START, step(10, 110.0), epoch, save]
    write_lines(tmp_path, *lines)
    assert read_metrics(tmp_path) == lines


def test_half_written_metrics_line_is_left_out(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    write_lines(tmp_path, START, step(1, 101.0))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"st')
    assert read_metrics(tmp_path) == [START, step(1, 101.0)]


@pytest.mark.parametrize("content", ["\udcff", '{"kind": "nap", "step": 1}', "[]", '{"kind": "step"}'])
def test_a_line_that_is_not_ours_is_named(tmp_path: Path, content: str) -> None:
    write_lines(tmp_path, START)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(content.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl, line 2, is damaged: "):
        read_metrics(tmp_path)
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl is damaged: "):
        read_ends(tmp_path)


def test_lines_of_older_code_are_read(tmp_path: Path) -> None:
    """It put a space behind each colon."""
    old = (
        '{"kind": "start", "step": 0, "total_steps": 40, "steps_per_epoch": 10, "restarts": 0, "time": 1.5}\n'
    )
    (tmp_path / "metrics.jsonl").write_text(old)
    assert read_ends(tmp_path)[0] == StartLine(step=0, time=1.5, total_steps=40, steps_per_epoch=10)


def test_a_long_file_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back to the last save, with the first line and the last two steps."""
    monkeypatch.setattr(metrics, "TAIL_BYTES", 64)
    save = SaveLine(step=5, time=105.0, seconds=0.1)
    steps = [step(number, 100.0 + number) for number in range(1, 40)]
    write_lines(tmp_path, START, *steps[:5], save, *steps[5:])
    assert read_ends(tmp_path) == (START, [save, *steps[-2:]])


def test_progress_has_the_pace_of_the_newest_attempt(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == Progress()
    again = StartLine(step=2, time=500.0, total_steps=40, steps_per_epoch=10, restarts=1)
    write_lines(tmp_path, START, step(1, 101.0), step(2, 102.0), again)
    assert read_progress(tmp_path).eta_s is None  # no pace over the time in which it waited to go on
    write_lines(tmp_path, START, step(2, 102.0), again, step(10, 510.0), step(20, 530.0))
    assert read_progress(tmp_path) == Progress(20, 40, 2.0, 5.0, 8.0, eta_s=20 * 2.0)


def test_a_save_that_was_written_beside_the_steps_is_no_step_back(tmp_path: Path) -> None:
    write_lines(tmp_path, START, step(1, 101.0), step(2, 102.0), SaveLine(step=1, seconds=0.1, beside_s=0.5))
    assert read_progress(tmp_path).step == 2


def test_the_longest_stop_is_the_slowest_save_and_validation_together(tmp_path: Path) -> None:
    assert slowest_stop_s(tmp_path) == 0.0
    losses = {"train_loss": 1.0, "train_bce": 1.0, "train_kl": 0.0}
    write_lines(
        tmp_path,
        SaveLine(step=1, seconds=0.5),
        EpochLine(step=2, epoch=1, val_seconds=3.0, **losses),
        SaveLine(step=2, seconds=2.0),
        EpochLine(step=4, epoch=2, **losses),
        step(4, 104.0),
    )
    assert slowest_stop_s(tmp_path) == 5.0
    write_lines(tmp_path, SaveLine(step=1, seconds=0.5, beside_s=4.0), SaveLine(step=2, seconds=2.0))
    assert slowest_stop_s(tmp_path) == 4.5
