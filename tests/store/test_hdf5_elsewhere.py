"""Files of HDF5 as R and Octave read them: they turn the dimensions round. Debian: r-bioc-rhdf5, octave."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from samples import features, write_store

pytestmark = pytest.mark.slow
KINDS = ("raw", "segments", "aggregated")
TRACKS = {f"rock/{n}": features(n, segments=1 + n % 3, kinds=KINDS if n % 2 else KINDS[1:]) for n in range(7)}


def run(command, folder):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def octave(tmp_path):
    """Runs a program of Octave; the numbers that it prints."""
    program = shutil.which("octave-cli")
    if program is None:
        pytest.skip("octave is not installed")

    def evaluate(code):
        done = run([program, "--no-init-file", "--quiet", "--eval", code], tmp_path)
        assert "HDF5-DIAG" not in done.stderr, done.stderr
        return done.stdout

    return evaluate


@pytest.fixture
def r(tmp_path):
    """Runs a program of R; what it prints."""
    if shutil.which("Rscript") is None or run(["Rscript", "-e", "library(rhdf5)"], tmp_path).returncode:
        pytest.skip("R and its package rhdf5 are not installed")

    def evaluate(code):
        done = run(["Rscript", "-e", f"library(rhdf5); options(digits = 9); {code}"], tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return evaluate


def numbers(text):
    """Nine digits are enough for any number of float32."""
    return np.array(text.split(), np.float64).astype(np.float32)


@pytest.mark.parametrize("prefix", ["", "ü "])
def test_r_reads_it(r, tmp_path, prefix):
    store = write_store(tmp_path / "s.zarr", {prefix + x: arrays for x, arrays in TRACKS.items()}, pack=True)
    store.export(tmp_path / "s.h5", level="all")
    found = r('cat(h5read("s.h5", "track_id"), sep = "\\n")').splitlines()
    assert found == store.track_ids
    assert r('cat(dim(h5read("s.h5", "aggregated")))') == "4 3 7"
    assert json.loads(r('cat(h5read("s.h5", "provenance")[[3]])'))["track_id"] == store.track_ids[2]
    for view, name in [(store.aggregated(), "aggregated"), (store.segments(), "segments")]:
        np.testing.assert_array_equal(numbers(r(f'cat(h5read("s.h5", "{name}"))')), view[:].reshape(-1))
    sizes = numbers(r('cat(h5read("s.h5", "row_size"))'))
    np.testing.assert_array_equal(
        sizes, [len(TRACKS[x.removeprefix(prefix)]["segments"]) for x in store.track_ids]
    )
    raw = r('x <- h5read("s.h5", "raw"); cat(dim(x[[1]]), x[[1]])')
    wanted = store.raw(store.track_ids[1])[:]
    np.testing.assert_array_equal(numbers(raw), [*wanted.shape[::-1], *wanted.reshape(-1)])
    layer = store.aggregated(layer=2)[:]  # as the guide shows it
    found = r('cat(h5read("s.h5", "aggregated", index = list(NULL, 3, NULL)))')
    np.testing.assert_array_equal(numbers(found), layer.reshape(-1))


def test_octave_reads_all_of_it(octave, tmp_path):
    store = write_store(tmp_path / "s.zarr", TRACKS, pack=True)
    store.export(tmp_path / "s.h5", level="all")
    load = 'd = load("-hdf5", "s.h5"); '
    assert octave(load + 'printf("%s\\n", d.track_id.\')').split("\n")[0].startswith("rock/0")
    assert octave(load + "disp(size(d.aggregated))").split() == ["4", "3", "7"]
    assert octave(load + "disp(jsondecode(d.provenance(3, :)).track_id)").strip() == store.track_ids[2]
    for view, name in [(store.aggregated(), "aggregated"), (store.segments(), "segments")]:
        np.testing.assert_array_equal(numbers(octave(load + f'printf("%.9g ", d.{name})')), view[:].reshape(-1))
    raw = octave(load + 'printf("%.9g ", d.raw.(fieldnames(d.raw){1}))')
    np.testing.assert_array_equal(numbers(raw), store.raw("rock/1")[:].reshape(-1))


def test_octave_reads_numbers_beside_ids_that_are_not_ascii(octave, tmp_path):
    store = write_store(tmp_path / "s.zarr", {f"ü {x}": arrays for x, arrays in TRACKS.items()}, pack=True)
    store.export(tmp_path / "s.h5")
    load = 'd = load("-hdf5", "s.h5", "segments", "provenance"); '
    np.testing.assert_array_equal(
        numbers(octave(load + 'printf("%.9g ", d.segments)')), store.segments()[:].reshape(-1)
    )
    assert octave(load + "disp(jsondecode(d.provenance(3, :)).track_id)").strip() == store.track_ids[2]
