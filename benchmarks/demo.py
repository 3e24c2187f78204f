"""`make demo`: from audio to a store that answers questions, in less than a minute and without a download."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.music import write_pieces

HERE = Path("demo")
AUDIO, MODEL, STORE = HERE / "audio", "mini", HERE / "store.zarr"

NEXT = (
    ("fs-extract build YOUR_MUSIC features.zarr", "your own audio, with MERT-v1-95M from the hub"),
    (f"fs-extract info {STORE}", "what is in a store"),
    (f"fs-extract verify --deep {STORE}", "is every byte as it was written?"),
    ("fs-extract build --help", "all options"),
    ("docs/how-it-works.md", "how it works"),
)


def main() -> int:
    """Run the demonstration; the exit code of the build."""
    began = time.monotonic()
    say(
        "1. Some music",
        "Six short pieces, composed and played by numpy: wav, flac and ogg, of mixed rates.",
    )
    for path in write_pieces(AUDIO):
        print(f"   {path}")

    say(
        "2. A model",
        "mini: a small MERT that comes with the library, trained on music rendered from scores (docs/mini.md).\n"
        "It shows how everything works; for research there are the models of the hub, as\n"
        "--model m-a-p/MERT-v1-95M.",
    )

    say("3. The build")
    command = [
        "fs-extract",
        "build",
        str(AUDIO),
        str(STORE),
        "--model",
        MODEL,
        "--workers",
        "2",
        "--feature-level",
        "all",
    ]
    print(f"   $ {shlex.join(command)}\n", flush=True)
    code = subprocess.call([str(Path(sys.executable).with_name(command[0])), *command[1:]])
    if code:
        print(f"\nIf {HERE} was left by another version, remove it and try again.")
        return code

    say("4. Questions to the store")
    ask()

    say(
        "5. Where to go next",
        "\n".join(f"   {command:<45}{meaning}" for command, meaning in NEXT),
    )
    print(f"\nDone in {time.monotonic() - began:.0f} s. Run it again: it finds everything there.")
    return 0


def ask() -> None:
    """The queries of the README, with their answers."""
    import numpy as np
    import xarray as xr

    from featurestore import FeatureStore

    store = FeatureStore(STORE)
    answer("store = FeatureStore('demo/store.zarr'); store.track_ids", list(store.track_ids))
    features = store.aggregated(layer=3)
    answer("store.aggregated(layer=3)  # one row per track", describe(features))
    track = next(iter(store))
    answer(f"store.segments({track!r}, layer=3)  # one row per window", describe(store.segments(track, layer=3)))
    answer(f"store.raw({track!r}, layer=3)  # every frame", describe(store.raw(track, layer=3)))
    rows = features.to_numpy()
    rows = rows - rows.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    likeness = rows @ rows.T - 2 * np.eye(len(rows))
    nearest = {one: store.track_ids[int(row.argmax())] for one, row in zip(store.track_ids, likeness, strict=True)}
    answer("the nearest other track, by cosine", nearest)
    table = xr.open_zarr(STORE / "packed")
    answer(
        "xarray.open_zarr('demo/store.zarr/packed')  # all tracks, without this library",
        f"{dict(table.sizes)}, coordinates {sorted(map(str, table.coords))}",
    )


def describe(view: object) -> str:
    """Dimensions of a view, with the first numbers."""
    array = view.to_numpy()  # type: ignore[attr-defined]
    sizes = dict(zip(view.dims, view.shape, strict=True))  # type: ignore[attr-defined]
    return f"{sizes} {array.dtype}, begins {', '.join(f'{x:.4f}' for x in array.flat[:3])}"


def say(title: str, text: str = "") -> None:
    """A heading and what there is to say."""
    print(f"\n== {title}\n{text}" if text else f"\n== {title}", flush=True)


def answer(question: str, found: object) -> None:
    """A question and its answer."""
    print(f"   >>> {question}")
    lines = [f"{name}: {value}" for name, value in found.items()] if isinstance(found, dict) else [str(found)]
    for line in lines:
        print(f"   {line}")
    print()


if __name__ == "__main__":
    sys.exit(main())
