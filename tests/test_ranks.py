"""The number of ranks changes nothing but the time."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tiny import child_environment, make_run
from warm import on_ranks, train_on_rank

from data_prep.errors import RunError, SettingsError
from vae.config import RunConfig
from vae.metrics import StartLine, StepLine, read_metrics
from vae.study import is_trained
from vae.training.accelerator import check_world_size, choose_precision, first_loss_scale, start_accelerator
from vae.training.collectives import any_rank
from vae.training.trainer import train

VARIANTS = ("linear", "direct")
# Relative difference of the losses: fp64 leaves only the order of sums; fp32 grows it over 50 Adam steps.
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4}
STEPS = 50
STOPPED_AT = 20


def losses(run_dir: Path) -> list[float]:
    return [line.loss for line in read_metrics(run_dir) if isinstance(line, StepLine)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Both variants, both precisions, 50 steps, on 1, 2 and 4 gloo ranks."""
    root = tmp_path_factory.mktemp("ranks")
    moved = make_run(root / "moved", shards, precision="fp64", max_steps=STEPS, epochs=STEPS)
    for world_size in (1, 2, 4):
        folders = [
            make_run(
                root / f"{variant}-{precision}-x{world_size}",
                shards,
                variant=variant,
                precision=precision,
                max_steps=STEPS,
                epochs=STEPS,
            )
            for variant in VARIANTS
            for precision in TOLERANCE
        ]
        # starting ranks costs more than these trainings, so the stopped run joins them
        if world_size == 1:
            for folder in folders:
                train(folder)
        else:
            part = f"{moved}@{STOPPED_AT}" if world_size == 2 else str(moved)
            on_ranks(world_size, train_on_rank, *map(str, folders), part)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_follow_the_same_trajectory(runs: Path, variant: str, precision: str, world_size: int) -> None:
    alone = losses(runs / f"{variant}-{precision}-x1")
    together = losses(runs / f"{variant}-{precision}-x{world_size}")
    assert len(alone) == STEPS
    assert together == pytest.approx(alone, rel=TOLERANCE[precision], abs=0)
    assert alone[-1] < 0.9 * alone[0]  # it is a training, not a constant


@pytest.mark.slow
def test_run_stopped_on_two_ranks_goes_on_with_four(runs: Path) -> None:
    """Its second rank was asked to stop; four ranks went on from there to the same end."""
    starts = [line.step for line in read_metrics(runs / "moved") if isinstance(line, StartLine)]
    assert starts == [0, STOPPED_AT]
    assert is_trained(runs / "moved")
    assert losses(runs / "moved") == pytest.approx(losses(runs / "linear-fp64-x1"), rel=1e-9, abs=0)


def test_fewer_ranks_than_asked_for_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate can come up alone where two ranks were asked for; training then would be twice the same."""
    accelerator = start_accelerator(RunConfig(trackers=()), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="1 of 2 ranks"):
        check_world_size(accelerator)


def test_precisions_are_chosen_or_refused() -> None:
    assert choose_precision("auto", on_gpu=False) == "no"
    assert choose_precision("bf16", on_gpu=False) == "bf16"
    assert choose_precision("fp64", on_gpu=True) == "no"
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        choose_precision("fp16", on_gpu=False)


def test_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown tracker 'tensorbord'; known: "):
        start_accelerator(RunConfig(trackers=("tensorbord",)), tmp_path)


def test_first_loss_scale_is_that_of_a_mean_loss() -> None:
    assert first_loss_scale(RunConfig()) * 32 * 256 * 256 == 65536


def test_one_rank_agrees_with_itself(tmp_path: Path) -> None:
    assert "WORLD_SIZE" not in os.environ
    start_accelerator(RunConfig(trackers=()), tmp_path)
    assert any_rank(True, False) == [True, False]


def test_a_rank_that_meets_nobody_names_itself_and_the_place(tmp_path: Path) -> None:
    code = """
        import datetime, pathlib, vae.training.accelerator as ranks
        from data_prep.errors import RunError
        ranks.RENDEZVOUS_TIME_LIMIT = datetime.timedelta(seconds=1)
        try:
            ranks.start_accelerator(ranks.RunConfig(trackers=()), pathlib.Path())
        except RunError as error:
            print(error, "|", error.hint)
    """
    with socket.socket() as nobody:  # holds the port without listening
        nobody.bind(("127.0.0.1", 0))
        port = str(nobody.getsockname()[1])
        ranks = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        env = {**child_environment(), **ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.stdout.startswith(f"rank 1 on {socket.gethostname()} did not meet the others"), done.stderr
    assert f"127.0.0.1:{port} (network interface: chosen by the library)" in done.stdout
    assert "NCCL_SOCKET_IFNAME" in done.stdout
