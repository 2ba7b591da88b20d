"""Turn the masks of any source into train ids at the prepared size: labels, index.csv, classes.json."""

import json
from pathlib import Path

from semivid.data.prepare import prepare_masks
from semivid.pipeline.artifacts import replacing
from semivid.pipeline.stage import Stage, log, run_stage

OUT = Path("data/prepared")


def main(stage: Stage) -> None:
    data = stage.params.data
    source = {
        "source": data.source,
        "frames": data.frames.model_dump(),
        "masks": data.masks.model_dump(),
        "classes": data.classes,
        "holdout": data.holdout,
    }
    names = ("labels", "index.csv", "classes.json")
    with replacing(OUT / names[0]) as labels, replacing(OUT / names[1]) as csv, replacing(OUT / names[2]) as classes:
        summary = prepare_masks(
            source,
            size=stage.params.frames.size,
            csv_in=OUT / "frames.csv",
            out_labels=labels,
            out_csv=csv,
            out_classes=classes,
            workers=stage.workers,
        )
    if summary["unmatched_masks"]:
        log.warning("warning: masks without a frame of their name: %s; they are not used", summary["unmatched_masks"])
    log.info("%s", json.dumps(summary))


if __name__ == "__main__":
    run_stage(main, ["data.source", "data.frames", "data.masks", "data.classes", "data.holdout", "frames.size"])
