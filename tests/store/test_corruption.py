"""Any flipped bit is found by verify, and never read as a number."""

import os
import random
import shutil

import numpy as np
import pytest
from samples import SPEC, features, read_all

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import CorruptTrackError, NotAStoreError, StoreVersionError
from featurestore.store.format.keys import decode_key

LONG = "x" * 300
SPECS = {
    "none": SPEC,
    "zstd": FeatureSpec.for_arrays(layers=2, dim=40, codec="zstd"),
    "float16": FeatureSpec.for_arrays(layers=2, dim=3, dtype="float16"),
}
# Bits of each file, where it has more.
BITS = {"default": 10, "ci": 100, "nightly": 10_000}[os.environ.get("HYPOTHESIS_PROFILE", "default")]


def make(path, spec):
    tracks = {name: features(seed, spec=spec, segments=2) for seed, name in enumerate(["a", "b/c", LONG])}
    with StoreWriter(path, spec=spec, durable=False) as writer:
        for name, arrays in tracks.items():
            with writer.track(name, attributes={"audio": {"path": "x.wav", "size": 7}}) as track:
                track.append(raw=arrays["raw"], starts=[0.0, 2.5])
        writer.pack()
    return tracks


@pytest.fixture(scope="module", params=list(SPECS))
def sound(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "store.zarr"
    return path, make(path, SPECS[request.param])


def flips(path, seed):
    """Some bits of each file, and all bits of small ones: (file, byte, bit)."""
    rng = random.Random(seed)
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not {"locks", "staging"} & set(p.parts)):
        bits = range(8 * file.stat().st_size)
        for bit in bits if len(bits) <= BITS else rng.sample(bits, BITS):
            yield file, bit // 8, bit % 8


def flip(file, byte, bit):
    content = bytearray(file.read_bytes())
    content[byte] ^= 1 << bit
    file.write_bytes(content)


def owner(path, file):
    """Track id that a file belongs to, or None."""
    kind, *rest = file.relative_to(path).parts
    if kind not in ("raw", "segments", "aggregated") or len(rest) != 2:
        return None
    return decode_key(rest[0]) or LONG


def check_reading(path, tracks):
    """Every track is read right, or with the error that is for this."""
    try:
        store = FeatureStore(path)
    except (CorruptTrackError, NotAStoreError, StoreVersionError):
        return
    for name, arrays in tracks.items():
        try:
            found = read_all(store, name)
            starts = [store.raw(name).starts.tolist(), store.segments(name).starts.tolist()]
        except CorruptTrackError:
            continue
        assert set(found) == set(arrays)
        for kind, values in arrays.items():
            assert found[kind].tobytes() == values.tobytes(), (name, kind)
        assert starts == [[0.0, 2.5]] * 2
        assert store.provenance(name)["audio"] == {"path": "x.wav", "size": 7}
    try:
        rows = np.asarray(store.aggregated())
        ids = store.track_ids
    except CorruptTrackError:
        return
    assert set(ids) <= set(tracks)
    assert rows.tobytes() == np.stack([tracks[name]["aggregated"] for name in ids]).tobytes()


def check_verify(path, file):
    """Deep verification names what the file belongs to."""
    try:
        report = FeatureStore(path).verify(deep=True)
    except (CorruptTrackError, NotAStoreError, StoreVersionError):
        assert file == path / "zarr.json"
        return
    assert not report.ok, f"a flipped bit of {file.relative_to(path)} was not found"
    expected = owner(path, file)
    named = {(problem.what, problem.track_id or problem.key) for problem in report.problems}
    if expected is not None:
        assert any(what == "track" and (name == expected or name.startswith("=h")) for what, name in named), named
    elif "packed" in file.parts:
        assert {what for what, _ in named} == {"packed"}
    else:
        assert {what for what, _ in named} == {"structure"}


@pytest.mark.slow
def test_any_flipped_bit_is_found_and_never_read_as_a_number(sound, tmp_path):
    path, tracks = sound
    copy = tmp_path / "store.zarr"
    shutil.copytree(path, copy)
    assert FeatureStore(copy).verify(deep=True).problems == ()
    for file, byte, bit in flips(copy, seed=1):
        moments = file.parent.stat()
        before = file.read_bytes()
        flip(file, byte, bit)
        check_verify(copy, file)
        check_reading(copy, tracks)
        kind = file.relative_to(copy).parts[0]
        if kind in ("raw", "segments") and file.name != "zarr.json":
            with pytest.raises(CorruptTrackError):
                np.asarray(getattr(FeatureStore(copy), kind)(owner(copy, file)))
        file.write_bytes(before)
        assert file.parent.stat().st_mtime_ns == moments.st_mtime_ns
    assert FeatureStore(copy).verify(deep=True).problems == ()


def test_a_damaged_row_says_how_to_build_the_table_again(path):
    make(path, SPEC)
    flip(path / "packed" / "features" / "c.0.0.0", 5, 0)
    store = FeatureStore(path)
    with pytest.raises(CorruptTrackError, match="build the table again with `fs-extract verify --deep --repair`"):
        np.asarray(store.aggregated())
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        writer.repair(deep=True)
    assert len(np.asarray(store.aggregated())) == 3
