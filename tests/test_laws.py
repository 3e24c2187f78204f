"""What may be imported when, seen in a fresh interpreter: reading a store must not cost what extraction needs."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import featurestore
from featurestore import FeatureSpec, StoreWriter

EXTRACTION = {
    *("torch", "torchaudio", "transformers", "av", "soundfile", "huggingface_hub", "safetensors"),
    "sklearn",
}
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STORE = {"featurestore.store"}
WINGS = {"featurestore.training.labels", "featurestore.training.pretrain"}
ROOMS = {f"featurestore.{x}" for x in ("audio", "models", "encode", "pipeline", "training", "testing")}


def modules_after(code, *arguments):
    """Names of the modules that a fresh interpreter has loaded after some code."""
    return modules_after_each([code], *arguments)[0]


def modules_after_each(codes, *arguments):
    """Names of the modules that one fresh interpreter has loaded after each of some pieces of code."""
    code = "".join(f"{code}\nimport json, sys\nprint(chr(0) + json.dumps(list(sys.modules)))\n" for code in codes)
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [set(json.loads(line[1:])) for line in done.stdout.splitlines() if line.startswith("\0")]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("laws") / "s.zarr"
    random = np.random.default_rng(0)
    with StoreWriter(path, spec=FeatureSpec.for_arrays(layers=3, dim=4)) as writer:
        for track_id in ("a", "b"):
            writer.put(
                track_id, {"raw": random.normal(size=(2, 3, 5, 4)), "segments": random.normal(size=(2, 3, 4))}
            )
        writer.pack()
    return path


def test_importing_the_package_costs_nothing():
    loaded = modules_after("import featurestore")
    assert not loaded & ({"numpy", "zarr", "click", "tqdm", "featurestore._version"} | EXTRACTION | ROOMS)


@pytest.mark.slow
def test_reading_a_store_needs_nothing_of_extraction(store):
    loaded = modules_after(
        """
import sys
from featurestore import FeatureStore
store = FeatureStore(sys.argv[1])
assert store.track_ids == ["a", "b"]
store.aggregated(layer=1)[...], store.segments(layer=1).to_numpy(), store.raw("a").to_numpy()
store.info(), store.provenance("a"), store.verify(deep=True)
""",
        store,
    )
    assert not loaded & ({"zarr"} | EXTRACTION | ROOMS)


@pytest.mark.slow
def test_what_reading_imports_is_what_a_plain_installation_brings(store):
    """The wheel without extras is enough, and brings nothing that only extraction needs."""
    declared = {re.match(r"[\w-]+", x)[0] for x in PROJECT["dependencies"]}
    brought = {x for name in declared for x in importlib.metadata.requires(name) or () if "extra" not in x}
    # numcodecs takes msgpack along if it is there.
    optional = {re.match(r"[\w-]+", x)[0] for x in importlib.metadata.requires("numcodecs") if "extra" in x}
    brought = declared | {re.match(r"[\w-]+", x)[0] for x in brought}
    code = "import sys\nfrom fs_extract.commands import run\nassert run(['info', sys.argv[1]]) == 0\n"
    code += "from featurestore import FeatureStore\nFeatureStore(sys.argv[1]).verify(deep=True)"
    loaded = {name.partition(".")[0] for name in modules_after(code, store) - modules_after("pass", store)}
    owners = importlib.metadata.packages_distributions()
    imported = {owner for name in loaded - sys.stdlib_module_names for owner in owners.get(name, ())}
    assert "numpy" in imported
    assert imported - {"featurestore"} <= brought | optional
    assert not brought & (EXTRACTION | {"zarr"})


@pytest.mark.slow
def test_writing_arrays_into_a_store_needs_nothing_of_extraction(tmp_path):
    loaded = modules_after(
        """
import sys
import numpy as np
from featurestore import FeatureSpec, StoreWriter
with StoreWriter(sys.argv[1], spec=FeatureSpec.for_arrays(layers=2, dim=2)) as writer:
    writer.put("a", {"aggregated": np.ones((2, 2))})
    writer.pack()
