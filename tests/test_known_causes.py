"""slurm/diagnose/known_causes.py: what programs print (tests/logs) is known, with its cause and next step."""

from pathlib import Path

import pytest
from slurm_jobs import TRAIN

from slurm.diagnose.case import Case
from slurm.diagnose.explain import explain
from slurm.diagnose.gather_case import with_logs
from slurm.diagnose.known_causes import KNOWN, find_cause
from slurm.job_states import GONE
from vae.run_dir import JOBS_DIR

LOGS = Path(__file__).parent / "logs"
# What `why` says of each log, and what it says to do.
SAID = {
    "apptainer-no-image": ("found no container image there", "correct its path in container"),
    "apptainer-no-program": ("found no such program inside its container", "correct python"),
    "bash-a-folder": ("found no such program on its node", "correct python or container"),
    "bash-no-activate": ("failed in one of its setup lines", "correct setup"),
    "bash-no-apptainer": ("found no such program on its node", "correct python or container"),
    "bash-no-module-command": ("found no command `module`", "begin setup with the line that makes it"),
    "bash-no-python": ("found no such program on its node", "correct python or container"),
    "cuda-busy": ("found its GPU taken by another process", "extra: {exclude: NODE}"),
    "cuda-driver": ("has a torch that does not fit the node's GPU", "install a torch for that CUDA version"),
    "cuda-ecc": ("met a broken GPU (ECC)", "extra: {exclude: NODE}"),
    "cuda-illegal-access": ("failed in the middle of a computation on its GPU", "launch again"),
    "cuda-kernel-image": ("has a torch that does not fit", "install a torch for that CUDA version"),
    "cuda-no-gpu": ("found no usable GPU on its node", "apptainer needs --nv"),
    "cuda-out-of-memory": ("ran out of GPU memory", "more --gpus, or --run.accumulate 2"),
    "cuda-runtime": ("has a torch that does not fit", "install a torch for that CUDA version"),
    "disk-full": ("found the disk full", "free space"),
    "disk-quota": ("is over its owner's disk quota", "ask for more"),
    "disk-read-only": ("may not write to the disk", "on a disk that nodes may write to"),
    "disk-stale": ("lost the disk on its node", "tell the site"),
    "enroot-no-file": ("found no container image there", "correct --container-image"),
    "gloo-peer": ("lost another rank, which ended first", "what the other ranks wrote"),
    "lmod-unknown": ("could not load a module", 'are unknown: "cuda/99.9"; correct it in setup'),
    "nccl-duplicate": ("gave two ranks the same GPU", "correct gpu_flag"),
    "nccl-remote": ("lost another rank, which ended first", "what the other ranks wrote"),
    "nccl-system": ("could not reach the other ranks", "NCCL_SOCKET_IFNAME"),
    "nccl-timeout": ("waited in vain for another rank", "what the other ranks wrote"),
    "nccl-warn": ("failed in NCCL", "launch again"),
    "numpy-memory": ("could not get the memory it needs", "mem_per_gpu_gb"),
    "nvml-mismatch": ("met a node whose GPU driver is half updated", "extra: {exclude: NODE}"),
    "open-files": ("ran into a limit of open files", "ulimit -n"),
    "python-glibc": ("runs a Python that was built for a newer system", "use a container"),
    "python-import": ("runs a Python that lacks a module", "pip install -e ."),
    "python-library": ("lacks a library on its node", "load the module that has it"),
    "python-memory": ("could not get the memory it needs", "mem_per_gpu_gb"),
    "python-no-module": ("runs a Python that lacks a module", "pip install -e ."),
    "python-permission": ("may not use a file or folder", "have its owner allow it"),
    "pyxis-entrypoint": ("could not start its container", "correct the container's flags"),
    "pyxis-no-image": ("could not fetch its container image", "name a .sqsh file by its whole path"),
    "singularity-mount": ("could not start its container", "by hand on a node"),
    "slurmstepd-chdir": ("did not find its folder on its node", "a disk that all nodes share"),
    "slurmstepd-execve": ("found no such program on its node", "correct python or container"),
    "slurmstepd-memory-limit": ("ran out of memory and was killed", "mem_per_gpu_gb"),
    "slurmstepd-oom": ("ran out of memory and was killed", "mem_per_gpu_gb"),
    "slurmstepd-oom-older": ("ran out of memory and was killed", "mem_per_gpu_gb"),
    "srun-bus-error": ("ran out of shared memory", "mem_per_gpu_gb"),
    "srun-controller": ("lost contact with SLURM's controller", "launch again"),
    "srun-credential": ("was refused by its node's SLURM", "extra: {exclude: NODE}"),
    "srun-gres": ("asked for GPUs (gres) that it was not given", "correct gpu_type or gpu_flag"),
    "srun-illegal-instruction": ("runs a program that was built for another kind of processor", "constraint"),
    "srun-launch-failed": ("could not be started by SLURM on its node", "extra: {exclude: NODE}"),
    "srun-no-pyxis": ("asked srun for a container, which this site's srun does not know", "apptainer"),
    "srun-output": ("did not find its folder on its node", "a disk that all nodes share"),
    "srun-segfault": ("crashed", "launch again"),
    "srun-step": ("was not allowed to start its processes", "correct what srun is given"),
    "srun-two-variables": ("inherited settings of srun that contradict each other", "unset those variables"),
    "tcl-modules": ("could not load a module", "module avail"),
}


