"""A build of one file of HDF5: a store beside it, which is exported at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurestore.errors import BuildStoppedError, FeatureStoreError, SettingError
from featurestore.pipeline.alone import alone
from featurestore.pipeline.report import BuildReport
from featurestore.sharing.copying import copy_tracks
from featurestore.sharing.export import export
from featurestore.store import StoreReader, StoreWriter


def build_file(path: Path, build: Callable[..., BuildReport], arguments: Mapping[str, Any]) -> BuildReport:
    """Build a store beside a file of HDF5, with what the file holds, and put its export in the place of the file.

    Until then the file is as it was. A build that is interrupted or stopped leaves the store beside the file, and
    the next one goes on with it.

    Raises
    ------
    SettingError
        If numbers are asked for that the file cannot hold.
    StoreAccessError
        If another build is at work on the file.
    """
    if arguments["dtype"] not in (None, "float32") or arguments["codec"] not in (None, "none"):
        raise SettingError("HDF5 holds float32 without a codec: leave out `dtype` and `codec`, or name a store")
    there = StoreReader(path) if os.path.lexists(path) else None
    beside = path.with_name(path.name + ".building")
    is_new = not beside.exists()
    with alone(beside, path):
        try:
            if there is not None:
                with StoreWriter(beside, spec=there.spec) as writer:
                    for _ in copy_tracks(there, writer):
                        pass
            report = build(**{**arguments, "store": beside})
        except BuildStoppedError:
            raise
        except FeatureStoreError:  # before any work
            if is_new:
                shutil.rmtree(beside, ignore_errors=True)
            raise
        report = replace(report, store=str(path))
        if not report.interrupted:
            built = StoreReader(beside)
            export(built, path, "hdf5", built.track_ids, "all", built.spec.layers)
            shutil.rmtree(beside)
    return report
