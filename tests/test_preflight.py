"""slurm/preflight.py: what a launch would only find out in the queue."""

import os
from pathlib import Path

import pytest

from data_prep.errors import ClusterError, SettingsError
from slurm.plan import Resources
from slurm.preflight import (
    check_batch,
    check_this_machine,
    check_writable,
    num_gpus_here,
    warn_of_private_folders,
)
from vae.config import RunConfig

BATCH_OF_8 = RunConfig(batch_size=8, accumulate=2)


def test_a_batch_that_fits_is_accepted() -> None:
    check_batch(BATCH_OF_8, gpus=4, num_train_images=8)


def test_a_batch_must_be_enough_for_every_gpu_and_accumulated_step() -> None:
    with pytest.raises(
        SettingsError, match=r"batch_size 8 cannot be shared by 10 \(GPUs x accumulate\)"
    ) as caught:
        check_batch(BATCH_OF_8, gpus=5, num_train_images=100)
    assert caught.value.hint == "use fewer GPUs, or --run.batch_size 10 (which changes the result)"


def test_a_batch_must_not_be_more_than_there_is() -> None:
    with pytest.raises(SettingsError, match="batch_size 8 is more than the 7 training images"):
        check_batch(BATCH_OF_8, gpus=1, num_train_images=7)


def test_a_folder_that_is_not_there_yet_may_be_made(tmp_path: Path) -> None:
    check_writable(tmp_path / "runs" / "chest")
    assert not (tmp_path / "runs").exists()


def test_nothing_can_be_made_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="file is not a folder this user can write to"):
        check_writable(tmp_path / "file" / "runs")


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(SettingsError, match=f"{tmp_path} is not a folder this user can write to"):
        check_writable(tmp_path / "runs")


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver counts two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: a)'\necho 'GPU 1: B (UUID: b)'\necho ' MIG 1g'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.usefixtures("two_gpus")
def test_more_gpus_than_there_are_are_refused() -> None:
    assert num_gpus_here() == 2
    check_this_machine(Resources(2))
    with pytest.raises(ClusterError, match="--gpus 3, but this machine has 2") as caught:
        check_this_machine(Resources(3))
    assert caught.value.hint == "use --gpus 2"


def test_without_a_gpu_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert num_gpus_here() == 0
    check_this_machine(Resources(2))
    assert "no NVIDIA GPU here; --gpus 2 means as many processes on the CPU" in caplog.text


def test_one_machine_is_one_node() -> None:
    with pytest.raises(ClusterError, match="--nodes 2, but this is one machine and no SLURM"):
        check_this_machine(Resources(2, 2))


def test_folders_that_nodes_do_not_share_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_private_folders([Path("/tmp/runs"), Path("/shared/runs"), Path("/tmpfiles/x"), Path("/run/x")])
    folders = [message.split()[1] for message in caplog.messages]
    assert folders == ["/tmp/runs", "/run/x"]
