"""The bar of a build fits its terminal, and says first what matters most."""

import io

import pytest
from tqdm import tqdm

from featurestore.pipeline import Progress
from fs_extract.build import _BAR, _listener

NOW = Progress(
    stage="extracting",
    total=100_000,
    processed=12_345,
    failed=12,
    audio_seconds=7e6,
    x_real_time=312.5,
    eta=40_000,
)


@pytest.mark.parametrize(
    ("columns", "shown", "left_out"),
    [
        (40, ["extracting: 12357/100000"], ["to go", "failed", "x real time"]),
        (80, ["extracting: 12357/100000", "11:06:40 to go", "12 failed"], ["x real time", "of audio"]),
        (140, ["11:06:40 to go", "12 failed", "312.5 x real time", "1944.4 h of audio"], []),
    ],
)
def test_it_fits(columns, shown, left_out):
    out = io.StringIO()
    with tqdm(total=0, file=out, bar_format=_BAR, ncols=columns, leave=False) as bar:
        _listener(bar)(NOW)
        line = str(bar)
    assert len(line) <= columns
    assert all(text in line for text in shown)
    assert not [text for text in left_out if text in line]
