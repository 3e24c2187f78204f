"""Whether memory is full, whoever says so, and how to have more."""

from __future__ import annotations

import torch

_FULL_FOR_LIBRARIES = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "nable to find an engine",
)
"""What cuBLAS and cuDNN say where torch has taken all memory (pytorch#128601)."""

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: ",
    "CUDA error: out of memory",
    "MPS backend out of memory",
    *_FULL_FOR_LIBRARIES,
)
"""What torch says in a RuntimeError: on the CPU, where CUDA's own part of a card is full, on mps, of libraries."""


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory ended, on a device or the host: not each allocator of torch has an error of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    )


def is_full_for_library(error: Exception) -> bool:
    """Tell whether it is a library that found no memory, which may be there once torch has given back its own."""
    return any(text in str(error) for text in _FULL_FOR_LIBRARIES)


def first_line(error: object) -> str:
    """What an error of torch says, without the many lines of advice that follow."""
    return str(error).split("\n", 1)[0]


def forget_memory(device: torch.device) -> None:
    """Give back what torch keeps for later, in pieces of the wrong size perhaps."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that a device has free, or the host for the CPU; None if the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
