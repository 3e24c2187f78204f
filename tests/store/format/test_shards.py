"""Shards: what is written is read bit for bit, by this library and by every other reader of Zarr."""

import itertools
import json
import math
import os
import warnings

import google_crc32c
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given
from hypothesis import strategies as st

from featurestore import FeatureSpec
from featurestore.errors import CorruptTrackError
from featurestore.store import reading
from featurestore.store.byte_source import LocalFile
from featurestore.store.format.metadata import METADATA, ArrayMetadata, encode_document, shard_name, track_metadata
from featurestore.store.format.shards import ShardReader, ShardWriter, shard_bytes

KINDS = {2: "aggregated", 3: "segments", 4: "raw"}


def describe(array, codec="none"):
    layers, dim = array.shape[-3 if array.ndim == 4 else -2], array.shape[-1]
    spec = FeatureSpec.for_arrays(layers=layers, dim=dim, dtype=str(array.dtype), codec=codec)
    return track_metadata(KINDS[array.ndim], array.shape, spec, {"track_id": "a", "a": [1, "b", None]})


@st.composite
def arrays(draw):
    """Finite values of every size and sign, in the shape of one of the kinds."""
    ndim = draw(st.sampled_from([2, 3, 4]))
    shape = tuple(draw(st.integers(1, 5)) for _ in range(ndim))
    dtype = np.dtype(draw(st.sampled_from(["float32", "float16"])))
    seed = draw(st.integers(0, 2**32 - 1))
    bits = np.random.default_rng(seed).integers(0, 2 ** (8 * dtype.itemsize), shape, dtype=f"u{dtype.itemsize}")
    values = bits.view(dtype)
    return np.where(np.isfinite(values), values, dtype.type(-0.0))


