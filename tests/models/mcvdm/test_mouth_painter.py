import pytest
import torch

from avatard.models import checkpoint
from avatard.models.mcvdm.mouth_painter import MouthPainter, PainterConfig, blurred, fill, observe
from avatard.models.training.mouth.dataset import Mouths
from avatard.models.training.mouth.examples import Examples
from avatard.models.training.mouth.views import Chance
from tests.support.mouths import write_folder

#: Of the shipped weights: mean red, green and blue in the mask, and the standard deviation of all that is painted.
GOLDEN_COLOUR, GOLDEN_SPREAD = [0.5711, 0.4421, 0.3644], 0.1764
TINY = PainterConfig(widths=(8, 12), full=4, code=3)


@pytest.fixture
def painter():
    """Every parameter random, the ones that start at zero too, so that everything has an effect."""
    torch.manual_seed(0)
    painter = MouthPainter(TINY)
    with torch.no_grad():
        for parameter in painter.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return painter.eval().requires_grad_(False)


@pytest.fixture
def window():
    return torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def mask():
    mask = torch.zeros(2, 1, 24, 32)
    mask[..., 8:16, 8:24] = 1
    return mask


def test_what_the_mask_covers_is_not_looked_at(painter, window, mask):
    other = torch.where(mask > 0, -window, window)
    code = torch.zeros(2, TINY.code)
    assert torch.equal(painter(observe(window, mask), code), painter(observe(other, mask), code))
    assert not torch.equal(painter(observe(window, mask), code), painter(observe(-window, mask), code))


def test_hint_reference_and_code_change_the_paint(painter, window, mask):
    code = torch.zeros(2, TINY.code)
    plain = painter(observe(window, mask), code)
    hint = torch.cat([blurred(window, mask), torch.ones_like(mask)], dim=1)
    reference = torch.cat([window.flip(3), mask], dim=1)
    assert plain.shape == window.shape
    for seen, chosen in (
        (observe(window, mask, hint), code),
        (observe(window, mask, reference=reference), code),
        (observe(window, mask), code + 1),
    ):
        assert (painter(seen, chosen) - plain).abs().max() > 1e-3


def test_a_hint_that_is_absent_is_none(window, mask):
    hint = torch.cat([torch.rand(2, 3, 24, 32), torch.zeros(2, 1, 24, 32)], dim=1)
    assert torch.equal(observe(window, mask, hint), observe(window, mask))


def test_windows_are_painted_one_by_one_as_together(painter, window, mask):
    code = torch.randn(2, TINY.code, generator=torch.Generator().manual_seed(2))
    together = painter(observe(window, mask), code)
    alone = [painter(observe(window[n : n + 1], mask[n : n + 1]), code[n : n + 1]) for n in range(2)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_a_blur_takes_nothing_from_outside_the_mask(window, mask):
    inside = torch.where(mask > 0, torch.tensor([0.5, -0.25, 0.0]).view(1, 3, 1, 1), window)
    mean = blurred(inside, mask, deviation=3.0)
    assert torch.allclose(mean[:, :, 8:16, 8:24], inside[:, :, 8:16, 8:24], atol=1e-5)


def test_only_the_mask_is_filled(window, mask):
    filled = fill(window, torch.ones_like(window), mask)
    assert torch.equal(filled[:, :, :8], window[:, :, :8])
    assert (filled[:, :, 8:16, 8:24] == 1).all()


def test_weights_describe_themselves(painter, window, mask, tmp_path):
    painter.save(tmp_path / "painter.safetensors", {"note": "of no use"})
    again = MouthPainter.load(tmp_path / "painter.safetensors")
    assert again.config == TINY
    code = torch.zeros(2, TINY.code)
    assert torch.allclose(again(observe(window, mask), code), painter(observe(window, mask), code), atol=5e-3)


def test_weights_of_something_else_are_refused(tmp_path):
    checkpoint.save(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"config": "{}"})
    with pytest.raises(checkpoint.CheckpointError, match="not weights of the mouth painter"):
        MouthPainter.load(tmp_path / "other.safetensors")


def test_upsampling_draws_no_checkerboard(painter, mask):
    """A plain picture has no pattern of period two, whatever the weights."""
    size = TINY.multiple
    plain = torch.full((1, 3, 24 * size, 32 * size), 0.3)
    painted = painter(observe(plain, torch.ones_like(plain[:, :1])), torch.zeros(1, TINY.code))
    # Away from the borders and of rows that differ by their coordinate alone, columns must be alike.
    middle = painted[..., 4 * size : -4 * size, 8 * size : -8 * size]
    assert (middle[..., 1:] - middle[..., :-1]).abs().max() < 0.1 * painted.std()


def test_the_shipped_weights_paint_what_they_did(tmp_path):
    """A made-up mouth: what is told of its colours is kept, and the detail is the weights' own."""
    write_folder(tmp_path)
    examples = Examples(Mouths(tmp_path, "train"))
    batch, _ = examples.middle([2], Chance(torch.Generator().manual_seed(0)))
    window, mask = batch.window, batch.mask
    painter = MouthPainter.load()
    hint = torch.cat([blurred(window, mask), torch.ones_like(mask)], dim=1)
    painted = painter(observe(window, mask, hint), torch.zeros(1, painter.config.code))
    inside = (painted * mask).sum((2, 3))[0] / mask.sum()
    told = (window * mask).sum((2, 3))[0] / mask.sum()
    assert (inside - told).abs().max() < 0.2
    assert inside.tolist() == pytest.approx(GOLDEN_COLOUR, abs=2e-3)
    assert float((painted * mask).std()) == pytest.approx(GOLDEN_SPREAD, abs=2e-3)
