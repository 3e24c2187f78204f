"""Amounts as people read them."""

from __future__ import annotations

from datetime import timedelta


def time_in_words(seconds: float) -> str:
    """Write seconds: "0:01:23".

    Examples
    --------
    >>> from featurestore.amounts import time_in_words
    >>> time_in_words(83.2)
    '0:01:23'
    """
    return str(timedelta(seconds=round(seconds)))


def hours_in_words(hours: float) -> str:
    """Write hours of audio: "45.0 s", "12.3 min", "4.5 h".

    Examples
    --------
    >>> from featurestore.amounts import hours_in_words
    >>> hours_in_words(0.0125), hours_in_words(0.5), hours_in_words(1234.56)
    ('45.0 s', '30.0 min', '1234.6 h')
    """
    if hours * 60 < 1:
        return f"{hours * 3600:.1f} s"
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:.1f} h"


def bytes_in_words(size: float) -> str:
    """Write a number of bytes, in decimal units: "1.2 GB".

    Examples
    --------
    >>> from featurestore.amounts import bytes_in_words
    >>> bytes_in_words(999), bytes_in_words(1_234_567)
    ('999 bytes', '1.2 MB')
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
