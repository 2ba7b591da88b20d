"""One pyramid level: linearise around the warped image, weigh robustly, relax by successive over-relaxation.

Arrays with a margin have one more pixel of zeros on each side, ``(height + 2, width + 2)``: a missing neighbour then
adds nothing, and the loops need no branch. Loops run over slices of rows from index 0, with few arrays each, because
only such loops vectorise (specification, section 9).
"""

import numpy as np

from pyflow._compiled import compiled
from pyflow._filters import DERIVATIVE, along_columns, along_rows
from pyflow._warp import warp

SMOOTH = np.array([0.02, 0.11, 0.74, 0.11, 0.02])
OMEGA = 1.8
EPSILON = 1e-6
DAMPING = 0.05


def solve(
    first: np.ndarray,
    second: np.ndarray,
    warped: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    alpha: float,
    outer: int,
    inner: int,
    sweeps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The flow of one level from a first guess (specification, section 6).

    Args:
        first, second: feature planes ``(channels, height, width)``, float64.
        warped: `second` warped by the guess.
        u, v: the guess, ``(height, width)``, pixels; not changed.
        alpha: weight of smoothness, above 0.
        outer, inner, sweeps: iterations: warps, robust weights per warp, relaxations per weights.

    Returns:
        New u and v.
    """
    height, width = u.shape
    du, dv, phi, a11, a12, a22, b1, b2 = (np.zeros((height + 2, width + 2)) for _ in range(8))
    feedback = np.empty((height + 2, width, 3))
    # Memory is taken once: fresh pages cost as much as the arithmetic on them.
    moved, rows, smoothed, blurred, ix, iy, it = (np.empty_like(first) for _ in range(7))
    along_columns(along_rows(first, SMOOTH, rows), SMOOTH, smoothed)
    for turn in range(outer):
        if turn:
            warped = warp(first, second, u, v, moved)
        along_columns(along_rows(warped, SMOOTH, rows), SMOOTH, blurred)
        np.subtract(blurred, smoothed, out=it)
        # 0.4 of the first image and 0.6 of the second
        mixed = np.add(smoothed, np.multiply(it, 0.6, out=rows), out=rows)
        along_rows(mixed, DERIVATIVE, ix)
        along_columns(mixed, DERIVATIVE, iy)
        du[:], dv[:] = 0, 0
        for _ in range(inner):
            smoothness_weights(u, v, du, dv, alpha, phi)
            data_terms(ix, iy, it, du, dv, a11, a12, a22, b1, b2)
            prepare(u, v, alpha, phi, a11, a12, a22, b1, b2, feedback)
            du[:], dv[:] = 0, 0
            relax(du, dv, phi, a11, a22, b1, b2, a12, feedback, sweeps)
        u, v = u + du[1:-1, 1:-1], v + dv[1:-1, 1:-1]
    return u, v


@compiled
def _sum_of_row(field, increment, i, out):
    """Row i of field + increment (with a margin), its last value repeated once."""
    width = field.shape[1]
    own, extra = field[i], increment[i + 1, 1:]
    for j in range(width):
        out[j] = own[j] + extra[j]
    out[width] = out[width - 1]


@compiled
def smoothness_weights(u, v, du, dv, alpha, phi):
    """Step a: alpha times the weight of each pixel's right and lower edge, into phi (with a margin)."""
    height, width = u.shape
    u_row, v_row, u_next, v_next = np.empty(width + 1), np.empty(width + 1), np.empty(width + 1), np.empty(width + 1)
    _sum_of_row(u, du, 0, u_next)
    _sum_of_row(v, dv, 0, v_next)
    for i in range(height):
        u_row[:], v_row[:] = u_next, v_next
        if i + 1 < height:  # else the row is its own lower neighbour: no gradient
            _sum_of_row(u, du, i + 1, u_next)
            _sum_of_row(v, dv, i + 1, v_next)
        target = phi[i + 1, 1:]
        for j in range(width):
            ux, uy = u_row[j + 1] - u_row[j], u_next[j] - u_row[j]
            vx, vy = v_row[j + 1] - v_row[j], v_next[j] - v_row[j]
            target[j] = alpha * 0.5 / np.sqrt(ux * ux + uy * uy + vx * vx + vy * vy + EPSILON)


@compiled
def _robust_row(ix, iy, it, du, dv, half, psi):
    for j in range(ix.size):
        r = it[j] + ix[j] * du[j] + iy[j] * dv[j]
        psi[j] = half / np.sqrt(r * r + EPSILON)


@compiled
def _add_products(out, psi, a, b):
    for j in range(a.size):
        out[j] += psi[j] * a[j] * b[j]


@compiled
def data_terms(ix, iy, it, du, dv, a11, a12, a22, b1, b2):
    """Steps b and c: means over channels of psi Ix Ix, psi Ix Iy, psi Iy Iy, psi Ix It and psi Iy It."""
    channels, height, width = ix.shape
    psi = np.empty(width)
    for i in range(height):
        m11, m12, m22, m1, m2 = a11[i + 1, 1:], a12[i + 1, 1:], a22[i + 1, 1:], b1[i + 1, 1:], b2[i + 1, 1:]
        m11[:width], m12[:width], m22[:width], m1[:width], m2[:width] = 0.0, 0.0, 0.0, 0.0, 0.0
        for c in range(channels):
            x, y, t = ix[c, i], iy[c, i], it[c, i]
            _robust_row(x, y, t, du[i + 1, 1:], dv[i + 1, 1:], 0.5 / channels, psi)
            _add_products(m11, psi, x, x)
            _add_products(m12, psi, x, y)
            _add_products(m22, psi, y, y)
            _add_products(m1, psi, x, t)
            _add_products(m2, psi, y, t)


@compiled
def _right_side(data, up, own, down, phi_up, phi, padded):
    """data becomes -data + div(phi grad field), all edges weighed as in step d."""
    width = own.size
    padded[0], padded[width + 1] = own[0], own[width - 1]
    padded[1 : width + 1] = own
    for j in range(width):
        out_of = phi[j + 1] * ((padded[j + 2] - padded[j + 1]) + (down[j] - own[j]))
        into = phi[j] * (padded[j + 1] - padded[j]) + phi_up[j + 1] * (own[j] - up[j])
        data[j + 1] = (out_of - into) - data[j + 1]


@compiled
def _inverse(diagonal, total, damping):
    for j in range(total.size):
        diagonal[j + 1] = OMEGA / (diagonal[j + 1] + damping + total[j])


@compiled
def prepare(u, v, alpha, phi, a11, a12, a22, b1, b2, feedback):
    """What the sweeps need, once for all of them.

    b1 and b2 become the right-hand sides, a11 and a22 omega over the diagonals, and feedback what a pixel's own du
    takes from the du on its left, its dv from the dv on its left, and its dv from its du.
    """
    height, width = u.shape
    padded, total = np.empty(width + 2), np.empty(width)
    for i in range(height):
        upper, lower = max(i - 1, 0), min(i + 1, height - 1)
        edge, edge_up = phi[i + 1], phi[i]
        _right_side(b1[i + 1], u[upper], u[i], u[lower], edge_up, edge, padded)
        _right_side(b2[i + 1], v[upper], v[i], v[lower], edge_up, edge, padded)
        # Margins are 0, so that only the edges to the right and below need care.
        both = 2.0 if i + 1 < height else 1.0
        for j in range(width):
            total[j] = edge[j] + edge_up[j + 1] + both * edge[j + 1]
        total[width - 1] = edge[width - 1] + edge_up[width] + (both - 1.0) * edge[width]
        inverse_u, inverse_v, cross, gain = a11[i + 1], a22[i + 1], a12[i + 1], feedback[i + 1]
        _inverse(inverse_u, total, DAMPING * alpha)
        _inverse(inverse_v, total, DAMPING * alpha)
        for j in range(width):
            gain[j, 0] = inverse_u[j + 1] * edge[j]
            gain[j, 1] = inverse_v[j + 1] * edge[j]
            gain[j, 2] = inverse_v[j + 1] * cross[j + 1]


@compiled
def _pull(out, b, own, up, down, phi_up, phi):
    """The right-hand side and what the neighbours on the right, above and below add."""
    for j in range(out.size):
        out[j] = b[j + 1] + (phi[j + 1] * (own[j + 2] + down[j + 1]) + phi_up[j + 1] * up[j + 1])


@compiled
def _pull_coupled(out, b, own, up, down, phi_up, phi, cross, other):
    """As `_pull`, less what the other component, not yet updated, takes away."""
    for j in range(out.size):
        pulled = b[j + 1] + (phi[j + 1] * (own[j + 2] + down[j + 1]) + phi_up[j + 1] * up[j + 1])
        out[j] = pulled - cross[j + 1] * other[j + 1]


@compiled
def _over_relax(out, own, inverse):
    for j in range(out.size):
        out[j] = (1 - OMEGA) * own[j + 1] + inverse[j + 1] * out[j]


@compiled
def _recur(du, dv, s, t, gain):
    """The rest of the update of one row: what needs the pixel on the left."""
    u, v = 0.0, 0.0
    for j in range(s.size):
        u = s[j] + gain[j, 0] * u
        v = (t[j] - gain[j, 2] * u) + gain[j, 1] * v
        du[j + 1], dv[j + 1] = u, v


@compiled
def _recur_two(du, dv, s, t, gain, du_2, dv_2, s_2, t_2, gain_2):
    """As `_recur` for two rows at once: neither waits for the other, so the processor works on both."""
    u, v, u_2, v_2 = 0.0, 0.0, 0.0, 0.0
    for j in range(s.size):
        u = s[j] + gain[j, 0] * u
        u_2 = s_2[j] + gain_2[j, 0] * u_2
        v = (t[j] - gain[j, 2] * u) + gain[j, 1] * v
        v_2 = (t_2[j] - gain_2[j, 2] * u_2) + gain_2[j, 1] * v_2
        du[j + 1], dv[j + 1] = u, v
        du_2[j + 1], dv_2[j + 1] = u_2, v_2


@compiled
def relax(du, dv, phi, inverse_u, inverse_v, b1, b2, cross, feedback, sweeps):
    """Step e: so many sweeps in raster order, in place, to rounding (1e-12) the plain double loop over pixels.

    Sweep k is two rows behind sweep k - 1, and all sweeps move down together, one row per step: what a pixel reads
    has by then been updated exactly as often as in one sweep after the other. A step's rows do not see each other.
    """
    height, width = du.shape[0] - 2, du.shape[1] - 2
    s, t = np.empty((sweeps, width)), np.empty((sweeps, width))
    for step in range(1, height + 2 * sweeps - 1):
        first, last = max(0, (step - height + 1) // 2), min(sweeps - 1, (step - 1) // 2)
        for k in range(first, last + 1):
            i = step - 2 * k
            edge, edge_up = phi[i], phi[i - 1]
            _pull_coupled(s[k], b1[i], du[i], du[i - 1], du[i + 1], edge_up, edge, cross[i], dv[i])
            _over_relax(s[k], du[i], inverse_u[i])
            _pull(t[k], b2[i], dv[i], dv[i - 1], dv[i + 1], edge_up, edge)
            _over_relax(t[k], dv[i], inverse_v[i])
        k = first
        while k < last:
            i, n = step - 2 * k, step - 2 * k - 2
            _recur_two(du[i], dv[i], s[k], t[k], feedback[i], du[n], dv[n], s[k + 1], t[k + 1], feedback[n])
            k += 2
        if k == last:
            i = step - 2 * k
            _recur(du[i], dv[i], s[k], t[k], feedback[i])
