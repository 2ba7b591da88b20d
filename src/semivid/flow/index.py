"""The index of precomputed optical flow: which frame's flow lies where, and how well it explains its pair.

``data/flow/index.csv``: one line per pair of neighbouring frames, paths relative to the file's own folder.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from semivid.errors import UserError


@dataclass(frozen=True)
class FlowPair:
    """Flow between a frame and the next one of its video.

    frame, next: names in the prepared index. forward: flow file on the pixels of `frame`, leading to `next`; backward:
    on those of `next`, leading back; consistent: mask on the pixels of `frame` where both agree (paths; empty if not
    computed). motion: mean length of the forward flow in pixels. error_still, error, error_inside: mean absolute
    difference in grey levels (0-255) between `frame` and `next` without, and with warping along the flow; inside: over
    pixels whose target lies in the picture. consistent_share: share of consistent pixels (empty if not computed).
    """

    split: str
    sequence: str
    frame: str
    next: str
    forward: str
    backward: str
    consistent: str
    motion: float
    error_still: float
    error: float
    error_inside: float
    consistent_share: float | None


def write_flow_index(path: Path, pairs: Iterable[FlowPair]) -> None:
    """Write `pairs`, sorted by split and frame."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(FlowPair)], lineterminator="\n")
        writer.writeheader()
        for pair in sorted(pairs, key=lambda p: (p.split, p.frame)):
            row = asdict(pair)
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else "" if v is None else v for k, v in row.items()})


def read_flow_index(path: Path) -> dict[str, FlowPair]:
    """{frame name: pair} of the index at `path`, with absolute paths of files.

    Raises UserError if it is missing or malformed.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; run the stage flow first")
    folder = Path(os.path.abspath(path)).parent
    pairs = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                numbers = {k: float(row[k]) for k in ("motion", "error_still", "error", "error_inside")}
                files = {k: str(folder / row[k]) if row[k] else "" for k in ("forward", "backward", "consistent")}
                share = float(row["consistent_share"]) if row["consistent_share"] else None
                names = {k: row[k] for k in ("split", "sequence", "frame", "next")}
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{path}: malformed row; run the stage flow again") from None
            pairs[row["frame"]] = FlowPair(**names, **files, **numbers, consistent_share=share)
    return pairs
