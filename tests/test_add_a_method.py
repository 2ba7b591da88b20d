"""docs/add_a_method.md, followed word by word in a copy of the repository: its method is trained and shown."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from semivid.pipeline.params import Params
from small import ROOT, small_params, with_random_alone

PAGE = (ROOT / "docs/add_a_method.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEW = re.compile(r"A new file, `(?P<files>[^`]+)`:")
EDIT = re.compile(
    r"In (?P<files>`[^`]+`(?:(?:, | and )`[^`]+`)*)(?:, blocks? (?P<blocks>`\w+`(?: and `\w+`)*))?, "
    r"(?P<how>before|after|instead of) the line `(?P<line>.+)`(?P<printed>, goes what it has printed\.|:)"
)
QUOTED = re.compile(r"`([^`]+)`")


def steps():
    """What the page has its reader do, in order: (what the sentence says, as a match; the block below it) or
    (None, a command)."""
    found = []
    for sentence in re.finditer(r"^(?:A new file, |In `).*$", PAGE, re.MULTILINE):
        match = NEW.fullmatch(sentence[0]) or EDIT.fullmatch(sentence[0])
        assert match, f"no instruction that a test could follow: {sentence[0]}"
        printed = "printed" in match.groupdict() and match["printed"] != ":"
        block = None if printed else FENCE.match(PAGE, sentence.end() + 2)
        assert printed or block, f"no block below: {sentence[0]}"
        found.append((sentence.start(), match, block and block[2]))
    code = [f for f in FENCE.finditer(PAGE)]
    shown = [f for f in code if f[1] != "sh"]
    assert len(shown) == sum(block is not None for _, _, block in found), "a block that no sentence places"
    found += [(f.start(), None, line) for f in code if f[1] == "sh" for line in f[2].splitlines()]
    return [(match, block) for _, match, block in sorted(found, key=lambda step: step[0])]


def edit(path, how, line, text, block=None):
    """`text` before, after or instead of the one line of a file (of a block of it) that begins with `line`."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first, last = 0, len(lines)
    if block:
        first = lines.index(next(x for x in lines if re.match(rf"{block}:", x))) + 1
        last = next((i for i in range(first, last) if re.match(r"\w", lines[i])), last)
    (at,) = [i for i in range(first, last) if lines[i].strip().startswith(line)]
    kept = {"before": [text, lines[at]], "after": [lines[at], text], "instead of": [text]}
    path.write_text("".join(lines[:at] + kept[how] + lines[at + 1 :]), encoding="utf-8")


