"""Which picture lends its teeth."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from avatard.engine import affine
from avatard.engine.identity import Identity, IdentityError
from avatard.engine.teeth import VIDEO_STEP, other_picture, teeth_of
from avatard.media.video_file import MediaError
from avatard.media.video_writer import VideoWriter
from avatard.models.face.topology import INNER_LIP, MESH_TO_68
from avatard.models.mcvdm.mouth_filler import Mouth
from tests.support.serving import said

PORTRAIT = "avatard/media/astronaut.jpg"


@pytest.fixture(scope="module")
def smiling():
    return Identity.load(PORTRAIT)


def parted(identity: Identity, pixels: float) -> Identity:
    """The same person with the inner lips so many crop pixels apart."""
    points = identity.points.copy()
    ring = MESH_TO_68[INNER_LIP]
    middle = points[ring, 1].mean()
    lower = points[ring, 1] > middle
    points[ring, 1] = middle + np.where(lower, pixels / 2, -pixels / 2)
    return replace(identity, points=points)


@pytest.fixture(scope="module")
def closed(smiling):
    return parted(smiling, 0.5)


def found(identity, others=()):
    """The picture and the mouth, which must be there."""
    teeth = teeth_of(identity, others)
    assert teeth is not None
    return teeth


def test_a_portrait_that_smiles_has_its_own_teeth(smiling):
    picture, mouth = found(smiling)
    assert picture is smiling.photograph
    assert isinstance(mouth, Mouth) and mouth.opening > 0.06
    height, width, _ = picture.shape
    assert (mouth.landmarks[:, 0] < width).all() and (mouth.landmarks[:, 1] < height).all()


def test_a_closed_portrait_has_none_and_borrows_those_of_another_picture(closed, smiling):
    assert teeth_of(closed, []) is None
    picture, _ = found(closed, [("smile.jpg", smiling)])
    assert picture is smiling.photograph


def test_the_widest_mouth_is_taken(closed, smiling):
    wide = replace(parted(smiling, 14.0), photograph=smiling.photograph.copy())
    picture, _ = found(closed, [("a.jpg", smiling), ("b.jpg", wide)])
    assert picture is wide.photograph


@pytest.mark.parametrize("fault", ["closed", "turned", "face", "colours"])
def test_what_cannot_be_used_is_ignored_and_told(closed, smiling, fault, caplog):
    other = smiling
    if fault == "closed":
        other, said_of = closed, "its mouth is closed"
    elif fault == "turned":
        turn = cv2.Rodrigues(np.array([0.0, np.radians(40), 0.0]))[0]
        other, said_of = replace(smiling, pose=replace(smiling.pose, rotation=turn)), "turned"
    elif fault == "face":
        other, said_of = replace(smiling, neutral=smiling.neutral + np.float32(0.1)), "another face"
    else:
        other, said_of = replace(smiling, portrait=smiling.portrait // 3), "another light"
    assert teeth_of(closed, [("more.jpg", other)]) is None
    assert said(caplog) == ["portrait"]
    assert "more.jpg is ignored" in caplog.records[-1].note and said_of in caplog.records[-1].note


def written(path, pictures):
    """A video of pictures that are shown for as long as one is skipped."""
    height, width, _ = pictures[0].shape
    with VideoWriter(path, (width, height)) as writer:
        for pixels in pictures:
            for _ in range(VIDEO_STEP):
                writer.write(pixels)
    return path


def test_of_a_video_the_frame_with_the_widest_mouth_is_taken(smiling, closed, tmp_path):
    """Nobody, the person with the mouth filled in, the person."""
    photograph = smiling.photograph
    lips = affine.apply(affine.inverse(smiling.crop.matrix), smiling.points[MESH_TO_68[INNER_LIP], :2])
    filled = photograph.copy()
    cv2.fillPoly(filled, [lips.round().astype(int)], (170, 90, 90))
    video = written(tmp_path / "more.mp4", [np.full_like(photograph, 90), filled, photograph])
    best = other_picture(video)
    picture, mouth = found(closed, [(str(video), best)])
    assert picture is best.photograph and mouth.opening > 0.06
    there = picture[lips[:, 1].astype(int), lips[:, 0].astype(int)].astype(float)
    assert np.abs(there - photograph[lips[:, 1].astype(int), lips[:, 0].astype(int)]).mean() < 15


def test_a_video_that_cannot_be_used_is_one_line(smiling, tmp_path):
    with pytest.raises(MediaError, match="cannot be read as a video"):
        other_picture(tmp_path / "none.mp4")
    with pytest.raises(IdentityError, match="no frame of its first 20 s shows one face"):
        other_picture(written(tmp_path / "empty.mp4", [np.full_like(smiling.photograph, 90)]))
