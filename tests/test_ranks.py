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
from data_prep.json_records import write_record
from vae.config import RunConfig
from vae.metrics import StartLine, StepLine, read_metrics
from vae.provenance import Attempt, Provenance
from vae.run_dir import PROVENANCE_FILE
from vae.study import is_trained
from vae.training.accelerator import (
    check_world_size,
    choose_precision,
    first_loss_scale,
    first_precision,
    start_accelerator,
)
from vae.training.collectives import any_rank
from vae.training.trainer import train

VARIANTS = ("linear", "direct")
# Relative difference of the losses: fp64 leaves only the order of sums; fp32 grows it over 50 Adam steps.
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4}
STEPS = 50
LENGTH = {"max_steps": STEPS, "epochs": STEPS}
STOPPED_AT = 20


def losses(run_dir: Path) -> list[float]:
    return [line.loss for line in read_metrics(run_dir) if isinstance(line, StepLine)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Both variants, both precisions, 50 steps, on 1, 2 and 4 gloo ranks."""
    root = tmp_path_factory.mktemp("ranks")
    moved = make_run(root / "moved", shards, precision="fp64", **LENGTH)
    for world_size in (1, 2, 4):
        folders = [
            make_run(
                root / f"{variant}-{precision}-x{world_size}",
                shards,
                variant=variant,
                precision=precision,
                **LENGTH,
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
            rounded = make_run(root / f"bf16-x{world_size}", shards, gradient_exchange="bf16", **LENGTH)
            on_ranks(world_size, train_on_rank, *map(str, (*folders, rounded)), part)
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
def test_gradients_exchanged_in_bf16_are_rounded_and_no_more(runs: Path) -> None:
    exact, rounded = losses(runs / "linear-fp32-x2"), losses(runs / "bf16-x2")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


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
    assert choose_precision("bf16", on_gpu=False)[0] == "bf16"
    assert choose_precision("fp64", on_gpu=True)[0] == "no"
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        choose_precision("fp16", on_gpu=False)


@pytest.mark.parametrize(
    ("cpuinfo", "chosen"),
    [
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16", ("bf16", "the CPU has AMX")),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16", ("no", "the CPU is not faster in bf16")),
        ("vendor_id : AuthenticAMD\nflags : avx512_bf16", ("bf16", "the CPU has AVX512-BF16")),
        ("vendor_id : AuthenticAMD\nflags : avx2", ("no", "the CPU is not faster in bf16")),
        ("Features : asimd bf16\nCPU implementer : 0x41", ("bf16", "the CPU has ARM's bf16")),
        ("", ("no", "the CPU is not faster in bf16")),
    ],
)
def test_auto_is_bf16_on_cpus_that_are_faster_in_it(cpuinfo: str, chosen: tuple[str, str]) -> None:
    assert choose_precision("auto", on_gpu=False, cpuinfo=cpuinfo) == chosen


def test_a_run_goes_on_in_the_precision_it_began_in_whatever_the_machine(tmp_path: Path) -> None:
    fast = "vendor_id : AuthenticAMD\nflags : avx512_bf16"
    for began in (Attempt(device="cpu"), Attempt(device="cuda", precision="no")):
        write_record(tmp_path / PROVENANCE_FILE, Provenance(attempts=(began, Attempt(precision="bf16"))))
        earlier = first_precision(tmp_path)
        assert choose_precision("auto", on_gpu=False, earlier=earlier, cpuinfo=fast)[0] == "no"


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
