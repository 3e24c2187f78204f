"""Threads that each compute on one core."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def single_core_threads(count: int) -> ThreadPoolExecutor:
    """Start threads in which torch computes with one core each, whatever it does in others.

    torch.set_num_threads counts for the thread that calls it and for threads that begin later, but not for those
    that have begun: each new thread calls it for itself, and the calling thread then calls it to have later
    threads find what they would have found. All have begun when this returns.
    """
    before = torch.get_num_threads()
    begun = threading.Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread takes the number over when it first needs it: now, before it changes
        begun.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="featurestore-encoder", initializer=begin)
    for _ in range(count):
        pool.submit(int)
    begun.wait()
    torch.set_num_threads(before)
    return pool
