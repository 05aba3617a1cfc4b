"""For mkdocstrings: examples in docstrings, written for doctest and without a heading, become blocks of code, and a
public function is the function where a module has its name.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Alias, Extension, Module, Object

_EXAMPLE = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.DOTALL | re.MULTILINE)


class DocstringExamples(Extension):
    """Puts every example into a fence, and public names to what they mean."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """`leanconv.calibrate` is imported from a room that has a module `calibrate`, where the function is."""
        for name, member in pkg.members.items():
            if isinstance(member, Alias) and member.target_path.startswith(f"{pkg.path}."):
                target = pkg[member.target_path.removeprefix(f"{pkg.path}.")]
                if isinstance(target, Module):
                    pkg.members[name] = Alias(name, f"{member.target_path}.{name}", parent=pkg)

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Before the docstring is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", obj.docstring.value)
