# Snakemake schedules, DVC decides: one rule per stage of dvc.yaml, whose shell command is `dvc repro`.
# Commands, dependencies and outputs stand in dvc.yaml alone; see docs/engines.md.
import sys

sys.path.insert(0, "src")
from semivid.errors import UserError
from semivid.pipeline.bridge import (
    hold_engine_lock,
    is_folder,
    read_stages,
    refuse_beside_another,
    remove_orphans,
    write_stamps,
)
from semivid.pipeline.slurm import cluster_has_gpus

try:
    if workflow.is_main_process:
        refuse_beside_another()
    STAGES = read_stages(check=workflow.is_main_process)
    GPUS = not config.get("slurm") or cluster_has_gpus()
except UserError as error:
    raise WorkflowError(str(error))
if workflow.is_main_process:
    write_stamps(STAGES)


onstart:  # not in a dry run, which must change nothing
    try:
        hold_engine_lock()
    except UserError as error:
        raise WorkflowError(str(error))
    remove_orphans()


rule all:
    default_target: True
    input:
        [o for s in STAGES for o in s.outputs if o.startswith("results/")],


for stage in STAGES:

    rule:
        name:
            stage.rule
        input:
            stamp=str(stage.stamp),
            upstream=[p if stage.stale else ancient(p) for p in stage.inputs],
        output:
            [directory(p) if is_folder(p) else p for p in stage.outputs],
        log:
            f"logs/{stage.name}.log",
        conda:
            "environment.yml"
        threads: stage.meta.get("threads", 1)
        resources:
            mem_mb=stage.meta.get("mem_mb", 2000),
            runtime=stage.meta.get("minutes", 60),
            gpu=stage.meta.get("gpus", 0) if GPUS else 0,
        params:
            stage=stage.name,
        shell:
            "exec env PYTHONPATH=src${{PYTHONPATH:+:$PYTHONPATH}} SEMIVID_PROGRESS=plain SEMIVID_WORKERS={threads} python -m semivid.pipeline.run {params.stage}"
