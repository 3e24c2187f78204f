"""The hub is asked for three files of one commit; without it, the cache and then a clear way out.

A real HTTP server plays the hub, and real processes ask it.
"""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from featurestore.errors import HubUnreachableError
from featurestore.models import load_model, save_random_checkpoint

NAME = "owner/mert-tiny"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}

ASK = """
import json, sys, time
from featurestore.errors import FeatureStoreError
from featurestore.models.checkpoints.hub import fetch
began = time.perf_counter()
try:
    found = fetch(sys.argv[1], revision=sys.argv[2] or None)
    answer = {"folder": str(found), "revision": found.name}
except FeatureStoreError as error:
    answer = {"error": type(error).__name__, "message": str(error)}
answer["seconds"] = time.perf_counter() - began
answer["torch"] = "torch" in sys.modules
print(json.dumps(answer))
"""


class Hub(BaseHTTPRequestHandler):
    """Enough of the hub's protocol: what a model is, and its files at a commit."""

    def do_GET(self):
        self.server.asked.append(self.path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.path.split("?")[0]):
            self.describe(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            self.give(*match.groups())
        else:
            self.answer(404)

    do_HEAD = do_GET  # noqa: N815

    def describe(self, name, revision):
        commit = COMMITS.get(revision or "main", revision)
        if self.server.status:
            self.answer(self.server.status)
        elif name == "owner/gated":
            self.answer(403, {"X-Error-Code": "GatedRepo"})
        elif name != NAME:
            self.answer(401, {"X-Error-Code": "RepoNotFound"})
        elif commit not in COMMITS.values():
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            files = [{"rfilename": path.name} for path in sorted(self.server.folder.iterdir())]
            body = {"id": NAME, "modelId": NAME, "sha": commit, "siblings": files, "tags": []}
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def give(self, name, revision, file):
        path = self.server.folder / file
        commit = {"X-Repo-Commit": COMMITS.get(revision, revision)}
        if name != NAME or not path.is_file():
            self.answer(404, {"X-Error-Code": "EntryNotFound", **commit})
        else:
            content = path.read_bytes()
            self.answer(200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', **commit}, content)

    def answer(self, status, headers=None, body=b""):
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.status = [], None
    server.folder = save_random_checkpoint(tmp_path / "on-the-hub", shape="tiny")
    (server.folder / "modeling_MERT.py").write_text("raise SystemExit")
    (server.folder / "pytorch_model.bin").write_bytes(b"the same in another format")
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ask(tmp_path):
    def run(name, revision="", *, endpoint, **environment):
        inherited = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "HUGGINGFACE"))}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", ASK, name, revision],
            env={
                **inherited,
                "HF_ENDPOINT": endpoint,
                "HF_HOME": str(tmp_path / "cache"),
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "NO_PROXY": "127.0.0.1",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # nothing of the hub library's warnings
        answer = json.loads(done.stdout)
        assert not answer["torch"]
        return answer

    return run


@pytest.fixture
def closed():
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def files(answer):
    return sorted(os.listdir(answer["folder"]))


@pytest.mark.slow
def test_three_files_of_one_commit(hub, ask):
    answer = ask(NAME, endpoint=hub.url)
    assert answer["revision"] == COMMITS["main"]
    assert files(answer) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert not [path for path in hub.asked if ".py" in path]
    assert load_model(answer["folder"]).layers == 3


@pytest.mark.slow
def test_the_cache_is_used_offline(hub, ask, closed):
    online = ask(NAME, endpoint=hub.url)
    for environment in ({"HF_HUB_OFFLINE": "1", "endpoint": hub.url}, {"endpoint": closed}):
        hub.asked.clear()
        offline = ask(NAME, **environment)
        assert (offline["folder"], offline["revision"]) == (online["folder"], online["revision"])
        assert hub.asked == []


@pytest.mark.slow
def test_a_commit_in_the_cache_needs_no_hub(hub, ask):
    answer = ask(NAME, "v1", endpoint=hub.url)
    assert answer["revision"] == COMMITS["v1"]
    hub.asked.clear()
    again = ask(NAME, COMMITS["v1"], endpoint=hub.url)
    assert again["folder"] == answer["folder"]
    assert hub.asked == []


@pytest.mark.slow
def test_a_hub_that_fails_leaves_the_cache(hub, ask):
    online = ask(NAME, endpoint=hub.url)
    hub.status = 503
    assert ask(NAME, endpoint=hub.url)["folder"] == online["folder"]


@pytest.mark.slow
def test_only_what_is_complete_in_the_cache_counts(hub, ask, closed):
    answer = ask(NAME, endpoint=hub.url)
    os.unlink(os.path.join(answer["folder"], "model.safetensors"))
    assert ask(NAME, endpoint=closed)["error"] == "HubUnreachableError"


@pytest.mark.slow
def test_a_pickle_only_where_there_is_nothing_else(hub, ask):
    (hub.folder / "model.safetensors").unlink()
    assert "pytorch_model.bin" in files(ask(NAME, endpoint=hub.url))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index_name", "names"),
    [
        ("model.safetensors.index.json", [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]),
        ("pytorch_model.bin.index.json", [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]),
    ],
)
def test_shards(hub, ask, index_name, names):
    (hub.folder / "model.safetensors").unlink()
    if index_name.startswith("pytorch"):
        (hub.folder / "pytorch_model.bin").unlink()
    for name in names:
        (hub.folder / name).write_bytes(name.encode())
    index = {"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}
    (hub.folder / index_name).write_text(json.dumps(index))
    assert set(names) <= set(files(ask(NAME, endpoint=hub.url)))
    index["weight_map"]["d"] = "../../etc/passwd"
    (hub.folder / index_name).write_text(json.dumps(index))
    assert ask(NAME, "v1", endpoint=hub.url)["error"] == "CheckpointError"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("owner/gone", "", "no model owner/gone on the hub"),
        ("owner/gated", "", "lets in"),
        (NAME, "v9", "no `revision` 'v9'"),
        ("owner/double--dash", "", "no name that the hub allows"),
    ],
)
def test_what_the_hub_does_not_have(hub, ask, name, revision, message):
    answer = ask(name, revision, endpoint=hub.url)
    assert answer["error"] == "ModelError"
    assert message in answer["message"]


