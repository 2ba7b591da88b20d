"""The texture bank of the street renderer: procedural 256 x 256 RGBA tiles with mip levels in one atlas.

Every tile is drawn from noise, rectangles and polygons, so the bank is a pure function of the seed. All tiles
and all mip levels lie in one image, so that one `cv2.remap` textures a whole frame, whatever it shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

TILE = 256  # edge of a tile at level 0, pixels
LEVELS = 8  # 256 .. 2 pixels
PAD = 2  # wrapped border round each tile, so that bilinear sampling never reads the neighbour
COLUMNS = 16


@dataclass(frozen=True)
class Bank:
    """Textures of one data set.

    atlas: uint8 (H, W, 4) RGBA. index: tile name -> number. size, cell, top: per mip level the tile's edge,
    the cell's edge and the first row of the level in the atlas (pixels). alpha: tile number -> list of bool
    (n, n) masks per level, only for tiles with holes. noise: float32 (256, 256), mean 1, tileable. blotch:
    the same, smooth.
    """

    atlas: np.ndarray
    index: dict[str, int]
    size: np.ndarray
    cell: np.ndarray
    top: np.ndarray
    alpha: dict[int, list[np.ndarray]]
    noise: np.ndarray
    blotch: np.ndarray

    def group(self, prefix: str) -> list[int]:
        """Numbers of all tiles whose name is `prefix` followed by digits."""
        return [i for n, i in self.index.items() if n.rstrip("0123456789") == prefix]


def fractal(rng: np.random.Generator, cells: int, octaves: int, persistence: float = 0.55) -> np.ndarray:
    """Tileable value noise, float32 (256, 256), mean 0, standard deviation 1."""
    total = np.zeros((TILE, TILE), np.float32)
    weight = 1.0
    for _ in range(octaves):
        if cells > TILE:
            break
        grid = np.pad(rng.random((cells, cells), dtype=np.float32), 2, mode="wrap")
        edge = (cells + 4) * TILE // cells
        big = cv2.resize(grid, (edge, edge), interpolation=cv2.INTER_CUBIC)
        margin = 2 * TILE // cells
        total += weight * big[margin : margin + TILE, margin : margin + TILE]
        weight *= persistence
        cells *= 2
    return (total - total.mean()) / total.std()


def _flat(colour) -> np.ndarray:
    return np.tile(np.float32(colour), (TILE, TILE, 1))


def _between(rng, low, high) -> np.ndarray:
    """A colour between two: one draw for brightness, little for hue."""
    low, high = np.float32(low), np.float32(high)
    return (low + (high - low) * rng.random()) * (1 + 0.06 * rng.uniform(-1, 1, 3))


def _rgb(value: float, hue_rng: np.random.Generator, spread: float) -> np.ndarray:
    return np.clip(value * (1 + spread * hue_rng.uniform(-1, 1, 3)), 0, 255)


def _bricks(rng, image, rows: int, columns: int, mortar: float, spread: float) -> np.ndarray:
    """Multiplies bricks in a running bond onto `image`."""
    height, width = TILE // rows, TILE // columns
    shade = 1 + spread * rng.standard_normal((rows, columns)).astype(np.float32)
    y, x = np.mgrid[:TILE, :TILE]
    row = y // height % rows
    x = (x + (row % 2) * (width // 2)) % TILE
    factor = shade[row, x // width % columns]
    factor = np.where((y % height == 0) | (x % width == 0), mortar, factor)
    return image * factor[..., None]


def _facade(rng, style: str) -> np.ndarray:
    """Three by three bays of a building's upper floors; tileable."""
    base = {
        "plaster": _between(rng, [150, 130, 100], [225, 210, 190]),
        "brick": _between(rng, [120, 70, 55], [165, 100, 85]),
        "concrete": _rgb(rng.uniform(120, 175), rng, 0.04),
        "glass": _between(rng, [60, 80, 95], [110, 130, 150]),
    }[style]
    image = _flat(base)
    if style == "brick":
        image = _bricks(rng, image, 32, 16, 1.25, 0.09)
    elif style == "concrete":
        image = _bricks(rng, image, 3, 3, 0.75, 0.03)
    image *= 1 + 0.05 * fractal(rng, 4, 6)[..., None]
    streak = cv2.GaussianBlur(fractal(rng, 64, 2), (0, 0), sigmaX=1, sigmaY=25, borderType=cv2.BORDER_REPLICATE)
    image *= 1 + 0.12 * streak[..., None]
    edge = TILE / 3
    wide = rng.uniform(0.8, 0.92) if style == "glass" else rng.uniform(0.34, 0.6)
    tall = rng.uniform(0.72, 0.86) if style == "glass" else rng.uniform(0.48, 0.66)
    frame = np.float32(rng.choice([235, 200, 60, 90])) * np.ones(3, np.float32)
    extra = rng.choice(["none", "sill", "shutter", "balcony"]) if style != "glass" else "none"
    double = rng.random() < 0.5
    shutter = _between(rng, [50, 50, 40], [120, 110, 80])
    if style == "plaster" and rng.random() < 0.5:  # cornice under each floor
        for k in range(3):
            y = int(k * edge)
            image[y : y + 5] *= 1.15
            image[y + 5 : y + 8] *= 0.7
    for row in range(3):
        for column in range(3):
            left, right = (int((column + 0.5 + side * wide / 2) * edge) for side in (-1, 1))
            top, bottom = int((row + 0.5 - tall / 2) * edge), int((row + 0.5 + tall / 2) * edge)
            image[top - 3 : bottom + 3, left - 3 : right + 3] = frame
            image[top - 4 : top - 2, left - 3 : right + 3] *= 0.6
            pane = np.linspace(rng.uniform(60, 140), rng.uniform(15, 60), bottom - top)[:, None, None]
            pane = pane * np.float32([0.85, 0.95, 1.08]) * rng.uniform(0.5, 1.15)
            image[top:bottom, left:right] = pane
            if rng.random() < 0.35:  # curtain or blind
                depth = int((bottom - top) * rng.uniform(0.2, 0.9))
                image[top : top + depth, left:right] = rng.uniform(130, 210) * np.float32([1, 0.97, 0.9])
            if rng.random() < 0.3:
                image[top:bottom, left : left + (right - left) // 3] *= 1.35
            if double:
                middle = (left + right) // 2
                image[top:bottom, middle - 1 : middle + 2] = frame
            image[top + (bottom - top) // 3, left:right] = frame
            if extra == "sill":
                image[bottom + 2 : bottom + 6, left - 6 : right + 6] = base * 1.2
                image[bottom + 6 : bottom + 8, left - 6 : right + 6] *= 0.6
            elif extra == "shutter":
                thick = max(4, (right - left) // 3)
                for x in (left - 3 - thick, right + 3):
                    image[top:bottom, max(x, 0) : x + thick] = shutter
                    image[top:bottom:4, max(x, 0) : x + thick] *= 0.7
            elif extra == "balcony" and column != 1:
                image[bottom - 14 : bottom + 3, left - 10 : right + 10 : 3] = 50
                image[bottom - 15 : bottom - 12, left - 10 : right + 10] = 45
                image[bottom + 3 : bottom + 9, left - 10 : right + 10] = base * 0.75
    return image


def _shop(rng) -> np.ndarray:
    """A ground floor: shop windows, doors, an awning and a sign band; two shops wide."""
    image = _flat(_rgb(rng.uniform(90, 190), rng, 0.15)) * (1 + 0.05 * fractal(rng, 4, 6)[..., None])
    for k in range(2):
        left = 128 * k + 8
        band = rng.uniform(40, 220, 3)
        image[14:58, left : left + 112] = band
        for x in range(left + 12, left + 96, 9):  # letters nobody can read
            if rng.random() < 0.8:
                image[26 : 26 + rng.integers(10, 22), x : x + rng.integers(3, 7)] = 255 - band
        door = left + rng.integers(4, 78)
        image[64:236, left : left + 112] = np.linspace(110, 35, 172)[:, None, None] * np.float32([0.9, 1, 1.05])
        for _ in range(9):  # goods
            x, y = left + rng.integers(2, 100), rng.integers(120, 215)
            image[y : y + rng.integers(6, 20), x : x + rng.integers(4, 16)] = rng.uniform(40, 230, 3)
        image[64:256, door : door + 30] = rng.uniform(30, 120, 3)
        image[76:150, door + 5 : door + 25] = (70, 85, 95)
        image[64:240, left + 55 : left + 58] = 60
        if rng.random() < 0.5:  # awning
            stripe = (np.arange(112) // 8 % 2)[None, :, None]
            image[58:92, left : left + 112] = np.where(stripe, rng.uniform(120, 230, 3), 225.0)
            image[92:98, left : left + 112] *= 0.5
    image[248:] *= 0.6
    return image


def _house(rng) -> np.ndarray:
    """A whole small house front, two floors with a door."""
    image = _flat(_between(rng, [150, 135, 115], [230, 222, 210]))
    if rng.random() < 0.4:
        image = _bricks(rng, _flat(_between(rng, [125, 75, 60], [170, 110, 90])), 64, 32, 1.2, 0.08)
    image *= 1 + 0.05 * fractal(rng, 4, 6)[..., None]
    columns = int(rng.integers(2, 5))
    door = int(rng.integers(0, columns))
    for row, (top, bottom) in enumerate(((28, 88), (150, 212))):
        for k in range(columns):
            middle = int((k + 0.5) * TILE / columns)
            half = int(rng.uniform(0.22, 0.3) * TILE / columns)
            if row == 1 and k == door:
                image[140:256, middle - 18 : middle + 18] = rng.uniform(40, 140, 3)
                image[150:180, middle - 12 : middle + 12] = (70, 80, 90)
                continue
            image[top - 4 : bottom + 4, middle - half - 4 : middle + half + 4] = 238
            image[top:bottom, middle - half : middle + half] = np.linspace(105, 45, bottom - top)[:, None, None]
            image[top:bottom, middle - 1 : middle + 2] = 238
            image[bottom + 4 : bottom + 8, middle - half - 8 : middle + half + 8] *= 0.65
    image[:8] *= 0.55
    image[236:] *= 0.75
    return image


def _hall(rng) -> np.ndarray:
    """Corrugated sheet metal with roller doors and a window band."""
    wave = 1 + 0.1 * np.sin(np.arange(TILE) * 2 * np.pi / 8)
    image = _flat(_between(rng, [110, 120, 125], [200, 205, 210])) * wave[None, :, None]
    image *= 1 + 0.06 * fractal(rng, 2, 6)[..., None]
    for y in range(20, 60, 6):
        image[y : y + 5, 10:246] = rng.uniform(55, 110) * np.float32([0.9, 1, 1.1])
    if rng.random() < 0.7:
        for left in (20, 150):
            image[120:256, left : left + 86] = rng.uniform(70, 190, 3)
            image[120:256:9, left : left + 86] *= 0.6
            image[116:120, left - 4 : left + 90] = 50
    return image


def _ground(rng, kind: str) -> np.ndarray:
    fine, coarse = fractal(rng, 64, 3, 0.8), fractal(rng, 3, 6)
    if kind == "asphalt":
        grain = fractal(rng, 128, 2, 0.9)
        image = _flat(_rgb(rng.uniform(92, 118), rng, 0.03))
        image = image * (1 + 0.10 * grain + 0.07 * coarse)[..., None]
        for _ in range(3):  # cracks and repairs
            points = np.cumsum(rng.normal(0, 14, (9, 2)), axis=0) + rng.uniform(0, TILE, 2)
            line = np.zeros((TILE, TILE), np.uint8)
            cv2.polylines(line, [points.astype(np.int32)], False, 255, 1, cv2.LINE_AA)
            image *= 1 - 0.35 * (line / 255.0)[..., None]
        x, y = rng.integers(20, 180, 2)
        image[y : y + rng.integers(20, 60), x : x + rng.integers(20, 60)] *= rng.uniform(0.75, 0.88)
        return image
    if kind == "paving":
        image = _flat(_rgb(rng.uniform(130, 170), rng, 0.05))
        image = _bricks(rng, image, 8, 8, 0.68, 0.05)
        return image * (1 + 0.06 * fine + 0.05 * coarse)[..., None]
    if kind == "cobble":
        image = _bricks(rng, _flat(_rgb(rng.uniform(105, 140), rng, 0.06)), 16, 16, 0.55, 0.13)
        return image * (1 + 0.07 * fine + 0.05 * coarse)[..., None]
    if kind == "grass":
        image = _flat(_between(rng, [78, 100, 42], [115, 130, 62]))
        dry = np.clip(0.5 + 0.35 * coarse, 0, 1)[..., None]
        image = image * (1 - 0.35 * dry) + np.float32([150, 135, 90]) * 0.35 * dry
        return image * (1 + 0.2 * fine + 0.08 * coarse)[..., None]
    image = _flat(_between(rng, [130, 112, 85], [165, 148, 120]))  # gravel
    return image * (1 + 0.16 * fine + 0.1 * coarse)[..., None]


def _leaves(rng, colour) -> np.ndarray:
    """Foliage: many small ellipses of varied green over a dark ground."""
    image = np.full((TILE, TILE, 3), np.float32(colour) * 0.38, np.float32)
    canvas = np.ascontiguousarray(image)
    for _ in range(900):
        x, y = rng.integers(0, TILE, 2).tolist()
        shade = rng.uniform(0.5, 1.5) * np.float32(colour) * rng.uniform(0.85, 1.15, 3)
        axes = (int(rng.integers(3, 8)), int(rng.integers(2, 5)))
        for dx in (0, -TILE):
            for dy in (0, -TILE):
                cv2.ellipse(canvas, (x + dx, y + dy), axes, float(rng.uniform(0, 180)), 0, 360, shade.tolist(), -1)
    return canvas


def _tree(rng, conifer: bool) -> np.ndarray:
    colour = _between(rng, [48, 72, 28], [105, 125, 58])
    image = _leaves(rng, colour)
    alpha = np.zeros((TILE, TILE), np.uint8)
    if conifer:
        for k in range(9):
            y = 8 + 24 * k
            half = 14 + 11 * k
            points = np.int32([[128, y - 8], [128 + half, y + 34], [128 - half, y + 34]])
            cv2.fillPoly(alpha, [points], 255)
    else:
        for _ in range(26):
            angle, radius = rng.uniform(0, 2 * np.pi), 72 * np.sqrt(rng.random())
            centre = (int(128 + 1.05 * radius * np.cos(angle)), int(88 + 0.8 * radius * np.sin(angle)))
            cv2.circle(alpha, centre, int(rng.integers(18, 42)), 255, -1)
    ragged = fractal(rng, 16, 4, 0.8) + 0.9 * fractal(rng, 48, 2)
    crown = cv2.GaussianBlur(alpha, (0, 0), 7).astype(np.float32) / 255
    alpha = (((crown + 0.14 * ragged) > 0.5) & (crown > 0.12)).astype(np.uint8) * 255
    alpha[:3], alpha[:, :3], alpha[:, -3:] = 0, 0, 0
    # light from above, dark inside
    image *= np.linspace(1.25, 0.6, TILE)[:, None, None] * (1 + 0.16 * fractal(rng, 6, 3)[..., None])
    bark = _between(rng, [60, 50, 38], [100, 85, 68])
    trunk = np.zeros((TILE, TILE), np.uint8)
    cv2.fillPoly(trunk, [np.int32([[122, 110], [134, 110], [138, 255], [118, 255]])], 255)
    bare = (trunk > 0) & ((alpha == 0) | (np.arange(TILE)[:, None] > 175))
    image[bare] = (bark * (1 + 0.15 * fractal(rng, 32, 3)[..., None]))[bare]
    alpha[trunk > 0] = 255
    return np.dstack([image, alpha])


def _person(rng, seated: bool = False) -> np.ndarray:
    """A standing person, front or back; `seated`: a cyclist's posture, seen from the side (facing right)."""
    image = np.zeros((TILE, TILE, 4), np.uint8)
    skin = [*_between(rng, [120, 85, 65], [225, 185, 160]).tolist(), 255]
    saturation = rng.choice([0.12, 0.3, 0.8])  # most people dress in dull colours
    coat = [*(rng.uniform(25, 190) * (1 + saturation * rng.uniform(-1, 1, 3))), 255]
    trousers = [*(rng.uniform(20, 120) * rng.uniform(0.8, 1.2, 3)).tolist(), 255]
    hair = [*_between(rng, [20, 15, 10], [120, 95, 60]).tolist(), 255]
    dark = [30, 28, 28, 255]

    def poly(points, colour):
        cv2.fillPoly(image, [np.int32(points)], colour)

    if seated:
        poly([[78, 130], [105, 125], [150, 165], [140, 180]], trousers)
        poly([[135, 160], [155, 165], [140, 240], [120, 240]], trousers)
        poly([[118, 236], [150, 236], [152, 250], [116, 250]], dark)
        poly([[72, 140], [90, 52], [130, 48], [128, 90], [112, 142]], coat)
        poly([[108, 62], [128, 60], [190, 112], [182, 124]], coat)
        cv2.ellipse(image, (128, 28), (19, 24), 0, 0, 360, skin, -1)
        cv2.ellipse(image, (125, 20), (22, 17), 0, 0, 360, [*rng.uniform(30, 230, 3).tolist(), 255], -1)
    else:
        spread = int(rng.integers(4, 26))
        for side in (-1, 1):
            hip, foot = 128 + side * 20, 128 + side * (20 + spread)
            poly([[hip - 22, 130], [hip + 22, 130], [foot + 15, 245], [foot - 15, 245]], trousers)
            poly([[foot - 18, 242], [foot + 18, 242], [foot + 22, 255], [foot - 20, 255]], dark)
            arm = 128 + side * (66 + spread // 2)
            poly([[128 + side * 42, 46], [128 + side * 54, 50], [arm + 9, 138], [arm - 11, 140]], coat)
            cv2.circle(image, (arm, 143), 10, skin, -1)
        poly([[78, 46], [100, 38], [156, 38], [178, 46], [172, 146], [84, 146]], coat)
        cv2.ellipse(image, (128, 22), (23, 21), 0, 0, 360, skin, -1)
        cv2.ellipse(image, (128, 14), (24, 14), 0, 0, 360, hair, -1)
        if rng.random() < 0.4:  # bag
            poly([[92, 60], [164, 60], [160, 118], [96, 118]], [*rng.uniform(20, 200, 3).tolist(), 255])
    shade = (1 + 0.1 * fractal(rng, 8, 5)) * np.linspace(1.1, 0.85, TILE)[None, :]
    image[..., :3] = np.clip(image[..., :3] * shade[..., None], 0, 255)
    return image


def _bicycle(rng) -> np.ndarray:
    image = np.zeros((TILE, TILE, 4), np.uint8)
    paint = [*rng.uniform(30, 220, 3).tolist(), 255]
    for x in (62, 194):
        cv2.circle(image, (x, 190), 58, (25, 25, 25, 255), 9)
        for k in range(6):
            end = (int(x + 54 * np.cos(k * np.pi / 6)), int(190 + 54 * np.sin(k * np.pi / 6)))
            cv2.line(image, (2 * x - end[0], 380 - end[1]), end, (120, 120, 120, 255), 2)
    corners = {
        "rear": (62, 190),
        "crank": (120, 192),
        "seat": (98, 98),
        "head": (172, 92),
        "front": (194, 190),
    }
    for a, b in (
        ("rear", "crank"), ("crank", "seat"), ("seat", "rear"), ("seat", "head"), ("crank", "head"),
        ("head", "front"),
    ):  # fmt: skip
        cv2.line(image, corners[a], corners[b], paint, 11)
    cv2.line(image, (168, 70), (190, 62), (30, 30, 30, 255), 10)
    cv2.line(image, (172, 92), (168, 66), paint, 9)
    cv2.ellipse(image, (96, 84), (22, 8), 0, 0, 360, (30, 25, 25, 255), -1)
    return image


def _motorcycle(rng) -> np.ndarray:
    image = np.zeros((TILE, TILE, 4), np.uint8)
    paint = [*rng.uniform(20, 220, 3).tolist(), 255]
    for x in (54, 204):
        cv2.circle(image, (x, 200), 42, (22, 22, 22, 255), 24)
        cv2.circle(image, (x, 200), 18, (130, 130, 135, 255), 6)
    cv2.fillPoly(image, [np.int32([[70, 150], [190, 120], [178, 205], [92, 215]])], (55, 55, 60, 255))
    cv2.fillPoly(image, [np.int32([[95, 105], [170, 88], [186, 135], [110, 152]])], paint)
    cv2.fillPoly(image, [np.int32([[18, 120], [100, 112], [108, 140], [40, 150]])], (30, 28, 28, 255))
    cv2.fillPoly(image, [np.int32([[20, 125], [62, 130], [70, 170], [44, 168]])], paint)
    cv2.line(image, (176, 92), (206, 200), (120, 120, 125, 255), 13)
    cv2.line(image, (150, 70), (186, 82), (25, 25, 25, 255), 11)
    cv2.circle(image, (192, 104), 17, (235, 230, 200, 255), -1)
    return image


# Side profiles of cars: (fraction of the length from the rear, height as a fraction of the car's height).
PROFILES = {
    "sedan": [(0, 0.22), (0, 0.62), (0.03, 0.68), (0.16, 0.72), (0.29, 0.99), (0.60, 0.99), (0.76, 0.68),
              (0.97, 0.56), (1, 0.48), (1, 0.22)],
    "hatch": [(0, 0.22), (0, 0.60), (0.02, 0.66), (0.06, 0.72), (0.13, 0.98), (0.60, 0.99), (0.78, 0.68),
              (0.97, 0.55), (1, 0.48), (1, 0.22)],
    "suv": [(0, 0.24), (0, 0.60), (0.01, 0.64), (0.03, 0.70), (0.09, 0.98), (0.66, 0.99), (0.80, 0.66),
            (0.98, 0.60), (1, 0.50), (1, 0.24)],
    "van": [(0, 0.18), (0, 0.55), (0.0, 0.60), (0.01, 0.66), (0.02, 0.98), (0.74, 0.99), (0.90, 0.62),
            (0.98, 0.50), (1, 0.42), (1, 0.18)],
}  # fmt: skip


def _car_side(rng, profile) -> np.ndarray:
    image = np.zeros((TILE, TILE, 4), np.uint8)
    outline = np.array([(x * 254 + 1, (1 - y) * 254 + 1) for x, y in profile])
    cv2.fillPoly(image, [outline.astype(np.int32)], (205, 205, 205, 255))
    x, y = outline[:, 0], outline[:, 1]
    roof, belt = y[5], y[3]
    glass = [(x[4] + 8, roof + 12), (x[5] - 4, roof + 12), (x[6] - 16, belt + 2), (x[3] + 16, belt + 2)]
    cv2.fillPoly(image, [np.int32(glass)], (48, 56, 64, 255))
    for split in (0.36, 0.58):
        cv2.line(image, (int(split * 256), int(roof)), (int(split * 256), int(belt) + 4), (190, 190, 190, 255), 6)
        cv2.line(image, (int(split * 256), int(belt)), (int(split * 256), 200), (120, 120, 120, 255), 2)
        cv2.line(image, (int(split * 256) - 22, int(belt) + 14), (int(split * 256) - 8, int(belt) + 14),
                 (90, 90, 90, 255), 4)  # fmt: skip
    cv2.rectangle(image, (3, 190), (252, 204), (110, 110, 110, 255), -1)
    cv2.rectangle(image, (2, int(y[1]) + 4), (12, int(y[1]) + 26), (190, 40, 35, 255), -1)
    cv2.rectangle(image, (240, int(y[8]) - 4), (253, int(y[8]) + 14), (235, 235, 215, 255), -1)
    for centre in (0.19, 0.80):  # wheels are ellipses in the tile, circles on a 4.3 m x 1.5 m side
        middle = (int(centre * 256), 200)
        cv2.ellipse(image, middle, (23, 60), 0, 0, 360, (28, 28, 28, 255), -1)
        cv2.ellipse(image, (middle[0], 203), (19, 52), 0, 0, 360, (20, 20, 20, 255), -1)
        cv2.ellipse(image, (middle[0], 203), (11, 31), 0, 0, 360, (150, 150, 155, 255), -1)
        cv2.ellipse(image, (middle[0], 203), (4, 10), 0, 0, 360, (70, 70, 72, 255), -1)
    return image


def _car_end(rng, rear: bool) -> np.ndarray:
    """Rear or front of a car below the windows; holes between the wheels."""
    image = np.zeros((TILE, TILE, 4), np.uint8)
    image[0:176] = (205, 205, 205, 255)
    image[110:114] = (120, 120, 120, 255)
    image[150:182, 4:252] = (70, 70, 72, 255)
    for x in (14, 200):
        image[170:256, x : x + 42] = (22, 22, 22, 255)
    if rear:
        for x in (6, 200):
            cv2.rectangle(image, (x, 40), (x + 50, 86), (185, 30, 28, 255), -1)
            cv2.rectangle(image, (x + 14, 66), (x + 36, 80), (235, 170, 60, 255), -1)
        cv2.rectangle(image, (88, 118), (168, 142), (235, 235, 225, 255), -1)
        for x in range(94, 160, 11):
            cv2.rectangle(image, (x, 123), (x + 6, 137), (40, 40, 40, 255), -1)
        image[6:12, 60:196] = (150, 150, 150, 255)
    else:
        for x in (6, 194):
            cv2.rectangle(image, (x, 34), (x + 56, 76), (240, 240, 225, 255), -1)
            cv2.circle(image, (x + 28, 55), 16, (180, 185, 190, 255), -1)
        image[44:98:8, 68:188] = (40, 40, 40, 255)
        image[48:98:8, 68:188] = (85, 85, 85, 255)
        cv2.rectangle(image, (88, 122), (168, 144), (235, 235, 225, 255), -1)
    return image


def _windscreen(rng) -> np.ndarray:
    image = np.full((TILE, TILE, 3), 190.0, np.float32)
    image[14:246, 14:242] = np.linspace(110, 40, 232)[:, None, None] * np.float32([0.86, 0.97, 1.08])
    for x in (50, 160):
        image[150:246, x : x + 48] *= 0.55
    return image


def _bus_side(rng, tram: bool) -> np.ndarray:
    image = _flat((205, 205, 205)) * (1 + 0.02 * fractal(rng, 4, 4)[..., None])
    image[40:132] = (44, 52, 60)
    for x in range(0, TILE, 32):
        image[40:132, x : x + 4] = (60, 60, 62)
    for x in (36, 180):
        image[34:226, x : x + 26] = (52, 60, 68)
        image[34:226, x + 12 : x + 14] = (160, 160, 160)
    image[150:166] = (235, 235, 235) if tram else (120, 120, 125)
    image[232:] = (40, 40, 42)
    for centre in (70, 214) if not tram else (50, 90, 180, 220):
        cv2.ellipse(image, (centre, 232), (12, 40), 0, 0, 360, (20, 20, 20), -1)
        cv2.ellipse(image, (centre, 236), (6, 20), 0, 0, 360, (130, 130, 135), -1)
    return image


def _bus_end(rng) -> np.ndarray:
    image = _flat((205, 205, 205))
    image[34:150, 12:244] = np.linspace(100, 40, 116)[:, None, None] * np.float32([0.9, 1, 1.05])
    image[8:30, 50:206] = (25, 25, 25)
    for x in range(70, 186, 14):
        image[12:26, x : x + 8] = (240, 170, 40)
    for x in (10, 206):
        image[180:200, x : x + 40] = (240, 240, 225)
        image[206:218, x : x + 40] = (190, 40, 35)
    image[222:] = (45, 45, 45)
    return image


def _cargo(rng) -> np.ndarray:
    wave = 1 + 0.05 * np.sign(np.sin(np.arange(TILE) * 2 * np.pi / 16))
    image = _flat((200, 200, 200)) * wave[None, :, None] * (1 + 0.05 * fractal(rng, 3, 6)[..., None])
    if rng.random() < 0.7:
        colour = rng.uniform(30, 230, 3)
        cv2.ellipse(image, (128, 120), (90, 50), 0, 0, 360, colour.tolist(), -1)
        for x in range(60, 200, 20):
            image[100:140, x : x + 11] = 255 - colour
    image[:6] *= 0.6
    image[-8:] *= 0.5
    return image


def _chassis(rng) -> np.ndarray:
    image = np.zeros((TILE, TILE, 4), np.uint8)
    image[0:110] = (52, 52, 55, 255)
    for x in (40, 82, 210):
        cv2.ellipse(image, (x, 150), (18, 104), 0, 0, 360, (24, 24, 24, 255), -1)
        cv2.ellipse(image, (x, 150), (8, 46), 0, 0, 360, (120, 120, 124, 255), -1)
    return image


def _sign(rng, kind: int) -> np.ndarray:
    image = np.zeros((TILE, TILE, 4), np.uint8)
    white, red, blue, yellow, black = (
        (240, 240, 240, 255), (200, 25, 30, 255), (30, 70, 170, 255), (245, 200, 40, 255), (25, 25, 25, 255),
    )  # fmt: skip
    if kind == 0:  # speed limit
        cv2.circle(image, (128, 128), 124, red, -1)
        cv2.circle(image, (128, 128), 94, white, -1)
        cv2.putText(image, str(rng.choice([30, 50, 70])), (56, 164), cv2.FONT_HERSHEY_SIMPLEX, 3.6, black, 18)
    elif kind == 1:  # warning
        cv2.fillPoly(image, [np.int32([[128, 4], [252, 232], [4, 232]])], red)
        cv2.fillPoly(image, [np.int32([[128, 62], [204, 204], [52, 204]])], white)
        cv2.rectangle(image, (118, 104), (138, 164), black, -1)
        cv2.circle(image, (128, 184), 11, black, -1)
    elif kind == 2:  # crossing
        cv2.rectangle(image, (6, 6), (249, 249), blue, -1)
        cv2.fillPoly(image, [np.int32([[128, 30], [222, 214], [34, 214]])], white)
        cv2.line(image, (128, 90), (112, 190), black, 20)
        cv2.line(image, (128, 130), (156, 190), black, 18)
    elif kind == 3:  # priority
        cv2.fillPoly(image, [np.int32([[128, 4], [252, 128], [128, 252], [4, 128]])], white)
        cv2.fillPoly(image, [np.int32([[128, 48], [208, 128], [128, 208], [48, 128]])], yellow)
    elif kind == 4:  # stop
        angle = np.pi / 8 + np.arange(8) * np.pi / 4
        cv2.fillPoly(image, [np.int32(128 + 124 * np.stack([np.cos(angle), np.sin(angle)], 1))], red)
        cv2.putText(image, "STOP", (34, 152), cv2.FONT_HERSHEY_SIMPLEX, 2.2, white, 16)
    else:  # direction board
        image[:] = blue
        image[6:250, 6:250] = white
        image[14:242, 14:242] = blue
        for y in (50, 110, 170):
            for x in range(30, 200, 17):
                if rng.random() < 0.8:
                    cv2.rectangle(image, (x, y), (x + 10, y + 30), white, -1)
        cv2.arrowedLine(image, (222, 220), (222, 50), white, 14, tipLength=0.3)
    return image


def _traffic_light(rng, lit: int) -> np.ndarray:
    image = np.full((TILE, TILE, 3), 28, np.uint8)
    image[8:248, 8:248] = 42
    for k, colour in enumerate(((255, 50, 40), (255, 190, 40), (60, 255, 120))):
        shown = colour if k == lit else tuple(c // 5 for c in colour)
        cv2.ellipse(image, (128, 44 + 84 * k), (78, 34), 0, 0, 360, shown, -1)
    return image


def _fence(rng, kind: int) -> np.ndarray:
    image = np.zeros((TILE, TILE, 4), np.uint8)
    if kind == 0:  # wire mesh
        for k in range(-TILE, TILE, 16):
            cv2.line(image, (k, 0), (k + TILE, TILE), (120, 125, 125, 255), 3)
            cv2.line(image, (k + TILE, 0), (k, TILE), (120, 125, 125, 255), 3)
        image[:, 0:12] = image[0:8] = (95, 100, 100, 255)
    elif kind == 1:  # iron bars
        colour = (45, 50, 48, 255)
        for x in range(6, TILE, 21):
            image[12:, x : x + 8] = colour
        image[24:36] = image[210:222] = colour
    else:  # boards
        for x in range(0, TILE, 32):
            shade = rng.uniform(0.75, 1.15)
            image[rng.integers(2, 10) :, x : x + 28] = [*(np.float32([140, 105, 72]) * shade), 255]
        image[60:76] = image[190:206] = (105, 78, 52, 255)
    return image


def _rail(rng) -> np.ndarray:
    image = np.zeros((TILE, TILE, 4), np.uint8)
    profile = 165 + 55 * np.sin(np.linspace(0, 3 * np.pi, 110))
    image[10:120, :, :3] = profile[:, None, None]
    image[10:120, :, 3] = 255
    image[100:, 118:140] = (110, 112, 112, 255)
    return image


def _skyline(rng, buildings: bool) -> np.ndarray:
    """A distant band: roofs or tree tops against the sky; tiles horizontally."""
    x = np.arange(TILE)
    if buildings:
        image = _facade(rng, "concrete")
        image = cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        image = np.tile(image, (4, 4, 1))
        top = np.zeros(TILE)
        at = 0
        while at < TILE:
            width = int(rng.integers(14, 40))
            top[at : at + width] = rng.uniform(20, 170)
            image[:, at : at + width] *= rng.uniform(0.7, 1.2)
            at += width
    else:
        image = _leaves(rng, _between(rng, [55, 75, 40], [85, 105, 60]))
        top = 110 + 32 * fractal(rng, 6, 5)[0]
        top = np.clip(top, 10, 220)
    alpha = (np.arange(TILE)[:, None] >= top[None, x]) * 255.0
    return np.dstack([image, alpha])


def _draw(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x7E87]))
    tiles: dict[str, np.ndarray] = {}
    for style, count in (("plaster", 6), ("brick", 4), ("concrete", 3), ("glass", 3)):
        tiles |= {f"{style}{k}": _facade(rng, style) for k in range(count)}
    tiles |= {f"shop{k}": _shop(rng) for k in range(5)}
    tiles |= {f"house{k}": _house(rng) for k in range(5)}
    tiles |= {f"hall{k}": _hall(rng) for k in range(3)}
    for kind, count in (("asphalt", 3), ("paving", 2), ("cobble", 2), ("grass", 2), ("gravel", 1)):
        tiles |= {f"{kind}{k}": _ground(rng, kind) for k in range(count)}
    tiles |= {f"tree{k}": _tree(rng, conifer=k == 4) for k in range(5)}
    tiles |= {f"leaves{k}": _leaves(rng, _between(rng, [50, 75, 30], [90, 115, 50])) for k in range(2)}
    tiles |= {f"person{k}": _person(rng) for k in range(10)}
    tiles |= {f"rider{k}": _person(rng, seated=True) for k in range(3)}
    tiles |= {f"bicycle{k}": _bicycle(rng) for k in range(2)}
    tiles |= {f"motorcycle{k}": _motorcycle(rng) for k in range(2)}
    tiles |= {f"side_{name}": _car_side(rng, profile) for name, profile in PROFILES.items()}
    tiles |= {
        "car_rear": _car_end(rng, True),
        "car_front": _car_end(rng, False),
        "windscreen": _windscreen(rng),
    }
    tiles |= {"bus_side": _bus_side(rng, False), "tram_side": _bus_side(rng, True), "bus_end": _bus_end(rng)}
    tiles |= {f"cargo{k}": _cargo(rng) for k in range(2)} | {"chassis": _chassis(rng)}
    tiles |= {f"sign{k}": _sign(rng, k) for k in range(6)}
    tiles |= {f"light{k}": _traffic_light(rng, k) for k in range(3)}
    tiles |= {f"fence{k}": _fence(rng, k) for k in range(3)} | {"rail": _rail(rng)}
    tiles |= {"far_town": _skyline(rng, True), "far_trees": _skyline(rng, False)}
    grey = _flat((200, 200, 200)) * (1 + 0.03 * fractal(rng, 4, 6)[..., None])
    tiles |= {"plain": grey, "metal": grey * 0.55 * (1 + 0.1 * fractal(rng, 16, 4)[..., None])}
    tiles["brickwall"] = _bricks(rng, _flat((140, 92, 75)), 32, 12, 1.25, 0.1) * (
        1 + 0.07 * fractal(rng, 4, 6)[..., None]
    )
    tiles["wall"] = _bricks(rng, _flat((155, 152, 145)), 4, 2, 0.7, 0.04) * (1 + 0.08 * fractal(rng, 3, 7)[..., None])
    tiles["roof"] = _bricks(rng, _flat((135, 75, 58)), 32, 20, 0.65, 0.1) * (1 + 0.08 * fractal(rng, 4, 6)[..., None])
    return tiles


def build_bank(seed: int) -> Bank:
    """Draws every tile; the same bank for the same seed (a non-negative int)."""
    tiles = _draw(seed)
    rows = -(-len(tiles) // COLUMNS)
    size = np.array([TILE >> level for level in range(LEVELS)])
    cell = size + 2 * PAD
    top = np.concatenate([[0], np.cumsum(cell * rows)])
    atlas = np.zeros((int(top[-1]), int(cell[0]) * COLUMNS, 4), np.uint8)
    alpha: dict[int, list[np.ndarray]] = {}
    for number, tile in enumerate(tiles.values()):
        tile = np.clip(tile, 0, 255).astype(np.float32)
        holes = tile.shape[2] == 4
        if holes:
            # Colour behind the holes would bleed into coarse mip levels: spread the opaque colour outwards.
            solid = tile[..., 3:] / 255
            blurred = cv2.GaussianBlur(tile[..., :3] * solid, (0, 0), 12)
            weight = cv2.GaussianBlur(solid, (0, 0), 12)[..., None] + 1e-3
            tile[..., :3] = np.where(solid > 0.5, tile[..., :3], blurred / weight)
            alpha[number] = []
        else:
            tile = np.dstack([tile, np.full((TILE, TILE), 255, np.float32)])
        row, column = divmod(number, COLUMNS)
        for level in range(LEVELS):
            if level:
                tile = cv2.resize(tile, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            if holes:
                if level == 0:
                    covered = float((tile[..., 3] > 127).mean())
                # the same share is covered at every level, or meshes and twigs would vanish far away
                limit = min(float(np.quantile(tile[..., 3], 1 - covered)), 127.0)
                alpha[number].append(tile[..., 3] >= max(limit, 1.0))
            y, x = int(top[level] + row * cell[level]), int(column * cell[level])
            padded = np.pad(tile, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="wrap")
            atlas[y : y + cell[level], x : x + cell[level]] = np.rint(padded)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x7E88]))
    return Bank(
        atlas=atlas,
        index={name: number for number, name in enumerate(tiles)},
        size=size,
        cell=cell,
        top=top[:-1],
        alpha=alpha,
        noise=fractal(rng, 16, 5, 0.75),
        blotch=fractal(rng, 4, 5, 0.6),
    )
