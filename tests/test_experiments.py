"""Published configurations by name: the right rows, in presets that have the specification's values."""

import itertools
import re
import sys
from pathlib import Path

import pytest
import yaml

from semivid import experiments
from semivid.data.cameras import read_camera_json
from semivid.errors import UserError
from semivid.experiments import CONFIGURATIONS, find
from semivid.pipeline import preset as presets
from semivid.pipeline.params import Params, read_params
from semivid.training.loop import is_evaluated

ROOT = Path(__file__).resolve().parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SELECTED = ("ent", "us", "ds", "ds_us")
# Specification, table of section 12: from depth?, then (with EMA) mask, frames that mix, ground truth in the mix
TRAININGS = {
    "scratch": (False, None),
    "scratch_ema": (False, ("none", "unlabelled", False)),
    "scratch_classmix": (False, ("class", "unlabelled", False)),
    "scratch_classmix_video": (False, ("class", "video", False)),
    "scratch_classmixgt": (False, ("class", "all", True)),
    "scratch_depthmixgt": (False, ("depthmix", "all", True)),
    "transfer": (True, None),
    "transfer_ema": (True, ("none", "unlabelled", False)),
    "transfer_classmix": (True, ("class", "unlabelled", False)),
    "transfer_classmixgtall": (True, ("class", "all", True)),
    "transfer_dcompgt0030": (True, ("depthmix", "all", True)),
    "pad_transfer_dcompgt0030": (True, ("depthmix", "all", True)),
}
NAMES = {
    210: {*TRAININGS, *(f"sel_{m}_{base}" for m in SELECTED for base in ("scratch", "transfer_dcompgt0030"))}
    - {"pad_transfer_dcompgt0030"},
    211: {"entropy_sonly", "depthifp_u3-avg4", "ldepth_donly", "depthifp_u3-avg4_bias1000ldepth_donly"},
    212: {"pad_transfer_dcompgt0030", *(f"sel_{m}_pad_transfer_dcompgt0030" for m in SELECTED)},
}
PAIRS = [(number, name) for number, names in NAMES.items() for name in sorted(names)]
NO_VIDEO = {"scratch_classmix_video", *NAMES[212]}
UNLABELLED_ALONE = {name for name, (_, mix) in TRAININGS.items() if mix and mix[1] == "unlabelled"}
ON_SELECTED = {name for name in CONFIGURATIONS if name.startswith("sel_")}
# Preset: what it must have, and with which numbers of labels
HAVE = {
    "cityscapes": (NAMES[210] | NAMES[212], [100, 372, 744]),
    "cityscapes_2975": ((NAMES[210] | NAMES[212]) - UNLABELLED_ALONE - ON_SELECTED, [2975]),
    "cityscapes_selection": (NAMES[210] | NAMES[211] | NAMES[212], [100, 372, 744]),
    "camvid_three_ways": (
        NAMES[210] - NO_VIDEO - ON_SELECTED | {"sel_ds_us_scratch", "sel_ds_us_transfer_dcompgt0030"},
        [50, 100],
    ),
    "camvid_three_ways_367": (NAMES[210] - NO_VIDEO - ON_SELECTED - UNLABELLED_ALONE, [367]),
    "mapillary": (NAMES[210] - NO_VIDEO - ON_SELECTED, [100, 2250]),
    "mapillary_18000": (NAMES[210] - NO_VIDEO - ON_SELECTED - UNLABELLED_ALONE, [18000]),
}
VARIANTS = sorted(p.stem for p in (ROOT / "presets/variants").glob("*.yaml"))


@pytest.fixture(scope="module")
def params_of(tmp_path_factory):
    """Params of a preset or variant, as `make preset` writes them."""
    read = {}

    def params(name):
        if name not in read:
            path = tmp_path_factory.mktemp(name) / "params.yaml"
            path.write_text(presets.preset_text(name, ROOT / "presets"))
            read[name] = read_params(path)
        return read[name]

    return params


def targets(*args, **options):
    return [target.file for target in experiments.targets(*args, **options)]


def value(params, key):
    for part in key.split("."):
        params = getattr(params, part)
    return params


