from dataclasses import replace

import cv2
import numpy as np
import pytest

from avatard.engine.identity import Identity
from avatard.engine.portrait_check import warnings_of
from tests.support.faces import PORTRAIT, networks


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Identity.load(PORTRAIT, mesh=networks())


def words(identity: Identity) -> str:
    return " ".join(warnings_of(identity))


def test_a_smile_is_told_and_a_resting_face_is_not(identity):
    smile = identity.neutral.copy()
    smile[[48, 54], 0] += [-0.1, 0.1]  # the corners of the mouth
    smile[55:60, 1] += 0.2
    smile[65:68, 1] += 0.2
    assert "smiles widely" in words(replace(identity, landmarks=smile))
    assert "smiles" not in words(replace(identity, landmarks=identity.neutral))


def test_a_closed_eye_is_told(identity):
    landmarks = identity.landmarks.copy()
    landmarks[37:39] += 0.4 * np.array([0, 1, 0], np.float32) * 0.3
    assert "eye is closed" not in words(identity)
    assert "eye is closed" in words(replace(identity, landmarks=landmarks))


def test_a_drawing_is_told_and_used(identity):
    flat = cv2.pyrMeanShiftFiltering(cv2.cvtColor(identity.portrait, cv2.COLOR_RGB2BGR), 20, 40) // 32 * 32 + 16
    assert "drawing" not in words(identity)
    assert "drawing" in words(replace(identity, portrait=cv2.cvtColor(flat, cv2.COLOR_BGR2RGB)))


def test_a_tight_photograph_is_told(identity):
    assert "tight" not in words(identity)
    assert "the face takes 90%" in words(replace(identity, face_px=0.9 * identity.photograph.shape[0]))
