"""The cluster of Dask that a build uses: one of this machine, or one that answers at an address."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distributed import Client, LocalCluster, Security, connect

from featurestore.errors import SettingError
from featurestore.pipeline.interrupts import unheard

LOCAL = "local"
"""Asks for a cluster of this machine alone, which is there as long as the build."""

PATIENCE = 20.0
"""Seconds that a cluster has to answer, or to have a worker."""


def local_cluster(workers: int) -> LocalCluster:
    """Begin a cluster of so many processes of this machine."""
    with unheard():
        return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")


def client_of(cluster: LocalCluster | str) -> Client:
    """Open a client of a cluster, or of what answers at an address, when there is a worker.

    Raises
    ------
    SettingError
        If nothing answers, or no worker comes.
    """
    if isinstance(cluster, str):
        _check_answer(cluster)
    client = Client(cluster, timeout=PATIENCE, set_as_default=False)
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        client.close()
        raise SettingError(
            f"`scheduler`: the cluster at {cluster!r} has no worker: start some (dask worker {cluster})"
        ) from error
    return client


def _check_answer(address: str) -> None:
    """Raise SettingError unless somebody answers.

    A client that cannot connect would be left half made, and one that begins later would wait for its end in vain.
    """

    async def ask() -> None:
        options: dict[str, Any] = Security().get_connection_args("client")
        (await connect(address, timeout=PATIENCE, **options)).abort()

    try:
        if not address:
            raise ValueError("the address is empty")
        with ThreadPoolExecutor(1) as thread:  # a notebook has a loop in this one
            thread.submit(asyncio.run, ask()).result()
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise SettingError(
            f"`scheduler`: no Dask scheduler answers at {address!r} ({error}): start one (dask scheduler), or "
            f"choose {LOCAL!r}"
        ) from error
