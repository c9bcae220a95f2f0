"""What holds for every test."""

from hypothesis import settings

# A test measures no time: a busy machine is not a failure.
settings.register_profile("avatard", parent=settings(), deadline=None)
settings.load_profile("avatard")
