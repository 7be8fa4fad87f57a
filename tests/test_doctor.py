"""jobs/doctor.py: verdicts from known facts, and the same on a real cluster, whole and broken."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from devcluster import DevCluster, free_ports, wait_for
from tiny import REPOSITORY, TINY_FLAGS

from data_prep.errors import ClusterError, SettingsError
from slurm.client import PROGRAMS
from slurm.doctor import checks as doctor
from slurm.doctor import node_checks as probed
from slurm.doctor.checks import Here, Verdict
from slurm.doctor.probe import Probe, run_probe, uninterrupted
from slurm.doctor.probe_task import RankFacts, num_allocated
from slurm.doctor.profile_draft import draft_profile, new_profile_path, profile_text, write_draft
from slurm.doctor.site import NodeKind, Partition, Site, minutes, node_kind, read_config, read_partitions
from slurm.plan import Resources
from slurm.profile import PROFILES_DIR, ClusterProfile, read_profile

DOOR = str(REPOSITORY / "jobs" / "doctor.py")
DEV_PROFILE = Path(__file__).parent / "devcluster.yaml"
SAME = {"python": "3.11.7", "torch": "2.15.0"}

A100 = NodeKind(count=8, cpus=64, mem_gb=503, gpus=4, gpu_type="a100")
V100 = NodeKind(count=2, cpus=40, mem_gb=187, gpus=2, gpu_type="v100")
PLAIN = NodeKind(count=100, cpus=48, mem_gb=187)
GPU = Partition("gpu", max_time_min=1440, kinds=(A100,))
MIXED = Partition("mixed", max_time_min=2880, kinds=(V100, A100))
CPU = Partition("cpu", is_default=True, max_time_min=180, kinds=(PLAIN,))
CONFIG = {"ClusterName": "alps", "SLURM_VERSION": "23.11.1", "SelectType": "select/cons_tres"}
SITE = Site(CONFIG, (CPU, GPU, MIXED), account="lab-x")

RANK = RankFacts(
    rank=0,
    world_size=2,
    node="n1",
    token="hello",
    free_gb=500.0,
    versions=SAME,
    may_requeue=True,
    cpus_asked=4,
    cpus_usable=4,
    cpus_there=64,
    gpus_allocated=1,
    gpus_seen=1,
    gpu_name="NVIDIA A100",
    has_driver=True,
    cuda="12.8",
    address="10.0.0.1",
    reduces={"gloo": 20.0, "NCCL": 1.0},
)


def here(**facts: object) -> Here:
    known = Here("login1", SAME, Path("/data/runs"), True, "nfs4", 500.0)
    return dataclasses.replace(known, **facts)  # type: ignore[arg-type]


def probe_of(*ranks: RankFacts, state: str = "COMPLETED", reason: str = "", log: str = "") -> Probe:
    return Probe("7", Resources(2, 2), state, reason, 12.0, "hello", ranks, log)


def rank(number: int = 0, **facts: object) -> RankFacts:
    return dataclasses.replace(RANK, rank=number, node=f"n{number + 1}", **facts)  # type: ignore[arg-type]


def verdicts(probe: Probe, **options: object) -> dict[str, Verdict]:
    checks = probed.check_probe(probe, here(), ClusterProfile(), None)
    return {check.name: check.verdict for check in checks}


# --- what SLURM prints -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UNLIMITED", None),
        ("infinite", None),
        ("1-12:00:00", 2160),
        ("02:30:00", 150),
        ("30:00", 30),
        ("7-00:00:00", 10080),
    ],
)
def test_time_limits_are_read_in_minutes(text: str, expected: int | None) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize(
    ("gres", "gpus", "kind"),
    [
        ("(null)", 0, ""),
        ("gpu:4", 4, ""),
        ("gpu:a100:4(S:0-1)", 4, "a100"),
        ("gpu:2080ti:8,nvme:1", 8, "2080ti"),
        ("craynetwork:4,gpu:a100_1g.5gb:7(S:0)", 7, "a100_1g.5gb"),
        ("gpu:t4:1,gpu:a100:2", 2, "a100"),
    ],
)
def test_gpus_of_a_node_are_read_from_its_gres(gres: str, gpus: int, kind: str) -> None:
    assert node_kind(3, "64+", "515000", gres) == NodeKind(3, 64, 502, gpus, kind)


def test_partitions_are_read_with_their_nodes() -> None:
    shown = (
        "PartitionName=gpu Default=YES GraceTime=60 MaxNodes=4 MaxTime=1-00:00:00 "
        "PreemptMode=REQUEUE State=UP\nPartitionName=old Default=NO GraceTime=0 MaxNodes=UNLIMITED "
        "MaxTime=UNLIMITED PreemptMode=OFF State=DOWN\n"
    )
    nodes = (
        "gpu|3|64|515000|gpu:a100:4|mix\ngpu|5|64|515000|gpu:a100:4|idle\n"
        "gpu|2|64|515000|gpu:a100:4|drain*\nold|1|16|64000|(null)|down*\n"
    )
    gpu, old = read_partitions(shown, nodes)
    assert gpu == Partition(
        "gpu", True, "UP", 1440, 4, "REQUEUE", 60, (NodeKind(8, 64, 502, 4, "a100"),), num_unusable=2
    )
    assert old == Partition("old", state="DOWN", num_unusable=1)
    assert gpu.num_nodes() == 4  # of 8, for a job may have no more


def test_the_config_is_read_by_name() -> None:
    text = "Configuration data as of today\nKillWait                = 30 sec\nAuthInfo  = a=b,c=5\n"
    assert read_config(text) == {"KillWait": "30 sec", "AuthInfo": "a=b,c=5"}


# --- verdicts on this machine and on SLURM -----------------------------------------------------------


def test_a_machine_with_everything_is_ok_and_one_without_torch_is_not() -> None:
    assert {check.verdict for check in doctor.check_here(here())} == {"ok"}
    check = doctor.check_packages({**SAME, "h5py": "not installed"})
    assert (check.verdict, check.seen) == ("fail", "not installed: h5py")


@pytest.mark.parametrize(("free_gb", "verdict"), [(1.9, "fail"), (2.1, "warn"), (9.9, "warn"), (10.1, "ok")])
def test_free_space_is_held_against_what_a_run_needs(free_gb: float, verdict: str) -> None:
    assert doctor.check_space("free space", free_gb).verdict == verdict


@pytest.mark.parametrize(
    ("kind", "verdict"), [("nfs4", "ok"), ("lustre", "ok"), ("ext4", "warn"), ("", "warn")]
)
def test_without_a_probe_a_disk_of_one_machine_is_suspicious(kind: str, verdict: str) -> None:
    assert doctor.check_shared_kind(here(file_system=kind)).verdict == verdict


def test_slurm_may_be_absent_but_not_silent() -> None:
    assert doctor.check_slurm(PROGRAMS, site=None, is_needed=False).verdict == "ok"
    assert doctor.check_slurm(PROGRAMS, site=None, is_needed=True).verdict == "fail"
    assert doctor.check_slurm((), site=None, is_needed=False).verdict == "fail"
    assert doctor.check_slurm((), site=SITE, is_needed=True).verdict == "ok"
    assert doctor.check_slurm(["squeue"], site=None, is_needed=False).seen == "sbatch is here, but not squeue"


def test_an_unknown_or_closed_partition_fails_and_names_the_known_ones() -> None:
    (check,) = doctor.check_partition(SITE, "gpus", "partition")
    assert (check.verdict, check.seen) == ("fail", '"gpus" does not exist; known: cpu, gpu, mixed')
    closed = Site(partitions=(dataclasses.replace(GPU, state="DRAIN"),))
    assert doctor.check_partition(closed, "gpu", "partition")[0].verdict == "fail"
    (check,) = doctor.check_partition(closed, "", "partition")
    assert check.seen == "there is no default one; known: gpu"
    assert [check.verdict for check in doctor.check_partition(SITE, "gpu,mixed", "partition")] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("partition", "settings", "verdict"),
    [
        (GPU, {}, "ok"),
        (GPU, {"gpu_type": "a100"}, "ok"),
        (GPU, {"gpu_type": "h100"}, "fail"),
        (GPU, {"cpus_per_gpu": 65}, "fail"),
        (CPU, {}, "fail"),
        (CPU, {"drop": ("gpus-per-node",)}, "ok"),
        (Partition("empty", num_unusable=3), {}, "fail"),
    ],
)
def test_some_node_must_have_what_a_process_asks_for(
    partition: Partition, settings: dict[str, object], verdict: str
) -> None:
    profile = ClusterProfile(**settings)  # type: ignore[arg-type]
    assert doctor.check_gpu_nodes(partition, profile).verdict == verdict


def test_limits_above_the_partitions_fail_and_say_which() -> None:
    profile = ClusterProfile(train_limit_min=1440)
    assert doctor.check_limits(GPU, profile, doctor.GPU_LIMITS).verdict == "ok"
    check = doctor.check_limits(CPU, profile, doctor.GPU_LIMITS + doctor.CPU_LIMITS)
    assert check.verdict == "fail"
    assert check.hint.startswith("set train_limit_min, pack_limit_min in the profile to 180 or less")
    endless = dataclasses.replace(CPU, max_time_min=None)
    assert doctor.check_limits(endless, profile, doctor.GPU_LIMITS).verdict == "ok"


@pytest.mark.parametrize(
    ("kind", "mode", "grace_s", "parameters", "verdict"),
    [
        ("preempt/none", "REQUEUE", 0, "", "ok"),
        ("preempt/qos", "OFF", 0, "", "ok"),
        ("preempt/qos", "REQUEUE", 60, "preempt_send_user_signal", "ok"),
        ("preempt/qos", "REQUEUE", 60, "idle_on_node_suspend", "warn"),
        ("preempt/qos", "REQUEUE", 0, "preempt_send_user_signal", "warn"),
        ("preempt/qos", "GANG,CANCEL", 60, "preempt_send_user_signal", "warn"),
    ],
)
def test_preemption_without_warning_or_return_is_told(
    kind: str, mode: str, grace_s: int, parameters: str, verdict: str
) -> None:
    partition = dataclasses.replace(GPU, preempt_mode=mode, grace_s=grace_s)
    config = {"PreemptType": kind, "SlurmctldParameters": parameters}
    assert doctor.check_preemption(config, partition).verdict == verdict


@pytest.mark.parametrize(
    ("value", "settings", "verdict"),
    [
        ("1", {}, "ok"),
        ("1", {"drop": ("requeue",)}, "ok"),
        ("0", {}, "warn"),
        ("0", {"drop": ("requeue",)}, "fail"),
        ("1", {"extra": {"no-requeue": ""}}, "fail"),
    ],
)
def test_jobs_must_be_allowed_back_into_the_queue(value: str, settings: dict, verdict: str) -> None:
    assert doctor.check_requeue({"JobRequeue": value}, ClusterProfile(**settings)).verdict == verdict


def test_arrays_kill_wait_process_tracking_and_accounts() -> None:
    assert doctor.check_arrays({"MaxArraySize": "1001"}).verdict == "ok"
    assert doctor.check_arrays({"MaxArraySize": "0"}).verdict == "fail"
    assert doctor.check_kill_wait({"KillWait": "30 sec"}).verdict == "ok"
    assert doctor.check_kill_wait({"KillWait": "5 sec"}).verdict == "warn"
    assert doctor.check_process_tracking({"ProctrackType": "proctrack/cgroup"}).verdict == "ok"
    assert doctor.check_process_tracking({"ProctrackType": "proctrack/pgid"}).verdict == "warn"
    assert doctor.check_accounting(SITE).verdict == "ok"
    assert doctor.check_accounting(dataclasses.replace(SITE, has_accounts=False)).verdict == "warn"


# --- verdicts on the nodes ---------------------------------------------------------------------------


def test_two_healthy_ranks_are_ok_everywhere() -> None:
    assert set(verdicts(probe_of(rank(0), rank(1))).values()) == {"ok"}


@pytest.mark.parametrize(
    ("facts", "name", "verdict"),
    [
        ({"token": "old"}, "shared folder", "fail"),
        ({"free_gb": 1.0}, "free space", "fail"),
        ({"versions": {**SAME, "torch": "2.4.0"}}, "packages", "warn"),
        ({"versions": {**SAME, "torch": "not installed"}}, "packages", "fail"),
        ({"errors": {"scontrol": "there is no scontrol"}}, "requeue", "warn"),
        ({"may_requeue": False}, "requeue", "fail"),
        ({"cpus_usable": 1}, "CPUs per task", "fail"),
        ({"cpus_usable": 2, "cpus_there": 2}, "CPUs per task", "warn"),
        ({"gpus_seen": 0}, "GPUs", "fail"),
        ({"gpus_seen": 0, "has_driver": False}, "GPUs", "warn"),
        ({"gpus_seen": 4}, "GPUs", "warn"),
        ({"errors": {"gpus": "ImportError: libcudart"}}, "GPUs", "fail"),
        ({"address": "", "errors": {"meeting": "cannot resolve n1"}}, "address", "fail"),
        ({"reduces": {}, "errors": {"meeting": "timeout"}}, "all-reduce, gloo", "fail"),
        ({"reduces": {"gloo": 1.0}, "doing": "NCCL"}, "all-reduce, NCCL", "fail"),
        ({"doing": "gpus"}, "job", "fail"),
    ],
)
def test_one_sick_node_is_enough(facts: dict[str, object], name: str, verdict: str) -> None:
    assert verdicts(probe_of(rank(0), rank(1, **facts)))[name] == verdict


def test_a_hint_stands_beside_everything_that_is_not_ok() -> None:
    sick = rank(1, token="", cpus_usable=1, gpus_seen=0, may_requeue=False, address="", free_gb=1.0)
    checks = probed.check_probe(probe_of(rank(0), sick), here(), ClusterProfile(), None)
    assert len([check for check in checks if check.verdict == "fail"]) > 4
    alone = dataclasses.replace(probe_of(rank(0, errors={"cpus": "no /proc"})), resources=Resources())
    checks += probed.check_probe(alone, here(), ClusterProfile(), None)
    assert all(check.hint for check in checks if check.verdict != "ok")


def test_a_rank_that_wrote_nothing_fails_the_job() -> None:
    check = probed.check_job(probe_of(rank(0), state="FAILED", log="srun: boom"))
    assert check.verdict == "fail"
    assert check.seen == "job 7 on n1 ended (FAILED), rank 1 not done: srun: boom"


def test_a_job_that_wrote_nothing_blames_its_log_or_the_folder() -> None:
    silent = probed.check_job(probe_of(state="FAILED"))
    assert silent.verdict == "fail"
    assert "share" in silent.hint
    spoken = probed.check_job(probe_of(state="FAILED", log="module: command not found"))
    assert "module: command not found" in spoken.seen
    assert "setup" in spoken.hint


def test_shards_are_read_on_every_node(tmp_path: Path) -> None:
    good, bad = rank(0, shard="train-00000.h5, 40 images"), rank(1, errors={"shard": "no such file"})
    assert probed.check_shard((good, good), tmp_path).verdict == "ok"
    assert probed.check_shard((good, bad), tmp_path).seen == "not readable on n2 (no such file)"


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


@pytest.mark.parametrize(
    ("partition", "settings", "resources"),
    [
        (GPU, {}, Resources(2, 2)),
        (MIXED, {"gpu_type": "v100"}, Resources(2, 2)),
        (dataclasses.replace(GPU, max_nodes=1), {}, Resources(2, 1)),
        (Partition("one", kinds=(NodeKind(1, 8, 30, 1),)), {}, Resources()),
        (Partition("one", kinds=(NodeKind(1, 8, 30),)), {"drop": ("gpus-per-node",)}, Resources(2, 1)),
    ],
)
def test_the_probe_takes_two_nodes_else_two_ranks_else_one(
    partition: Partition, settings: dict, resources: Resources
) -> None:
    assert probed.probe_resources(partition, ClusterProfile(**settings)) == resources


def test_ctrl_c_waits_until_a_program_has_answered() -> None:
    answers = []

    def interrupted_question() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            answers.append(subprocess.check_output(["sh", "-c", "kill -INT $$; echo done"], text=True))

    with pytest.raises(KeyboardInterrupt):
        interrupted_question()
    assert answers == ["done\n"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- drafting a profile ------------------------------------------------------------------------------


def test_a_draft_takes_the_gpus_and_stays_within_the_limits() -> None:
    assert draft_profile(SITE, ClusterProfile()) == ClusterProfile(
        partition="mixed",  # 36 GPUs
        cpu_partition="cpu",
        account="lab-x",
        gpu_type="",  # of two, the user chooses
        cpus_per_gpu=16,
        mem_per_gpu_gb=64,
        pack_limit_min=180,
        train_limit_min=1440,
    )
    default = dataclasses.replace(GPU, is_default=True, max_time_min=60)
    draft = draft_profile(Site({"SelectType": "select/linear"}, (MIXED, default)), ClusterProfile())
    assert (draft.partition, draft.gpu_type, draft.gpu_flag, draft.cpu_partition) == (
        "gpu",
        "a100",
        "gres",
        "",
    )
    assert (draft.train_limit_min, draft.evaluate_limit_min, draft.pack_limit_min) == (60, 60, 60)


def test_a_draft_keeps_what_its_base_says_and_slurm_does_not() -> None:
    base = ClusterProfile(partition="gpu", setup=("module load cuda",), account="other", qos="long")
    draft = draft_profile(SITE, base)
    assert (draft.partition, draft.setup, draft.account, draft.qos) == (
        "gpu",
        ("module load cuda",),
        "other",
        "long",
    )


def test_a_cluster_without_gpus_is_not_asked_for_them() -> None:
    draft = draft_profile(Site(CONFIG, (CPU,)), ClusterProfile())
    assert (draft.partition, draft.cpu_partition, draft.drop) == ("cpu", "", ("gpus-per-node",))
    with pytest.raises(ClusterError, match="no partition takes jobs"):
        draft_profile(Site(CONFIG, (Partition("gpu", num_unusable=2),)), ClusterProfile())
    with pytest.raises(ClusterError, match='"gpus" does not take jobs'):
        draft_profile(SITE, ClusterProfile(partition="gpus"))


@pytest.mark.parametrize("site", [SITE, Site(CONFIG, (CPU,), account="1234"), Site({}, (GPU,))])
def test_a_draft_is_read_back_as_it_was(tmp_path: Path, site: Site) -> None:
    draft = draft_profile(site, ClusterProfile(setup=("module load 'cuda: 12' # x",)))
    path = tmp_path / "site.yaml"
    write_draft(path, profile_text(draft, site))
    assert read_profile(str(path)) == draft
    assert len(re.findall(r"^# (\w+): ", path.read_text(), re.M)) > 5  # what may be set besides
    with pytest.raises(SettingsError, match="is there already"):
        write_draft(path, "")


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "x.yaml", "a/b"])
def test_only_a_plain_name_becomes_a_profile(name: str) -> None:
    with pytest.raises(SettingsError, match="not allowed"):
        new_profile_path(name)


def test_a_profile_that_is_there_is_never_overwritten() -> None:
    with pytest.raises(SettingsError, match="is there already"):
        new_profile_path("example")


# --- the command, without a cluster --------------------------------------------------------------------


def call(*words: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DOOR, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=240
    )


def rows(output: str) -> dict[str, tuple[str, str]]:
    """Verdict and what was seen, by check; the last of those with one name."""
    found = re.findall(r"^(ok|warn|fail) +(\S+(?: \S+)*) {2,}(.*)$", output, re.M)
    return {name: (verdict, seen) for verdict, name, seen in found}


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """An environment in which no program is found."""
    (tmp_path / "bin").mkdir()
    return {**os.environ, "PATH": str(tmp_path / "bin"), "OMP_NUM_THREADS": "1"}


def test_without_slurm_this_machine_is_checked_alone(tmp_path: Path, nowhere: dict[str, str]) -> None:
    done = call(folder=tmp_path, env=nowhere)
    seen = rows(done.stdout)
    assert seen["SLURM"] == ("ok", "not on this machine: studies run here, with --cluster local")
    assert {"packages", "runs folder", "free space", "GPUs"} < set(seen)
    assert done.returncode == (1 if "fail" in {verdict for verdict, _ in seen.values()} else 0)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--probe",),
        ("--write-profile", "mine"),
        ("--wait-min", "0"),
        ("--data", "here"),
        ("--profile", "alpin"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path: Path, nowhere: dict[str, str], words: tuple[str, ...]) -> None:
    done = call(*words, folder=tmp_path, env=nowhere)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*\nhint: .*\n|error: --wait-min 0; allowed: at least 1\n", done.stderr)
    assert not done.stdout


def test_a_profile_without_slurm_fails(tmp_path: Path, nowhere: dict[str, str]) -> None:
    done = call("--profile", "example", folder=tmp_path, env=nowhere)
    assert done.returncode == 1
    assert rows(done.stdout)["SLURM"][0] == "fail"


# --- on a real cluster ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name has a space."""
    return tmp_path_factory.mktemp("shared disk")


