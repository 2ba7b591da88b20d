"""How good propagated labels are, by motion, way and distance: results/propagation.csv.

Truth is the target frame's own label. Void pixels of the truth never count. A way that leaves pixels void is measured
three times, so that void is no way to win: on what it labels (with the share that this is), on the pixels that every
compared way labels, and on all pixels, where void is a miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from semivid.data.classes import VOID
from semivid.errors import UserError
from semivid.evaluation.confusion import confusion_matrix, scores
from semivid.evaluation.tables import percent

NAMES = {
    "reference": "reference chain",
    "composed": "composed",
    "direct": "direct",
}
_ORDER = ("reference", "composed", "direct")


@dataclass
class _Counts:
    """One cell: sums over frames. missed: true pixels by class that got no label."""

    own: np.ndarray
    common: np.ndarray
    missed: np.ndarray
    pairs: int = 0


@dataclass
class PropagationQuality:
    """Adds up propagated labels against true ones, by (motion, way, distance), both directions together.

    classes: number of classes C.
    """

    classes: int
    _cells: dict[tuple[str, str, int], _Counts] = field(default_factory=dict)

    def add(self, step: int, truth: np.ndarray, labels: Mapping[tuple[str, str], np.ndarray]) -> None:
        """The labels that one pair of frames gets.

        Args:
            step: frames from the source to the target, negative = earlier.
            truth: uint8 (H, W), the target's own label, 255 = void.
            labels: {(motion, way): uint8 (H, W), 255 = void}: all that are compared; a pixel is common if all of them
                label it.

        Raises:
            UserError: shapes differ, or a label is no class.
        """
        for (motion, way), label in labels.items():
            if label.shape != truth.shape:
                raise UserError(
                    f"labels propagated by {motion}, {way} are {label.shape}, the true ones {truth.shape}: bring them "
                    "to one size"
                )
        counted = truth != VOID
        common = counted & np.logical_and.reduce([label != VOID for label in labels.values()])
        for (motion, way), label in labels.items():
            empty = [np.zeros((self.classes, self.classes), np.int64) for _ in range(2)]
            cell = self._cells.setdefault((motion, way, abs(step)), _Counts(*empty, np.zeros(self.classes, np.int64)))
            own = counted & (label != VOID)
            cell.own += confusion_matrix(label[own], truth[own], self.classes)
            cell.common += confusion_matrix(label[common], truth[common], self.classes)
            cell.missed += np.bincount(truth[counted & ~own], minlength=self.classes)[: self.classes]
            cell.pairs += 1

    def table(self, names: Sequence[str]) -> pd.DataFrame:
        """One row per (motion, way, distance); scores are fractions in [0, 1].

        Columns: motion, way, distance (frames), pairs (of frames); known: share of pixels with a true label that got
        one; miou, accuracy: on those; common: share that every way labels; miou_common, accuracy_common: on those;
        miou_all: IoU with void as a miss (it adds to the truth's side of the union, to no class's predictions).
        NaN where not one pixel counts. names: the C classes' names.

        Raises UserError if nothing was added.
        """
        if not self._cells:
            raise UserError("no propagated label has a true one to be compared with; label more frames of a video")
        rows = []
        for (motion, way, distance), cell in self._cells.items():
            total = cell.own.sum() + cell.missed.sum()
            own, common = _scores(cell.own, names), _scores(cell.common, names)
            hits, union = np.diag(cell.own), cell.own.sum(0) + cell.own.sum(1) + cell.missed - np.diag(cell.own)
            rows.append({
                "motion": motion, "way": way, "distance": distance, "pairs": cell.pairs,
                "known": cell.own.sum() / total if total else np.nan, "miou": own["miou"], "accuracy": own["accuracy"],
                "common": cell.common.sum() / total if total else np.nan,
                "miou_common": common["miou"], "accuracy_common": common["accuracy"],
                "miou_all": float((hits[union > 0] / union[union > 0]).mean()) if total else np.nan,
            })  # fmt: skip
        place = {m: i for i, m in enumerate(dict.fromkeys(m for m, _, _ in self._cells))}
        rows.sort(key=lambda r: (place[r["motion"]], _way(r["way"]), r["distance"]))
        return pd.DataFrame(rows)


def _way(way: str) -> tuple[int, str]:
    return (_ORDER.index(way) if way in _ORDER else len(_ORDER), way)


def _scores(confusion: np.ndarray, names: Sequence[str]) -> Mapping[str, float]:
    return scores(confusion, names) if confusion.sum() else {"miou": np.nan, "accuracy": np.nan}


def quality_csv(table: pd.DataFrame, protocol: Mapping[str, object]) -> str:
    """The tidy table, six digits, with the protocol in every row (columns protocol_KEY)."""
    full = table.assign(**{f"protocol_{k}": v for k, v in protocol.items()})
    return full.to_csv(index=False, float_format="%.6f", lineterminator="\n")


def quality_markdown(table: pd.DataFrame, protocol: Mapping[str, object]) -> str:
    """The readable tables: mIoU on what is labelled with its share, on common pixels, on all, in percent."""
    distances = sorted(set(table.distance))
    cells = table.set_index(["motion", "way", "distance"])
    rows = list(dict.fromkeys(zip(table.motion, table.way, strict=True)))

    def cell(key: tuple, column: str) -> str:
        value = cells[column].get(key, np.nan)
        return "-" if pd.isna(value) else percent(float(value), None)

    def block(column: str, share: str | None) -> Iterable[str]:
        yield f"| Motion | Way | {' | '.join(f'k = {d}' for d in distances)} |"
        yield f"|---|---|{'---|' * len(distances)}"
        for motion, way in rows:
            shown = [
                cell((motion, way, d), column) + (f" ({cell((motion, way, d), share)})" if share else "")
                for d in distances
            ]
            yield f"| {motion} | {NAMES.get(way, way)} | {' | '.join(shown)} |"

    pairs = table.groupby("distance").pairs.max()
    lines = ["# Propagated labels against true ones", ""]
    lines += ["mIoU of the labelled pixels (share of pixels that are labelled):", "", *block("miou", "known"), ""]
    lines += ["mIoU of the pixels that all rows label (their share):", "", *block("miou_common", "common"), ""]
    lines += ["mIoU of all pixels, a pixel without a label being a miss:", "", *block("miou_all", None), ""]
    lines += [
        f"Percent; k: frames from the labelled frame, both directions. Pairs of frames: "
        f"{', '.join(f'{pairs[d]} (k = {d})' for d in distances)}. Void pixels of the truth do not count. "
        f"Protocol: {'; '.join(f'{k} {v}' for k, v in protocol.items())}."
    ]
    return "\n".join(lines) + "\n"
