"""A store that lies on a web server, as plain files over https, is read if its table has all tracks."""

import http.server
import ipaddress
import ssl
import threading
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pytest
from samples import SPEC, features, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import NotAStoreError, SettingError, StoreAccessError

pytestmark = pytest.mark.slow
TRACKS = {f"t/{number}": features(number, segments=40, frames=64) for number in range(5)}


class WholeFiles(http.server.SimpleHTTPRequestHandler):
    """Python's own: it knows no ranges."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append(self.path)
        super().do_GET()


class Ranges(WholeFiles):
    """One that knows them, as every other server does."""

    def do_GET(self):
        begin, _, end = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not (begin or end):
            super().do_GET()
            return
        self.server.requests.append(self.path)
        try:
            with open(self.translate_path(self.path), "rb") as file:
                content = file.read()
        except OSError:
            self.send_error(404)
            return
        first = int(begin) if begin else max(0, len(content) - int(end))
        last = min(int(end), len(content) - 1) if begin and end else len(content) - 1
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Last-Modified", self.date_time_string(0))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate of 127.0.0.1 in one file, and the certificate of who signed it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.now(UTC)

    def sign(name, key, issuer, signer, *extensions):
        names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, x)]) for x in (issuer, name)]
        begin, end = now - timedelta(days=1), now + timedelta(days=1)
        found = x509.CertificateBuilder(*names, key.public_key(), x509.random_serial_number(), begin, end)
        for extension, critical in extensions:
            found = found.add_extension(extension, critical)
        signed = found.sign(signer, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = sign("root", authority, "root", authority, (x509.BasicConstraints(ca=True, path_length=0), True))
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(pem + sign("loopback", key, "root", authority, (alternative, False)))
    return path, root


@pytest.fixture
def serve(tmp_path, certificate):
    servers = []

    def begin(handler=Ranges, *, tls=True):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path))
        server.requests = []
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate[0])
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}", server

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def options(certificate):
    return {"client_options": {"root_certificate": certificate[1]}}


@pytest.mark.parametrize("handler", [Ranges, WholeFiles])
def test_a_packed_store_over_https(handler, serve, options, tmp_path):
    folder = write_store(tmp_path / "s.zarr", TRACKS, pack=True)
    address, server = serve(handler)
    store = FeatureStore(f"{address}/s.zarr", storage_options=options)
    assert store.track_ids == folder.track_ids
    np.testing.assert_array_equal(store.aggregated(layer=1).to_numpy(), folder.aggregated(layer=1).to_numpy())
    assert len(server.requests) <= 10
    np.testing.assert_array_equal(store.segments(layer=1).to_numpy(), folder.segments(layer=1).to_numpy())
    np.testing.assert_array_equal(store.raw("t/1", layer=1)[3:7], folder.raw("t/1", layer=1)[3:7])
    np.testing.assert_array_equal(store.raw("t/1").to_numpy(), folder.raw("t/1").to_numpy())
    assert store.provenance("t/1") == folder.provenance("t/1")
    assert "t/9" not in store
    assert store.verify(deep=True).ok


def test_a_store_without_a_whole_table_cannot_be_listed(serve, tmp_path):
    folder = write_store(tmp_path / "s.zarr", TRACKS)
    address, _ = serve(tls=False)
    with pytest.raises(
        StoreAccessError, match=r"no packed table, and a web server tells no tracks: `fs-extract pack`"
    ):
        FeatureStore(f"{address}/s.zarr").track_ids  # noqa: B018
    folder.pack()
    assert FeatureStore(f"{address}/s.zarr").track_ids == folder.track_ids


def test_a_table_that_lacks_damaged_tracks_is_no_whole_one(serve, tmp_path):
    folder = write_store(tmp_path / "s.zarr", TRACKS)
    (folder.path / "aggregated" / "t=2f3" / "zarr.json").write_text("{")
    with StoreWriter(folder.path, spec=SPEC, durable=False) as writer:
        writer.pack()
    address, _ = serve(tls=False)
    with pytest.raises(StoreAccessError, match=r"its table lacks tracks, and a web server tells none"):
        FeatureStore(f"{address}/s.zarr").track_ids  # noqa: B018


def test_there_is_none(serve, options, tmp_path):
    address, _ = serve()
    with pytest.raises(NotAStoreError, match="holds no feature store"):
        FeatureStore(f"{address}/s.zarr", storage_options=options)
    unknown = {"retry_config": {"max_retries": 0}}
    with pytest.raises(StoreAccessError, match="its certificate is not trusted"):
        FeatureStore(f"{address}/s.zarr", storage_options=unknown)


def test_nothing_is_pushed_to_one(serve, tmp_path):
    folder = write_store(tmp_path / "s.zarr", TRACKS)
    address, _ = serve(tls=False)
    with pytest.raises((StoreAccessError, SettingError), match="push to a bucket"):
        folder.push(f"{address}/other")
