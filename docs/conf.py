"""The manual, by Sphinx: ``make docs`` writes it to build/docs."""

import qkformer

project = "qkformer"
release = version = qkformer.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
nb_execution_mode = "off"  # tour.ipynb has its outputs; tests/test_docs.py runs it
myst_heading_anchors = 3  # links to headings, as on GitHub

html_theme = "furo"
html_title = f"qkformer {release}"
html_show_sphinx = False

# Docstrings in Google's style. Lists, not fields: an entry may be of several names, "q, k, v: ...".
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_custom_sections = [("Attributes", "params_style")]
default_role = "code"
smartquotes = False
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88

# Types of other projects, whose manuals are not fetched to build this one, and what is private.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|numpy|os|collections|pathlib|typing|dict|list|tuple|spikingjelly)\b.*"),
    ("py:exc", r"NoPublishedNames"),  # of a module that is not the function's own
    ("py:class", r"qkformer\..*\._\w+|qkformer\.inference\.Model|qkformer\.data\.inputs\.Inputs"),
]
