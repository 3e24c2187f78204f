"""Work as other users of one group, in forks of a process of root's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from faults.forking import in_child

from featurestore.errors import FeatureStoreError

ANN, BOB = 4001, 4002
GROUP = 5000
T = TypeVar("T")


def as_user(user: int, work: Callable[[], T], *, umask: int = 0o022, group: int = GROUP) -> T:
    """What `work()` gives, or the error of this library that it raises."""

    def inside(report: Callable[[object], None]) -> None:
        os.umask(umask)
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
        try:
            report((work(), None))
        except FeatureStoreError as error:
            report((None, error))

    ended = in_child(inside)
    assert not ended.error, ended.error
    assert not ended.signal
    ((value, error),) = ended.reports
    if error is not None:
        raise error
    return value
