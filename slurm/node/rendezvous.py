"""Rendezvous: rank 0 publishes address and port in a file of the attempt, the other ranks wait for it."""

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.errors import ClusterError
from data_prep.json_records import Record, read_record, write_record
from slurm import client
from slurm.node.environment import JobEnvironment
from vae.run_dir import rendezvous_path

# All ranks of a job start together; one that is this late has not been started, or sees another folder.
RENDEZVOUS_LIMIT_S = 300.0
POLL_S = 0.2
# Below Linux's ephemeral range, so that no outgoing connection takes the port before torch binds it.
PORTS = range(20_000, 32_000)


class Address(Record, frozen=True):
    """Where rank 0 listens."""

    address: str
    port: int


@contextmanager
def rendezvous(job_env: JobEnvironment, folder: Path) -> Iterator[None]:
    """Set the variables by which torch and accelerate find the other ranks; `folder` must be shared.

    They are taken back at the end. CUDA_VISIBLE_DEVICES stays as the scheduler set it: every rank sees all
    GPUs of its node, and accelerate picks the one numbered LOCAL_RANK. Raises as `wait_for_rendezvous`.
    """
    path = rendezvous_path(folder, job_env.tag)
    if job_env.rank == 0:
        for left_behind in folder.glob(rendezvous_path(folder, "*").name):  # by a killed attempt, of any job
            left_behind.unlink(missing_ok=True)
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(job_env.cpus))
    os.environ.setdefault("NCCL_DEBUG", "WARN")  # says what went wrong, and nothing else
    os.environ |= {"RANK": str(job_env.rank), "WORLD_SIZE": str(job_env.world_size)}
    try:
        if job_env.world_size > 1:  # a single process needs no process group
            meet = publish_rendezvous if job_env.rank == 0 else wait_for_rendezvous
            rank0 = meet(job_env, path)
            os.environ |= {
                "LOCAL_RANK": str(job_env.local_rank),
                "LOCAL_WORLD_SIZE": str(job_env.world_size // job_env.num_nodes),
                "MASTER_ADDR": rank0.address,
                "MASTER_PORT": str(rank0.port),
            }
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        if job_env.rank == 0:
            path.unlink(missing_ok=True)


def publish_rendezvous(job_env: JobEnvironment, path: Path) -> Address:
    """Rank 0's part: write the address and port at which it will listen, and return them."""
    rank0 = Address(own_address(job_env), free_port())
    write_record(path, rank0)
    return rank0


def wait_for_rendezvous(job_env: JobEnvironment, path: Path, limit_s: float = RENDEZVOUS_LIMIT_S) -> Address:
    """The other ranks' part: the address in rank 0's file of this attempt; ClusterError if none comes."""
    name, give_up = f"rank {job_env.rank} on {job_env.node}", time.monotonic() + limit_s
    while (rank0 := read_record(path, Address)) is None:
        if time.monotonic() > give_up:
            late = f"timed out after {limit_s:.0f} s waiting for rank 0's rendezvous file {path}"
            hint = "is the runs folder shared by all nodes? did rank 0 start? see its log"
            raise ClusterError(f"{name} {late}", hint)
        time.sleep(POLL_S)
    try:
        socket.getaddrinfo(rank0.address, rank0.port)
    except OSError as error:
        raise ClusterError(f"{name} cannot resolve rank 0's address {rank0.address}: {error}") from error
    return rank0


def own_address(job_env: JobEnvironment) -> str:
    """Address at which the other ranks of the job reach this process."""
    if job_env.num_nodes == 1:
        return "127.0.0.1"
    # Node names need not resolve; NodeAddr is what SLURM itself connects to. Some sites have no scontrol on
    # the job's first node, which is rank 0's and the one that srun ran on.
    address = client.node_address(job_env.node) or os.environ.get("SLURM_LAUNCH_NODE_IPADDR")
    if not address:
        hint = "does `scontrol show node` work on the nodes?"
        raise ClusterError(f"the address of {job_env.node} is unknown", hint)
    return address


def free_port() -> int:
    """A TCP port that nothing listens on."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise ClusterError(f"no free TCP port found in {PORTS.start}-{PORTS.stop - 1}")
