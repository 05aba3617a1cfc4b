"""For mkdocs: what stands outside of `docs` becomes part of the site, and links to it lead to its pages.

The documents are written to be read in the repository, where links are between files; only here are they moved.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/*.md", "benchmarks/*.png")
BAR = r"\|"
_LINK = re.compile(r"(\]\()([^)#:]+)((?:#[^)]*)?\))")


def on_config(config: Any) -> Any:
    """The contents, with the cards that nobody has listed."""
    config["nav"] = with_every_card(config["nav"])
    return config


def with_every_card(nav: list[Any]) -> list[Any]:
    """`nav` with all method cards, those it does not name at the end of theirs under the words of their headings."""
    (cards,) = (item["Method cards"] for item in nav if "Method cards" in item)
    named = {page for card in cards for page in card.values()}
    more = []
    for path in sorted((ROOT / "docs" / "methods").glob("*.md")):
        if (page := f"methods/{path.name}") not in named:
            more.append({path.read_text().partition("\n")[0].removeprefix("# ").partition(" (")[0]: page})
    return [{"Method cards": [*cards, *more]} if "Method cards" in item else item for item in nav]


def other_operators() -> str:
    """Reference entries for the public names of operators that no page of the reference names."""
    from leanconv import _operators

    named = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    entries = re.findall(r"^::: (\S+)", named, re.MULTILINE)
    new = [f"::: {module}.{name}" for name, module in _operators().items() if f"leanconv.{name}" not in entries]
    return "".join(f"\n{line}\n" for line in new)


def on_files(files: Any, config: Any) -> Any:
    """Add the documents and pictures of `OUTSIDE`, and the options of every verb to the page on the command line."""
    from mkdocs.structure.files import File

    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as they are in the repository, to where the pages are in the site."""
    source = page.file.src_uri
    if source == "cli.md":
        markdown += options_of_verbs()
    if source == "api/operators.md":
        markdown += other_operators()
    outside = any(Path(source).match(pattern) for pattern in OUTSIDE)
    folder = posixpath.dirname(source if outside else f"docs/{source}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        target = target.removeprefix("docs/")
        return match[1] + posixpath.relpath(target, posixpath.dirname(source) or ".") + match[3]

    return _LINK.sub(moved, markdown)


def options_of_verbs() -> str:
    """Every verb with its arguments and options, as the command line itself has them."""
    import typer

    from leanconv.cli import app

    parts = ["\n\n## Every verb\n"]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        parts += [f"\n### leanconv {name}\n", f"{command.help}\n", "| argument or option | what |", "|---|---|"]
        for parameter in command.params:
            label = parameter.metavar or str(parameter.name)
            if parameter.param_type_name == "option":
                label = " ".join([*parameter.opts, parameter.metavar or ""]).strip()
            cells = (f"`{label}`", parameter.help or "")  # type: ignore[attr-defined]
            parts.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
    return "\n".join(parts) + "\n"
