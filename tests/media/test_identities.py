"""Portraits that are kept by name: across runs, whole or not at all, and nowhere but in their folder."""

import cv2
import numpy as np
import pytest

from avatard.media.identities import (
    Identities,
    IdentityError,
    KnownIdentityError,
    ManyIdentitiesError,
    UnknownIdentityError,
)
from avatard.media.image_file import ImageError
from avatard.portrait import Portrait


def picture(value: int = 90, face: int = 0) -> Portrait:
    return Portrait(cv2.imencode(".png", np.full((32, 32, 3), value, np.uint8))[1].tobytes(), face)


def test_what_was_kept_is_there_in_the_next_run(tmp_path):
    added = Identities(tmp_path / "new" / "data").add("ada", picture(face=2))
    again = Identities(tmp_path / "new" / "data")
    assert list(again) == [added] and added.face == 2
    portrait = again.portrait("ada")
    assert (portrait.data, portrait.face, portrait.name) == (picture().data, 2, "ada")
    again.remove("ada")
    assert not list(Identities(tmp_path / "new" / "data")) and not list((tmp_path / "new/data/identities").iterdir())


def test_without_a_folder_it_lasts_as_long_as_the_daemon():
    identities = Identities(None)
    identities.close()  # nothing was made
    identities.add("ada", picture())
    assert identities.portrait("ada").data == picture().data
    identities.close()
    with pytest.raises(UnknownIdentityError, match="the picture of ada cannot be read"):
        identities.portrait("ada")


def test_the_same_picture_again_changes_nothing_and_another_is_refused(tmp_path):
    identities = Identities(tmp_path)
    first = identities.add("ada", picture())
    assert identities.add("ada", picture()) is first and len(identities) == 1
    for other in (picture(91), picture(face=1)):
        with pytest.raises(KnownIdentityError, match="another picture named ada"):
            identities.add("ada", other)
    unnamed = identities.add("", picture())
    assert unnamed.name == unnamed.digest[:16] and len(identities) == 2


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a\\b", "a\0", "a\n", " ", "ä", "x" * 65, "-"])
def test_a_name_that_is_no_name_is_refused(tmp_path, name):
    identities = Identities(tmp_path)
    with pytest.raises(IdentityError, match="expected letters, digits"):
        identities.add(name, picture())
    for use in (identities.portrait, identities.remove):
        with pytest.raises(UnknownIdentityError):
            use(name)
    assert not list((tmp_path / "identities").iterdir())


def test_what_is_no_picture_is_not_kept(tmp_path, monkeypatch):
    identities = Identities(tmp_path)
    with pytest.raises(ImageError):
        identities.add("ada", Portrait(b"no picture"))
    monkeypatch.setattr("avatard.media.identities.MAX_IDENTITIES", 0)
    with pytest.raises(ManyIdentitiesError):
        identities.add("ada", picture())
    assert not len(identities) and not list((tmp_path / "identities").iterdir())


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match=r"server\.data_dir: .* cannot be used"):
        Identities(tmp_path / "file")
    (tmp_path / "identities" / "ada").mkdir(parents=True)
    (tmp_path / "identities" / "ada" / "identity.json").write_text("{")
    with pytest.raises(IdentityError, match=r"server\.data_dir: .* cannot be used"):
        Identities(tmp_path)


def test_what_a_crash_left_is_no_identity(tmp_path):
    (tmp_path / "identities" / "ada").mkdir(parents=True)
    (tmp_path / "identities" / ".x").mkdir()
    identities = Identities(tmp_path)
    assert not len(identities)
    identities.add("ada", picture())
    assert Identities(tmp_path).portrait("ada").data == picture().data
