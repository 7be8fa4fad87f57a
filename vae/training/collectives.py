"""Collectives over ranks: sums on the device, votes and broadcasts over gloo in host memory."""

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor


def reduce_sum(values: Tensor) -> Tensor:
    """`values` added up over all ranks, on the CPU in fp64. Waits for the device."""
    total = values.double()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total.cpu()


def destroy_process_group() -> None:
    """Leave the process group: the last act of a process that trained or scored on several ranks.

    Without it the connection may abort the process at its end, and a finished job would look failed.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


class HostCollectives:
    """Lets ranks act together on what only some of them know, without touching the GPU."""

    def __init__(self, accelerator: Accelerator) -> None:
        # gloo: host memory only, so asking at every step never waits for the device
        self._group: dist.ProcessGroup | None = None
        if accelerator.num_processes > 1:
            self._group = dist.new_group(backend="gloo")  # type: ignore[assignment]  # torch types it loosely

    def any(self, *answers: bool) -> list[bool]:
        """For each question, whether any rank says yes. Every rank must ask at the same moment."""
        if self._group is None:
            return list(answers)
        votes = torch.tensor(answers, dtype=torch.uint8)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        return [bool(vote) for vote in votes]

    def broadcast(self, value: str | None) -> str | None:
        """Rank 0's `value`, on every rank."""
        if self._group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]
