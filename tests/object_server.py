"""S3 on loopback, by moto, in this process: it notes requests, and can be told to answer otherwise."""

import contextlib
import logging
import threading
import urllib.request

import obstore
from moto.server import DomainDispatcherApplication, create_backend_app
from obstore.store import from_url
from werkzeug.serving import WSGIRequestHandler, make_server

SECRET = "wJalrXUtnFEMI-this-is-a-secret"
BUCKET = "bucket"


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass


class ObjectServer:
    """An S3 server with one bucket.

    Attributes
    ----------
    requests : list of (method, path in the bucket, whether a PUT is conditional)
    answer : called with method and path before each request, may give a status to answer with
    lost : like `answer`, of a request that is carried out all the same
    unquoted : whether it compares tags without their quotes, as Ceph's gateway does
    """

    def __init__(self):
        self.requests = []
        self.answer = lambda method, path: None
        self.lost = lambda method, path: None
        self.unquoted = False
        self._app = DomainDispatcherApplication(create_backend_app)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = make_server("127.0.0.1", 0, self._handle, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.make_bucket(BUCKET)

    def _handle(self, environment, start_response):
        method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"].removeprefix(f"/{BUCKET}")[1:]
        conditional = "HTTP_IF_NONE_MATCH" in environment or "HTTP_IF_MATCH" in environment
        self.requests.append((method, path, conditional))
        status = self.answer(method, path)
        if self.unquoted and "HTTP_IF_MATCH" in environment:
            tag = environment["HTTP_IF_MATCH"]
            status = 412 if tag.startswith('"') else None
            environment["HTTP_IF_MATCH"] = f'"{tag}"'
        if status is not None:
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} told so", [("Content-Length", "0")])
            return [b""]
        status = self.lost(method, path)
        if status is None:
            return self._app(environment, start_response)
        b"".join(self._app(environment, lambda *_: None))
        start_response(f"{status} told so", [("Content-Length", "0")])
        return [b""]

    def make_bucket(self, name):
        with urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")):
            pass

    @property
    def environment(self):
        """Variables that a process needs to use it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, name):
        """An obstore of what is below a name in the bucket."""
        options = {"endpoint": self.endpoint, "access_key_id": "x", "secret_access_key": "y"}
        return from_url(f"s3://{BUCKET}/{name}", client_options={"allow_http": True}, **options)

    def upload(self, folder, name):
        """Copy the files of a folder as they are, as rclone does."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                obstore.put(self.client(name), path.relative_to(folder).as_posix(), path.read_bytes())

    def names(self, name):
        return sorted(entry["path"] for block in obstore.list(self.client(name)) for entry in block)

    @contextlib.contextmanager
    def counting(self):
        """The requests within a block."""
        begin = len(self.requests)
        found = []
        yield found
        found += self.requests[begin:]

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
