"""The bar of a build fits its terminal, and says first what matters most."""

import io
from datetime import datetime

import pytest
from tqdm import tqdm

from featurestore.pipeline import Progress
from featurestore.pipeline.bar import LAYOUT, draw_on, line_of
from fs_extract import progress
from fs_extract.console import Console

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
    with tqdm(total=0, file=out, bar_format=LAYOUT, ncols=columns, leave=False) as bar:
        draw_on(bar)(NOW)
        line = str(bar)
    assert len(line) <= columns
    assert all(text in line for text in shown)
    assert not [text for text in left_out if text in line]


def test_a_line_says_the_same():
    assert line_of(NOW) == (
        "extracting: 12357/100000 tracks, 11:06:40 to go, 12 failed, 312.5 x real time, 1944.4 h of audio"
    )
    assert line_of(Progress(stage="checking", total=9, checked=3)) == "checking: 3/9 tracks"


def told(monkeypatch, capsys, line, moments):
    """Lines of a progress without a terminal, with its calls at these times in seconds."""
    clock = iter([float(moment) for moment in moments])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress_bar(Console(), "", draw_on, line) as tell:
        for number in range(len(moments)):
            tell(number)
    return capsys.readouterr().err.splitlines()


def test_without_a_terminal_there_is_a_line_at_once_and_each_minute(monkeypatch, capsys):
    lines = told(monkeypatch, capsys, str, [10, 11, 69.9, 70, 100, 131])
    assert [line.partition(" fs-extract: ")[2] for line in lines] == ["0", "3", "5"]
    assert all(datetime.fromisoformat(line.partition(" fs-extract: ")[0]) for line in lines)


def test_what_says_nothing_yet_does_not_make_others_wait(monkeypatch, capsys):
    lines = told(monkeypatch, capsys, lambda number: str(number) if number > 1 else None, [10, 11, 12, 13])
    assert [line.partition(" fs-extract: ")[2] for line in lines] == ["2"]


@pytest.mark.parametrize("console", [Console(quiet=True), Console(no_progress=True)])
def test_nothing_is_told_if_that_is_wanted(console):
    with progress.progress_bar(console, "", draw_on, str) as tell:
        assert tell is None
