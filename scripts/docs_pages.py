"""A mkdocs hook that generates pages from README, CHANGELOG, the examples, benchmarks and public names."""

from __future__ import annotations

import ast
import csv
import re
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DETAILS = ("machine", "versions", "command", "date")  # identical in every row of a result
_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File  # tests import this module without mkdocs

    pages = {page: (ROOT / source).read_text("utf-8") for source, page in _PAGES.items()}
    pages = {page: text.replace("](docs/", "](") for page, text in pages.items()}
    pages["examples.md"] = "# Examples\n\n" + "".join(map(example, sorted((ROOT / "examples").glob("*.*"))))
    pages["benchmarks.md"] = "# Benchmarks\n\n" + "".join(map(benchmark, sorted((ROOT / "benchmarks").glob("*.py"))))
    for name in ("patchnpack", "packer", "loaders", "models", "trainer"):
        pages[f"reference/{name}.md"] = reference(name)
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files outside docs/ to their pages."""
    markdown = re.sub(r"\]\((?:\.\./)?examples/(\w+)\.(?:py|sbatch)\)", r"](examples.md#\1)", markdown)
    for source, name in _PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}", f"]({name}", markdown)
    return re.sub(r"\[([\w.]+)\]\((?:LICENSE|CITATION\.cff)\)", r"`\1` in the repository", markdown)


def example(path: Path) -> str:
    """Return a section with the docstring and the code of an example."""
    source = path.read_text("utf-8")
    if path.suffix != ".py":
        return f"## {path.name} {{ #{path.stem} }}\n\n```sh\n{source}\n```\n\n"
    tree = ast.parse(source)
    docstring = ast.get_docstring(tree) or ""
    first, _, rest = docstring.partition("\n")
    code = "\n".join(source.splitlines()[tree.body[0].end_lineno :]).strip()
    return f"## {path.name} {{ #{path.stem} }}\n\n{first}\n{rest}\n\n```python\n{code}\n```\n\n"


def benchmark(path: Path) -> str:
    """Return a section with the docstring of a benchmark and its results; "" for a script without results."""
    docstring = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n    python ")[0]
    tables = []
    for file in sorted((ROOT / "benchmarks" / "results").glob(f"{path.stem}*.csv")):
        with file.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        about = "; ".join(rows[0][name] for name in DETAILS if rows[0].get(name))
        columns = [name for name in rows[0] if name not in DETAILS]
        table = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
        tables.append(f'??? note "{file.name}: {len(rows)} lines"\n\n' + indent(f"{about}\n\n{text}", "    "))
    return f"## {path.stem}\n\n{docstring}\n\n" + "\n\n".join(tables) + "\n\n" if tables else ""


def reference(name: str) -> str:
    """Return a page with the public names of a package in the order of its `__all__`."""
    module = "patchnpack" if name == "patchnpack" else f"patchnpack.{name}"
    folder = ROOT / name
    body = ast.parse((folder / "__init__.py").read_text("utf-8")).body
    names = next(
        ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    )
    return f"# {module}\n\n" + "".join(f"::: {module}.{public}\n\n" for public in names if not public.startswith("__"))
