"""What a DeepLabV3+ asks of its trunk, whichever family it is of."""

from typing import NamedTuple

from torch import nn


class Trunk(NamedTuple):
    """A classification network without its head, as stages that are run one after the other.

    Attributes:
        stages: modules by the names that published files know them by, in the order in which they run.
        fine: the stage whose map the decoder's skip takes.
        fine_channels: channels of that map.
        channels: channels of the last stage's map.
    """

    stages: dict[str, nn.Module]
    fine: str
    fine_channels: int
    channels: int
