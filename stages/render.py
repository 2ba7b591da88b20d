"""Render `street`: driving video in the Cityscapes layout, with exact labels, depth, flow and poses."""

from semivid.pipeline.artifacts import replacing
from semivid.pipeline.stage import Stage, run_stage
from semivid.training.progress import Progress


def main(stage: Stage) -> None:
    options = stage.params.render
    with replacing("data/raw") as out:
        if stage.params.data.source != "street":
            out.mkdir()  # real data lie elsewhere (`data.frames`); there is nothing to render
            return
        from semivid.data.street.write import render_dataset

        counts = options.snippets.model_dump()
        progress = Progress("render", 0, sum(counts.values()))
        render_dataset(
            out,
            seed=options.seed,
            size=options.size,
            snippets=counts,
            frames_per_snippet=options.frames_per_snippet,
            annotated=options.annotated,
            fps=options.fps,
            workers=stage.workers,
            progress=lambda done, total: progress.advance(done),
        )
        progress.close()


if __name__ == "__main__":
    run_stage(
        main,
        [
            "data.source",
            "render.seed",
            "render.size",
            "render.snippets",
            "render.frames_per_snippet",
            "render.annotated",
            "render.fps",
        ],
    )
