"""Bytes that nobody wrote on purpose: refused with the error that is for this, or read as what they are."""

import contextlib
import copy
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from samples import SPEC, features, write_store

from featurestore import FeatureSpec
from featurestore.errors import CorruptTrackError, SettingError
from featurestore.store import reading
from featurestore.store.byte_source import LocalFile
from featurestore.store.commit.record import INTENT, TransactionRecord
from featurestore.store.format.compression import compress, decompress
from featurestore.store.format.metadata import ArrayMetadata, check_track_metadata, decode_document, track_metadata
from featurestore.store.format.shards import ShardReader
from featurestore.store.format.small_chunks import checked_texts, decode_texts, encode_texts, with_crc

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ATTRIBUTES = {
    "track_id": "a",
    "revision": "0",
    "fingerprint": SPEC.fingerprint,
    "kinds": ["raw", "aggregated"],
    "starts": [0.0, 2.5],
    "checksums": {"chunks": "0"},
}
DOCUMENTS = [
    track_metadata("raw", (2, 3, 4, 4), SPEC, ATTRIBUTES).document(),
    track_metadata("raw", (2, 3, 4, 4), replace(SPEC, codec="zstd"), ATTRIBUTES).document(),
]


@st.composite
def mutated(draw, *documents):
    """A right document with some values replaced by others, or left out."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        inner = document
        while True:
            places = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not places:
                break
            place = draw(st.sampled_from(places))
            if isinstance(inner[place], dict | list) and inner[place] and draw(st.integers(0, 3)):
                inner = inner[place]
                continue
            if isinstance(inner, dict) and draw(st.booleans()) and draw(st.booleans()):
                del inner[place]
            else:
                inner[place] = draw(JSON)
            break
    return document


@pytest.mark.slow
@given(JSON | mutated(*DOCUMENTS))
@example({"codecs": [{"configuration": {}}]})
@example(DOCUMENTS[0] | {"attributes": {k: v for k, v in ATTRIBUTES.items() if k != "track_id"}})
@example(DOCUMENTS[0] | {"attributes": ATTRIBUTES | {"track_id": 1}})
def test_metadata_is_taken_only_as_this_library_writes_it(document):
    try:
        found = ArrayMetadata.from_document(document)
        check_track_metadata(found, "raw", "a", SPEC)
    except ValueError:
        return
    assert found.document() == document
    assert found.shape == found.shard_shape
    assert found.chunk_shape == (1, 1, found.shape[2], 4)


@pytest.mark.slow
@given(mutated(DOCUMENTS[0]))
def test_attributes_are_taken_only_as_this_library_writes_them(document):
    assume(isinstance(document.get("attributes"), dict))
    try:
        found = ArrayMetadata.from_document(document)
        check_track_metadata(found, "raw", "a", SPEC)
    except ValueError:
        return
    assert found.attributes["track_id"] == "a"
    assert set(found.attributes["kinds"]) <= {"raw", "segments", "aggregated"}
    np.array(found.attributes["starts"], np.float64)


@pytest.mark.slow
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_document_is_an_object_or_refused(content):
    with contextlib.suppress(ValueError):
        assert isinstance(decode_document(content), dict)


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=8), JSON, max_size=5) | mutated(SPEC.to_dict()))
def test_a_spec_is_right_or_refused(values):
    try:
        spec = FeatureSpec.from_dict(values)
    except SettingError:
        return
    assert FeatureSpec.from_dict(spec.to_dict()).fingerprint == spec.fingerprint


@pytest.mark.slow
@given(JSON | mutated({"kinds": ["raw"], "revision": "x"}))
def test_an_intent_is_right_or_none(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("intent")
    (folder / INTENT).write_text(json.dumps(value))
    found = TransactionRecord.read(folder)
    assert found is None or (
        set(found.kinds) <= {"raw", "segments", "aggregated"} and isinstance(found.revision, str)
    )


@given(ids=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), max_size=6), data=st.data())
def test_ids_are_right_or_refused(ids, data):
    rows = len(ids) + data.draw(st.integers(0 if ids else 1, 3))
    content = encode_texts(ids, rows)
    assert decode_texts(checked_texts(content, rows)) == ids + [""] * (rows - len(ids))
    body = bytearray(content[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    for lie in (bytes(body), bytes(body[:cut])):
        if lie != content[:-4]:
            with pytest.raises(ValueError, match="checksum"):
                checked_texts(lie + content[-4:], rows)
        try:
            found = decode_texts(checked_texts(with_crc(lie), rows))
        except ValueError:
            continue
        assert len(found) == rows


@pytest.mark.slow
@given(content=st.binary(max_size=300), tracks=st.integers(1, 2**40))
def test_any_bytes_are_ids_or_refused(content, tracks):
    for lie in (content, with_crc(content)):
        with contextlib.suppress(ValueError):
            assert len(decode_texts(checked_texts(lie, tracks))) == tracks


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")
    arrays = features(0)
    write_store(path / "store.zarr", {"a": arrays})
    file = path / "store.zarr" / "raw" / "a" / "c.0.0.0.0"
    return file.read_bytes(), arrays["raw"], path / "lie"


@given(data=st.data())
def test_a_shard_is_read_right_or_refused(shard, data):
    content, raw, file = shard
    lie = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        lie[data.draw(st.integers(0, len(lie) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        lie = lie[: data.draw(st.integers(0, len(lie)))]
    file.write_bytes(lie)
    metadata = track_metadata("raw", raw.shape, SPEC, ATTRIBUTES)
    opened = LocalFile(os.open(file, reading.READ))
    try:
        with ShardReader(opened, metadata, "the lie") as reader:
            found = reader.read(range(reader.chunks)).reshape(raw.shape)
            reader.checksums()
    except CorruptTrackError:
        return
    assert found.tobytes() == raw.tobytes()


@pytest.mark.parametrize("compressor", ["zstd", "lz4"])
@given(data=st.data())
def test_a_compressed_chunk_is_right_or_refused(compressor, data):
    values = np.arange(600, dtype=np.float32) // 7
    lie = bytearray(compress(values, compressor).tobytes())
    for _ in range(data.draw(st.integers(1, 6))):
        lie[data.draw(st.integers(0, min(len(lie) - 1, 60)))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        lie = lie[: data.draw(st.integers(0, len(lie)))] + data.draw(st.binary(max_size=40))
    guarded = np.full(values.nbytes + 4096, 77, np.uint8)
    with contextlib.suppress(ValueError):
        decompress(bytes(lie), guarded[2048:-2048])
    assert (guarded[:2048] == 77).all()
    assert (guarded[-2048:] == 77).all()
