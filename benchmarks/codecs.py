"""Size, speed and error of the store's codecs on real features.

python -m benchmarks.codecs MODEL_FOLDER AUDIO_FILE [--seconds 60]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from featurestore import FeatureExtractor, FeatureStore, StoreWriter, load_audio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("audio", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    extractor = FeatureExtractor(model=arguments.model)
    audio = load_audio(arguments.audio, extractor.model.sample_rate)
    audio = audio[: round(arguments.seconds * extractor.model.sample_rate)]
    batches = list(extractor.encode([audio], raw=True))
    raw = np.concatenate([batch.raw for batch in batches])
    spread = raw.std(axis=(0, 2), keepdims=True)
    print(f"{raw.nbytes / 1e6:.0f} MB of raw features {list(raw.shape)} of {arguments.audio.name}")
    print(f"{'dtype':<9}{'codec':<10}{'size':>7}{'write':>8}{'read one layer':>16}{'error / spread':>16}")
    stores: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        kinds = list(itertools.product(("float32", "float16"), ("none", "lz4", "zstd", "bitround")))
        kinds.remove(("float16", "bitround"))
        for turn in range(arguments.repeats):
            for dtype, codec in kinds:
                spec = replace(extractor.spec(), dtype=dtype, codec=codec)
                path = Path(folder) / f"{dtype}-{codec}.zarr"
                with StoreWriter(path, spec=spec, durable=False, overwrite=True) as writer:
                    begun = time.perf_counter()
                    writer.put("t", {"raw": raw})
                    write = time.perf_counter() - begun
                view = FeatureStore(path).raw("t", layer=extractor.layers[len(extractor.layers) // 2])
                begun = time.perf_counter()
                view.to_numpy()
                read = time.perf_counter() - begun
                if turn:
                    writes, reads = stores.setdefault((dtype, codec), ([], []))
                    writes.append(write)
                    reads.append(read)
        base = stores["float32", "none"]
        for (dtype, codec), (writes, reads) in stores.items():
            path = Path(folder) / f"{dtype}-{codec}.zarr"
            size = (path / "raw/t/c.0.0.0.0").stat().st_size / raw.nbytes
            error = np.abs((FeatureStore(path).raw("t").to_numpy().astype(np.float32) - raw) / spread).max()
            write, read = (
                statistics.median(a / b for a, b in zip(own, plain, strict=True))
                for own, plain in zip((writes, reads), base, strict=True)
            )
            print(f"{dtype:<9}{codec:<10}{size:>6.0%}{write:>7.1f}x{read:>15.1f}x{error:>16.1e}")


if __name__ == "__main__":
    main()
