"""Weights that are mapped from their file leave memory while a long window needs it."""

from __future__ import annotations

import ctypes
import mmap

from torch import nn

_PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4 and later, which python does not name


def page_out(module: nn.Module) -> None:
    """Give back the memory of weights that are mapped from a file; they are read again when they are used.

    Nothing happens to other weights, nor on systems that cannot do it.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    for weight in module.parameters():
        if advise is None or weight.device.type != "cpu" or weight.untyped_storage().resizable():
            continue  # what torch has allocated can be resized, what it has mapped cannot
        first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = weight.data_ptr() + weight.nbytes - first
        if length > 0:
            advise(ctypes.c_void_p(first), ctypes.c_size_t(length // mmap.PAGESIZE * mmap.PAGESIZE), _PAGE_OUT)
