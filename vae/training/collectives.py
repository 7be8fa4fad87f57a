"""Collectives over ranks: sums on the device, and votes over gloo in host memory."""

from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor


def has_others() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_initialized() and dist.get_world_size() > 1


def reduce_sum(values: Tensor) -> Tensor:
    """`values` added up over all ranks, on the CPU in fp64. Waits for the device."""
    total = values.double()
    if has_others():
        dist.all_reduce(total)
    return total.cpu()


def any_rank(*answers: bool) -> list[bool]:
    """For each question, whether any rank says yes. Every rank must ask at the same moment."""
    votes = torch.tensor(answers, dtype=torch.uint8)
    if has_others():
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=_host_group())
    return [bool(vote) for vote in votes]


@cache
def _host_group() -> dist.ProcessGroup:
    """All ranks over gloo: host memory only, so asking at every step never waits for the device."""
    return dist.new_group(backend="gloo")  # type: ignore[return-value]  # torch types it loosely


def destroy_process_group() -> None:
    """The last act of one of several ranks: else its exit may abort, and a finished job look failed."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _host_group.cache_clear()
