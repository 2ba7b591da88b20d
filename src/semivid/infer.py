"""Segment pictures or a video with a trained network: `python -m semivid.infer RUN INPUT [--out FOLDER]`.

RUN is the name of a file in models/ (``supervised-random-12-7``), or the path of a weights file, own or imported. INPUT
is a folder of pictures, a picture, or a video file. Written are labels (train ids), colours, overlays, disparity and
depth pictures where there is a depth network, and a film of the overlays. See docs/inference.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from semivid.data.classes import Classes, read_class_file, read_classes
from semivid.errors import UserError, raise_all, shown
from semivid.evaluation.film import open_source
from semivid.evaluation.segment_files import FILM, FOLDERS, KINDS, RECORD, possible_kinds, segment_files
from semivid.pipeline.params import Params, read_params

log = logging.getLogger("semivid")
_OURS = {name for names in FOLDERS.values() for name in names} | {FILM, RECORD}
_WEIGHTS = (".safetensors", ".pth", ".pt", ".pkl")


def weights_file(run: str) -> Path:
    """``models/RUN.safetensors``, or RUN itself: a weights file or a folder that holds just one. UserError if not."""
    own, path = Path(f"models/{run}.safetensors"), Path(run)
    if own.is_file():
        return own
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in _WEIGHTS)
        if len(files) == 1:
            return files[0]
        raise UserError(f"{shown(run)}: a folder with {len(files)} weights files; give the path of one file")
    there = sorted(p.stem for p in Path("models").glob("*-*.safetensors"))
    listed = f"there are {', '.join(there[:8])}{', ...' * (len(there) > 8)}" if there else "train it first"
    raise UserError(f"{shown(own)}: no such run, and {shown(run)} is no weights file; {listed}")


def class_list(path: Path | None, params: Params) -> Classes:
    """Classes by ``classes.json`` or a classes file (YAML); None: the prepared data's, else those of `data.classes`."""
    if path is None:
        prepared = Path("data/prepared/classes.json")
        path = prepared if prepared.is_file() else Path(params.data.classes)
    elif not path.is_file():
        raise UserError(f"{shown(path)}: no such file; give a classes.json, or a file of presets/classes")
    return read_classes(path) if path.suffix == ".json" else read_class_file(path)[0]


def check_out(out: Path, source: Path, overwrite: bool) -> None:
    """Refuse to lose what is in `out`: anything that is no result of inference; results too, unless `overwrite`."""
    if out.is_file():
        raise UserError(f"{shown(out)}: a file; give a folder with --out")
    there = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    if not there:
        return
    strangers = [name for name in there if name not in _OURS]
    if strangers or RECORD not in there:
        what = (strangers or there)[0]
        raise UserError(f"{shown(out)}: holds {shown(what)}, which inference did not write; give another --out")
    if source.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{shown(source)}: lies in the folder of the results, {shown(out)}; give another --out")
    if not overwrite:
        raise UserError(f"{shown(out)}: holds results already; give --overwrite to replace them, or another --out")
    log.info("replacing the results in %s", shown(out))


def run(args: argparse.Namespace) -> None:
    """Do what the command line says. UserError for bad input, and at the end for pictures that could not be read."""
    weights = weights_file(args.run)
    source = open_source(args.input)
    out = args.out or Path("visualisation/inference") / weights.stem / args.input.resolve().stem
    check_out(out, args.input, args.overwrite)
    params = read_params(args.params)
    classes = class_list(args.classes, params)
    flip = params.evaluate.flip if args.flip is None else args.flip
    wanted = set(args.write or KINDS) - ({"depth"} if args.depth == "none" else set())
    from semivid.evaluation.segmenter import open_segmenter  # imports torch: not before bad input is told

    depth = Path(args.depth) if args.depth and "depth" in wanted else None
    own = Path(params.depth_model)
    otherwise = own if own.exists() and "depth" in wanted else None
    segmenter = open_segmenter(weights, params, classes, flip, depth, otherwise)
    if "depth" not in wanted:
        segmenter = dataclasses.replace(segmenter, disparity=None, depth_source=None)
    kinds = wanted & possible_kinds(source, segmenter)
    if args.write and kinds != wanted:
        reasons = {"depth": f"there is no {own}; give --depth, or", "film": "a single picture makes none;"}
        raise_all([f"--write {kind}: {reasons[kind]} leave {kind} out" for kind in sorted(wanted - kinds)])
    record = {
        "weights": str(weights),
        "input": str(args.input),
        "network": params.network.architecture,
        "flip": flip,
        "depth": segmenter.depth_source,
    }
    batch_size = args.batch_size or params.evaluate.batch_size
    start = time.perf_counter()
    done = segment_files(
        segmenter, source, out, classes, kinds=kinds, batch_size=batch_size, fps=args.fps, record=record
    )
    rate = done / (time.perf_counter() - start)
    print(f"{done} pictures, {rate:.1f}/s: {shown(out)} ({', '.join(sorted(p.name for p in out.iterdir()))})")
    raise_all(source.faults)


def _positive(kind: type) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value <= 10**6:
            raise ValueError
        return value

    number.__name__ = "positive number"  # argparse puts it into its message
    return number


def main() -> None:
    parser = argparse.ArgumentParser(prog="infer", description="Segment pictures or a video with a trained network.")
    parser.add_argument("run", help="name of a file in models/ without .safetensors, or path of a weights file")
    parser.add_argument("input", type=Path, help="folder of pictures, picture, or video file")
    parser.add_argument("--out", type=Path, help="folder to write (default: visualisation/inference/RUN/INPUT)")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results in that folder")
    parser.add_argument("--write", nargs="+", choices=KINDS, metavar="KIND", help=f"only these of {', '.join(KINDS)}")
    parser.add_argument(
        "--depth",
        help="depth model (folder, zip or file) or none (default: that of params.yaml, `depth_model`, if there)",
    )
    parser.add_argument("--fps", type=_positive(float), help="of the film (default: the video's, 10 for pictures)")
    parser.add_argument("--batch-size", type=_positive(int), help="pictures at once (default: evaluate.batch_size)")
    parser.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, help="average with mirrored pictures (default: evaluate.flip)"
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="what the network was trained with")
    parser.add_argument("--classes", type=Path, help="classes.json or a classes file (default: the prepared data's)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a user error")
    args = parser.parse_args()
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.setLevel(logging.INFO)
    for stopping in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stopping, _on_stop)
    try:
        run(args)
    except UserError as error:
        _refuse(str(error), args.debug)
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}; check that there is space and the path is writable", args.debug)


def _on_stop(signum: int, frame: object) -> None:
    """Unwind, so that the temporary folder is removed."""
    raise SystemExit(128 + signum)


def _refuse(message: str, debug: bool) -> NoReturn:
    """End with exit code 2 and one line per fault."""
    if debug:
        traceback.print_exc()
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2) from None


if __name__ == "__main__":
    main()
