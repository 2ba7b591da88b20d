"""Stage commands as processes: exit codes, messages, logs, the lock, and how they end."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from semivid.pipeline.artifacts import write_text
from small import small_params

SCRIPT = '''"""A stage for tests."""
import os, signal, subprocess, sys, time
from pathlib import Path
from semivid.errors import UserError
from semivid.pipeline.artifacts import replacing, write_text
from semivid.pipeline.stage import log, run_stage

def wait_for(name):
    while not Path(name).exists():
        time.sleep(0.02)

def main(stage):
    {body}

if __name__ == "__main__":
    run_stage(main, {keys}, {arguments})
'''
ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30.0  # seconds, for a machine that does other things


class Workplace:
    """A working folder with params.yaml and stage scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "stages").mkdir()
        self.params(small_params())
        self.started: list[subprocess.Popen] = []

    def params(self, content):
        write_text(self.folder / "params.yaml", content if isinstance(content, str) else yaml.safe_dump(content))

    def stage(self, body, keys=("train",), arguments=None, name="demo"):
        arguments = "{" + ", ".join(f"{k!r}: {v.__name__}" for k, v in (arguments or {}).items()) + "}"
        text = SCRIPT.format(body=body.strip().replace("\n", "\n    "), keys=list(keys), arguments=arguments)
        (self.folder / f"stages/{name}.py").write_text(text)

    def start(self, *arguments, name="demo", script=None, shell=None, **environment):
        command = [sys.executable, str(script or f"stages/{name}.py"), *arguments]
        if shell:
            command = ["bash", "-c", shell.format(command=" ".join(command))]
        process = subprocess.Popen(
            command, cwd=self.folder, env=os.environ | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *arguments, name="demo", **environment):
        """(exit code, standard error)."""
        process = self.start(*arguments, name=name, **environment)
        errors = process.communicate(timeout=PATIENCE)[1]
        return process.returncode, errors

    def path(self, name) -> Path:
        return self.folder / name

    def wait_for(self, name):
        wait_until(lambda: self.path(name).exists(), f"no {name}")


def wait_until(condition, complaint):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, complaint
        time.sleep(0.02)


def next_line(process):
    assert select.select([process.stderr], [], [], PATIENCE)[0], "the process says nothing"
    return process.stderr.readline()


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def work(tmp_path):
    place = Workplace(tmp_path)
    yield place
    for process in place.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


# ---- a good run


def test_a_good_run(work):
    work.stage(
        """
import json
log.info("hällo %d", 3)
seen = {"name": stage.name, "run": stage.run, "args": vars(stage.args), "work": str(stage.work),
        "workers": stage.workers, "iterations": stage.params.train.iterations,
        "train": stage.params.data.frames.train, "list_seed": getattr(stage.params.table3.list_seeds, "7")}
for undeclared in ("evaluate", "network"):
    seen[undeclared] = hasattr(stage.params, undeclared)
seen["data.name"] = hasattr(stage.params.data, "name")
write_text("out.json", json.dumps(seen))
""",
        keys=["train", "data.frames", "select.{criterion}", "table3.list_seeds.{seed}"],
        arguments={"criterion": str, "seed": int},
    )
    code, errors = work.run("--criterion", "us", "--seed", "7", SEMIVID_WORKERS="5", LC_ALL="C.UTF-8")
    assert (code, "[demo@us-7] hällo 3" in errors, "Traceback" in errors) == (0, True, False)
    assert json.loads(work.path("out.json").read_text()) == {
        "name": "demo@us-7", "run": "us-7", "args": {"criterion": "us", "seed": 7}, "work": ".work/demo@us-7",
        "workers": 5, "iterations": 3, "train": small_params()["data"]["frames"]["train"], "list_seed": 42,
        "evaluate": False, "network": False, "data.name": False,
    }  # fmt: skip
    log = work.path("logs/demo@us-7.log").read_text(encoding="utf-8")
    assert "hällo 3" in log and "done:" in log
    cost = json.loads(work.path(".work/costs/demo@us-7.json").read_text())
    assert set(cost) == {"seconds", "cpu_seconds", "peak_mb"} and cost["peak_mb"] > 5


def test_costs_include_worker_processes(work):
    work.stage(
        """
busy = "import time; end = time.process_time() + 0.6; x = bytearray(90_000_000)\\nwhile time.process_time() < end: pass"
subprocess.run([sys.executable, "-c", busy], check=True)
"""
    )
    assert work.run()[0] == 0
    cost = json.loads(work.path(".work/costs/demo.json").read_text())
    assert cost["seconds"] >= 0.6
    own = cost["cpu_seconds"] - 0.6
    assert own > 0, "the worker's time is missing"
    assert cost["peak_mb"] > 90


