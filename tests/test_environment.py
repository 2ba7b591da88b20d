"""environment.yml (conda) and the requirements files (pip) name the same versions; the lock file agrees."""

import re

import yaml

from conftest import ROOT

PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;]+)$")


def pins(text):
    found = {}
    for line in filter(None, (line.split("#")[0].strip() for line in text.splitlines())):
        match = PIN.match(line)
        assert match, f"not an exact pin: {line}"
        found[match[1].lower().replace("_", "-")] = match[2]
    return found


def requirements():
    return pins((ROOT / "requirements.txt").read_text()) | pins((ROOT / "requirements-test.txt").read_text())


def test_conda_and_pip_name_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pins("\n".join(listed)) == requirements()


def test_the_lock_file_holds_every_requirement_at_its_version_and_no_host():
    text = (ROOT / "requirements.lock").read_text()
    assert "//" not in text and "@" not in text
    locked = pins(text)
    wanted = requirements() | pins((ROOT / "requirements-slurm.txt").read_text())
    assert {name: locked.get(name) for name in wanted} == wanted
