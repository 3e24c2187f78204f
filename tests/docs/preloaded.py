"""`fs-extract` for pages: each command is a fork of one process that has imported before what takes seconds.

It is a process like any other, with arguments, a folder, an environment, streams and an exit code of its own.
"""

import contextlib
import gc
import importlib
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import warnings

MODULES = ("torch", "featurestore.pipeline.building", "featurestore.encode.window_encoder", "fs_extract.commands")


class Preloaded:
    """The process that forks; to be closed."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="preloaded-")
        self._address = os.path.join(self._folder.name, "socket")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self._address)
            listening.listen()
            command = [sys.executable, "-W", "error", __file__, "serve", str(listening.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[listening.fileno()])

    @property
    def command(self):
        """What begins a line of a shell, and arguments follow."""
        return shlex.join([sys.executable, "-I", "-S", __file__, "ask", self._address])

    def close(self):
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


def ask(address, arguments):
    """Have a command run with the streams, the folder and the environment of this process; its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"\0"], [0, 1, 2])
        connection.sendall(json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode())
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1)[0]


def serve(listening):
    """Fork for each command that is asked for, and run it in the fork."""
    for module in MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that no collection in a fork touches, and copies, all that is there
    with listening:
        while True:
            connection, _ = listening.accept()
            if not fork():
                break
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
    with connection:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as request:
            arguments, folder, environment = json.load(request)
        if command := fork():
            code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
            connection.sendall(bytes([code if code >= 0 else 128 - code]))
            os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # Those of before know whether theirs was a file or a pipe.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(x, mode, closefd=False) for x, mode in enumerate("rww"))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    from fs_extract.commands import run

    code = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an interpreter that ends in order touches all of torch, which takes longer than most commands


def fork():
    """Fork, and think no more of the threads of libraries, which wait for work."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
    serve(socket.socket(fileno=int(sys.argv[2])))
