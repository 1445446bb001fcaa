# ruff: noqa: INP001 - not a package: Sphinx reads the file
"""How `sphinx-build docs docs/_build` makes the documentation."""

project = "pytest-isolation"
author = "The pytest-isolation authors"
project_copyright = author
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_copy_source = False