def made(params):
    """{output: DVC's name of the stage} of dvc.yaml with these params."""
    outputs = {}
    for name, entry in STAGES.items():
        axes = []
        for axis in entry.get("matrix", {}).values():
            listed = axis if isinstance(axis, list) else [axis]
            found = [value(params, v[2:-1]) for v in listed]
            axes.append(found if isinstance(axis, list) else found[0])
        kinds = [*entry.get("outs", []), *entry.get("metrics", []), *entry.get("plots", [])]
        for item in itertools.product(*axes):
            chosen = dict(zip(entry.get("matrix", {}), item, strict=True))
            for out in [next(iter(o)) if isinstance(o, dict) else o for o in kinds]:
                outputs[re.sub(r"\$\{item\.(\w+)\}", lambda m, c=chosen: str(c[m[1]]), out)] = "@".join(
                    [name, "-".join(map(str, item))] if item else [name]
                )
    return outputs


# ---- names


def test_all_published_names_and_no_other():
    for number, names in NAMES.items():
        assert {c.name for c in CONFIGURATIONS.values() if c.experiment == number} == names


def test_a_list_of_each_experiment(capsys, monkeypatch):
    for number, names in NAMES.items():
        monkeypatch.setattr(sys, "argv", ["experiments", str(number)])
        experiments.main()
        rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
        assert {name for name, _, _ in rows} == names
        for name, row, about in rows:
            assert row == CONFIGURATIONS[name].row and len(about) > 10


@pytest.mark.parametrize(
    ("number", "name", "error"),
    [
        (210, "scratch_clasmix", "did you mean scratch_classmix? (python -m semivid.experiments 210 lists them)"),
        (212, "scratch_clasmix", "did you mean scratch_classmix? (python -m semivid.experiments 210 lists them)"),
        (211, "ldepth", "did you mean ldepth_donly? (python -m semivid.experiments 211 lists them)"),
        (212, "xyz", "take one of them (python -m semivid.experiments 212 lists them)"),
    ],
)
def test_another_name_is_refused_with_the_nearest(number, name, error):
    with pytest.raises(UserError) as caught:
        find(number, name)
    assert str(caught.value) == f"{name}: no published configuration; {error}"


def test_a_name_of_another_experiment():
    with pytest.raises(UserError, match=r"^pad_transfer_dcompgt0030 belongs to experiment 212, not to 210; give that"):
        find(210, "pad_transfer_dcompgt0030")


# ---- what presets make of them


@pytest.mark.parametrize("preset", HAVE)
def test_a_preset_has_its_configurations(params_of, preset):
    """Every name leads to files that a stage makes, for each number of labels and seed; other names are refused."""
    params, (names, labels) = params_of(preset), HAVE[preset]
    outputs, every = made(params), set()
    assert params.table3.labels == params.compare.labels == labels
    for number, name in PAIRS:
        configuration = find(number, name)
        if name not in names:
            with pytest.raises(UserError, match=rf"^{re.escape(name)}: [^\n]*$"):
                targets(configuration, params)
            continue
        found = targets(configuration, params)
        assert not every & set(found), name
        for models in (False, True):
            for target in experiments.targets(configuration, params, models=models):
                assert outputs[target.file] == target.stage
        every |= set(found)
        if number == 211:
            assert len(found) == 3
        else:
            runs = {tuple(re.search(r"-(\d+)-(\d+)\.json$", target).groups()) for target in found}
            assert runs == {(str(n), str(s)) for n in labels for s in (7, 25, 42)}


