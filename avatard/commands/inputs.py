"""The files that a configuration names, looked at before the networks load."""

from __future__ import annotations

from pathlib import Path

from avatard.config import Config
from avatard.engine.background import read_background
from avatard.media.image_file import load_image
from avatard.media.video_file import VIDEOS, read_frames


def check_pictures(config: Config) -> None:
    """Refuse a background, or another picture of the person, that cannot be read.

    Raises:
        UserError: it is missing, or is no picture.
    """
    read_background(config.picture.background)
    for name in config.portrait.more:
        if Path(name).suffix.lower() in VIDEOS:
            next(read_frames(Path(name)), None)
        else:
            load_image(name)
