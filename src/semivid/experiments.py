"""The configurations that Three Ways published, by name, as targets of the pipeline: `python -m semivid.experiments`.

``python -m semivid.experiments 210`` lists experiment 210: the published name, our row METHOD-SELECTION, what it is.
``snakemake --cores all $(python -m semivid.experiments 210 scratch_classmix --labels 372)`` runs one of them; with
``--stages`` it prints what ``dvc repro`` takes.
Names and what they stand for: three_ways.md (specification), sections 11 and 12; docs/three_ways.md.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from semivid.errors import UserError, raise_all
from semivid.pipeline.params import Params, read_params

CRITERIA = {"ent": "entropy", "us": "us", "ds": "ds", "ds_us": "ds_us"}
"""Published name of a selection -> the criterion of `select` that computes it; its list is ``published_NAME``."""

ALL_LABELS = {"cityscapes": 2975, "camvid": 367, "mapillary": 18000}
"""`data.name` -> number of annotated training frames."""

REFUSED = "refused-by-semivid.experiments"
"""Printed instead of targets: `snakemake $(...)` of nothing at all would run the whole pipeline."""

ALL_LABELS_PRESET = {"cityscapes": "cityscapes_2975", "camvid": "camvid_three_ways_367", "mapillary": "mapillary_18000"}


@dataclass(frozen=True)
class Configuration:
    """One published name.

    family: the block of `compare` that trains it, ``table3`` (supervised training), or ``select`` (no training).
    selection: ``random``, or a key of CRITERIA. settings: what `methods.METHOD` must say for the name to be true.
    """

    experiment: int
    name: str
    family: str
    method: str
    selection: str
    about: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The configuration of the same training on random frames."""
        return self.name.removeprefix(f"sel_{self.selection}_")

    def selections(self, computed: bool) -> list[str]:
        """Selections that the name may mean, the preferred one first."""
        if self.selection == "random":
            return ["random"]
        both = [f"published_{self.selection}", CRITERIA[self.selection]]
        return both[1:] if computed or self.family == "select" else both

    @property
    def row(self) -> str:
        """As in tables: METHOD-SELECTION; of experiment 211, the criterion."""
        selection = self.selections(False)[0]
        return selection if self.family == "select" else f"{self.method}-{selection}"

    def run_name(self, data: str, labels: int, seed: int) -> str:
        """How the reference names the run (section 12); ``*`` where that is not known, nothing for other data."""
        if data not in ALL_LABELS:
            return ""
        subset = "random" if self.selection == "random" else "fixed"
        name = f"{data}_{self.name}_D{labels}{subset}_S{seed}_"
        if self.experiment == 212:
            return f"{name}*"
        network = "flip_r101_dec6_lr5_fd2_crop512x512bs4_l9os1"
        mask = {"depthmix": "depthcomp"}.get(self.settings.get("mask"), self.settings.get("mask"))
        unlabelled = f"_Unlab*{mask}jitblur" if mask else ""
        return f"{name}sgdLr0.010.001stepx_clip10_crop512x512bs2_{network}{unlabelled}"


class Target(NamedTuple):
    """file: what Snakemake makes. stage: what `dvc repro` takes. published: the reference's name of the run, or ""."""

    file: str
    stage: str
    published: str


def _mixed(mask: str, frames: str) -> dict[str, Any]:
    depthmix = mask == "depthmix"
    return {
        "mask": mask,
        "frames": frames,
        "ground_truth": frames == "all",
        "margin": 0.03 if depthmix else None,
        "foreground": (0.0, 0.0) if depthmix else None,
    }


def _selected(base: Configuration, about: str) -> list[Configuration]:
    """`base` on the frames of each published selection."""
    return [
        replace(base, name=f"sel_{key}_{base.name}", selection=key, about=f"{about} {key.upper().replace('_', '+')}")
        for key in CRITERIA
    ]


