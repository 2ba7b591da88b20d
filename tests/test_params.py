"""params.yaml: what is refused and with which words, and that every preset is complete."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from semivid.depth.networks import build_depth_model
from semivid.errors import UserError
from semivid.models.encoder_decoder import SegmentationDecoder, build_segmentation_net
from semivid.pipeline.params import Params, pick, read_params
from small import small_params, with_no_comparison

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
BASE = small_params()


def changed(key, value, alone=False):
    """The small params with the dotted `key` set; a value of ... removes it. alone: without tables over methods."""
    params = with_no_comparison(small_params()) if alone else small_params()
    *parents, last = key.split(".")
    block = params
    for part in parents:
        block = block[part]
    if value is ...:
        del block[last]
    else:
        block[last] = value
    return params


@pytest.fixture
def read(tmp_path):
    """Write a text or a nest of dicts as params.yaml and read it."""

    def write_and_read(content):
        path = tmp_path / "params.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return read_params(path)

    return write_and_read


def refused(read, content):
    """The lines of the error, which must all name the file."""
    with pytest.raises(UserError) as error:
        read(content)
    lines = str(error.value).splitlines()
    assert all("params.yaml: " in line for line in lines)
    return lines


# ---- what is accepted


@pytest.mark.parametrize("path", [*PRESETS, ROOT / "params.yaml"], ids=lambda p: p.name)
def test_every_preset_is_valid(path):
    assert isinstance(read_params(path), Params)


def test_presets_exist_and_show_every_key():
    # A key that only its default would fill could not be found by reading a preset.
    assert {p.stem for p in PRESETS} >= {"street", "camvid"}
    wanted = set(_keys(Params))
    for path in PRESETS:
        assert wanted <= set(_keys_of(yaml.safe_load(path.read_text()))), path.name


def _keys(model, prefix=""):
    for name, field in model.model_fields.items():
        yield prefix + name
        if hasattr(field.annotation, "model_fields"):
            yield from _keys(field.annotation, f"{prefix}{name}.")


def _keys_of(block, prefix=""):
    for name, value in block.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _keys_of(value, f"{prefix}{name}.")


def test_the_values_arrive(read):
    params = read(changed("train.iterations", 17))
    assert params.train.iterations == 17
    assert params.frames.size == (64, 32)
    assert params.table3.list_seeds == {"7": 42, "25": 43, "42": 44}


def test_nothing_changes_after_reading(read):
    with pytest.raises(Exception, match="frozen"):
        read(BASE).train.iterations = 3


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("0.001", 0.001), ("010", 10), ("0o17", 15), ("1_000", 1000)]
)
def test_numbers_are_read_as_dvc_reads_them(read, text, value):
    """PyYAML's YAML 1.1 takes 010 for 8 and 0o17 for a text: a stage must see what DVC saw."""
    content = yaml.safe_dump(changed("methods.supervised.lr", "HERE"))
    assert read(content.replace("HERE", text)).methods.supervised.lr == value


def test_anchors_and_merges(read):
    params = small_params()
    select = params.pop("select")
    us, _ = select.pop("us"), select.pop("ds_us")
    lines = [f"  {name}: {json.dumps(block)}" for name, block in select.items()]
    lines += [f"  us: &us {json.dumps(us)}", "  ds_us:", "    <<: *us", "    bias: 3.0"]
    params = read("\n".join([yaml.safe_dump(params), "select:", *lines]))
    assert params.select.ds_us.bias == 3.0
    assert params.select.ds_us.steps == params.select.us.steps == us["steps"]


def test_network_blocks_fit_their_builders(read):
    params = read(BASE)
    depth = inspect.signature(build_depth_model).parameters
    segmentation = {
        *inspect.signature(build_segmentation_net).parameters,
        *inspect.signature(SegmentationDecoder).parameters,
    }
    assert set(params.depth_network.arguments()) <= set(depth)
    assert set(params.network.arguments()) <= segmentation
    assert set(params.select.us.backbone()) <= set(depth) & segmentation
    # ... and carry every key of their block
    for block in (params.network, params.depth_network):
        named = {"aspp" if k == "aspp_rates" else k for k in type(block).model_fields} - {"architecture"}
        assert named <= set(block.arguments())
    assert params.network.arguments()["aspp"] == params.network.aspp_rates


