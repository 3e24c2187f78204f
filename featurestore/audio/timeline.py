"""Decoded samples, held against the times and the length that a file states.

FFmpeg decodes what it can and leaves out the rest without a word, but tells where in time each frame lies. A jump
forward in time is audio that is lost, a jump back begins another recording that was joined to the first, and an
end before the stated one is that of a truncated file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featurestore.audio.info import AudioInfo, quoted
from featurestore.errors import AudioFormatError

LOST = 0.1
"""Seconds of audio that a file may lack, with a warning: about a frame of any codec."""

HELD_BACK = 1 << 14
"""Samples, two of the longest blocks of Vorbis, that wait for the end: the last page tells how many count."""

_JITTER = 0.005
"""Seconds by which the time of a frame may be off."""

_SETTLED = 16
"""Frames after which a time counts: those of Vorbis jump by some ms where its blocks change, and back."""

_BEHIND = 4_096
"""Bytes that may follow the last page of an Ogg file."""


class Timeline:
    """Holds the decoded samples against the times and the length that a file states.

    Parameters
    ----------
    info : AudioInfo
    stream : av.AudioStream
    container : str
        FFmpeg's name of it.
    """

    def __init__(self, info: AudioInfo, stream: Any, container: str) -> None:
        self._info, self._rate, self._unit = info, info.sample_rate, float(stream.time_base)
        self._is_ogg = container == "ogg"
        self._is_timed = container.split(",")[0] in ("asf", "matroska", "mov")
        self._is_flac = container == "flac"  # whose frames are numbered: their times are exact
        self._tolerance = _JITTER if self._is_ogg or self._is_flac else LOST
        self.done = 0
        self.page = 0
        """Where the page of the last packet begins, bytes."""
        self._start: float | None = None
        """Time of the first sample, of this recording if several were joined, less that of all before, seconds."""
        self._end = 0
        """Samples to the last page of an Ogg file that is one recording; 0 if that is not known."""
        if self._is_ogg and stream.duration:
            self._end = round((stream.duration + min(0, stream.start_time or 0)) * self._unit * self._rate)
        self._missing = 0.0
        self._late = self._longest = 0

    def add(self, frame: Any) -> int:
        """Take the next frame; how many of its first samples are no part of the recording."""
        if frame.sample_rate != self._rate:
            raise AudioFormatError(
                f"{quoted(self._info.path)} changes its rate after {self.done / self._rate:.2f} s, from "
                f"{self._rate:,} to {frame.sample_rate:,} Hz: split it, or convert it to one rate"
            )
        samples, skipped = frame.samples, 0
        if (time := frame.pts) is not None:
            offset = time * self._unit - self.done / self._rate
            if self._start is None:
                if self._is_ogg and offset < 0:  # what begins before 0 is dropped
                    skipped, offset = min(samples, round(-offset * self._rate)), 0.0
                self._start = offset
            elif offset < self._start - 10 * _JITTER:  # another recording
                self._start, self._end = offset, 0
            self._missing = offset - self._start
            self._late = self._late + 1 if self._missing > self._tolerance else 0
            if self._late > (0 if self._is_flac else _SETTLED):
                raise self._gap()
        self._longest = max(self._longest, samples)
        self.done += samples - skipped
        return skipped

    def excess(self) -> int:
        """Decoded samples that are no part of the recording: the last block of Vorbis is cut by its page."""
        excess = self.done - self._end if self._end else 0
        if not 0 < excess < HELD_BACK:
            return 0
        self.done -= excess
        return excess

    def end(self, warn: Callable[[str], None]) -> None:
        """Hold all of it against the stated length."""
        info, rate, longest = self._info, self._rate, self._longest / self._rate
        if self._late and self._missing > max(self._tolerance, longest):
            raise self._gap()
        if self._is_timed and self._missing > 3 * _JITTER and not self._late:
            warn(f"by the times that it states, {self._missing:.3f} s are missing in the middle")
        lacking = (info.frames or self.done) - self.done
        found = f"{self.done / rate:.2f} s were decoded of the {(info.frames or 0) / rate:.2f} s that it states"
        if lacking > (LOST if info.exact else max(LOST, longest)) * rate:
            raise AudioFormatError(
                f"{quoted(info.path)} is truncated or damaged: {found}; get it again or repair it"
            )
        if lacking > (0 if info.exact else 2 * self._longest) or -lacking > max(LOST, 2 * longest) * rate:
            warn(f"{found} ({abs(lacking):,} samples {'fewer' if lacking > 0 else 'more'})")

    def lacks(self, time: int) -> bool:
        """Whether the audio goes on to this time, which was not decoded."""
        return time * self._unit - (self._start or 0.0) - self.done / self._rate > LOST

    def _gap(self) -> AudioFormatError:
        at = self.done / self._rate - self._late * self._longest / self._rate
        return AudioFormatError(
            f"{quoted(self._info.path)} is damaged: {self._missing:.2f} s of audio are missing about "
            f"{max(0.0, at):.1f} s from its start; get it again or repair it"
        )


def check_last_page(info: AudioInfo, timeline: Timeline, warn: Callable[[str], None]) -> None:
    """Walk the pages of an Ogg file from that of the last packet (RFC 3533, section 6): they reach to the end."""
    at, last, flags, head = timeline.page, 0, 0, b""
    with info.path.open("rb") as file:
        while at < info.size:
            file.seek(at)
            head = file.read(27 + 255)
            end = at + 27 + head[26] + sum(head[27 : 27 + head[26]]) if len(head) > 27 else at
            if head[:4] != b"OggS" or not at < end <= info.size:
                break
            flags, last = head[5], max(last, int.from_bytes(head[6:14], "little", signed=True))
            at, head = end, b""
    if head[:4] == b"OggS" or info.size - at > _BEHIND or timeline.lacks(last):
        raise AudioFormatError(
            f"{quoted(info.path)} is truncated or damaged at its end, after "
            f"{timeline.done / info.sample_rate:.2f} s: get it again"
        )
    if not flags & 4:
        warn("its last page is not marked as the end: if it was cut there, the rest is missing")
