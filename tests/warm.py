"""Processes of their own that begin with torch imported, on which a fresh Python spends seconds.

They can be signalled and killed like any other. What a command does before it trains or scores is tested
with real commands elsewhere.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from tiny import REPOSITORY, child_environment

from vae.run_dir import checkpoint_dir

# torch._dynamo is imported by DistributedDataParallel.
PRELOADED = ["torch._dynamo", "vae.scoring.evaluate", "vae.training.trainer", "slurm.node.task"]


def start_process(
    function: Callable[..., object],
    *arguments: object,
    variables: Mapping[str, str] | None = None,
    stderr: Path = Path(os.devnull),
) -> ForkServerProcess:
    """Call a function of a module in a process that has `variables` in its environment."""
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    environment = {**child_environment(), **(variables or {})}
    process = context.Process(target=_run, args=(function, arguments, environment, stderr))
    process.start()
    return process


def _run(
    function: Callable[..., object], arguments: tuple[object, ...], environment: dict[str, str], stderr: Path
) -> None:
    import torch

    with stderr.open("ab") as file:
        os.dup2(file.fileno(), 2)
    os.environ.clear()  # what the server was started with
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


# --- what they do --------------------------------------------------------------------------------------


def on_ranks(world_size: int, function: Callable[..., object], *arguments: object) -> None:
    """Call a function in one gloo process per rank; any that fails shows what all have said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_PORT": port}
    children, logs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(world_size):
            own = {**ranks, "MASTER_ADDR": "127.0.0.1", "RANK": rank, "LOCAL_RANK": rank}
            variables = {name: str(value) for name, value in own.items()}
            logs.append(Path(folder) / str(rank))
            children.append(start_process(function, *arguments, variables=variables, stderr=logs[-1]))
        for child in children:
            child.join(300)
        texts = [log.read_text() for log in logs]
    assert all(child.exitcode == 0 for child in children), "\n".join(texts)


def run_script(door: str, *words: str) -> None:
    """`python jobs/DOOR.py WORDS`."""
    folder = REPOSITORY / "jobs"
    sys.path.insert(0, str(folder))
    sys.argv = [str(folder / f"{door}.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def accelerate_launch(*words: str) -> None:
    """`accelerate launch WORDS`; what it starts is a Python of its own."""
    from accelerate.commands.accelerate_cli import main

    sys.argv = ["accelerate", "launch", *words]
    main()


def train_on_rank(*runs: str) -> None:
    """Train runs (RUN_DIR or RUN_DIR@STOP_AT_STEP) one after another.

    With a step behind the @ the highest rank asks to stop after that many steps, as a signal to it would.
    """
    from vae.training.collectives import destroy_process_group
    from vae.training.trainer import train

    is_highest = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)
    for run in runs:
        run_dir, _, stop_at_step = run.partition("@")
        steps = iter(range(1, 1 << 30))
        stop_at = int(stop_at_step or 0) if is_highest else 0
        train(Path(run_dir), lambda steps=steps, stop_at=stop_at: next(steps) == stop_at)  # type: ignore[misc]
    destroy_process_group()


def score_on_rank(run_dir: Path) -> None:
    """Score a run of a study."""
    from vae.scoring.evaluate import evaluate
    from vae.study import read_study
    from vae.training.collectives import destroy_process_group

    evaluate(run_dir, read_study(run_dir.parent))
    destroy_process_group()


def train_until_killed(run_dir: Path, at_call: int, saved_step: int) -> None:
    """Train, and be killed when the trainer asks for the `at_call`-th time whether to stop.

    By then the checkpoint of `saved_step`, which was written beside the steps, is whole and noted.
    """
    from vae.training.trainer import train

    def should_stop() -> bool:
        nonlocal calls
        calls += 1
        if calls == at_call:
            signal.raise_signal(signal.SIGKILL)
        if calls == at_call - 1:
            while not checkpoint_dir(run_dir, saved_step).exists():
                time.sleep(0.001)
            time.sleep(0.1)  # the thread has still to end; it is noted at the next step
        return False

    calls = 0
    train(run_dir, should_stop)


def train_with_small_files(run_dir: Path, num_bytes: int) -> None:
    """Train, and be killed by the system at that byte of the first file that becomes so large."""
    from vae.training.trainer import train

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    train(run_dir)
