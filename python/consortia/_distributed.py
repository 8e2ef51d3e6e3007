"""Several processes that train one model together (torchrun): rank 0 speaks with the agent, and the others receive the same tasks.

It uses `torch.distributed` where the script has initialised it, and does nothing elsewhere.
"""

from __future__ import annotations

import os
import sys
from typing import Any, List, Optional

from ._errors import Error


class Ranks:
    """This process among those that share the work. Every method is collective: all ranks call it, in the same order.

    Raises `Error` where a launcher made several processes that do not know of each other yet.
    """

    def __init__(self) -> None:
        torch = sys.modules.get("torch")
        dist: Any = getattr(torch, "distributed", None)
        ready = dist is not None and dist.is_available() and dist.is_initialized()
        world = os.environ.get("WORLD_SIZE", "1")
        if not ready and "RANK" in os.environ and world.isdigit() and int(world) > 1:
            raise Error(
                f"a launcher started {world} processes; call `torch.distributed.init_process_group()` before `consortia.tasks()`, so that rank 0 can share its tasks"
            )
        self._torch = torch
        self._dist = dist if ready and dist.get_world_size() > 1 else None
        self.many = self._dist is not None
        self.speaks = self._dist is None or dist.get_rank() == 0

    def broadcast(self, value: Any) -> Any:
        """What rank 0 gave; the others' values are ignored."""
        if self._dist is None:
            return value
        box = [value]
        self._dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_bytes(self, buffer: bytearray) -> None:
        """Fill the buffer of every rank with that of rank 0; all have the same length."""
        if self._dist is None:
            return
        torch: Any = self._torch
        values = torch.frombuffer(buffer, dtype=torch.uint8)
        if self._dist.get_backend() == "nccl":
            moved = values.cuda()
            self._dist.broadcast(moved, src=0)
            values.copy_(moved)
        else:
            self._dist.broadcast(values, src=0)

    def settle(self, error: Optional[str]) -> Optional[str]:
        """The first error of any rank, None where there is none."""
        if self._dist is None:
            return error
        errors: List[Optional[str]] = [None] * self._dist.get_world_size()
        self._dist.all_gather_object(errors, error)
        return next((f"rank {rank}: {one}" for rank, one in enumerate(errors) if one is not None), None)
