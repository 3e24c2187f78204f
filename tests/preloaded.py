"""Python that begins at once: each process is a fork of one that has imported before what takes seconds.

It is a process like any other: its id, arguments, folder, environment, streams and exit code are its own.
What a test says of what is imported, or of how a process begins, needs one that has begun afresh.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings

MODULES = ("torch", "featurestore.pipeline.building", "featurestore.encode.window_encoder", "fs_extract.commands")


@contextlib.contextmanager
def serving():
    """A process that forks, and its address."""
    with tempfile.TemporaryDirectory(prefix="preloaded-") as folder:
        address = os.path.join(folder, "socket")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(address)
            listening.listen(128)
            command = [sys.executable, "-W", "error", __file__, "serve", str(listening.fileno())]
            process = subprocess.Popen(command, pass_fds=[listening.fileno()])
        try:
            yield address
        finally:
            process.terminate()
            process.wait()


class Preloaded:
    """What begins processes, by the process that forks at an address."""

    def __init__(self, address):
        self._address = address

    @property
    def command(self):
        """`fs-extract` for a shell: what begins a line, and arguments follow."""
        return shlex.join([sys.executable, "-I", "-S", __file__, "ask", self._address, "-m", "fs_extract"])

    def start(self, arguments, *, stdin=None, stdout=None, stderr=None, env=None):
        """Begin a process: what follows `python` (`-m fs_extract ...` or `-c code ...`), streams as of Popen."""
        return Started(self._address, [str(x) for x in arguments], (stdin, stdout, stderr), env)

    def load(self, *modules):
        """Have more imported, for those that begin from now on."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._address)
            connection.sendall(b"\1" + json.dumps(modules).encode())
            connection.shutdown(socket.SHUT_WR)
            number_of(connection)


class Started:
    """A process that was begun, as `subprocess.Popen` has it; texts, not bytes."""

    def __init__(self, address, arguments, streams, environment):
        self.returncode, theirs, ours = None, [], []
        for number, stream in enumerate(streams):
            if stream == subprocess.PIPE and number:
                reading, writing = os.pipe()
                theirs.append(writing)
                ours.append(os.fdopen(reading))
            else:
                given = number if stream is None else getattr(stream, "fileno", lambda stream=stream: stream)()
                theirs.append(os.open(os.devnull, os.O_RDWR) if given == subprocess.DEVNULL else os.dup(given))
                ours.append(None)
        _, self.stdout, self.stderr = ours
        self._connection = socket.socket(socket.AF_UNIX)
        self.pid = begin(self._connection, address, arguments, theirs, environment or os.environ)
        for stream in theirs:
            os.close(stream)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()

    def poll(self):
        """The exit code, or None while it is at work."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout=None):
        """Wait for its end; the exit code, negative of a signal."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = number_of(self._connection)
            self._connection.close()
        return self.returncode

    def communicate(self, timeout=None):
        """What it writes to its streams until its end."""
        told = {}
        reading = [
            threading.Thread(target=lambda stream=stream: told.setdefault(stream, stream.read()), daemon=True)
            for stream in (self.stdout, self.stderr)
            if stream and not stream.closed
        ]
        for thread in reading:
            thread.start()
        self.wait(timeout)
        for thread in reading:
            thread.join()
        for stream in told:
            stream.close()
        return told.get(self.stdout), told.get(self.stderr)

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def begin(connection, address, arguments, streams, environment):
    """Have a process begun with the folder of this one; its id."""
    connection.connect(address)
    socket.send_fds(connection, [b"\0"], list(streams))
    connection.sendall(json.dumps([arguments, os.getcwd(), dict(environment)]).encode())
    connection.shutdown(socket.SHUT_WR)
    return number_of(connection)


def number_of(connection):
    """The next number that the process that forks says."""
    content = connection.recv(4, socket.MSG_WAITALL)
    assert len(content) == 4, "the process that forks has ended"
    return int.from_bytes(content, "little", signed=True)


def ask(address, arguments):
    """Have a process run with the streams, the folder and the environment of this one; its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        begin(connection, address, arguments, [0, 1, 2], os.environ)
        code = number_of(connection)
        return code if code >= 0 else 128 - code


def serve(listening):
    """Fork for each process that is asked for, and run it in the fork."""
    load(MODULES)
    with listening:
        while True:
            connection, _ = listening.accept()
            if connection.recv(1, socket.MSG_PEEK) == b"\1":
                with connection, connection.makefile("rb") as request:
                    load(json.loads(request.read()[1:]))
                    connection.sendall(bytes(4))
                continue
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
        if process := fork():
            for stream in streams:
                os.close(stream)
            connection.sendall(process.to_bytes(4, "little"))
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            with contextlib.suppress(OSError):  # nobody waits for it
                connection.sendall(code.to_bytes(4, "little", signed=True))
            os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # Those of before know whether theirs was a file or a pipe.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(x, mode, closefd=False) for x, mode in enumerate("rww"))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # An interpreter that ends in order touches all of torch, which takes longer than most commands.
    os._exit(run(arguments))


def load(modules):
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that no collection in a fork touches, and copies, all that is there


def run(arguments):
    """Do what `python` does with these arguments; the exit code."""
    import multiprocessing.util
    import traceback
    import types

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell would ignore it
    atexit._clear()  # what torch would do touches as much
    atexit.register(multiprocessing.util._exit_function)
    kind, what, *rest = arguments
    sys.argv = [kind, *rest]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    try:
        if kind == "-m":
            importlib.import_module(f"{what}.__main__").main()
        else:
            exec(compile(what, "<string>", "exec"), vars(main))
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return code


def fork():
    """Fork, and think no more of the threads of libraries, which wait for work."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
    serve(socket.socket(fileno=int(sys.argv[2])))
