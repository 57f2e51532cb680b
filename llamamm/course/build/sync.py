"""The package is the source, notebooks quote it: `python -m llamamm.course.build.sync` rewrites the quotes.

A code cell whose first line is `# package: llamamm.text.rope` quotes definitions of that module. Each must equal the
package's, compared as syntax trees without docstrings; `--check` fails where one has drifted. A quote without
docstrings stays without. Imports in such a cell are its own. The line with the badge, above the title, is kept in step
with the package's version, too.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from llamamm.course.build.lessons import opening_line
from llamamm.errors import LlamammError
from llamamm.files import write_file

MARK = "# package: "


class SyncError(LlamammError):
    """A quoting cell that names what the package does not have."""


def quoting_cells(notebook: dict) -> Iterator[tuple[dict, str]]:
    """The cells of a notebook that quote the package, each with the module's name."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith(MARK):
            yield cell, source.splitlines()[0].removeprefix(MARK).strip()


def fresh_source(source: str, module: str) -> str:
    """A quoting cell's text with every definition as the package has it now; equal ones stay to the letter."""
    package = _definitions(_module_source(module))
    lines = source.splitlines()
    for name, (node, _) in reversed(_definitions(source).items()):
        if name not in package:
            raise SyncError(f"a cell quotes {name} from {module}, which does not define it")
        theirs, text = package[name]
        if _bare(node) != _bare(theirs):
            lines[_first_line(node) - 1 : node.end_lineno] = (text if _docstrings(node) else _plain(text)).splitlines()
    return "\n".join(lines) + "\n" * source.endswith("\n")


def sync_notebook(path: Path, *, check: bool = False) -> bool:
    """Rewrite the quotes of one notebook, or only look. Returns whether any had drifted."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    drifted = False
    for cell, module in quoting_cells(notebook):
        old = "".join(cell["source"])
        new = fresh_source(old, module)
        if new != old:
            drifted = True
            cell["source"] = new.splitlines(keepends=True)
    first = notebook["cells"][0]
    lines = "".join(first["source"]).splitlines(keepends=True)
    if first["cell_type"] == "markdown" and lines[0].startswith("[![") and lines[0] != f"{opening_line(path.name)}\n":
        drifted = True
        first["source"] = [f"{opening_line(path.name)}\n", *lines[1:]]
    if drifted and not check:
        write_file(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    return drifted


def _definitions(source: str) -> dict[str, tuple[ast.stmt, str]]:
    """Top-level functions, classes and assignments by name, each with its text."""
    found = {}
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
        elif isinstance(node, ast.AnnAssign):
            name = ast.unparse(node.target)
        else:
            continue
        found[name] = node, "\n".join(lines[_first_line(node) - 1 : node.end_lineno])
    return found


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def _docstrings(tree: ast.AST) -> list[ast.stmt]:
    parts = [p for p in ast.walk(tree) if isinstance(p, ast.FunctionDef | ast.ClassDef)]
    return [part.body[0] for part in parts if ast.get_docstring(part) is not None]


def _plain(text: str) -> str:
    """A definition's text without its docstrings."""
    lines = text.splitlines()
    for node in sorted(_docstrings(ast.parse(text)), key=lambda node: -node.lineno):
        end = node.end_lineno
        while end < len(lines) and not lines[end].strip():
            end += 1
        del lines[node.lineno - 1 : end]
    return "\n".join(lines)


def _bare(node: ast.stmt) -> str:
    """The syntax tree without docstrings, as text."""
    tree = ast.parse(ast.unparse(node))
    for part in ast.walk(tree):
        if isinstance(part, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(part) is not None:
            part.body = part.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _module_source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise SyncError(f"a cell quotes {module}, which is no module of this package")
    return Path(spec.origin).read_text(encoding="utf-8")


def main(arguments: list[str]) -> int:
    """`[--check] [NOTEBOOK ...]`; without names, all in notebooks/."""
    check = "--check" in arguments
    paths = [Path(a) for a in arguments if a != "--check"] or sorted(Path("notebooks").glob("*.ipynb"))
    drifted = [path for path in paths if sync_notebook(path, check=check)]
    for path in drifted:
        print(f"{path}: {'differs from the package' if check else 'rewritten'}")
    return 1 if drifted and check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
