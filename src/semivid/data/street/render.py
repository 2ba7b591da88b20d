"""Rasteriser of the street renderer: visibility by ray and plane, deferred texturing, exact depth and flow.

A rectangle is the plane p + u U + v V in camera axes. With M = [U V p] the pixel (x, y) sees (u, v, 1) / z =
M^-1 K^-1 (x, y, 1), so one 3 x 3 matrix H per rectangle gives inverse depth and plane coordinates as affine
functions of the pixel: no division is needed to decide visibility, and the answer is exact at the pixel
centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from semivid.data.street.scene import FAR, GROUND, ROAD, SKY, Scene
from semivid.data.street.textures import COLUMNS, LEVELS, PAD, TILE, Bank

NEAR = 0.15  # metres
TAPS = 4  # samples along the long axis of a pixel's footprint
LUT_STEP, LUT_REACH = 0.05, 40.0  # metres across the road


@dataclass
class Buffers:
    """What the pixels of one frame see, arrays (h, w).

    quad: int32, -1 = sky. inverse: float64 inverse depth in 1/m, 0 = sky. u, v: float64 metres on the quad.
    to_plane: (Q, 3, 3) matrices H of the quads (module docstring).
    """

    quad: np.ndarray
    inverse: np.ndarray
    u: np.ndarray
    v: np.ndarray
    to_plane: np.ndarray


class Renderer:
    """Renders the frames of one scene."""

    def __init__(self, scene: Scene, bank: Bank):
        self.scene, self.bank = scene, bank
        width, height = scene.size
        self.x = np.arange(width, dtype=np.float64)[None, :]
        self.y = np.arange(height, dtype=np.float64)[:, None]
        self._ground_tables()

    # --- geometry ---

    def planes(self, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Origin, u and v of every quad in the camera's axes at `frame`; each (Q, 3)."""
        q = self.scene.quads
        camera = np.linalg.inv(self.scene.camera_pose[frame])
        pose = (camera @ self.scene.object_pose[frame])[q["object"]]
        turn = pose[:, :3, :3]
        origin = np.einsum("qij,qj->qi", turn, q["origin"]) + pose[:, :3, 3]
        return origin, np.einsum("qij,qj->qi", turn, q["u"]), np.einsum("qij,qj->qi", turn, q["v"])

    def visible(self, frame: int) -> Buffers:
        """Finds the nearest quad of every pixel."""
        scene, q = self.scene, self.scene.quads
        width, height = scene.size
        origin, u, v = self.planes(frame)
        m = np.stack([u, v, origin], axis=2)
        facing = np.linalg.det(m)
        usable = (np.abs(facing) > 1e-5) & (facing * q["cull"] >= 0)
        m[~usable] = np.eye(3)
        to_plane = np.linalg.inv(m) @ np.linalg.inv(scene.matrix)
        h32 = to_plane.astype(np.float32)
        best = np.zeros((height, width), np.float32)
        quad = np.full((height, width), -1, np.int32)
        x, y = self.x.astype(np.float32), self.y.astype(np.float32)

        eu, ev = q["extent"][1:, :1], q["extent"][1:, 1:]
        p, du, dv = origin[1:], u[1:] * eu, v[1:] * ev
        corners = np.stack([p, p + du, p + du + dv, p + dv], axis=1)
        nearest, farthest = corners[..., 2].min(1), corners[..., 2].max(1)
        keep = usable[1:] & (farthest > NEAR)
        with np.errstate(divide="ignore", invalid="ignore"):
            px = corners[..., 0] / corners[..., 2] * scene.matrix[0, 0] + scene.matrix[0, 2]
            py = corners[..., 1] / corners[..., 2] * scene.matrix[1, 1] + scene.matrix[1, 2]
        order = np.argsort(np.where(keep, np.maximum(nearest, 0), np.inf), kind="stable")
        for k in order:
            if not keep[k]:
                break
            if nearest[k] > NEAR:
                cx, cy = px[k], py[k]
            else:
                polygon = clip_near(corners[k])
                cx = polygon[:, 0] / polygon[:, 2] * scene.matrix[0, 0] + scene.matrix[0, 2]
                cy = polygon[:, 1] / polygon[:, 2] * scene.matrix[1, 1] + scene.matrix[1, 2]
            x0, x1 = max(int(np.floor(cx.min())), 0), min(int(np.ceil(cx.max())) + 1, width)
            y0, y1 = max(int(np.floor(cy.min())), 0), min(int(np.ceil(cy.max())) + 1, height)
            if x0 >= x1 or y0 >= y1:
                continue
            region = best[y0:y1, x0:x1]
            if region.min() >= 1 / max(nearest[k], NEAR):
                continue  # wholly behind what is drawn already
            self._draw(k + 1, h32[k + 1], region, quad[y0:y1, x0:x1], x[:, x0:x1], y[y0:y1])
        # the ground, out to the backdrop
        h = h32[GROUND]
        inverse = h[2, 0] * x + (h[2, 1] * y + h[2, 2])
        seen = (inverse > best) & (inverse > 1 / (FAR + 60))
        quad[seen] = GROUND

        flat = quad.ravel()
        index = np.maximum(flat, 0)
        xs = np.broadcast_to(self.x, (height, width)).ravel()
        ys = np.broadcast_to(self.y, (height, width)).ravel()
        rows = [
            to_plane[:, i, 0][index] * xs + to_plane[:, i, 1][index] * ys + to_plane[:, i, 2][index] for i in range(3)
        ]
        inverse = np.where(flat >= 0, rows[2], 0.0)
        safe = np.where(flat >= 0, rows[2], 1.0)
        shape = (height, width)
        u, v = (rows[i] / safe for i in (0, 1))
        return Buffers(quad, inverse.reshape(shape), u.reshape(shape), v.reshape(shape), to_plane)

    def _draw(self, number, h, best, quad, x, y):
        """Writes quad `number` where it is nearer than `best` (inverse depth)."""
        q = self.scene.quads
        eu, ev = q["extent"][number].astype(np.float32)
        w = h[2, 0] * x + (h[2, 1] * y + h[2, 2])
        up = h[0, 0] * x + (h[0, 1] * y + h[0, 2])
        inside = (w > best) & (up >= 0) & (up <= eu * w)
        vp = h[1, 0] * x + (h[1, 1] * y + h[1, 2])
        inside &= (vp >= 0) & (vp <= ev * w)
        masks = self.bank.alpha.get(int(q["tile"][number]))
        if masks is not None:
            at = np.nonzero(inside)
            if not len(at[0]):
                return
            ww = w[at]
            su, sv = q["tile_size"][number].astype(np.float32)
            ou, ov = q["offset"][number].astype(np.float32)
            a, b = (up[at] / ww / su + ou) % 1, (vp[at] / ww / sv + ov) % 1
            level = np.log2(TILE / (min(su, sv) * self.scene.matrix[0, 0]) / ww)
            level = np.clip(np.rint(level), 0, LEVELS - 2).astype(np.int32)
            hit = np.zeros(len(ww), bool)
            for n in range(int(level.min()), int(level.max()) + 1):
                mask, edge = masks[n], TILE >> n
                here = level == n
                hit[here] = mask[
                    np.minimum((b[here] * edge).astype(np.int32), edge - 1),
                    np.minimum((a[here] * edge).astype(np.int32), edge - 1),
                ]
            at = (at[0][hit], at[1][hit])
            best[at], quad[at] = ww[hit], number
        else:
            best[inside], quad[inside] = w[inside], number

    def flow(self, now: Buffers, frame: int, after: Buffers) -> tuple[np.ndarray, np.ndarray]:
        """Motion of every pixel's surface point to frame + 1: (h, w, 2) float64 pixels and its validity (h,
        w).

        Sky moves with the camera's rotation only. Valid where the point is inside the next image and seen
        there: not farther than the farthest surface in the 3 x 3 pixels round its place (1% tolerance).
        """
        scene = self.scene
        width, height = scene.size
        origin, u, v = self.planes(frame + 1)
        flat = now.quad.ravel()
        index, sky = np.maximum(flat, 0), flat < 0
        uu, vv = now.u.ravel(), now.v.ravel()
        point = [origin[:, i][index] + uu * u[:, i][index] + vv * v[:, i][index] for i in range(3)]
        turn = scene.camera_pose[frame + 1][:3, :3].T @ scene.camera_pose[frame][:3, :3] @ np.linalg.inv(scene.matrix)
        xs = np.broadcast_to(self.x, (height, width)).ravel()
        ys = np.broadcast_to(self.y, (height, width)).ravel()
        for i in range(3):
            point[i][sky] = turn[i, 0] * xs[sky] + turn[i, 1] * ys[sky] + turn[i, 2]
        front = point[2] > NEAR
        z = np.where(front, point[2], 1.0)
        px = point[0] / z * scene.matrix[0, 0] + scene.matrix[0, 2]
        py = point[1] / z * scene.matrix[1, 1] + scene.matrix[1, 2]
        slack = 1e-3  # rounding must not throw the border out when the camera stands still
        valid = front & (px >= -slack) & (px <= width - 1 + slack) & (py >= -slack) & (py <= height - 1 + slack)
        farthest = cv2.erode(after.inverse.astype(np.float32), np.ones((3, 3), np.uint8))
        ix = np.clip(np.rint(px), 0, width - 1).astype(np.int32)
        iy = np.clip(np.rint(py), 0, height - 1).astype(np.int32)
        valid &= np.where(sky, 0.0, 1.01 / z) + 1e-4 >= farthest[iy, ix]
        flow = np.stack([px - xs, py - ys], axis=1).reshape(height, width, 2)
        return flow, valid.reshape(height, width)

    # --- labels and colours ---

    def _ground_tables(self):
        """Look-up tables across the road: which strip lies at offset t."""
        g = self.scene.ground
        strips = g["strips"]
        t = (np.arange(int(2 * LUT_REACH / LUT_STEP)) + 0.5) * LUT_STEP - LUT_REACH
        strip = np.zeros(len(t), np.int32)
        for k, (low, high, *_) in enumerate(strips):
            strip[(t >= low) & (t < high)] = k
        rows = [s[2:] for s in strips] + [g["walk"], g["tar"]]
        self._strip = strip
        self._strip_label = np.array([r[0] for r in rows], np.uint8)
        self._strip_tile = np.array([r[1] for r in rows], np.int32)
        self._strip_size = np.array([r[2] for r in rows], np.float32)
        self._strip_tint = np.array([r[3] for r in rows], np.float32)

    def _ground(self, u, v):
        """Road coordinates (s, t), heading and strip number of ground points (X, Z)."""
        scene, g = self.scene, self.scene.ground
        k = scene.curvature
        if k == 0:
            s, t = v, u
        else:
            sign = np.sign(k)
            t = 1 / k - sign * np.hypot(u - 1 / k, v)
            s = np.arctan2(sign * v, sign * (1 / k - u)) / k
        cell = np.clip(((t + LUT_REACH) / LUT_STEP).astype(np.int32), 0, len(self._strip) - 1)
        strip = self._strip[cell]
        kerb = np.where(t > 0, g["kerb"][1], g["kerb"][-1])
        for centre, half in g["crossings"]:
            away = np.abs(s - centre)
            strip = np.where((away < half + 2.2) & (np.abs(t) > kerb), len(self._strip_label) - 2, strip)
            strip = np.where(
                (away < half) | ((away < half + 6) & (np.abs(t) < kerb)), len(self._strip_label) - 1, strip
            )
        return s, t, k * s, strip

    def labels(self, now: Buffers) -> np.ndarray:
        """Official Cityscapes label ids (h, w) uint8."""
        flat = now.quad.ravel()
        label = self.scene.quads["label"].astype(np.uint8)[np.maximum(flat, 0)]
        label[flat < 0] = SKY
        on = np.flatnonzero(flat == GROUND)
        label[on] = self._strip_label[self._ground(now.u.ravel()[on], now.v.ravel()[on])[3]]
        return label.reshape(now.quad.shape)

    def image(self, now: Buffers, frame: int, rng: np.random.Generator) -> np.ndarray:
        """Colours (h, w, 3) uint8 RGB. `rng` draws the sensor's noise."""
        scene, bank, q, light = self.scene, self.bank, self.scene.quads, self.scene.light
        height, width = now.quad.shape
        flat = now.quad.ravel()
        index = np.maximum(flat, 0)
        h = now.to_plane
        inverse = np.where(flat >= 0, now.inverse.ravel(), 1.0).astype(np.float32)
        u, v = now.u.ravel().astype(np.float32), now.v.ravel().astype(np.float32)
        z = 1 / inverse
        # derivatives of the plane coordinates along the pixel's x and y
        g = [[h[:, i, j].astype(np.float32)[index] for j in range(2)] for i in range(3)]
        ux, uy = (g[0][0] - u * g[2][0]) * z, (g[0][1] - u * g[2][1]) * z
        vx, vy = (g[1][0] - v * g[2][0]) * z, (g[1][1] - v * g[2][1]) * z

        tile = q["tile"].astype(np.int32)[index]
        size_u = q["tile_size"][:, 0].astype(np.float32)[index]
        size_v = q["tile_size"][:, 1].astype(np.float32)[index]
        # colours are (3, pixels): whole rows at a time are several times faster than triples
        tint = np.ascontiguousarray(q["tint"].T.astype(np.float32)).take(index, axis=1)
        on = np.flatnonzero(flat == GROUND)
        if len(on):
            s, t, heading, strip = self._ground(now.u.ravel()[on], now.v.ravel()[on])
            c, d = np.cos(heading).astype(np.float32), np.sin(heading).astype(np.float32)
            gx, gy, hx, hy = ux[on], uy[on], vx[on], vy[on]
            ux[on], uy[on] = gx * c - hx * d, gy * c - hy * d
            vx[on], vy[on] = gx * d + hx * c, gy * d + hy * c
            u[on], v[on] = t, s
            tile[on] = self._strip_tile[strip]
            size_u[on] = size_v[on] = self._strip_size[strip]
            tint[:, on] = self._strip_tint.T[:, strip]
        a = u / size_u + q["offset"][:, 0].astype(np.float32)[index]
        b = v / size_v + q["offset"][:, 1].astype(np.float32)[index]
        ku, kv = TILE / size_u, TILE / size_v
        lx, ly = np.hypot(ux * ku, vx * kv), np.hypot(uy * ku, vy * kv)
        long, area = np.maximum(lx, ly), np.abs(ux * vy - uy * vx) * ku * kv
        along_x = lx >= ly
        step_a = np.where(along_x, ux, uy) / size_u
        step_b = np.where(along_x, vx, vy) / size_v
        short = np.maximum(area / np.maximum(long, 1e-6), long / (TAPS * 1.5))
        lod = np.log2(np.maximum(short, 1e-3)) - 0.35
        cell_row, cell_column = (part.astype(np.float32) for part in np.divmod(tile, COLUMNS))
        total = np.zeros((height, width * 4), np.float32)
        sizes, cells, tops = (p.astype(np.float32) for p in (bank.size, bank.cell, bank.top))
        for k in range(TAPS):
            shift = (k + 0.5) / TAPS - 0.5
            # the taps lie on neighbouring levels in the right proportion: trilinear filtering for nothing
            level = np.clip(np.floor(lod + (k + 0.5) / TAPS), 0, LEVELS - 2).astype(np.int32)
            edge, cell = sizes[level], cells[level]
            aa, bb = a + shift * step_a, b + shift * step_b
            mx = cell_column * cell + PAD + (aa - np.floor(aa)) * edge - 0.5
            my = tops[level] + cell_row * cell + PAD + (bb - np.floor(bb)) * edge - 0.5
            tap = cv2.remap(bank.atlas, mx.reshape(height, width), my.reshape(height, width), cv2.INTER_LINEAR)
            cv2.accumulate(tap.reshape(height, width * 4), total)
        colour = np.stack(cv2.split(total.reshape(height, width, 4))[:3]).reshape(3, -1)
        colour *= 1 / TAPS

        footprint = np.maximum(np.maximum(np.abs(ux), np.abs(uy)), np.maximum(np.abs(vx), np.abs(vy)))
        sprite = q["flat"][index]
        grain = self._noise(bank.noise, u, v, 2.2, height, width)
        stain = self._noise(bank.blotch, u, v, 17.0, height, width)
        # grain fades out where a pixel covers more than it can show
        grain *= np.clip(0.075 * (1.2 - footprint / 0.05), 0, 0.075)
        colour *= 1 + np.where(sprite, np.float32(0.4), np.float32(1)) * (grain + 0.055 * stain)
        if len(on):
            self._markings(colour, on, s, t, strip, np.hypot(ux[on], uy[on]), np.hypot(vx[on], vy[on]))
        colour *= tint

        # light
        pose = scene.object_pose[frame][q["object"]]
        normal = np.einsum("qij,qj->qi", pose[:, :3, :3], np.cross(q["u"], q["v"]))
        eye = scene.camera_pose[frame][:3, 3]
        origin = np.einsum("qij,qj->qi", pose[:, :3, :3], q["origin"]) + pose[:, :3, 3]
        normal *= np.sign(np.einsum("qi,qi->q", normal, eye - origin))[:, None]
        normal[GROUND] = (0, -1, 0)
        facing = np.clip(normal @ light["sun"], 0, 1)
        facing = np.where(q["flat"], 0.55, facing)
        share = facing.astype(np.float32)[index]
        occlusion = np.ones(height * width, np.float32)
        if len(on):
            sunlit, contact = self._shadows(frame)
            share[on] *= sunlit.ravel()[on]
            occlusion[on] = contact.ravel()[on]
        level = -(
            origin[:, 1].astype(np.float32)[index]
            + v * np.einsum("qij,qj->qi", pose[:, :3, :3], q["v"])[:, 1].astype(np.float32)[index]
        )
        off = flat != GROUND
        occlusion[off] = 0.72 + 0.28 * np.clip(level[off] / 1.6, 0, 1)
        shade = light["ambient"].astype(np.float32)[:, None] * occlusion
        shade += light["sun_colour"].astype(np.float32)[:, None] * share
        colour *= shade
        fog = np.exp(-z / np.float32(light["haze"]))
        colour *= fog
        colour += light["horizon"].astype(np.float32)[:, None] * np.float32(0.92) * (1 - fog)
        sky = np.flatnonzero(flat < 0)
        if len(sky):
            colour[:, sky] = self._sky(frame, sky).T

        # camera: exposure, contrast, vignette, noise, lens blur (more on silhouettes:
        # they are not antialiased)
        colour *= (light["exposure"] * light["white_balance"] / 255).astype(np.float32)[:, None]
        colour = 255 * cv2.pow(np.clip(colour, 0, 1), light["contrast"])
        radius = ((self.x - width / 2) ** 2 + (self.y - height / 2) ** 2) / (width / 2) ** 2
        colour *= (1 - 0.13 * radius).astype(np.float32).ravel()
        image = cv2.merge(list(colour.reshape(3, height, width)))
        edge = np.zeros((height, width), np.uint8)
        edge[:, 1:] |= now.quad[:, 1:] != now.quad[:, :-1]
        edge[1:] |= now.quad[1:] != now.quad[:-1]
        edge[:, :-1] |= edge[:, 1:]
        edge[:-1] |= edge[1:]
        image = np.where(
            edge[..., None] > 0, cv2.GaussianBlur(image, (5, 5), 0.8), cv2.GaussianBlur(image, (3, 3), 0.45)
        )
        image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(light["noise"])
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    @staticmethod
    def _noise(texture, u, v, metres, height, width):
        x, y = u * (1 / np.float32(metres)), v * (1 / np.float32(metres))
        x = ((x - np.floor(x)) * TILE).reshape(height, width)
        y = ((y - np.floor(y)) * TILE).reshape(height, width)
        return cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP).ravel()

    def _markings(self, colour, on, s, t, strip, width_t, width_s):
        """Paints lane markings: the exact share of a pixel's footprint that a line covers."""
        g = self.scene.ground
        last = len(self._strip_label) - 1
        road = self._strip_label[strip] == ROAD
        t, s = t.astype(np.float32), s.astype(np.float32)
        width_t, width_s = np.maximum(width_t, 1e-4), np.maximum(width_s, 1e-4)

        def cover(x, low, high, width):
            return np.clip(np.minimum(x + width / 2, high) - np.maximum(x - width / 2, low), 0, None) / width

        def stripes(x, painted, period, width):
            away = np.abs((x / period) % 1 - 0.5) * period
            return np.where(width > period, painted / period, cover(away, -painted / 2, painted / 2, width))

        open_road = strip != last if g["crossings"] else np.ones(len(on), bool)
        paint = colour[:, on]
        kerb_line = max(abs(k) for k in g["kerb"].values()) + 1
        for at, broad, dash, period, shade, strength in g["lines"]:
            near = np.flatnonzero((np.abs(t - at) < broad / 2 + width_t) & open_road & (np.abs(t) < kerb_line))
            share = strength * cover(t[near], at - broad / 2, at + broad / 2, width_t[near])
            if period:
                share = share * stripes(s[near], dash, period, width_s[near])
            paint[:, near] += share * (shade.astype(np.float32)[:, None] * 225 - paint[:, near])
        for centre, half in g["crossings"]:
            inside = np.clip((g["half"] - np.abs(t)) / width_t + 0.5, 0, 1) * road * g["worn"]
            bars = np.zeros_like(s)
            for low in (centre - half - 3.4, centre + half + 0.9):
                bars += cover(s, low, low + 2.5, width_s) * stripes(t, 0.5, 1.0, width_t)
            stop = cover(s, centre - half - 4.7, centre - half - 4.3, width_s) * (t > 0)
            share = np.clip(bars + stop, 0, 1) * inside
            paint += share * (215 - paint)
        colour[:, on] = paint

    def _shadows(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Share of sun (h, w) and of sky light (h, w) that reaches the ground, float32 in 0..1."""
        scene, light = self.scene, self.scene.light
        width, height = scene.size
        sun = np.full((height, width), 255, np.uint8)
        contact = np.full((height, width), 255, np.uint8)
        camera = np.linalg.inv(scene.camera_pose[frame])
        slide = -light["sun"][[0, 2]] / -light["sun"][1]
        bright = light["sun_colour"].max() > 0
        for obj, outline, tall, big in scene.shadows:
            pose = scene.object_pose[frame][obj]
            points = np.column_stack([outline[:, 0], np.zeros(len(outline)), outline[:, 1]])
            points = (points @ pose[:3, :3].T + pose[:3, 3])[:, [0, 2]]
            if np.linalg.norm(points.mean(0) - scene.camera_pose[frame][[0, 2], 3]) > 130:
                continue
            if bright:
                low, high = (0.0, tall) if tall > 0 else (-0.35 * tall, -0.95 * tall)
                self._fill(sun, camera, np.vstack([points + low * slide, points + high * slide]), 0)
            if tall > 0 and (obj or not big):
                middle = points.mean(0)
                self._fill(contact, camera, middle + (points - middle) * 1.12, 95)
        sun = cv2.GaussianBlur(sun, (0, 0), 0.9)
        contact = cv2.GaussianBlur(contact, (0, 0), 1.6)
        return sun.astype(np.float32) / 255, contact.astype(np.float32) / 255

    def _fill(self, canvas, camera, points, value):
        """Fills the convex hull of ground points (n, 2) as the camera sees it."""
        hull = cv2.convexHull(points.astype(np.float32))[:, 0]
        seen = np.column_stack([hull[:, 0], np.zeros(len(hull)), hull[:, 1]]) @ camera[:3, :3].T + camera[:3, 3]
        seen = clip_near(seen)
        if len(seen) < 3:
            return
        k = self.scene.matrix
        x = np.clip(seen[:, 0] / seen[:, 2] * k[0, 0] + k[0, 2], -4000, 4000)
        y = np.clip(seen[:, 1] / seen[:, 2] * k[1, 1] + k[1, 2], -4000, 4000)
        cv2.fillConvexPoly(canvas, np.rint(np.column_stack([x, y]) * 16).astype(np.int32), value, cv2.LINE_AA, 4)

    def _sky(self, frame: int, pixels: np.ndarray) -> np.ndarray:
        """Colours of sky pixels (flat indices): a gradient, clouds on a high plane, a glow round the sun."""
        scene, light = self.scene, self.scene.light
        width = scene.size[0]
        rays = np.column_stack([pixels % width, pixels // width, np.ones(len(pixels))])
        rays = rays @ (scene.camera_pose[frame][:3, :3] @ np.linalg.inv(scene.matrix)).T
        rays = (rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32)
        rise = np.clip(-rays[:, 1], 0, 1)
        mix = np.clip(rise * 2.2, 0, 1)[:, None] ** 0.7
        colour = light["horizon"] * (1 - mix) + light["zenith"] * mix
        plane = rays[:, [0, 2]] / (rise + 0.14)[:, None] * 70 + light["cloud_at"]
        x, y = (np.mod(plane[:, i], TILE).astype(np.float32)[:, None] for i in (0, 1))
        parts = []
        for start in range(0, len(pixels), 30000):  # cv2.remap refuses more rows than a short int holds
            part = slice(start, start + 30000)
            cloud = cv2.remap(self.bank.blotch, x[part], y[part], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
            fine = cv2.remap(
                self.bank.blotch,
                x[part] * 3 % TILE,
                y[part] * 3 % TILE,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_WRAP,
            )
            parts.append((cloud + 0.4 * fine).ravel())
        density = np.clip((np.concatenate(parts) - 1.2 + 2.4 * light["cloud"]) * 0.5, 0, 0.9)[:, None]
        white = np.clip(light["horizon"] * 0.6 + 105, 0, 255) * (1 - 0.16 * density)
        colour = colour * (1 - density) + white * density
        glow = np.clip(rays @ light["sun"].astype(np.float32), 0, 1)[:, None] ** 24
        return (colour + 110 * glow * light["sun_colour"]).astype(np.float32)


def clip_near(points: np.ndarray) -> np.ndarray:
    """The part of a polygon (n, 3), camera axes, that lies in front of the near plane."""
    kept = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
    return np.array(kept).reshape(-1, 3)
