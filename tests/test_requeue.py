"""slurm/node/requeue.py: who is stopped runs again, once, and by whoever knows how."""

import signal
import subprocess
import textwrap
from pathlib import Path

import pytest
from slurm_jobs import run_python

# A cluster in memory whose array task 1_1 is this process's job, and what becomes of it.
ON_SLURM = """
from fake_slurm import FakeSlurm
cluster = FakeSlurm()
client.run = cluster.run
job = cluster.submit("chest-train", array="0-1")
cluster.start(job)
ours = cluster.jobs[f"{job}_1"]
def end(act, *arguments):
    try:
        act(*arguments)
    except SystemExit as end:
        print(end.code, ours.state, ours.restarts, cluster.jobs[f"{job}_0"].restarts)
"""


def on_slurm(code: str) -> subprocess.CompletedProcess[str]:
    return run_python(ON_SLURM + textwrap.dedent(code))


def test_on_this_machine_the_requeue_is_left_to_the_handler_that_was_there() -> None:
    done = run_python("""
        signal.signal(signal.SIGUSR2, lambda number, frame: (print("requeued", number), sys.exit(7)))
        requeue_and_exit(job_env(backend=Backend.LOCAL), StopFlag().previous_handler)
    """)
    assert (done.stdout, done.returncode) == (f"requeued {int(signal.SIGUSR2)}\n", 7)


def test_terminated_training_ends_without_asking_to_run_again() -> None:
    done = run_python("""
        signal.signal(signal.SIGUSR2, lambda number, frame: print("requeued"))
        stop = StopFlag(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        print(stop())
        exit_after_stop(job_env(), stop)
    """)
    assert (done.stdout, done.returncode) == ("True\n", 128 + signal.SIGTERM)


@pytest.mark.parametrize("is_preempted", [True, False])
def test_a_preempted_run_is_requeued_where_only_term_tells_of_it(is_preempted: bool) -> None:
    """SLURM would take a job that ends before it is killed for failed, and not start it again."""
    done = on_slurm(f"""
        ours.is_preempted = {is_preempted}
        stop = StopFlag(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        end(exit_after_stop, job_env(job=ours.id), stop)
    """)
    expected = "1 PENDING 1 0\n" if is_preempted else "143 RUNNING 0 0\n"
    assert done.stdout == expected, done.stderr


def test_a_job_requeues_itself_and_no_other() -> None:
    done = on_slurm("end(requeue_and_exit, job_env(job=ours.id), signal.SIG_IGN)")
    assert done.stdout == "1 PENDING 1 0\n", done.stderr


@pytest.mark.parametrize("signals", ["USR2 TERM", "TERM USR2"])
def test_a_term_outranks_a_stop_signal(signals: str) -> None:
    done = on_slurm(f"""
        stop = StopFlag(signal.SIGTERM)
        for name in {signals.split()}:
            os.kill(os.getpid(), signal.Signals[f"SIG{{name}}"])
        end(exit_after_stop, job_env(job=ours.id), stop)
    """)
    assert done.stdout == "143 RUNNING 0 0\n", done.stderr


@pytest.mark.parametrize("is_preempted", [True, False])
def test_a_job_that_was_cancelled_is_not_requeued_whatever_was_noted_before(is_preempted: bool) -> None:
    """Its TERM is still on its way; SLURM would put even a cancelled job back into the queue."""
    done = on_slurm(f"""
        ours.lingers, ours.is_preempted = True, {is_preempted}
        stop = StopFlag(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        client.cancel(job)
        end(exit_after_stop, job_env(job=ours.id), stop)
        end(requeue_and_exit, job_env(job=ours.id), signal.SIG_IGN)  # as scoring, from its handler
    """)
    assert done.stdout == "1 COMPLETING 0 0\n" * 2, done.stderr


def test_other_ranks_leave_quietly() -> None:
    done = run_python("""
        requeue_and_exit(job_env(rank=1, local_rank=1), lambda number, frame: print("requeued"))
    """)
    assert (done.stdout, done.returncode) == ("", 0)


def test_a_process_without_scontrol_has_the_jobs_script_requeue_it(tmp_path: Path) -> None:
    done = run_python(f"""
        os.environ |= {{"SUBMITIT_FOLDER": {str(tmp_path)!r}, "PATH": "/nowhere"}}
        requeue = lambda number, frame: subprocess.run(["scontrol", "requeue", "5_2"])
        requeue_and_exit(job_env(job="5_2"), requeue)
    """)
    assert done.returncode == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["5_2.requeue"]


def test_a_rank_that_was_not_signalled_itself_ends_with_the_others() -> None:
    done = on_slurm("""
        for rank in (0, 1):
            end(exit_after_stop, job_env(job=ours.id, rank=rank), StopFlag())
    """)
    assert done.stdout == "1 PENDING 1 0\n0 PENDING 1 0\n", done.stderr


@pytest.mark.parametrize("signals", ["USR2 TERM", "TERM USR2"])
def test_a_cancel_is_final_on_this_machine_too(signals: str) -> None:
    done = run_python(f"""
        from slurm.node.environment import Backend
        signal.signal(signal.SIGUSR2, lambda number, frame: print("requeued"))
        stop = StopFlag(signal.SIGTERM)
        for name in {signals.split()}:
            os.kill(os.getpid(), signal.Signals[f"SIG{{name}}"])
        exit_after_stop(job_env(backend=Backend.LOCAL), stop)
    """)
    assert (done.stdout, done.returncode) == ("", 128 + signal.SIGTERM), done.stderr
