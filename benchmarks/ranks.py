"""What several ranks on one machine gain, and what their exchange of gradients costs.

    python benchmarks/ranks.py [--shards DIR] [--ranks 2]

One rank with all cores is the yardstick; R gloo ranks share the cores, and a step of theirs takes as many
images in all. Without exchange (DDP's no_sync) they train apart: what is missing to that is the exchange.
"""

import argparse
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from side_by_side import Apart, Case, conditions, draw, measure, parser, table
from train import BATCH, VARIANTS, pack_phantoms


def rank_case(
    environment: dict[str, str], threads: int, settings: dict[str, object], steps: int
) -> Callable[[], int]:
    """One rank's training; `exchange` "none" leaves the gradients apart."""
    os.environ.update(environment)
    import torch
    from torch import distributed

    from vae.config import RunConfig
    from vae.training.accelerator import start_accelerator
    from vae.training.data_loader import BatchPlan, batches, load_split
    from vae.training.trainer import train_step
    from vae.training.training_state import build_training_state

    torch.set_num_threads(threads)
    exchange = settings.pop("gradient_exchange")
    known = "full" if exchange == "none" else exchange
    config = RunConfig(**settings, trackers=(), gradient_exchange=known)  # type: ignore[arg-type]
    accelerator = start_accelerator(config, Path(tempfile.gettempdir()))
    split = load_split(Path(config.data), "train")
    plan = BatchPlan(len(split), BATCH, 0, accelerator.process_index, accelerator.num_processes)
    state = build_training_state(config, accelerator, total_steps=1 << 30)
    stream = enumerate(batches(split, plan, 0, 1 << 30, accelerator.device))

    def run() -> int:
        for _ in range(steps):
            step, batch = next(stream)
            with accelerator.no_sync(state.network) if exchange == "none" else nullcontext():
                train_step(state, batch, plan, step, wants_norm=False)
        if distributed.is_initialized():
            distributed.barrier()
        return steps * BATCH

    return run


def together(name: str, world_size: int, settings: dict[str, object], steps: int, stack: ExitStack) -> Case:
    """Ranks that train at the same time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(len(os.sched_getaffinity(0)) // world_size, 1)
    ranks = []
    for rank in range(world_size):
        numbers = {"WORLD_SIZE": world_size, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        environment = {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
        own = environment if world_size > 1 else {}
        ranks.append(stack.enter_context(Apart(name, rank_case, own, threads, dict(settings), steps)))
    pool = stack.enter_context(ThreadPoolExecutor(world_size))
    return Case(name, lambda: max(pool.map(lambda rank: rank.run(), ranks)))


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--shards", type=Path, help="packed images; default: phantoms")
    flags.add_argument("--ranks", type=int, default=2)
    flags.add_argument(
        "--steps", type=int, default=3, help="steps of 32 images a turn (default: %(default)s)"
    )
    given: argparse.Namespace = flags.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        shards = given.shards or pack_phantoms(Path(scratch) / "shards")
        print(conditions("torch", "accelerate"))
        for variant in VARIANTS:
            own: dict[str, object] = {"variant": variant, "data": str(shards)}
            with ExitStack() as stack:
                alone = together("1 rank", 1, {**own, "gradient_exchange": "full"}, given.steps, stack)
                several = [
                    together(
                        f"{given.ranks} ranks, exchange: {how}",
                        given.ranks,
                        {**own, "gradient_exchange": how},
                        given.steps,
                        stack,
                    )
                    for how in ("full", "bf16", "none")
                ]
                found = measure([alone, *several], given.rounds)
            print(f"\n### {variant}\n", *table(found, "images/s", "1 rank"), sep="\n")
            if given.plot:
                path = given.plot.with_name(f"{given.plot.stem}-{variant}{given.plot.suffix}")
                draw(path, found, f"Ranks on one machine, {variant}", "images/s")


if __name__ == "__main__":
    main()
