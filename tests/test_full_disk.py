"""A disk that fills up: one line that names the path, nothing good is lost, and the same command completes later."""

import os
import subprocess

import pytest

from resuming_toy import DVC, SNAKEMAKE, Checkout


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of 24 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here (needs root): {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder, left):
    """Take all space but `left` bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with open(folder / "ballast", "wb") as file:
        file.write(bytes(free - left))


@pytest.mark.parametrize("left", [16 << 10, *[pytest.param(n, marks=pytest.mark.slow) for n in (0, 48 << 10)]])
@pytest.mark.parametrize("command", [SNAKEMAKE, DVC], ids=["snakemake", "dvc"])
def test_a_full_disk_costs_nothing_but_time(disk, command, left):
    checkout = Checkout(disk / "checkout")
    checkout.run(command)
    before = checkout.outputs()
    checkout.set(2, 2)
    fill(disk, left)
    assert checkout.start(command).wait(timeout=240) != 0
    said = checkout.log()
    assert "No space left on device" in said
    checkout.set(1, 1)
    (disk / "ballast").unlink()
    checkout.run(command)
    assert checkout.outputs() == before
    checkout.set(2, 2)
    checkout.run(command)
    after = checkout.outputs()
    assert set(after) == set(before) and all(after[name] != before[name] for name in before)
