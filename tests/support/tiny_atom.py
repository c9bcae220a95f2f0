"""AToM-Net with random weights: for tests of what it computes and of what surrounds the weights."""

import torch

from avatard.models.atom.model import Atom, AtomConfig


def awake(config: AtomConfig, scale: float = 0.1) -> Atom:
    """A network whose zero-initialised layers have values too, of this standard deviation."""
    torch.manual_seed(0)
    atom = Atom(config).eval().requires_grad_(False)
    for parameter in atom.parameters():
        if not parameter.any():
            parameter.normal_(0, scale)
    return atom
