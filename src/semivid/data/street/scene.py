"""Random street scenes: textured rectangles on a road, a camera that drives along it, light and weather.

World axes: x right, y down, z forward (metres); the ground is the plane y = 0. The road's centre line is a
straight line or an arc; `s` is the way along it, `t` the signed distance to its right, so traffic keeps to
t > 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from semivid.data.street.textures import PROFILES, Bank

# Official Cityscapes label ids.
STATIC, ROAD, SIDEWALK, PARKING, BUILDING, WALL, FENCE, GUARD_RAIL, BRIDGE = 4, 7, 8, 9, 11, 12, 13, 14, 15
POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER = 17, 19, 20, 21, 22, 23, 24, 25
CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 26, 27, 28, 31, 32, 33

# Things that only some snippets hold.
RARE = ("light", "bus", "train", "truck", "rider", "bicycle", "motorcycle", "wall", "fence", "rail", "bridge")
FAR = 190.0  # metres to the backdrop
GROUND = 0  # index of the ground's quad
SWAY_RATE = 1.3  # Hz, of the car on its springs
SWAY = (0.03, 0.012, *np.radians([0.17, 0.2, 0.14]))  # amplitudes: aside, up (metres); yaw, pitch, roll (radians)


@dataclass(frozen=True)
class City:
    """The look of a city. Ranges are uniform; `*_p` are probabilities per snippet, `*_n` mean counts."""

    weight: float
    speed: tuple[float, float]
    lanes: tuple[int, int]  # per direction, low and high inclusive
    sidewalk: tuple[float, float]
    verge: tuple[float, float]  # terrain between sidewalk and building line
    height: tuple[float, float]
    facades: tuple[str, ...]
    curve_p: float
    crossing_p: float
    parking_p: float
    gap_p: float  # no building on a plot
    tree_gap: float  # metres between street trees, 0 = none
    person_n: float
    car_n: float
    sign_n: float
    rare: dict[str, float] = field(default_factory=dict)


CITIES: dict[str, City] = {
    "downtown": City(
        0.28, (5, 10), (1, 2), (2.5, 4.5), (0, 0), (12, 32), ("plaster", "concrete", "glass", "brick"),
        0.25, 0.7, 0.5, 0.06, 26, 6, 3.5, 2.2,
        {"light": 0.40, "bus": 0.13, "train": 0.16, "truck": 0.06, "rider": 0.18, "bicycle": 0.16,
         "motorcycle": 0.14, "wall": 0.05, "fence": 0.08},
    ),
    "oldtown": City(
        0.22, (5, 8), (1, 1), (1.6, 2.8), (0, 0), (9, 16), ("plaster", "brick"),
        0.7, 0.4, 0.6, 0.05, 0, 4.5, 1.8, 1.4,
        {"light": 0.08, "bus": 0.04, "truck": 0.06, "train": 0.05, "rider": 0.18, "bicycle": 0.22,
        "motorcycle": 0.2,
         "wall": 0.14, "fence": 0.08},
    ),
    "suburb": City(
        0.26, (6, 11), (1, 1), (1.4, 2.4), (3, 9), (5.5, 8), ("house",),
        0.5, 0.5, 0.3, 0.25, 11, 1.4, 1.6, 1.6,
        {"light": 0.05, "bus": 0.04, "truck": 0.05, "rider": 0.07, "bicycle": 0.06, "motorcycle": 0.05,
         "wall": 0.16, "fence": 0.28},
    ),
    "highway": City(
        0.12, (9, 12), (2, 3), (0, 0), (6, 12), (6, 14), ("hall", "concrete"),
        0.4, 0.0, 0.0, 0.7, 17, 0.0, 3.5, 1.2,
        {"truck": 0.3, "bus": 0.06, "wall": 0.3, "fence": 0.2, "rail": 0.7, "bridge": 0.2, "motorcycle":
        0.04},
    ),
    "industrial": City(
        0.12, (6, 10), (1, 2), (1.2, 2.2), (2, 5), (7, 13), ("hall", "brick"),
        0.2, 0.4, 0.35, 0.25, 30, 0.8, 1.8, 1.8,
        {"light": 0.10, "truck": 0.35, "bus": 0.03, "rider": 0.04, "bicycle": 0.05, "motorcycle": 0.03,
         "wall": 0.25, "fence": 0.45},
    ),
}  # fmt: skip


@dataclass
class Scene:
    """One snippet. Arrays over quads: origin, u, v (Q, 3) in the object's axes (u, v unit vectors), extent
    (Q, 2) metres, tile_size (Q, 2) metres per texture tile, offset (Q, 2) tiles, tint (Q, 3), sun (Q,)
    share of sun light that reaches it, flat (Q,) sprites lit without regard to their direction, cull (Q,)
    in {-1, 0, 1}.

    object_pose: (frames, objects, 4, 4) object-to-world; object 0 is the static world. camera_pose:
    (frames, 4, 4) camera-to-world. matrix: (3, 3) intrinsics, pixel centres at whole numbers.
    """

    city: str
    size: tuple[int, int]
    fps: float
    matrix: np.ndarray
    camera_pose: np.ndarray
    object_pose: np.ndarray
    speed: float
    curvature: float
    ground: dict
    light: dict
    shadows: list
    quads: dict[str, np.ndarray]


class _Road:
    """The centre line: curvature k (1/m, positive to the right)."""

    def __init__(self, curvature: float):
        self.k = curvature

    def heading(self, s: float) -> float:
        return self.k * s

    def point(self, s: float, t: float) -> np.ndarray:
        a = self.k * s
        x, z = (0.0, s) if self.k == 0 else ((1 - np.cos(a)) / self.k, np.sin(a) / self.k)
        return np.array([x + t * np.cos(a), 0.0, z - t * np.sin(a)])


def rigid(position, heading: float) -> np.ndarray:
    """4 x 4 pose that stands at `position` and faces `heading` (radians, clockwise seen from above)."""
    c, s = np.cos(heading), np.sin(heading)
    pose = np.eye(4)
    pose[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    pose[:3, 3] = position
    return pose


class _Builder:
    """Collects quads and objects of one scene."""

    def __init__(self, bank: Bank, rng: np.random.Generator, times: np.ndarray, road: _Road):
        self.bank, self.rng, self.times, self.road = bank, rng, times, road
        self.rows: list[tuple] = []
        self.poses = [np.repeat(np.eye(4)[None], len(times), 0)]
        self.shadows: list[tuple[int, np.ndarray, float, bool]] = []  # object, footprint (n, 2), height, big
        self.eye = np.zeros(3)

    def tile(self, name: str) -> int:
        return self.bank.index[name]

    def any_tile(self, prefix: str) -> int:
        return int(self.rng.choice(self.bank.group(prefix)))

    def quad(
        self,
        origin,
        u,
        v,
        tile,
        label,
        *,
        obj=0,
        repeat=None,
        offset=(0.0, 0.0),
        tint=(1, 1, 1),
        flat=False,
        cull=0,
    ):
        """A rectangle from `origin` along the edge vectors u and v; the tile fills it or repeats every
        `repeat` m."""
        u, v = np.asarray(u, float), np.asarray(v, float)
        eu, ev = np.linalg.norm(u), np.linalg.norm(v)
        size = (eu, ev) if repeat is None else repeat
        self.rows.append(
            (
                obj,
                np.asarray(origin, float),
                u / eu,
                v / ev,
                (eu, ev),
                tile,
                label,
                size,
                offset,
                np.asarray(tint, float),
                flat,
                cull,
            )
        )

    def upright(self, a, b, low, high, tile, label, **how):
        """A vertical rectangle on the line a -> b (x, z pairs or points), from height `low` to `high`."""
        a, b = np.asarray(a, float), np.asarray(b, float)
        a, b = (p if len(p) == 3 else np.array([p[0], 0, p[1]]) for p in (a, b))
        self.quad(a - [0, high, 0], b - a, (0, high - low, 0), tile, label, **how)

    def facing(self, foot, width, low, high, tile, label, angle=0.0, **how):
        """An upright sprite at `foot`, turned towards the camera's mean position and then by `angle`."""
        view = np.asarray(foot) - self.eye
        heading = np.arctan2(view[0], view[2]) + angle
        right = np.array([np.cos(heading), 0, -np.sin(heading)]) * width / 2
        self.upright(foot - right, foot + right, low, high, tile, label, flat=True, **how)

    def mover(self, s, t, speed, turn=0.0) -> int:
        """A new object that follows the road from s with `speed` m/s, facing along it (or turned by
        `turn`)."""
        self.poses.append(
            np.stack(
                [rigid(self.road.point(s + speed * w, t), self.road.heading(s + speed * w) + turn) for w in self.times]
            )
        )
        return len(self.poses) - 1

    def box(self, obj, length, width, low, high, sides, label, tints, z0=0.0):
        """Faces of an upright box; sides = tiles (side, rear, front)."""
        x, back, front = width / 2, z0 - length / 2, z0 + length / 2
        drop = (0, high - low, 0)
        side, rear, nose = sides
        self.quad((x, -high, back), (0, 0, length), drop, side, label, obj=obj, tint=tints, cull=1)
        self.quad((-x, -high, back), (0, 0, length), drop, side, label, obj=obj, tint=tints, cull=-1)
        self.quad((-x, -high, back), (width, 0, 0), drop, rear, label, obj=obj, tint=tints, cull=1)
        self.quad((x, -high, front), (-width, 0, 0), drop, nose, label, obj=obj, tint=tints, cull=1)

    def footprint(self, obj, length, width, height, big=False):
        x, z = width / 2, length / 2
        self.shadows.append((obj, np.array([(-x, -z), (x, -z), (x, z), (-x, z)]), height, big))

    # --- things ---

    def paint(self) -> np.ndarray:
        """Car colours: mostly grey, black and white, some red, blue, green."""
        if self.rng.random() < 0.6:
            return self.rng.uniform(0.15, 1.2) * self.rng.uniform(0.97, 1.03, 3)
        palette = np.array([[0.95, 0.16, 0.14], [0.18, 0.3, 0.75], [0.2, 0.5, 0.3], [0.95, 0.75, 0.2], [0.5, 0.2, 0.2]])
        return palette[self.rng.integers(len(palette))] * self.rng.uniform(0.7, 1.1)

    def car(self, obj):
        rng = self.rng
        name = str(rng.choice(list(PROFILES), p=[0.36, 0.28, 0.22, 0.14]))
        length, width, height = {
            "sedan": (4.6, 1.8, 1.42),
            "hatch": (3.9, 1.72, 1.48),
            "suv": (4.5, 1.88, 1.7),
            "van": (4.9, 1.92, 1.95),
        }[name]
        tint, half = self.paint(), width / 2
        points = [((x - 0.5) * length, y * height) for x, y in PROFILES[name]]
        glass = {3: "windscreen", 5: "windscreen"}
        if name == "van":
            glass = {5: "windscreen"}
        for k in range(1, len(points) - 2):
            (z0, h0), (z1, h1) = points[k], points[k + 1]
            tile = self.tile(glass.get(k, "plain"))
            low, high = ((z0, h0), (z1, h1)) if h1 >= h0 else ((z1, h1), (z0, h0))
            self.quad(
                (-half, -high[1], high[0]),
                (width, 0, 0),
                (0, high[1] - low[1], low[0] - high[0]),
                tile,
                CAR,
                obj=obj,
                tint=tint,
            )
        for end, tile in ((0, "car_rear"), (-1, "car_front")):
            z = points[end][0]
            top = points[1][1] if end == 0 else points[-2][1] + 0.12 * height
            left = -half if end == 0 else half
            self.quad(
                (left, -top, z),
                (-2 * left, 0, 0),
                (0, top, 0),
                self.tile(tile),
                CAR,
                obj=obj,
                tint=tint,
                cull=1,
            )
        for x, cull in ((half, 1), (-half, -1)):
            self.quad(
                (x, -height, -length / 2),
                (0, 0, length),
                (0, height, 0),
                self.tile(f"side_{name}"),
                CAR,
                obj=obj,
                tint=tint,
                cull=cull,
            )
        self.footprint(obj, length, width, height * 0.8)

    def truck(self, obj):
        tint, cab = self.paint() + 0.15, self.paint() + 0.1
        length, tall = self.rng.uniform(6, 10), self.rng.uniform(3.1, 3.9)
        cargo = self.any_tile("cargo")
        self.box(obj, length, 2.5, 0.95, tall, (cargo, cargo, cargo), TRUCK, tint, z0=-1.1)
        self.box(obj, 2.0, 2.4, 0.45, tall * 0.8, (self.tile("bus_end"),) * 3, TRUCK, cab, z0=length / 2 + 0.1)
        for x, cull in ((1.2, 1), (-1.2, -1)):
            self.quad(
                (x, -1.0, -length / 2 - 1.0),
                (0, 0, length + 1.8),
                (0, 1.0, 0),
                self.tile("chassis"),
                TRUCK,
                obj=obj,
                cull=cull,
            )
        self.quad(
            (-1.2, -1.0, -length / 2 - 1.0),
            (2.4, 0, 0),
            (0, 1.0, 0),
            self.tile("car_rear"),
            TRUCK,
            obj=obj,
            tint=(0.35, 0.35, 0.35),
        )
        self.footprint(obj, length + 2, 2.5, tall, big=True)

    def bus(self, obj, tram=False):
        tint = np.array([[1.1, 0.3, 0.25], [1.15, 0.85, 0.25], [0.35, 0.5, 1.0], [0.4, 0.9, 0.5], [1.1, 1.1, 1.1]])[
            self.rng.integers(5)
        ]
        length, tall = (24.0, 3.4) if tram else (11.5, 3.1)
        side, end = self.tile("tram_side" if tram else "bus_side"), self.tile("bus_end")
        self.box(obj, length, 2.5, 0.12, tall, (side, end, end), TRAIN if tram else BUS, tint)
        self.footprint(obj, length, 2.5, tall, big=True)

    def tree(self, foot, height):
        tile = self.any_tile("tree")
        width = height * self.rng.uniform(0.75, 1.0)
        tint = self.rng.uniform(0.8, 1.25) * self.rng.uniform(0.92, 1.08, 3)
        turn = self.rng.uniform(-0.3, 0.3)
        for angle in (turn, turn + 1.1, turn - 1.1):
            self.facing(foot, width, 0, height, tile, VEGETATION, angle, tint=tint)
        angles = np.arange(8) * np.pi / 4
        ring = foot[[0, 2]] + 0.36 * width * np.stack([np.cos(angles), np.sin(angles)], 1)
        self.shadows.append((0, ring, -height, True))  # negative: a crown in the air, not a block on the ground

    def person(self, s, t, speed=0.0, across=0.0):
        foot = self.road.point(s, t)
        view = foot - self.eye
        heading = np.arctan2(view[0], view[2]) + self.rng.uniform(-0.4, 0.4)
        if speed or across:
            self.poses.append(
                np.stack([rigid(self.road.point(s + speed * w, t + across * w), heading) for w in self.times])
            )
        else:
            self.poses.append(np.repeat(rigid(foot, heading)[None], len(self.times), 0))
        obj, tall = len(self.poses) - 1, self.rng.uniform(1.5, 1.9)
        half = 0.21 * tall
        self.quad(
            (-half, -tall, 0),
            (2 * half, 0, 0),
            (0, tall, 0),
            self.any_tile("person"),
            PERSON,
            obj=obj,
            flat=True,
            tint=self.rng.uniform(0.75, 1.15) * np.ones(3),
        )
        self.footprint(obj, 0.3, 0.6, tall)

    def cyclist(self, s, t, speed, motor=False):
        view = self.road.point(s, t) - self.eye
        # Seen from behind a flat sprite would vanish: it is turned to at most 35 degrees off the view.
        heading = np.arctan2(view[0], view[2]) + self.rng.uniform(-0.6, 0.6)
        self.poses.append(np.stack([rigid(self.road.point(s + speed * w, t), heading) for w in self.times]))
        obj = len(self.poses) - 1
        name, label, size = ("motorcycle", MOTORCYCLE, 2.0) if motor else ("bicycle", BICYCLE, 1.75)
        self.quad((-size / 2, -1.15, 0), (size, 0, 0), (0, 1.15, 0), self.any_tile(name), label, obj=obj, flat=True)
        self.quad(
            (-0.75, -1.85, -0.02),
            (1.4, 0, 0),
            (0, 1.55, 0),
            self.any_tile("rider"),
            RIDER,
            obj=obj,
            flat=True,
        )
        self.footprint(obj, 0.4, 1.6, 1.6)

    def parked_cycle(self, s, t, name, label):
        foot = self.road.point(s, t)
        size = 2.0 if label == MOTORCYCLE else 1.75
        self.facing(foot, size, 0, 1.15, self.any_tile(name), label, self.rng.uniform(-0.5, 0.5))

    def pole(self, foot, height, width=0.16):
        self.facing(foot, width, 0, height, self.tile("metal"), POLE, tint=self.rng.uniform(0.7, 1.3) * np.ones(3))

    def sign(self, foot):
        tall, size = self.rng.uniform(2.3, 3.0), self.rng.uniform(0.65, 0.95)
        self.pole(foot, tall, 0.1)
        near = foot + (self.eye - foot) * 0.05 / max(np.linalg.norm(self.eye - foot), 1)
        self.facing(near, size, tall - size, tall, self.any_tile("sign"), SIGN, self.rng.uniform(-0.3, 0.3))

    def traffic_light(self, foot, lit):
        tall = self.rng.uniform(3.0, 3.8)
        self.pole(foot, tall, 0.18)
        near = foot + (self.eye - foot) * 0.06 / max(np.linalg.norm(self.eye - foot), 1)
        self.facing(near, 0.46, tall - 1.15, tall, self.tile(f"light{lit}"), LIGHT)


