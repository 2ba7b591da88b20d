"""Renders a data set of street snippets into the Cityscapes folder layout, with the truth beside it."""

from __future__ import annotations

import json
import multiprocessing
import signal
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from semivid.data.street.render import Renderer
from semivid.data.street.scene import Scene, draw_lots, make_scene
from semivid.data.street.textures import Bank, build_bank
from semivid.errors import UserError
from semivid.pipeline.process import die_with_parent

FOLDERS = ("leftImg8bit_sequence", "leftImg8bit", "gtFine", "camera", "truth")
# Snippets of both splits may lie in the same city, but a frame's name must be unique, as in Cityscapes.
FIRST_SNIPPET = {"train": 0, "val": 500_000}
FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]

_bank: Bank | None = None  # one per process: every snippet of a data set shares the textures


def render_dataset(
    out: Path,
    *,
    seed: int,
    size: tuple[int, int] = (512, 256),
    snippets: dict[str, int],
    frames_per_snippet: int = 5,
    annotated: Sequence[int] = (1, 3),
    fps: float = 7.0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Renders `snippets` = {split: number of snippets} short videos under `out`.

    size = (width, height) in pixels, each at least 64. fps > 0: frames per second of the video. annotated:
    frame positions 0..frames_per_snippet-1 that get labels. workers: processes (1 = this one).
    progress(done, total) is called after each snippet.

    With {name} = {city}_{snippet:06d}_{frame:06d} it writes, below {split}/{city}/ of each folder:
      leftImg8bit_sequence/..{name}_leftImg8bit.png     every frame, 8-bit RGB
      leftImg8bit/..{name}_leftImg8bit.png              annotated frames, the same bytes
      gtFine/..{name}_gtFine_labelIds.png               annotated frames, official ids 0..33 (see `scene`)
      camera/..{name}_camera.json                       intrinsic {fx, fy, u0, v0, width, height} in pixels,
                                                        pixel centres at whole numbers; extrinsic
      truth/depth/..{name}_depth.png                    see truth.read_depth; every frame
      truth/flow/..{name}_flow.png                      see truth.read_flow; every frame but a snippet's last
    and truth/poses/{split}/{city}_{snippet:06d}.json, see truth.read_poses.

    A pure function of its arguments: snippet i of a split is drawn from SeedSequence([seed, crc32(split), i])
    (and `draw_lots`) and the textures from the seed alone, so `workers` changes no byte and fewer snippets
    are a prefix of more. `workers` > 1 starts processes with "spawn": a calling script needs
    `if __name__ == "__main__":`.

    Raises UserError for arguments out of range and where `out` already holds such a data set.
    """
    out = Path(out)
    _check(out, seed, size, snippets, frames_per_snippet, annotated, fps, workers)
    size = (int(size[0]), int(size[1]))
    jobs = [
        (out, seed, size, split, number, frames_per_snippet, tuple(sorted(set(annotated))), float(fps))
        for split, count in snippets.items()
        for number in range(count)
    ]
    out.mkdir(parents=True, exist_ok=True)
    if workers == 1 or len(jobs) < 2:
        threads = cv2.getNumThreads()
        try:
            _start(seed)
            for done, job in enumerate(jobs, 1):
                _render_snippet(job)
                if progress:
                    progress(done, len(jobs))
        finally:
            cv2.setNumThreads(threads)
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs)), _start_worker, (seed,)) as pool:
        for done, _ in enumerate(pool.imap_unordered(_render_snippet, jobs), 1):
            if progress:
                progress(done, len(jobs))


def _check(out, seed, size, snippets, frames, annotated, fps, workers):
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed is {seed!r}: street needs a whole number >= 0")
    if len(size) != 2 or min(size) < 64 or max(size) > 8192:
        raise UserError(f"size is {tuple(size)}: street needs (width, height) of 64 to 8192 pixels")
    if not snippets or min(snippets.values()) < 0 or sum(snippets.values()) < 1:
        raise UserError(f"snippets is {snippets}: street needs at least one snippet, e.g. {{'train': 96, 'val': 24}}")
    if frames < 1 or not all(0 <= k < frames for k in annotated):
        raise UserError(
            f"annotated is {list(annotated)}: give positions from 0 to frames_per_snippet - 1 = {frames - 1}"
        )
    if not fps > 0:
        raise UserError(f"fps is {fps}: street needs a rate above 0, e.g. 7")
    if workers < 1:
        raise UserError(f"workers is {workers}: street needs at least 1")
    held = [name for name in FOLDERS if (out / name).exists()]
    if held:
        raise UserError(f"{out} already holds {', '.join(held)}: remove the folder or choose another one")


def _start(seed: int) -> None:
    """Prepares a process: one thread (the cores are shared by the workers) and the textures."""
    global _bank
    cv2.setNumThreads(1)
    _bank = build_bank(seed)


def _start_worker(seed: int) -> None:
    """`_start` in a process of its own, which must not go on writing when the stage is killed."""
    die_with_parent(signal.SIGKILL, multiprocessing.parent_process().pid)
    _start(seed)


def _render_snippet(job) -> None:
    out, seed, size, split, number, frames, annotated, fps = job
    key = zlib.crc32(split.encode())
    rng = np.random.default_rng(np.random.SeedSequence([seed, key, number]))
    scene = make_scene(rng, draw_lots(seed, key, number), _bank, size=size, frames=frames, fps=fps)
    renderer = Renderer(scene, _bank)
    below = f"{split}/{scene.city}"
    for folder in (*FOLDERS[:4], "truth/depth", "truth/flow"):
        (out / folder / below).mkdir(parents=True, exist_ok=True)
    snippet = f"{scene.city}_{FIRST_SNIPPET.get(split, 0) + number:06d}"
    names = [f"{snippet}_{frame:06d}" for frame in range(frames)]
    after = renderer.visible(0)
    for frame, name in enumerate(names):
        now, after = after, renderer.visible(frame + 1) if frame + 1 < frames else None
        png = _encode(renderer.image(now, frame, rng)[..., ::-1])
        (out / "leftImg8bit_sequence" / below / f"{name}_leftImg8bit.png").write_bytes(png)
        if frame in annotated:
            (out / "leftImg8bit" / below / f"{name}_leftImg8bit.png").write_bytes(png)
            label = _encode(renderer.labels(now))
            (out / "gtFine" / below / f"{name}_gtFine_labelIds.png").write_bytes(label)
        text = json.dumps(_camera(scene, frame), indent=1) + "\n"
        (out / "camera" / below / f"{name}_camera.json").write_text(text)
        (out / "truth/depth" / below / f"{name}_depth.png").write_bytes(_encode(_depth(now.inverse)))
        if after is not None:
            flow, valid = renderer.flow(now, frame, after)
            (out / "truth/flow" / below / f"{name}_flow.png").write_bytes(_encode(_flow(flow, valid)))
    poses = out / "truth" / "poses" / split
    poses.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {
            "city": scene.city,
            "weather": scene.light["weather"],
            "fps": fps,
            "speed": scene.speed,
            "frames": [
                {"name": name, "camera_to_world": scene.camera_pose[frame].tolist()} for frame, name in enumerate(names)
            ],
        },
        indent=1,
    )
    (poses / f"{snippet}.json").write_text(text + "\n")


def _encode(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image, FAST)[1].tobytes()


def _camera(scene: Scene, frame: int) -> dict:
    """Cityscapes' camera file; the vehicle's frame is x forward, y left, z up, on the ground."""
    turn = scene.camera_pose[frame][:3, :3]
    forward = turn[:, 2]
    heading = np.arctan2(forward[0], forward[2]) - scene.curvature * scene.speed * frame / scene.fps
    k = scene.matrix
    return {
        "extrinsic": {
            "baseline": 0.0,  # one camera only
            "pitch": float(np.arcsin(forward[1])),
            "roll": float(np.arctan2(turn[1, 0], turn[1, 1])),
            "yaw": float(-heading),
            "x": 0.0,
            "y": 0.0,
            "z": float(-scene.camera_pose[frame][1, 3]),
        },
        "intrinsic": {
            "fx": float(k[0, 0]),
            "fy": float(k[1, 1]),
            "u0": float(k[0, 2]),
            "v0": float(k[1, 2]),
            "width": scene.size[0],
            "height": scene.size[1],
        },
    }


def _depth(inverse: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        value = np.rint(256 / inverse)
    return np.where(value < 65536, value, 0).astype(np.uint16)


def _flow(flow: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """KITTI's 16-bit coding, in OpenCV's channel order (valid, v, u)."""
    code = np.rint(flow * 64) + 32768
    valid = valid & (code >= 0).all(-1) & (code <= 65535).all(-1)
    code = np.where(valid[..., None], code, 0)
    return np.dstack([valid, code[..., 1], code[..., 0]]).astype(np.uint16)