def _configurations() -> list[Configuration]:
    def of_210(name: str, family: str, method: str, about: str, settings: dict[str, Any] | None = None):
        return Configuration(210, name, family, method, "random", about, settings or {})

    def of_211(name: str, criterion: str, about: str):
        return Configuration(211, name, "select", "", criterion, about)

    scratch = of_210("scratch", "table3", "supervised", "labelled frames alone, from ImageNet")
    ours = of_210(
        "transfer_dcompgt0030",
        "transfer_mix_depth",
        "transfer_depthmix_gt",
        "from depth: DepthMix of all annotated frames, ground truth in the mix",
        _mixed("depthmix", "all"),
    )
    both = replace(
        ours,
        experiment=212,
        name="pad_transfer_dcompgt0030",
        family="multitask",
        method="multitask_depthmix_gt",
        about="the multi-task network, from depth: segmentation, depth, DepthMix with ground truth",
    )
    return [
        scratch,
        *_selected(scratch, "scratch on the frames selected by"),
        of_210("scratch_ema", "mix", "mean_teacher", "mean teacher, frames unmixed", _mixed("none", "unlabelled")),
        of_210("scratch_classmix", "mix", "classmix", "ClassMix of unlabelled frames", _mixed("class", "unlabelled")),
        of_210("scratch_classmix_video", "mix", "classmix_video", "ClassMix of video frames", _mixed("class", "video")),
        of_210(
            "scratch_classmixgt",
            "mix",
            "classmix_gt",
            "ClassMix of all annotated frames, ground truth in the mix",
            _mixed("class", "all"),
        ),
        of_210(
            "scratch_depthmixgt",
            "mix_depth",
            "depthmix_gt",
            "DepthMix of all annotated frames, ground truth in the mix",
            _mixed("depthmix", "all"),
        ),
        of_210("transfer", "transfer", "transfer", "labelled frames alone, from depth"),
        of_210(
            "transfer_ema",
            "transfer_mix",
            "transfer_mean_teacher",
            "from depth: mean teacher, frames unmixed",
            _mixed("none", "unlabelled"),
        ),
        of_210(
            "transfer_classmix",
            "transfer_mix",
            "transfer_classmix",
            "from depth: ClassMix of unlabelled frames",
            _mixed("class", "unlabelled"),
        ),
        of_210(
            "transfer_classmixgtall",
            "transfer_mix",
            "transfer_classmix_gt",
            "from depth: ClassMix of all annotated frames, ground truth in the mix",
            _mixed("class", "all"),
        ),
        ours,
        *_selected(ours, "the same on the frames selected by"),
        of_211("entropy_sonly", "ent", "entropy of a segmentation student (active learning)"),
        of_211("depthifp_u3-avg4", "ds", "DS: farthest points in the depth teacher's features"),
        of_211("ldepth_donly", "us", "US: errors of a depth student"),
        of_211("depthifp_u3-avg4_bias1000ldepth_donly", "ds_us", "DS+US: distance + 1000 x error of the student"),
        both,
        *_selected(both, "the same on the frames selected by"),
    ]


CONFIGURATIONS = {c.name: c for c in _configurations()}


def find(experiment: int, name: str) -> Configuration:
    """The configuration of that published name; UserError with the nearest right name if there is none."""
    found = CONFIGURATIONS.get(name)
    if found and found.experiment == experiment:
        return found
    if found:
        raise UserError(f"{name} belongs to experiment {found.experiment}, not to {experiment}; give that number")
    here = [n for n, c in CONFIGURATIONS.items() if c.experiment == experiment]
    near = difflib.get_close_matches(name, here, n=1) or difflib.get_close_matches(name, CONFIGURATIONS, n=1)
    hint = f"did you mean {near[0]}?" if near else "take one of them"
    number = CONFIGURATIONS[near[0]].experiment if near else experiment
    raise UserError(f"{name}: no published configuration; {hint} (python -m semivid.experiments {number} lists them)")


def _impossible(configuration: Configuration, data: str, labels: int) -> str:
    """Why the reference cannot run it with so many labels (section 8); empty if it can."""
    whole = ALL_LABELS.get(data)
    if whole is None or labels < whole:
        return ""
    if configuration.selection != "random":
        return f"there is nothing to select with all {whole} labelled; take {configuration.base}"
    if configuration.settings.get("frames") == "unlabelled":
        return f"it mixes unlabelled frames alone, and with all {whole} labelled there is none"
    return ""


