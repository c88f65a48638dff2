"""What all tests need of their process."""

import os

# Workers of xdist that each take all cores only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# pytester forgets the modules that an inner run imports; these cannot be imported a second time.
import numpy  # noqa: F401
import pytest
import torch
import torch._dynamo  # noqa: F401


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Workers of one run take turns with a device; a test's models are those of another run."""
    monkeypatch.delenv("PYTEST_XDIST_TESTRUNUID", raising=False)
