"""A store in Azure's blob storage, as Azurite serves it (``npm install -g azurite``), Microsoft's own emulator."""

import base64
import hashlib
import hmac
import shutil
import subprocess
import time
import urllib.request
from email.utils import formatdate

import numpy as np
import pytest
from samples import SPEC, features, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import StoreAccessError
from featurestore.sharing.pull import pull

pytestmark = pytest.mark.slow

# Of the emulator; Microsoft's documentation shows them.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
ADDRESS = "http://127.0.0.1:10000"
OPTIONS = {"use_emulator": "true", "client_options": {"allow_http": True, "timeout": "20s"}}


def create_container(name):
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "\n".join(f"{key}:{value}" for key, value in headers.items())
    text = f"PUT{12 * chr(10)}{signed}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"}
    url = f"{ADDRESS}/{ACCOUNT}/{name}?restype=container"
    with urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)):
        pass


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite is not installed")
    folder = tmp_path_factory.mktemp("azurite")
    command = [program, "--silent", "--loose", "--skipApiVersionCheck", "--disableTelemetry", "--location", folder]
    with subprocess.Popen(command) as server:
        deadline = time.monotonic() + 60
        while True:
            try:
                create_container("music")
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield "az://music"
        server.terminate()


@pytest.mark.parametrize("sealed", [False, True])
def test_a_store_is_pushed_read_and_pulled(container, tmp_path, sealed):
    url = f"{container}/{sealed}"
    store = write_store(tmp_path / "s.zarr", {f"rock/{n} ü": features(n) for n in range(20)}, pack=True)
    store.pack(seal=sealed)
    assert store.push(url, storage_options=OPTIONS).copied == 20
    assert store.push(url, storage_options=OPTIONS).there == 20
    with StoreWriter(store.path, spec=SPEC) as writer:
        writer.put("new", features(77))
        writer.pack()
    assert store.push(url, storage_options=OPTIONS).copied == 1
    far = FeatureStore(url, storage_options=OPTIONS)
    assert sorted(far.track_ids) == sorted(store.track_ids)
    for track_id in store:
        assert np.array_equal(far.segments(track_id)[:], store.segments(track_id)[:])
    assert far.verify(deep=True).ok
    pull(url, tmp_path / "back.zarr", storage_options=OPTIONS)
    back = FeatureStore(tmp_path / "back.zarr")
    assert np.array_equal(back.aggregated(tracks=store.track_ids)[:], store.aggregated()[:])
    assert back.verify(deep=True).ok


def test_a_container_that_is_not_there_is_named(container):
    with pytest.raises(
        StoreAccessError, match=r"az://nowhere/s: there is no such bucket: .*AZURE_STORAGE_ACCOUNT_NAME"
    ):
        FeatureStore("az://nowhere/s", storage_options=OPTIONS)