def _fault(c: Configuration, params: Params, path: Path, computed: bool) -> str:
    """What `params` lack for the configuration's row; empty if nothing. See `_selection`."""
    selection = _selection(c, params, computed)
    if selection not in params.table3.rows:
        group = _group(selection)
        rest = "" if c.family in ("table3", "select") else _also(c, params, selection)
        return f"{path} lacks the selection: add {selection} to `table3.rows` and `table3.select.{group}`{rest}"
    if c.family in ("table3", "select"):
        return ""
    family = params.compare.families[c.family]
    block = getattr(params.methods, c.method, None)
    if block is None:
        return (
            f"{path} lacks the method: copy the block `methods.{c.method}` from presets/cityscapes.yaml, and add "
            f"{c.method} to `compare.{c.family}.methods`{_rows(c, selection)}"
        )
    if c.method not in family.methods:
        return f"{path} trains no {c.method}: add it to `compare.{c.family}.methods`{_rows(c, selection)}"
    if selection not in family.selections:
        return (
            f"{path} trains no {c.method} on {selection}: add {selection} to `compare.{c.family}.selections`"
            f"{_rows(c, selection)}"
        )
    if c.family.startswith("transfer") and not (params.transfer.encoder and params.transfer.decoder):
        return f"{path}: `transfer.encoder` and `transfer.decoder` are both true in this configuration; correct them"
    odd = [key for key, value in c.settings.items() if getattr(block, key) != value]
    if odd:
        found, wanted = getattr(block, odd[0]), c.settings[odd[0]]
        return f"{path}: `methods.{c.method}.{odd[0]}` is {found}, of this configuration {wanted}; correct it"
    return ""


def _group(selection: str) -> str:
    """Which list of `table3.select` a selection stands in, and which stage makes it."""
    return {"entropy": "labels", "ds": "features", "us": "student", "ds_us": "student"}.get(selection, "names")


def _rows(c: Configuration, selection: str) -> str:
    """Where else a new row must be listed: runs of the multi-task network have no list of their own."""
    return "" if c.family == "multitask" else f", and {c.method}-{selection} to `compare.rows`"


def _also(c: Configuration, params: Params, selection: str) -> str:
    listed = selection in params.compare.families[c.family].selections
    return "" if listed else f", {selection} to `compare.{c.family}.selections`{_rows(c, selection)}"


def _selection(c: Configuration, params: Params, computed: bool) -> str:
    """The published list where `params` train on it, else the computed selection, else what they have a list of."""
    choices = c.selections(computed)
    family = params.compare.families.get(c.family)
    lists = [family.selections if family else [], params.table3.rows]
    return next((s for listed in lists for s in choices if s in listed), choices[0])


