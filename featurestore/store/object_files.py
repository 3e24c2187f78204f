"""Objects as the folders and files of a store."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featurestore.store.byte_source import ByteFolder
from featurestore.store.objects import ObjectSource


class ObjectFolder:
    """Objects below a path: a `ByteFolder`."""

    def __init__(self, source: ObjectSource, parts: tuple[str, ...]) -> None:
        self.source = source
        self.parts = parts

    def _path(self, *names: str) -> str:
        return "/".join((*self.parts, *names))

    def folder(self, *names: str) -> ObjectFolder:
        return ObjectFolder(self.source, (*self.parts, *names))

    def open(self, name: str, *, whole: bool = False) -> ObjectFile:
        return ObjectFile(self.source, self._path(name), whole=whole)

    def read(self, name: str, limit: int) -> bytes:
        return bytes(self.source.get(self._path(name), limit=limit))

    def has(self, name: str) -> bool:
        return self.source.exists(self._path(name))

    def is_still(self, name: str, above: ByteFolder) -> bool:  # noqa: ARG002
        return True

    def close(self) -> None:
        pass  # nothing is open

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ObjectFile:
    """An object: a `ByteFile`. Of one that is not read as a whole, its end is read first."""

    def __init__(self, source: ObjectSource, path: str, *, whole: bool) -> None:
        self._source = source
        self._path = path
        self._whole = whole
        self._expected = threading.local()  # what each thread has fetched: offsets, and parts

    @cached_property
    def _end(self) -> tuple[int, memoryview]:
        """Size, and the last bytes."""
        if self._whole:
            content = self._source.get(self._path)
            return len(content), content
        return self._source.tail(self._path)

    @property
    def size(self) -> int:
        return self._end[0]

    def expect(self, ranges: npt.NDArray[np.uint64]) -> None:
        size, end = self._end
        wanted = sorted((int(offset), int(count)) for offset, count in ranges if offset < size - len(end))
        starts = [offset for offset, _ in wanted]
        parts = self._source.ranges(self._path, starts, [sum(one) for one in wanted]) if wanted else []
        self._expected.parts = starts, parts

    def _find(self, size: int, offset: int) -> memoryview:
        total, end = self._end
        begin = total - len(end)
        if offset >= begin:
            return end[offset - begin : offset - begin + size]
        held: tuple[list[int], list[memoryview]] = getattr(self._expected, "parts", ([], []))
        starts, parts = held
        number = bisect_right(starts, offset) - 1
        if number >= 0 and offset + size <= starts[number] + len(parts[number]):
            return parts[number][offset - starts[number] :][:size]
        return self._source.ranges(self._path, [offset], [min(offset + size, total)])[0]

    def read(self, size: int, offset: int) -> bytes:
        return bytes(self._find(size, offset))

    def read_into(self, parts: Sequence[Any], offset: int) -> int:
        content = self._find(sum(map(len, parts)), offset)
        done = 0
        for part in parts:
            piece = content[done : done + len(part)]
            memoryview(part)[: len(piece)] = piece
            done += len(piece)
        return done

    def close(self) -> None:
        pass  # nothing is open