@pytest.mark.parametrize("preset", ["cityscapes", "cityscapes_selection", "cityscapes_2975", "camvid_three_ways"])
def test_rows_are_trained_as_published(params_of, preset):
    """What the stage of the weights reads, and what the method's block says, against the table of section 12."""
    params = params_of(preset)
    outputs = made(params)
    for name in sorted(HAVE[preset][0] - NAMES[211]):
        configuration = CONFIGURATIONS[name]
        for weights in targets(configuration, params, models=True):
            method, selection, _, seed = Path(weights).stem.split("-")
            from_depth, mix = TRAININGS[re.sub(r"^sel_(ent|us|ds_us|ds)_", "", name)]
            entry, block = STAGES[outputs[weights].split("@")[0]], getattr(params.methods, method)
            multitask = configuration.experiment == 212
            assert ("${depth_model}" in entry["deps"]) == from_depth, name
            assert ("data/disparity" in entry["deps"]) == (mix is not None and mix[0] == "depthmix" and not multitask)
            assert (block.method == "multitask") == multitask
            assert (block.method == "supervised") == (mix is None)
            if mix:
                assert (block.mask, block.frames, block.ground_truth) == mix, name
            if mix and mix[0] == "depthmix":
                assert (block.margin, block.foreground) == (0.03, (0, 0))  # dcompgt0030
            criterion = name.removeprefix("sel_").split("_scratch")[0].split("_pad")[0].split("_transfer")[0]
            ours = "entropy" if criterion == "ent" else criterion
            stored = ours if preset == "cityscapes_selection" else f"published_{criterion}"
            assert selection == (stored if name.startswith("sel_") else "random"), name
            assert f"splits/selected/{selection}-{seed}.txt" in outputs


@pytest.mark.parametrize("preset", HAVE)
def test_values_of_the_specification(params_of, preset):
    """Sections 3, 8, 11, 12, 13."""
    p, data = params_of(preset), preset.split("_")[0]
    iterations, milestone, late, size = {
        "cityscapes": (40000, 30000, 500, (1024, 512)),
        "mapillary": (40000, 30000, 1000, (704, 512)),
        "camvid": (20000, 15000, 500, (672, 512)),
    }[data]
    assert (p.data.name, p.train.iterations, p.frames.size) == (data, iterations, size)
    assert (p.train.crop, p.train.batch_size, p.train.flip, p.train.scale) == ((512, 512), 2, 0.5, (1, 1))
    evaluated = [step for step in range(1, iterations + 1) if is_evaluated(step, p.train.evaluate_every)]
    assert evaluated == [100, *range(2500, milestone + 1, 2500), *range(milestone + late, iterations + 1, late)]
    assert (p.table3.seeds, p.compare.seeds) == ([7, 25, 42], [7, 25, 42])
    assert p.table3.list_seeds == {"7": 42, "25": 43, "42": 44}
    trained = {m for family in p.compare.families.values() for m in family.methods} - {"flow_consistency"}
    for name in {"supervised", *trained}:
        m = getattr(p.methods, name)
        assert (m.optimizer, m.lr, m.encoder_lr, m.weight_decay, m.clip) == ("sgd", 1e-2, 1e-3, 5e-4, 10), name
        assert (m.schedule, m.milestones) == ("step", [milestone])
        if m.method != "supervised":
            assert (m.consistency_weight, m.confidence, m.ema_decay) == (1, 0.968, 0.99)
            assert (m.jitter, m.jitter_strength, m.blur) == (0.8, 0.25, 0.5)
    network = p.network
    assert (network.encoder, network.dilated, network.channels) == ("resnet101", True, [64, 128, 128, 256, 256])
    assert (network.batch_norm, network.aspp_rates, network.layers) == (False, [6, 12, 18], [9])
    assert (network.output_stride, network.head_inter) == (1, False)
    assert (p.transfer.encoder, p.transfer.decoder, p.disparity.bits) == (True, True, 8)
    student = p.select.ds_us
    assert (student.encoder, student.channels, student.batch_norm) == ("resnet50", [64, 64, 128, 128, 256], True)
    assert (student.lr, student.batch_size, student.bias) == (1e-4, 2, 1000)
    if data == "cityscapes":
        assert (p.methods.multitask_depthmix_gt.pose_lr, p.depth_finetune.lr) == (1e-6, 1e-5)
        layers = p.multitask_network.distillation_layer, p.multitask_network.final_layer
        assert layers == (7, 9) and p.depth_finetune.feature_distance == 1e-2
        assert student.steps == [25, 50, 100, 200, 372, 744]
        assert student.iterations == [4000, 8000, 12000, 16000, 20000]
        assert p.depth_model == "models/depth_finetune"
    else:
        assert p.depth_model == "weights/mono_cityscapes_1024x512_r101dil_aspp_dec6_lr5_fd2_crop512x512bs4"


