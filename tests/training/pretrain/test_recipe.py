"""Recipes: presets, files that change them, and mistakes that are named."""

import math

import pytest

from featurestore.errors import SettingError
from featurestore.models.checkpoints.config import MertConfig
from featurestore.models.checkpoints.shapes import SHAPES
from featurestore.training.pretrain import PRESETS, Recipe, load_recipe


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_recipe_of_a_possible_network(name):
    recipe = load_recipe(name)
    MertConfig.from_dict({**SHAPES[recipe.model.shape], **recipe.model.config}, source=name)


def test_95m_is_as_published():
    recipe = load_recipe("95m")
    assert recipe.data.labels == tuple(f"encodec_{i}" for i in range(8))
    assert (recipe.data.window, recipe.model.do_normalize) == (5.0, False)
    assert (recipe.masking.probability, recipe.masking.span, recipe.masking.equal) == (0.8, 5, True)
    assert (recipe.mixing.probability, recipe.mixing.seconds, recipe.mixing.count) == (0.5, (0.5, 1.0), (1, 3))
    assert (recipe.tokens.masked, recipe.tokens.unmasked) == (1.0, 0.0)
    assert (recipe.tokens.dim, recipe.tokens.temperature) == (64, 0.1)
    assert (recipe.feature_penalty, recipe.feature_gradient) == (10.0, 0.1)
    assert (recipe.cqt.masked, recipe.cqt.everywhere, recipe.cqt.bins, recipe.cqt.bins_per_octave) == (
        1,
        0,
        336,
        48,
    )
    assert (recipe.optimizer.lr, recipe.optimizer.betas, recipe.optimizer.eps) == (5e-4, (0.9, 0.98), 1e-6)
    assert (recipe.optimizer.warmup, recipe.optimizer.weight_decay, recipe.optimizer.clip) == (32_000, 0.01, 10.0)
    dropout = recipe.dropout
    assert (dropout.input, dropout.hidden, dropout.attention, dropout.activation) == (0.1, 0.1, 0.1, 0.0)
    assert dropout.layers == 0.05


def test_330m_is_as_published():
    recipe = load_recipe("330m")
    dropout = recipe.dropout
    assert (dropout.input, dropout.hidden, dropout.attention, dropout.layers) == (0, 0, 0, 0)
    assert (recipe.optimizer.lr, recipe.optimizer.clip, recipe.run.accumulate) == (1.5e-3, 1.0, 8)
    assert (recipe.tokens.dim, recipe.feature_gradient, recipe.data.window) == (128, 1.0, 5.12)
    assert recipe.mixing.seconds == (0.5, 1.5)


@pytest.mark.slow
def test_a_file_changes_a_preset_and_options_change_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "mini"\n[run]\nbatch = 3\nsteps = 5\n')
    recipe = load_recipe(str(path), {"run": {"steps": 7}})
    assert (recipe.run.batch, recipe.run.steps) == (3, 7)
    assert recipe.model == load_recipe("mini").model


def test_a_recipe_survives_json():
    recipe = load_recipe("mini")
    assert Recipe.from_dict(recipe.to_dict(), source="JSON") == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"runs": {}}, "no setting runs; allowed are data, model"),
        ({"run": {"bacth": 3}}, "no setting run.bacth; allowed are steps, batch"),
        ({"run": {"batch": 0}}, "run.batch must be a whole number of at least 1, not 0"),
        ({"run": {"batch": 2.5}}, "run.batch must be a whole number"),
        ({"run": {"compile": 1}}, "run.compile must be true or false"),
        ({"run": {"precision": "int8"}}, "run.precision must be one of fp32, fp16, bf16"),
        ({"run": {"compile": True}}, "run.compile needs dropout.layers = 0"),
        ({"run": {"probe": "keys"}}, "run.probe must be one of no names"),
        ({"run": []}, "run must be a table"),
        ({"run": {"seed": 99999999999999999999}}, r"run.seed must be a whole number below 2\*\*63 of at least 0"),
        ({"run": {"steps": 10**400}}, r"run.steps must be a whole number below 2\*\*63"),
        ({"optimizer": {"lr": math.inf}}, "optimizer.lr must be a finite number of at least 0, not inf"),
        ({"optimizer": {"lr": 10**400}}, "optimizer.lr must be a finite number of at least 0"),
        ({"optimizer": {"betas": [1.5, 0.9]}}, r"optimizer.betas\[0\] must be a number from 0 to 0.9999, not 1.5"),
        ({"mixing": {"volume": math.nan}}, "mixing.volume must be a finite number"),
        (
            {"masking": {"schedule": [[1, math.nan]]}},
            r"masking.schedule\[0\]\[1\] must be a finite number, not nan",
        ),
        ({"masking": {"schedule": [[1, 0.5], [2, -3.0]]}}, r"schedule\[1\] must be .* from 0 to 1, not 2, -3.0"),
        ({"masking": {"schedule": [[1, 7.0]]}}, r"schedule\[0\] must be a step and a probability from 0 to 1"),
        ({"masking": {"probability": 1.5}}, "masking.probability must be a number from 0 to 1"),
        ({"mixing": {"seconds": [1.0]}}, "mixing.seconds must be a list of 2"),
        ({"mixing": {"seconds": [2.0, 1.0]}}, "mixing.seconds must be two ascending numbers"),
        ({"mixing": {"seconds": [1.0, 9.0]}}, "must not exceed data.window"),
        ({"data": {"labels": "km"}}, "data.labels must be a list"),
        ({"data": {"labels": [1]}}, r"data.labels\[0\] must be a text"),
        ({"data": {"labels": ["km"]}, "heads": [{"name": "km"}]}, "'km' is there twice"),
        ({"heads": [{"name": "cqt"}]}, "a term of the loss is called 'cqt' already"),
        ({"heads": [{"name": "../x"}]}, "names are of letters, digits, _ and -, not '../x'"),
        ({"heads": [{"kind": "classes"}]}, r"heads\[0\].name is missing"),
        ({"heads": [{"name": "x", "kind": "y"}]}, r"heads\[0\].kind must be one of multilabel, classes"),
        ({"cqt": {"masked": 0.0}}, "nothing is predicted"),
        ({"model": {"config": 3}}, "model.config must be a table"),
    ],
)
def test_a_mistake_is_named(values, message):
    with pytest.raises(SettingError, match=message):
        Recipe.from_dict(values, source="mine.toml")


def test_files_that_are_no_recipe_are_named(tmp_path):
    with pytest.raises(SettingError, match="neither one of 95m, 330m, mini nor a file"):
        load_recipe("maxi")
    path = tmp_path / "broken.toml"
    path.write_text("run = [")
    with pytest.raises(SettingError, match="is not TOML"):
        load_recipe(str(path))
    path.write_text('base = "maxi"')
    with pytest.raises(SettingError, match="base must be one of 95m, 330m, mini"):
        load_recipe(str(path))
