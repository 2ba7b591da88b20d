"""Bring the raw frames of any source to one size and one layout: images, frames.csv, cameras.json."""

import json
from pathlib import Path

from semivid.data.prepare import prepare_frames
from semivid.pipeline.artifacts import replacing
from semivid.pipeline.stage import Stage, log, run_stage
from semivid.training.progress import Progress

OUT = Path("data/prepared")


def main(stage: Stage) -> None:
    data, options = stage.params.data, stage.params.frames
    source = {
        "source": data.source,
        "frames": data.frames.model_dump(),
        "camera": data.camera,
        "holdout": data.holdout,
    }
    progress = None

    def advance(done: int, total: int) -> None:
        nonlocal progress
        progress = progress or Progress("frames", 0, total)
        progress.advance(done)

    names = ("images", "frames.csv", "cameras.json")
    with replacing(OUT / names[0]) as images, replacing(OUT / names[1]) as csv, replacing(OUT / names[2]) as cameras:
        summary = prepare_frames(
            source,
            size=options.size,
            format=options.format,
            quality=options.quality,
            out_images=images,
            out_csv=csv,
            out_cameras=cameras,
            workers=stage.workers,
            progress=advance,
        )
    log.info("%s", json.dumps(summary))


if __name__ == "__main__":
    run_stage(
        main,
        [
            "data.source",
            "data.frames",
            "data.camera",
            "data.holdout",
            "frames.size",
            "frames.format",
            "frames.quality",
        ],
    )
