"""Settings of the documentation: `make docs` builds it, offline, with every warning an error.

What is made at build time: the API reference from docstrings, the command line's from its app, the settings' from the
dataclasses and recipes (generated.py), and the output of the notebooks and of the pictures of the concepts, which are
executed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
# what an executed page does: no screen, one core, no progress bars, nothing of the network
os.environ.update(
    MPLBACKEND="module://matplotlib_inline.backend_inline", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1"
)
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, in notebooks without widgets
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"

from generated import with_page_links, write_pages  # noqa: E402

import terrazzo  # noqa: E402

project = "terrazzo"
author = "the terrazzo developers"
copyright = "the terrazzo developers"
version = release = terrazzo.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute"]
root_doc = "index"
nitpicky = True
# no inventory is fetched while building, so names of other libraries stay words
nitpick_ignore_regex = [("py:.*", ".*")]
suppress_warnings = ["mystnb.unknown_mime_type"]
show_warning_types = True

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / ".jupyter_cache")
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_use_type_comments = False
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "terrazzo"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"home_page_in_toc": True, "use_download_button": False, "show_toc_level": 2}


def fix_links(app: object, docname: str, content: list[str]) -> None:
    """Turn links to files of the repository into links between pages."""
    page = HERE / f"{docname}.md"
    content[0] = with_page_links(content[0], page, page)


def setup(app: Any) -> None:
    """Write the generated pages before sources are read."""
    write_pages()
    app.connect("source-read", fix_links)