# ---- unknown and missing keys


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.iteratons", "iterations"),
        ("methods.supervised.optimiser", "optimizer"),
        ("data.frames.trian", "train"),
        ("tabel3", "table3"),
        ("select.ds_us.bais", "bias"),
        ("select.entopy", "entropy"),
        ("table3.select.feature", "features"),
        ("network.head_chanels", "head_channels"),
        ("flow.pyflow.min_with", "min_width"),
        ("methods.flow_consistency.treshold", "threshold"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(read, key, hint):
    (line,) = refused(read, changed(key, 1))
    assert f"unknown key `{key}`" in line and f"did you mean `{hint}`?" in line


def test_an_unknown_key_like_no_other_gets_no_hint(read):
    (line,) = refused(read, changed("train.xyzzy", 1))
    assert "unknown key `train.xyzzy`" in line and "did you mean" not in line


@pytest.mark.parametrize(
    "key",
    [
        "train",
        "train.iterations",
        "data.masks.val",
        "select.us.steps",
        "table3.rows",
        "network.layers",
        "network.architecture",
    ],
)
def test_missing_keys_are_named(read, key):
    (line,) = refused(read, changed(key, ...))
    assert f"`{key}` is missing" in line


def test_all_faults_are_told_at_once(read):
    params = changed("train.iterations", 0)
    params["train"]["flop"] = 0.5
    del params["evaluate"]["split"]
    lines = refused(read, params)
    assert len(lines) == 3
    assert any("train.iterations" in line and "found 0" in line for line in lines)
    assert any("unknown key `train.flop`; did you mean `flip`?" in line for line in lines)
    assert any("`evaluate.split` is missing" in line for line in lines)


# ---- values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.iterations", 0),
        ("train.iterations", 2.5),
        ("train.iterations", "many"),
        ("train.iterations", None),
        ("train.flip", 1.5),
        ("train.flip", -0.1),
        ("train.crop", [256]),
        ("train.crop", [256, 0]),
        ("train.scale", [0.0, 1.0]),
        ("train.precision", "float16"),
        ("methods.supervised.lr", -1.0),
        ("methods.supervised.lr", 0),
        ("methods.supervised.optimizer", "rmsprop"),
        ("frames.quality", 101),
        ("network.encoder", "resnet34"),
        ("network.channels", [16, 24, 32, 48]),
        ("network.layers", []),
        ("network.layers", [10]),
        ("data.source", "kitti"),
        ("data.name", 3),
        ("data.holdout", 1.0),
        ("disparity.bits", 12),
        ("render.annotated", [1, 5]),
        ("render.annotated", []),
        ("select.us.steps", []),
        ("select.us.steps", [2, 2, 4]),
        ("select.us.steps", [3, 2, 4]),
        ("select.us.iterations", [2]),
        ("select.random", {"labels": 3}),
        ("table3.labels", []),
        ("table3.seeds", []),
        ("network.architecture", "fcn32s"),
        ("flow.method", "farneback"),
        ("flow.pyflow.ratio", 1.0),
        ("flow.dis.finest_scale", -1),
        ("methods.flow_baseline.momentum", 1.0),
        ("methods.flow_consistency.max_shift", 0),
        ("methods.flow_consistency.clamp", 0),
        ("flow_table.percents", [0, 100]),
        ("flow_table.percents", [50, 50]),
        ("flow_table.rows", ["flow_baseline"]),
    ],
)
def test_values_out_of_range_or_of_another_kind(read, key, value):
    lines = refused(read, changed(key, value))
    assert any(key in line or key.rpartition(".")[0] in line for line in lines)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.iterations", True),  # Python counts True as 1
        ("train.flip", True),
        ("methods.supervised.lr", True),
        ("network.batch_norm", 2),
        ("network.batch_norm", "sometimes"),
    ],
)
def test_yes_and_no_are_no_numbers(read, key, value):
    assert any(key in line for line in refused(read, changed(key, value)))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    "key", ["methods.supervised.lr", "select.ds_us.bias", "methods.supervised.clip", "depth_pretrain.max_depth"]
)
def test_numbers_are_finite(read, key, value):
    assert any(key in line for line in refused(read, changed(key, value)))


