"""How the documentation is built: `make docs`. Nothing is fetched from a network."""

from __future__ import annotations

import sys
from pathlib import Path

from featurestore import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "featurestore"
author = "The featurestore authors"
copyright = author  # noqa: A001
release = version = __version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "decision_index",
    "notebook",
]
root_doc = "index"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
templates_path = ["_templates"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# A page for each public name, from its docstring.
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "pydata_sphinx_theme"
html_title = f"featurestore {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "featurestore"},
    "github_url": "https://github.com/featurestore/featurestore",
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}
html_sidebars = {name: [] for name in ("index", "quickstart", "walkthrough", "notebook")}
