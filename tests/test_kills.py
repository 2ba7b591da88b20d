"""`kill -9` of engines and stages at random moments: the same command completes, with the same bytes."""

import json
import os
import random
import signal
import subprocess
import time

import psutil
import pytest

from resuming_toy import DVC, SNAKEMAKE, Checkout


def disturb(checkout, command, kills, rng):
    """Start the engine again and again; kill it, or one of its processes, at a random moment; returns the victims."""
    victims = {"engine": 0, "stage": 0, "runner": 0}
    value = 1
    while sum(victims.values()) < kills:
        mend_dvc(checkout, command)
        engine = checkout.start(command)
        if rng.random() < 0.7:  # most moments of an engine's life are its start; look for one with stages at work
            while engine.poll() is None and not any(_at_work(p) for p in checkout.processes()):
                time.sleep(0.02)
            time.sleep(rng.uniform(0.0, 1.5))
        else:
            time.sleep(rng.uniform(0.0, 6.0))
        if engine.poll() is not None:  # it ended in peace (or failed: the next start tells); give it something to do
            value += 1
            checkout.set(rng.choice([1, value]), value)
            continue
        below = [p for p in checkout.processes() if p.pid != engine.pid]
        kinds = {
            "engine": [engine],
            "stage": [p for p in below if _at_work(p)],
            "runner": [p for p in below if "semivid.pipeline.run" in _command(p)],
        }
        kind = rng.choice([k for k, found in kinds.items() if found])
        victim = rng.choice(kinds[kind])
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        victims[kind] += 1
        if kind == "engine":  # the next start follows at once, while stages of the dead engine may still be ending
            engine.wait()
        elif rng.random() < 0.5:
            os.kill(engine.pid, signal.SIGKILL)
            engine.wait()
        else:
            engine.wait(timeout=120)
    return victims


def mend_dvc(checkout, command):
    """Plain DVC cannot start with half a file of its own (docs/engines.md); Snakemake must."""
    if command == DVC and (path := checkout.mend()):
        print(f"half of {path} was left by dvc and removed by hand")


def _at_work(process):
    return any(part.startswith("stages/") for part in _command(process)[1:2])


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("kills") / "undisturbed")
    checkout.run(SNAKEMAKE)
    return checkout.outputs()


def survives(checkout, command, kills, seed, undisturbed):
    victims = disturb(checkout, command, kills, random.Random(seed))
    checkout.set(1, 1)
    mend_dvc(checkout, command)
    checkout.run(command)
    assert checkout.outputs() == undisturbed
    assert not (checkout.folder / "two_writers.txt").exists(), (checkout.folder / "two_writers.txt").read_text()
    status = subprocess.run(["dvc", "status"], cwd=checkout.folder, capture_output=True, text=True)
    assert "up to date" in status.stdout, status
    deadline = time.monotonic() + 20
    while left := checkout.processes():
        assert time.monotonic() < deadline, [p.cmdline() for p in left]
        time.sleep(0.1)
    print(f"{command[0]}: survived {json.dumps(victims)}")


@pytest.mark.parametrize("command", [SNAKEMAKE, DVC], ids=["snakemake", "dvc"])
def test_the_same_command_completes_after_kills(tmp_path, undisturbed, command):
    survives(Checkout(tmp_path / "killed"), command, 10, 7, undisturbed)


def test_snakemake_mends_half_a_list_of_locks(tmp_path, undisturbed):
    """`kill -9` of a DVC that was writing it; found once in some hundred kills, so made here."""
    checkout = Checkout(tmp_path / "half")
    for half in ("", '{"write": {"/a/models/a.txt": {"pid": 1'):
        (checkout.folder / ".dvc/tmp/rwlock").write_text(half)
        checkout.run(SNAKEMAKE)
        assert not any(json.loads((checkout.folder / ".dvc/tmp/rwlock").read_text()).values())
    assert checkout.outputs() == undisturbed


@pytest.mark.parametrize("first, second", [(SNAKEMAKE, DVC), (DVC, SNAKEMAKE), (SNAKEMAKE, SNAKEMAKE), (DVC, DVC)])
def test_two_engines_at_once_do_no_harm(tmp_path, undisturbed, first, second):
    """One of them may be refused; afterwards either completes."""
    checkout = Checkout(tmp_path / "both")
    one, two = checkout.start(first), checkout.start(second)
    codes = one.wait(timeout=240), two.wait(timeout=240)
    assert 0 in codes, checkout.log()[-3000:]
    assert "Traceback" not in checkout.log()
    for command in (second, first):
        checkout.run(command)
    assert checkout.outputs() == undisturbed
    assert not (checkout.folder / "two_writers.txt").exists()


def test_a_refused_engine_leaves_the_stamps_of_the_one_at_work_alone(tmp_path):
    """With other parameters it would plan other stages, and delete stamps that the first one waits for."""
    checkout = Checkout(tmp_path / "busy")
    first = checkout.start(SNAKEMAKE)
    while first.poll() is None and not any(_at_work(p) for p in checkout.processes()):
        time.sleep(0.02)
    folder = checkout.folder / ".work/stamps"
    stamps = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    text = (checkout.folder / "dvc.yaml").read_text()
    (checkout.folder / "dvc.yaml").write_text(text.replace("[a, b, c, d]", "[a, b]"))
    assert checkout.start([*SNAKEMAKE, "--dry-run"]).wait(timeout=120) == 1
    (checkout.folder / "dvc.yaml").write_text(text)
    assert "another snakemake is at work in this folder" in checkout.log()
    assert stamps == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    assert first.wait(timeout=240) == 0, checkout.log()[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("command", [SNAKEMAKE, DVC], ids=["snakemake", "dvc"])
def test_fifty_kills(tmp_path, undisturbed, command, seed):
    survives(Checkout(tmp_path / "killed"), command, 50, seed, undisturbed)
