"""Audio files to mono samples: which files there are, what they hold, and their samples at one rate.

Nothing here knows a model or a store. PyAV is imported by the functions that use it.
"""

from featurestore.audio.decode import Found, decode, read_header
from featurestore.audio.info import MIN_DURATION, AudioInfo
from featurestore.audio.load import (
    count_samples,
    file_sha256,
    load_audio,
    load_part,
    segment_audio,
    validate_audio_file,
)
from featurestore.audio.resample import RESAMPLER
from featurestore.audio.sources import AudioFile, discover

__all__ = [
    "MIN_DURATION",
    "RESAMPLER",
    "AudioFile",
    "AudioInfo",
    "Found",
    "count_samples",
    "decode",
    "discover",
    "file_sha256",
    "load_audio",
    "load_part",
    "read_header",
    "segment_audio",
    "validate_audio_file",
]
