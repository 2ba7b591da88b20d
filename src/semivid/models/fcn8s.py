"""Temporary."""

from semivid.models.checkpoints import read_state
from semivid.models.precision import at_least_float32

build = (read_state, at_least_float32)