""",
        tmp_path / "s.zarr",
    )
    assert not loaded & ({"zarr"} | EXTRACTION | ROOMS)


@pytest.mark.slow
def test_a_room_knows_only_those_before_it():
    unknown = {  # what each may know, the next one may too
        "featurestore.windows": ROOMS | STORE | EXTRACTION | {"zarr"},
        "featurestore.pooling": ROOMS | STORE | EXTRACTION | {"zarr"},
        "featurestore.models.checkpoints.load": ROOMS - {"featurestore.models"} | STORE,
        "featurestore.audio": ROOMS - {"featurestore.models", "featurestore.audio"} | STORE,
        "featurestore.encode.window_encoder": STORE | {"featurestore.pipeline", "featurestore.training"},
        "featurestore.pipeline.extractor": {"featurestore.training", "featurestore.testing", "torchaudio"}
        | {"transformers", "soundfile", "huggingface_hub", "zarr"},
    }
    loaded = modules_after_each([f"import {module}" for module in unknown])
    assert [known & theirs for known, theirs in zip(loaded, unknown.values(), strict=True)] == [set()] * 6


@pytest.mark.slow
def test_packages_of_extraction_are_imported_by_what_uses_them():
    assert not modules_after("\n".join(f"import {module}" for module in sorted(ROOMS | WINGS))) & EXTRACTION


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["--version"]),
        *([name, "--help"] for name in ("build", "doctor", "manifest", "labels", "pretrain")),
    ],
    ids=" ".join,
)
def test_help_is_fast_because_it_imports_nothing(arguments):
    loaded = modules_after(f"from fs_extract.commands import run\nassert run({arguments!r}) == 0")
    assert not loaded & ({"numpy", "zarr", "tqdm"} | EXTRACTION | ROOMS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["info"], ["ls"], ["ls", "--long"], ["verify", "--deep"], ["verify", "--repair"], ["pack"]],
    ids=" ".join,
)
def test_commands_about_a_store_import_nothing_of_extraction(store, arguments):
    loaded = modules_after(f"from fs_extract.commands import run\nassert run({[*arguments, str(store)]!r}) == 0")
    assert not loaded & (EXTRACTION | ROOMS)


@pytest.mark.slow
def test_rm_imports_nothing_of_extraction(tmp_path):
    with StoreWriter(tmp_path / "s.zarr", spec=FeatureSpec.for_arrays(layers=2, dim=2)) as writer:
        writer.put("a", {"aggregated": np.ones((2, 2))})
    arguments = ["rm", str(tmp_path / "s.zarr"), "a", "--yes"]
    loaded = modules_after(f"from fs_extract.commands import run\nassert run({arguments!r}) == 0")
    assert not loaded & (EXTRACTION | ROOMS)


def test_the_oldest_versions_that_are_tested_are_those_that_are_declared():
    extras = PROJECT["optional-dependencies"]
    of_all = re.fullmatch(r"featurestore\[(.+)\]", *extras["all"])[1].split(",")
    declared = [*PROJECT["dependencies"], *(x for name in of_all for x in extras[name])]
    bounds = dict(
        re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<\d+)?", x).groups()
        for x in declared
        if "featurestore" not in x
    )
    pinned = re.findall(
        r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci/oldest.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    tested = dict(pinned)
    assert tested.keys() == bounds.keys() | {"torchaudio"}  # the tests compare with it, and it goes with a torch
    for name in bounds.keys() - {"numpy"}:  # of zarr's choosing
        width = len(bounds[name].split("."))
        assert ".".join(tested[name].split(".")[:width]) == bounds[name], name
        assert set(tested[name].split(".")[width:]) <= {"0"}, name


@pytest.mark.slow
def test_public_names_exist():
    assert featurestore.__all__ == sorted(featurestore.__all__)
    for name in featurestore.__all__:
        assert getattr(featurestore, name) is not None
    assert set(featurestore.__all__) <= set(dir(featurestore))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = featurestore.nonsense
