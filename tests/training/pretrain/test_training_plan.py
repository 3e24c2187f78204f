"""What a step sees: masks with the published statistics, mixtures, windows; of seed and step alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.training.pretrain.corpus import codebook_classes, open_corpus
from featurestore.training.pretrain.network import start
from featurestore.training.pretrain.plan import Plan, equalised, snippets, span_mask
from featurestore.training.pretrain.settings import MixingSettings
from featurestore.training.pretrain.training import layout_of
from tests.training.pretrain.conftest import RATE, make_data, recipe_for


def make_plan(folder, per_step=4, **tables):
    recipe = recipe_for(folder, **tables)
    layout = layout_of(start(recipe).encoder, recipe.data.window)
    return Plan(open_corpus("train", recipe, layout, codebook_classes(recipe)), recipe, per_step)


@pytest.mark.slow
def test_masks_have_the_published_statistics():
    """In 374 frames, 59 or 60 spans of 5 are drawn: 59.84 on average, 0.8 of all frames with overlaps."""
    frames, probability, span = 374, 0.8, 5
    masks = np.array([span_mask(np.random.default_rng(i), frames, probability, span) for i in range(4_000)])
    # A frame away from the borders is seen if none of the 5 starts that cover it was drawn, of 369 places.
    seen = np.mean([np.prod([(369 - n - i) / (369 - i) for i in range(span)]) for n in [59] * 16 + [60] * 84])
    inner = masks[:, span:-span]
    assert inner.mean() == pytest.approx(1 - seen, abs=0.002)
    assert 0.55 < masks.mean() < 0.60
    # It does not matter where a frame is, except within a span of the borders.
    assert inner.mean(axis=0).std() < 4 * np.sqrt(seen * (1 - seen) / len(masks))
    # The last frame of all is never a start, and no start is within a span of the end.
    assert not masks[:, -1].any()
    assert masks[:, 0].mean() == pytest.approx(59.84 / 369, abs=0.02)


def test_windows_of_a_pass_are_brought_to_the_count_of_the_poorest(shared_data):
    plan = make_plan(shared_data, per_step=8, masking={"probability": 0.5, "equal": True})
    drawn = np.array([plan.mask(3, i) for i in range(4)])
    equal = np.array(plan.masks(3, range(4)))
    assert len(set(drawn.sum(axis=1))) > 1
    assert set(equal.sum(axis=1)) == {drawn.sum(axis=1).min()}
    assert not (equal & ~drawn).any()
    assert np.array_equal(equal, plan.masks(3, range(4)))
    free = make_plan(shared_data, per_step=8, masking={"probability": 0.5, "equal": False})
    assert np.array_equal(drawn, free.masks(3, range(4)))
    nothing = make_plan(shared_data, masking={"probability": 0.0}).masks(0, range(2))
    assert not np.any(nothing)


def test_a_batch_of_95m_masks_as_many_frames_as_fairseq():
    """0.539 in batches of 16 windows of 374 frames, by the algorithm of its compute_mask_indices."""
    passes = []
    for step in range(60):
        masks = [span_mask(np.random.default_rng((step, i)), 374, 0.8, 5) for i in range(16)]
        passes.append(np.mean(equalised(np.random.default_rng(step), masks)))
    assert np.mean(passes) == pytest.approx(0.539, abs=0.005)


def test_masked_frames_come_in_spans():
    for seed in range(50):
        mask = span_mask(np.random.default_rng(seed), 150, 0.3, 5)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
        lengths = edges[1::2] - edges[::2]
        assert lengths.min() >= 5
        assert 5 < mask.sum() <= 10 * 5


@given(
    st.integers(1, 400),
    st.floats(0, 1),
    st.integers(1, 20),
    st.integers(0, 2**32),
)
def test_a_mask_of_any_settings_has_the_length_asked_for(frames, probability, span, seed):
    mask = span_mask(np.random.default_rng(seed), frames, probability, span)
    assert mask.shape == (frames,)
    assert mask.any() == (probability > 0)


def test_without_probability_nothing_is_masked():
    assert not span_mask(np.random.default_rng(0), 374, 0.0, 5).any()


@given(st.integers(2, 30), st.data(), st.integers(0, 2**32))
def test_a_snippet_is_of_another_window_and_fits(windows, data, seed):
    window = data.draw(st.integers(0, windows - 1))
    samples = 2 * RATE
    mixing = MixingSettings(probability=1.0, seconds=(0.5, 1.0), count=(1, 3))
    found = snippets(np.random.default_rng(seed), window, windows, samples, RATE, mixing)
    assert 1 <= len(found) <= 3
    for x in found:
        assert x.window != window
        assert 0 <= x.window < windows
        assert 0.5 * RATE <= x.samples <= RATE
        assert 0 <= x.start <= samples - x.samples
        assert 0 <= x.into <= samples - x.samples


def test_half_of_the_windows_are_mixed():
    mixing = MixingSettings()
    mixed = [bool(snippets(np.random.default_rng(i), 0, 8, 120_000, RATE, mixing)) for i in range(2_000)]
    assert np.mean(mixed) == pytest.approx(0.5, abs=0.04)
    assert not snippets(np.random.default_rng(0), 0, 1, 120_000, RATE, MixingSettings(probability=1.0))


def test_a_step_depends_on_nothing_but_seed_and_step(shared_data):
    plan, other = make_plan(shared_data), make_plan(shared_data)
    later = [plan.windows(step) for step in range(12)][7]
    assert other.windows(7) == later
    assert np.array_equal(plan.mask(7, 2), other.mask(7, 2))
    assert plan.mixture(7, 2) == other.mixture(7, 2)
    assert make_plan(shared_data, run={"seed": 2}).windows(7) != later


def test_an_epoch_takes_every_window_once_and_the_next_in_another_order(shared_data):
    plan = make_plan(shared_data, per_step=1)
    assert plan.per_epoch == 12  # 6 files of 1.2 s have 2 windows of 0.5 s each
    first, second = ([plan.windows(x)[0] for x in range(12 * i, 12 * i + 12)] for i in range(2))
    files = [[x.file for x in epoch] for epoch in (first, second)]
    assert sorted(files[0]) == sorted(files[1]) == sorted(list(range(6)) * 2)
    assert files[0] != files[1]
    assert {x.frame for x in first} != {x.frame for x in second}
    one = make_plan(shared_data, per_step=1, data={"windows_per_file": "one"})
    assert sorted(one.windows(x)[0].file for x in range(6)) == list(range(6))


def test_windows_lie_within_their_files(tmp_path):
    folder = make_data(tmp_path, files=2, seconds=1.02)
    plan = make_plan(folder)
    for step in range(40):
        for window in plan.windows(step):
            entry = plan.corpus.entries[window.file]
            assert 0 <= window.frame * 320 <= entry.samples - plan.corpus.layout.window


def test_the_share_that_is_masked_can_change_on_the_way(shared_data):
    plan = make_plan(shared_data, masking={"probability": 0.2, "schedule": [[5, 0.9]]})
    shares = [np.mean([plan.mask(step, i) for i in range(50)]) for step in (4, 5)]
    assert shares[0] < 0.3 < 0.5 < shares[1]
