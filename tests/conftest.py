"""What holds for every test."""

import os

from hypothesis import settings

# A test measures no time: a busy machine is not a failure.
settings.register_profile("avatard", parent=settings(), deadline=None)
settings.load_profile("avatard")

# Sums depend on how many threads share them: one, as in the inference process, whoever sets it first.
os.environ["OMP_NUM_THREADS"] = "1"
