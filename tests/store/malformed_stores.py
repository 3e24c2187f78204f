"""Malformed stores: each case changes a store with the tracks a, b and c, beside a folder that is not its own."""

import contextlib
import json
import os
import stat
import struct

import google_crc32c

from featurestore.store.format.metadata import MAX_METADATA_BYTES, checksum, seal
from featurestore.store.format.small_chunks import encode_texts, with_crc

ALL = ("raw", "segments", "aggregated")


def tell(kind, change, key="a"):
    """Change the metadata of an array and seal it again: a lie that passes its checksum."""

    def lie(path, outside):
        file = path / kind / key / "zarr.json"
        document = json.loads(file.read_text())
        document = change(document) or document
        with contextlib.suppress(
            KeyError, TypeError, AttributeError, ValueError
        ):  # or not even that can be computed
            document = seal(document)
        file.write_text(json.dumps(document))

    return lie


def setting(*where, value):
    """A change of one value of a document."""

    def change(document):
        inner = document
        for name in where[:-1]:
            inner = inner[name]
        inner[where[-1]] = value

    return change


def nested(depth, bracket="[]"):
    return bracket[0] * depth + bracket[1] * depth


def write(name, content):
    return lambda path, outside: (path / name).write_bytes(content)


def replace(name, make):
    """Something else in the place of a file or folder."""

    def work(path, outside):
        target = path / name
        if target.exists():
            target.rename(path.parent / "removed")
        make(target, outside)

    return work


def sparse(size):
    def make(target, outside):
        target.touch()
        os.truncate(target, size)

    return make


def fifo(target, outside):
    os.mkfifo(target)


