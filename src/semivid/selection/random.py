"""Random choice of frames, by the permutation that published splits are made with.

NumPy's legacy RandomState is frozen: its permutations stay the same in every NumPy version, and those of one
seed are nested (the first 100 frames are among the first 372).
"""

from collections.abc import Iterable

import numpy as np

from semivid.errors import UserError


def random_order(frames: int, seed: int) -> list[int]:
    """All positions 0 .. frames - 1 in the seed's order; its prefixes are the random subsets."""
    return np.random.RandomState(seed).permutation(frames).tolist()


def random_subset(frames: int, seed: int, labels: int) -> list[int]:
    """The first `labels` positions of the seed's order, in order of choice.

    Raises:
        UserError: there are fewer frames than labels.
    """
    if labels > frames:
        raise UserError(f"cannot choose {labels} of {frames} frames: lower the number of labels")
    return random_order(frames, seed)[:labels]


def partition(frames: int, chosen: Iterable[int]) -> tuple[list[int], list[int]]:
    """Split positions 0 .. frames - 1 into the chosen ones and the rest, both ascending."""
    labelled = set(chosen)
    return sorted(labelled), [i for i in range(frames) if i not in labelled]
