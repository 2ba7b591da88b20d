"""What the Snakefile must know of a Slurm cluster (profiles/slurm)."""

from __future__ import annotations

import subprocess

from semivid.errors import UserError


def cluster_has_gpus() -> bool:
    """Whether any node of this machine's cluster offers GPUs: Slurm refuses jobs that ask for what no node has.

    Raises UserError if Slurm cannot be asked.
    """
    command = ["sinfo", "--noheader", "--format=%G"]  # one line per kind of node: gpu:a100:4(S:0-1), or (null)
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("sinfo: not found; profiles/slurm works on a login node of a Slurm cluster") from None
    if answer.returncode:
        reason = " ".join(answer.stderr.split()) or f"exit code {answer.returncode}"
        raise UserError(f"Slurm does not answer: {reason}; profiles/slurm works on a login node of a Slurm cluster")
    return "gpu" in answer.stdout
