"""Encoders of installed packages: found by their name, checked, and never in the place of anything else."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from featurestore import FeatureStore, build
from featurestore.errors import ModelError, SettingError
from featurestore.models import check_encoder, load_model, save_random_checkpoint

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "my_encoder"


def install(target, package, *, version="1.0", code=None, **names):
    """What an installer leaves behind: a module, and the metadata of its package."""
    info = target / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = "".join(f"{name} = {value}\n" for name, value in names.items())
    (info / "entry_points.txt").write_text(f"[featurestore.encoders]\n{lines}")
    if code is not None:
        (target / f"{package}.py").write_text(code)


def install_example(target):
    settings = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    project = settings["project"]
    names = project["entry-points"]["featurestore.encoders"]
    install(target, project["name"], version=project["version"], **names)
    for module in settings["tool"]["setuptools"]["py-modules"]:
        shutil.copy(EXAMPLE / f"{module}.py", target)


@pytest.fixture
def target(tmp_path, monkeypatch):
    """A folder of installed packages, and an empty one to work in."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write_music():
    Path("music").mkdir()
    samples = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    soundfile.write("music/a.wav", samples, 16_000)


def test_the_example_package_offers_its_encoder_by_name(target):
    with pytest.raises(ModelError, match="no folder my_encoder"):
        load_model("my_encoder")
    install_example(target)
    encoder = load_model("my_encoder")
    check_encoder(encoder)
    assert (encoder.name, encoder.revision) == ("my_encoder", "1")
    assert load_model("my_encoder", revision="1").name == "my_encoder"
    with pytest.raises(
        ModelError, match=r"my_encoder of my-encoder 1\.0 has revision '1', not the `revision` '2'"
    ):
        load_model("my_encoder", revision="2")
    with pytest.raises(ModelError, match=r"\(logmel, mini, my_encoder\)"):
        load_model("my_decoder")


@pytest.mark.slow
def test_the_command_line_and_a_store_know_it_too(target):
    install_example(target)
    write_music()
    command = [sys.executable, "-m", "fs_extract", "build", "music", "a.zarr", "--model", "my_encoder"]
    paths = os.pathsep.join([str(target), str(Path(__file__).parents[3] / "cli")])
    run = subprocess.run(
        [*command, "--layers", "0"], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    store = FeatureStore("a.zarr")
    assert (store.spec.model, store.spec.revision, store.spec.frame_rate) == ("my_encoder", "1", 50.0)
    report = build("music", "a.zarr", model="my_encoder", layers=[0])
    assert (report.processed, report.cached) == (0, 1)


def test_a_package_that_raises_is_named_and_the_others_work(target):
    install_example(target)
    install(target, "broken", broken="broken:make", code="raise RuntimeError('no licence found')\n")
    install(target, "leaving", leaving="leaving:make", code="raise SystemExit(3)\n")
    install(target, "absent", absent="no_such_module:make")
    install(target, "nothing", nothing="nothing:make", code="def make(): return None\n")
    for name, message in {
        "broken": r"'broken' of the installed package broken 1\.0 .* raised RuntimeError: no licence found",
        "leaving": r"leaving:make raised SystemExit: 3",
        "absent": "raised ModuleNotFoundError: No module named 'no_such_module'",
        "nothing": r"the installed package nothing 1\.0 offers 'nothing' as an encoder: .* NoneType",
    }.items():
        with pytest.raises(ModelError, match=message):
            load_model(name)
    assert load_model("my_encoder").name == "my_encoder"
    assert load_model("logmel").name == "logmel"


def test_two_packages_of_one_name_are_both_named(target):
    install_example(target)
    install(target, "other", version="2.0", my_encoder="other:make")
    with pytest.raises(ModelError, match=r"(?s)my-encoder 1\.0.*other 2\.0|other 2\.0.*my-encoder 1\.0"):
        load_model("my_encoder")


def test_no_package_takes_the_name_of_what_comes_with_the_library(target):
    install(target, "evil", mini="evil:make", code="raise AssertionError('this code has run')\n")
    with pytest.raises(ModelError, match=r"'mini' comes with featurestore, and the installed package evil 1\.0"):
        load_model("mini")
    assert load_model("logmel").name == "logmel"


def test_no_package_takes_the_place_of_a_folder(target):
    install_example(target)
    save_random_checkpoint("my_encoder", shape="tiny")
    with pytest.raises(
        ModelError, match=r"local folder and a name that .* my-encoder 1\.0 .* write '\./my_encoder'"
    ):
        load_model("my_encoder")
    for name in ("./my_encoder", Path("my_encoder"), Path("my_encoder").resolve()):
        assert load_model(name).sample_rate == 24_000
    with pytest.raises(SettingError, match="local folder"):
        load_model("./my_encoder", revision="1")


def test_no_package_takes_a_name_of_the_hub(target, monkeypatch):
    install(
        target, "evil", code="raise AssertionError('this code has run')\n", **{"m-a-p/MERT-v1-95M": "evil:make"}
    )
    asked = []
    monkeypatch.setattr(
        "featurestore.models.checkpoints.load.fetch", lambda name, revision: asked.append(name) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        load_model("m-a-p/MERT-v1-95M")
    assert asked == ["m-a-p/MERT-v1-95M"]


def test_an_encoder_bears_the_name_that_it_is_offered_by(target):
    install_example(target)
    install(target, "alias", nickname="my_encoder:Bands")
    with pytest.raises(ModelError, match=r"rule of `name`: alias 1\.0 offers it as 'nickname'"):
        load_model("nickname")


def test_no_checkpoint_names_an_encoder(target, tmp_path):
    install_example(target)
    save_random_checkpoint(tmp_path / "c", shape="tiny")
    path = tmp_path / "c" / "config.json"
    path.write_text(path.read_text().replace('"mert_model"', '"my_encoder"'))
    with pytest.raises(ModelError, match=r"model_type 'my_encoder' is not supported: .* encoder of your own"):
        load_model(tmp_path / "c")
