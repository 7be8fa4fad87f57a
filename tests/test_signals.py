"""slurm/node/signals.py: a stop signal sets a flag in the process that wants it, and in no fork of it."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tiny import child_environment

from slurm.sbatch import LAUNCHER


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: handlers and fork hooks cannot be taken back."""
    setup = "import os, signal, subprocess, sys, time\nfrom slurm_jobs import job_env\n"
    setup += "from slurm.node.signals import *\n"
    return subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(code)],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )


def test_a_stop_signal_sets_the_flag_and_nothing_else() -> None:
    done = run_python("""
        stop = StopFlag()
        before = stop()
        os.kill(os.getpid(), signal.SIGUSR2)
        print(before, stop())
    """)
    assert done.stdout == "False True\n"


def test_helpers_ignore_the_stop_signal_and_can_be_terminated() -> None:
    done = run_python("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as submitit does
        stop = StopFlag(at_once=lambda: os.write(1, b"acted"))
        helper = os.fork()
        if helper == 0:
            os.kill(os.getpid(), signal.SIGUSR2)
            os.write(1, b"alive ")
            time.sleep(60)
        time.sleep(0.5)
        os.kill(helper, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1]))
    """)
    assert done.stdout == f"alive {-signal.SIGTERM}\n"


def test_rank_0_leaves_the_requeue_to_the_handler_that_was_there() -> None:
    done = run_python("""
        signal.signal(signal.SIGUSR2, lambda number, frame: (print("requeued", number), sys.exit(7)))
        requeue_and_exit(job_env(), StopFlag().previous_handler)
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
    done = run_python(f"""
        from fake_slurm import FakeSlurm
        cluster = FakeSlurm()
        client.run = cluster.run
        job = cluster.submit("chest-train", array="0-1")
        cluster.start(job)
        cluster.jobs[f"{{job}}_1"].is_preempted = {is_preempted}
        signal.signal(signal.SIGUSR2, lambda number, frame: (print("requeued"), sys.exit(7)))
        stop = StopFlag(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        print(stop())
        exit_after_stop(job_env(job=f"{{job}}_1"), stop)
    """)
    expected = ("True\nrequeued\n", 7) if is_preempted else ("True\n", 143)
    assert (done.stdout, done.returncode) == expected, done.stderr


def test_a_job_submitted_by_hand_requeues_itself() -> None:
    done = run_python("""
        from fake_slurm import FakeSlurm
        cluster = FakeSlurm()
        client.run = cluster.run
        job = cluster.submit("by-hand", array="0-1")
        cluster.start(job)
        try:
            requeue_and_exit(job_env(job=f"{job}_1"), signal.SIG_IGN)
        except SystemExit as end:
            print(end.code, [task.restarts for task in cluster.jobs.values()])
    """)
    assert done.stdout == "1 [0, 1]\n", done.stderr


def test_ctrl_c_stops_at_the_next_step_and_a_second_one_at_once() -> None:
    done = run_python("""
        stop = StopFlag(signal.SIGINT, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        print(stop(), stop.was_signalled, stop.received == [signal.SIGINT])
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            print("at once")
    """)
    assert done.stdout == "True False True\nat once\n", done.stderr


def test_other_ranks_leave_quietly() -> None:
    done = run_python("""
        requeue_and_exit(job_env(rank=1, local_rank=1), lambda number, frame: print("requeued"))
    """)
    assert (done.stdout, done.returncode) == ("", 0)


def test_a_stop_signal_after_the_end_changes_nothing() -> None:
    done = run_python("""
        StopFlag()
        ignore_stop_signal()
        os.kill(os.getpid(), signal.SIGUSR2)
    """)
    assert done.returncode == 0


def test_a_stop_signal_before_python_is_ready_kills_nothing(tmp_path: Path) -> None:
    """The command line of the sbatch script, signalled while Python has not even begun to import."""
    ready = tmp_path / "ready"
    code = f"import os, time; open({str(ready)!r}, 'w').close(); time.sleep(1); print('alive')"
    command = f'{LAUNCHER} {sys.executable} -c "{code}"'
    process = subprocess.Popen(["bash", "-c", f"exec {command}"], stdout=subprocess.PIPE, text=True)
    while not ready.exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGUSR2)
    assert process.communicate(timeout=30)[0] == "alive\n"
    assert process.returncode == 0


def test_a_process_without_scontrol_has_the_jobs_script_requeue_it(tmp_path: Path) -> None:
    done = run_python(f"""
        os.environ |= {{"SUBMITIT_FOLDER": {str(tmp_path)!r}, "PATH": "/nowhere"}}
        requeue = lambda number, frame: subprocess.run(["scontrol", "requeue", "5_2"])
        requeue_and_exit(job_env(job="5_2"), requeue)
    """)
    assert done.returncode == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["5_2.requeue"]


def test_a_rank_that_was_not_signalled_itself_ends_with_the_others() -> None:
    done = run_python("""
        signal.signal(signal.SIGUSR2, lambda number, frame: (print("requeued"), sys.exit(7)))
        for rank, code in ((0, 7), (1, 0)):
            try:
                exit_after_stop(job_env(rank=rank), StopFlag())
            except SystemExit as end:
                print(rank, end.code == code)
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    """)
    assert done.stdout == "requeued\n0 True\n1 True\n"


def test_a_lost_stop_signal_is_made_up_for_before_the_end() -> None:
    done = run_python("""
        stop = StopFlag()
        stop.expires_s = time.time() + 0.5
        early = stop()
        time.sleep(0.6)
        print(early, stop(), stop.was_signalled)
    """)
    assert done.stdout == "False True True\n"