def profile_with(folder: Path, line: str) -> str:
    path = folder / "site.yaml"
    path.write_text(DEV_PROFILE.read_text() + line + "\n")
    return str(path)


def no_trace(cluster: DevCluster, folder: Path) -> bool:
    """No job of the doctor is queued or running, and none of its files is left."""
    return ".doctor" not in cluster.run("squeue", "-h", "-o", "%j") and not list(folder.glob("runs/.doctor*"))


@pytest.mark.slurm
def test_a_drafted_profile_is_read_and_accepted(cluster: DevCluster, folder: Path, shards: Path) -> None:
    name = f"drafted-by-a-test-{os.getpid()}"
    try:
        done = call("--write-profile", name, folder=folder, env=cluster.env)
        assert done.returncode == 0, done.stdout + done.stderr
        seen = rows(done.stdout)
        assert seen["nodes"] == ("ok", "2 nodes of 8 CPUs, 15 GB, 4 GPUs (fake)")
        assert seen["sbatch"][0] == "ok"
        profile = read_profile(name)
        assert (profile.partition, profile.gpu_type, profile.account) == ("gpu", "fake", "root")
        words = ("--variant", "linear", "--data", str(shards), "--gpus", "2", "--nodes", "2", "--dry-run")
        dry = subprocess.run(
            [sys.executable, str(REPOSITORY / "jobs/launch.py"), *words, *TINY_FLAGS, "--profile", name],
            cwd=folder,
            env=cluster.env,
            capture_output=True,
            text=True,
        )
        assert dry.returncode == 0, dry.stderr
        assert "#SBATCH --gpus-per-node=fake:1\n" in dry.stdout
    finally:
        (PROFILES_DIR / f"{name}.yaml").unlink(missing_ok=True)