@pytest.mark.parametrize("key", ["depth_pretrain.seed", "depth_finetune.seed", "render.seed"])
def test_seeds_are_not_negative(read, key):
    """NumPy's generators refuse them, with a traceback."""
    assert any(key in line for line in refused(read, changed(key, -1)))


def test_table_seeds_are_not_negative(read):
    params = changed("table3.seeds", [-1])
    params["table3"]["list_seeds"]["-1"] = 42
    assert any("table3.seeds" in line for line in refused(read, params))
    params = changed("table3.list_seeds", {"7": -1, "25": 43, "42": 44})
    assert any("list_seeds" in line for line in refused(read, params))


@pytest.mark.parametrize("value", [7, {"0": 100}, {"0": 100, "100": 2500, "30000": 500}])
def test_evaluations_come_at_one_interval_or_at_several(read, value):
    assert read(changed("train.evaluate_every", value)).train.evaluate_every == value


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "`train.evaluate_every`: Input should be greater than 0 (found 0)"),
        ("often", "`train.evaluate_every`: Input should be a valid integer"),
        (True, "`train.evaluate_every`: Input should be a valid integer"),
        ({}, '`train.evaluate_every`: no interval for the first steps (key "0"); write for example {"0": 100,'),
        ({"100": 2500}, "`train.evaluate_every`: no interval for the first steps"),
        ({"0": 100, "soon": 5}, "`train.evaluate_every`: 'soon' is no number of steps; write for example"),
        ({"0": 100, "-5": 5}, "'-5' is no number of steps"),
        ({"0": 100, "00": 5}, "'00' is no number of steps"),
        ({"0": 100, "50": 0}, "`train.evaluate_every.50`: Input should be greater than 0 (found 0)"),
        ({0: 100}, '`train.evaluate_every.0`: must be a text (found 0); write "0" in quotes'),
    ],
)  # fmt: skip
def test_intervals_of_evaluation_that_mean_nothing(read, value, told):
    (line,) = refused(read, changed("train.evaluate_every", value))
    assert told in line


# ---- combinations


def test_a_network_has_the_keys_of_its_architecture(read):
    fcn8s = {"architecture": "fcn8s", "weights": "none", "input": "imagenet"}
    assert read(changed("network", fcn8s, alone=True)).network.arguments() == {"weights": "none", "input": "imagenet"}
    (line,) = refused(read, changed("network", fcn8s | {"encoder": "resnet18"}))
    assert "unknown key `network.encoder`" in line
    lines = refused(read, changed("network.architecture", "fcn8"))
    assert len(lines) == 1 and "`network.architecture` must be one of" in lines[0] and "found 'fcn8'" in lines[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"methods.flow_baseline.unlabelled_batch_size": 0}, "leaves flow_consistency nothing to learn from"),
        ({"methods.flow_consistency.consistent_only": True, "flow.backward": False}, "needs `flow.backward: true`"),
        ({"methods.flow_baseline.unlabelled_batch_size": 1, "network.aspp_rates": [1]}, "1 cannot train an ASPP"),
        ({"flow.frames": "annotated"}, "`methods.flow_baseline.unlabelled` all needs `flow.frames: all`"),
        ({"table3.method": "flow_consistency"}, "choose one of supervised"),
        ({"methods.flow_consistency.version": "january"}, "version january has no threshold"),
        ({"methods.flow_consistency.version": "v2", "methods.flow_consistency.threshold": 0}, "leaves version v2 no"),
    ],
)
def test_blocks_that_contradict_each_other(read, changes, told):
    params = small_params()
    for key, value in changes.items():
        *parents, last = key.split(".")
        block = params
        for part in parents:
            block = block[part]
        block[last] = value
    assert any(told in line for line in refused(read, params))