def nest(folder):
    """The settings of the audio where a processor of transformers 5 saves them."""
    old = folder / "preprocessor_config.json"
    processor = {"feature_extractor": json.loads(old.read_text()), "processor_class": "Wav2Vec2Processor"}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    old.unlink()


@pytest.mark.slow
def test_the_settings_of_a_processor(hub, ask, closed):
    nest(hub.folder)
    online = ask(NAME, endpoint=hub.url)
    assert files(online) == ["config.json", "model.safetensors", "processor_config.json"]
    assert load_model(online["folder"]).do_normalize is True
    assert ask(NAME, endpoint=closed)["folder"] == online["folder"]


@pytest.mark.slow
def test_a_processor_without_settings_in_the_cache_is_not_complete(hub, ask):
    folder = ask(NAME, "v1", endpoint=hub.url)["folder"]
    os.unlink(os.path.join(folder, "preprocessor_config.json"))
    with open(os.path.join(folder, "processor_config.json"), "w") as file:
        file.write('{"processor_class": "Wav2Vec2Processor"}')
    assert "preprocessor_config.json" in files(ask(NAME, COMMITS["v1"], endpoint=hub.url))


@pytest.mark.slow
def test_a_model_without_weights(hub, ask):
    for name in ("model.safetensors", "pytorch_model.bin", "preprocessor_config.json"):
        (hub.folder / name).unlink()
    answer = ask(NAME, endpoint=hub.url)
    assert answer["error"] == "ModelError"
    assert "lacks preprocessor_config.json or processor_config.json, model.safetensors" in answer["message"]


@pytest.mark.slow
def test_muq_has_nothing_to_say_of_its_audio(hub, ask, closed, golden):
    hub.folder = golden / "muq"
    online = ask(NAME, endpoint=hub.url)
    assert files(online) == ["config.json", "model.safetensors"]
    assert load_model(online["folder"]).layers == 3
    assert ask(NAME, endpoint=closed)["folder"] == online["folder"]
    os.unlink(os.path.join(online["folder"], "model.safetensors"))
    assert ask(NAME, endpoint=closed)["error"] == "HubUnreachableError"


@pytest.mark.slow
def test_musicfm_is_statistics_and_weights(hub, ask, closed, golden, tmp_path):
    hub.folder = tmp_path / "musicfm"
    hub.folder.mkdir()
    names = [name for data in ("fma", "msd") for name in (f"{data}_stats.json", f"pretrained_{data}.pt")]
    for name in (*names, "README.md"):
        (hub.folder / name).write_bytes(name.encode())
    online = ask(NAME, endpoint=hub.url)
    assert files(online) == ["msd_stats.json", "pretrained_msd.pt"]
    assert ask(NAME, endpoint=closed)["folder"] == online["folder"]
    (hub.folder / "msd_stats.json").unlink()
    assert files(ask(NAME, "v1", endpoint=hub.url)) == ["fma_stats.json", "pretrained_fma.pt"]
    os.unlink(os.path.join(online["folder"], "pretrained_msd.pt"))
    assert ask(NAME, endpoint=closed)["error"] == "HubUnreachableError"
    (hub.folder / "fma_stats.json").unlink()
    answer = ask(NAME, endpoint=hub.url)
    assert (answer["error"], "lacks config.json" in answer["message"]) == ("ModelError", True)


def check_hint(answer, cache):
    assert answer["error"] == "HubUnreachableError"
    assert answer["seconds"] < 15
    for hint in ("`model='/path/to/folder'`", "config.json", "model.safetensors", str(cache)):
        assert hint in answer["message"]


@pytest.mark.slow
def test_a_hub_out_of_reach_names_the_way_out(ask, closed, tmp_path):
    check_hint(ask(NAME, endpoint=closed), tmp_path / "cache")
    check_hint(ask(NAME, endpoint="http://hub.invalid"), tmp_path / "cache")
    check_hint(ask(NAME, "v1", endpoint=closed, HF_HUB_OFFLINE="1"), tmp_path / "cache")


@pytest.mark.slow
def test_a_hub_that_never_answers(ask, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = ask(NAME, endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
    check_hint(answer, tmp_path / "cache")


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(hub, ask, tmp_path):
    if os.geteuid() == 0:
        home = "/proc/1/fdinfo/cache"  # where nobody, root included, can make a folder
    else:
        home = str(tmp_path / "locked" / "cache")
        (tmp_path / "locked").mkdir(mode=0o500)
    answer = ask(NAME, endpoint=hub.url, HF_HOME=home)
    assert answer["error"] in ("ModelError", "HubUnreachableError")
    assert home in answer["message"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m-a-p/MERT-v1-95M", "OpenMuQ/MuQ-large-msd-iter", "minzwon/MusicFM"])
def test_load_model_passes_it_on(monkeypatch, tmp_path, name):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.perf_counter()
    with pytest.raises(HubUnreachableError, match=rf"{name} .*`model='mini'` .*`model='logmel'`"):
        load_model(name)
    assert time.perf_counter() - began < 5
