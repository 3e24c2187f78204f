"""Hypothesis profiles, of HYPOTHESIS_PROFILE: `default` is quick, `ci` looks longer, `nightly` for hours.

`default` tries the same examples each time, so that chance does not judge a change; the others try new ones.

And a small model and comparisons that several rooms need; they import torch late, as tests of stores do without.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
from collections import Counter

os.environ["OMP_NUM_THREADS"] = "1"  # before torch counts the cores, which several processes share

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

quick = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", quick, derandomize=True)
settings.register_profile("ci", quick, max_examples=200)
settings.register_profile("nightly", quick, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Files that take longest, those that begin first: so no process is left alone with one at the end.
_LONGEST = (
    *("test_kill.py", "test_failing_disk.py", "test_power_loss.py", "test_pages.py", "test_processes.py"),
    *("test_dask_executor.py", "test_buckets_push.py", "test_build.py", "test_site.py", "test_transformers.py"),
    *("test_model.py", "test_corruption.py", "test_benchmarks.py", "test_one_file.py", "test_random_kills.py"),
    *("test_other_processes.py", "test_notebook.py", "test_bundle_memory.py", "test_walkthrough.py"),
)
_ALL_SLOW = re.compile(r"^pytestmark = (\[[^\]]*)?pytest\.mark\.slow", re.MULTILINE)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path, config):
    """Do not even import for `-m fast` what is slow as a whole, often because of what it imports."""
    if config.option.markexpr == "fast" and collection_path.suffix == ".py":
        return bool(_ALL_SLOW.search(collection_path.read_text(encoding="utf-8"))) or None
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Have all workers of xdist fork from one process."""
    if node.config.option.markexpr != "fast":
        if not hasattr(node.config, "_preloaded"):
            from preloaded import serving

            process = contextlib.ExitStack()
            node.config._preloaded = process.enter_context(serving())
            node.config.add_cleanup(process.close)
        node.workerinput["preloaded"] = node.config._preloaded


def pytest_collection_modifyitems(items):
    """Mark as fast what is not marked slow, and begin with the files that take longest, then have most tests."""
    for item in items:
        if not item.get_closest_marker("slow"):
            item.add_marker("fast")
    tests = Counter(item.path for item in items)
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.name, len(place)), -tests[item.path]))


@pytest.fixture(autouse=True)
def torch_has_as_many_threads_as_before():
    """What a test changes would slow down all that come after it in its process, many times on a busy machine."""
    before = "torch" in sys.modules and sys.modules["torch"].get_num_threads()
    yield
    if before:
        now = sys.modules["torch"].get_num_threads()
        sys.modules["torch"].set_num_threads(before)
        assert now == before


@pytest.fixture(scope="session")
def forked():
    """What multiprocessing begins as forks of one process, which has imported all that reads and writes stores."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["featurestore.facade", "featurestore.store.writer", "featurestore.pipeline.worker"]
    )
    return context


@pytest.fixture(scope="session")
def preloaded(request):
    """Begins Python, and `fs-extract`, with torch imported: where it does not matter how a process begins."""
    from preloaded import Preloaded, serving

    shared = getattr(request.config, "workerinput", {}).get("preloaded")
    with contextlib.nullcontext(shared) if shared else serving() as address:
        yield Preloaded(address)


@pytest.fixture(scope="session")
def object_server():
    """An S3 server on loopback."""
    from object_server import ObjectServer

    server = ObjectServer()
    yield server
    server.close()


@pytest.fixture
def s3(object_server, monkeypatch, tmp_path):
    """The same, in the environment of this process, and nothing of a user's own credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in object_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    object_server.answer = lambda method, path: None
    yield object_server
    object_server.answer = object_server.lost = lambda method, path: None
    object_server.unquoted = False


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a small checkpoint with the frames of MERT v1."""
    from featurestore.models import save_random_checkpoint

    return save_random_checkpoint(tmp_path_factory.mktemp("tiny"), shape="tiny")


@pytest.fixture(scope="session")
def model(tiny):
    from featurestore.models import load_model

    return load_model(tiny)


@pytest.fixture(scope="session")
def assert_states_close():
    """Hidden states (windows, layers, ...) that differ by at most 1e-5 of each state's largest value.

    That is what the library promises of one network computed in two ways, whatever the processor rounds.
    """

    def check(found, wanted):
        found, wanted = np.asarray(found), np.asarray(wanted)
        assert found.dtype == wanted.dtype == np.float32
        assert found.shape == wanted.shape
        for layer in range(wanted.shape[1]):
            error = np.abs(found[:, layer] - wanted[:, layer]).max() / np.abs(wanted[:, layer]).max()
            assert error <= 1e-5, f"state {layer}: {error:.1e}"

    return check


@pytest.fixture(scope="session")
def grouped_convolutions():
    """Context that notes the types that each grouped convolution is given, backward passes included."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __init__(self, seen):
            super().__init__()
            self._seen = seen

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            named = dict(zip((x.name for x in operation._schema.arguments), args, strict=False)) | (kwargs or {})
            if named.get("groups", 1) > 1:
                self._seen.append({x.dtype for x in named.values() if isinstance(x, Tensor)})
            return operation(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def watch():
        seen = []
        with Watch(seen):
            yield seen

    return watch
