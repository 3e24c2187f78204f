import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cluster import Cluster, missing

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "slurm.md"


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes."""
    if not os.environ.get("FEATURESTORE_SLURM"):
        pytest.skip("takes minutes: run .ci/slurm, which sets FEATURESTORE_SLURM")
    if lacking := missing():
        pytest.skip(f"needs Slurm (.ci/slurm installs it) and root: {', '.join(lacking)} missing")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder)
    yield cluster
    cluster.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def music(tmp_path_factory):
    """Two dozen clips of 15 s."""
    folder = tmp_path_factory.mktemp("music")
    random = np.random.default_rng(0)
    for number in range(24):
        soundfile.write(folder / f"{number:02}.wav", random.normal(0, 0.1, 24_000 * 15), 24_000)
    return folder


@pytest.fixture
def script(music, tmp_path):
    """The script of the guide, for these clips; other options of the build may be added."""
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (text,) = [block for block in blocks if block.startswith("#!")]

    def make(*options, shard="--shard auto"):
        command = (
            f"{sys.executable} -m fs_extract build {music} {tmp_path}/s.zarr --model mini {' '.join(options)}"
        )
        made = re.sub(r"#SBATCH --(cpus|array|time).*\n", "", text)
        made = made.replace(
            "fs-extract build /data/plan.csv /data/features.zarr --shard auto", f"{command} {shard}"
        )
        assert command in made
        return made.replace("$SLURM_CPUS_PER_TASK", "1").replace("\nexport", f"\ncd {os.getcwd()}\nexport")

    return make