@dataclass(frozen=True)
class Weather:
    """Light of a kind of day. Colours are RGB: sun and ambient as factors, zenith and horizon in 0..255."""

    share: float  # of the snippets
    elevation: tuple[float, float]  # of the sun, radians
    sun: tuple[float, float, float]
    ambient: tuple[float, float, float]
    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]


WEATHER = {
    "sun": Weather(0.40, (0.6, 1.1), (1.0, 0.95, 0.86), (0.66, 0.71, 0.80), (70, 120, 200), (190, 210, 230)),
    "low_sun": Weather(0.18, (0.25, 0.5), (1.04, 0.81, 0.56), (0.62, 0.64, 0.74), (95, 125, 180), (240, 215, 180)),
    "overcast": Weather(0.30, (0.9, 0.9), (0, 0, 0), (1.15, 1.18, 1.24), (175, 182, 192), (205, 208, 212)),
    "dusk": Weather(0.12, (0.9, 0.9), (0, 0, 0), (0.66, 0.64, 0.72), (70, 75, 115), (190, 140, 120)),
}


def _light(rng: np.random.Generator) -> dict:
    """Weather, sun direction (unit vector towards it), colours, and the camera's exposure and noise."""
    name = str(rng.choice(list(WEATHER), p=[w.share for w in WEATHER.values()]))
    weather = WEATHER[name]
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(*weather.elevation)
    flat = np.cos(elevation)
    return {
        "weather": name,
        "sun": np.array([np.sin(azimuth) * flat, -np.sin(elevation), np.cos(azimuth) * flat]),
        "sun_colour": np.array(weather.sun),
        "ambient": np.array(weather.ambient),
        "zenith": np.array(weather.zenith) * rng.uniform(0.9, 1.1),
        "horizon": np.array(weather.horizon) * rng.uniform(0.92, 1.05),
        "cloud": 0.75 if name == "overcast" else rng.uniform(0.0, 0.7),
        "haze": rng.uniform(200, 900) * (0.5 if name == "overcast" else 1.0),  # metres
        "exposure": rng.uniform(0.88, 1.2),
        "contrast": rng.uniform(0.95, 1.12),
        "noise": rng.uniform(1.0, 3.0) * (1.6 if name == "dusk" else 1.0),  # standard deviation in 0..255
        "white_balance": rng.uniform(0.95, 1.05, 3),
        "cloud_at": rng.uniform(0, 256, 2),
    }


