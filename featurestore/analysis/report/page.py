"""The page itself: one file, which may load nothing and run nothing but its own script."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import numpy as np

from featurestore.errors import MissingDependencyError


def page_template() -> Any:
    """The template, in which everything is escaped; MissingDependencyError if jinja2 is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError("a report needs jinja2: pip install 'featurestore[report]'") from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "default": _in_base64}
    return environment.from_string(_part("page.html"))


def render(template: Any, values: dict[str, Any], data: dict[str, Any]) -> str:
    """Fill in the template with what it shows, and the data that its script draws; arrays become base64.

    Ids are names of files that strangers chose: all values are escaped, and the data is JSON without any ``<``.
    The content security policy allows the one style and the one script, by their hashes, and nothing else.
    """
    from markupsafe import Markup

    style, script = _part("page.css"), _part("page.js")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
    policy += "base-uri 'none'; form-action 'none'"
    parts = {"style": Markup(style), "script": Markup(script), "policy": policy, "isfinite": np.isfinite}
    return str(template.render(values, data=data, **parts))


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _in_base64(value: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
