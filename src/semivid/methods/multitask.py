"""Multi-task training of Three Ways: segmentation and depth teach each other (section 10, experiment 212).

One network learns depth from video, on labelled and unlabelled frames alike, and segmentation from labels and, as in
`semivid.methods.pseudo_label`, from a teacher's labels on mixed frames. What it takes for near in the unlabelled
frames says how they are mixed: the disparity of the same step, so no precomputed one is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semivid.data.neighbour_samples import NEIGHBOURS
from semivid.methods.mixing import normalise_per_image
from semivid.methods.pseudo_label import PseudoLabelMethod
from semivid.models.multitask import MultitaskNet, Outputs
from semivid.models.multitask_losses import multitask_losses
from semivid.pipeline.params import MultitaskMethod, Train
from semivid.training.rng import torch_seed
from semivid.training.runtime import Runtime, as_float

Frames = dict[int, Tensor]


class MultitaskTraining(PseudoLabelMethod):
    """Four losses in three passes of the student; one update per step.

    Streams: ``labelled`` and ``unlabelled``, samples of `semivid.data.neighbour_samples.NeighbourSamples`: {image,
    neighbours, k}; the labelled ones with {label}, and with `ground_truth` the unlabelled ones with {label, labelled}.
    The teacher has encoder and decoder of the student, but no pose network. The weights of a run, and what is
    evaluated, are the student's.
    """

    student: MultitaskNet
    options: MultitaskMethod

    def __init__(
        self, student: MultitaskNet, options: MultitaskMethod, train: Train, runtime: Runtime, seed: int
    ) -> None:
        """`student` as it is to start: filled from a depth model by `semivid.models.transfer.transfer_depth`.

        Raises UserError for a batch of one frame, which has no partner to be mixed with.
        """
        groups = student.parameter_groups(options.encoder_lr, options.lr, options.pose_lr)
        super().__init__(student, options, train, runtime, seed, student.without_pose(), groups)

    def training_step(self, batch: dict[str, dict[str, Tensor]], step: int) -> dict[str, Tensor]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        self.optimizer.zero_grad(set_to_none=True)
        taught, _ = self.clean_losses(labelled, labelled["label"], self._noise("labelled", step))
        # The reference goes back twice, for depth and for the labels; the gradient of the sum costs half of that.
        (taught["depth"] + taught["segmentation"]).backward()

        seen, disparity = self.clean_losses(unlabelled, None, self._noise("unlabelled", step))
        seen["depth"].backward()

        loss, weight = self.pseudo_label_loss(unlabelled | {"disparity": disparity}, step)
        loss.backward()

        self.update(step)
        return {
            "cross_entropy": taught["segmentation"].detach(),
            "depth": taught["depth"].detach(),
            "unlabelled_depth": seen["depth"].detach(),
            "pseudo_label": loss.detach(),
            "confident": weight,
        }

    def clean_losses(
        self, batch: dict[str, Tensor], labels: Tensor | None, noise: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The weighted losses of a pass over the frames as they are, and the disparity that frames are mixed by.

        Args:
            batch: {image, neighbours, k}.
            labels: ``(B, H, W)``, or None for depth alone.
            noise: of the auto-mask.

        Returns:
            {depth, segmentation} with their gradients; the scale-0 disparity float ``(B, H, W)``, large = near, scaled
            to [0, 1] within each crop (section 9) and without a gradient.
        """
        frames = {0: as_float(batch["image"]), **self._neighbours(batch)}
        output = self._outputs(frames)
        losses = multitask_losses(output, frames, batch["k"], labels, generator=noise, **self.options.losses())
        return losses, normalise_per_image(output.disp[0])

    def mixed_logits(self, seen: Tensor, unlabelled: dict[str, Tensor]) -> Tensor:
        """The student's final logits of the mix; the auxiliary classifier does not learn from it.

        mixed_pass full, as in the reference: the depth decoder and the pose network see the mix too, that with its
        clean neighbours. No loss reads them, so the weights are those of mixed_pass segmentation; only the running
        statistics of their batch normalisation differ.
        """
        if self.options.mixed_pass == "segmentation":
            return self._logits(self.student, seen)
        output = self._outputs({0: seen})
        with torch.no_grad(), self.runtime.autocast():
            for offset, neighbour in self._neighbours(unlabelled).items():
                self.student.pose_net.transform(seen, neighbour, offset)
        return output.logits

    def _outputs(self, frames: Frames) -> Outputs:
        with self.runtime.autocast():
            return self.student.outputs(frames[0], {o: f for o, f in frames.items() if o != 0})

    def _noise(self, stream: str, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(torch_seed(self.seed, "auto-mask noise", stream, step))

    @staticmethod
    def _neighbours(batch: dict[str, Tensor]) -> Frames:
        return {o: as_float(f) for o, f in zip(NEIGHBOURS, batch["neighbours"].unbind(1), strict=True)}


def build(
    student: MultitaskNet, options: MultitaskMethod, train: Train, runtime: Runtime, seed: int
) -> MultitaskTraining:
    """The method from its parameters; `seed` is that of the run."""
    return MultitaskTraining(student, options, train, runtime, seed)
