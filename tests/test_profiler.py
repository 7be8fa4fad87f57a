"""Profiled steps: a trace that other programs open, and the same training as without."""

import gzip
import json
import logging
from pathlib import Path

import pytest
from tiny import make_run

from data_prep.errors import SettingsError
from vae.config import RunConfig
from vae.metrics import StepLine, read_metrics
from vae.run_dir import profile_path
from vae.training.trainer import train


def test_a_trace_holds_the_steps_asked_for(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = make_run(tmp_path / "plain", shards, max_steps=4, log_every_steps=1)
    profiled = make_run(tmp_path / "run", shards, max_steps=4, log_every_steps=1, profile_steps="2:3")
    with caplog.at_level(logging.INFO):
        train(plain), train(profiled)
    trace = json.loads(gzip.decompress(profile_path(profiled, "2:3", 0).read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("aten::_fused_adam_") == 2
    assert "Self CPU" in caplog.text
    losses = [
        [line.loss for line in read_metrics(run) if isinstance(line, StepLine)] for run in (plain, profiled)
    ]
    assert losses[0] == losses[1]


def test_a_profile_that_reaches_beyond_the_last_step_is_written(tmp_path: Path, shards: Path) -> None:
    run = make_run(tmp_path / "run", shards, max_steps=2, profile_steps="2:9")
    train(run)
    assert profile_path(run, "2:9", 0).exists()


@pytest.mark.parametrize("given", ["3", "3:2", "0:1", "a:b", "1:", "-1:2"])
def test_steps_that_do_not_count_upwards_are_refused(given: str) -> None:
    with pytest.raises(SettingsError, match="allowed: A:B, 1 <= A <= B"):
        RunConfig(profile_steps=given)
