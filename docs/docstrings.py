"""Docstrings as Markdown: their examples as code, their departures as a list."""

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1(?! *\n).*\S.*)*", re.MULTILINE)


def markdown(docstring: str) -> str:
    """Return a docstring as the site shows it."""
    text, title, departures = docstring.partition("Departures:\n")
    listed = re.sub(r"^    (\w+): ", r"    - **\1**: ", departures, flags=re.MULTILINE)
    return EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", text + title + listed)


class Docstrings(Extension):
    """Change the docstrings of all that is documented."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
