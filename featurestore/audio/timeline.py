"""Decoded samples, held against the times and the length that a file states.

FFmpeg decodes what it can and leaves out the rest without a word, but tells where in time each frame lies. A jump
forward in time is audio that is lost, a jump back begins another recording that was joined to the first, and an
end before the stated one is that of a truncated file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featurestore.audio.info import AudioInfo, format_error
from featurestore.audio.opening import LOST
from featurestore.errors import AudioFormatError

_JITTER = 0.005
"""Seconds by which the time of a frame may be off in formats whose times are exact."""

_SETTLED = 16
"""Frames after which a time counts: those of Vorbis jump by some ms where its blocks change, and back."""

_LONGEST_PAGE, _BEHIND = 65_307, 4_096
"""Bytes of a page of Ogg, and those that may follow the last one."""

HELD_BACK = 1 << 14
"""Samples, two of the longest blocks of Vorbis, that wait for the end: the last page tells how many count."""


class Timeline:
    """Holds the decoded samples of a stream of FFmpeg's against what its file states."""

    def __init__(self, info: AudioInfo, stream: Any) -> None:
        self._info, self._rate, self._unit = info, info.sample_rate, float(stream.time_base)
        self._container = info.format.split()[0]
        self._is_exact = self._container in ("flac", "ogg")
        self._tolerance = _JITTER if self._is_exact else LOST
        self.done = 0
        self._start: float | None = None
        """Time of the first sample, of this recording if several were joined, less that of all before, seconds."""
        self._end = 0
        """Samples to the last page of an Ogg file that is one recording; 0 if that is not known."""
        if self._container == "ogg" and stream.duration:
            self._end = round((stream.duration + min(0, stream.start_time or 0)) * self._unit * self._rate)
        self._missing = 0.0
        self._late = self._longest = 0

    def add(self, frame: Any) -> int:
        """Take the next frame; how many of its first samples are no part of the recording."""
        if frame.sample_rate != self._rate:
            raise format_error(
                self._info.path,
                f"changes its rate after {self.done / self._rate:.2f} s, from {self._rate:,} to "
                f"{frame.sample_rate:,} Hz: split it, or convert it to one rate",
            )
        skipped = 0
        if frame.pts is not None:
            offset = frame.pts * self._unit - self.done / self._rate
            if self._start is None:
                if self._container == "ogg" and offset < 0:  # what begins before 0 is dropped
                    skipped, offset = min(frame.samples, round(-offset * self._rate)), 0.0
                self._start = offset
            elif offset < self._start - 10 * _JITTER:  # another recording
                self._start, self._end = offset, 0
            self._missing = offset - self._start
            self._late = self._late + 1 if self._missing > self._tolerance else 0
            if self._late > (0 if self._container == "flac" else _SETTLED):
                raise self._gap()
        self._longest = max(self._longest, frame.samples)
        self.done += frame.samples - skipped
        return skipped

    def excess(self) -> int:
        """Decoded samples behind the end of Vorbis: FFmpeg cuts its last block only if it has several pages."""
        excess = max(0, self.done - self._end) if self._end else 0
        excess = excess if excess < HELD_BACK else 0
        self.done -= excess
        return excess

    def end(self, warn: Callable[[str], None]) -> None:
        """Hold all of it against the stated length."""
        info, rate, longest = self._info, self._rate, self._longest / self._rate
        if self._late and self._missing > max(self._tolerance, longest):
            raise self._gap()
        if not self._is_exact and self._missing > 3 * _JITTER and not self._late:
            warn(f"by the times that it states, {self._missing:.3f} s are missing in the middle")
        if self._container == "ogg":
            self._check_last_page(warn)
        lacking = (info.frames or self.done) - self.done
        found = f"{self.done / rate:.2f} s were decoded of the {(info.frames or 0) / rate:.2f} s that it states"
        if lacking > (LOST if info.exact else max(LOST, longest)) * rate:
            raise format_error(info.path, f"is truncated or damaged: {found}; get it again or repair it")
        if lacking > (0 if info.exact else 2 * self._longest) or -lacking > max(LOST, 2 * longest) * rate:
            warn(f"{found} ({abs(lacking):,} samples {'fewer' if lacking > 0 else 'more'})")

    def _check_last_page(self, warn: Callable[[str], None]) -> None:
        """Hold the end of an Ogg file against its last page (RFC 3533, section 6)."""
        with self._info.path.open("rb") as file:
            file.seek(max(0, self._info.size - _LONGEST_PAGE - _BEHIND))
            tail = file.read()
        page = tail[max(0, tail.rfind(b"OggS")) :]
        segments = int.from_bytes(page[26:27], "little")
        behind = len(page) - 27 - segments - sum(page[27 : 27 + segments])
        time = int.from_bytes(page[6:14], "little", signed=True) * self._unit - (self._start or 0.0)
        if page[:4] != b"OggS" or not 0 <= behind <= _BEHIND or time - self.done / self._rate > LOST:
            what = f"is truncated or damaged at its end, after {self.done / self._rate:.2f} s: get it again"
            raise format_error(self._info.path, what)
        if not page[5] & 4:
            warn("its last page is not marked as the end: if it was cut there, the rest is missing")

    def _gap(self) -> AudioFormatError:
        at = self.done / self._rate - self._late * self._longest / self._rate
        where = f"about {max(0.0, at):.1f} s from its start"
        what = f"is damaged: {self._missing:.2f} s of audio are missing {where}; get it again or repair it"
        return format_error(self._info.path, what)
