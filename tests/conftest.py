"""Fixtures of the whole suite. Real frames live outside the repository: tests that need them skip with a reason."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Small files that tests read: copies of the reference's fixtures and key lists."""
    return ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real frames: ``SEMIVID_SHARED`` or ``../shared`` beside the checkout."""
    path = Path(os.environ.get("SEMIVID_SHARED", ROOT.parent / "shared"))
    if not (path / "data" / "camvid").is_dir():
        pytest.skip(f"real frames are absent: no {path.name}/data/camvid beside the checkout")
    return path


@pytest.fixture(autouse=True)
def _one_thread():
    """CPU sums depend on the number of threads; the suite shares two cores with other work."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
