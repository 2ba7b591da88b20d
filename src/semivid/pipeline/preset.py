"""Switch params.yaml to one of presets/: `python -m semivid.pipeline.preset NAME [DATA]`.

A preset is a whole params.yaml. A variant (presets/variants) is a few of its blocks: they replace those of the preset
that its first key, ``base``, names.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from semivid.errors import UserError
from semivid.pipeline.artifacts import write_text
from semivid.pipeline.params import read_params

PRESETS = Path("presets")
VARIANTS = PRESETS / "variants"
PARAMS = Path("params.yaml")
PLACEHOLDER = "DATA/"


def preset_text(name: str, folder: Path = PRESETS) -> str:
    """The whole text of a preset, or of a variant: comments above its first key, then all blocks of its base.

    Raises UserError if there is no such preset, or a variant's base is no preset or lacks one of its blocks.
    """
    files = {p.stem: p for p in [*folder.glob("*.yaml"), *folder.glob(f"{VARIANTS.name}/*.yaml")]}
    if name not in files:
        raise UserError(f"no preset {name!r}; there are {', '.join(sorted(files))} (make preset NAME=... DATA=...)")
    text = files[name].read_text(encoding="utf-8")
    if files[name].parent == folder:
        return text
    head, blocks = _blocks(text)
    base = blocks.pop("base", "base:").partition(":")[2].split("#")[0].strip()
    if not (folder / f"{base}.yaml").is_file():
        raise UserError(f"{files[name]}: its first key must be `base`, the name of a preset, not {base!r}")
    _, whole = _blocks((folder / f"{base}.yaml").read_text(encoding="utf-8"))
    if odd := sorted(set(blocks) - set(whole)):
        raise UserError(f"{files[name]}: {base}.yaml has no block `{odd[0]}`; correct its name")
    return head + "".join(f"{block.rstrip()}\n\n" for block in (whole | blocks).values()).rstrip() + "\n"


def _blocks(text: str) -> tuple[str, dict[str, str]]:
    """What stands above the first key, and the text of each top-level block by its key."""
    head, *blocks = re.split(r"(?m)^(?=\w+:)", text)
    return head, {block.partition(":")[0]: block for block in blocks}


def switch(name: str, data: str = "") -> list[str]:
    """Write the preset `name` to params.yaml, with ``DATA/`` replaced by the folder `data`; returns what to tell.

    A params.yaml that is neither a preset nor already kept is copied to params.before-<name>.yaml first.
    Raises UserError for an unknown preset, a missing or superfluous `data`, a folder that does not exist.
    """
    text = preset_text(name)
    if PLACEHOLDER in text:
        if not data:
            raise UserError(f"preset {name} needs the folder of the data set: make preset NAME={name} DATA=path")
        if not Path(data).is_dir():
            raise UserError(f"{data}: no such folder; DATA is the folder of the data set")
        text = text.replace(PLACEHOLDER, f"{Path(data).as_posix()}/")
    elif data:
        raise UserError(f"preset {name} makes its own data; leave DATA out")
    told = []
    if PARAMS.exists() and (old := PARAMS.read_text()) != text:
        backup = Path(f"params.before-{name}.yaml")
        if old not in [p.read_text() for p in PRESETS.glob("*.yaml")]:
            write_text(backup, old)
            told.append(f"the params.yaml that was here is now {backup}")
    write_text(PARAMS, text)
    read_params(PARAMS)
    return [*told, f"params.yaml is now the preset {name}; `make plan` shows what will run"]


def main() -> None:
    try:
        for line in switch(*sys.argv[1:3]) if len(sys.argv) > 1 else switch(""):
            print(line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