def test_the_default_preset_has_them_in_small(params_of):
    """Our own selections stand in where the data have no published list; published ones are named by their block."""
    street = params_of("street")
    (target,) = targets(find(210, "sel_ds_us_transfer_dcompgt0030"), street, [12], [7])
    assert target == "results/methods/transfer_depthmix_gt-ds_us-12-7.json"
    assert [*targets(find(211, "entropy_sonly"), street, seeds=[25])] == ["splits/selected/entropy-25.txt"]
    # a row of Table 3 alone, with labels of Table 3 alone
    assert [*targets(find(210, "sel_ent_scratch"), street, [24], [42])] == [
        "results/runs/supervised-entropy-24-42.json"
    ]


def test_published_lists_come_before_computed_ones(params_of):
    params = params_of("cityscapes")
    raw = params.model_dump()
    raw["table3"]["rows"] += ["ds"]
    raw["table3"]["select"]["features"] = ["ds"]
    both = Params.model_validate(raw)
    scratch = find(210, "sel_ds_scratch")
    assert [*targets(scratch, both, [100], [7])] == ["results/runs/supervised-published_ds-100-7.json"]
    assert [*targets(scratch, both, [100], [7], computed=True)] == ["results/runs/supervised-ds-100-7.json"]
    with pytest.raises(UserError, match=r"add us to `table3.rows` and `table3.select.student`$"):
        targets(find(210, "sel_us_scratch"), both, [100], [7], computed=True)


# ---- what cannot be had


def refused(name, params, labels=(), seeds=()):
    with pytest.raises(UserError) as error:
        targets(CONFIGURATIONS[name], params, labels, seeds)
    return str(error.value)


@pytest.mark.parametrize("name", sorted(NAMES[210] | NAMES[212]))
def test_all_labels_only_where_the_reference_can(params_of, name):
    """Section 8: nothing is left to mix as unlabelled; section 13: nothing to select."""
    city = params_of("cityscapes")
    line = refused(name, city, [2975])
    if name in UNLABELLED_ALONE:
        assert line.endswith("mixes unlabelled frames alone, and with all 2975 labelled there is none")
    elif name in ON_SELECTED:
        base = re.sub(r"^sel_(ent|us|ds_us|ds)_", "", name)
        assert line.endswith(f"there is nothing to select with all 2975 labelled; take {base}")
    else:
        assert line.endswith("lists no 2975 labels: `make preset NAME=cityscapes_2975 DATA=...` has it")
        assert len(targets(CONFIGURATIONS[name], params_of("cityscapes_2975"), [2975])) == 3
    assert "\n" not in line and line.startswith(name)


def test_labels_of_other_presets_are_taken_where_they_can_be_run(params_of):
    """Without --labels: all that are listed, but those that cannot be."""
    raw = params_of("cityscapes").model_dump()
    raw["table3"]["labels"] = raw["compare"]["labels"] = [100, 2975]
    both = Params.model_validate(raw)
    assert {t.split("-")[2] for t in targets(find(210, "scratch_classmix"), both)} == {"100"}
    assert {t.split("-")[2] for t in targets(find(210, "scratch_classmixgt"), both)} == {"100", "2975"}


def changed(params, *changes):
    """`params` with values appended to lists: ("compare.labels", 5)."""
    raw = params.model_dump()
    for key, item in changes:
        *parents, last = key.split(".")
        block = raw
        for part in parents:
            block = block[part]
        block[last] = [*block[last], item]
    return Params.model_validate(raw)


