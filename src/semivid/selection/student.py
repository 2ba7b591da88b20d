"""Growing a labelled set with a student that is trained afresh after each step (Three Ways section 11)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from semivid.data.index import VOID, Frame
from semivid.data.store import FrameStore
from semivid.data.streams import LabelledSamples, Sample, Stream, Window
from semivid.depth.losses import berhu
from semivid.depth.networks import DepthModel, build_depth_model
from semivid.errors import UserError
from semivid.evaluation.inference import whole_frames
from semivid.methods.base import Method
from semivid.models.encoder_decoder import build_segmentation_net
from semivid.pipeline.artifacts import write_json
from semivid.pipeline.params import SelectStudent
from semivid.selection.entropy import entropy_score
from semivid.selection.uncertainty import depth_error
from semivid.training.loop import finish, fit
from semivid.training.losses import cross_entropy
from semivid.training.optim import build_optimizer, rate_factor
from semivid.training.rng import torch_seed
from semivid.training.runtime import Runtime, as_float

log = logging.getLogger("semivid")
KEEP_ROWS = 0.9  # rows below belong to the own car (section 11)
SCORE_BATCH = 4


class Student(Method):
    """A network trained from scratch on the frames chosen so far: Adam, poly schedule, no clipping."""

    def __init__(self, network: torch.nn.Module, options: SelectStudent, iterations: int, runtime: Runtime) -> None:
        super().__init__()
        self.network, self.iterations, self.runtime = network, iterations, runtime
        self.optimizer = build_optimizer("adam", [{"params": network.parameters(), "lr": options.lr}], 0)
        self.optimizers = [self.optimizer]

    def rate(self, step: int) -> float:
        return rate_factor("poly", step, self.iterations)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError

    def score(self, frames: Sequence[Frame], images: torch.Tensor, store: FrameStore) -> list[float]:
        """How much each frame would teach; large = choose."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, dict[str, torch.Tensor]], step: int) -> dict[str, torch.Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch["student"])
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}


class DepthStudent(Student):
    """Learns the teacher's disparity (berHu); a frame's score is its remaining depth error. Reads no label."""

    network: DepthModel

    @staticmethod
    def build(options: SelectStudent, num_classes: int) -> torch.nn.Module:
        return build_depth_model(**options.backbone(), pose_encoder=None)

    @staticmethod
    def samples(store: FrameStore, options: SelectStudent) -> Callable[[Frame, np.random.Generator], Sample]:
        return _DisparitySamples(store, options.crop)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        disparity = self.network(as_float(batch["image"]), scales=(0,))["disp"][0]
        return berhu(disparity, batch["disparity"], keep_rows=KEEP_ROWS)

    def score(self, frames: Sequence[Frame], images: torch.Tensor, store: FrameStore) -> list[float]:
        student = self.network(images, scales=(0,))["disp"][0][:, 0].cpu().numpy()
        return [depth_error(s, store.disparity(f)) for s, f in zip(student, frames, strict=True)]


class EntropyStudent(Student):
    """Learns the labels of the frames chosen so far; a frame's score is its mean entropy (active learning)."""

    @staticmethod
    def build(options: SelectStudent, num_classes: int) -> torch.nn.Module:
        head = {"layers": (8,), "output_stride": 2, "head_inter": True}
        return build_segmentation_net(num_classes, **options.backbone(), **head)

    @staticmethod
    def samples(store: FrameStore, options: SelectStudent) -> Callable[[Frame, np.random.Generator], Sample]:
        return LabelledSamples(store, options.crop, flip=0.5)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return cross_entropy(self.network(as_float(batch["image"])), batch["label"], ignore=VOID)

    def score(self, frames: Sequence[Frame], images: torch.Tensor, store: FrameStore) -> list[float]:
        return entropy_score(self.network(images).softmax(1)).tolist()


class _DisparitySamples:
    """Samples {image uint8 (3, H, W), disparity float32 (1, H, W)} in a random window."""

    def __init__(self, store: FrameStore, crop: tuple[int, int]) -> None:
        self.store, self.crop = store, crop

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Sample:
        image, disparity = self.store.image(frame), self.store.disparity(frame)
        window = Window(image.shape[1::-1], self.crop, rng, flip=0.5)
        return {
            "image": np.ascontiguousarray(window(image).transpose(2, 0, 1)),
            "disparity": np.ascontiguousarray(window(disparity)[None]),
        }


def grow(
    kind: type[Student],
    options: SelectStudent,
    frames: Sequence[Frame],
    initial: Sequence[int],
    choose: Callable[[np.ndarray, list[int], int], list[int]],
    *,
    store: FrameStore,
    num_classes: int,
    seed: int,
    work: Path,
    key: str,
) -> list[int]:
    """Grow `initial` to the sizes `options.steps`; returns positions in `frames` in order of choice.

    frames     the candidates, in ascending order of name
    initial    the first ``options.steps[0]`` positions
    choose     (scores float (N,), chosen positions, how many to add) -> the added positions
    num_classes, seed, work, key: for the student's head, draws, and files to resume from
    Each step trains a student from scratch on the chosen frames alone (generators seeded anew), scores all other
    frames with it, and adds. Raises UserError if there are fewer frames than the largest step.
    """
    if options.steps[-1] > len(frames):
        raise UserError(
            f"params.yaml: select steps end at {options.steps[-1]}, but there are {len(frames)} candidates; lower them"
        )
    runtime = Runtime(options.threads)
    saved = work / "chosen.json"
    chosen = list(initial)
    if saved.exists() and (state := json.loads(saved.read_text()))["key"] == key:
        chosen = state["chosen"]
    for size, iterations in zip(options.steps[1:], options.iterations, strict=True):
        if len(chosen) >= size:
            continue
        torch.manual_seed(torch_seed(seed, "student", len(chosen)))
        student = kind(kind.build(options, num_classes), options, iterations, runtime)
        samples = kind.samples(store, options)
        stream = Stream("student", [frames[i] for i in sorted(chosen)], options.batch_size, seed, samples)
        fit(
            student,
            [stream],
            iterations=iterations,
            seed=seed,
            runtime=runtime,
            work=work,
            key=f"{key}:{len(chosen)}",
            title=f"student on {len(chosen)}",
        )
        rest = sorted(set(range(len(frames))) - set(chosen))
        scores = np.full(len(frames), np.nan)  # chosen frames have none
        student.eval()
        with torch.no_grad():
            batches = whole_frames([frames[i] for i in rest], store, SCORE_BATCH, runtime)
            scores[rest] = [s for chunk, images in batches for s in student.score(chunk, images, store)]
        added = choose(scores, chosen, size - len(chosen))
        log.info("%d frames chosen, scores of the rest %.4g to %.4g", size, scores[rest].min(), scores[rest].max())
        chosen += added
        finish(work)
        write_json(saved, {"key": key, "chosen": chosen})
    return chosen
