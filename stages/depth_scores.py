"""The learnt depth and camera motion against the renderer's truth (other sources have none: the file says so)."""

from pathlib import Path

import cv2
import numpy as np
import torch

from semivid.data.index import Frame, read_index
from semivid.data.store import FrameStore
from semivid.data.street.truth import read_depth, read_poses
from semivid.depth.networks import build_depth_model
from semivid.depth.scores import depth_errors, direction_agreement
from semivid.evaluation.inference import whole_frames
from semivid.geometry.camera import disp_to_depth
from semivid.models.checkpoints import load_parts
from semivid.pipeline.artifacts import write_json
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.runtime import Runtime

OUT = Path("results/depth.json")
TRUTH = Path("data/raw/truth")
LEAST_MOTION = 0.1  # metres per frame below which a direction means nothing
BATCH = 4


def true_depth(frame: Frame, shape: tuple[int, int]) -> np.ndarray:
    """The renderer's depth in metres at the prepared size (nearest), float32 `shape`."""
    path = TRUTH / "depth" / frame.split / frame.frame.split("_")[0] / f"{frame.frame}_depth.png"
    return cv2.resize(read_depth(path), shape[::-1], interpolation=cv2.INTER_NEAREST)


def true_pose(frame: Frame) -> np.ndarray:
    """The renderer's camera-to-world pose of a frame, float64 (4, 4), metres."""
    names, poses = read_poses(TRUTH / "poses" / frame.split / f"{frame.sequence}.json")
    return poses[[n.startswith(frame.frame) for n in names].index(True)]


def main(stage: Stage) -> None:
    p = stage.params
    if p.data.source != "street":
        write_json(OUT, {"truth": f"none for data source {p.data.source}"})
        return
    runtime = Runtime(p.disparity.threads)
    none = {"weights": "none", "pose_weights": "none"}
    model = build_depth_model(**p.depth_network.arguments() | none)
    load_parts(model.parts(), stage.params.depth_model)
    runtime.place(model).eval()
    index, store = read_index(Path("data/prepared/frames.csv")), FrameStore()
    frames = index.select("val")
    errors, cosines = [], []
    with torch.no_grad():
        for chunk, images in whole_frames(frames, store, BATCH, runtime):
            inverse, _ = disp_to_depth(
                model(images, scales=(0,))["disp"][0], p.depth_finetune.min_depth, p.depth_finetune.max_depth
            )
            for frame, prediction in zip(chunk, inverse[:, 0].cpu().numpy(), strict=True):
                errors.append(depth_errors(prediction, true_depth(frame, prediction.shape)))
        for frame in frames:
            following = index.neighbour(frame, 1)
            if following is None:
                continue
            true = (np.linalg.inv(true_pose(following)) @ true_pose(frame))[:3, 3]
            if np.linalg.norm(true) < LEAST_MOTION:
                continue
            ((_, pair),) = whole_frames([frame, following], store, 2, runtime)
            predicted = model.pose_net.transform(pair[:1], pair[1:], 1)[0, :3, 3].cpu().numpy()
            cosines.append(direction_agreement(predicted, true))
    write_json(
        OUT,
        {
            "truth": "renderer",
            "n_frames": len(errors),
            "n_motions": len(cosines),
            "abs_rel": float(np.mean([e["abs_rel"] for e in errors])),
            "correlation": float(np.mean([e["correlation"] for e in errors])),
            "motion_cosine": float(np.mean(cosines)) if cosines else None,
            "motion_forward": float(np.mean(np.array(cosines) > 0)) if cosines else None,
        },
    )


if __name__ == "__main__":
    run_stage(
        main,
        [
            "depth_model",
            "data.source",
            "depth_network",
            "depth_finetune.min_depth",
            "depth_finetune.max_depth",
            "disparity.threads",
        ],
    )