def test_settings_tell_parameters_and_arguments_apart(work):
    """They guard resume files: equal for equal runs, different for any difference."""
    work.stage('write_text(f"{stage.args.n}.txt", stage.settings)', ["train", "evaluate"], {"n": int})
    texts = []
    for n, iterations in (("1", 3), ("1", 3), ("2", 3), ("1", 4)):
        params = small_params()
        params["train"]["iterations"] = iterations
        params["network"]["encoder"] = "resnet101" if len(texts) == 1 else "resnet50"  # not read by this stage
        work.params(params)
        assert work.run("--n", n)[0] == 0
        texts.append(work.path(f"{n}.txt").read_text())
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


# ---- faults


def test_a_user_error_is_one_line(work):
    work.stage('raise UserError("mask.png: no mask; add one")')
    code, errors = work.run()
    assert (code, errors) == (2, "[demo] error: mask.png: no mask; add one\n")
    assert "error: mask.png: no mask; add one" in work.path("logs/demo.log").read_text()
    assert not work.path(".work/costs/demo.json").exists()
    code, errors = work.run("--debug")
    assert code == 2 and "Traceback" in errors and "[demo] error: mask.png" in errors


def test_several_faults_are_one_line_each(work):
    work.stage('raise UserError("a is bad\\nb is bad")')
    code, errors = work.run()
    assert (code, errors.splitlines()) == (2, ["[demo] error: a is bad", "[demo] error: b is bad"])


def test_bad_params_stop_the_stage_before_it_begins(work):
    work.stage('write_text("ran", "")')
    params = small_params()
    params["train"]["iteratons"] = params["train"].pop("iterations")
    work.params(params)
    code, errors = work.run()
    assert code == 2 and "Traceback" not in errors
    assert sorted(errors.splitlines()) == [
        "error: params.yaml: key `train.iterations` is missing; presets/street.yaml shows every key",
        "error: params.yaml: unknown key `train.iteratons`; did you mean `iterations`?",
    ]
    assert not work.path("ran").exists()


def test_a_key_that_params_do_not_have(work):
    work.stage("pass", ["table3.list_seeds.{seed}"], {"seed": int})
    code, errors = work.run("--seed", "8")
    assert (code, errors) == (2, "error: params.yaml: no key `table3.list_seeds.8`\n")


def test_a_missing_file_is_one_line_with_its_name(work):
    work.stage('open("data/lost.csv")')
    code, errors = work.run()
    assert code == 2 and "Traceback" not in errors and len(errors.splitlines()) == 1
    assert "data/lost.csv: No such file" in errors


def test_a_full_disk_is_one_line_with_the_output(work):
    """The limit on a file's size stands for the disk: the system's refusal differs in its number alone."""
    work.path("out.txt").write_text("old")
    work.stage(
        """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
write_text("out.txt", "new" * 9999)
"""
    )
    code, errors = work.run()
    assert code == 2 and "Traceback" not in errors and len(errors.splitlines()) == 1
    assert "out.txt" in errors and "space" in errors
    assert work.path("out.txt").read_text() == "old"


def test_a_full_disk_that_names_no_file(work):
    work.stage(
        """
with open("/dev/full", "w") as file:
    file.write("x" * 99999)
"""
    )
    code, errors = work.run()
    assert code == 2 and "Traceback" not in errors and len(errors.splitlines()) == 1
    assert "No space left on device" in errors and str(work.folder) in errors


def test_a_bug_shows_its_traceback_in_the_log_too(work):
    work.stage('{}["no such key"]')
    code, errors = work.run()
    assert code == 1 and errors.count("Traceback") == 1 and "KeyError: 'no such key'" in errors
    log = work.path("logs/demo.log").read_text()
    assert log.count("Traceback") == 1 and "KeyError: 'no such key'" in log


def test_wrong_arguments(work):
    work.stage("pass", arguments={"seed": int})
    for arguments in ((), ("--seed", "x"), ("--sed", "7")):
        code, errors = work.run(*arguments)
        assert code == 2 and "usage: demo" in errors and "Traceback" not in errors


# ---- being stopped


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_stage_cleans_up(work, number, code):
    work.path("out.txt").write_text("old")
    work.stage(
        """
with replacing("out.txt") as temporary:
    temporary.write_text("half")
    Path("begun").touch()
    wait_for("never")
"""
    )
    process = work.start()
    work.wait_for("begun")
    process.send_signal(number)
    errors = process.communicate(timeout=PATIENCE)[1]
    assert (process.returncode, errors) == (code, "")
    assert work.path("out.txt").read_text() == "old"
    assert not work.path(".out.txt.tmp").exists()


