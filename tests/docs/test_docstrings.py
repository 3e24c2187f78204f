"""Every public function, class and method has an example in its docstring, and it runs as it stands there."""

import doctest
import importlib
import inspect
import shutil

import pytest
from examples import names, prepare
from pages import working_in

MODULES = ("featurestore", "featurestore.analysis", "featurestore.models", "featurestore.sharing")
MODULES += ("featurestore.training.labels", "featurestore.training.pretrain")
VIEWS = ("View", "AggregatedView", "TrackView", "RaggedView")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_objects():
    """Functions and classes by their public names, and the methods that the classes define themselves."""
    found = {}
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found.setdefault(value, f"{module.__name__}.{name}")
    views = importlib.import_module("featurestore.store.views")
    found |= {getattr(views, name): f"featurestore.store.views.{name}" for name in VIEWS}
    encoder = importlib.import_module("featurestore.encode").WindowEncoder
    found[encoder] = "featurestore.encode.WindowEncoder"
    errors = importlib.import_module("featurestore.errors")
    for name, value in vars(errors).items():
        if inspect.isclass(value) and "__init__" in vars(value):  # the others add nothing to their bases
            found[value] = f"featurestore.errors.{name}"
    for value, name in list(found.items()):
        if inspect.isclass(value):
            found |= {method: f"{name}.{method.__name__}" for method in methods_of(value)}
    return {name: value for value, name in found.items()}


def methods_of(cls):
    """Public methods that a class defines; those of a protocol or an abstract class have no body to run."""
    for name, value in vars(cls).items():
        method = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        is_public = inspect.isfunction(method) and not name.startswith("_")
        if (
            is_public
            and not getattr(cls, "_is_protocol", False)
            and not getattr(method, "__isabstractmethod__", 0)
        ):
            yield inspect.unwrap(method)


OBJECTS = public_objects()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTS)
def test_its_docstring_has_an_example_and_it_runs(name, prepared, tmp_path):
    text = inspect.getdoc(OBJECTS[name]) or ""
    test = doctest.DocTestParser().get_doctest(text, names(), name, None, 0)
    assert test.examples, f"{name} has no example"
    assert not [x for x in test.examples if x.options.get(doctest.SKIP)], f"an example of {name} is not run"
    said = []
    with working_in(tmp_path / "work") as folder:
        shutil.copytree(prepared, folder, dirs_exist_ok=True)
        failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert not failed, "".join(said)
