"""Options from the environment and from featurestore.toml, and what `fs-extract config` says of them."""

import pytest

from featurestore import FeatureStore


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text, name="featurestore.toml"):
    with open(name, "w") as file:
        file.write(text)


@pytest.mark.slow
def test_a_build_takes_its_options_from_the_file(run, music, tmp_path):
    write('layers = [0, 2]\n[build]\nmodel = "logmel"\nexclude = ["b/*"]\n[copy]\nlayers = "2"\n')
    assert run("build", music, "s.zarr").code == 0
    store = FeatureStore("s.zarr")
    assert (store.spec.model, store.spec.layers, store.track_ids) == ("logmel", (0, 2), ["a/one", "a/two"])
    assert run("copy", "s.zarr", "copy.zarr").code == 0
    assert FeatureStore("copy.zarr").spec.layers == (2,)
    assert run("ls", "s.zarr").code == 0  # has none of them


def test_flag_before_environment_before_file_before_default(run, monkeypatch):
    def found():
        return run("config", "--json").json["--batch-size"]

    assert found() == {"value": "4 on cpu, 8 on mps, 16 to 128 on cuda, by its memory", "from": "default"}
    write("batch-size = 3")
    assert found() == {"value": 3, "from": "featurestore.toml"}
    monkeypatch.setenv("FEATURESTORE_BATCH_SIZE", "5")
    assert found() == {"value": 5, "from": "environment"}
    assert run("config", "--batch-size", "7", "--json").json["--batch-size"] == {"value": 7, "from": "flag"}


@pytest.mark.parametrize("where", ["before", "after", "environment"])
def test_another_file_can_be_named(run, monkeypatch, where):
    write("[build]\noverlap = 0.25", "mine.toml")
    write("[build]\noverlap = 0.75")
    if where == "environment":
        monkeypatch.setenv("FEATURESTORE_CONFIG_FILE", "mine.toml")
        result = run("config", "--json")
    else:
        named, command = ("--config-file", "mine.toml"), ("config", "--json")
        result = run(*named, *command) if where == "before" else run(*command, *named)
    assert result.json["--overlap"] == {"value": 0.25, "from": "mine.toml"}


@pytest.mark.slow
def test_a_store_says_how_it_was_built(run, music):
    assert run("build", music, "s.zarr", "--model", "logmel", "--layers", "0,2", "--dataset", "mine").code == 0
    found = run("config", "s.zarr", "--dtype", "float16", "--json").json
    assert found["--model"] == {"value": "logmel", "from": "store"}
    assert found["--layers"] == {"value": [0, 2], "from": "store"}
    assert found["--feature-level"] == {"value": "segments", "from": "store"}
    assert found["--dataset"] == {"value": "mine", "from": "store"}
    assert found["--dtype"] == {"value": "float16", "from": "flag"}
    assert found["--device"] == {"value": "cpu", "from": "default"}
    lines = run("config", "s.zarr").out.splitlines()
    assert [line.split() for line in lines if line.startswith("--layers")] == [["--layers", "0,2", "store"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layrs = 3", "no option 'layrs'. Did you mean 'layers'?"),
        ("[build]\nmodle = 'logmel'", "no option 'build.modle'. Did you mean 'model'?"),
        ("[biuld]\nmodel = 'logmel'", "no command 'biuld'. Did you mean 'build'?"),
        ("[config]\nmodel = 'logmel'", "no command 'config'"),
        ("[build.model]\nname = 'logmel'", "build.model is an option, not a table"),
        ("[build]\nbatch-size = 'many'", "Invalid value for '--batch-size': 'many' is not a valid integer"),
        ("[build", "featurestore.toml is no TOML"),
    ],
)
def test_mistakes_in_the_file_are_named(run, text, message):
    write(text)
    result = run("config")
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_file_that_was_named_must_be_there(run):
    result = run("config", "--config-file", "absent.toml")
    assert result.code == 2
    assert "absent.toml cannot be read: No such file or directory" in result.err