def test_a_stage_dies_with_the_process_that_started_it(work):
    """kill -9 of an engine must not leave a writer behind; the stage still ends in good order."""
    work.stage(
        """
Path("pid").write_text(str(os.getpid()))
Path("begun").touch()
try:
    wait_for("never")
finally:
    Path("ended").write_text("in good order")
"""
    )
    engine = work.start(shell="{command}; true")  # a second command, so that the shell stays the parent
    work.wait_for("begun")
    pid = int(work.path("pid").read_text())
    assert pid != engine.pid and alive(pid)
    os.kill(engine.pid, signal.SIGKILL)
    try:
        wait_until(lambda: not alive(pid), "the stage outlived its engine")
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    assert work.path("ended").read_text() == "in good order"


def test_workers_die_with_a_killed_stage(work):
    """A worker that went on would write its files among those of the next run. Stopped, it cannot end by itself."""
    params = small_params()
    params["render"] |= {"snippets": {"train": 400, "val": 1}}
    work.params(params)
    render = work.start(name="render", script=ROOT / "stages/render.py", SEMIVID_WORKERS="2")
    wait_until(lambda: list(work.folder.glob("data/.raw.tmp/truth/flow/*/*/*")), "nothing is rendered")
    workers = [p for p in children(render.pid) if "spawn_main" in Path(f"/proc/{p}/cmdline").read_text()]
    assert len(workers) == 2
    try:
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        render.kill()
        wait_until(lambda: not any(alive(w) for w in workers), "a worker outlived its stage")
    finally:
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)


def children(pid):
    return [int(p) for file in Path(f"/proc/{pid}/task").glob("*/children") for p in file.read_text().split()]


def test_a_killed_stage_frees_its_lock_even_if_a_child_lives_on(work):
    work.stage(
        """
if Path("begun").exists():
    write_text("out.txt", "second")
    sys.exit()
child = os.fork()
if child == 0:  # as a worker process of a data loader
    Path("child").write_text(str(os.getpid()))
    wait_for("never")
wait_for("child")
Path("begun").touch()
wait_for("never")
"""
    )
    first = work.start()
    work.wait_for("begun")
    child = int(work.path("child").read_text())
    try:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert alive(child)
        code, errors = work.run()
        assert (code, "waiting" in errors) == (0, False)
        assert work.path("out.txt").read_text() == "second"
    finally:
        os.kill(child, signal.SIGKILL)


# ---- one writer


def test_a_second_process_waits_for_the_first(work):
    work.stage(
        """
with open("order", "a") as file:
    file.write(f"in {stage.params.train.iterations}\\n")
if not Path("begun").exists():
    Path("begun").touch()
    wait_for("go on")
with open("order", "a") as file:
    file.write(f"out {stage.params.train.iterations}\\n")
"""
    )
    first = work.start()
    work.wait_for("begun")
    second = work.start()
    assert "waiting" in next_line(second)
    params = small_params()
    params["train"]["iterations"] = 9
    work.params(params)  # the second reads them when its turn comes: an engine records what then holds
    time.sleep(0.2)
    assert work.path("order").read_text() == "in 3\n"
    assert second.poll() is None
    work.path("go on").touch()
    assert (first.wait(PATIENCE), second.wait(PATIENCE)) == (0, 0)
    assert work.path("order").read_text().splitlines() == ["in 3", "out 3", "in 9", "out 9"]


def test_a_waiting_process_can_be_stopped(work):
    work.stage('Path(f"begun-{os.getpid()}").touch(); wait_for("go on")')
    first = work.start()
    wait_until(lambda: list(work.folder.glob("begun-*")), "the first does not begin")
    second = work.start()
    assert "waiting" in next_line(second)
    second.terminate()
    assert second.wait(PATIENCE) == 143
    work.path("go on").touch()
    assert first.wait(PATIENCE) == 0
    assert len(list(work.folder.glob("begun-*"))) == 1


def test_runs_of_one_stage_with_other_arguments_do_not_wait(work):
    work.stage('Path(f"begun-{stage.args.n}").touch(); wait_for("begun-1"); wait_for("begun-2")', (), {"n": int})
    both = [work.start("--n", n) for n in ("1", "2")]
    assert [p.wait(PATIENCE) for p in both] == [0, 0]
