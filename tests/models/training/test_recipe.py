import pytest
import torch
from torch import nn

from avatard.models.atom.model import Atom, AtomConfig
from avatard.models.mcvdm.model import Mcvdm, McvdmConfig
from avatard.models.training.atom.recipe import AtomRecipe
from avatard.models.training.mcvdm.recipe import McvdmRecipe
from avatard.models.training.recipe import RecipeError, load_recipe


def millions(network: nn.Module) -> float:
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def test_nano_recipes_are_the_networks_that_ship():
    assert load_recipe(AtomRecipe, "atom_nano").network == Atom.load().config == AtomConfig()
    for name in ("mcvdm_nano", "mcvdm_gpu"):
        assert load_recipe(McvdmRecipe, name).network == Mcvdm.load().config == McvdmConfig()


def test_the_paper_sizes():
    atom, mcvdm = load_recipe(AtomRecipe, "atom_paper"), load_recipe(McvdmRecipe, "mcvdm_paper")
    assert (mcvdm.objective, mcvdm.autoencoder.encoder, mcvdm.autoencoder.decoder) == (
        "epsilon",
        "timesformer",
        "plain",
    )
    assert mcvdm.autoencoder.channels == mcvdm.unet.latent
    with torch.device("meta"):
        networks = Mcvdm(mcvdm.network)
        assert millions(Atom(atom.network)) == pytest.approx(72.7, abs=0.1)
    assert millions(networks.autoencoder.encoder) == pytest.approx(24.7, abs=0.1)
    assert millions(networks.autoencoder.trunk) + millions(networks.autoencoder.decoder) == pytest.approx(24.1, abs=0.1)
    assert millions(networks.unet) == pytest.approx(104.8, abs=0.1)


def test_overrides_are_toml_values_or_words():
    changes = ["mix={mine=1}", "autoencoder.width=8", "unet.multiples=[1, 1]", "objective=epsilon"]
    recipe = load_recipe(McvdmRecipe, "mcvdm_nano", [*changes, "autoencoder_stage.training.rate=1e-3"])
    assert recipe.mix == {"mine": 1} and recipe.autoencoder.width == 8 and recipe.unet.multiples == (1, 1)
    assert recipe.objective == "epsilon" and recipe.autoencoder_stage.training.rate == 1e-3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("huge", [], "no recipe 'huge': give a TOML file or one of atom_nano, atom_paper, mcvdm_gpu, mcvdm_nano"),
        ("atom_nano", ["network.girth=3"], "no key network.girth: expected one of audio_frames, depth"),
        ("atom_nano", ["training.steps=many"], "training.steps is 'many', expected int"),
        ("atom_nano", ["training.precision=half"], "training.precision is 'half', expected one of 'no', 'bf16'"),
        ("atom_nano", ["training.betas=[1]"], r"training.betas is \[1\], expected tuple"),
        ("atom_nano", ["training=3"], "training is 3, expected a table"),
        ("atom_nano", ["network"], "got 'network', expected table.key=value"),
        ("atom_nano", ["training.steps.x=1"], "steps is no table"),
    ],
)
def test_what_is_wrong_is_named(name, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(AtomRecipe, name, changes)


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[network]\nwidth = 24\nheads = 2\n[training]\nsteps = 1\nbatch = 2\nrate = 1\n")
    recipe = load_recipe(AtomRecipe, str(path))
    assert recipe.network.width == 24 and recipe.training.warmup == 200
    path.write_text("[network]\n[training]\nsteps = 1\nrate = 1\n")
    with pytest.raises(RecipeError, match=r"mine.toml: training.batch is missing"):
        load_recipe(AtomRecipe, str(path))
    path.write_text("[network")
    with pytest.raises(RecipeError, match="mine.toml"):
        load_recipe(AtomRecipe, str(path))
