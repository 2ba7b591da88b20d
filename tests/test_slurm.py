"""profiles/slurm: what stages ask a cluster for, and a run on a Slurm of one node that the test sets up itself."""

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from semivid.errors import UserError
from semivid.pipeline.slurm import cluster_has_gpus
from toy import ALL, DVC_YAML, Pipeline

GET_SLURM = "needs slurmctld, slurmd and munge (`apt-get install slurm-wlm munge`)"
GET_PLUGIN = "needs `pip install -r requirements-slurm.txt -c requirements.lock`"
META = "    meta:\n      threads: 2\n"
CONFIG = Path("/etc/slurm/slurm.conf")  # jobs do not inherit SLURM_CONF, so the file must lie here
SLURM_CONF = """
ClusterName=semivid
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


# ---- resources


def fake_sinfo(folder, monkeypatch, *lines, code=0):
    folder.mkdir(exist_ok=True)
    script = folder / "sinfo"
    out = "".join(f"echo '{line}'\n" for line in lines)
    script.write_text(f"#!/bin/sh\n{out}echo 'no controller' >&2\nexit {code}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("lines", "gpus"),
    [
        (["(null)"], False),
        (["(null)", "gpu:a100:4(S:0-1)"], True),
        (["gpu:2"], True),
        (["craynetwork:4"], False),
        ([], False),
    ],
)
def test_slurm_is_asked_for_gpus(tmp_path, monkeypatch, lines, gpus):
    fake_sinfo(tmp_path, monkeypatch, *lines)
    assert cluster_has_gpus() == gpus


def test_no_slurm_is_one_line(tmp_path, monkeypatch):
    fake_sinfo(tmp_path, monkeypatch, code=1)
    with pytest.raises(UserError, match=r"no controller.*login node"):
        cluster_has_gpus()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"sinfo: not found.*login node"):
        cluster_has_gpus()


@pytest.fixture(scope="module")
def with_gpus(tmp_path_factory):
    """The toy pipeline, not yet run, whose trainings ask for a GPU, memory and minutes of their own."""
    pipeline = Pipeline(tmp_path_factory.mktemp("slurm") / "toy")
    pipeline.write()
    meta = META + "      gpus: 1\n      mem_mb: 1234\n      minutes: 77\n"
    assert DVC_YAML.count(META) == 1
    (pipeline.folder / "dvc.yaml").write_text(DVC_YAML.replace(META, meta))
    return pipeline


@pytest.mark.parametrize(
    ("sinfo", "slurm", "gpus"),
    [("gpu:a100:4", True, 1), ("(null)", True, 0), ("(null)", False, 1)],
    ids=["with GPUs", "without", "no Slurm"],
)
def test_resources_are_those_of_the_stage(with_gpus, sinfo, slurm, gpus, tmp_path, monkeypatch):
    """Without Slurm the number only limits how many run at once, where --resources gpu=N is given."""
    fake_sinfo(tmp_path, monkeypatch, sinfo)
    options = ("--config", "slurm=true") if slurm else ()
    output = with_gpus.snakemake("train_a", "--dry-run", "--cores", "2", *options)
    rules = dict(re.findall(r"^rule (\w+):\n((?: .*\n)+)", output, re.M))
    assert set(rules) == {"prepare", "train_a"}
    training, preparing = rules["train_a"], rules["prepare"]
    asked = dict(item.split("=") for item in re.search(r"resources: (.*)", training)[1].split(", "))
    assert (asked["mem_mb"], asked["runtime"], asked.get("gpu", "0")) == ("1234", "77", str(gpus))
    assert "threads: 2" in training
    assert "mem_mb=2000" in preparing and "runtime=60" in preparing and "gpu=1" not in preparing


# ---- a real Slurm


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(what, command, good):
    end = time.monotonic() + 120
    while not good(out := subprocess.run(command, capture_output=True, text=True).stdout):
        assert time.monotonic() < end, f"{what}: {out}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of this machine alone, without systemd; everything it starts and writes is taken away again."""
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
        pytest.skip(GET_SLURM)
    pytest.importorskip("snakemake_executor_plugin_slurm", reason=GET_PLUGIN)
    if os.geteuid() != 0:
        pytest.skip("needs root: slurmd starts jobs as their users; run `sudo make check-slow`")
    if CONFIG.exists():
        pytest.skip(f"{CONFIG} exists: this machine has a Slurm of its own, which the test leaves alone")
    folder = tmp_path_factory.mktemp("slurmd")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    started = []
    try:
        if subprocess.run(["munge", "-n"], capture_output=True).returncode:
            Path("/run/munge").mkdir(mode=0o755, exist_ok=True)
            shutil.chown("/run/munge", "munge", "munge")
            started.append(subprocess.Popen(["munged", "--foreground"], user="munge", group="munge", cwd="/"))
        host = socket.gethostname().split(".")[0]
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
        CONFIG.parent.mkdir(exist_ok=True)
        settings = {
            "host": host,
            "ports": free_ports(2),
            "folder": folder,
            "cpus": os.cpu_count(),
            "memory": pages - 100,
        }
        CONFIG.write_text(SLURM_CONF.format(**settings))
        wait_for("munge", ["munge", "-n"], lambda out: out.startswith("MUNGE"))
        started += [subprocess.Popen(["slurmctld", "-D"]), subprocess.Popen(["slurmd", "-D"])]
        wait_for("slurm", ["sinfo", "--noheader", "--format=%T"], lambda out: out.strip() == "idle")
        yield
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=60)
        CONFIG.unlink(missing_ok=True)


@pytest.mark.slow
def test_a_pipeline_runs_on_slurm(slurm, tmp_path, capsys):
    pipeline = Pipeline(tmp_path / "toy")
    pipeline.write()
    (pipeline.folder / "dvc.yaml").write_text(DVC_YAML.replace(META, META + "      gpus: 1\n"))  # there are none
    process = pipeline.start("snakemake", "--profile", "profiles/slurm")
    output = process.communicate(timeout=1500)[0]
    with capsys.disabled():
        print(output)
    assert process.returncode == 0
    assert len(set(re.findall(r"with SLURM jobid (\d+)", output))) == len(ALL)
    assert pipeline.executed() == ALL
    assert "up to date" in pipeline.run("dvc", "status")
    assert pipeline.planned() == []
    assert pipeline.clean()
