"""What all tests need of their process."""

import os

# Workers of xdist that each take all cores only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# pytester forgets the modules that an inner run imports; these cannot be imported a second time.
import numpy  # noqa: F401
import torch
import torch._dynamo  # noqa: F401
