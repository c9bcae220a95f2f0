"""A tiny data folder of one unseen person: a portrait that moves sideways, as a clip with sound and as a picture."""

from pathlib import Path

import cv2
import numpy as np

from avatard.models.face.crop import Crop
from avatard.models.training.clips import Clip, Entry, write_index
from tests.support import faces

FRAMES = 18
REFERENCE = 5  # the frame with the most closed mouth


def write_folder(folder: Path) -> list[Entry]:
    morphable = faces.morphable()
    crop = Crop.of(morphable.pose(faces.portrait_mesh()))
    base, mesh = crop.image(faces.portrait()), crop.points(faces.portrait_mesh())
    shift = 4 * np.sin(np.arange(FRAMES) / 3)
    frames = [cv2.warpAffine(base, np.array([[1, 0, dx], [0, 1, 0]]), (256, 256), borderMode=1) for dx in shift]
    pictures = [np.asarray(frame, np.uint8) for frame in frames]
    points = np.repeat(mesh[None], FRAMES, axis=0)
    points[..., 0] += shift[:, None]
    points[:, 14, 1] += np.where(np.arange(FRAMES) == REFERENCE, -1, 0)  # the lower lip is higher
    canonical, pose = morphable.frontal(points)
    landmarks = morphable.landmarks(canonical)
    tone = 8000 * np.sin(np.arange(FRAMES * 640) * 0.2)
    clip = Entry("lrw_ar", "one", "a04", FRAMES, "lrw_ar/one.safetensors", "validation")
    Clip.write(folder / clip.path, pictures, points, landmarks, pose, {}, tone.astype(np.int16))
    portrait = Entry("synthetic", "k", "k", 1, "synthetic/k.safetensors", "validation")
    Clip.write(folder / portrait.path, pictures[:1], points[:1], landmarks[:1], pose[:1], {})
    entries = [clip, portrait]
    write_index(folder, entries)
    return entries