@pytest.mark.parametrize(
    ("name", "labels", "seeds", "advice", "changes"),
    [
        (
            "scratch_classmix", [24], [7],
            "params.yaml lists no 24 labels: add it to `compare.labels` and `table3.labels`",
            [("compare.labels", 24)],
        ),
        (
            "scratch_classmix", [12], [8],
            "params.yaml lists no seed 8: add it to `compare.seeds` and `table3.seeds`",
            None,
        ),
        (
            "sel_ds_scratch", [48], [7],
            "params.yaml lists no 48 labels: add it to `table3.labels`",
            None,
        ),
        (
            "scratch_classmix_video", [12], [7],
            "params.yaml lacks the method: copy the block `methods.classmix_video` from presets/cityscapes.yaml, and "
            "add classmix_video to `compare.mix.methods`, and classmix_video-random to `compare.rows`",
            None,
        ),
        (
            "sel_ds_transfer_dcompgt0030", [12], [7],
            "params.yaml trains no transfer_depthmix_gt on ds: add ds to `compare.transfer_mix_depth.selections`, and "
            "transfer_depthmix_gt-ds to `compare.rows`",
            [("compare.transfer_mix_depth.selections", "ds"), ("compare.rows", "transfer_depthmix_gt-ds")],
        ),
        (
            "sel_us_pad_transfer_dcompgt0030", [12], [7],
            "params.yaml trains no multitask_depthmix_gt on us: add us to `compare.multitask.selections`",
            [("compare.multitask.selections", "us")],
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_and_suffices(params_of, name, labels, seeds, advice, changes):
    """One line says which list to extend; having done so is enough."""
    street = params_of("street")
    assert refused(name, street, labels, seeds) == f"{name}: {advice}"
    for key, _ in changes or []:
        assert f"`{key}`" in advice
    if changes:
        assert len(targets(CONFIGURATIONS[name], changed(street, *changes), labels, seeds)) == 1


def test_a_method_that_is_not_listed(params_of):
    raw = params_of("street").model_dump()
    raw["compare"]["mix"]["methods"].remove("classmix")
    for table in ("compare", "methods_table", "table1", "table2"):
        raw[table]["rows"] = [row for row in raw[table]["rows"] if row != "classmix-random"]
    assert refused("scratch_classmix", Params.model_validate(raw)) == (
        "scratch_classmix: params.yaml trains no classmix: add it to `compare.mix.methods`, and classmix-random to "
        "`compare.rows`"
    )


def test_a_selection_that_is_not_listed(params_of):
    city = params_of("cityscapes")
    assert refused("ldepth_donly", city) == (
        "ldepth_donly: params.yaml lacks the selection: add us to `table3.rows` and `table3.select.student`"
    )
    assert refused("sel_ds_us_pad_transfer_dcompgt0030", params_of("mapillary")).startswith(
        "sel_ds_us_pad_transfer_dcompgt0030: params.yaml lacks the selection: add published_ds_us to `table3.rows` and "
        "`table3.select.names`, published_ds_us to `compare.multitask.selections`"
    )
    assert "leave --labels out" in refused("ldepth_donly", params_of("cityscapes_selection"), [100])


@pytest.mark.parametrize(
    ("key", "other", "name"),
    [
        ("methods.transfer_depthmix_gt.margin", 0.1, "transfer_dcompgt0030"),
        ("methods.classmix.mask", "none", "scratch_classmix"),
        ("methods.classmix.frames", "all", "scratch_classmix"),
        ("methods.transfer_depthmix_gt.ground_truth", False, "sel_ds_us_transfer_dcompgt0030"),
        ("transfer.decoder", False, "transfer"),
    ],
)
def test_a_name_whose_settings_were_changed_is_not_given(params_of, key, other, name):
    raw = params_of("cityscapes").model_dump()
    *parents, last = key.split(".")
    block = raw
    for part in parents:
        block = block[part]
    block[last] = other
    line = refused(name, Params.model_validate(raw))
    assert line.startswith(f"{name}: params.yaml: ") and f"`{key}`" in line


# ---- the command


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["experiments", *map(str, arguments)])
    try:
        experiments.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def test_the_command_prints_targets_and_nothing_else(monkeypatch, capsys):
    path = ROOT / "presets/cityscapes.yaml"
    arguments = (210, "scratch", "transfer_dcompgt0030", "--labels", 372, "--seeds", 42, "--params", path)
    expected = [f"results/methods/{row}-random-372-42.json" for row in ("supervised", "transfer_depthmix_gt")]
    assert call(monkeypatch, capsys, *arguments) == (0, expected, [])
    code, out, err = call(monkeypatch, capsys, *arguments, "--verbose")
    assert (code, out) == (0, expected)
    # the specification's example of a run name, and the same pattern with pseudo labels
    network = "sgdLr0.010.001stepx_clip10_crop512x512bs2_flip_r101_dec6_lr5_fd2_crop512x512bs4_l9os1"
    assert err == [
        f"# {expected[0]}: cityscapes_scratch_D372random_S42_{network}",
        f"# {expected[1]}: cityscapes_transfer_dcompgt0030_D372random_S42_{network}_Unlab*depthcompjitblur",
    ]
    assert call(monkeypatch, capsys, *arguments, "--stages")[1] == [
        "evaluate_methods@supervised-random-372-42",
        "evaluate_methods@transfer_depthmix_gt-random-372-42",
    ]
    _, out, err = call(monkeypatch, capsys, 210, "sel_ds_scratch", "--models", "--verbose", "--params", path)
    assert out[0] == "models/supervised-published_ds-100-7.safetensors"
    assert err[0].startswith(f"# {out[0]}: cityscapes_sel_ds_scratch_D100fixed_S7_sgd")


def test_the_command_reports_every_fault_at_once(monkeypatch, capsys):
    path = ROOT / "presets/street.yaml"
    code, out, err = call(monkeypatch, capsys, 210, "scrach", "pad_transfer_dcompgt0030")
    assert (code, len(err)) == (2, 2)
    # `snakemake $(...)` must not be left without a target, which means all
    assert out == [experiments.REFUSED] and out[0] not in made(read_params(path))
    code, out, err = call(
        monkeypatch, capsys, 210, "scratch", "transfer", "--labels", 5, "--seeds", 9, "--params", path
    )
    assert (code, out, len(err)) == (2, [experiments.REFUSED], 4)
    assert all(line.startswith("error: ") for line in err)


# ---- variants of presets


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_its_base_but_for_its_blocks(name):
    own = yaml.safe_load((ROOT / f"presets/variants/{name}.yaml").read_text())
    base = yaml.safe_load((ROOT / f"presets/{own.pop('base')}.yaml").read_text())
    text = presets.preset_text(name, ROOT / "presets")
    whole = yaml.safe_load(text)
    assert list(whole) == list(base)
    for key in base:
        assert whole[key] == (own[key] if key in own else base[key]), key
        assert key not in own or own[key] != base[key], f"{key} is that of the base"
    assert text.startswith("# ") and f"`make preset NAME={name} DATA=" in text


def test_every_variant_is_tried():
    assert set(VARIANTS) <= set(HAVE)


@pytest.mark.parametrize("name", HAVE)
def test_switching_to_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    (tmp_path / "my data").mkdir()
    with pytest.raises(UserError, match=f"preset {name} needs the folder of the data set"):
        presets.switch(name)
    told = presets.switch(name, "my data")
    assert told == [f"params.yaml is now the preset {name}; `make plan` shows what will run"]
    params = read_params(Path("params.yaml"))
    assert params.data.frames.train.startswith("my data/") and (ROOT / params.data.classes).is_file()
    assert read_camera_json(ROOT / params.data.camera, (2048, 1024), None) if name.startswith("city") else True


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("table3: {}\n", "its first key must be `base`, the name of a preset, not ''"),
        ("base: nowhere\n", "its first key must be `base`, the name of a preset, not 'nowhere'"),
        ("base: one\ntabel3: {}\n", "one.yaml has no block `tabel3`; correct its name"),
    ],
)
def test_a_bad_variant_is_refused(tmp_path, text, error):
    (tmp_path / "variants").mkdir()
    (tmp_path / "one.yaml").write_text("table3: {a: 1}\n")
    (tmp_path / "variants/two.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(error)):
        presets.preset_text("two", tmp_path)
    with pytest.raises(UserError, match="no preset 'three'; there are one, two "):
        presets.preset_text("three", tmp_path)


def test_the_camera_of_photographs_is_an_estimate():
    camera = read_camera_json(ROOT / "presets/cameras/mapillary.json", (704, 512), None)
    assert (camera.cx, camera.cy, camera.fx) == (352, 256, pytest.approx(352 * 3**0.5))  # 60 degrees
    assert "An estimate" in (ROOT / "presets/cameras/mapillary.json").read_text()