class Copy:
    """A copy of this checkout, and what a reader does in it."""

    def __init__(self, folder):
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if listed.returncode:
            pytest.skip("this checkout is not under git, which knows what belongs to it")
        for name in listed.stdout.split("\0"):
            if name and (ROOT / name).is_file() and not name.startswith(("dvc.lock", "results/")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self.run("git", "init", "--quiet")
        self.printed = ""

    def run(self, *command, inside=None):
        """What a command prints, run in the copy or `inside`; it sees the code of the copy alone."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = os.environ | {
            "PATH": path, "PYTHONPATH": str(self.folder / "src"), "PYTHONDONTWRITEBYTECODE": "1",
            "DVC_SITE_CACHE_DIR": str(self.folder / ".dvc/site"), "XDG_CACHE_HOME": str(self.folder / ".dvc/home"),
            "SEMIVID_WORKERS": "1",
        }  # fmt: skip
        done = subprocess.run(
            command, cwd=inside or self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def follow(self, match, block):
        """One instruction."""
        if match.re is NEW:
            path = self.folder / match["files"]
            assert not path.exists(), f"{match['files']} is not new"
            path.write_text(block, encoding="utf-8")
            return
        for name in QUOTED.findall(match["files"]):
            for inside in QUOTED.findall(match["blocks"] or "") or [None]:
                text = self.printed if block is None else block
                edit(self.folder / name, match["how"], match["line"], text, inside)

    def again(self, name, folder, **item):
        """Run a stage in a folder with the data that dvc.yaml declares for it, and nothing else."""
        entry = yaml.safe_load((self.folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"][name]

        def filled(text):
            return re.sub(r"\$\{item\.(\w+)\}", lambda match: str(item[match[1]]), text)

        for path in ["params.yaml", *map(filled, entry["deps"])]:
            if not path.startswith(("src/", "stages/")):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                place = shutil.copytree if (self.folder / path).is_dir() else shutil.copy
                place(self.folder / path, folder / path)
        python, script, *arguments = filled(entry["cmd"]).split()
        self.run(python, str(self.folder / script), *arguments, inside=folder)

    def stale(self):
        """Stages that DVC would run again."""
        return {name.partition("@")[0] for name in json.loads(self.run("dvc", "status", "--json"))}


def tiny(params):
    """The values of tests/small.py for the copy's own keys, and of all methods the two that are looked at."""
    small = small_params()
    method = params["methods"]["cutmix"] | {"lr": 1e-3, "encoder_lr": 1e-3, "confidence": 0.0}  # so soon no one is sure
    small["methods"]["cutmix"] = method
    small["compare"]["cutmix"] = params["compare"]["cutmix"]
    for name, family in small["compare"].items():
        if isinstance(family, dict) and name != "cutmix":
            family["methods"] = []
    with_random_alone(small)
    small["table3"] |= {
        "rows": ["random"], "labels": [4], "seeds": [7],
        "select": {"names": ["random"], "features": [], "student": [], "labels": []},
    }  # fmt: skip
    return small


def test_the_page_leads_to_a_row_of_the_table(tmp_path):
    copy = Copy(tmp_path / "checkout")
    commands = []
    for match, block in steps():
        if match:
            copy.follow(match, block)
            continue
        commands.append(block)
        if block.startswith("cp "):
            copy.run(*block.split())
        elif "semivid.pipeline.sources" in block:
            copy.printed = copy.run(*block.split())
        elif "pytest" in block:
            # Of the last two files what looks at the new method; the rest is the suite's own affair.
            chosen = "cutmix or preset_is or presets_exist or imported_by_name or one_maker or thin"
            told = copy.run(*block.split(), "-q", "-p", "no:cacheprovider", "-k", chosen)
            assert re.search(r"\d\d passed", told) and "skipped" not in told, told
            assert (copy.folder / "params.yaml").read_bytes() == (copy.folder / "presets/street.yaml").read_bytes()
            params = tiny(yaml.safe_load((copy.folder / "params.yaml").read_text()))
            (copy.folder / "params.yaml").write_text(yaml.safe_dump(params))
        elif block.startswith("dvc repro "):
            copy.run(*block.split())
        else:
            raise AssertionError(f"a command that is not followed: {block}")
    assert commands[-1] == "dvc repro methods_table"

    page = read(copy, "md")
    assert len(re.findall(r"^\| CutMix \|", page, re.M)) == 4, page  # mIoU, difference, agreement, hours
    lines = {line["row"]: line for line in csv.DictReader(read(copy, "csv").splitlines())}
    assert set(lines) == {"supervised-random", "cutmix-random"}
    cutmix = lines["cutmix-random"]
    assert 0 <= float(cutmix["miou"]) < 1 and cutmix["diff_supervised"] and float(cutmix["hours"]) > 0
    assert cutmix["iterations"] == "3" and int(cutmix["temporal_pairs"]) == 3
    assert cutmix["temporal_agreement"] != lines["supervised-random"]["temporal_agreement"]
    logged = json.loads((copy.folder / "runs/cutmix-random-4-7/metrics.json").read_text())
    assert logged["cross_entropy"] > 0 and logged["consistency"] > 0

    copy.again("train_cutmix", tmp_path / "sandbox", method="cutmix", selection="random", labels=4, seed=7)
    weights = "models/cutmix-random-4-7.safetensors"
    assert (tmp_path / "sandbox" / weights).read_bytes() == (copy.folder / weights).read_bytes()

    assert not copy.stale() & {"train", "train_cutmix", "evaluate_methods", "methods_table"}
    params["methods"]["cutmix"]["area"] = 0.25
    (copy.folder / "params.yaml").write_text(yaml.safe_dump(params))
    assert "train_cutmix" in copy.stale() and "train" not in copy.stale()


def test_the_example_of_the_page_on_tables_is_accepted():
    params = small_params()
    page = (ROOT / "docs/tables.md").read_text(encoding="utf-8")
    (example,) = (f[2] for f in FENCE.finditer(page) if f[1] == "yaml")
    anchor = json.dumps(params["methods"]["mean_teacher"])
    example = yaml.safe_load(example.replace("*pseudo_label", anchor).replace("[..., ", "["))
    (name,) = example["methods"]
    params["methods"] |= example["methods"]
    assert set(params["compare"]["mix"]["methods"]) == set(example["compare"]["mix"]["methods"]) - {name}
    params["compare"]["mix"]["methods"] = example["compare"]["mix"]["methods"]
    for table in ("compare", "methods_table"):
        params[table]["rows"] += example[table]["rows"]
    read = Params.model_validate(params)
    assert f"{name}-random" in read.methods_table.rows and getattr(read.methods, name).consistency_weight == 3


def read(copy, suffix):
    return (copy.folder / f"results/methods.{suffix}").read_text(encoding="utf-8")
