"""The selections that Three Ways published, as versioned text files.

A file {dataset}_{criterion}_seed{k}.txt holds frame names in order of choice: 744 for Cityscapes (criteria
ent, us, ds, ds_us), 100 for CamVid (ds_us). A training run of seed 7, 25, 42 uses list 42, 43, 44.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from semivid.errors import UserError
from semivid.selection.lists import read_selection

LIST_SEEDS: dict[int, int] = {7: 42, 25: 43, 42: 44}
"""Training seed -> seed of the published list."""


def published_order(
    folder: Path,
    dataset: str,
    criterion: str,
    seed: int,
    known: Collection[str],
    list_seeds: Mapping[int, int] = LIST_SEEDS,
) -> list[str]:
    """The published list for a training seed.

    Args:
        folder: the folder of the lists (splits/published).
        dataset: "cityscapes" or "camvid".
        criterion: "ent", "us", "ds" or "ds_us".
        seed: seed of the training run.
        known: names of the frames that may be chosen (training frames of the index).
        list_seeds: training seed -> list seed.

    Returns:
        All names of the list, in order of choice; its first n are the subset of n labels.

    Raises:
        UserError: no list belongs to the seed, there is no such list (the lists there are named), or frames
            of it are not in the index (how many, and which).
    """
    folder = Path(folder)
    if seed not in list_seeds:
        pairs = ", ".join(f"{run} -> {stored}" for run, stored in sorted(list_seeds.items()))
        raise UserError(
            f"no published list belongs to seed {seed} (training seed -> list: {pairs}): "
            "use one of these seeds, or extend the mapping"
        )
    path = folder / f"{dataset}_{criterion}_seed{list_seeds[seed]}.txt"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in folder.glob("*_seed*.txt"))) or "none"
        raise UserError(f"no published list {path.name} in {folder} (lists there: {there})")
    return read_selection(path, known)
