"""slurm/doctor/machine_checks.py: verdicts on the machine that launches."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from sites import SAME, SITE

from slurm.client import PROGRAMS
from slurm.doctor import machine_checks
from slurm.doctor.machine_checks import (
    check_gpus,
    check_machine,
    check_packages,
    check_runs_folder,
    check_slurm,
    check_space,
    file_system,
    guess_shared,
)


def test_a_machine_with_everything_is_ok_and_one_without_torch_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_checks, "versions", lambda: SAME)
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=500e9))
    assert {check.verdict for check in check_machine(tmp_path, with_gpus=False)} == {"ok"}
    check = check_packages({**SAME, "h5py": "not installed"})
    assert (check.verdict, check.seen) == ("fail", "not installed: h5py")


def test_gpus_are_counted_by_kind_if_anybody_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GPUs" not in {check.name for check in check_machine(tmp_path, with_gpus=False)}
    monkeypatch.setattr(machine_checks, "visible_gpus", tuple)
    assert check_machine(tmp_path, with_gpus=True)[-1].verdict == "warn"
    assert check_gpus(("T4", "A100", "T4")).seen == "3: A100, T4"


def test_a_folder_that_cannot_be_written_fails() -> None:
    checks = {check.name: check for check in check_machine(Path("/proc/runs"), with_gpus=False)}
    assert checks["runs folder"].verdict == "fail"
    assert checks["runs folder"].seen == "/proc/runs cannot be written"


@pytest.mark.parametrize(("free_gb", "verdict"), [(1.9, "fail"), (2.1, "warn"), (9.9, "warn"), (10.1, "ok")])
def test_free_space_is_held_against_what_a_run_needs(free_gb: float, verdict: str) -> None:
    assert check_space(free_gb).verdict == verdict


@pytest.mark.parametrize(
    ("kind", "verdict"), [("nfs4", "ok"), ("lustre", "ok"), ("ext4", "warn"), ("", "warn")]
)
def test_without_a_probe_a_disk_of_one_machine_is_suspicious(kind: str, verdict: str) -> None:
    assert guess_shared(kind).verdict == verdict


def test_slurm_may_be_absent_but_not_silent() -> None:
    assert check_slurm(PROGRAMS, site=None, is_needed=False).verdict == "ok"
    assert check_slurm(PROGRAMS, site=None, is_needed=True).verdict == "fail"
    assert check_slurm((), site=None, is_needed=False).verdict == "fail"
    assert check_slurm((), site=SITE, is_needed=True).verdict == "ok"
    assert check_slurm(["squeue"], site=None, is_needed=False).seen == "sbatch is here, but not squeue"


def test_a_runs_folder_need_not_exist_to_be_looked_at(tmp_path: Path) -> None:
    runs_dir = tmp_path / "not" / "yet"
    checks = {check.name: check for check in check_machine(runs_dir, with_gpus=False)}
    assert (checks["runs folder"].verdict, "GPUs" in checks) == ("ok", False)
    assert checks["runs folder"].seen.startswith(f"{runs_dir} ")
    assert float(checks["free space"].seen.split()[0].replace(",", "")) > 0
    assert not runs_dir.exists()


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    assert file_system(Path("/proc/self/runs")) == "proc"
    assert check_runs_folder(Path("/proc/runs")).verdict == "fail"
