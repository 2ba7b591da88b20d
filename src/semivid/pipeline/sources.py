"""Which files of this package a stage command reads: its imports, followed through the package.

`python -m semivid.pipeline.sources stages/NAME.py` prints them as they stand under `deps` in dvc.yaml.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import get_args

from semivid.errors import UserError
from semivid.pipeline.params import Network

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


ARCHITECTURE = "src/semivid/models/${network.architecture}.py"


def dependencies(script: Path) -> list[str]:
    """What the stage command `script` has to have under `deps` in dvc.yaml of files with code, in the usual order.

    The working folder is the repository. A script with the key `network` depends on the file of that architecture, and
    on what any architecture imports, since nobody knows which will be chosen. Raises UserError if there is no `script`.
    """
    try:
        constants = {n.value for n in ast.walk(ast.parse(script.read_text("utf-8"))) if isinstance(n, ast.Constant)}
    except FileNotFoundError:
        raise UserError(f"{script}: no such file; give the script of a stage, such as stages/train_mix.py") from None
    found, named = imports_of(script), set()
    if "network" in constants:
        named = {ARCHITECTURE}
        for block in get_args(get_args(Network)[0]):
            (architecture,) = get_args(block.model_fields["architecture"].annotation)
            found |= imports_of(Path(f"src/semivid/models/{architecture}.py"))
    return [script.as_posix(), *sorted({f.as_posix() for f in found} | named)]


def main() -> None:
    try:
        if len(sys.argv) != 2:
            raise UserError("give one script: python -m semivid.pipeline.sources stages/NAME.py")
        for name in dependencies(Path(sys.argv[1])):
            print(f"      - {name}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
