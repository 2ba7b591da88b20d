"""Mean teacher with pseudo labels on mixed frames: ClassMix, DepthMix and relatives (Three Ways sections 8 and 9).

A teacher, the moving average of the student, labels the unlabelled frames. Pairs of them are mixed, images and labels
alike; the student sees the mix strongly augmented and learns the labels. The masks differ:

none       no mixing: the mean teacher with strong augmentation
class      ClassMix: half of the classes of an image, pasted onto the next
depthmix   DepthMix: what is nearer in either image shows, so that occlusions stay plausible
depth, depthhist   what is nearer than a random distance, pasted onto the next image
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from semivid.data.strong import strong_augment
from semivid.errors import UserError
from semivid.methods.base import Method
from semivid.methods.mixing import confident_share, draw_mask, mix, pseudo_labels, with_ground_truth
from semivid.pipeline.params import PseudoLabel, Train
from semivid.training.distributed import gathered, own, rank, sum_gradients, summed
from semivid.training.ema import Teacher
from semivid.training.losses import cross_entropy
from semivid.training.optim import build_optimizer, clip_gradients, rate_factor
from semivid.training.rng import generator
from semivid.training.runtime import Runtime, as_float


class PseudoLabelMethod(Method):
    """Cross entropy on labelled frames and on mixed, pseudo-labelled ones; one update per step.

    Streams: ``labelled`` {image uint8 (B, 3, H, W), label uint8 (B, H, W), 255 = void}; ``unlabelled`` {image} and,
    for the masks that read depth, {disparity float32 (B, H, W), 0..1 per frame, large = near} and, with
    `ground_truth`, {label, labelled bool (B,)} (`semivid.data.mix_samples.MixSamples`).
    The weights of a run, and what is evaluated, are the student's.
    """

    in_parallel = True

    def __init__(
        self,
        student: nn.Module,
        options: PseudoLabel,
        train: Train,
        runtime: Runtime,
        seed: int,
        averaged: nn.Module | None = None,
        groups: list[dict] | None = None,
    ) -> None:
        """`student` as it is to start, transferred weights included: the teacher begins as its copy.

        averaged: the part of the student that makes labels, where that is not all of it; the teacher is a copy of
        this. groups: of the optimiser, where the student has others than encoder and the rest.
        Raises UserError for a batch of one frame, which has no partner to be mixed with.
        """
        super().__init__()
        if options.mask != "none" and train.batch_size == 1:
            raise UserError(
                f"params.yaml: `train.batch_size` 1 leaves mask {options.mask} nothing to mix; raise it to 2"
            )
        self.student, self.teacher = student, Teacher(student if averaged is None else averaged)
        self.options, self.iterations, self.runtime, self.seed = options, train.iterations, runtime, seed
        groups = groups or student.parameter_groups(options.encoder_lr, options.lr)
        self.optimizer = build_optimizer(options.optimizer, groups, options.weight_decay)
        self.optimizers = [self.optimizer]

    def rate(self, step: int) -> float:
        return rate_factor(self.options.schedule, step, self.iterations, self.options.milestones)

    def training_step(self, batch: dict[str, dict[str, Tensor]], step: int) -> dict[str, Tensor]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        self.optimizer.zero_grad(set_to_none=True)
        logits = self._logits(self.student, as_float(labelled["image"]))
        supervised = cross_entropy(logits, labelled["label"])
        supervised.backward()  # two backward passes, so that only one graph is held at a time; gradients add up
        del logits

        loss, weight = self.pseudo_label_loss(unlabelled, step)
        loss.backward()

        self.update(step)
        return {
            "cross_entropy": summed(supervised.detach()),
            "pseudo_label": summed(loss.detach()),
            "confident": weight,
        }

    def pseudo_label_loss(self, unlabelled: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
        """(loss with its gradient, confident share) of the student on the mixed and augmented batch; scalars."""
        o = self.options
        mixed, labels, weight = self.mixed(unlabelled, step)
        first = rank() * len(mixed)
        seen = strong_augment(as_float(mixed), self.seed, step, o.jitter, o.jitter_strength, o.blur, first)
        # One weight for the whole batch, not a threshold per pixel: the confident share scales the loss of all pixels.
        return o.consistency_weight * cross_entropy(self.mixed_logits(seen, unlabelled), labels, weight), weight

    def mixed_logits(self, seen: Tensor, unlabelled: dict[str, Tensor]) -> Tensor:
        """The student's logits float32 (B, C, H, W) of mixed frames as it sees them, float (B, 3, H, W)."""
        return self._logits(self.student, seen)

    def update(self, step: int) -> None:
        """Clip the gradients, step, and let the teacher follow."""
        sum_gradients(self.student)
        clip_gradients(self.student, self.options.clip)
        self.optimizer.step()
        self.teacher.update(self.student, step + 1, self.options.ema_decay)

    @torch.no_grad()
    def mixed(self, unlabelled: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(images uint8 (B, 3, H, W), labels int64 (B, H, W), confident share float scalar) of the mixed batch.

        With several processes, images and labels are this one's slice; the share is that of the whole batch.
        The disparity may be that of a network in the same step: `semivid.methods.mixing.normalise_per_image`.
        """
        o = self.options
        logits = self._logits(self.teacher, as_float(unlabelled["image"]))
        labels, confidence = pseudo_labels(logits)
        if o.ground_truth:
            labels, confidence = with_ground_truth(labels, confidence, unlabelled["label"], unlabelled["labelled"])
        # Partners may be another process's: the whole batch is mixed, and a slice of it kept.
        image, labels, confidence = gathered(unlabelled["image"]), gathered(labels), gathered(confidence)
        disparity = gathered(unlabelled.get("disparity"))
        rng = generator(self.seed, "mask", step)
        mask = draw_mask(o.mask, labels, logits.shape[1], disparity, rng, o.margin, o.foreground)
        # The share is that of the mixed confidences: a pixel that is covered does not count.
        return own(mix(image, mask)), own(mix(labels, mask)), confident_share(mix(confidence, mask), o.confidence)

    def predict(self, image: Tensor) -> Tensor:
        return self._logits(self.student, image)

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        with self.runtime.autocast():
            return network(images).float()


def build(student: nn.Module, options: PseudoLabel, train: Train, runtime: Runtime, seed: int) -> PseudoLabelMethod:
    """The method from its parameters; `seed` is that of the run."""
    return PseudoLabelMethod(student, options, train, runtime, seed)
