"""Score a trained network again: `python -m semivid.evaluation.validate RUN [--eval-flip]`.

RUN is the name of a file in models/ (``flow_consistency-10-7``, ``supervised-random-12-7``). Nothing is written: the
stages evaluate and evaluate_flow keep what tables are made of, with flip averaging by `evaluate.flip`.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from semivid.errors import UserError
from semivid.evaluation.confusion import confusion_matrix, scores
from semivid.evaluation.inference import segment
from semivid.evaluation.open_run import open_run

TITLES = {
    "accuracy": "overall accuracy",
    "mean_class_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency weighted IoU",
    "miou": "mean IoU",
}


def validate(run: str, flip: bool, split: str | None = None) -> str:
    """The four scores and every class's IoU of `run` on the labelled frames of `split` (None: `evaluate.split`).

    Raises UserError if the run, the frames or their masks are missing.
    """
    opened = open_run(run, flip)
    split = split or opened.params.evaluate.split
    frames = opened.index.select(split, labelled=True)
    if not frames:
        raise UserError(f"no frame of split {split!r} has a mask; check `data.masks`, or give another --split")
    names = opened.classes.names
    confusion = np.zeros((len(names),) * 2, np.int64)
    start = time.perf_counter()
    for frame, predicted in segment(
        opened.predict, frames, opened.store, opened.params.evaluate.batch_size, opened.runtime
    ):
        confusion += confusion_matrix(predicted, opened.store.label(frame), len(names))
    seconds = time.perf_counter() - start
    result = scores(confusion, names)
    lines = [f"{run}: {len(frames)} frames of {split}{', flip averaged' * flip}, {len(frames) / seconds:.1f} frames/s"]
    lines += [f"{title:24}{100 * result[key]:7.2f}" for key, title in TITLES.items()]
    lines += [f"  {name:22}{'      -' if iou is None else f'{100 * iou:7.2f}'}" for name, iou in result["iou"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="validate", description="Score a trained network; writes nothing.")
    parser.add_argument("run", help="name of a file in models/, without .safetensors")
    parser.add_argument("--eval-flip", action="store_true", help="average the logits with those of mirrored frames")
    parser.add_argument("--split", choices=("train", "val", "test"), help="instead of `evaluate.split`")
    args = parser.parse_args()
    try:
        print(validate(args.run, args.eval_flip, args.split))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
