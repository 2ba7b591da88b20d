"""Pictures of what a trained network does: `python -m semivid.evaluation.visualise RUN`.

Per frame: input, output, ground truth, optical flow, the weights of the flow consistency loss, and how similar the
prediction is to that of the neighbouring pixels (what the loss pushes down where motion differs).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from semivid.data.index import Frame
from semivid.errors import UserError
from semivid.evaluation.inference import whole_frames
from semivid.evaluation.open_run import OpenRun, open_run
from semivid.evaluation.pictures import contact_sheet, write_rgb
from semivid.flow.colours import flow_colours
from semivid.flow.store import FlowStore
from semivid.methods.flow_consistency_loss import pair_weights
from semivid.pipeline.params import FlowConsistency

TASKS = ("input", "output", "ground_truth", "flow", "fl_weights", "fl_similarity")


def neighbour_similarity(probabilities: torch.Tensor) -> torch.Tensor:
    """Mean over the up to 8 neighbours q of sum_c p_c q_c: float (H, W) in [0, 1] of class probabilities (C, H, W)."""
    height, width = probabilities.shape[-2:]
    total, count = torch.zeros(height, width), torch.zeros(height, width)
    padded = F.pad(probabilities, (1, 1, 1, 1))
    inside = F.pad(torch.ones(height, width), (1, 1, 1, 1))
    for a in range(3):
        for b in range(3):
            if (a, b) != (1, 1):
                here = slice(a, a + height), slice(b, b + width)
                total += (probabilities * padded[:, *here]).sum(0)
                count += inside[here]
    return total / count


def loss_weights(flow: np.ndarray, valid: np.ndarray, options: FlowConsistency) -> np.ndarray:
    """Sum of the weights that the loss gives to a pixel's neighbours: float32 (H, W), in pixels of motion.

    flow: float32 (H, W, 2); valid: bool (H, W). Rows of `options.discard_bottom` have weight 0.
    """
    valid = valid.copy()
    if options.discard_bottom:
        valid[int((1 - options.discard_bottom) * len(valid)) :] = False
    weights = pair_weights(
        torch.from_numpy(flow.transpose(2, 0, 1).copy())[None],
        version=options.version,
        max_shift=options.max_shift,
        threshold=options.threshold,
        valid=torch.from_numpy(valid)[None],
        clamp=options.clamp,
    )
    return sum(weights.values())[0].numpy()


def _grey(values: np.ndarray) -> np.ndarray:
    """Values scaled by their largest to a grey RGB picture."""
    scaled = values / max(float(values.max()), 1e-9)
    return np.repeat(np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)[..., None], 3, 2)


def pictures(opened: OpenRun, frame: Frame, logits: torch.Tensor) -> dict[str, np.ndarray]:
    """{task: uint8 RGB (H, W, 3)} of one frame; ground truth and flow are left out where there are none.

    logits: float (C, H, W).
    """
    probabilities = logits.softmax(0)
    found = {
        "input": opened.store.image(frame),
        "output": opened.classes.paint(probabilities.argmax(0).to(torch.uint8).numpy()),
        "fl_similarity": _grey(neighbour_similarity(probabilities).numpy()),
    }
    if frame.label is not None:
        found["ground_truth"] = opened.classes.paint(opened.store.label(frame))
    if isinstance(opened.store, FlowStore) and frame.frame in opened.store.pairs:
        flow, valid = opened.store.flow(frame)
        found["flow"] = flow_colours(flow, valid)
        found["fl_weights"] = _grey(loss_weights(flow, valid, opened.params.methods.flow_consistency))
    return found


def visualise(run: str, out: Path, split: str, names: list[str], count: int, flip: bool) -> list[Path]:
    """Write ``OUT/TASK/FRAME.png`` and ``OUT/overview.png``; returns the files.

    names: frames; none: `count` frames spread over the split. Raises UserError for what does not exist.
    """
    opened = open_run(run, flip, FlowStore(Path("data/flow")) if Path("data/flow/index.csv").exists() else None)
    frames = opened.index.select(split)
    if not frames:
        raise UserError(f"no frame in split {split!r}; give another --split")
    if unknown := [n for n in names if n not in opened.index.by_name]:
        raise UserError(f"no frame {unknown[0]!r} in data/prepared/index.csv; give names of its first column")
    if names:
        frames = [opened.index.by_name[n] for n in names]
    else:
        labelled = [f for f in frames if f.label is not None] or frames
        steps = np.linspace(0, len(labelled) - 1, min(count, len(labelled))).round().astype(int)
        frames = [labelled[i] for i in dict.fromkeys(steps.tolist())]
    written, sheet, captions = [], [], []
    with torch.no_grad():
        for chunk, images in whole_frames(frames, opened.store, 1, opened.runtime):
            found = pictures(opened, chunk[0], opened.predict(images)[0].cpu())
            for task in TASKS:
                if task in found:
                    written.append(out / task / f"{chunk[0].frame}.png")
                    write_rgb(written[-1], found[task])
                sheet.append(found.get(task, np.full_like(found["input"], 255)))
                captions.append(f"{task.replace('_', ' ')}{'' if task in found else ': none'}")
    written.append(out / "overview.png")
    write_rgb(written[-1], contact_sheet(sheet, captions, columns=len(TASKS)))
    return written


def main() -> None:
    parser = argparse.ArgumentParser(prog="visualise", description="Pictures of what a trained network does.")
    parser.add_argument("run", help="name of a file in models/, without .safetensors")
    parser.add_argument("--out", type=Path, help="folder to write to (default: visualisation/RUN)")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--frames", nargs="*", default=[], metavar="NAME", help="frames by name")
    parser.add_argument("--count", type=int, default=8, help="otherwise: how many, spread over the split")
    parser.add_argument("--eval-flip", action="store_true", help="average the logits with those of mirrored frames")
    args = parser.parse_args()
    out = args.out or Path("visualisation") / args.run
    try:
        written = visualise(args.run, out, args.split, args.frames, args.count, args.eval_flip)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{len(written)} pictures; all together: {written[-1]}")


if __name__ == "__main__":
    main()
