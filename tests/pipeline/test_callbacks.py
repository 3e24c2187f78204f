"""Callbacks follow a build, and cannot stop it; MLflow is one of them."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from featurestore import build
from featurestore.errors import MissingDependencyError, SpecMismatchError
from featurestore.pipeline import BuildCallback, MLflowCallback

LOGMEL = {"model": "logmel", "feature_level": "aggregated", "segment_duration": 1.0}


class Recorder(BuildCallback):
    def __init__(self):
        self.calls = []

    def begin(self, settings):
        self.calls.append(("begin", settings["model"]))

    def progress(self, progress):
        if ("progress", progress.stage) not in self.calls:
            self.calls.append(("progress", progress.stage))

    def track(self, done):
        self.calls.append((done.outcome, done.track.track_id))

    def end(self, report):
        self.calls.append(("end", report))


@pytest.mark.slow
def test_a_callback_follows_the_build(music, tmp_path):
    (music / "a" / "broken.wav").write_bytes(b"no audio")
    callback = Recorder()
    report = build(music, tmp_path / "s.zarr", callbacks=[callback], **LOGMEL)
    assert callback.calls[0] == ("begin", "logmel")
    assert callback.calls[-1] == ("end", report)
    tracks = [call for call in callback.calls if call[0] in ("processed", "failed")]
    assert tracks[0] == ("failed", "a/broken")
    assert sorted(tracks[1:]) == [("processed", name) for name in ("a/one", "a/two", "b/one", "b/three")]
    stages = [stage for name, stage in callback.calls if name == "progress"]
    assert stages == ["looking for audio", "opening the model", "checking", "extracting", "packing", "done"]


@pytest.mark.slow
def test_a_build_that_is_refused_ends_without_a_report(music, tmp_path):
    build(music, tmp_path / "s.zarr", **LOGMEL)
    callback = Recorder()
    with pytest.raises(SpecMismatchError):
        build(music, tmp_path / "s.zarr", callbacks=[callback], **{**LOGMEL, "segment_duration": 1.5})
    assert callback.calls[-1] == ("end", None)


@pytest.mark.slow
def test_errors_of_callbacks_are_told_once_and_stop_nothing(music, tmp_path, caplog):
    class Failing(BuildCallback):
        def track(self, done):
            raise OSError("the server is gone")

    recorder, seen = Recorder(), []
    callbacks = [Failing(), recorder]
    report = build(music, tmp_path / "s.zarr", callbacks=callbacks, progress=seen.append, **LOGMEL)
    assert report.processed == 4
    assert recorder.calls[-1] == ("end", report)
    assert seen[-1].stage == "done"
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["Failing.track failed, and the build goes on: the server is gone"]


@pytest.fixture
def runs(monkeypatch):
    """Stands in for MLflow, where that is not installed: what a client was told."""
    told = {}

    class Client:
        def __init__(self, tracking_uri):
            told["uri"] = tracking_uri

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            told["experiment"] = name
            return "1"

        def create_run(self, experiment_id, run_name):
            told["name"] = run_name
            return SimpleNamespace(info=SimpleNamespace(run_id="r"))

        def log_batch(self, run_id, metrics=(), params=()):
            told.setdefault("params", {}).update(params)
            told["metrics"] = dict(metrics)

        def set_terminated(self, run_id, status):
            told["status"] = status

    entities = SimpleNamespace(Param=lambda *pair: pair, Metric=lambda name, value, at, step: (name, value))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Client, entities=entities))
    return told


@pytest.mark.slow
def test_mlflow_is_told_settings_and_counts(music, tmp_path, runs):
    build(music, tmp_path / "s.zarr", limit=3, callbacks=[MLflowCallback("http://host:5000")], **LOGMEL)
    assert (runs["uri"], runs["experiment"], runs["name"]) == ("http://host:5000", "feature_extraction", "s.zarr")
    assert runs["params"] | {"model": "logmel", "limit": "3", "device_used": "cpu"} == runs["params"]
    assert not {"callbacks", "progress", "extractor", "overlap"} & runs["params"].keys()
    assert runs["metrics"] | {"total_files": 3.0, "processed": 3.0, "failed": 0.0} == runs["metrics"]
    assert runs["metrics"]["elapsed_time"] > 0
    assert runs["status"] == "FINISHED"


@pytest.mark.slow
def test_mlflow_hears_of_a_build_that_is_refused(music, tmp_path, runs):
    build(music, tmp_path / "s.zarr", **LOGMEL)
    with pytest.raises(SpecMismatchError):
        build(music, tmp_path / "s.zarr", callbacks=[MLflowCallback()], **{**LOGMEL, "segment_duration": 1.5})
    assert runs["status"] == "FAILED"


def test_without_mlflow_the_build_does_not_begin(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependencyError, match=r"featurestore\[mlflow\]"):
        MLflowCallback()


@pytest.mark.slow
def test_mlflow_is_imported_for_its_callback_only():
    command = "import sys, featurestore.pipeline; print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy
def test_a_run_of_mlflow_itself(music, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    report = build(music, "s.zarr", callbacks=[MLflowCallback()], **LOGMEL)
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name("feature_extraction").experiment_id
    (run,) = client.search_runs([found])
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "logmel"
    assert run.data.params["fingerprint"] == report.fingerprint
    assert run.data.metrics["processed"] == 4
    assert client.list_artifacts(run.info.run_id) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "music", "s.zarr"]