@pytest.mark.slurm
@pytest.mark.slow
def test_the_probe_sees_two_nodes_and_leaves_nothing(cluster: DevCluster, folder: Path, shards: Path) -> None:
    leaked = {"RANK": "5", "SLURM_JOB_ID": "99", "SBATCH_PARTITION": "nowhere"}
    words = ("--probe", "--profile", str(DEV_PROFILE), "--data", str(shards))
    done = call(*words, folder=folder, env={**cluster.env, **leaked, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    seen = rows(done.stdout)
    assert re.fullmatch(r"\d+ on n1 and n2, 2 ranks, \d+ s in all", seen["job"][1])
    expected = (
        "shared folder",
        "packages",
        "requeue",
        "CPUs per task",
        "address",
        "all-reduce, gloo",
        "shard",
    )
    assert {name: seen[name][0] for name in expected} == dict.fromkeys(expected, "ok")
    assert seen["GPUs"] == ("warn", "1 asked for on each node, 1 allocated, torch sees 0")
    assert no_trace(cluster, folder)


@pytest.mark.slurm
def test_what_is_wrong_here_is_told_without_a_job(cluster: DevCluster, folder: Path) -> None:
    profile = folder / "site.yaml"
    profile.write_text("partition: gpus\nextra: {no-requeue: ''}\n")
    done = call(
        "--probe", "--profile", str(profile), "--runs-dir", "/proc/runs", folder=folder, env=cluster.env
    )
    assert done.returncode == 1
    seen = rows(done.stdout)
    assert seen["runs folder"] == ("fail", "/proc/runs cannot be written")
    assert seen["partition"] == ("fail", '"gpus" does not exist; known: gpu, urgent')
    assert seen["requeue"][0] == "fail"
    assert seen["job"] == ("fail", "not submitted")


@pytest.mark.slurm
def test_what_sbatch_refuses_is_told_in_its_words(cluster: DevCluster, folder: Path) -> None:
    done = call("--profile", profile_with(folder, "mem_per_gpu_gb: 500"), folder=folder, env=cluster.env)
    assert done.returncode == 1
    verdict, seen = rows(done.stdout)["sbatch"]
    assert verdict == "fail"
    assert "configuration is not available" in seen


@pytest.mark.slurm
def test_a_controller_that_does_not_answer_fails(cluster: DevCluster, folder: Path) -> None:
    conf = folder / "slurm.conf"
    nobody = free_ports(1)[0]
    conf.write_text(re.sub(r"SlurmctldPort=\d+", f"SlurmctldPort={nobody}", cluster.conf.read_text()))
    done = call(folder=folder, env={**cluster.env, "SLURM_CONF": str(conf)})
    assert done.returncode == 1
    assert rows(done.stdout)["SLURM"] == ("fail", "sbatch is here, but its controller does not answer")


@pytest.mark.slurm
@pytest.mark.slow
def test_a_setup_line_that_fails_is_quoted(cluster: DevCluster, folder: Path) -> None:
    profile = profile_with(folder, "setup: [load_module_nothing cuda]")
    done = call("--probe", "--profile", profile, folder=folder, env=cluster.env)
    assert done.returncode == 1
    verdict, seen = rows(done.stdout)["job"]
    assert verdict == "fail"
    assert "load_module_nothing: command not found" in seen
    assert no_trace(cluster, folder)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_folder_that_nodes_do_not_see_is_found_out(cluster: DevCluster, folder: Path) -> None:
    (folder / "runs").mkdir()
    # a private mount: what is written there exists for this process alone
    command = [sys.executable, DOOR, "--probe", "--profile", str(DEV_PROFILE)]
    private = ["unshare", "--mount", "bash", "-c", 'mount -t tmpfs none runs && exec "$@"', "in", *command]
    done = subprocess.run(private, cwd=folder, env=cluster.env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    assert rows(done.stdout)["job"][0] == "fail"
    assert "choose a --runs-dir that they share" in done.stdout
    assert no_trace(cluster, folder)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_probe_is_cancelled(cluster: DevCluster, folder: Path, number: int) -> None:
    profile = profile_with(folder, "extra: {begin: now+1hour}")
    command = [sys.executable, DOOR, "--probe", "--profile", profile]
    door = subprocess.Popen(
        command, cwd=folder, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: not no_trace(cluster, folder), 60, lambda: "no job came")
    time.sleep(0.5)
    door.send_signal(number)
    _, told = door.communicate(timeout=60)
    assert door.returncode == 130
    assert "interrupted" in told
    assert no_trace(cluster, folder)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_probe_that_does_not_start_says_why_and_is_cancelled(
    cluster: DevCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    profile = read_profile(profile_with(folder, "extra: {begin: now+1hour}"))
    probe = run_probe(folder / "runs", profile, Resources(2, 2), None, wait_min=0.05)
    assert (probe.state, probe.reason) == ("PENDING", "BeginTime")
    check = probed.check_job(probe)
    assert check.verdict == "fail"
    assert "did not start in 0." in check.seen
    assert "(BeginTime)" in check.seen
    assert no_trace(cluster, folder)
