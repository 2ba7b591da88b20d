"""Optical flow from every frame to the next of its video: files, index with warping errors, consistency masks."""

import shutil
from pathlib import Path

from semivid.data.index import read_index
from semivid.flow.index import write_flow_index
from semivid.flow.precompute import FlowSettings, pairs_to_compute, precompute
from semivid.pipeline.artifacts import replacing
from semivid.pipeline.fingerprint import fingerprint
from semivid.pipeline.stage import Stage, log, run_stage

PREPARED = Path("data/prepared")


def main(stage: Stage) -> None:
    options = stage.params.flow
    index = read_index(PREPARED / "index.csv")
    pairs = pairs_to_compute(index, options.frames == "annotated")
    key = fingerprint(stage.settings, [PREPARED / "images", PREPARED / "index.csv"])
    for left_over in [p for p in stage.work.glob("*") if p.name != key]:  # of other parameters or frames
        shutil.rmtree(left_over)
    chosen = getattr(options, options.method).model_dump()
    settings = FlowSettings(options.method, chosen, options.backward, options.format, options.pictures)
    computed = precompute(pairs, settings, stage.work / key, stage.workers, stage.name)
    count = len(computed) or 1
    log.info(
        "%d pairs; mean warping error %.2f grey levels (without flow %.2f)%s",
        len(computed),
        sum(p.error for p in computed) / count,
        sum(p.error_still for p in computed) / count,
        "" if computed else ": single photographs, no video",
    )
    with replacing("data/flow") as out:
        shutil.move(stage.work / key, out)
        shutil.rmtree(out / "runs")
        write_flow_index(out / "index.csv", computed)
    stage.work.rmdir()


if __name__ == "__main__":
    run_stage(
        main,
        ["flow.method", "flow.frames", "flow.backward", "flow.format", "flow.pictures", "flow.{flow.method}"],
    )
