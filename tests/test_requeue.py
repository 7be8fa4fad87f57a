"""slurm/node/requeue.py: who is stopped runs again, once, and by whoever knows how."""

import signal
from pathlib import Path

import pytest
from slurm_jobs import run_python


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
