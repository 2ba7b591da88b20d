"""Evaluate one network of the flow consistency table: scores on labelled frames, agreement along the flow on video."""

from pathlib import Path

from semivid.data.index import read_classes, read_index
from semivid.evaluation.curves import best_of_curve
from semivid.evaluation.trained import protocol, trained_network
from semivid.evaluation.video_scores import score_video
from semivid.flow.store import FlowStore
from semivid.pipeline.artifacts import write_json
from semivid.pipeline.stage import Stage, run_stage
from semivid.selection.lists import read_selection
from semivid.training.runtime import Runtime

PREPARED = Path("data/prepared")


def main(stage: Stage) -> None:
    args, p = stage.args, stage.params
    runtime = Runtime(p.evaluate.threads, p.train.precision)
    classes, index = read_classes(PREPARED / "classes.json"), read_index(PREPARED / "index.csv")
    frames, store = index.select(p.evaluate.split), FlowStore(Path("data/flow"))
    predict = trained_network(stage.run, len(classes.names), p.network, runtime, p.evaluate.flip)
    found = score_video(predict, frames, store, classes, p.evaluate, runtime)
    result = {
        "method": args.method,
        "percent": args.percent,
        "seed": args.seed,
        "labels": len(read_selection(Path(f"splits/fractions/{args.seed}/{args.percent}.txt"))),
        "iterations": p.train.iterations,
        **found.scores,
        **best_of_curve(Path(f"runs/{stage.run}")),
        "temporal_agreement": found.agreement,
        "temporal_pairs": found.pairs,
        "protocol": protocol(p, found.frames),
    }
    write_json(f"results/flow_consistency/{stage.run}.json", result)


if __name__ == "__main__":
    run_stage(
        main,
        ["data.name", "frames.size", "network", "train", "evaluate"],
        {"method": str, "percent": int, "seed": int},
    )
