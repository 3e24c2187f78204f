"""The system calls of a process, as the kernel sees them: ptrace.

What the tests interrupt are functions of Python. That these are all the changes that a process makes is shown by
comparing them with its system calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import sys
from collections.abc import Callable
from typing import Any

from .steps import CREATING

_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_SYSGOOD, _CLONES, _EXITKILL = 1, 8, 1 << 20
_THREADS_TOO = 1 << 30  # __WALL of waitpid
_ENTRY = 1
_REMOVEDIR = 0x200
_SHARED, _WRITABLE, _ANONYMOUS = 1, 2, 0x20

# Numbers of arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_NUMBERS = {
    "x86_64": {
        **{1: "write", 18: "pwrite", 20: "writev", 296: "pwritev", 328: "pwritev", 40: "sendfile", 275: "splice"},
        **{
            326: "copy_file_range",
            285: "fallocate",
            76: "truncate",
            77: "ftruncate",
            74: "fsync",
            75: "fdatasync",
        },
        **{162: "sync", 306: "sync", 82: "rename", 264: "rename", 316: "renameat2", 83: "mkdir", 258: "mkdir"},
        **{84: "rmdir", 87: "unlink", 263: "unlinkat", 86: "link", 265: "link", 88: "symlink", 266: "symlink"},
        **{
            133: "mknod",
            259: "mknod",
            90: "chmod",
            91: "chmod",
            268: "chmod",
            92: "chown",
            93: "chown",
            94: "chown",
        },
        **{260: "chown", 132: "utime", 235: "utime", 261: "utime", 280: "utime", 188: "setxattr", 189: "setxattr"},
        **{190: "setxattr", 197: "removexattr", 198: "removexattr", 199: "removexattr", 2: "open", 85: "creat"},
        **{257: "openat", 437: "openat2", 9: "mmap", 426: "io_uring", 206: "aio"},
    },
    "aarch64": {
        **{64: "write", 68: "pwrite", 66: "writev", 70: "pwritev", 287: "pwritev", 71: "sendfile", 76: "splice"},
        **{285: "copy_file_range", 47: "fallocate", 45: "truncate", 46: "ftruncate", 82: "fsync", 83: "fdatasync"},
        **{81: "sync", 267: "sync", 38: "rename", 276: "renameat2", 34: "mkdir", 35: "unlinkat", 37: "link"},
        **{36: "symlink", 33: "mknod", 52: "chmod", 53: "chmod", 54: "chown", 55: "chown", 88: "utime"},
        **{5: "setxattr", 6: "setxattr", 7: "setxattr", 14: "removexattr", 15: "removexattr", 16: "removexattr"},
        **{56: "openat", 437: "openat2", 222: "mmap", 426: "io_uring", 0: "aio"},
    },
}


class NotPermittedError(Exception):
    """Processes cannot be traced here."""


class _Info(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    )


def _ptrace(request: int, pid: int, address: int, data: Any) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    done: int = libc.ptrace(request, pid, address, data)
    if done < 0:
        number = ctypes.get_errno()
        if number in (errno.EPERM, errno.ENOSYS, errno.EIO):
            raise NotPermittedError(os.strerror(number))
        raise OSError(number, os.strerror(number))
    return done


def changing_calls(work: Callable[[], None]) -> list[str]:
    """Kinds of the system calls of `work`, run in a fork, that change what is on disk; as in `steps`.

    Those of all its threads, in the order in which they are made.

    Raises
    ------
    NotPermittedError
        If processes cannot be traced here.
    """
    if sys.platform != "linux" or platform.machine() not in _NUMBERS:
        raise NotPermittedError(f"no table of system calls for {sys.platform} on {platform.machine()}")
    names = _NUMBERS[platform.machine()]
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setpgid(0, 0)  # what is waited for below
            _ptrace(_TRACEME, 0, 0, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
        except NotPermittedError:
            code = 2
        finally:
            os._exit(code)
    found = []
    _, status = os.waitpid(pid, 0)
    if os.WIFSTOPPED(status):
        _ptrace(_SETOPTIONS, pid, 0, _SYSGOOD | _CLONES | _EXITKILL)
    info = _Info()
    thread = pid
    while thread != pid or os.WIFSTOPPED(status):
        if os.WIFSTOPPED(status):
            stopped = os.WSTOPSIG(status)
            if stopped == signal.SIGTRAP | 0x80:
                _ptrace(_GET_SYSCALL_INFO, thread, ctypes.sizeof(info), ctypes.byref(info))
                if info.op == _ENTRY and info.number in names:
                    found += _kind(names[info.number], list(info.args))
            ours = stopped in (signal.SIGTRAP | 0x80, signal.SIGTRAP, signal.SIGSTOP)
            _ptrace(_SYSCALL, thread, 0, 0 if ours else stopped)
        thread, status = os.waitpid(-pid, _THREADS_TOO)
    if os.WEXITSTATUS(status) == 2:
        raise NotPermittedError("the kernel refuses")
    assert status == 0, f"the traced process ended with {status}"
    return found


def _kind(name: str, args: list[int]) -> list[str]:
    if name in ("open", "openat"):
        return ["open"] if args[1 if name == "open" else 2] & CREATING else []
    if name == "unlinkat":
        return ["rmdir" if args[2] & _REMOVEDIR else "unlink"]
    if name == "renameat2":
        return ["exchange" if args[4] else "rename"]
    if name == "mmap":
        shared = args[3] & 0xF in (_SHARED, 3) and not args[3] & _ANONYMOUS
        return ["mmap"] if shared and args[2] & _WRITABLE else []
    return [name]
