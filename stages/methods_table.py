"""x."""
from semivid.pipeline.stage import run_stage
