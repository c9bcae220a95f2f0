"""One portrait and a live voice in, a live talking head out."""

__version__ = "0.1.0"
