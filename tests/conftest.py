"""One thread a process: workers of xdist that each take all cores only wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
