"""The table of encoders says what the code says, and leaves no network out."""

import importlib.util
import re
import sys

import pytest
from pages import ROOT

from featurestore.models.checkpoints.config import MODEL_TYPES
from featurestore.models.checkpoints.families import FAMILIES

PAGE = ROOT / "docs/guides/encoders.md"


@pytest.fixture(scope="module")
def encoder_table():
    spec = importlib.util.spec_from_file_location("encoder_table", ROOT / "docs/_ext/encoder_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_table_is_that_of_the_code(encoder_table):
    page = PAGE.read_text(encoding="utf-8")
    assert encoder_table.written(page) == page, "write it anew: python docs/_ext/encoder_table.py"


def test_every_network_is_in_it(encoder_table):
    there = {row.model_type for row in encoder_table.ROWS}
    same = {"music_hubert": "mert_model", "clap_audio_model": "clap"}
    assert {same.get(kind, kind) for kind in (*MODEL_TYPES, *FAMILIES)} <= there


def test_every_network_is_explained():
    page = PAGE.read_text(encoding="utf-8")
    explained = page[page.index("## Which networks") : page.index("## logmel")]
    missing = [kind for kind in (*MODEL_TYPES, "mert2", *FAMILIES) if f"`{kind}`" not in explained]
    assert not missing


def test_layers_of_the_guide_exist(encoder_table):
    """MERT-v2 has 24 blocks, which its card counts from 1: the number is that of the state."""
    page = (ROOT / "docs/guides/which-layer.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| MERT-v2 \| \w+ \| L(\d+) \| (\d+) \|", page, flags=re.MULTILINE)
    assert len(rows) >= 3
    assert all(card == state and 1 <= int(state) <= 24 for card, state in rows)
