"""slurm/backends.py: where a launch runs, and what is the same wherever it does."""

from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from data_prep.errors import ClusterError, SettingsError
from slurm.backends import DebugBackend, LocalBackend, SlurmBackend, backend_of, choose_backend
from slurm.client import require_slurm
from slurm.code_snapshot import Snapshot
from slurm.job_records import read_records
from slurm.node.environment import Backend
from slurm.plan import Resources, RunFacts, StudyFacts
from slurm.profile import ClusterProfile

ONE, TWO = Resources(1), Resources(2)
RUNS = tuple(RunFacts(f"linear-s{seed}", seed) for seed in range(4))


def facts(folder: Path, **more: object) -> StudyFacts:
    return StudyFacts(folder, RUNS, folder / "shards", **more)  # type: ignore[arg-type]


@pytest.fixture
def code(tmp_path: Path) -> Snapshot:
    return Snapshot(tmp_path / "code" / "0123456789ab", {"vae/model.py": b"LAYERS = 4\n"})


def test_auto_is_slurm_where_it_is_installed_or_a_profile_is_given(fake_slurm: FakeSlurm) -> None:
    fake_slurm.uninstall()
    assert choose_backend("auto", has_profile=False) is Backend.LOCAL
    assert choose_backend("auto", has_profile=True) is Backend.SLURM
    assert choose_backend("debug", has_profile=True) is Backend.DEBUG
    with pytest.raises(ClusterError, match="sbatch, squeue, scontrol, scancel not in PATH"):
        require_slurm()


def test_slurm_whose_controller_is_down_is_still_slurm(fake_slurm: FakeSlurm) -> None:
    fake_slurm.controller_down()
    assert choose_backend("auto", has_profile=False) is Backend.SLURM
    with pytest.raises(ClusterError, match="its controller is not reached"):
        require_slurm()
    fake_slurm.uninstall("squeue")
    with pytest.raises(ClusterError, match="here: squeue not in PATH"):
        require_slurm()


def test_there_is_one_class_for_each() -> None:
    profile = ClusterProfile(partition="gpu")
    assert backend_of(Backend.SLURM, profile, 3) == SlurmBackend(profile, 3)
    assert type(backend_of(Backend.LOCAL, profile)) is LocalBackend
    assert type(backend_of(Backend.DEBUG, profile)) is DebugBackend


def test_slurm_must_answer_unless_nothing_is_submitted(fake_slurm: FakeSlurm) -> None:
    backend = SlurmBackend(ClusterProfile())
    backend.check(ONE, [Path("/shared")], is_dry=False)
    fake_slurm.controller_down()
    backend.check(ONE, [Path("/shared")], is_dry=True)
    with pytest.raises(ClusterError, match="no SLURM answers here"):
        backend.check(ONE, [Path("/shared")], is_dry=False)


def test_one_process_has_one_gpu() -> None:
    DebugBackend().check(ONE, [], is_dry=False)
    with pytest.raises(SettingsError, match="--cluster debug is one process"):
        DebugBackend().check(TWO, [], is_dry=False)


def test_arrays_are_as_long_as_slurm_allows_and_share_the_cap(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.config["MaxArraySize"] = "3"
    requests = SlurmBackend(ClusterProfile(), max_parallel=3).missing_jobs(facts(tmp_path), ONE)
    assert [(request.key, request.max_parallel) for request in requests] == [
        ("train", 2),
        ("train-1", 1),
        ("evaluate", 2),
        ("evaluate-1", 1),
        ("report", 0),
    ]
    assert [request.key for request in LocalBackend().missing_jobs(facts(tmp_path), ONE)] == [
        "train",
        "evaluate",
        "report",
    ]


@pytest.mark.parametrize("backend", [LocalBackend(), DebugBackend()])
def test_what_slurm_has_at_work_is_not_begun_here(backend: LocalBackend, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="job 9 is at work on this study") as caught:
        backend.missing_jobs(facts(tmp_path, report_job="9"), ONE)
    assert caught.value.hint == "wait for it, or cancel it: scancel 9"


def test_a_dry_run_shows_scripts_or_the_order_of_runs(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    requests = LocalBackend().missing_jobs(facts(tmp_path), ONE)
    names = "linear-s0, linear-s1, linear-s2, linear-s3"
    assert LocalBackend().describe(requests, tmp_path) == (
        f"train: {names}\nevaluate: {names}\nreport: {tmp_path.name}\n"
    )
    text = SlurmBackend(ClusterProfile()).describe(requests, tmp_path)
    assert text.count("#!/bin/bash") == 3
    assert text.startswith("train=$(sbatch --parsable <<'EOF'\n#!/bin/bash\n")
    assert text.endswith('exit "${code:-0}"\nEOF\n)\n\n')


def test_slurm_starts_jobs_that_run_the_copy_of_the_code(
    fake_slurm: FakeSlurm, tmp_path: Path, code: Snapshot
) -> None:
    backend = SlurmBackend(ClusterProfile())
    requests = backend.missing_jobs(facts(tmp_path), ONE)
    backend.check_accepted(requests, code.folder)
    assert fake_slurm.jobs == {}
    backend.start(requests, code)
    assert (code.folder / "vae" / "model.py").exists()
    assert {record.id for record in read_records(tmp_path)} == {"1", "2", "3"}
    assert f"cd {code.folder}" in fake_slurm.jobs["1_0"].script


@pytest.mark.parametrize("backend", [SlurmBackend(ClusterProfile()), LocalBackend()])
def test_without_jobs_no_code_is_copied(backend: SlurmBackend, fake_slurm: FakeSlurm, code: Snapshot) -> None:
    backend.start([], code)
    assert not code.folder.exists()