def device(target, outside):
    os.mknod(target, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero


def to(name):
    return lambda target, outside: target.symlink_to(outside / name)


def folder(target, outside):
    target.mkdir()


def sized(kind, shape, chunk, chunks, content_bytes):
    """Metadata and a file of zeros (sparse) with a right index that agree on a size."""

    def work(path, outside):
        def change(document):
            document["shape"] = list(shape)
            document["chunk_grid"]["configuration"]["chunk_shape"] = list(shape)
            document["codecs"][0]["configuration"]["chunk_shape"] = list(chunk)

        tell(kind, change)(path, outside)
        (file,) = (path / kind / "a").glob("c.*")
        index = b"".join(struct.pack("<QQ", i * (content_bytes + 4), content_bytes + 4) for i in range(chunks))
        with file.open("wb") as opened:
            opened.truncate(chunks * (content_bytes + 4))
            opened.seek(chunks * (content_bytes + 4))
            opened.write(index + int(google_crc32c.value(index)).to_bytes(4, "little"))

    return work


def table(change):
    """A change of the document of the table's group, which is sealed again."""

    def work(path, outside):
        file = path / "packed" / "zarr.json"
        document = json.loads(file.read_text())
        change(document)
        if isinstance(document["attributes"], dict):
            document["attributes"].pop("checksum", None)
            document["attributes"]["checksum"] = checksum(document)
        file.write_text(json.dumps(document))

    return work


def both(*works):
    def work(path, outside):
        for one in works:
            one(path, outside)

    return work


def table_of(tracks, rows=None):
    def change(document):
        features = document["consolidated_metadata"]["metadata"]["features"]
        features["shape"][0] = tracks
        if rows is not None:
            features["chunk_grid"]["configuration"]["chunk_shape"][0] = rows

    return table(change)


def intent(key, content):
    def work(path, outside):
        entry = path / ".featurestore" / "journal" / key
        entry.mkdir()
        (entry / "intent.json").write_bytes(content)

    return work


def root(**settings):
    """Another spec of the store, with its fingerprint and its checksum."""

    def lie(path, outside):
        document = json.loads((path / "zarr.json").read_text())
        own = document["attributes"]["featurestore"]
        own["spec"] |= settings
        defaults = {"precision": "fp32", "dtype": "float32", "codec": "none"}
        identity = {name: value for name, value in own["spec"].items() if value != defaults.get(name)}
        own["fingerprint"] = checksum(identity)
        own["checksum"] = checksum({name: value for name, value in own.items() if name != "checksum"})
        (path / "zarr.json").write_text(json.dumps(document))

    return lie


OWN = ("attributes", "featurestore")
SHARDING = ("codecs", 0, "configuration")
BLOSC = {"typesize": 4, "cname": "zstd", "clevel": 9, "shuffle": "shuffle", "blocksize": 0}
METADATA = {
    **{
        f"{kind} of the shape {value!r:.40}": tell(kind, setting("shape", value=value))
        for kind in ALL
        for value in (
            *([2**40] * 4, [2**62, 3, 4, 4], [-1, 3, 4, 4], [True, 3, 4, 4], [0, 3, 4, 4], [10**400] * 4),
            *([2.0, 3, 4, 4], "abc", None, {}, [], [2], [[2]] * 4, [1e308] * 4, [2, 3, 4, 4, 1], 5),
        )
    },
    **{
        f"a data type {value!r:.40}": tell("raw", setting("data_type", value=value))
        for value in ("float64", "int8", "string", ["float32"], {"name": "float32"}, None, "x" * 10**6)
    },
    **{
        f"codecs {value!r:.60}": tell("raw", setting("codecs", value=value))
        for value in (
            *([], None, 5, "bytes", [{"name": "bytes"}], [{"name": "gzip", "configuration": {"level": 9}}]),
            *([{"name": "zstd", "configuration": {"level": 9}}], [{"name": "blosc", "configuration": BLOSC}]),
            *([{"name": "sharding_indexed"}], [[[]]], [{"name": "sharding_indexed", "configuration": None}]),
        )
    },
    **{
        f"inner {name} {value!r:.60}": tell("raw", setting(*SHARDING, name, value=value))
        for name, value in (
            *(("codecs", []), ("codecs", None), ("codecs", [{"name": "bytes"}, {"name": "gzip"}])),
            ("codecs", [{"name": "bytes"}, {"name": "blosc", "configuration": BLOSC}, {"name": "crc32c"}]),
            ("codecs", [{"name": "bytes"}, {"name": "blosc", "configuration": {"cname": []}}, {"name": "crc32c"}]),
            *(("chunk_shape", [1, 1, 4, 3]), ("chunk_shape", [0, 0, 0, 0]), ("chunk_shape", [2**40] * 4)),
            *(("chunk_shape", None), ("index_location", "start"), ("index_codecs", [{"name": "gzip"}])),
        )
    },
    **{
        f"{name} {value!r:.60}": tell("segments", setting(name, value=value))
        for name, value in (
            *(("dimension_names", ["segment", "feature", "layer"]), ("dimension_names", None)),
            *(("dimension_names", 7), ("dimension_names", [[]] * 3), ("fill_value", 0), ("fill_value", 1e308)),
            *(("node_type", "group"), ("zarr_format", 2), ("zarr_format", True), ("chunk_grid", None)),
            ("chunk_grid", {"name": "rectangular", "configuration": {"chunk_shape": [2, 3, 4]}}),
            ("chunk_key_encoding", {"name": "default", "configuration": {"separator": "/"}}),
            *(("storage_transformers", [{}]), ("attributes", None), ("attributes", []), ("attributes", {})),
        )
    },
    **{
        f"{kind} with {name} {value!r:.60}": tell(kind, setting("attributes", name, value=value))
        for kind in ALL
        for name, value in (
            *(("track_id", "b"), ("track_id", 5), ("track_id", ""), ("track_id", "\ud800"), ("track_id", None)),
            *(("track_id", "x" * 10**6), ("kinds", []), ("kinds", ["raw"] * 10**5), ("kinds", "raw")),
            *(("kinds", ["aggregated", "raw"]), ("kinds", [[]]), ("kinds", None), ("kinds", ["../../outside"])),
            *(("revision", 5), ("revision", ["x"]), ("revision", "another"), ("fingerprint", "0" * 64)),
            *(("starts", [[0.0], [1.0]]), ("starts", ["x", "y"]), ("starts", [0.0] * 10**5), ("starts", 5)),
            *(("starts", [1e308, float("inf")]), ("starts", [float("nan")] * 2), ("starts", [10**400, 0])),
            *(("starts", {"a": 1}), ("starts", [True, False]), ("layers", [5]), ("layers", "x")),
        )
    },
    **{
        f"checksums {value!r:.40} of {kind}": (
            lambda path, outside, kind=kind, value=value: _edit(
                path, kind, setting("attributes", "checksums", value=value)
            )
        )
        for kind in ALL
        for value in (None, [], "x", {}, {"metadata": 5}, {"metadata": None, "chunks": []})
    },
    **{
        f"{name} is {label}": write(name, content)
        for name in ("raw/a/zarr.json", "aggregated/a/zarr.json", "packed/zarr.json", "zarr.json", "raw/zarr.json")
        for label, content in (
            *(("empty", b""), ("cut", b'{"shape": ['), ("no text", bytes(range(256))), ("a list", b"[1]")),
            *(
                ("nested lists", nested(10**6).encode()),
                ("nested objects", b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
            ),
            *(("deep attributes", b'{"attributes": {"featurestore": ' + nested(900).encode() + b"}}"),),
            *(("a long number", b"1" * 10**7), ("many lists", b"[" + b"[]," * (5 * 10**6) + b"[]]")),
            *(("too large", b" " * (MAX_METADATA_BYTES + 1)), ("a NaN", b"NaN"), ("1e999", b"1e999")),
        )
    },
}


def _edit(path, kind, change, key="a"):
    file = path / kind / key / "zarr.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


FILES = {
    **{
        f"{name} is {make.__name__}": replace(name, make)
        for name in (
            *(
                "raw/a/zarr.json",
                "raw/a/c.0.0.0.0",
                "aggregated/a/c.0.0",
                "aggregated/a",
                "raw/a",
                "packed/zarr.json",
            ),
            *(
                "packed/features/c.0.0.0",
                "packed/track_id/c.0",
                "packed/features/zarr.json",
                "packed",
                "zarr.json",
            ),
            *("aggregated/zarr.json", ".featurestore/zarr.json", "aggregated", "segments", ".featurestore"),
        )
        for make in (fifo, device, folder)
    },
    **{
        f"{name} of many zeros": replace(name, sparse(size))
        for name, size in (
            *(("raw/a/zarr.json", 2**40), ("zarr.json", 2**40), ("packed/zarr.json", 2**40)),
            *(("raw/a/c.0.0.0.0", 2**42), ("aggregated/a/c.0.0", 2**42), ("packed/features/c.0.0.0", 2**42)),
            *(("packed/track_id/c.0", 2**42), ("packed/track_id/c.0", 2**29), ("packed/layer/c.0", 2**40)),
        )
    },
    "a track of 2^36 segments": sized("segments", [2**36, 3, 4], [2**36, 1, 4], 3, 2**40),
    "chunks of a gigabyte that is not there": sized("segments", [2**26, 3, 4], [2**26, 1, 4], 3, 2**30),
    "chunks of 600 MB that are not there": sized("segments", [2**25, 3, 4], [2**25, 1, 4], 3, 2**29),
    "many chunks that are not there": sized("raw", [2**16, 3, 2**10, 4], [1, 1, 2**10, 4], 3 * 2**16, 2**14),
    "offsets that overflow": lambda path, outside: _index(path, lambda i, n: [(2**64 - 1, 20)] * n),
    "offsets that overlap": lambda path, outside: _index(path, lambda i, n: [i[0]] * n),
    "sizes of nothing": lambda path, outside: _index(path, lambda i, n: [(o, 0) for o, _ in i]),
    "sizes that overflow": lambda path, outside: _index(path, lambda i, n: [(8, 2**64 - 8)] * n),
}


def _index(path, change):
    """Another index, with its checksum, in each shard of a track."""
    for file in path.glob("*/a/c.*"):
        content = file.read_bytes()
        chunks = 6 if file.name == "c.0.0.0.0" else 3
        size = chunks * 16 + 4
        found = list(struct.iter_unpack("<QQ", content[-size:-4]))
        index = b"".join(struct.pack("<QQ", *entry) for entry in change(found, chunks))
        file.write_bytes(content[:-size] + index + int(google_crc32c.value(index)).to_bytes(4, "little"))


def ids(*track_ids):
    def work(path, outside):
        file = path / "packed" / "track_id" / "c.0"
        file.write_bytes(encode_texts(track_ids, int.from_bytes(file.read_bytes()[:4], "little")))

    return work


def raw_ids(*numbers, rest=b""):
    """A chunk of ids of these numbers, the first of which is added to the right number of rows, and a checksum."""

    def work(path, outside):
        file = path / "packed" / "track_id" / "c.0"
        rows = int.from_bytes(file.read_bytes()[:4], "little")
        first = (rows + numbers[0]) % 2**32
        file.write_bytes(with_crc(struct.pack(f"<{len(numbers)}I", first, *numbers[1:]) + rest))

    return work


def _next_layout(document):
    document["attributes"]["layout"] += 1


TABLE = {
    "twice the same id": ids("a", "a", "b"),
    "an empty id": ids("a", "", "b"),
    "an id of a megabyte": ids("a", "x" * 10**6, "b"),
    "ids of no track": ids("x", "y", "z"),
    "more ids than rows": ids("a", "b", "c", "d"),
    "fewer ids than rows": ids("a", "b"),
    "ids that are no text": raw_ids(0, 1, 1, rest=b"\xff" * 999),
    "ids longer than the file": raw_ids(0, 2**32 - 1, rest=b"x" * 999),
    "many ids of nothing": both(table_of(2**32 - 1, 2**32 - 1), raw_ids(-1, rest=b"\0" * 8)),
    "no ids": write("packed/track_id/c.0", b""),
    "a table of 2^40 tracks": table_of(2**40),
    "a table of -1 tracks": table_of(-1),
    "chunks of 2^40 rows": table_of(3, 2**40),
    "chunks of one row": table_of(3, 1),
    "chunks of no row": table_of(3, 0),
    "rows of nothing": write("packed/track_id/rows", b""),
    "rows that are too many": write("packed/track_id/rows", bytes(10**6)),
    "rows of another table": write("packed/track_id/rows", bytes(3 * 24)),
    **{
        f"{name} {value!r:.40}": table(setting("attributes", name, value=value))
        for name, value in (
            *(("generation", 5), ("generation", None), ("generation", "x" * 10**6), ("fingerprint", "x")),
            *(
                (f"aggregated_{time}", value)
                for time in ("mtime", "ctime")
                for value in ("x", -1, True, None, "9" * 99)
            ),
            *(("layout", -1), ("layout", 10**400), ("layout", True), ("layout", 0.0), ("layout", None)),
            *(("rows_crc32c", 5), ("rows_crc32c", None), ("rows_crc32c", "x")),
        )
    },
    "the next layout": lambda path, outside: table(_next_layout)(path, outside),
    "a table with nothing of ours": table(setting("attributes", "featurestore", value=None)),
    "a false mtime token": lambda path, outside: both(
        ids("a", "a", "x"),
        table(setting("attributes", "aggregated_mtime", value=str((path / "aggregated").stat().st_mtime_ns))),
        table(setting("attributes", "aggregated_ctime", value=str((path / "aggregated").stat().st_ctime_ns))),
    )(path, outside),
}
HIDDEN = (".featurestore/" + name for name in ("locks", "staging", "journal", "stale", "trash", "quarantine"))
LINKS = {
    **{
        f"{name} leads to {target}": replace(name, to(target))
        for name in (
            *("raw", "segments", "aggregated", "packed", ".featurestore", *HIDDEN),
            *("raw/a", "segments/a", "aggregated/a", "packed/features", "packed/track_id", "packed/layer"),
        )
        for target in ("folder", "other.zarr", "nothing")
    },
    **{
        f"{name} leads to a file": replace(name, to("file"))
        for name in (
            *("zarr.json", "raw/a/zarr.json", "raw/a/c.0.0.0.0", "aggregated/a/c.0.0", "packed/zarr.json"),
            *("packed/features/c.0.0.0", "packed/track_id/c.0", ".featurestore/zarr.json"),
            *(".featurestore/stale/a", ".featurestore/stale/z", ".featurestore/locks/pack.lock"),
            *(".featurestore/staging/x.1.y", ".featurestore/trash/x", ".featurestore/journal/a"),
        )
    },
    **{
        f"{name} leads to a folder": replace(name, to("folder"))
        for name in (".featurestore/staging/x.1.y", ".featurestore/trash/x", ".featurestore/journal/a")
    },
    "the same track of another store": replace("aggregated/a", to("other.zarr/aggregated/a")),
    "a shard of another store": replace("aggregated/a/c.0.0", to("other.zarr/aggregated/a/c.0.0")),
    "locks that lead to a file": lambda path, outside: [
        (path / ".featurestore" / "locks" / f"{n:04}.lock").symlink_to(outside / "file")
        for n in range(1024)
        if not (path / ".featurestore" / "locks" / f"{n:04}.lock").exists()
    ],
    "an owner's lock that leads to a file": lambda path, outside: (
        (path / ".featurestore" / "staging" / "x.1.y").mkdir(),
        (path / ".featurestore" / "staging" / "x.1.y" / "owner.lock").symlink_to(outside / "file"),
        os.utime(path / ".featurestore" / "staging" / "x.1.y", (0, 0)),
    ),
    "stale markers that are pipes": lambda path, outside: [
        os.mkfifo(path / ".featurestore" / "stale" / name) for name in ("a", "b", "z")
    ],
    "locks that are pipes": replace(".featurestore/locks/pack.lock", fifo),
}
JOURNAL = {
    **{
        f"an intent {content[:40]!r}": intent("a", content)
        for content in (
            *(b"", b"{", b"[]", b"5", b'"x"', b"{}", nested(10**5).encode(), b"1" * 10**7, b"NaN"),
            *(b'{"kinds": 5, "revision": "x"}', b'{"kinds": [["raw"]], "revision": "x"}'),
            *(b'{"kinds": ["../../outside"], "revision": "x"}', b'{"kinds": ["raw"], "revision": {}}'),
            *(b'{"kinds": {"raw": 1}, "revision": null}', b'{"kinds": ["aggregated"], "revision": "x"}'),
        )
    },
    **{
        f"a change of {key!r}": intent(key, b'{"kinds": [], "revision": "x"}')
        for key in ("zarr.json", "A b", "=zz", "\udcff", "x" * 255, "...")
    },
    "a change whose array is a link": lambda path, outside: (
        intent("a", b'{"kinds": ["raw"], "revision": "x"}')(path, outside),
        (outside / "folder" / "zarr.json").write_text('{"attributes": {"revision": "x"}}'),
        (path / ".featurestore" / "journal" / "a" / "raw").symlink_to(outside / "folder"),
    ),
    "a change in a pipe": lambda path, outside: (
        (path / ".featurestore" / "journal" / "a").mkdir(),
        os.mkfifo(path / ".featurestore" / "journal" / "a" / "intent.json"),
    ),
    "a journal entry that is a file": lambda path, outside: (path / ".featurestore/journal/a").write_text("x"),
    "a mark of no key": lambda path, outside: (path / ".featurestore/stale/A B").touch(),
}
ROOT = {
    **{
        f"a spec with {name} {value!r:.40}": root(**{name: value})
        for name, value in (
            *(("dim", 2**62), ("dim", 10**400), ("dim", 2**36), ("dim", 2**18 + 1), ("dim", 2**18), ("dim", 4.0)),
            *(
                ("layers", [0, 1, 2**70]),
                ("layers", [0, 1, 2**31]),
                ("layers", [10**400]),
                ("layers", [0, 1, 2.0]),
            ),
            *(("model", ["x"]), ("model", 5), ("model", "\ud800"), ("revision", {}), ("weights_sha256", [[]])),
            *(
                ("resampler", True),
                ("precision", 16),
                ("precision", None),
                ("do_normalize", 1),
                ("sample_rate", "x"),
            ),
            *(
                ("sample_rate", 24_000.0),
                ("sample_rate", -1),
                ("sample_rate", 10**400),
                ("frame_rate", float("nan")),
            ),
            *(
                ("frame_rate", [75]),
                ("segment_duration", float("inf")),
                ("segment_duration", 0),
                ("overlap", "foo"),
            ),
            *(("overlap", 1), ("overlap", 10**400), ("precision_cosines", ["x"]), ("precision_errors", [10**400])),
        )
    },
    "a spec with a million layers": root(layers=list(range(10**6))),
    "a spec with many large layers": root(layers=list(range(1_000)), dim=2**17),
}
CASES = {**METADATA, **FILES, **ROOT, **TABLE, **LINKS, **JOURNAL}
