"""Pages of the documentation site that come from the sources.

- `{{ README: heading }}` in a page is that section of the README, so that no
  text and no tested example stands twice.
- `programs.md` is what each program says of itself, `changes.md` the
  CHANGELOG.
- `api/*.md` document the public names, in the sections of
  `tfmemloc/__init__.py`. A name in no section stops the build.
"""

from __future__ import annotations

import ast
import pathlib
import re

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

import tfmemloc

ROOT = pathlib.Path(__file__).resolve().parents[2]
_SECTION = re.compile(r"\{\{ README: (.+?) \}\}")


def on_config(config):
    """Puts the pages of the public names behind the others."""
    pages = [{title.split(":")[0]: uri} for title, uri, _ in _api()]
    config.nav.append({"Python": pages})
    return config


def on_files(files, config):
    """Adds the pages that are made here."""
    made = {
        "programs.md": _programs(),
        "changes.md": (ROOT / "CHANGELOG.md").read_text("utf-8"),
        **{uri: _names_page(title, names) for title, uri, names in _api()},
    }
    for uri, content in made.items():
        content = _inside_docs(content)
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown, **_):
    """Fills in sections of the README."""
    return _SECTION.sub(lambda found: _section(found[1]), markdown)


def _section(heading: str) -> str:
    readme = (ROOT / "README.md").read_text("utf-8")
    found = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", readme, re.M | re.S
    )
    if found is None:
        raise PluginError(f"README.md has no section '{heading}'.")
    return _inside_docs(found[1])


def _inside_docs(text: str) -> str:
    """Links as they are from within docs/; to other files only the words."""
    text = text.replace("](docs/", "](").replace(
        "](CHANGELOG.md", "](changes.md"
    )
    return re.sub(
        r"\[([^\]]*)\]\((?:examples|binaries|CONTRIBUTING)[^)]*\)",
        r"`\1`",
        text,
    )


def _api() -> list[tuple[str, str, list[str]]]:
    """(title, address, names) for each section of the package."""
    source = (ROOT / "tfmemloc" / "__init__.py").read_text("utf-8")
    body, public = source.split("__all__ = ")
    found = []
    parts = re.split(r"((?:^# .*\n)+)", body, flags=re.M)[1:]
    for comment, imports in zip(parts[::2], parts[1::2], strict=True):
        title = " ".join(
            line.removeprefix("# ") for line in comment.splitlines()
        ).rstrip(".")
        names = [
            alias.asname or alias.name
            for node in ast.parse(imports).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        words = re.findall(r"[a-z]+", title.split(":")[0].lower())
        slug = "_".join(words[:4])
        found.append((title, f"api/{slug}.md", sorted(names, key=str.lower)))
    listed = {name for _, _, names in found for name in names}
    missing = set(ast.literal_eval(public.strip())) - listed
    if missing:
        raise PluginError(f"No section documents {sorted(missing)}.")
    return found


def _names_page(title: str, names: list[str]) -> str:
    lines = "\n\n".join(f"::: {_home(name)}" for name in names)
    return f"# {title}\n\n{lines}\n"


def _home(name: str) -> str:
    """Where a public name is defined: some modules are called as it is."""
    value = getattr(tfmemloc, name)
    if not hasattr(value, "__qualname__"):
        return f"tfmemloc.{name}"  # A constant.
    return f"{value.__module__}.{value.__qualname__}"


def _programs() -> str:
    """What the programs say of themselves."""
    parts = ["# Programs\n\nAll flags are in `--help`.\n"]
    for path in sorted((ROOT / "binaries").glob("*.py")):
        source = path.read_text("utf-8")
        words = ast.get_docstring(ast.parse(source))
        is_program = "def main()" in source
        if words is None or not is_program or path.name.startswith("_"):
            continue
        summary, *rest = words.split("\n\n")
        text = "\n\n".join(
            f"```\n{part}\n```" if part.startswith("  ") else part
            for part in rest
        )
        parts.append(f"## {path.stem}\n\n{summary}\n\n{text}\n")
    return "\n".join(parts)
