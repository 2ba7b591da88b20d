"""Which files of this package a stage command reads: its imports, followed through the package."""

from __future__ import annotations

import ast
from pathlib import Path

# Plumbing that decides where and when things run, never what comes out; were it a dependency, a new key in the
# schema of params.yaml would retrain everything.
PLUMBING = ("pipeline/", "errors.py")


def _files_of(name: str, src: Path) -> set[Path]:
    """The files that importing `semivid.a.b` runs: the module's, and ``__init__.py`` of every package above it."""
    root, *parts = name.split(".")
    if not (src / root).is_dir():
        return set()
    bases = [(src / root).joinpath(*parts[:i]) for i in range(len(parts) + 1)]
    candidates = [b / "__init__.py" for b in bases] + [bases[-1].with_suffix(".py")]
    return {c for c in candidates if c.is_file()}


def _absolute(node: ast.ImportFrom, file: Path, src: Path) -> str:
    """The module of a `from ... import`, the leading dots of a relative one resolved."""
    if node.level == 0:
        return node.module or ""
    above = file.relative_to(src).parts[:-1]
    return ".".join([*above[: len(above) - node.level + 1], *([node.module] if node.module else [])])


def imports_of(script: Path, package: Path = Path("src/semivid")) -> set[Path]:
    """All non-empty files of this package, and of those beside it in src, that `script` imports.

    Directly or not, lazily or not; less the plumbing and the package's own ``__init__.py``.
    """
    src, top = package.parent, package / "__init__.py"
    found: set[Path] = set()
    queue = [script]
    while queue:
        file = queue.pop()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = _absolute(node, file, src)
                names = [module, *(f"{module}.{a.name}" for a in node.names)]
            for name in names:
                for imported in _files_of(name, src) - found - {top}:
                    within = imported.relative_to(package) if imported.is_relative_to(package) else imported
                    if imported.stat().st_size and not str(within).startswith(PLUMBING):
                        found.add(imported)
                        queue.append(imported)
    return found
