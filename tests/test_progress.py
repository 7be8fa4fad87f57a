"""How far a pack is: what an earlier attempt packed does not count for the speed."""

import logging

import pytest

from data_prep.progress import LoggedProgress, shown_progress


def test_speed_leaves_out_what_was_packed_before(caplog: pytest.LogCaptureFixture) -> None:
    clock = iter((0.0, 20.0, 40.0))
    with caplog.at_level(logging.INFO, "data_prep.progress"):
        progress = LoggedProgress(1000, clock=lambda: next(clock))
        for count in (800, 100, 100):
            progress.advance(count)
    assert caplog.messages == [
        "800 of 1000 images are packed already",
        "900 of 1000 images, 5 images/s, 20 s left",
        "1000 of 1000 images, 5 images/s, 0 s left",
    ]


def test_lines_come_every_ten_seconds_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = iter(range(100))  # a second an image
    with caplog.at_level(logging.INFO, "data_prep.progress"):
        progress = LoggedProgress(25, clock=lambda: float(next(clock)))
        for count in [0] + [1] * 25:
            progress.advance(count)
    assert [message.partition(" of")[0] for message in caplog.messages] == ["10", "20", "25"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with shown_progress(40, "packing") as progress:
        progress(30)
        for _ in range(10):
            progress(1)
    shown = capsys.readouterr().err
    assert "packing" in shown
    assert "40/40" in shown
