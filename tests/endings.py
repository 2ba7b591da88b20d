"""How one of two processes may end, in a module of its own that is quickly imported by the second."""

import os
import signal
import time

import torch

from semivid.errors import UserError
from semivid.training.distributed import leads, summed


def meets_bad_input():
    summed(torch.ones(1))
    if not leads():
        raise UserError("frame.png: damaged; replace it")
    summed(torch.ones(1))


def is_killed():
    if not leads():
        os.kill(os.getpid(), signal.SIGKILL)
    summed(torch.ones(1))


def goes_on():
    """The second process goes on for ever, whatever the terminal tells it."""
    if not leads():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    summed(torch.ones(1))
    while not leads():
        time.sleep(0.1)
