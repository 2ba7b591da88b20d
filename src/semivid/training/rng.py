"""Random numbers as a function of (seed, purpose, step, position), never of a generator's history."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator that depends on `seed` and `purpose` (names and non-negative numbers) alone.

    The same arguments give the same draws on every machine, in every process, whatever ran before; so a
    result depends neither on the number of workers nor on where a run was resumed.
    """
    words = [zlib.crc32(p.encode()) if isinstance(p, str) else int(p) for p in purpose]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def torch_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for torch's generators, from the same arguments as `generator`."""
    return int(generator(seed, *purpose).integers(2**63))