def case_of(tmp_path: Path, log: str, state: str = "FAILED") -> Case:
    """The case of a training whose job's log holds this text."""
    (tmp_path / "linear-s0").mkdir()
    path = tmp_path / JOBS_DIR / "8_0.log"
    path.parent.mkdir()
    path.write_text(log)
    case = Case("linear-s0", "runs/chest", job="8_0", state=state, exit="1:0", progress=" at step 5 of 9")
    return with_logs(case, tmp_path / "linear-s0", 0, TRAIN)


def test_every_log_that_is_kept_is_expected_to_be_understood() -> None:
    assert sorted(SAID) == sorted(path.stem for path in LOGS.glob("*.txt"))


@pytest.mark.parametrize("state", ["FAILED", GONE])
@pytest.mark.parametrize("name", SAID)
def test_a_known_failure_is_named_in_one_sentence_with_the_next_step(
    tmp_path: Path, name: str, state: str
) -> None:
    cause, step = SAID[name]
    said = explain(case_of(tmp_path, (LOGS / f"{name}.txt").read_text(), state))
    assert said.startswith(f"linear-s0: the training job 8_0 {cause}")
    assert " at step 5 of 9: " in said
    assert step in said.partition(" at step 5 of 9: ")[2]
    assert "\n" not in said


def test_every_entry_of_the_table_is_shown_by_a_log() -> None:
    found = {find_cause((LOGS / f"{name}.txt").read_text().splitlines())[0] for name in SAID}  # type: ignore[index]
    assert set(KNOWN) - found == set()


def test_without_a_match_the_last_lines_are_shown_and_nothing_is_denied(tmp_path: Path) -> None:
    said = explain(case_of(tmp_path, "first\nsecond\n\nthird\n\x1b[31mfourth\n"))
    sentence, *shown = said.splitlines()
    assert sentence.startswith(
        "linear-s0: the training job 8_0 ended as FAILED (exit code 1) at step 5 of 9; see"
    )
    assert shown == ["    second", "    third", "    [31mfourth"]


def test_a_complaint_of_slurms_programs_that_nobody_knows_is_an_error_all_the_same(tmp_path: Path) -> None:
    log = "srun: error: n1: task 0: Exited with exit code 3\nsrun: error: the moon is full\n"
    said = explain(case_of(tmp_path, log))
    assert "the training job 8_0 failed at step 5 of 9: the moon is full; fix that" in said


def test_what_python_says_last_outranks_a_complaint_above_it(tmp_path: Path) -> None:
    log = "slurmstepd: error: couldn't chdir to `/x': No such file or directory\nValueError: odd\n"
    assert "failed at step 5 of 9: ValueError: odd; fix" in explain(case_of(tmp_path, log))


def test_what_an_earlier_attempt_has_said_is_over(tmp_path: Path) -> None:
    earlier = (LOGS / "srun-gres.txt").read_text()
    earlier += (
        "slurmstepd-n1: error: *** JOB 8 ON n1 CANCELLED AT 2026-11-23T15:22:30 DUE TO JOB REQUEUE ***\n"
    )
    said = explain(case_of(tmp_path, earlier + (LOGS / "lmod-unknown.txt").read_text()))
    assert "could not load a module" in said


def test_ranks_that_complain_when_their_job_is_cancelled_are_not_the_cause(tmp_path: Path) -> None:
    log = "slurmstepd-n1: error: *** JOB 8 ON n1 CANCELLED AT 2026-11-23T15:22:30 ***\n"
    said = explain(case_of(tmp_path, log + (LOGS / "gloo-peer.txt").read_text(), GONE))
    assert "the training job 8_0 was cancelled at step 5 of 9" in said