def targets(
    configuration: Configuration,
    params: Params,
    labels: Sequence[int] = (),
    seeds: Sequence[int] = (),
    *,
    computed: bool = False,
    models: bool = False,
    path: Path = Path("params.yaml"),
) -> list[Target]:
    """What the pipeline makes of a published configuration, one target per run.

    Args:
        configuration: of `CONFIGURATIONS`.
        params: as read from `path`.
        labels: numbers of labelled frames; none for all of `compare.labels` that the reference can run.
        seeds: training seeds; none for all of `compare.seeds` (experiment 211: of `table3.seeds`).
        computed: the selections that this pipeline computes, also where `params` have the published lists.
        models: the trained weights instead of the scores.

    Returns:
        ``results/methods/RUN.json``, for supervised runs that are in Table 3 alone ``results/runs/RUN.json``, with
        `models` ``models/RUN.safetensors``; of experiment 211 ``splits/selected/CRITERION-SEED.txt``, whose first n
        lines are the selection of n frames, with no run name.

    Raises:
        UserError: one line each for what `params` do not list, or the reference cannot run.
    """
    c = configuration
    if fault := _fault(c, params, path, computed):
        raise UserError(f"{c.name}: {fault}")
    selection = _selection(c, params, computed)
    compared = c.family not in ("table3", "select") or f"{c.method}-{selection}" in params.compare.rows
    block, where = (params.compare, "compare") if compared else (params.table3, "table3")
    more = "" if where == "table3" else "` and `table3."
    faults = [
        f"{c.name}: {path} lists no seed {seed}: add it to `{where}.seeds{more and f'{more}seeds'}`"
        for seed in seeds
        if seed not in block.seeds
    ]
    if c.family == "select":
        if labels:
            faults.append(f"{c.name}: the first n lines of a selection are that of n frames; leave --labels out")
        raise_all(faults)
        stage = f"select_{_group(selection)}"
        return [
            Target(f"splits/selected/{selection}-{seed}.txt", f"{stage}@{selection}-{seed}", "")
            for seed in seeds or block.seeds
        ]
    for count in labels:
        if reason := _impossible(c, params.data.name, count):
            faults.append(f"{c.name} --labels {count}: {reason}")
        elif count not in block.labels:
            preset = ALL_LABELS_PRESET.get(params.data.name) if count == ALL_LABELS.get(params.data.name) else None
            list_them = f"add it to `{where}.labels{more and f'{more}labels'}`"
            advice = f"`make preset NAME={preset} DATA=...` has it" if preset else list_them
            faults.append(f"{c.name}: {path} lists no {count} labels: {advice}")
    raise_all(faults)
    wanted = labels or [n for n in block.labels if not _impossible(c, params.data.name, n)]
    if not wanted:
        raise UserError(f"{c.name}: {_impossible(c, params.data.name, block.labels[0])}")
    evaluation = "evaluate_methods" if compared else "evaluate"
    if models:
        stage, file = "train" if c.family == "table3" else f"train_{c.family}", "models/{}.safetensors"
    else:
        stage = "evaluate_multitask" if c.family == "multitask" else evaluation
        file = "results/methods/{}.json" if compared else "results/runs/{}.json"
    return [
        Target(file.format(run), f"{stage}@{run}", c.run_name(params.data.name, n, seed))
        for n in wanted
        for seed in seeds or block.seeds
        for run in [f"{c.method}-{selection}-{n}-{seed}"]
    ]


def listing(experiment: int) -> list[str]:
    """Published name, row and meaning of every configuration, one line each."""
    chosen = [c for c in CONFIGURATIONS.values() if c.experiment == experiment]
    names, rows = max(len(c.name) for c in chosen), max(len(c.row) for c in chosen)
    return [f"{c.name:{names}}  {c.row:{rows}}  {c.about}" for c in chosen]


def run(args: argparse.Namespace) -> None:
    """Print the list, or the targets; raises UserError with all that is wrong, one line each."""
    if not args.name:
        print("\n".join(listing(args.experiment)))
        return
    chosen, faults, found = [], [], []
    for name in args.name:
        try:
            chosen.append(find(args.experiment, name))
        except UserError as error:
            faults.append(str(error))
    raise_all(faults)
    params = read_params(args.params)
    for configuration in chosen:
        try:
            found += targets(
                configuration,
                params,
                args.labels,
                args.seeds,
                computed=args.computed,
                models=args.models,
                path=args.params,
            )
        except UserError as error:
            faults += str(error).splitlines()
    raise_all(faults)
    for target in dict.fromkeys(found):
        name = target.stage if args.stages else target.file
        print(name)
        if args.verbose and target.published:
            print(f"# {name}: {target.published}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="experiments", description="Published configurations of Three Ways as targets of the pipeline."
    )
    parser.add_argument("experiment", type=int, choices=(210, 211, 212), help="its number in the reference")
    parser.add_argument("name", nargs="*", help="published names; none: list them all")
    parser.add_argument("--labels", nargs="+", type=int, default=[], metavar="N", help="numbers of labelled frames")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="training seeds (7, 25, 42)")
    parser.add_argument("--computed", action="store_true", help="sel_*: our own selections, not the published lists")
    parser.add_argument("--models", action="store_true", help="the trained weights instead of their scores")
    parser.add_argument("--stages", action="store_true", help="names of stages, for dvc repro, instead of files")
    parser.add_argument("--verbose", action="store_true", help="also the reference's names of the runs, to stderr")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="which file lists the runs")
    try:
        run(parser.parse_args())
    except UserError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        print(REFUSED)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