def _buildings(b: _Builder, city: City, side: int, line: float, crossings: list[tuple[float, float]]):
    """A row of buildings whose fronts stand at t = side * line; gaps at cross streets and on empty plots."""
    rng = b.rng
    s = -14.0 - rng.uniform(0, 6)
    while s < FAR - 30:
        width = rng.uniform(8, 15) if city.facades[0] == "house" else rng.uniform(11, 24)
        if city.facades[0] == "hall":
            width = rng.uniform(18, 34)
        if any(s < c + w + 3 and s + width > c - w - 3 for c, w in crossings):
            s += 3.0
            continue
        if rng.random() < city.gap_p:
            if rng.random() < 0.8:
                for _ in range(int(rng.integers(1, 4))):
                    b.tree(
                        b.road.point(s + rng.uniform(0, width), side * (line + rng.uniform(1, 9))),
                        rng.uniform(5, 11),
                    )
            s += width * rng.uniform(0.5, 1.0)
            continue
        style = str(rng.choice(city.facades))
        tint = rng.uniform(0.75, 1.15) * rng.uniform(0.94, 1.06, 3)
        front = line + rng.uniform(0, 1.5 if style != "house" else 3.0)
        depth = rng.uniform(9, 14)
        corners = [
            b.road.point(q, side * w)
            for q, w in ((s, front), (s + width, front), (s + width, front + depth), (s, front + depth))
        ]
        # a true rectangle although the road bends
        along = corners[1] - corners[0]
        inward = np.array([along[2], 0, -along[0]]) / np.linalg.norm(along) * depth * side
        corners[2], corners[3] = corners[1] + inward, corners[0] + inward
        tall = rng.uniform(*city.height)
        tile, run = b.any_tile(style), np.linalg.norm(along)
        faces = [(corners[0], corners[1]), (corners[3], corners[0])]
        if side > 0:
            faces = [(q, p) for p, q in faces]
        if style in ("house", "hall"):
            for p, q in faces:
                length = np.linalg.norm(q - p)
                repeat = (length / max(round(length / 10), 1), tall)
                b.upright(p, q, 0, tall, tile, BUILDING, tint=tint, repeat=repeat)
        else:
            ground = 4.0
            shop, floors = b.any_tile("shop"), max(round((tall - ground) / 3.1), 1)
            tall = ground + floors * 3.1
            closed = rng.random() < 0.35
            pitch = rng.uniform(2.6, 3.6)
            for p, q in faces:
                length = np.linalg.norm(q - p)
                bays = max(round(length / pitch), 1)
                phase = (rng.integers(3) / 3, (3 - floors % 3) / 3)
                b.upright(
                    p,
                    q,
                    ground,
                    tall,
                    tile,
                    BUILDING,
                    repeat=(3 * length / bays, 9.3),
                    offset=phase,
                    tint=tint,
                )
                size = (length / max(round(length / 11), 1), ground)
                if closed:
                    b.upright(
                        p,
                        q,
                        0,
                        ground,
                        tile,
                        BUILDING,
                        repeat=(3 * length / bays, 12.0),
                        offset=(0, 2 / 3),
                        tint=tint * 0.8,
                    )
                else:
                    b.upright(p, q, 0, ground, shop, BUILDING, repeat=size, tint=tint)
            if style != "glass":  # a cornice that stands out
                step = np.array([0, 0, 0]) - inward / depth * 0.35
                b.upright(
                    faces[0][0] + step,
                    faces[0][1] + step,
                    tall - 0.2,
                    tall + 0.4,
                    b.tile("plain"),
                    BUILDING,
                    tint=tint * 0.75,
                )
        if style == "house":
            ridge, half = rng.uniform(2, 3.2), depth / 2
            colour = rng.uniform(0.6, 1.2) * (
                np.array([1, 1, 1]) if rng.random() < 0.6 else np.array([0.6, 0.75, 0.85])
            )
            up = inward / depth * (half + 0.4) - [0, ridge, 0]
            eaves = corners[0] - inward / depth * 0.4 - along / run * 0.3 - [0, tall - 0.1, 0]
            b.quad(eaves + up, along * (1 + 0.6 / run), -up, b.tile("roof"), BUILDING, repeat=(4, 4), tint=colour)
            p = corners[0] + inward / 2 - [0, tall, 0]  # the gable, stepped
            for k in range(6):
                share = 1 - (k + 0.5) / 6
                a, c = p - inward / 2 * share, p + inward / 2 * share
                a, c = (a, c) if side < 0 else (c, a)
                b.quad(
                    a - [0, ridge * (k + 1) / 6, 0],
                    c - a,
                    (0, ridge / 6, 0),
                    b.tile("plain"),
                    BUILDING,
                    tint=tint,
                )
        b.shadows.append((0, np.array([c[[0, 2]] for c in corners]), tall, True))
        s += width + (rng.uniform(2, 6) if style in ("house", "hall") else 0.0 if rng.random() < 0.85 else 2.5)


