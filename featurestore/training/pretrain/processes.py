"""Training by several processes, as torchrun starts them: who is who, and sums over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from featurestore.errors import DeviceError

_PATIENCE = timedelta(hours=2)
"""How long a process waits for another one, which may be computing targets."""


@dataclass(frozen=True)
class Processes:
    """A process among those of a training.

    Attributes
    ----------
    rank, count : int
    device : torch.device
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is so in any of the processes."""
        return bool(self.sum(torch.tensor([int(flag)], device=self.device)).item())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun has started; a process that runs alone is one of one.

    Parameters
    ----------
    device : str
        "cpu", "cuda" (each process takes its own), "cuda:N" or "auto".

    Raises
    ------
    DeviceError
        If the device is not there.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if count == 1:
        yield Processes(0, 1, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(rank, count, chosen)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda"):
        raise DeviceError(f"`device` must be cpu, cuda, cuda:N or auto, not {name!r}")
    if kind == "cpu":
        return torch.device("cpu")
    index = int(number) if number.isdecimal() else local_rank
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise DeviceError(f"there is no device cuda:{index} here; choose `device='cpu'`")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
