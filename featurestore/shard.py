"""Parts of a source that tasks of a job share out among themselves, without a word between them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from featurestore.errors import SettingError

_ARRAY = "SLURM_ARRAY_TASK_"


@dataclass(frozen=True)
class Shard:
    """One of several parts of about equal size, which are the same on all machines and in all releases.

    A track belongs to part ``1 + hash % count``; the hash is the number that the first 8 bytes of the SHA-256 of
    its id (UTF-8) are, the most significant first.

    Attributes
    ----------
    number : int
        Which part, from 1 on.
    count : int
        Of how many.

    Examples
    --------
    >>> [Shard(number, 3).holds("rock/song") for number in (1, 2, 3)]
    [True, False, False]
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """Read "2/8", or, if the text is "auto", which task of a job array of Slurm this process is.

        Raises
        ------
        SettingError
            If it is neither, or this is no task of a job array.
        """
        if text == "auto":
            return cls._of_array(environment)
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise SettingError(
                f"`shard` is I/N with I from 1 to N, such as `shard='1/8'`, or auto in a job array; not {text!r}"
            )
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def _of_array(cls, environment: Mapping[str, str]) -> Shard:
        values = {name: environment.get(_ARRAY + name, "") for name in ("ID", "COUNT", "MIN", "STEP")}
        if not values["ID"].isdecimal() or not values["COUNT"].isdecimal():
            raise SettingError(
                f"`shard='auto'` needs a job array of Slurm, and {_ARRAY}ID and {_ARRAY}COUNT are not set here: "
                "give the part, such as `shard='1/8'`"
            )
        task, count = int(values["ID"]), int(values["COUNT"])
        position, rest = divmod(task - int(values["MIN"] or 0), int(values["STEP"] or 1))
        if rest or not 0 <= position < count:
            raise SettingError(
                f"`shard='auto'` needs a job array whose tasks are a range, such as 0-7 or 0-14:2, and task {task}"
                f" is none of {count} in a row: give the part, such as `shard='1/{count}'`"
            )
        return cls(position + 1, count)

    def holds(self, track_id: str) -> bool:
        """Tell whether a track belongs to this part."""
        digest = hashlib.sha256(track_id.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
