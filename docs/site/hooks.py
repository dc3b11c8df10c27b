r"""What mkdocs does not do by itself to a page.

Formulas become MathML, which browsers draw without a script or a font from elsewhere:

    $\alpha_t$  --arithmatex-->  <span class="arithmatex">\(\alpha_t\)</span>  --here-->  <math>...</math>

Links to files of the repository outside docs/ become links to the repository's page of that file.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: object) -> str:
    """Replaces links out of docs/. Raises PluginError if the repository has no such file."""

    def absolute(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), match[1]))
        if path.startswith("docs/"):
            return match[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: the link {match[1]} leads to no file of the repository")
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"]({config.repo_url}/{kind}/main/{path}"

    return LINK.sub(absolute, markdown)


def on_page_content(content: str, page: object, **_: object) -> str:
    """Replaces the formulas of a page; called by mkdocs. Raises PluginError if one is not LaTeX."""

    def mathml(match: re.Match[str]) -> str:
        latex = html.unescape(match[3])
        try:
            drawn = convert(latex, display="block" if match[2] == "[" else "inline")
        except Exception as error:  # the converter raises many types
            raise PluginError(f"{page}: cannot convert the formula {latex}: {error!r}") from error
        return f'<div class="formula">{drawn}</div>' if match[2] == "[" else drawn

    return FORMULA.sub(mathml, content)
