"""slurm/node/signals.py: a stop signal sets a flag in the process that wants it, and in no fork of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from slurm_jobs import run_python

from slurm.sbatch import LAUNCHER


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


def test_a_lost_stop_signal_is_made_up_for_before_the_end() -> None:
    done = run_python("""
        stop = StopFlag()
        stop.expires_s = time.time() + 0.5
        early = stop()
        time.sleep(0.6)
        print(early, stop(), stop.was_signalled)
    """)
    assert done.stdout == "False True True\n"