def test_every_seed_needs_a_list_seed(read):
    lines = refused(read, changed("table3.seeds", [7, 8]))
    assert len(lines) == 1 and "list_seeds" in lines[0] and "[8]" in lines[0] and '"8": 42' in lines[0]


@pytest.mark.parametrize(
    ("rows", "select"),
    [
        (["random"], {"names": ["random"], "features": ["ds"], "student": [], "labels": []}),
        (["random", "ds"], {"names": ["random"], "features": [], "student": [], "labels": []}),
    ],
)
def test_rows_and_select_name_the_same_criteria(read, rows, select):
    params = changed("table3.rows", rows)
    params["table3"]["select"] = select
    (line,) = refused(read, params)
    assert "rows" in line and "same names" in line


def test_rows_may_be_a_part_of_the_criteria(read):
    params = changed("table3.rows", ["random", "ds"], alone=True)
    params["table3"]["select"] = {"names": ["random"], "features": ["ds"], "student": [], "labels": []}
    assert read(params).table3.rows == ["random", "ds"]


def test_a_criterion_stands_where_it_may_read_what_it_needs(read):
    params = changed("table3.rows", ["entropy"])
    params["table3"]["select"] = {"names": [], "features": [], "student": ["entropy"], "labels": []}
    assert any("table3.select.student" in line for line in refused(read, params))


def test_a_misspelt_criterion_is_named(read):
    params = changed("table3.rows", ["randm"])
    params["table3"]["select"] = {"names": ["randm"], "features": [], "student": [], "labels": []}
    assert any("randm" in line and "random" in line.replace("randm", "") for line in refused(read, params))


def test_an_unknown_method_is_named_with_the_nearest(read):
    lines = refused(read, changed("table3.method", "supervized", alone=True))
    assert len(lines) == 1 and "supervized" in lines[0] and "supervised" in lines[0]


@pytest.mark.parametrize(
    ("key", "value"), [("table3.labels", [2, 2]), ("table3.seeds", [7, 7]), ("table3.rows", ["random", "random"])]
)
def test_nothing_is_listed_twice(read, key, value):
    params = changed(key, value)
    if key == "table3.rows":
        params["table3"]["select"] = {"names": value, "features": [], "student": [], "labels": []}
    assert any("twice" in line and key in line for line in refused(read, params))


def test_depths_and_scales_are_in_order(read):
    assert any("min_depth" in line for line in refused(read, changed("depth_pretrain.min_depth", 100.0)))
    assert any("scale" in line for line in refused(read, changed("train.scale", [2.0, 1.0])))


@pytest.mark.parametrize("key", ["select.ds.labels", "select.us.steps", "select.entropy.steps"])
def test_a_selection_holds_as_many_frames_as_the_table_asks_for(read, key):
    """Else the last stage of all would find out, after hours of training."""
    params = changed("table3.labels", [2, 5], alone=True)
    params["compare"]["labels"] = [2]
    params["select"]["ds"]["labels"] = 5
    for name in ("us", "ds_us", "entropy"):
        params["select"][name]["steps"] = [2, 3, 5]
    read(params)
    block = params["select"][key.split(".")[1]]
    block[key.split(".")[2]] = 4 if key.endswith("labels") else [2, 3, 4]
    lines = refused(read, params)
    assert len(lines) == 1 and key in lines[0] and "5" in lines[0] and "4" in lines[0]
    # a criterion that the table does not use may be as short as it likes
    unused = key.split(".")[1]
    params["table3"]["rows"] = [r for r in BASE["table3"]["rows"] if r != unused]
    params["table3"]["select"] = {k: [c for c in v if c != unused] for k, v in BASE["table3"]["select"].items()}
    read(params)


