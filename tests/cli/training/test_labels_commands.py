"""fs-extract manifest and labels: from a folder of audio to files for training."""

import signal

import pytest
from threadpoolctl import threadpool_limits

from featurestore.training.labels import read_labels


@pytest.fixture(autouse=True, scope="module")
def one_thread_of_k_means():
    with threadpool_limits(1):
        yield


@pytest.fixture
def labelled(run, music, tmp_path):
    """Manifests in tmp_path/data, and a store of the spectra of the music."""
    assert run("manifest", music, tmp_path / "data", "--valid", 0.3).code == 0
    settings = ("--model", "logmel", "--segment-duration", 1, "--feature-level", "all")
    assert run("build", music, tmp_path / "s.zarr", *settings).code == 0
    return tmp_path / "data"


@pytest.mark.slow
def test_from_audio_to_labels(run, labelled, tmp_path):
    store = tmp_path / "s.zarr"
    result = run("labels", store, labelled, "--layer", 0, "--clusters", 5)
    assert result.code == 0
    assert "5 clusters of layer 0" in result.out
    assert "train.km, 89 of 1 files in valid.km" in result.out
    again = tmp_path / "again"
    fit = labelled / "fit.km.npz"
    result = run("labels", store, again, "--manifest", labelled, "--fit", fit, "--name", "mel", "--json")
    assert result.code == 0
    assert (result.json["name"], result.json["files"], result.json["clusters"]) == (
        "mel",
        {"train": 2, "valid": 1},
        5,
    )
    assert (again / "train.mel").read_bytes() == (labelled / "train.km").read_bytes()
    assert [len(x) for x in read_labels(labelled, "train", "km")] == [89, 89]
    result = run("labels", store, again, "--manifest", labelled, "--fit", fit, "--clusters", 7, "--seed", 1)
    assert result.code == 2
    assert "--clusters, --seed mean nothing" in result.err


@pytest.mark.slow
def test_a_manifest_is_built_from(run, labelled, tmp_path):
    store = tmp_path / "t.zarr"
    settings = ("--model", "logmel", "--layers", 0, "--feature-level", "all")
    for split in ("train", "valid"):
        assert run("build", labelled / f"{split}.tsv", store, *settings).code == 0
    assert run("labels", store, labelled, "--layer", 0, "--clusters", 3).code == 0


@pytest.mark.slow
def test_settings_come_from_the_environment(run, labelled, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_LAYER", "2")
    monkeypatch.setenv("FEATURESTORE_CLUSTERS", "4")
    # The batch size of a build is not that of k-means.
    monkeypatch.setenv("FEATURESTORE_BATCH_SIZE", "2")
    result = run("labels", tmp_path / "s.zarr", labelled, "--json")
    assert (result.code, result.json["layer"], result.json["clusters"]) == (0, 2, 4)


def test_a_manifest_tells_what_it_holds(run, music, tmp_path):
    result = run("manifest", music, tmp_path / "data", "--json", "--relative-root")
    assert result.code == 0
    assert result.json | {"hours": 0} == {
        "out": str(tmp_path / "data"),
        "train": 2,
        "valid": 1,
        "hours": 0,
        "sample_rates": {"24000": 3},
        "failed": 0,
        "errors": [],
    }
    assert (tmp_path / "data" / "train.tsv").read_text().startswith("../music\n")


def test_files_that_are_left_out_are_named_and_the_exit_code_says_so(run, music, tmp_path):
    (music / "b\x07ad.wav").write_bytes(b"no audio")
    result = run("manifest", music, tmp_path / "data")
    assert result.code == 1
    assert "left out   1 files" in result.out
    assert r"error: b\x07ad.wav: " in result.err
    assert "\x07" not in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["manifest", "{music}/nothing", "{tmp}/data"], "is not a folder"),
        (["manifest", "{music}", "{tmp}/data", "--valid", "1"], "'--valid'"),
        (["labels", "{tmp}/none.zarr", "{tmp}/data", "--layer", "7"], "none.zarr"),
        (["labels", "{tmp}/small.zarr", "{tmp}", "--layer", "7"], "no train.tsv"),
        (["labels", "{tmp}/small.zarr", "{tmp}"], "layer must be given"),
        (["labels", "{tmp}/small.zarr", "{tmp}", "--fit", "{tmp}/no.npz"], "No such file"),
    ],
)
def test_wrong_usage_ends_with_2_and_writes_nothing(run, music, small_store, tmp_path, arguments, message):
    before = sorted(tmp_path.rglob("*"))
    result = run(*(x.format(music=music, tmp=tmp_path) for x in arguments))
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(labelled, start, tmp_path):
    passes = ["--fit-passes", 1_000_000]
    process = start("labels", tmp_path / "s.zarr", labelled, "--layer", 0, "--clusters", 5, *passes, "-v")
    assert "pass 1 of 1000000" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert sorted(x.name for x in labelled.iterdir()) == ["train.tsv", "valid.tsv"]