def _barrier(b: _Builder, kind: str, t: float, s0: float, s1: float, height: float):
    """A fence, wall, hedge or guard rail along the road at offset t, in straight pieces."""
    tile = {
        "fence": lambda: b.any_tile("fence"),
        "wall": lambda: b.tile(str(b.rng.choice(["wall", "brickwall"]))),
        "hedge": lambda: b.any_tile("leaves"),
        "rail": lambda: b.tile("rail"),
    }[kind]()
    label = {"fence": FENCE, "wall": WALL, "hedge": VEGETATION, "rail": GUARD_RAIL}[kind]
    repeat = {
        "fence": (height * 1.1, height),
        "wall": (3.0, 3.0),
        "hedge": (1.8, 1.8),
        "rail": (4.0, height),
    }[kind]
    tint = b.rng.uniform(0.75, 1.15) * b.rng.uniform(0.95, 1.05, 3)
    step = 8.0 if b.road.k else 40.0
    run = 0.0
    while s0 < s1:
        end = min(s0 + step, s1)
        p, q = b.road.point(s0, t), b.road.point(end, t)
        b.upright(p, q, 0, height, tile, label, repeat=repeat, offset=(run / repeat[0], 0), tint=tint)
        if kind in ("hedge", "wall"):
            across = b.road.point(s0, t + (0.8 if t > 0 else -0.8))
            b.upright(p, across, 0, height, tile, label, repeat=repeat, tint=tint)
        run += np.linalg.norm(q - p)
        s0 = end