@pytest.mark.parametrize(
    "key", ["train.crop", "depth_pretrain.crop", "depth_finetune.crop", "select.us.crop", "select.entropy.crop"]
)
def test_crops_fit_into_the_frames(read, key):
    """A student's crop beyond the frame would be padded in silence, and learn the padding."""
    lines = refused(read, changed(key, [64, 40]))
    assert len(lines) == 1 and key in lines[0] and "40" in lines[0] and "32" in lines[0]


# ---- the file


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"no such file.*make preset"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a\n- b\n", "just words\n", "3\n"])
def test_not_a_mapping(read, text):
    (line,) = refused(read, text)
    assert "presets/street.yaml" in line


@pytest.mark.parametrize("text", ["a: [1, 2\n", "a: b: c\n", "a: 1\na: 2\n", "a: *b\n", "x: \x07\n"])
def test_not_yaml(read, text):
    (line,) = refused(read, text)
    assert "not valid YAML" in line


def test_not_utf_8(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"data: {name: caf\xe9}\n")
    with pytest.raises(UserError, match=r"params\.yaml: .*UTF-8"):
        read_params(tmp_path / "params.yaml")


def test_letters_beyond_ascii_are_read_in_any_locale(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(changed("data.name", "Zürich"), allow_unicode=True), encoding="utf-8")
    code = "from semivid.pipeline.params import read_params; print(ascii(read_params().data.name))"
    plain = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=plain, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (r"'Z\xfcrich'", "")


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch {}']", "!!python/name:os.system"])
def test_yaml_that_would_run_code_is_refused(read, tmp_path, text):
    (line,) = refused(read, "data: " + text.format(tmp_path / "ran"))
    assert "not valid YAML" in line
    assert not (tmp_path / "ran").exists()


# ---- what a stage gets


def test_pick_gives_the_named_parts_alone(read):
    params = read(BASE)
    chosen = pick(params, ("data.frames", "train", "methods.supervised", "table3.list_seeds.7"))
    assert list(chosen) == ["data.frames", "train", "methods.supervised", "table3.list_seeds.7"]
    assert chosen["data.frames"] is params.data.frames
    assert chosen["train"] is params.train
    assert chosen["table3.list_seeds.7"] == 42


@pytest.mark.parametrize("key", ["train.iteration", "nothing", "table3.list_seeds.8", "data.frames.train.x"])
def test_pick_refuses_what_is_not_there(read, key):
    with pytest.raises(UserError, match=f"no key `{key}`"):
        pick(read(BASE), (key,))


# ---- the comparison of methods


@pytest.mark.parametrize(
    ("family", "method", "told"),
    [
        ("mix", "transfer", "is trained by another family: `transfer`, `transfer_plain`"),
        ("flow", "classmix", "is trained by another family: `mix`, `mix_depth`, `transfer_mix`, `transfer_mix_depth`"),
        ("mix", "multitask_depthmix_gt", "is trained by another family: `multitask`"),
        ("multitask", "depthmix_gt", "is trained by another family: `mix`,"),
        ("flow", "flow_baseline", "is trained by no family"),
        ("mix", "depthmix", "reads disparities; another family trains it"),
        ("transfer_mix_depth", "classmix", "reads no disparity; another family trains it"),
        ("mix", "nobody", "has no block in `methods`"),
    ],
)
def test_a_family_trains_methods_of_its_kind(read, family, method, told):
    lines = refused(read, changed(f"compare.{family}.methods", [method], alone=True))
    assert any(f"`compare.{family}.methods`: {method} {told}" in line for line in lines), lines


def test_video_is_mixed_by_disparities_of_all_frames(read):
    params = changed("methods.depthmix.frames", "video", alone=True)
    params["methods"]["classmix"]["frames"] = "video"  # reads none
    params["compare"]["mix"]["methods"] = ["classmix"]
    params["compare"]["rows"].append("classmix-random")
    read(params)
    params["compare"]["mix_depth"]["methods"] = ["depthmix"]
    params["compare"]["rows"].append("depthmix-random")
    (line,) = refused(read, params)
    assert "`methods.depthmix.frames` video needs `disparity.frames: all`" in line
    params["disparity"]["frames"] = "all"
    read(params)
