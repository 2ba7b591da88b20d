"""dvc.yaml says exactly what the stage scripts read and write."""

import ast
import functools
import hashlib
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from dvc.dependency import param as dvc_param
from ruamel.yaml import YAML

from semivid.errors import UserError
from semivid.evaluation import validate, visualise
from semivid.pipeline.params import EncoderDecoder, FCN8s, Params, pick
from semivid.pipeline.sources import dependencies, imports_of
from semivid.pipeline.stage import Stage
from small import small_params, with_random_alone

ROOT = Path(__file__).resolve().parent.parent
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
PRESETS = sorted(p.stem for p in (ROOT / "presets").glob("*.yaml"))
METHOD, ARCHITECTURE = "src/semivid/methods/${item.method}.py", "src/semivid/models/${network.architecture}.py"
ARCHITECTURES, NETWORKS = ("encoder_decoder", "fcn8s"), (EncoderDecoder, FCN8s)
PATH = re.compile(r"(data|models|runs|results|splits|presets)/[^ ]*[^ /.,]")


def script_of(entry):
    return ROOT / entry["cmd"].split()[1]


def names(paths):
    """Outputs and metrics may carry options: the paths alone."""
    return [next(iter(p)) if isinstance(p, dict) else p for p in paths]


def outputs(entry):
    return names([*entry.get("outs", []), *entry.get("metrics", []), *entry.get("plots", [])])


def stars(path):
    """Templates and f-string fields as a star."""
    return re.sub(r"\$?\{[^}]*\}", "*", path)


def related(a, b):
    """One path is the other, or lies in it; a star stands for any part of a name."""
    pairs = list(zip(a.split("/"), b.split("/"), strict=False))
    return all(re.fullmatch(_pattern(x), y) or re.fullmatch(_pattern(y), x) for x, y in pairs)


def _pattern(part):
    return ".*".join(map(re.escape, part.split("*")))


# ---- what the scripts say


class Script:
    """The call of run_stage in a script, and the paths that it and the package's modules name."""

    def __init__(self, path):
        tree = ast.parse(path.read_text())
        (call,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "run_stage"]
        self.keys = ast.literal_eval(call.args[1])
        arguments = call.args[2] if len(call.args) > 2 else ast.Dict([], [])
        self.arguments = {k.value: v.id for k, v in zip(arguments.keys, arguments.values, strict=True)}
        self.lines = len(path.read_text().splitlines())