def chunks_of(array, chunk_shape):
    grid = [range(n // c) for n, c in zip(array.shape, chunk_shape, strict=True)]
    for place in itertools.product(*grid):
        index = tuple(slice(i * c, (i + 1) * c) for i, c in zip(place, chunk_shape, strict=True))
        yield np.ascontiguousarray(array[index])


def write(folder, array, *, batches=1, codec="none"):
    """The array as this library writes it, in some calls."""
    metadata = describe(array, codec)
    folder.mkdir()
    (folder / METADATA).write_bytes(encode_document(metadata.document()))
    shard = ShardWriter(
        folder / shard_name(array.ndim), "the test", array.itemsize, compressor=metadata.compressor
    )
    parts = list(chunks_of(array, metadata.chunk_shape))
    for first in range(0, len(parts), batches):
        shard.append(parts[first : first + batches])
    shard.finish()
    return metadata


def read(folder, metadata):
    file = LocalFile(os.open(folder / shard_name(len(metadata.shape)), reading.READ))
    with ShardReader(file, metadata, "the test") as reader:
        chunks = reader.read(range(reader.chunks))
    out = np.empty(metadata.shape, metadata.dtype)
    places = chunks_of(np.arange(out.size).reshape(out.shape), metadata.chunk_shape)
    for chunk, place in zip(chunks, places, strict=True):
        out.reshape(-1)[place.reshape(-1)] = chunk.reshape(-1)
    return out


def read_with_tensorstore(folder):
    store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    return tensorstore.open(store, read=True).result().read().result()


def read_with_zarrs(folder):
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return zarr.open_array(folder, mode="r")[...]


@pytest.mark.slow
@given(array=arrays(), batches=st.integers(1, 4), codec=st.sampled_from(["none", "zstd", "lz4"]))
def test_every_reader_of_zarr_reads_a_shard_bit_for_bit(tmp_path_factory, array, batches, codec):
    folder = tmp_path_factory.mktemp("shard") / "array"
    metadata = write(folder, array, batches=batches, codec=codec)
    for found in (
        read(folder, metadata),
        zarr.open_array(folder, mode="r")[...],
        read_with_tensorstore(folder),
        read_with_zarrs(folder),
    ):
        assert found.dtype == array.dtype
        assert found.tobytes() == array.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"])
@given(array=arrays(), codec=st.sampled_from(["none", "zstd", "lz4"]))
def test_arrays_of_zarr_python_are_read_bit_for_bit(tmp_path_factory, pipeline, array, codec):
    folder = tmp_path_factory.mktemp("shard") / "array"
    folder.mkdir()
    metadata = describe(array, codec)
    (folder / METADATA).write_bytes(encode_document(metadata.document()))
    with zarr.config.set({"codec_pipeline.path": pipeline, "array.write_empty_chunks": True}):
        zarr.open_array(folder, mode="r+")[...] = array
    assert read(folder, metadata).tobytes() == array.tobytes()


@pytest.mark.slow
@given(array=arrays())
def test_a_file_has_the_size_that_was_promised(tmp_path_factory, array):
    folder = tmp_path_factory.mktemp("shard") / "array"
    metadata = write(folder, array)
    chunks = math.prod(n // c for n, c in zip(array.shape, metadata.chunk_shape, strict=True))
    expected = shard_bytes(chunks, math.prod(metadata.chunk_shape) * array.itemsize)
    assert (folder / shard_name(array.ndim)).stat().st_size == expected


@given(array=arrays(), codec=st.sampled_from(["none", "zstd", "lz4"]))
def test_metadata_is_read_as_it_was_written(array, codec):
    metadata = describe(array, codec)
    assert ArrayMetadata.from_document(json.loads(encode_document(metadata.document()))) == metadata


@pytest.mark.slow
def test_shards_larger_than_a_batch_are_whole(tmp_path):
    array = np.random.default_rng(0).normal(size=(6, 5, 2**18)).astype("float32")  # chunks of 6 MiB
    metadata = write(tmp_path / "array", array, batches=5)
    assert read(tmp_path / "array", metadata).tobytes() == array.tobytes()
    assert read_with_tensorstore(tmp_path / "array").tobytes() == array.tobytes()


def tampered(content, index):
    body = index.astype("<u8").tobytes()
    return content[: -len(body) - 4] + body + int(google_crc32c.value(body)).to_bytes(4, "little")


@pytest.mark.parametrize(
    "lie",
    [
        lambda i, n: i.__setitem__((0, 0), 2**64 - 1),
        lambda i, n: i.__setitem__((0, 0), 2**64 - 8),
        lambda i, n: i.__setitem__((0, 0), n),
        lambda i, n: i.__setitem__((0, 1), 2**64 - 1),
        lambda i, n: i.__setitem__((0, 1), 0),
        lambda i, n: i.__setitem__((0, 1), i[0, 1] - np.uint64(1)),
        lambda i, n: i.__setitem__(0, 2**64 - 1),
        lambda i, n: i.__setitem__(0, i[1]),
        lambda i, n: i.__setitem__((1, 0), i[1, 0] - np.uint64(4)),
    ],
    ids=["missing", "overflow", "behind the end", "huge", "empty", "short", "absent", "twice", "overlapping"],
)
def test_an_index_that_lies_is_refused(tmp_path, lie):
    array = np.arange(12, dtype="float32").reshape(3, 4)
    metadata = write(tmp_path / "array", array)
    file = tmp_path / "array" / "c.0.0"
    content = file.read_bytes()
    index = np.frombuffer(content[-52:-4], "<u8").reshape(3, 2).copy()
    lie(index, len(content))
    file.write_bytes(tampered(content, index))
    with pytest.raises(CorruptTrackError, match="the test"):
        read(tmp_path / "array", metadata)


@pytest.mark.parametrize("size", [0, 1, 51, -1])
def test_a_file_of_another_size_is_refused(tmp_path, size):
    metadata = write(tmp_path / "array", np.ones((3, 4), "float32"))
    file = tmp_path / "array" / "c.0.0"
    content = file.read_bytes()
    file.write_bytes(content[:size] if size >= 0 else content + b"x")
    with pytest.raises(CorruptTrackError):
        read(tmp_path / "array", metadata)


def test_nothing_warns_about_a_shard(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path / "array", np.ones((2, 3, 4), "float16"))
        assert zarr.open_array(tmp_path / "array", mode="r").metadata.dimension_names == (
            "segment_a",
            "layer",
            "feature",
        )
