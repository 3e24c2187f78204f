"""Disks that fail, fill up or become read-only: a clear error, nothing half published, nothing lost."""

import pytest

from . import worker
from .conditions import STORE
from .mounts import NotPermittedError
from .operations import OPERATIONS
from .profiles import NIGHTLY, QUICK, TYPICAL, explorations

NAMES = OPERATIONS if NIGHTLY else [*TYPICAL, "new track, two threads"]


@pytest.mark.parametrize("operation", explorations("interruptions.fail", NAMES))
def test_an_input_output_error_at_every_step(operation, findings):
    pass


@pytest.mark.parametrize("operation", explorations("interruptions.read_only", NAMES, sample=QUICK))
def test_a_file_system_that_becomes_read_only_at_every_step(operation, findings):
    pass


@pytest.mark.parametrize("operation", explorations("interruptions.fill_up", NAMES, sample=QUICK))
def test_a_disk_that_is_full_from_every_step_on(operation, findings):
    pass


def on_small_disk(quick, function, *args, **options):
    try:
        return quick.submit(worker.call, f"small_disk.{function}", *args, **options).result()
    except NotPermittedError as error:
        pytest.skip(f"nothing can be mounted here: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("of", ["bytes", "names"])
@pytest.mark.parametrize(
    ("change", "new"), [("put", False), ("append", False), ("pack", False), ("put", True), ("append", True)]
)
def test_a_real_disk_with_ever_more_room(change, new, of, quick):
    told = on_small_disk(quick, "fill_up", change, of=of, new=new)
    assert len(told) >= 3
    assert all("store.zarr: the disk is full" in message and "run again" in message for message in told)


@pytest.mark.slow
def test_a_store_is_made_on_a_full_disk_or_not_at_all(quick):
    told = on_small_disk(quick, "create_on_full_disk")
    assert len(told) >= 10
    assert all("the disk is full" in message for message in told)


@pytest.mark.slow
def test_a_read_only_disk_can_be_read(quick):
    told = on_small_disk(quick, "read_only")
    assert len(told) == 6
    assert all("mounted read-only" in message for message in told)
    assert sum(STORE in message for message in told) == 5
