"""Whatever a store claims: a clear error, in little memory and time, and nothing outside it is touched."""

import os
from pathlib import Path

import pytest
from limited import outcomes, reading, writing
from malformed_stores import CASES, LINKS
from samples import features, write_store


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "store.zarr"
    write_store(path, {name: features(seed) for seed, name in enumerate("abc")}, pack=True)
    return path


@pytest.fixture
def place(template, tmp_path):
    """A store, and a folder outside it with things that must stay as they are."""
    os.system(f"cp -a {template} {tmp_path / 'store.zarr'}")
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("mine")
    (outside / "folder" / "zarr.json").write_text("{}")
    os.system(f"cp -a {template} {outside / 'other.zarr'}")
    return tmp_path / "store.zarr", outside


def snapshot(folder: Path):
    return {
        p: (p.lstat().st_mode, p.lstat().st_mtime_ns, p.lstat().st_size, p.is_file() and p.read_bytes())
        for p in [folder, *folder.rglob("*")]
    }


# There are hundreds: all of those that might lead outside, and of the others some, if there is little time.
NAMES = [*CASES] if os.environ.get("HYPOTHESIS_PROFILE", "default") != "default" else [*LINKS, *[*CASES][::8]]


@pytest.mark.slow
@pytest.mark.parametrize("case", dict.fromkeys(NAMES))
def test_a_hostile_store_gives_clear_errors_and_nothing_outside_is_touched(place, case):
    path, outside = place
    CASES[case](path, outside)
    before = snapshot(outside)
    found = outcomes(path, [reading, writing, reading])
    assert {name: how for name, how in found.items() if "unexpected" in how or "signal" in how} == {}
    assert snapshot(outside) == before
