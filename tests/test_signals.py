"""slurm/signals.py: a warning sets a flag in the process that asked for it, and in no helper of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from tiny import child_environment

from slurm.sbatch import LAUNCHER


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: handlers and fork hooks cannot be taken back."""
    setup = "import os, signal, sys, time\nfrom slurm.node.environment import single_process\n"
    setup += "from slurm.node.signals import *\n"
    return subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(code)],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )


def test_a_warning_sets_the_flag_and_nothing_else() -> None:
    done = run_python("""
        stop = StopFlag()
        before = stop()
        os.kill(os.getpid(), signal.SIGUSR2)
        print(before, stop())
    """)
    assert done.stdout == "False True\n"


def test_helpers_ignore_the_warning_and_can_be_terminated() -> None:
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


def test_rank_0_hands_over_to_the_handler_that_was_there() -> None:
    done = run_python("""
        signal.signal(signal.SIGUSR2, lambda number, frame: (print("requeued", number), sys.exit(7)))
        job_env = single_process().__class__("slurm", "5", 0, 0, 2, 0, 1, "n1", 1)
        requeue_and_exit(job_env, StopFlag().before)
    """)
    assert (done.stdout, done.returncode) == (f"requeued {int(signal.SIGUSR2)}\n", 7)


def test_terminated_training_ends_without_asking_to_run_again() -> None:
    done = run_python("""
        signal.signal(signal.SIGUSR2, lambda number, frame: print("requeued"))
        stop = StopFlag().catch_termination()
        os.kill(os.getpid(), signal.SIGTERM)
        print(stop())
        exit_after_stop(single_process().__class__("slurm", "5", 0, 0, 2, 0, 1, "n1", 1), stop)
    """)
    assert (done.stdout, done.returncode) == ("True\n", 128 + signal.SIGTERM)


def test_a_preempted_run_hands_over_where_only_term_tells_of_it(tmp_path: Path) -> None:
    """SLURM would take a job that ends before it is killed for failed, and not start it again."""
    scontrol = tmp_path / "scontrol"
    code = f"""
        os.environ["PATH"] = {str(tmp_path)!r} + ":" + os.environ["PATH"]
        signal.signal(signal.SIGUSR2, lambda number, frame: (print("requeued"), sys.exit(7)))
        stop = StopFlag().catch_termination()
        os.kill(os.getpid(), signal.SIGTERM)
        print(stop())
        exit_after_stop(single_process().__class__("slurm", "5_1", 0, 0, 2, 0, 1, "n1", 1), stop)
    """
    for moment, expected in (("2026-01-31T16:00:00", ("True\nrequeued\n", 7)), ("None", ("True\n", 143))):
        shown = f"PreemptEligibleTime=2026-01-31T15:00:00 PreemptTime={moment}"
        scontrol.write_text(f"#!/bin/sh\necho '{shown}'\n")
        scontrol.chmod(0o755)
        done = run_python(code)
        assert (done.stdout, done.returncode) == expected, done.stderr


def test_other_ranks_leave_quietly() -> None:
    done = run_python("""
        job_env = single_process().__class__("slurm", "5", 0, 1, 2, 1, 1, "n1", 1)
        requeue_and_exit(job_env, lambda number, frame: print("requeued"))
    """)
    assert (done.stdout, done.returncode) == ("", 0)


def test_a_warning_after_the_end_changes_nothing() -> None:
    done = run_python("""
        StopFlag()
        ignore_stop_signal()
        os.kill(os.getpid(), signal.SIGUSR2)
    """)
    assert done.returncode == 0


def test_a_warning_before_python_is_ready_kills_nothing(tmp_path: Path) -> None:
    """The command line of the sbatch script, warned while Python has not even begun to import."""
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
        requeue_and_exit(single_process().__class__("slurm", "5_2", 0, 0, 2, 0, 1, "n1", 1), requeue)
    """)
    assert done.returncode == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["5_2.requeue"]


def test_a_rank_that_was_not_warned_itself_hands_over_with_the_others() -> None:
    done = run_python("""
        signal.signal(signal.SIGUSR2, lambda number, frame: (print("requeued"), sys.exit(7)))
        for rank, code in ((0, 7), (1, 0)):
            try:
                env = single_process().__class__("slurm", "5", 0, rank, 2, 0, 1, "n1", 1)
                exit_after_stop(env, StopFlag())
            except SystemExit as end:
                print(rank, end.code == code)
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    """)
    assert done.stdout == "requeued\n0 True\n1 True\n"


def test_a_lost_warning_is_made_up_for_before_the_end() -> None:
    done = run_python("""
        stop = StopFlag()
        stop.expire_at(time.time() + 0.5)
        early = stop()
        time.sleep(0.6)
        print(early, stop(), stop.was_signalled)
    """)
    assert done.stdout == "False True True\n"
