import pytest
import torch

from avatard.models.mcvdm.batches import MOUTH_WEIGHT
from avatard.models.mcvdm.decoder import WHOLE, Rendering
from avatard.models.mcvdm.discriminator import Discriminator, adversarial_losses, balance


@pytest.fixture
def scene():
    """A rendering of one frame, the real frame, and a weight that has a mouth in its middle."""
    torch.manual_seed(0)
    made = torch.rand(1, 1, 3, 256, 256, requires_grad=True)
    still, flow = torch.zeros(1, 1, 3, 256, 256), torch.zeros(1, 1, 2, 32, 32)
    weight = torch.ones(1, 1, 1, 256, 256)
    weight[..., 96:160, 96:160] = MOUTH_WEIGHT
    return Rendering(made, made, still, torch.ones(1, 1, 1, 256, 256), flow), torch.rand(1, 1, 3, 256, 256), weight


def test_each_side_learns_from_its_own_loss(scene):
    rendering, frames, weight = scene
    discriminator = Discriminator(8)
    losses = adversarial_losses(discriminator, rendering, frames, weight, WHOLE)
    losses["believed"].backward(retain_graph=True)
    assert rendering.frames.grad is not None
    assert rendering.frames.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    rendering.frames.grad = None
    losses["judged"].backward()
    assert rendering.frames.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_only_mouths_are_judged(scene):
    rendering, frames, weight = scene
    losses = adversarial_losses(Discriminator(8), rendering, frames, weight, WHOLE)
    losses["believed"].backward()
    assert rendering.frames.grad is not None
    assert rendering.frames.grad[..., :64, :].abs().max() == 0
    nothing = adversarial_losses(Discriminator(8), rendering, frames, torch.ones_like(weight), WHOLE)
    assert nothing["believed"] == 0 and nothing["judged"] == 0


def test_it_learns_to_tell_real_from_made(scene):
    rendering, frames, weight = scene
    frames = frames / 4  # less contrast than what is made
    discriminator = Discriminator(8)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    judged = []
    for _ in range(60):
        loss = adversarial_losses(discriminator, rendering, frames, weight, WHOLE)["judged"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        judged.append(loss.item())
    assert judged[-1] < judged[0] / 3


def test_the_gradients_share_is_what_was_asked_for():
    pictures = torch.ones(3, requires_grad=True)
    weight = balance((2 * pictures).sum(), (8 * pictures).sum(), pictures, 0.5)
    assert weight.item() == pytest.approx(0.125)
    assert balance(pictures.sum(), (0 * pictures).sum(), pictures, 0.5) == 10  # nothing to balance, still finite
