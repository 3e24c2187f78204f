"""What `fs-extract doctor` finds out about the machine."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty, SimpleQueue

from featurestore.mounts import describe_mount, mount_of

_EXTRAS = {
    "numpy": None,
    "torch": "extract",
    "transformers": "extract",
    "huggingface_hub": "extract",
    "safetensors": "extract",
    "av": "extract",
    "zarr": "xarray",
    "xarray": "xarray",
    "dask": "xarray",
    "h5py": "hdf5",
    "pyarrow": "parquet",
    "scikit-learn": "labels",
}
_FEW_FILES = 1000
_HUB_TIMEOUT = 3.0  # seconds
_HUB = "https://huggingface.co"
_NO_HUB = "does not answer ({}); a model in a local folder needs no hub"


@dataclass(frozen=True)
class Check:
    """Something that was looked at: whether it is as it should be (`ok`), None where both is fine."""

    topic: str
    name: str
    ok: bool | None
    detail: str


def versions() -> Iterator[Check]:
    """Python, the system and the packages."""
    yield Check("versions", "python", True, f"{platform.python_version()} on {platform.platform()}")
    for package in ("featurestore", *_EXTRAS):
        try:
            yield Check("versions", package, True, version(package))
        except PackageNotFoundError:
            extra = _EXTRAS.get(package)
            wanted = f"pip install 'featurestore[{extra}]'" if extra != package else f"pip install {package}"
            ok = False if extra is None else None
            yield Check("versions", package, ok, f"not installed; optional: {wanted}" if extra else "missing")
    try:
        import av
    except (ImportError, OSError) as error:
        yield Check("versions", "FFmpeg", None, f"does not load: {error}")
    else:
        yield Check("versions", "FFmpeg", True, f"{av.ffmpeg_version_info}, of the package av")


def devices() -> Iterator[Check]:
    """The devices on which a model can run, with their memory."""
    memory = ""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    yield Check("devices", "cpu", True, f"{os.cpu_count()} cores{memory}")
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("devices", "cuda, mps", None, f"torch does not load: {error}")
        return
    yield _precision()
    yield from _cards()
    there = torch.backends.mps.is_available()
    yield Check("devices", "mps", True if there else None, "there" if there else "none")


def _precision() -> Check:
    """Which precision is the faster one on the CPU."""
    from featurestore.encode.device import WORTHWHILE
    from featurestore.models.kernels.products import bf16_gain, bf16_products

    name = "precision on cpu"
    if (products := bf16_products()) is None:
        return Check("devices", name, None, "no bf16 products: `precision` fp32")
    gain = bf16_gain()
    is_worth = gain >= WORTHWHILE
    best = "bf16 is faster for MERT" if is_worth else "fp32 is the better one"
    return Check(
        "devices", name, is_worth or None, f"{products}, at {gain:.1f} times the speed of fp32: `precision` {best}"
    )


def _cards() -> Iterator[Check]:
    """Whether CUDA finds cards that this torch can use, or why not."""
    import torch

    from featurestore.encode.card import no_cards_because
    from featurestore.encode.device import existing_devices

    names = [name for name in existing_devices() if name.startswith("cuda")]
    if not names:
        reason = no_cards_because()
        yield Check("devices", "cuda", None, f"none: {reason}" if reason else "none")
    for name in names:
        try:
            card = torch.cuda.get_device_properties(name)
            free, total = torch.cuda.mem_get_info(name)
        except RuntimeError as error:
            yield Check("devices", name, False, f"cannot be used: {str(error).splitlines()[0]}")
            continue
        # As torch.cuda asks for it; there is no public way.
        driver = getattr(torch._C, "_cuda_getDriverVersion", int)()
        detail = (
            f"{card.name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, "
            f"capability {card.major}.{card.minor}, "
            f"CUDA {torch.version.cuda} of torch, {driver // 1000}.{driver % 1000 // 10} of the driver"
        )
        yield Check("devices", name, True, detail)


def hub() -> Iterator[Check]:
    """Whether the model hub answers, within seconds; building from a local folder needs no hub."""
    address = os.environ.get("HF_ENDPOINT", _HUB)
    answers: SimpleQueue[Check] = SimpleQueue()
    # In a thread, since the timeout of a request does not count the time of looking up the address.
    threading.Thread(target=lambda: answers.put(_ask(address)), daemon=True).start()
    try:
        yield answers.get(timeout=2 * _HUB_TIMEOUT)
    except Empty:
        yield Check("hub", address, None, _NO_HUB.format("no answer in time"))


def _ask(address: str) -> Check:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_HUB_TIMEOUT):
            return Check("hub", address, True, "answers")
    except (OSError, ValueError) as error:
        return Check("hub", address, None, _NO_HUB.format(getattr(error, "reason", error)))


def folder(path: Path) -> Iterator[Check]:
    """What the file system of a folder can do, tried in a folder of its own that is removed afterwards."""
    from featurestore.store.reading import free_files

    while not path.is_dir():
        path = path.parent
    topic = f"file system of {path}"
    yield Check(topic, "free space", True, f"{shutil.disk_usage(path).free / 1e9:.1f} GB")
    if (mount := mount_of(path)) is not None:
        yield Check(topic, "type", *describe_mount(mount))
    left = free_files(path)
    if left is not None:
        few = left < _FEW_FILES
        yield Check(topic, "free files", not few, f"{left:,} (df -i)" + "; a track takes up to 9" * few)
    try:
        place = tempfile.mkdtemp(prefix=".featurestore-doctor-", dir=path)
    except OSError as error:
        yield Check(topic, "writing", False, f"{error.strerror}: a store here can only be read")
        return
    try:
        for name, attempt, needed, without in _ABILITIES:
            try:
                attempt(Path(place, name.replace(" ", "-")))
            except (OSError, NotImplementedError) as error:
                ok = False if needed else None
                yield Check(topic, name, ok, f"no ({getattr(error, 'strerror', None) or error}): {without}")
            else:
                yield Check(topic, name, True, "yes")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _folder(path: Path) -> Path:
    path.mkdir()
    Path(path, "file").write_bytes(path.name.encode())
    return path


def _rename(place: Path) -> None:
    _folder(place).rename(place.with_suffix(".renamed"))


def _replace(place: Path) -> None:
    """As a track, and the table of all, is replaced: again and again, by folders with content."""
    from featurestore.store.fallbacks import replace_dir

    _folder(place)
    for name in ("first", "second"):
        new = _folder(place.with_suffix(f".{name}"))
        replace_dir(new, place, place.with_suffix(f".old-{name}"))
        if Path(place, "file").read_bytes() != new.name.encode():
            raise NotImplementedError("the new content is not there")


def _fsync(place: Path) -> None:
    place.mkdir()
    for opened in (
        os.open(place / "file", os.O_CREAT | os.O_RDWR),
        os.open(place, os.O_RDONLY),
    ):
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _hard_link(place: Path) -> None:
    place.write_bytes(b"x")
    os.link(place, place.with_suffix(".link"))


def _lock(place: Path) -> None:
    from featurestore.store.commit.flock import is_seen_by_others, lock_file, unlock

    held = lock_file(place)
    if held is None:
        raise NotImplementedError("a new file is locked")
    try:
        if not is_seen_by_others(held):
            raise NotImplementedError("no flock")
        if (second := lock_file(place)) is not None:
            unlock(second)
            raise NotImplementedError("a second lock was given")
    finally:
        unlock(held)


def _exchange(place: Path) -> None:
    from featurestore.store.filesystem import exchange

    if not exchange(_folder(place), _folder(place.with_suffix(".other"))):
        raise NotImplementedError("not on this file system")


_ABILITIES: tuple[tuple[str, Callable[[Path], None], bool, str], ...] = (
    ("rename", _rename, True, "no store can be written here"),
    ("replacing", _replace, True, "no track can be replaced and no table packed here"),
    ("fsync", _fsync, False, "a loss of power may lose tracks"),
    ("locks", _lock, False, "one process at a time can write here, and others are refused"),
    ("hard links", _hard_link, False, "packing copies instead"),
    ("RENAME_EXCHANGE", _exchange, False, "readers may have to look twice while a track is replaced"),
)
