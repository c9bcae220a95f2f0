import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from avatard.cli import app
from avatard.commands.inspect import OverlayError, overlay, table, write_overlay
from avatard.engine.identity import Identity
from avatard.models.face.topology import MESH_TO_68
from tests.support.faces import PORTRAIT, networks


def test_the_overlay_marks_the_points_and_shows_the_raster():
    identity = Identity.load(PORTRAIT, mesh=networks())
    picture = overlay(identity)
    assert picture.shape == (768, 1536 + 768, 3)
    x, y = np.rint((identity.points[MESH_TO_68[8], :2] + 0.5) * 3 - 0.5).astype(int)
    assert picture[y, x].tolist() == [255, 0, 0]
    assert picture[y, x + 768, 0] > 200
    assert picture[:60, 768:1536].max() == 0


def test_the_table_names_what_was_found():
    rows = dict(line.split(maxsplit=1) for line in table(Identity.load(PORTRAIT, mesh=networks())).splitlines())
    assert set(rows) == {"face", "yaw", "pitch", "mouth", "eyes", "frame", "digest"}
    assert rows["face"].startswith("111 px") and len(rows["digest"]) == 64
    assert rows["frame"].startswith("head: 484x484, the face takes 46 % of its height, photo: 512x512,")


def test_inspect_prints_and_writes(tmp_path):
    ran = CliRunner().invoke(app, ["inspect", str(PORTRAIT), "-o", str(tmp_path / "overlay.png")])
    assert ran.exit_code == 0 and "px from forehead to chin" in ran.stdout
    with Image.open(tmp_path / "overlay.png") as picture:
        assert picture.size == (2304, 768)


@pytest.mark.parametrize("name", ["missing/overlay.png", "overlay.xyz", "overlay"])
def test_an_overlay_that_cannot_be_written_is_one_line(tmp_path, name):
    identity = Identity.load(PORTRAIT, mesh=networks())
    with pytest.raises(OverlayError, match="cannot write .*overlay") as caught:
        write_overlay(identity, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("arguments", [["nothing.png"], [str(PORTRAIT), "--face", "3"]])
def test_a_bad_portrait_is_one_line_and_exit_code_1(arguments, capsys):
    ran = CliRunner().invoke(app, ["inspect", *arguments])
    assert ran.exit_code == 1
    assert ran.stderr.startswith("avatard: ") and ran.stderr.count("\n") == 1 and ran.stdout == ""
