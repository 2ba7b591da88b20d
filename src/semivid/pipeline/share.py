"""Give every recorded run to a remote, or take it from there: `python -m semivid.pipeline.share push|pull [REMOTE]`.

`dvc push` sends what the checkout holds now. `dvc push --run-cache` adds the records of earlier runs, but not the
data they name, and never the older versions of files that git keeps (tables, scores), so that going back to an
earlier parameter computes again on the other side. These two commands move records and data.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from semivid.errors import UserError

USAGE = "usage: python -m semivid.pipeline.share push|pull [REMOTE]"


def _data(repo: Repo, remote: str | None) -> Iterator[set]:
    """What the records of the run cache name; a folder's list of files is fetched from the remote where absent."""
    records = [(p.parent.name, p.name) for p in Path(repo.stage_cache.cache_dir).glob("*/*/*")]
    yield from repo.stage_cache.get_used_objs(records, remote=remote, force=True).values()


def _moved(result) -> int:
    if result.failed:
        raise DvcException(f"{len(result.failed)} files could not be moved; give the same command again")
    return len(result.transferred)


def push(remote: str | None = None) -> int:
    """Send the present data, and the records and data of all runs, to `remote` (None: the default); returns files.

    Data go first: a record on the remote never names what is not there. Raises DvcException.
    """
    repo = Repo(".")
    sent = repo.push(remote=remote)
    sent += sum(_moved(repo.cloud.push(objects, remote=remote)) for objects in _data(repo, remote))
    repo.stage_cache.push(remote)
    return sent


def pull(remote: str | None = None) -> int:
    """Fetch what `push` sent from `remote` and put the present outputs in place; returns files. Raises DvcException."""
    repo = Repo(".")
    repo.stage_cache.pull(remote)
    got = sum(_moved(repo.cloud.pull(objects, remote=remote)) for objects in _data(repo, remote))
    return got + repo.pull(remote=remote)["stats"]["fetched"]


def main(arguments: list[str]) -> None:
    try:
        if len(arguments) not in (1, 2) or arguments[0] not in ("push", "pull"):
            raise UserError(USAGE)
        files = {"push": push, "pull": pull}[arguments[0]](*arguments[1:])
    except (UserError, DvcException) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{files} files {arguments[0]}ed")


if __name__ == "__main__":
    main(sys.argv[1:])
