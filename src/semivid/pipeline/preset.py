"""Switch params.yaml to one of presets/: `python -m semivid.pipeline.preset NAME [DATA]`."""

from __future__ import annotations

import sys
from pathlib import Path

from semivid.errors import UserError
from semivid.pipeline.artifacts import write_text
from semivid.pipeline.params import read_params

PRESETS = Path("presets")
PARAMS = Path("params.yaml")
PLACEHOLDER = "DATA/"


def switch(name: str, data: str = "") -> list[str]:
    """Write presets/<name>.yaml to params.yaml, with ``DATA/`` replaced by the folder `data`; returns what to tell.

    A params.yaml that is neither a preset nor already kept is copied to params.before-<name>.yaml first.
    Raises UserError for an unknown preset, a missing or superfluous `data`, a folder that does not exist.
    """
    known = sorted(p.stem for p in PRESETS.glob("*.yaml"))
    if name not in known:
        raise UserError(f"no preset {name!r}; there are {', '.join(known)} (make preset NAME=... DATA=...)")
    text = (PRESETS / f"{name}.yaml").read_text()
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
