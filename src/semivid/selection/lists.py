"""Selections as text: one frame name per line, in order of choice; the first n lines are the subset of n."""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from semivid.errors import UserError
from semivid.pipeline.artifacts import write_text


def read_selection(path: Path, known: Collection[str] | None = None) -> list[str]:
    """Read a list of frame names.

    Args:
        path: text file, UTF-8, one name per line; blank lines are skipped.
        known: names that may be chosen (training frames of an index); None skips the check.

    Returns:
        The names in the file's order.

    Raises:
        UserError: the file is missing or empty, or names a frame twice or one that is not known.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"no list of selected frames at {path}: run the stage that writes it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file: a selection has one frame name per line") from None
    names = [name for name in names if name]
    if not names:
        raise UserError(f"{path} names no frame: a selection has one frame name per line")
    _check(names, path, known)
    return names


def first_labels(path: Path, labels: int, known: Collection[str] | None = None) -> list[str]:
    """The first `labels` names of the list at `path`; UserError if it has fewer; else as `read_selection`."""
    names = read_selection(path, known)
    if len(names) < labels:
        raise UserError(
            f"{path} lists {len(names)} frames, but {labels} labels are asked for: let its stage choose more"
        )
    return names[:labels]


def write_selection(path: Path, names: Iterable[str], known: Collection[str] | None = None) -> None:
    """Write a list of frame names, atomically: a reader sees the old file or the whole new one.

    Raises:
        UserError: no name, a name twice, or one that is not in `known`.
    """
    names = list(names)
    if not names:
        raise UserError(f"no frame to write to {path}: ask for at least one label")
    _check(names, path, known)
    write_text(path, "".join(f"{name}\n" for name in names))


def _check(names: list[str], path: Path, known: Collection[str] | None) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: {len(twice)} frames are named twice ({_abbreviate(twice)}): keep each once")
    if known is None:
        return
    known = frozenset(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} of {len(names)} frames are not among the training frames to choose from "
            f"({_abbreviate(unknown)}): use a list made for this data set and split, or add the frames to it"
        )


def _abbreviate(names: list[str], show: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f", and {len(names) - show} more" if len(names) > show else ""
    return ", ".join(names[:show]) + more
