"""Time, memory and size of the report on a store of random features.

python -m benchmarks.report [--tracks 10000] [--layers 13]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from featurestore import FeatureSpec, FeatureStore, StoreWriter


def write_store(path: Path, tracks: int, layers: int, dim: int) -> None:
    random = np.random.default_rng(0)
    groups = 4 * random.standard_normal((1, layers, dim)) + random.standard_normal((8, layers, dim))
    with StoreWriter(path, spec=FeatureSpec.for_arrays(layers=layers, dim=dim), durable=False) as writer:
        for number in range(tracks):
            levels = {"rms": 10 ** random.normal(-1, 0.2), "peak": 0.9, "clipped": 0.0}
            audio = {"duration": random.gamma(4, 60), "sha256": f"{number:064x}"}
            about = {"audio": audio, "levels": levels}
            name = f"artist-{number % 997:03d}/title-{number:06d}"
            with writer.track(name, kinds=["aggregated"], attributes=about) as track:
                features = groups[number % 8] + random.standard_normal((layers, dim))
                track.append(segments=features[None].astype(np.float32))
        writer.pack()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tracks", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--dim", type=int, default=768)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, page = Path(folder, "s.zarr"), Path(folder, "report.html")
        write_store(store, arguments.tracks, arguments.layers, arguments.dim)
        begin, cpu = time.perf_counter(), time.process_time()
        FeatureStore(store).report(page)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{arguments.tracks} tracks of {arguments.layers} x {arguments.dim}: {seconds:.1f} s, {cpu:.1f} CPU s,"
        )
        print(f"{memory:.0f} MB of memory at most, a page of {page.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
