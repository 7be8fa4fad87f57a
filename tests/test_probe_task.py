"""slurm/doctor/probe_task.py: what a rank of the probe sees and writes."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from slurm.doctor.probe_task import TOKEN_FILE, ProbeTask, RankFacts, num_allocated, read_facts
from slurm.node.environment import Backend, JobEnvironment, num_cpus
from vae.provenance import versions


@pytest.fixture(autouse=True)
def stop_signal() -> Iterator[None]:
    """A task ignores the stop signal from its first moment; other tests want to hear it."""
    action = signal.getsignal(signal.SIGUSR2)
    yield
    signal.signal(signal.SIGUSR2, action)


def look(folder: Path, data: str = "") -> RankFacts:
    """What rank 0 of 1 of job 1 has written."""
    folder.mkdir(exist_ok=True)
    ProbeTask(str(folder), data).work(JobEnvironment(Backend.SLURM, "1", cpus=3, node="n1"))
    facts = read_facts(folder, 0)
    assert facts is not None
    return facts


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, 0),
        ({"SLURM_JOB_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "0"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2,GPU-3"}, 3),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
    ],
)
def test_allocated_gpus_are_counted(variables: dict[str, str], count: int) -> None:
    assert num_allocated(variables) == count


def test_a_rank_writes_what_it_sees(fake_slurm: FakeSlurm, tmp_path: Path, shards: Path) -> None:
    fake_slurm.submit("probe")
    (tmp_path / TOKEN_FILE).write_text("hello")
    facts = look(tmp_path, str(shards))
    assert (facts.rank, facts.node, facts.doing, facts.errors) == (0, "n1", None, {})
    assert (facts.token, facts.versions, facts.may_requeue) == ("hello", versions(), True)
    assert (facts.cpus_asked, facts.cpus_usable, facts.address) == (3, num_cpus(), "127.0.0.1")
    assert facts.shard == "train-00000.h5, 40 images"
    assert facts.free_gb > 0


def test_a_look_that_fails_stops_no_other(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    facts = look(tmp_path, str(tmp_path / "nowhere"))
    assert set(facts.errors) == {"folder", "requeue", "shard"}
    assert facts.errors["folder"].startswith("FileNotFoundError: ")
    assert facts.errors["requeue"] == "scontrol show job 1 fails"
    assert (facts.doing, facts.address) == (None, "127.0.0.1")


def test_a_node_without_scontrol_is_said_to_have_none(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.uninstall("scontrol")
    assert look(tmp_path).errors["requeue"] == "there is no scontrol"


def test_a_job_that_may_not_be_requeued_is_seen(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.submit("probe", flags=())
    assert not look(tmp_path).may_requeue


def test_a_rank_that_has_written_nothing_has_no_facts(tmp_path: Path) -> None:
    assert read_facts(tmp_path, 0) is None
