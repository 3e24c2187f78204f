"""Whatever a bundle claims: a clear error, in little memory and time, and nothing outside the store is touched."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from limited import outcomes, reading, writing
from samples import SPEC, features, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import CorruptTrackError
from featurestore.store.bundles.bundle import index_checksum
from featurestore.store.bundles.layout import Sizes
from featurestore.store.format.metadata import dataset_documents, encode_document
from featurestore.store.format.small_chunks import encode_texts, with_crc

pytestmark = pytest.mark.slow

IDS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    path = tmp_path_factory.mktemp("sealed") / "store.zarr"
    write_store(path, {track_id: features(seed) for seed, track_id in enumerate(IDS)})
    with StoreWriter(path, spec=SPEC) as writer:
        writer.pack(seal=True)
    return path


def bundle_of(path):
    (found,) = (folder for folder in (path / "bundles").iterdir() if len(folder.name) == 32)
    return found


def described(bundle, *, tracks=3, rows=6, own=None, **others):
    """Write metadata that fits the files of the index, and says that there are so many tracks and rows."""
    names = ("row_splits/c.0", "track_id/c.0", "revision/c.0.0")
    index = index_checksum([(bundle / name).read_bytes() for name in names])
    arrays = replace(Sizes.to_write(tracks, rows, SPEC), **others).arrays()
    own = own or {"fingerprint": SPEC.fingerprint, "index_crc32c": index}
    for name, document in dataset_documents(own, arrays).items():
        (bundle / name / "zarr.json").write_bytes(encode_document(document))


def splits(*numbers, dtype="<i8", rows=6):
    def change(bundle, outside):
        (bundle / "row_splits" / "c.0").write_bytes(with_crc(np.array(numbers, dtype).tobytes()))
        described(bundle, rows=rows)

    return change


def ids(*texts):
    def change(bundle, outside):
        (bundle / "track_id" / "c.0").write_bytes(encode_texts(texts, 3))
        described(bundle)

    return change


def lengths(number):
    def change(bundle, outside):
        content = b"".join(x.to_bytes(4, "little") for x in (3, number, number, number))
        (bundle / "track_id" / "c.0").write_bytes(with_crc(content))
        described(bundle)

    return change


def attributes(record):
    def change(bundle, outside):
        content = encode_texts([record] * 3, 3)
        (bundle / "attributes" / "c.0").write_bytes(content)

    return change


def own_attributes(**others):
    """Attributes of the first track, changed, for all of them."""

    def change(bundle, outside):
        content = (bundle / "attributes" / "c.0").read_bytes()
        record = json.loads(content[8 : 8 + int.from_bytes(content[4:8], "little")])
        record["attributes"] |= others
        attributes(json.dumps(record))(bundle, outside)

    return change


def sizes(tracks, rows):
    return lambda bundle, outside: described(bundle, tracks=tracks, rows=rows)


def chunks(chunk_rows, shard_rows, *, tracks=3, rows=6):
    sizes = {"tracks": tracks, "rows": rows, "chunk_rows": chunk_rows, "shard_rows": shard_rows}
    return lambda bundle, outside: described(bundle, **sizes)


def attribute_chunks(rows):
    return lambda bundle, outside: described(bundle, attribute_rows=rows)


def linked(name, target="file"):
    def change(bundle, outside):
        path = bundle / name
        (shutil.rmtree if path.is_dir() else os.unlink)(path)
        path.symlink_to(outside / target)

    return change


def filled(name, content=b""):
    def change(bundle, outside):
        path = bundle / name
        if path.is_dir():
            shutil.rmtree(path)
        path.write_bytes(content)

    return change


def long_file(name):
    def change(bundle, outside):
        with (bundle / name).open("r+b") as file:
            file.truncate(2**40)

    return change


def pipe(name):
    def change(bundle, outside):
        (bundle / name).unlink()
        os.mkfifo(bundle / name)

    return change


def twice(bundle, outside):
    shutil.copytree(bundle, bundle.with_name("0" * 32))


def marks(bundle, outside):
    for name in ("x", f"{bundle.name}.99999", f"{bundle.name}.-1", f"{bundle.name}.0x", "0" * 32 + ".1"):
        (bundle.parent / "removed" / name).write_text("")
    (bundle.parent / "removed" / f"{bundle.name}.1").mkdir()


def replaced(name, target):
    """Something in the place of a folder beside the bundle."""

    def change(bundle, outside):
        path = bundle.parent.parent / name
        shutil.move(path, outside / "moved")
        path.symlink_to(outside / "moved") if target == "link" else path.write_text("x")

    return change


CASES = {
    "more tracks than memory": sizes(2**40, 6),
    "more rows than memory": sizes(3, 2**40),
    "more rows of a track than memory": splits(0, 2, 4, 2**40, rows=2**40),
    "more rows of a track than its files have": splits(0, 2, 4, 10**6, rows=10**6),
    "no tracks": sizes(0, 6),
    "many tracks": sizes(65_536, 6),
    "chunks of more rows than there are": chunks(2**40, 2**40),
    "chunks that do not fill a shard": chunks(2, 3, rows=2**40),
    "shards of no rows": chunks(1, 0),
    "shards of many chunks": chunks(1, 2**40, rows=2**40),
    "attributes of more tracks than there are": attribute_chunks(2**40),
    "attributes of one track in each file": attribute_chunks(1),
    "splits that go back": splits(0, 4, 2, 6),
    "splits below zero": splits(0, -2, 4, 6),
    "splits beyond the rows": splits(0, 2, 4, 2**50),
    "too few splits": splits(0, 2, 6),
    "splits of halves": splits(0, 2, 4, 6, dtype="<i4"),
    "an empty id": ids("a", "", "c"),
    "an id twice": ids("a", "a", "c"),
    "an id of others": ids("a", "d", "c"),
    "a long id": ids("a", "x" * 70_000, "c"),
    "lengths of text": lengths(2**32 - 1),
    "lengths of nothing": lengths(0),
    "another spec": lambda bundle, outside: described(bundle, own={"fingerprint": "0", "index_crc32c": "0"}),
    "attributes that are no JSON": attributes("{"),
    "attributes that are a list": attributes("[]"),
    "attributes that are nothing": attributes("{}"),
    "deep attributes": attributes('{"attributes":' * 10_000 + "1" + "}" * 10_000),
    "attributes of another track": own_attributes(),
    "impossible kinds": own_attributes(kinds=["segments"]),
    "kinds that are not there": own_attributes(kinds=["aggregated"]),
    "impossible starts": own_attributes(starts="now"),
    "many starts": own_attributes(starts=[0.0] * 100_000),
    "no checksums": own_attributes(checksums=None),
    "other checksums": own_attributes(checksums={"chunks": 7}),
    "segments of nothing": filled("segments/c.0.0.0"),
    "segments without an end": long_file("segments/c.0.0.0"),
    "an index without an end": long_file("row_splits/c.0"),
    "attributes without an end": long_file("attributes/c.0"),
    "segments that wait": pipe("segments/c.0.0.0"),
    "an index that waits": pipe("track_id/c.0"),
    "linked segments": linked("segments/c.0.0.0"),
    "linked folder": linked("segments", "folder"),
    "linked metadata": linked("zarr.json"),
    "a file for a folder": filled("segments", b"x"),
    "metadata of another": filled("zarr.json", b"{}"),
    "two bundles of the same": twice,
    "strange marks": marks,
    "linked bundles": replaced("bundles", "link"),
    "a file for bundles": replaced("bundles", "file"),
    "linked marks": replaced("bundles/removed", "link"),
    "a file for marks": replaced("bundles/removed", "file"),
}


def test_only_one_file_that_is_missing_is_told_of_each_kind(tmp_path, monkeypatch):
    monkeypatch.setattr("featurestore.store.bundles.layout.CHUNK_BYTES", 32)
    monkeypatch.setattr("featurestore.store.bundles.layout.SHARD_BYTES", 96)
    path = tmp_path / "store.zarr"
    write_store(path, {track_id: features(seed) for seed, track_id in enumerate(IDS)})
    with StoreWriter(path, spec=SPEC) as writer:
        writer.pack(seal=True)
    for kind in ("segments", "aggregated"):
        files = sorted((bundle_of(path) / kind).glob("c*"))
        assert len(files) > 1
        for file in files:
            file.unlink()
    told = [problem.message for problem in FeatureStore(path).verify().problems if problem.what == "bundle"]
    assert len(told) == 2


@pytest.mark.parametrize("starts", [[0.0, np.inf, 0, 1, 0, 1], [0.0, np.nan, 0, 1, 0, 1], [0, 1, np.nan, 0, 0, 1]])
def test_impossible_starts_are_damage(template, tmp_path, starts):
    path = tmp_path / "store.zarr"
    shutil.copytree(template, path)
    (bundle_of(path) / "start" / "c.0").write_bytes(with_crc(np.array(starts, "<f8").tobytes()))
    with pytest.raises(CorruptTrackError, match="impossible starts"):
        FeatureStore(path).segments(tracks=IDS).row_starts.tolist()


def snapshot(folder):
    return {p: (p.lstat().st_mode, p.lstat().st_size, p.is_file() and p.read_bytes()) for p in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_bundle_gives_clear_errors_and_nothing_outside_is_touched(template, tmp_path, case):
    path, outside = tmp_path / "store.zarr", tmp_path / "outside"
    os.system(f"cp -a {template} {path}")
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("mine")
    CASES[case](bundle_of(path), outside)
    before = snapshot(outside)
    found = outcomes(path, [reading, writing, reading])
    assert {name: how for name, how in found.items() if "unexpected" in how or "signal" in how} == {}
    assert snapshot(outside) == before
