"""The documentation site: `make docs`, then docs/_build/index.html."""

import re

from segue import __version__ as release

project = "Segue"
author = copyright = "The Segue developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Segue {release}"
html_copy_source = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
suppress_warnings = ["myst.xref_missing"]  # links of README.md and its like to files beside them


def setup(app):
    """Docstrings here are plain text: equations of a module as they stand, and no letter of the others is markup."""

    def plain(app, what, name, obj, options, lines):
        if what == "module":
            lines[:] = ["::", "", *(f"   {line}" for line in lines), ""]
        else:
            lines[:] = [re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", line) for line in lines]

    app.connect("autodoc-process-docstring", plain, priority=100)