def draw_lots(seed: int, split: int, number: int) -> np.ndarray:
    """Numbers in [0, 1) that decide the city and the rare things of snippet `number` of a split.

    They follow a Kronecker sequence (fractional parts of multiples of square roots of primes), so that even
    in a short split every rare class appears about as often as its probability says. Pure function of the
    arguments.
    """
    start = np.random.default_rng(np.random.SeedSequence([seed, split])).random(len(RARE) + 1)
    return (start + number * np.sqrt([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37])) % 1


def make_scene(
    rng: np.random.Generator, lots: np.ndarray, bank: Bank, *, size: tuple[int, int], frames: int, fps: float
) -> Scene:
    """Draws one snippet's scene. lots: see `draw_lots`; size = (width, height) in pixels; fps > 0 per
    second."""
    width, height = size
    names = list(CITIES)
    edges = np.cumsum([c.weight for c in CITIES.values()])
    name = names[min(int(np.searchsorted(edges / edges[-1], lots[0], side="right")), len(names) - 1)]
    city = CITIES[name]
    has = {key: lot < city.rare.get(key, 0.0) for key, lot in zip(RARE, lots[1:], strict=True)}
    times = np.arange(frames) / fps
    curvature = 0.0
    if rng.random() < city.curve_p:
        curvature = float(rng.choice([-1, 1])) / rng.uniform(70, 220) * (0.4 if name == "highway" else 1.0)
    road = _Road(curvature)
    b = _Builder(bank, rng, times, road)

    # --- cross-section ---
    lanes = int(rng.integers(city.lanes[0], city.lanes[1] + 1))
    lane = 3.6 if name == "highway" else rng.uniform(2.9, 3.4)
    median = rng.uniform(1.5, 3.0) if name == "highway" else 0.0
    half = lanes * lane + median / 2 + (1.0 if name == "highway" else 0.0)
    bay = {side: 2.1 if rng.random() < city.parking_p else 0.0 for side in (-1, 1)}
    kerb = {side: half + bay[side] for side in (-1, 1)}
    walk = {side: rng.uniform(*city.sidewalk) for side in (-1, 1)}
    if name == "suburb" and rng.random() < 0.4:
        walk[int(rng.choice([-1, 1]))] = 0.0
    line = {side: kerb[side] + walk[side] + rng.uniform(*city.verge) for side in (-1, 1)}

    # --- the way of the camera ---
    standing = name != "highway" and rng.random() < 0.13
    speed = 0.0 if standing else rng.uniform(*city.speed)
    speed = min(speed, 1.6 * fps)  # at most 1.6 m between frames, whatever the rate
    crossings: list[tuple[float, float]] = []
    if standing or has["light"] or rng.random() < city.crossing_p:
        # traffic lights stand at crossings, near enough to be seen
        reach = (13, 18) if standing else (14, 30) if has["light"] else (16, 60)
        crossings.append((rng.uniform(*reach), rng.uniform(3.2, 5.5)))
        if rng.random() < 0.5:
            crossings.append((crossings[0][0] + rng.uniform(50, 80), rng.uniform(3, 4.5)))
    own = median / 2 + lane * (rng.integers(lanes) + 0.5) + rng.uniform(-0.3, 0.3)
    mount = rng.uniform(1.2, 1.55)
    b.eye = road.point(speed * times[-1] / 2, own) - [0, mount, 0]

    # --- ground ---
    asphalt = "asphalt" if name != "oldtown" or rng.random() < 0.55 else "cobble"
    soil = str(rng.choice(["gravel", "grass"], p=[0.6, 0.4] if name == "industrial" else [0.1, 0.9]))
    strips = []  # (t low, t high, label, tile, metres per tile, tint)
    tar = (
        ROAD,
        b.any_tile(asphalt),
        5.0 if asphalt == "asphalt" else 3.2,
        rng.uniform(0.8, 1.15) * np.ones(3),
    )
    pave = (
        SIDEWALK,
        b.any_tile("paving"),
        rng.uniform(2.4, 4.0),
        rng.uniform(0.85, 1.2) * rng.uniform(0.96, 1.04, 3),
    )
    earth = (TERRAIN, b.any_tile(soil), 5.0, rng.uniform(0.8, 1.2) * np.ones(3))
    park = (PARKING, b.any_tile("cobble"), 2.6, 0.9 * np.ones(3))
    beyond = earth if name in ("suburb", "highway", "industrial") else pave
    strips.append((-half, half, *tar))
    if median:
        strips.append((-median / 2, median / 2, *earth))
    for side in (-1, 1):
        edges = [
            (half, kerb[side], park),
            (kerb[side], kerb[side] + walk[side], pave),
            (kerb[side] + walk[side], 400.0, beyond),
        ]
        strips += [(*sorted((side * lo, side * hi)), *what) for lo, hi, what in edges if hi > lo]
    yellow = np.array([0.95, 0.8, 0.35])
    white = np.array([1.0, 1.0, 0.98]) * rng.uniform(0.8, 1.0)
    lines = []  # (t, width, dash, period, colour, strength)
    worn = rng.uniform(0.45, 0.95)
    if asphalt == "asphalt":
        if not median:
            lines.append((0.0, 0.14, *((0, 0) if rng.random() < 0.3 else (3, 9)), white, worn))
        for k in range(1, lanes):
            lines += [(side * (median / 2 + k * lane), 0.14, 3, 9, white, worn) for side in (-1, 1)]
        if name == "highway" or rng.random() < 0.4:
            lines += [(side * (lanes * lane + median / 2 - 0.1), 0.16, 0, 0, white, worn) for side in (-1, 1)]
        if median:
            lines += [(side * (median / 2 + 0.25), 0.16, 0, 0, yellow, worn) for side in (-1, 1)]
    if name != "highway":
        lines += [(side * kerb[side], 0.22, 0, 0, np.array([0.8, 0.8, 0.78]), 0.9) for side in (-1, 1) if walk[side]]
    ground = {
        "strips": strips,
        "lines": lines,
        "crossings": crossings,
        "half": half,
        "kerb": kerb,
        "worn": worn,
        "walk": pave,
        "tar": tar,
    }

    light = _light(rng)

    # --- backdrop; then along the road ---
    far = "far_town" if name in ("downtown", "industrial") and rng.random() < 0.7 else "far_trees"
    tall = rng.uniform(16, 40) if far == "far_town" else rng.uniform(9, 20)
    b.upright(
        (-260, FAR),
        (260, FAR),
        0,
        tall,
        b.tile(far),
        BUILDING if far == "far_town" else VEGETATION,
        repeat=(tall * 3, tall),
        offset=(rng.random(), 0),
        flat=True,
    )
    for side in (-1, 1):
        if name == "highway":
            free = line[side]
            if has["wall"] and (side == 1 or rng.random() < 0.5):
                _barrier(b, "wall", side * (kerb[side] + 2.5), -10, 150, rng.uniform(2.5, 4.5))
                continue
            if has["rail"]:
                _barrier(b, "rail", side * (kerb[side] + 0.6), -10, 150, 0.8)
            if has["fence"]:
                _barrier(b, "fence", side * (kerb[side] + 4), -10, 120, 1.9)
            _buildings(b, city, side, free + 12, [])
            for s in np.arange(rng.uniform(0, 8), 150, 7.0):
                if rng.random() < 0.65:
                    foot = road.point(s, side * (free + rng.uniform(0, 8)))
                    b.tree(foot, rng.uniform(4, 11))
            continue
        _buildings(b, city, side, line[side], crossings)
        border = kerb[side] + walk[side] + 0.35
        if line[side] - border > 1.5 or name == "oldtown":
            options = [k for k in ("fence", "wall") if has[k]]
            front = str(rng.choice(options)) if options and rng.random() < 0.75 else ""
            if not front and name == "suburb" and rng.random() < 0.45:
                front = "hedge"
            if front and name != "oldtown":
                at = -10.0
                stops = [*sorted(c for c, _ in crossings), 140.0]
                for stop in stops:
                    gate = next((w for c, w in crossings if c == stop), 0) + 4
                    end = min(stop - gate, at + rng.uniform(25, 90))
                    if end > at + 2:
                        _barrier(b, front, side * border, at, end, rng.uniform(1.0, 2.0))
                    at = stop + gate
        if name in ("oldtown", "downtown"):
            for k in ("wall", "fence"):
                if has[k] and rng.random() < 0.6:
                    s = rng.uniform(2, 12)
                    limit = min([c - w - 3 for c, w in crossings if c > s] + [90.0])
                    end = min(s + rng.uniform(10, 35), limit)
                    if end > s + 3:
                        place = side * (line[side] - 0.3 if k == "wall" else kerb[side] + 0.3)
                        _barrier(b, k, place, s, end, 2.4 if k == "wall" else 1.0)
        if city.tree_gap:
            for s in np.arange(rng.uniform(2, 12), 140, city.tree_gap):
                if rng.random() < 0.7 and all(abs(s - c) > w + 3 for c, w in crossings):
                    inner = kerb[side] + min(0.9, walk[side] / 2)
                    place = inner if name == "downtown" else border + rng.uniform(0.5, 2.5)
                    b.tree(road.point(s + rng.uniform(-2, 2), side * place), rng.uniform(4, 7.5))

    def free_of_crossings(s: float, margin: float) -> bool:
        return all(abs(s - c) > w + margin for c, w in crossings)

    for s in np.arange(rng.uniform(4, 20), 120, rng.uniform(22, 34)):  # street lamps
        side = int(rng.choice([-1, 1]))
        foot = road.point(s, side * (kerb[side] + 0.4))
        if free_of_crossings(s, 1):
            tall = rng.uniform(5.5, 8)
            b.pole(foot, tall)
            tip = road.point(s, side * (kerb[side] - 1.2)) - [0, tall, 0]
            b.quad(
                foot - [0, tall, 0],
                tip - (foot - [0, tall, 0]),
                (0, 0.14, 0),
                b.tile("metal"),
                POLE,
                flat=True,
            )
    for _ in range(rng.poisson(city.sign_n)):
        side = int(rng.choice([-1, 1], p=[0.3, 0.7]))
        s = rng.uniform(8, 55)
        b.sign(road.point(s, side * (kerb[side] + 0.5)))
    if has["light"] and crossings:
        c, w = crossings[0]
        lit = 0 if standing else int(rng.choice([0, 1, 2], p=[0.2, 0.1, 0.7]))
        for side in (-1, 1):
            b.traffic_light(road.point(c - w - 1.0, side * (kerb[side] + 0.5)), lit)
            if rng.random() < 0.6:
                b.traffic_light(road.point(c + w + 0.8, side * (kerb[side] + 0.5)), lit)
    if has["bridge"]:
        s = rng.uniform(30, 70)
        p, q = road.point(s, -40), road.point(s, 40)
        b.upright(p, q, 5.5, 7.0, b.tile("wall"), BRIDGE, repeat=(3, 3), tint=(0.9, 0.9, 0.9))
    for side in (-1, 1):  # bins and boxes, void in most class lists
        if walk[side] and rng.random() < 0.12:
            b.facing(
                road.point(rng.uniform(8, 30), side * (kerb[side] + 0.8)),
                0.6,
                0,
                1.0,
                b.tile("metal"),
                STATIC,
                tint=(0.5, 0.9, 0.6),
            )

    # --- parked and moving things ---
    for side in (-1, 1):
        place = kerb[side] - 1.05 if bay[side] else (half - 1.0 if name in ("suburb", "industrial") else 0.0)
        if not place or rng.random() < 0.2:
            continue
        full = 0.75 if bay[side] else 0.12
        s = rng.uniform(-4, 6)
        clear = own + 2.1 if side > 0 else 0.0  # nobody parks on the camera's own lane
        while s < 80:
            if rng.random() < full and free_of_crossings(s, 5) and place - 1.0 > clear - own * (side < 0):
                obj = b.mover(s, side * place, 0.0, 0.0 if side > 0 else np.pi)
                if has["truck"] and name == "industrial" and rng.random() < 0.2:
                    b.truck(obj)
                    s += 7
                else:
                    b.car(obj)
            s += rng.uniform(5.6, 7.0)

    occupied: list[tuple[float, float]] = [(0.0, own)]
    places = [median / 2 + lane * (k + 0.5) for k in range(lanes)]

    def lane_slot(length: float, near: float, far_end: float):
        """A free place on the road: (s, t, speed along s)."""
        for _ in range(12):
            direction = int(rng.choice([-1, 1], p=[0.5, 0.5]))
            t = direction * float(rng.choice(places))
            s = rng.uniform(near, far_end)
            if abs(t - own) < 2 and s < 11 + length / 2:
                continue
            if all(abs(s - q) > 8 + length / 2 or abs(t - r) > 2 for q, r in occupied):
                occupied.append((s, t))
                if standing and direction > 0:
                    stop = crossings[0][0] - crossings[0][1] - 5
                    return (min(s, stop - length / 2), t, 0.0) if abs(t - own) > 2 else (s + 18, t, 0.0)
                pace = max(speed, 4.0) if abs(t - own) < 2 else rng.uniform(*city.speed)
                return s, t, direction * pace * rng.uniform(0.85, 1.1)
        return None

    def vehicle(make, length, near=7.0, far_end=60.0):
        slot = lane_slot(length, near, far_end)
        if slot:
            s, t, pace = slot
            make(b.mover(s, t, pace, np.pi if t < 0 else 0.0))

    if has["train"]:
        vehicle(lambda obj: b.bus(obj, tram=True), 24, 24, 45)
    if has["bus"]:
        vehicle(b.bus, 12, 13, 34)
    if has["truck"]:
        for _ in range(2 if name == "highway" else 1):
            vehicle(b.truck, 10, 12, 36)
    for _ in range(rng.poisson(city.car_n)):
        vehicle(b.car, 4.5)
    if has["rider"]:
        for _ in range(int(rng.integers(1, 3))):
            side = int(rng.choice([-1, 1]))
            b.cyclist(rng.uniform(7, 18), side * (half - 0.5), side * min(rng.uniform(3, 6), 1.6 * fps))
    if has["motorcycle"]:
        if name == "highway" or rng.random() < 0.35:
            slot = lane_slot(2, 8, 22)
            if slot:
                b.cyclist(*slot, motor=True)
        else:
            side = int(rng.choice([-1, 1]))
            for k in range(int(rng.integers(1, 4))):
                b.parked_cycle(rng.uniform(7, 11) + 1.6 * k, side * (kerb[side] + 0.7), "motorcycle", MOTORCYCLE)
    if has["bicycle"]:
        side = int(rng.choice([-1, 1]))
        s = rng.uniform(6, 13)
        for k in range(int(rng.integers(2, 6))):
            b.parked_cycle(s + 1.1 * k, side * (kerb[side] + walk[side] * 0.6), "bicycle", BICYCLE)
    for _ in range(rng.poisson(city.person_n)):
        side = int(rng.choice([-1, 1]))
        if walk[side] < 1:
            continue
        s, pace = rng.uniform(5, 40), float(rng.choice([-1.3, 0.0, 1.2]))
        for k in range(int(rng.choice([1, 1, 2, 3]))):
            t = side * (kerb[side] + rng.uniform(0.4, walk[side] - 0.3))
            b.person(s + 0.7 * k, t, pace)
    if standing and rng.random() < 0.8:
        c, w = crossings[0]
        for _ in range(int(rng.integers(1, 5))):
            b.person(c - w - rng.uniform(0.8, 2.6), rng.uniform(-half, half), 0.0, float(rng.choice([-1.3, 1.3])))

    # --- camera ---
    focal = width * rng.uniform(0.9, 1.12)
    matrix = np.array(
        [
            [focal, 0, width / 2 - 0.5 + rng.uniform(-4, 4)],
            [0, focal, height * rng.uniform(0.44, 0.5)],
            [0, 0, 1],
        ]
    )
    lean, pitch = rng.normal(0, np.radians(2.5)), rng.normal(np.radians(-0.5), np.radians(0.8))
    turn = 0.0
    if not standing and rng.random() < 0.2:
        lean, turn = rng.normal(0, np.radians(9)), rng.normal(0, np.radians(7))
    poses = np.empty((frames, 4, 4))
    # A car sways on its springs: smooth in time, so that frames closer in time differ less.
    phases = rng.uniform(0, 2 * np.pi, len(SWAY))
    for k, w in enumerate(times):
        s = speed * w
        aside, up, yaw, jolt, roll = np.array(SWAY) * np.sin(2 * np.pi * SWAY_RATE * w + phases)
        pose = rigid(road.point(s, own + aside), road.heading(s) + lean + turn * w + yaw)
        pose[1, 3] = -mount + up
        if standing:
            pose[:3, 3] = road.point(0, own) - [0, mount, 0]
            jolt, roll = 0.0, 0.0
            pose[:3, :3] = rigid((0, 0, 0), lean)[:3, :3]
        c, q = np.cos(pitch + jolt), np.sin(pitch + jolt)
        e, f = np.cos(roll), np.sin(roll)
        tilt = np.array([[1, 0, 0], [0, c, -q], [0, q, c]]) @ np.array([[e, -f, 0], [f, e, 0], [0, 0, 1]])
        pose[:3, :3] = pose[:3, :3] @ tilt
        poses[k] = pose

    # --- the ground's quad comes first ---
    b.rows.insert(
        0,
        (
            0,
            np.zeros(3),
            np.array([1.0, 0, 0]),
            np.array([0, 0, 1.0]),
            (np.inf, np.inf),
            tar[1],
            ROAD,
            (5.0, 5.0),
            (0, 0),
            np.ones(3),
            False,
            0,
        ),
    )
    keys = (
        "object",
        "origin",
        "u",
        "v",
        "extent",
        "tile",
        "label",
        "tile_size",
        "offset",
        "tint",
        "flat",
        "cull",
    )
    quads = {key: np.array([row[i] for row in b.rows]) for i, key in enumerate(keys)}
    return Scene(
        name,
        size,
        fps,
        matrix,
        poses,
        np.stack(b.poses, 1),
        speed,
        curvature,
        ground,
        light,
        b.shadows,
        quads,
    )
