"""scaledit's docstrings as Markdown for the API reference.

seed, start: of image i.  sampler: a name        ->  - **`seed`**, **`start`**: of image i.
                                                     - **`sampler`**: a name
paragraphs laid out with spaces, and equations   ->  code blocks
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Rewrites the docstring of each object that griffe collects from the source text."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **_: Any) -> None:
        if obj.docstring is None and (doc := documented(obj)):
            obj.docstring = griffe.Docstring(f"{doc[:1].upper()}{doc[1:]}.", parent=obj)
        elif obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, described(obj))


def documented(obj: griffe.Object) -> str:
    """The meaning that a field of a dataclass gives itself: field(..., doc="...")."""
    value = obj.value if isinstance(obj, griffe.Attribute) else None
    if not isinstance(value, griffe.ExprCall):
        return ""
    for argument in value.arguments:
        if isinstance(argument, griffe.ExprKeyword) and argument.name == "doc":
            return str(ast.literal_eval(str(argument.value)))
    return ""


def described(obj: griffe.Object) -> list[str]:
    """The names that a docstring may describe as `name: meaning`: arguments and fields."""
    if isinstance(obj, griffe.Function):
        return [parameter.name.lstrip("*") for parameter in obj.parameters]
    return list(obj.members) if isinstance(obj, griffe.Class) else []


def markdown(text: str, names: list[str]) -> str:
    """The docstring as Markdown. names: what is listed when described as `name: meaning`."""
    paragraphs = re.split(r"\n[ \t]*\n", text)
    return "\n\n".join(_paragraph(paragraph, names) for paragraph in paragraphs)


def _paragraph(text: str, names: list[str]) -> str:
    if _laid_out(text):
        return f"```text\n{text}\n```"
    if not names:
        return text
    name = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    starts = re.compile(rf"(?:^|(?<=[.)\]] )|(?<=[.)\]]\n))((?:{name})(?:, (?:{name}))*): ")
    marked = starts.sub(lambda match: f"\n- {_bold(match[1])}: ", text)
    return text if marked == text else _separated(marked)


def _bold(names: str) -> str:
    return ", ".join(f"**`{name}`**" for name in names.split(", "))


def _separated(text: str) -> str:
    """The list as a paragraph of its own, between the text before it and the errors raised."""
    before, listed, items = text.strip("\n").partition("- **`")
    items = re.sub(r"(?<=[.)])\s(?=Raises )", "\n\n", items)
    return f"{before.rstrip()}\n\n{listed}{items}".lstrip("\n")


def _laid_out(text: str) -> bool:
    """Whether a paragraph is an equation, a diagram or code rather than prose."""
    lines = text.splitlines()
    spaced = any(re.search(r"\S {2,}\S", line) for line in lines)
    equation = len(lines) <= 3 and bool(re.search(r"\s(=|<-|->|==)\s", lines[0])) and not text.endswith(".")
    return spaced or equation or all(line.startswith("    ") for line in lines)
