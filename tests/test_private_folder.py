"""slurm/private_folder.py: nobody else may write where jobs unpickle, in the launcher and on the node."""

import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from submitit.core.utils import DelayedSubmission, JobPaths
from tiny import REPOSITORY, child_environment

from data_prep.errors import ClusterError
from slurm.code_snapshot import take_snapshot
from slurm.local import failure, run_local
from slurm.node.task import JobKind, ReportTask
from slurm.plan import JobRequest
from slurm.private_folder import check_private, make_private
from slurm.profile import ClusterProfile
from slurm.submit import submit
from vae.run_dir import CODE_DIR, JOBS_DIR

# A user who is not us; only root can give files away.
ANOTHER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def report(folder: Path) -> JobRequest:
    return JobRequest("report", JobKind.REPORT, folder, {0: ReportTask(str(folder))}, is_array=False)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The folder of a study that a group shares."""
    folder = tmp_path / "chest"
    folder.mkdir()
    folder.chmod(0o2775)
    return folder


def test_jobs_and_code_are_private_also_where_a_group_shares_the_study(
    shared: Path, fake_slurm: FakeSlurm
) -> None:
    before = os.umask(0o002)
    try:
        (shared / JOBS_DIR).mkdir()  # as older code left it
        snapshot = take_snapshot(shared)
        snapshot.write()
        submit([report(shared)], ClusterProfile(), snapshot.folder)
    finally:
        os.umask(before)
    assert mode(shared / JOBS_DIR) & 0o777 == mode(shared / CODE_DIR) & 0o777 == 0o700
    assert mode(shared) == 0o2775


@needs_root
def test_a_launcher_runs_nothing_in_a_folder_of_another_user(shared: Path, fake_slurm: FakeSlurm) -> None:
    jobs_dir = make_private(shared / JOBS_DIR)
    os.chown(jobs_dir, ANOTHER, -1)
    for run in (
        lambda: submit([report(shared)], ClusterProfile(), REPOSITORY),
        lambda: run_local([report(shared)], REPOSITORY, lambda *_: None),
        lambda: failure(report(shared), 0, "7", 1),
    ):
        with pytest.raises(
            ClusterError, match=r"jobs belongs to user 65534, not to user 0 who runs this"
        ) as caught:
            run()
        assert "in a study of your own" in str(caught.value.hint)
    assert fake_slurm.jobs == {}
    assert list(jobs_dir.iterdir()) == []
    os.chown(shared / JOBS_DIR, 0, -1)
    (shared / CODE_DIR).mkdir()
    os.chown(shared / CODE_DIR, ANOTHER, -1)
    with pytest.raises(ClusterError, match="code belongs to user 65534"):
        take_snapshot(shared).write()


def test_a_folder_that_others_may_write_into_is_refused(tmp_path: Path) -> None:
    for open_to, is_allowed in ((0o770, False), (0o702, False), (0o755, True), (0o700, True)):
        tmp_path.chmod(open_to)
        if is_allowed:
            assert check_private(tmp_path) == tmp_path
        else:
            with pytest.raises(ClusterError, match=rf"others may write into .* \(mode {open_to:o}\)"):
                check_private(tmp_path)


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def start_job(study_dir: Path, executor: str) -> subprocess.CompletedProcess[str]:
    """What a batch script, or submitit's controller on this machine, starts for job 7."""
    snapshot = take_snapshot(study_dir)
    snapshot.write()
    job = {"slurm": {"SLURM_JOB_ID": "7"}, "local": {"SUBMITIT_LOCAL_JOB_ID": "7"}}[executor]
    environment = {"SUBMITIT_EXECUTOR": executor, "PYTHONPATH": str(snapshot.folder), **job}
    return subprocess.run(
        [sys.executable, "-u", "-m", "submitit.core._submit", str(study_dir / JOBS_DIR)],
        cwd=snapshot.folder,
        env={**child_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("executor", ["slurm", "local"])
@pytest.mark.parametrize("whose", ["mine", pytest.param("another", marks=needs_root), "open"])
def test_a_process_of_a_job_looks_before_submitit_unpickles(shared: Path, executor: str, whose: str) -> None:
    """What lies there would run code, and does where the folder is our own."""
    jobs_dir, ran = make_private(shared / JOBS_DIR), shared / "ran"
    JobPaths(jobs_dir, "7").submitted_pickle.write_bytes(pickle.dumps(Evil(ran)))
    if whose == "another":
        os.chown(jobs_dir, ANOTHER, -1)
    elif whose == "open":
        jobs_dir.chmod(0o770)
    done = start_job(shared, executor)
    assert ran.exists() == (whose == "mine")
    if whose != "mine":
        reason = "belongs to user 65534" if whose == "another" else "others may write into"
        assert (done.returncode, done.stdout.count("Loading pickle")) == (2, 0)
        assert any(line.startswith("error: ") and reason in line for line in done.stderr.splitlines())


def test_a_job_of_ours_still_runs(shared: Path) -> None:
    jobs_dir = make_private(shared / JOBS_DIR)
    DelayedSubmission(len, [1, 2]).dump(JobPaths(jobs_dir, "7").submitted_pickle)
    done = start_job(shared, "slurm")
    assert done.returncode == 0, done.stderr
    assert JobPaths(jobs_dir, "7", 0).result_pickle.exists()
