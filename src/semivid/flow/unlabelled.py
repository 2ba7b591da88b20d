"""The stream of frames whose flow, not labels, is trained on."""

from __future__ import annotations

from semivid.data.index import Frame, Index
from semivid.errors import UserError


def unlabelled_frames(index: Index, which: str) -> list[Frame]:
    """Training frames that have a next one in their video, in order; labelled ones among them, as in the reference.

    which: ``all``, or ``annotated`` for those with a mask alone (the reference's key frames, their labels dropped).
    Raises UserError if there is none.
    """
    candidates = index.select("train", labelled=True if which == "annotated" else None)
    frames = [f for f in candidates if index.neighbour(f, 1) is not None]
    if not frames:
        raise UserError(
            f"none of {len(candidates)} training frames has a next one in its video, so none has flow; add the "
            "neighbouring frames, or set `methods.flow_baseline.unlabelled_batch_size` to 0"
        )
    return frames
