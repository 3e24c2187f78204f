import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from featurestore import FeatureExtractor

MODEL = Path(__file__).parent.parent / "data" / "golden" / "base_v1"


@pytest.fixture(scope="session")
def model_folder():
    return MODEL


@pytest.fixture(scope="session")
def extractor():
    """The extractor of all builds that do not care how it is made; windows of 1 s, so that clips may be short."""
    return FeatureExtractor(model=MODEL, segment_duration=1.0)


@pytest.fixture
def clip():
    """Writes a clip of two tones and noise, the same for the same arguments."""

    def write(path, seconds=1.6, *, rate=24_000, channels=1, seed=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        time = np.arange(round(seconds * rate)) / rate
        tones = sum(np.sin(2 * np.pi * random.uniform(80, rate / 3) * time) for _ in range(2))
        samples = 0.2 * tones[:, None] + 0.05 * random.standard_normal((len(time), channels))
        soundfile.write(path, samples, rate)
        return path

    return write


@pytest.fixture
def music(tmp_path, clip):
    """Four clips in two folders, of mixed formats, rates and channels."""
    source = tmp_path / "music"
    clip(source / "a" / "one.wav", seed=1)
    clip(source / "a" / "two.flac", rate=44_100, channels=2, seed=2)
    clip(source / "b" / "one.ogg", rate=48_000, seed=3)
    clip(source / "b" / "three.wav", 2.3, rate=8_000, seed=4)
    return source


@pytest.fixture
def staged():
    """What is left in a store's staging area and journal."""

    def look(store):
        hidden = Path(store) / ".featurestore"
        return [path for name in ("staging", "journal") for path in (hidden / name).iterdir()]

    return look


@pytest.fixture
def small_memory():
    """Makes a control group of so many bytes of memory; where that is not allowed, the test is skipped."""
    made = []

    def make(size):
        root = Path("/sys/fs/cgroup")
        is_one = (root / "cgroup.controllers").exists()
        group = (root if is_one else root / "memory") / f"featurestore-test-{os.getpid()}"
        limit = "memory.max" if is_one else "memory.limit_in_bytes"
        try:
            group.mkdir()
            made.append(group)
            (group / limit).write_text(str(size))
        except OSError as error:
            pytest.skip(f"limiting memory needs root and cgroups on Linux: {error}")
        return group

    yield make
    for group in made:
        deadline = time.monotonic() + 20
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:  # what has just ended
            time.sleep(0.1)
        group.rmdir()


@pytest.fixture
def small_disk():
    """Mounts a tiny file system of its own; where that is not allowed, the test is skipped."""
    mounted = []

    def mount(megabytes):
        folder = tempfile.mkdtemp(prefix="featurestore-disk-")
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            os.rmdir(folder)
            pytest.skip("mounting a tmpfs needs root on Linux")
        mounted.append(folder)
        return Path(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)
        os.rmdir(folder)
