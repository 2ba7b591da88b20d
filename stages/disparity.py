"""The depth teacher's disparity (PNG) of every annotated frame, and its pooled features for the selection."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from semivid.data.index import read_index
from semivid.data.store import FrameStore
from semivid.depth.disparity import write_disparity
from semivid.depth.networks import build_depth_model
from semivid.errors import UserError
from semivid.evaluation.inference import whole_frames
from semivid.models.checkpoints import load_parts
from semivid.pipeline.artifacts import replacing
from semivid.pipeline.stage import Stage, run_stage
from semivid.selection.diversity import pool_features
from semivid.training.progress import Progress
from semivid.training.runtime import Runtime

BATCH = 4


def main(stage: Stage) -> None:
    options = stage.params.disparity
    runtime = Runtime(options.threads)
    model = build_depth_model(**stage.params.depth_network.backbone() | {"weights": "none"}, pose_encoder=None)
    load_parts(model.parts(), stage.params.depth_model)
    runtime.place(model).eval()
    frames = read_index(Path("data/prepared/index.csv")).select(labelled=None if options.frames == "all" else True)
    if not any(frame.split == "train" for frame in frames):
        raise UserError("no training frame has a mask; check `data.masks`, or set `disparity.frames` to all")
    pooled, names, level = [], [], options.feature_level
    grid = (options.feature_pool, 2 * options.feature_pool)
    progress = Progress(stage.name, 0, len(frames))
    with replacing("data/disparity") as out, replacing("data/features.safetensors") as features, torch.no_grad():
        for chunk, images in whole_frames(frames, FrameStore(), BATCH, runtime):
            output = model(images, scales=(0,), levels=(level,))
            maps = pool_features(output["features"][level].cpu().numpy(), grid)
            for frame, disparity, pool in zip(chunk, output["disp"][0][:, 0].cpu().numpy(), maps, strict=True):
                write_disparity(out / frame.split / f"{frame.frame}.png", disparity, options.bits)
                if frame.split == "train":
                    pooled.append(torch.from_numpy(pool))
                    names.append(frame.frame)
            progress.advance(progress.done + len(chunk))
        save_file({"features": torch.stack(pooled)}, features, metadata={"frames": json.dumps(names)})
    progress.close()


if __name__ == "__main__":
    run_stage(main, ["depth_model", "depth_network", "disparity"])
