"""A build in little memory, of which one process takes all; run with a folder and the control group to join."""

import os
import sys
from pathlib import Path

import pretend

from featurestore.audio import AudioFile
from featurestore.pipeline import processes
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.job import run_job
from featurestore.pipeline.plan import Job
from featurestore.pipeline.tally import Tally

if __name__ == "__main__":
    folder, group = map(Path, sys.argv[1:])
    (group / "cgroup.procs").write_text(str(os.getpid()))
    processes.worker_main = pretend.worker_main
    tracks = [AudioFile(path.stem, path) for path in sorted((folder / "music").iterdir())]
    job = Job(store=folder / "s.zarr", kinds=("aggregated",), wait_for_others=60)
    tally = Tally(total=len(tracks))
    with (
        Interrupts() as interrupts,
        processes.WorkerPool(job, ["a", "hungry"], {}, interrupts, tally) as pool,
    ):
        run_job(job, tracks, None, pool, interrupts, tally)
    print(tally.processed + tally.cached, len(tally.failures))
