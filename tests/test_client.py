"""slurm/client.py: one environment, one time limit, one way to fail, one policy for those who poll."""

import ast
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from tiny import REPOSITORY

from data_prep.errors import ClusterError
from slurm import client
from slurm.client import QueuedJob, QueueWatch, SlurmRefused

Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes a real program of that name with that shell text, before all others on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(name: str, body: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    return make


def test_what_a_user_or_an_outer_job_has_set_changes_no_answer(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQUEUE_STATES would hide what is pending, SLURM_TIME_FORMAT make times unreadable."""
    leaks = (
        "SQUEUE_STATES",
        "SLURM_TIME_FORMAT",
        "SLURM_CLUSTERS",
        "SBATCH_PARTITION",
        "SACCT_FORMAT",
        "RANK",
    )
    for name in leaks:
        monkeypatch.setenv(name, "leaked")
    monkeypatch.setenv("SLURM_CONF", "/etc/elsewhere.conf")
    seen = " ".join(f"${name}" for name in (*leaks, "SLURM_CONF"))
    program("squeue", f'echo "8_0|PENDING|train|{seen}|N/A|(null)"')
    program("sacct", f'echo "8_0|FAILED|{seen}|1:0"')
    for name in ("scontrol", "scancel", "sbatch"):
        program(name, f'echo "{name} {seen}" >&2; exit 1')
    assert client.queue() == (
        QueuedJob("8_0", "PENDING", "train", "      /etc/elsewhere.conf", "N/A", "(null)"),
    )
    (ended,) = client.accounts(["8"]) or ()
    assert ended.name.strip() == "/etc/elsewhere.conf"
    for order in (
        lambda: client.requeue("8"),
        lambda: client.cancel("8"),
        lambda: client.sbatch("#!/bin/sh"),
    ):
        with pytest.raises(SlurmRefused) as caught:
            order()
        assert caught.value.words.split()[1:] == ["/etc/elsewhere.conf"]


def test_an_outer_job_does_not_leak_into_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    leaked = {
        "SLURM_JOB_ID": "1",
        "SLURM_CPU_BIND": "verbose",
        "SLURM_ARRAY_TASK_ID": "3",
        "SRUN_CPUS_PER_TASK": "2",
        "SBATCH_PARTITION": "old",
        "PMI_RANK": "0",
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_PORT": "29500",
        "SUBMITIT_EXECUTOR": "local",
    }
    kept = {"SLURM_CONF": "/etc/slurm.conf", "FRANK": "1", "MASTER_ADDRESS_BOOK": "x"}
    for name, value in {**leaked, **kept}.items():
        monkeypatch.setenv(name, value)
    cleaned = client.clean_environment()
    assert not set(leaked) & set(cleaned)
    assert kept.items() <= cleaned.items()
    assert set(os.environ) - set(cleaned) == set(leaked)


def test_without_slurm_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert not client.slurm_answers()


def test_the_script_reaches_sbatch_whole(program: Program) -> None:
    program("sbatch", 'cat; echo "$@"')
    assert client.sbatch("#!/bin/sh\necho ä\n", "--parsable") == "#!/bin/sh\necho ä\n--parsable\n"


def test_a_program_that_is_missing_hangs_or_fails_gives_no_answer(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(client, "TIME_LIMIT_S", 0.2)
    program("squeue", "exec sleep 60")
    assert client.queue() is None
    with pytest.raises(ClusterError, match=r"squeue could not be asked: .* timed out") as caught:
        client.order("squeue")
    assert caught.value.hint == "try again later"
    program("squeue", "echo '8|RUNNING|train|None|N/A|(null)'; exit 1")
    assert client.queue() is None
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert client.queue() is None
    assert client.missing_programs() == list(client.PROGRAMS)
    with pytest.raises(ClusterError, match=r"squeue could not be asked: .*No such file"):
        client.order("squeue")


def test_half_an_answer_is_left_out(program: Program) -> None:
    program("squeue", "echo '8|RUNNING|train|None|N/A|(null)'; echo '|RUNNING|a|None|N/A|b'; printf '9|PEN'")
    assert [job.id for job in client.queue() or ()] == ["8"]
    program("sacct", "echo '8_0|CANCELLED by 1000|train|0:15'; echo '8_0.batch'")
    assert client.accounts(["8"]) == (client.EndedJob("8_0", "CANCELLED", "train", "0:15"),)


def test_a_refusal_has_slurms_own_words(program: Program) -> None:
    program("scontrol", "echo 'Access/permission denied' >&2; echo ' for job 8'; exit 1")
    with pytest.raises(SlurmRefused) as caught:
        client.requeue("8")
    assert caught.value.words == "Access/permission denied for job 8"
    assert str(caught.value) == "SLURM refused `scontrol requeue 8`: Access/permission denied for job 8"
    with pytest.raises(SlurmRefused, match="permission denied"):
        client.hold("8")


@pytest.mark.parametrize(
    ("words", "is_over"),
    [
        ("4_0-1: Job has already finished", True),
        ("scancel: error: Kill job error on job id 9: Invalid job id specified", True),
        ("Job/step already completing or completed", True),
        ("4_0: Job has already finished\n4_1: No error", True),
        ("4_0: Job has already finished\n4_1: Access/permission denied", False),
        ("Unable to contact slurm controller (connect failure)", False),
        ("", False),
    ],
)
def test_only_a_job_that_has_ended_may_refuse_an_order(
    fake_slurm: FakeSlurm, words: str, is_over: bool
) -> None:
    for program in ("scontrol", "scancel"):
        fake_slurm.fail(program, words)
    orders = (
        lambda: client.cancel("4"),
        lambda: client.hold("4"),
        lambda: client.release("4"),
        lambda: client.set_array_throttle("4", 2),
    )
    for order in orders:
        with nullcontext() if is_over else pytest.raises(SlurmRefused):
            order()


def test_what_slurm_does_not_say_is_its_usual_value(fake_slurm: FakeSlurm) -> None:
    fake_slurm.config["MaxArraySize"] = "4001"
    assert client.max_array_size() == 4001
    del fake_slurm.config["MaxArraySize"]
    assert client.max_array_size() == client.MAX_ARRAY_SIZE
    fake_slurm.controller_down()
    assert client.max_array_size() == client.MAX_ARRAY_SIZE
    assert client.node_address("n1") is None


# --- for loops -----------------------------------------------------------------------------------


class Clock:
    """A squeue, and time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.asked_s: list[float] = []
        self.answer: tuple[QueuedJob, ...] | None = ()

    def ask(self) -> tuple[QueuedJob, ...] | None:
        self.asked_s.append(self.now_s)
        return self.answer

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def watch(self) -> QueueWatch:
        return QueueWatch(10, 60, ask=self.ask, clock=lambda: self.now_s, sleep=self.sleep)


def jobs(*states: str) -> tuple[QueuedJob, ...]:
    return tuple(QueuedJob(str(number), state, "a", "None", "N/A", "") for number, state in enumerate(states))


def test_a_watch_asks_less_and_less_often_while_nothing_changes() -> None:
    clock = Clock()
    watch = clock.watch()
    while clock.now_s < 300:
        assert watch.look() == ()
        clock.sleep(1)
    assert clock.asked_s == [0, 10, 30, 70, 130, 190, 250]
    clock.answer = jobs("PENDING")
    while clock.now_s < 400:
        watch.look()
        clock.sleep(1)
    assert clock.asked_s[7:] == [310, 320, 340, 380]


def test_a_watch_waits_until_it_may_ask() -> None:
    clock = Clock()
    watch = clock.watch()
    for _ in range(4):
        watch.look()
        watch.wait()
    assert clock.asked_s == [0, 10, 30, 70]
    watch.wait()  # already due
    assert clock.now_s == 130


def test_no_answer_is_not_taken_for_the_same_answer() -> None:
    clock = Clock()
    clock.answer = None
    watch = clock.watch()
    for _ in range(4):
        assert watch.look() is None
        watch.wait()
    assert clock.asked_s == [0, 10, 20, 30]
    clock.answer = jobs("RUNNING")
    assert watch.look() == jobs("RUNNING")


def test_what_was_just_submitted_or_cancelled_is_looked_for_at_once() -> None:
    clock = Clock()
    watch = clock.watch()
    for _ in range(5):
        watch.look()
        watch.wait()
    watch.look()
    watch.expire()
    clock.answer = jobs("PENDING", "PENDING")
    assert watch.look() == clock.answer
    assert clock.asked_s[-2] == clock.asked_s[-1]
    watch.wait()
    assert clock.now_s == clock.asked_s[-1] + 10
    watch.expire()
    watch.look()
    watch.look()
    assert clock.asked_s[-1] == clock.asked_s[-2] + 10  # also if the answer is the same: not without end


def test_everybody_who_loops_asks_as_seldom_as_squeue_wants() -> None:
    assert (client.LEAST_EVERY_S, client.MOST_EVERY_S) == (10, 60) or "CXR_SQUEUE_EVERY_S" in os.environ


# --- the only door -------------------------------------------------------------------------------

SLURM_PROGRAMS = {"sbatch", "squeue", "scontrol", "scancel", "sacct", "sacctmgr", "sinfo", "srun", "sprio"}
# Who starts programs at all, and which; submitit starts the processes of local jobs.
STARTERS = {
    "slurm/client.py": "SLURM's",
    "slurm/preflight.py": "nvidia-smi, to count GPUs",
    "slurm/drill/drill.py": "the launch command that a user would type",
    "vae/provenance.py": "git, for the code's version",
}


def production() -> dict[str, ast.Module]:
    """The code of every production file, by its path."""
    paths = [
        path for room in ("data_prep", "vae", "slurm", "jobs") for path in (REPOSITORY / room).rglob("*.py")
    ]
    return {
        str(path.relative_to(REPOSITORY)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(paths)
    }


def first_words(tree: ast.Module) -> set[str]:
    """SLURM's programs where a command begins: the first element of a call, a list or a tuple."""
    first = [node.elts[0] for node in ast.walk(tree) if isinstance(node, (ast.List, ast.Tuple)) and node.elts]
    first += [node.args[0] for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    words = [node.value for node in first if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return SLURM_PROGRAMS.intersection(words)


def test_slurms_programs_are_run_from_the_client_only() -> None:
    programs = {path: first_words(tree) for path, tree in production().items()}
    assert programs.pop("slurm/client.py") >= {"sbatch", "squeue", "scontrol", "scancel", "sacct"}
    assert programs.pop("slurm/sbatch.py") == {"srun"}  # in the text of a script that runs on the node
    assert {path: names for path, names in programs.items() if names} == {}


def test_few_files_start_programs_and_each_for_a_reason() -> None:
    """What a file starts may be named elsewhere, so those that can are counted."""
    starts = re.compile(
        r"\b(subprocess\.(run|Popen|call|check_\w+|get\w+)|os\.(system|popen|(exec|spawn)\w+))\("
    )
    starters = {path for path, tree in production().items() if starts.search(ast.unparse(tree))}
    assert starters == STARTERS.keys()
