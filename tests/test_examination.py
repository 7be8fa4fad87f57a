"""slurm/doctor/examination.py: which checks are made, in which order, and when a probe is submitted."""

from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm
from sites import probe_of, rank
from tiny import make_shards

from data_prep.errors import ClusterError, SettingsError
from slurm.doctor.check import Check
from slurm.doctor.examination import Examination, examine, find_shards
from slurm.doctor.probe import Probe
from slurm.plan import Resources
from slurm.profile import ClusterProfile, read_profile

MACHINE = ["packages", "runs folder", "free space", "SLURM"]
CPU_SITE = (
    "PartitionName=cpu Default=YES GraceTime=0 MaxNodes=UNLIMITED MaxTime=60:00 PreemptMode=OFF State=UP"
)


def parts(tmp_path: Path, **options: Any) -> dict[str, dict[str, Check]]:
    """The checks of each part, by title and name; the title of this machine without its name."""
    options = {"profile": ClusterProfile(), "needs_slurm": True, "runs_dir": tmp_path / "runs", **options}
    return {
        title.partition(",")[0]: {check.name: check for check in checks}
        for title, checks in examine(Examination(**options))
    }


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Resources]:
    """What probes were run with; each finds two healthy ranks."""
    asked_for: list[Resources] = []

    def run_probe(runs_dir: Path, profile: ClusterProfile, resources: Resources, *_: object) -> Probe:
        asked_for.append(resources)
        return probe_of(rank(0), rank(1))

    monkeypatch.setattr("slurm.doctor.examination.run_probe", run_probe)
    return asked_for


def test_packed_images_are_the_ones_asked_for_else_the_first(tmp_path: Path) -> None:
    shards_dir, empty = tmp_path / "shards", tmp_path / "empty"
    assert find_shards(None, shards_dir) is None
    second = make_shards(shards_dir / "b", {"train": 1})
    first = make_shards(shards_dir / "a", {"train": 1})
    assert find_shards(second, empty) == second
    assert find_shards(None, empty) is None
    assert find_shards(None, shards_dir) == first
    with pytest.raises(SettingsError, match="holds no packed images"):
        find_shards(empty, shards_dir)


def test_a_machine_without_slurm_is_examined_alone(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.uninstall()
    (machine,) = parts(tmp_path, needs_slurm=False).values()
    assert list(machine) == [*MACHINE[:3], "GPUs", "SLURM"]
    assert machine["SLURM"].verdict == "ok"
    assert parts(tmp_path)["this machine"]["SLURM"].verdict == "fail"  # and nobody imports torch
    assert fake_slurm.asked("sbatch") == 0


def test_a_controller_that_does_not_answer_is_all_that_is_seen(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.controller_down()
    assert list(parts(tmp_path, probe_wait_min=10)) == ["this machine"]


def test_a_site_is_examined_with_one_question_to_sbatch(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    found = parts(tmp_path)
    assert list(found) == ["this machine", "SLURM"]
    assert list(found["this machine"]) == [*MACHINE, "shared folder"]
    assert (found["SLURM"]["nodes"].verdict, found["SLURM"]["sbatch"].verdict) == ("ok", "ok")
    assert fake_slurm.asked("sbatch") == 1
    assert not fake_slurm.jobs
    assert not (tmp_path / "runs").exists()


def test_what_sbatch_refuses_is_a_failure_in_its_words(
    fake_slurm: FakeSlurm, tmp_path: Path, probed: list[Resources]
) -> None:
    fake_slurm.refuse("Requested node configuration is not available")
    found = parts(tmp_path, probe_wait_min=10)
    assert found["SLURM"]["sbatch"].verdict == "fail"
    assert "configuration is not available" in found["SLURM"]["sbatch"].seen
    assert found["the nodes"]["job"].seen == "not submitted"
    assert probed == []


@pytest.mark.parametrize(
    ("options", "name"),
    [({"profile": ClusterProfile(partition="gpus")}, "partition"), ({"runs_dir": Path("/proc/runs")}, "")],
)
def test_no_probe_is_submitted_where_it_cannot_run(
    fake_slurm: FakeSlurm, tmp_path: Path, probed: list[Resources], options: dict[str, object], name: str
) -> None:
    found = parts(tmp_path, probe_wait_min=10, **options)
    failed = found["SLURM"][name] if name else found["this machine"]["runs folder"]
    assert failed.verdict == "fail"
    assert found["the nodes"]["job"].seen == "not submitted"
    assert probed == []


def test_a_probe_shows_what_only_nodes_can(
    fake_slurm: FakeSlurm, tmp_path: Path, probed: list[Resources]
) -> None:
    found = parts(tmp_path, probe_wait_min=10)
    assert probed == [Resources(2, 2)]
    assert list(found["this machine"]) == MACHINE  # the nodes show whether they share the folder
    assert found["the nodes"]["job"].verdict == "ok"


def test_a_probe_that_slurm_refuses_is_a_failed_job(
    fake_slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_probe(*_: object) -> Probe:
        raise ClusterError("SLURM does not accept the job", "change the profile")

    monkeypatch.setattr("slurm.doctor.examination.run_probe", run_probe)
    job = parts(tmp_path, probe_wait_min=10)["the nodes"]["job"]
    assert (job.verdict, job.hint) == ("fail", "change the profile")


def test_a_draft_is_what_is_checked_and_written_last(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.partitions, fake_slurm.nodes = CPU_SITE, "cpu|2|8|16000|(null)|idle\n"
    path = tmp_path / "site.yaml"
    exam = Examination(ClusterProfile(), needs_slurm=False, runs_dir=tmp_path, draft_path=path)
    for title, checks in examine(exam):
        assert not path.exists()
        limits = [check for check in checks if check.name == "limits in cpu"]
        assert all(check.verdict == "ok" for check in limits), title
    profile = read_profile(str(path))
    assert (profile.partition, profile.train_limit_min, profile.drop) == ("cpu", 60, ("gres",))


def test_a_site_whose_partitions_are_all_closed_has_no_draft(fake_slurm: FakeSlurm, tmp_path: Path) -> None:
    fake_slurm.nodes = "gpu|2|8|16000|gpu:fake:4|down*\n"
    with pytest.raises(ClusterError, match="no partition takes jobs"):
        parts(tmp_path, draft_path=tmp_path / "site.yaml")
    assert not (tmp_path / "site.yaml").exists()
