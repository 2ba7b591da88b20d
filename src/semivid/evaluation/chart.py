"""The table as a picture: mIoU over the number of labels, as SVG written by hand (no plotting library)."""

import math
from collections.abc import Sequence
from html import escape

from semivid.evaluation.tables import Cell, display_name, percent

# Okabe and Ito's colours, told apart by colour-blind readers; black is kept for Random.
_COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#0072b2", "#b8a800")
_WIDTH, _HEIGHT = 800, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 225, 16, 48


def chart_svg(cells: Sequence[Cell]) -> str:
    """One line per selection with error bars (sample standard deviation) and a small dot per seed.

    Args:
        cells: cells of one table, scores as fractions.

    Returns:
        An <svg> element. The x axis is logarithmic; lines are shifted by a few pixels so that bars do not
        hide each other.
    """
    selections = list(dict.fromkeys(cell.selection for cell in cells))
    labels = sorted({cell.labels for cell in cells})
    low, high, step = _axis(
        min(min(*c.by_seed.values(), c.mean - (c.std or 0)) for c in cells),
        max(max(*c.by_seed.values(), c.mean + (c.std or 0)) for c in cells),
    )
    plot_width, plot_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(n: int) -> float:
        margin = 0.08
        share = math.log(n / labels[0]) / math.log(labels[-1] / labels[0]) if len(labels) > 1 else 0.5
        return _LEFT + plot_width * (margin + (1 - 2 * margin) * share)

    def y(score: float) -> float:
        return _TOP + plot_height * (1 - (100 * score - low) / (high - low))

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" font-family="sans-serif" font-size="13">',
        "<title>mIoU over the number of labelled frames</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
    ]
    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        at = y(value / 100)
        out.append(f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    bottom = _HEIGHT - _BOTTOM
    for n in labels:
        out.append(f'<path d="M{x(n):.1f} {bottom}v5" stroke="#555555"/>')
        out.append(f'<text x="{x(n):.1f}" y="{bottom + 19}" text-anchor="middle">{n}</text>')
    out.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}" fill="none" stroke="#555555"/>')
    middle = _LEFT + plot_width / 2
    out.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">labelled frames</text>')
    out.append(
        f'<text transform="translate(14 {_TOP + plot_height / 2:.1f}) rotate(-90)" text-anchor="middle">'
        "mIoU in percent</text>"
    )
    for k, selection in enumerate(selections):
        colour, shift = _COLOURS[k % len(_COLOURS)], 7 * (k - (len(selections) - 1) / 2)
        line = sorted((cell for cell in cells if cell.selection == selection), key=lambda cell: cell.labels)
        dash = ' stroke-dasharray="5 3"' if selection.startswith("published_") else ""
        points = " ".join(f"{x(c.labels) + shift:.1f},{y(c.mean):.1f}" for c in line)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        for cell in line:
            at, name = x(cell.labels) + shift, escape(display_name(selection))
            out.append(f"<g><title>{name}, {cell.labels} labels: {percent(cell.mean, cell.std)}</title>")
            if cell.std is not None:
                top, foot = y(cell.mean + cell.std), y(cell.mean - cell.std)
                bar = f"M{at:.1f} {top:.1f}V{foot:.1f}M{at - 3:.1f} {top:.1f}h6M{at - 3:.1f} {foot:.1f}h6"
                out.append(f'<path d="{bar}" stroke="{colour}"/>')
            dot = f'<circle cx="{at + 3.5:.1f}" r="2" fill="{colour}" opacity="0.6"'
            out += [f'{dot} cy="{y(value):.1f}"/>' for value in cell.by_seed.values()]
            out.append(f'<circle cx="{at:.1f}" cy="{y(cell.mean):.1f}" r="4" fill="{colour}"/></g>')
        left, at = _WIDTH - _RIGHT + 16, _TOP + 14 + 21 * k
        out.append(f'<path d="M{left} {at}h22" stroke="{colour}" stroke-width="1.6"{dash}/>')
        out.append(f'<circle cx="{left + 11}" cy="{at}" r="4" fill="{colour}"/>')
        out.append(f'<text x="{left + 29}" y="{at + 4}">{escape(display_name(selection))}</text>')
    return "\n".join([*out, "</svg>"])


def _axis(low: float, high: float) -> tuple[float, float, float]:
    """Ends and step of an axis in percent that holds the fractions low .. high, with four to nine ticks."""
    low, high = 100 * low, max(100 * high, 100 * low + 0.5)
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if (high - low) / s <= 7 or s == 20)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step