@functools.cache
def path_literals(path):
    """Every text in a file that is a path below the working folder, f-string fields as stars; docstrings left out."""
    tree = ast.parse(path.read_text())
    prose = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    inside = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(v.value if isinstance(v, ast.Constant) else "*" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose | inside:
            text = node.value
        else:
            continue
        pattern = isinstance(node, ast.Constant) and "*" in text  # for a search in a folder
        if PATH.fullmatch(text) and not pattern:
            found.add(text)
    return found


@functools.cache
def source_files(name):
    """What the command imports, by imports_of: of the script, and of the files that a template names."""
    entry, package = STAGES[name], ROOT / "src/semivid"
    found = imports_of(script_of(entry), package)
    for dep in entry["deps"]:
        if dep == METHOD:
            found |= imports_of(ROOT / "src/semivid/methods/supervised.py", package)
        elif dep == ARCHITECTURE:
            for architecture in ARCHITECTURES:
                found |= imports_of(ROOT / f"src/semivid/models/{architecture}.py", package)
    return {str(f.relative_to(ROOT)) for f in found}


@pytest.mark.parametrize("name", STAGES)
def test_keys_are_those_that_the_script_reads(name):
    declared = [re.sub(r"\$\{(?:item\.)?([\w.]+)\}", r"{\1}", key) for key in STAGES[name].get("params", [])]
    assert sorted(declared) == sorted(Script(script_of(STAGES[name])).keys)
    assert len(set(declared)) == len(declared)


@pytest.mark.parametrize("name", STAGES)
def test_the_command_gives_the_matrix_in_its_order(name):
    """The script makes its name from its arguments in order, DVC from the matrix: both must agree."""
    entry, script = STAGES[name], Script(script_of(STAGES[name]))
    assert list(script.arguments) == list(entry.get("matrix", {}))
    wanted = " ".join([f"python stages/{name}.py", *(f"--{n} ${{item.{n}}}" for n in script.arguments)])
    assert entry["cmd"] == wanted


@pytest.mark.parametrize("name", STAGES)
def test_source_files_are_those_that_the_script_imports(name):
    declared = [d for d in STAGES[name]["deps"] if d.startswith(("src/", "stages/"))]
    literal = {d for d in declared if "${" not in d}
    assert literal == source_files(name) | {f"stages/{name}.py"}
    assert len(set(declared)) == len(declared)


def test_the_command_prints_the_files_that_dvc_yaml_lists(monkeypatch):
    """docs/add_a_method.md has its reader paste them."""
    monkeypatch.chdir(ROOT)
    for name in STAGES.keys() - {"train"}:  # its method is found by name
        printed = dependencies(Path(f"stages/{name}.py"))
        assert sorted(printed) == sorted(d for d in STAGES[name]["deps"] if d.startswith(("src/", "stages/"))), name
    with pytest.raises(UserError, match=r"stages/none\.py: no such file"):
        dependencies(Path("stages/none.py"))


def test_what_is_imported_by_name_is_a_dependency_of_its_own():
    """imports_of cannot see importlib: where code uses it, a template must name the file."""
    by_method = [n for n in STAGES if "importlib" in script_of(STAGES[n]).read_text()]
    by_architecture = [n for n in STAGES if "network" in STAGES[n].get("params", [])]
    assert by_method == ["train"] and {"train", "evaluate", "evaluate_methods"} <= set(by_architecture)
    for name in STAGES:
        assert (METHOD in STAGES[name]["deps"]) == (name in by_method)
        assert (ARCHITECTURE in STAGES[name]["deps"]) == (name in by_architecture)
        assert name not in by_architecture or "src/semivid/models/build.py" in source_files(name)
    for file in {f for n in STAGES for f in source_files(n)} - {"src/semivid/models/build.py"}:
        assert "import_module" not in (ROOT / file).read_text()


def test_every_architecture_that_the_parameters_know_is_looked_through():
    assert sorted(ARCHITECTURES) == sorted(k.model_fields["architecture"].annotation.__args__[0] for k in NETWORKS)


@pytest.mark.parametrize("name", STAGES)
def test_every_other_dependency_is_made_by_a_stage_or_is_data(name):
    made = [stars(o) for other in STAGES.values() if other is not STAGES[name] for o in outputs(other)]
    for dep in STAGES[name]["deps"]:
        if dep.startswith(("src/", "stages/")):
            continue
        if re.fullmatch(r"\$\{(data\.[\w.]+|depth_model)\}", dep):
            key = dep[2:-1]
            pick(Params.model_validate(small_params()), (key,))
            assert any(key == k or key.startswith(f"{k}.") for k in STAGES[name]["params"]), f"{key} is not declared"
        elif not any(related(stars(dep), o) for o in made):
            tracked = subprocess.run(["git", "ls-files", dep], cwd=ROOT, capture_output=True, text=True).stdout
            assert (ROOT / dep).exists(), f"no stage makes {dep}"
            assert tracked or not (ROOT / ".git").exists(), f"{dep} is not committed"


@pytest.mark.parametrize("name", STAGES)
def test_every_path_that_the_code_names_is_declared(name):
    entry = STAGES[name]
    declared = [stars(_resolve_data(p)) for p in [*entry["deps"], *outputs(entry)]]
    for file in [f"stages/{name}.py", *source_files(name)]:
        for literal in path_literals(ROOT / file):
            assert any(related(stars(literal), d) for d in declared), f"{file} names {literal}"


def _resolve_data(path):
    """`${data.*}` as the street preset has it."""
    params = Params.model_validate(small_params())
    return re.sub(r"\$\{(data\.[\w.]+|depth_model)\}", lambda m: pick(params, (m[1],))[m[1]], path)


def test_every_output_has_one_maker_and_a_telling_suffix():
    """An output without a suffix is a folder (the bridge cannot see otherwise before it exists)."""
    made = [stars(o) for entry in STAGES.values() for o in outputs(entry)]
    families = [m for m in made if m.startswith("splits/selected/")]
    assert len(families) == 4 and len(set(families)) == 1, "the select stages share one family"
    trained = [stars(o) for name in STAGES if name.startswith("train") for o in outputs(STAGES[name])]
    kinds = {"models/*-*-*-*.safetensors", "runs/*-*-*-*", "costs/*-*-*-*.json"}
    kinds |= {kind.replace("*-", "", 1) for kind in kinds}  # METHOD-PERCENT-SEED
    assert set(trained) == kinds, "so do all trainings; their methods differ"
    rest = [m for m in made if m not in families + trained]
    for a, b in itertools.combinations(rest, 2):
        assert a != b and not a.startswith(f"{b}/") and not b.startswith(f"{a}/")


def test_what_git_keeps_can_be_restored():
    """DVC's run cache leaves out stages with uncached files under `outs`: reverting a key would run them again."""
    for name, entry in STAGES.items():
        assert all(isinstance(out, str) for out in entry.get("outs", [])), f"{name}: list it under metrics or plots"
    kept = [path for entry in STAGES.values() for path in [*entry.get("metrics", []), *entry.get("plots", [])]]
    assert kept and all(list(path.values()) == [{"cache": False}] for path in kept)


def test_scripts_are_thin_and_all_in_use():
    assert {p.stem for p in (ROOT / "stages").glob("*.py")} == set(STAGES)
    for name in STAGES:
        assert ast.get_docstring(ast.parse(script_of(STAGES[name]).read_text())), f"{name} says not what it does"
        assert STAGES[name]["desc"] and STAGES[name]["meta"]["minutes"] > 0


# ---- imports_of


def test_imports_are_followed_through_the_package(tmp_path):
    package = tmp_path / "src/semivid"
    files = {
        "__init__.py": "",
        "errors.py": "x = 1",
        "pipeline/stage.py": "from semivid.plumbed import x",
        "plumbed.py": "x = 1",
        "a.py": "import semivid.b",
        "b.py": "def f():\n    from semivid.sub import c",
        "sub/__init__.py": "x = 1",
        "sub/c.py": "from . import d\nfrom .e import x\nfrom ..g import y\nfrom .. import h",
        "sub/d.py": "import os",
        "sub/e.py": "from semivid.a import x",
        "g.py": "y = 1",
        "h.py": "y = 1",
        "unused.py": "import numpy",
        "empty/__init__.py": "",
        "empty/f.py": "x = 1",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    script = tmp_path / "script.py"
    script.write_text("import json\nfrom semivid.a import x\nfrom semivid.errors import y\nimport semivid.empty.f\n"
                      "from semivid.pipeline.stage import run_stage\n")  # fmt: skip
    found = {str(p.relative_to(package)) for p in imports_of(script, package)}
    assert found == {
        "a.py",
        "b.py",
        "sub/__init__.py",
        "sub/c.py",
        "sub/d.py",
        "sub/e.py",
        "g.py",
        "h.py",
        "empty/f.py",
    }


# ---- what DVC makes of it


def dvc_repo(folder, monkeypatch, params):
    """A DVC repository with this dvc.yaml, and the text or nest `params` as params.yaml."""
    from dvc.repo import Repo

    monkeypatch.chdir(folder)  # the names of stages are relative to it
    subprocess.run(["git", "init", "--quiet", "."], check=True)
    (folder / "params.yaml").write_text(params if isinstance(params, str) else yaml.safe_dump(params))
    shutil.copy(ROOT / "dvc.yaml", folder)
    return Repo.init()


def relative(out, repo):
    return os.path.relpath(out.fs_path, repo.root_dir)


@pytest.mark.parametrize("preset", PRESETS)
def test_dvc_resolves_every_stage_of_a_preset(tmp_path, monkeypatch, preset):
    text = (ROOT / f"presets/{preset}.yaml").read_text()
    repo = dvc_repo(tmp_path, monkeypatch, text)
    stages = {s.addressing: s for s in repo.index.stages}
    raw = YAML(typ="safe").load(text)
    params = Params.model_validate(raw)
    monkeypatch.setattr(dvc_param, "load_path", functools.cache(dvc_param.load_path))  # once, not once per stage
    expected = set()
    for name, entry in STAGES.items():
        axes = []
        for values in entry.get("matrix", {}).values():
            listed = values if isinstance(values, list) else [values]
            resolved = [pick(params, (v[2:-1],))[v[2:-1]] for v in listed]
            axes.append(resolved if isinstance(values, list) else resolved[0])
        items = ["-".join(map(str, combination)) for combination in itertools.product(*axes)]
        expected |= {f"{name}@{i}" if i else name for i in items}
    assert set(stages) == expected
    made = {relative(o, repo) for s in stages.values() for o in s.outs}
    assert len(made) == sum(len(s.outs) for s in stages.values())
    for stage in stages.values():
        assert isinstance(stage.meta.get("threads", 1), int)
        paths = [relative(d, repo) for d in stage.deps if not hasattr(d, "params")]
        raw_data = {*raw["data"]["frames"].values(), *raw["data"]["masks"].values(), raw["data"]["camera"]}
        raw_data |= {raw["depth_model"]} if raw["depth_model"].startswith("weights/") else set()  # published ones
        for path in paths:
            ours = path.startswith(("src/", "stages/", "splits/", "presets/")) or path == raw["data"]["classes"]
            assert ours or path in raw_data or any(related(path, m) for m in made), f"{stage.addressing}: {path}"
            assert not path.startswith(("src/", "stages/")) or (ROOT / path).exists(), f"{stage.addressing}: {path}"
        for dep in stage.deps:
            if hasattr(dep, "params"):
                assert set(dep.read_params()) == set(dep.params), f"{stage.addressing}: a key is not in params.yaml"


def test_yaml_merges_reach_dvc(tmp_path, monkeypatch):
    """A key that a block takes from an anchor is one key of its own to DVC."""
    repo = dvc_repo(tmp_path, monkeypatch, (ROOT / "presets/street.yaml").read_text())
    (ds_us,) = [s for s in repo.index.stages if s.addressing == "select_student@ds_us-7"]
    (dep,) = [d for d in ds_us.deps if hasattr(d, "params")]
    block = dep.read_params()["select.ds_us"]
    params = Params.model_validate(YAML(typ="safe").load((ROOT / "presets/street.yaml").read_text()))
    assert block["steps"] == params.select.ds_us.steps and block["bias"] == params.select.ds_us.bias


@pytest.mark.parametrize("change", ["one folder for both splits", "a criterion less", "one row"])
def test_dvc_accepts_what_params_accept(tmp_path, monkeypatch, change):
    params = small_params()
    if change == "one folder for both splits":
        params["data"] |= {
            "source": "folder",
            "frames": {"train": "v", "val": "v"},
            "masks": {"train": "m", "val": "m"},
        }
    else:
        with_random_alone(params)
        left = [] if change == "one row" else ["ds", "us"]
        params["table3"]["rows"] = ["random", *left]
        params["table3"]["select"] = {
            "names": ["random"], "features": [x for x in left if x == "ds"],
            "student": [x for x in left if x == "us"], "labels": [],
        }  # fmt: skip
    Params.model_validate(params)
    repo = dvc_repo(tmp_path, monkeypatch, params)
    repo.index.check_graph()
    assert sum(s.addressing.startswith("train@") for s in repo.index.stages) == len(params["table3"]["rows"]) * 4


# ---- stages run with nothing but what they declare


def files(folder):
    return {
        str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


class World:
    """All artifacts made so far. A stage runs in a sandbox that holds its declared dependencies alone."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch, self.count = folder / "world", monkeypatch, 0
        self.sandboxes = folder
        shutil.copytree(ROOT / "splits/published", self.folder / "splits/published")
        shutil.copytree(ROOT / "presets", self.folder / "presets")
        for name in ("camvid_train.txt", "camvid_val.txt"):
            shutil.copy(ROOT / "splits" / name, self.folder / "splits")
        self.params = Params.model_validate(small_params())

    def resolve(self, path, item):
        path = re.sub(r"\$\{item\.(\w+)\}", lambda m: str(item[m[1]]), path)
        return re.sub(r"\$\{([\w.]+)\}", lambda m: pick(self.params, (m[1],))[m[1]], path)

    def sandbox(self, name, item):
        """A folder with the dependencies of the stage, linked."""
        self.count += 1
        sandbox = self.sandboxes / f"{self.count}-{name}"
        sandbox.mkdir()
        for dep in [self.resolve(d, item) for d in STAGES[name]["deps"]]:
            source, target = self.folder / dep, sandbox / dep
            if dep.startswith(("src/", "stages/")) or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=os.link, dirs_exist_ok=True)
            else:
                os.link(source, target)
        return sandbox

    def stage(self, name, item):
        item = {k: {"int": int, "str": str}[v](item[k]) for k, v in Script(script_of(STAGES[name])).arguments.items()}
        keys = tuple(self.resolve(k, item) for k in STAGES[name].get("params", []))
        full = name + ("@" + "-".join(map(str, item.values())) if item else "")
        stage = Stage(full, SimpleNamespace(**item), pick(self.params, keys))
        stage.workers = 1
        return stage

    def run(self, name, **item):
        """Run a stage; its outputs join the world. Returns the sandbox."""
        sandbox = self.sandbox(name, item)
        before = files(sandbox)
        self.monkeypatch.chdir(sandbox)
        importlib.import_module(name).main(self.stage(name, item))
        after = files(sandbox)
        assert {k: after.get(k) for k in before} == before, "an input was changed"
        new = {k for k in after.keys() - before.keys() if not k.startswith((".work/", "logs/"))}
        declared = [self.resolve(o, item) for o in outputs(STAGES[name])]
        for out in declared:
            assert (sandbox / out).exists(), f"{out} was not made"
            assert (sandbox / out).is_dir() == (not Path(out).suffix), f"{out}: suffixes tell files from folders"
        assert not [k for k in new if not any(k == o or k.startswith(f"{o}/") for o in declared)], (
            "an undeclared output"
        )
        assert not list(sandbox.glob(".work/**/*.safetensors")), "a resume file is left"
        for path in new:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(sandbox / path, self.folder / path)
        return sandbox


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


def look_at_a_run(world, monkeypatch):
    """The commands that are no stages: scores again, and pictures."""
    run = "flow_consistency-50-7"
    monkeypatch.chdir(world.folder)
    Path("params.yaml").write_text(yaml.safe_dump(small_params()))
    kept = json.loads(Path(f"results/flow_consistency/{run}.json").read_text())
    told = validate.validate(run, flip=False)
    assert f"mean IoU                {100 * kept['miou']:7.2f}" in told and f"{run}: 2 frames of val," in told
    assert told.splitlines()[1:] != validate.validate(run, flip=True).splitlines()[1:]
    written = visualise.visualise(run, Path("pictures"), "val", [], 8, flip=False)
    frames = [p.stem for p in written if p.parent.name == "input"]
    assert len(frames) == 2 and len(written) == 2 * len(visualise.TASKS) - 2 + 1, "the last frame has no flow"
    unlabelled = next(
        f for f in Path("data/prepared/frames.csv").read_text().splitlines() if "_000000" in f and ",val," in f
    )
    written = visualise.visualise(run, Path("pictures"), "val", [unlabelled.split(",")[0]], 8, flip=True)
    assert {p.parent.name for p in written[:-1]} == {*visualise.TASKS} - {"ground_truth"}
    for bad, message in (
        (lambda: validate.validate("flow_consistency-50-8", False), "no such run; there are flow_baseline-50-7"),
        (lambda: validate.validate(run, False, "test"), "no frame of split 'test' has a mask"),
        (lambda: visualise.visualise(run, Path("x"), "val", ["nobody"], 8, False), "no frame 'nobody'"),
    ):
        with pytest.raises(UserError, match=message):
            bad()


def test_every_stage_runs_on_its_declared_inputs_and_makes_its_declared_outputs(world, monkeypatch):
    for name in ("render", "frames", "masks", "depth_pretrain", "depth_finetune", "depth_scores", "disparity"):
        world.run(name)
    chosen = {"names": "random", "features": "ds", "student": "ds_us", "labels": "entropy"}
    for kind, criterion in chosen.items():
        world.run(f"select_{kind}", criterion=criterion, seed=7)
        assert (world.folder / f"splits/selected/{criterion}-7.txt").read_text().count("\n") >= 4

    item = {"method": "supervised", "selection": "random", "labels": 4, "seed": 7}
    sandbox = world.run("train", **item)
    world.run("evaluate", **item)
    flow = {"percent": 50, "seed": 7}
    world.run("flow")
    world.run("fraction_lists", seed=7)
    world.run("train_flow_baseline", method="flow_baseline", **flow)
    world.run("train_flow", method="flow_consistency", **flow)
    for method in ("flow_baseline", "flow_consistency"):
        world.run("evaluate_flow", method=method, **flow)
    look_at_a_run(world, monkeypatch)
    world.run("depth_finetune_plain")
    # One method of every family, and those that read most.
    families = {k: v["methods"][:1] for k, v in small_params()["compare"].items() if isinstance(v, dict)}
    compared = {k: name for k, names in families.items() for name in names}
    compared |= {"mix": "classmix_gt", "transfer_mix": "transfer_classmix"}
    for family, method in compared.items():
        world.run("train_compared_flow" if family == "flow" else f"train_{family}", **item | {"method": method})
    for method in ("supervised", *(method for family, method in compared.items() if family != "multitask")):
        world.run("evaluate_methods", row=f"{method}-random", labels=4, seed=7)
    world.run("evaluate_multitask", **item | {"method": compared["multitask"]})
    monkeypatch.chdir(world.folder)
    run = f"{compared['multitask']}-random-4-7"
    kept = json.loads(Path(f"results/methods/{run}.json").read_text())
    assert f"mean IoU                {100 * kept['miou']:7.2f}" in validate.validate(run, flip=False)
    one_row = small_params()
    one_row["flow_table"] |= {"percents": [50], "seeds": [7]}
    one_row["table3"] |= {
        "rows": ["random"], "labels": [4], "seeds": [7],
        "select": {"names": ["random"], "features": [], "student": [], "labels": []},
    }  # fmt: skip
    for family, method in compared.items():
        one_row["compare"][family]["methods"] = [method]
    with_random_alone(one_row)
    world.params = Params.model_validate(one_row)
    for name in ("table3", "report", "flow_table", "methods_table", "table1", "table2"):
        if hasattr(importlib.import_module(name), "remove_orphans"):  # asks DVC, of which a sandbox knows nothing
            monkeypatch.setattr(importlib.import_module(name), "remove_orphans", lambda: [])
        world.run(name)
    assert "supervised" in (world.folder / "results/table3.csv").read_text()
    assert "flow_consistency,50" in (world.folder / "results/flow_consistency.csv").read_text()
    for name in ("methods", "table1", "table2"):
        assert "DepthMix" in (world.folder / f"results/{name}.md").read_text()
    ran = {p.name.partition("-")[2] for p in sandbox.parent.iterdir() if p.is_dir()} - {""}
    assert ran == set(STAGES), "a stage was not tried"

    # A training that is stopped and given again makes the same bytes, with the real network too.
    world.params = Params.model_validate(small_params())
    sandbox = world.sandbox("train", item)
    monkeypatch.chdir(sandbox)
    from semivid.methods.supervised import Supervised

    real, steps = Supervised.training_step, []

    def stop_once(self, batch, step):
        if not steps:
            os.kill(os.getpid(), signal.SIGTERM)
        steps.append(step)
        return real(self, batch, step)

    monkeypatch.setattr(Supervised, "training_step", stop_once)
    train = importlib.import_module("train").main
    with pytest.raises(SystemExit):
        train(world.stage("train", item))
    assert list(sandbox.glob(".work/*/resume.safetensors"))
    train(world.stage("train", item))
    assert steps == [0, 1, 2]
    made = {k: v for k, v in files(sandbox).items() if k.startswith(("models/", "runs/"))}
    assert made and made == {k: v for k, v in files(world.folder).items() if k in made}

    # A list with a validation frame, as a hand-made one may have: never trained on.
    val = next(n for n in (world.folder / "data/prepared/frames.csv").read_text().splitlines() if ",val," in n)
    selection = sandbox / "splits/selected/random-7.txt"
    selection.unlink()
    selection.write_text(val.split(",")[0] + "\n" + (world.folder / "splits/selected/random-7.txt").read_text())
    with pytest.raises(UserError, match=val.split(",")[0]):
        train(world.stage("train", item))
