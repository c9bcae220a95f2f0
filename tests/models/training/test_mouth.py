"""Data, losses and validation of the mouth painter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from avatard.models.face.mesh import FaceMesh
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from avatard.models.mcvdm.mouth_painter import MouthPainter, PainterConfig
from avatard.models.mcvdm.mouth_window import WINDOW_HEIGHT, WINDOW_WIDTH, lip_mask
from avatard.models.training.clips import DataError
from avatard.models.training.mouth.dataset import Mouths, opened_mouths, part_of, read_mouths, write_mouths
from avatard.models.training.mouth.examples import Examples, LipError
from avatard.models.training.mouth.loss import PATCH, Discriminator, Doubt, Objective, hints, patches, soften
from avatard.models.training.mouth.opened import OpenedMouths
from avatard.models.training.mouth.opening import KEPT, motion_of, open_mouths
from avatard.models.training.mouth.recipe import LossWeights
from avatard.models.training.mouth.regenerate import regenerate
from avatard.models.training.mouth.validation import Group, Validation
from avatard.models.training.mouth.views import SIZES, Chance, Views
from avatard.models.training.splits import SplitTable
from tests.support.faces import portrait
from tests.support.mouths import PEOPLE, mouth, write_folder, write_opened
from tests.support.tiny_mcvdm import frontal, someone, tiny

TINY = PainterConfig(widths=(8, 12), full=4, code=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mouths")
    write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def mouths(folder):
    return Mouths(folder, "train")


@pytest.fixture(scope="module")
def examples(mouths):
    return Examples(mouths)


LARGEST = len(SIZES) - 1


def chance(seed=0):
    return Chance(torch.Generator().manual_seed(seed))


@pytest.fixture
def batch(examples):
    return examples.batch(4, 2, LARGEST, chance())


@pytest.mark.parametrize("source", ["generated", "talkvid"])
def test_people_kept_out_of_mcvdms_training_are_kept_out_of_this_one(source):
    names = [f"{n}" for n in range(2000)]
    parts = [part_of(source, name) for name in names]
    assert all(
        part != "train"
        for part, name in zip(parts, names, strict=True)
        if SplitTable().split(source, name) == "validation"
    )
    assert parts.count("test") > 0.04 * len(names)
    assert parts.count("validation") > 0.04 * len(names)
    assert parts == [part_of(source, name) for name in names]


def test_each_part_has_its_own_people(folder):
    people = [{m.person for m in Mouths(folder, part).mouths} for part in ("train", "validation", "test")]
    assert people[2] == set(PEOPLE["test"])
    assert not people[0] & people[1] and not people[1] & people[2] and not people[0] & people[2]


def test_mouths_survive_being_written(folder):
    found = read_mouths(folder / "talk.safetensors")
    again = mouth(PEOPLE["train"][0], 0.15)
    assert found[1].person == again.person and found[1].opening == pytest.approx(0.15)
    assert np.abs(found[1].picture - again.picture.astype(float)).mean() < 3  # JPEG
    assert (found[1].lips == again.lips).all()


def test_what_mcvdm_made_of_some_mouths_survives_too(tmp_path):
    known = replace(mouth("someone", 0.2), made=np.full((160, 224, 3), (10, 200, 90), np.uint8))
    write_mouths(tmp_path / "talk.safetensors", [mouth("someone"), known])
    first, second = read_mouths(tmp_path / "talk.safetensors")
    assert first.made is None
    assert second.made is not None and np.abs(second.made.astype(int) - known.made).max() < 6


def test_a_folder_without_mouths_is_told(tmp_path):
    with pytest.raises(DataError, match=r"run scripts/prepare_mouths\.py"):
        Mouths(tmp_path, "train")


def test_examples_are_drawn_by_number(examples):
    first, second = (examples.batch(3, 1, LARGEST, chance(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_batch_has_windows_masks_references_and_twins(batch):
    size = (WINDOW_HEIGHT, WINDOW_WIDTH)
    assert batch.window.shape == (4, 3, *size) and batch.mask.shape == (4, 1, *size)
    assert batch.reference.shape == (4, 4, *size)
    assert batch.twin.shape == (2, 3, *size) and batch.moved.shape == (2, 2, 3)
    assert batch.window.abs().max() <= 1
    assert ((batch.mask >= 0) & (batch.mask <= 1)).all() and (batch.mask.amax((1, 2, 3)) == 1).all()


def test_hints_come_from_what_mcvdm_makes_where_that_is_known(tmp_path):
    person = PEOPLE["train"][0]
    known = [replace(mouth(person, 0.2, seed=n), made=np.zeros((160, 224, 3), np.uint8)) for n in range(2)]
    write_mouths(tmp_path / "talk.safetensors", known)
    batch = Examples(Mouths(tmp_path, "train")).batch(24, 6, LARGEST, chance())
    as_made = [bool((picture < -0.98).all()) for picture in batch.expected]
    assert 8 < sum(as_made) < 24
    for n in range(6):
        assert bool((batch.twin_expected[n] < -0.98).all()) == as_made[n]
    others = [n for n, known in enumerate(as_made) if not known]
    assert torch.equal(batch.expected[others], batch.window[others])


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opened")
    write_opened(folder)
    return opened_mouths(folder)


def test_only_training_people_are_opened(opened, tmp_path):
    assert len(opened) == 6 and {part_of("faces", m.person) for m in opened} == {"train"}
    assert opened_mouths(tmp_path) == []


def test_a_blob_suits_a_mouth_by_the_shape_of_its_lips_and_by_its_light(opened, mouths):
    real = [replace(m, picture=np.full_like(m.picture, 60)) for m in mouths.mouths]
    bank = OpenedMouths(opened * 12, real, torch.device("cpu"))
    numbers = torch.arange(len(real))
    chosen = bank.choose(numbers, torch.rand(len(real)))
    for number, blob in zip(numbers.tolist(), chosen.tolist(), strict=True):
        apart = [abs(m.opening - real[number].opening) for m in opened * 12]
        assert apart[blob] == pytest.approx(min(apart))
    blobs = bank.blobs(numbers, chosen, Views.middle(len(real), torch.device("cpu")))
    assert (blobs - 60).abs().max() < 2, "as dark as the real one"


def test_lips_of_another_are_moved_onto_those_of_a_portrait(opened, mouths):
    bank = OpenedMouths(opened, mouths.mouths, torch.device("cpu"))
    numbers = torch.arange(len(mouths.mouths))
    chosen = bank.choose(numbers, torch.zeros(len(numbers)))
    maps, _ = bank.between(numbers, chosen)
    for number, blob, matrix in zip(numbers.tolist(), chosen.tolist(), maps.numpy(), strict=True):
        moved = mouths.mouths[number].lips @ matrix[:, :2].T + matrix[:, 2]
        there = opened[blob].lips
        assert np.abs(moved.min(0) - there.min(0)).max() < 0.1 and np.abs(moved.max(0) - there.max(0)).max() < 0.1


def test_some_examples_are_opened_portraits_with_a_real_mouth(opened, mouths):
    batch = Examples(mouths, "cpu", opened).batch(40, 12, LARGEST, chance())
    outside = (batch.mask == 0).expand_as(batch.window)

    def apart(window, expected, where):
        return (((window - expected).abs() * where).sum((1, 2, 3)) / where.sum((1, 2, 3))).tolist()

    spread = (batch.expected * outside).amax((1, 2, 3)) - (batch.expected.masked_fill(~outside, 9)).amin((1, 2, 3))
    grafted = [
        n
        for n, (a, b) in enumerate(
            zip(
                apart(batch.window, batch.expected, outside), apart(batch.window, batch.expected, ~outside), strict=True
            )
        )
        if a < 0.02 and b > 0.05 and spread[n] < 2
    ]
    assert 6 < len(grafted) < 28
    assert (batch.reference[grafted] == 0).all(), "nobody knows the teeth of the portrait"


def test_closed_portraits_are_opened_by_the_motion_of_others():
    morphable = MorphableModel.load()
    image = np.asarray(portrait())
    mesh = FaceMesh()
    (found,) = mesh.detect(image)
    points = mesh.refine(image, found)[0].astype(np.float64)
    faces = np.repeat(morphable.mean_68[None], 20, axis=0)
    faces[:, 55:60, 1] += np.linspace(0, 0.3, 20)[:, None]
    faces[:, 65:68, 1] += np.linspace(0, 0.3, 20)[:, None]
    moves = motion_of(faces)
    assert moves is not None and not moves[0].any() and motion_of(faces[:9]) is None
    first, second = (open_mouths(tiny(), morphable, image, points, "ada", [moves], 3) for _ in range(2))
    assert len(first) == KEPT and all(m.person == "ada" and m.made is None for m in first)
    assert max(m.opening for m in first) - min(m.opening for m in first) > 0.05
    assert all((a.picture == b.picture).all() for a, b in zip(first, second, strict=True))
    assert all(np.abs(m.lips.mean(axis=0) - (111.5, 79.5)).max() < 0.1 for m in first)


@pytest.mark.parametrize("count", [5, 16, 21])
def test_a_clip_is_made_anew_frame_by_frame(count):
    model, person, pose = tiny(), someone(), frontal()
    faces = np.repeat(MorphableModel.load().mean_68[None], count, axis=0)
    poses = Pose(*(np.repeat(part[None], count, axis=0) for part in (pose.rotation, pose.scale, pose.translation)))
    first, second = (regenerate(model, person.portrait, faces, poses, reference=1) for _ in range(2))
    assert first.shape == (count, 256, 256, 3) and first.dtype == np.uint8
    assert (first == second).all()
    moved = faces.copy()
    moved[count - 1, 48:, 1] += 0.2
    changed = regenerate(model, person.portrait, moved, poses, reference=1) != first
    assert changed[count - 1].any()


def test_twins_are_the_same_picture_moved(examples):
    batch = examples.batch(6, 6, LARGEST, chance(1))
    grid = F.affine_grid(batch.moved, list(batch.twin.shape), align_corners=False)
    back = F.grid_sample(batch.twin, grid, align_corners=False)
    middle = (..., slice(8, -8), slice(8, -8))
    assert (back - batch.window)[middle].abs().mean() < 0.5 * (batch.twin - batch.window)[middle].abs().mean()


def test_a_reference_is_another_mouth_of_the_person_or_a_mirrored_portrait(mouths, examples):
    numbers = torch.arange(len(mouths.mouths)).repeat(20)
    found, mirrored, there = examples.references(numbers, chance())
    assert there.any() and not there.all()
    for number, other, mirror in zip(numbers[there], found[there], mirrored[there], strict=True):
        own, reference = mouths.mouths[int(number)], mouths.mouths[int(other)]
        assert reference.person == own.person and (reference is own) == bool(mirror)
    assert set(mirrored[there].tolist()) == {True, False}


def test_wide_mouths_are_drawn_more_often(mouths):
    shares = mouths.shares()
    of = {
        opening: shares[[m.opening == pytest.approx(opening) for m in mouths.mouths]].sum() for opening in (0.05, 0.3)
    }
    assert shares.sum() == pytest.approx(1) and of[0.3] > 2 * of[0.05]


@pytest.mark.parametrize("size", range(1, len(SIZES)))  # made-up mouths are too wide for the smallest
def test_small_windows_show_small_mouths_whole(examples, size):
    batch = examples.batch(40, 2, size, chance())
    assert batch.window.shape[2:] == batch.mask.shape[2:] == SIZES[size]
    # What a mask has at the border is cut off there.
    edge = torch.cat([batch.mask[..., 0, :], batch.mask[..., -1, :]], -1).amax((1, 2))
    assert edge.mean() < 0.1


def test_a_mask_on_the_device_is_the_one_that_is_drawn(mouths):
    lips = torch.from_numpy(np.stack([m.lips for m in mouths.mouths]))
    views = Views.middle(len(lips), torch.device("cpu"))
    masks = LipError.none(len(lips), torch.device("cpu")).mask(lips, views)
    for mask, ring in zip(masks[:, 0].numpy(), lips.numpy(), strict=True):
        drawn = lip_mask(ring + views.matrix[0, :, 2].numpy())
        assert np.abs(mask - drawn).mean() < 0.01 and np.abs(mask - drawn).max() <= 1


def test_blurred_sources_teach_colours_only(batch):
    objective = Objective(MouthPainter(TINY), Discriminator(4), None, LossWeights())
    blurred = batch._replace(sharp=torch.zeros(4))
    losses = objective(blurred, objective.paint(blurred), adversarial=True)
    assert losses["l1"] == losses["fooled"] == losses["features"] == 0 and losses["colour"] > 0


def test_softened_windows_keep_their_insides(batch):
    torch.manual_seed(0)
    soft = soften(batch.window, batch.mask)
    assert torch.equal(soft * (batch.mask == 1), batch.window * (batch.mask == 1))
    assert not torch.equal(soft, batch.window)


def test_hints_have_colour_and_no_detail(batch):
    torch.manual_seed(0)
    hint = hints(batch.window, batch.mask, torch.ones(4, 1, 1, 1), Doubt.random(4, batch.window.device))
    inside = batch.mask[..., 1:] * batch.mask[..., :-1] == 1

    def roughness(x):
        return ((x[..., 1:] - x[..., :-1]).abs() * inside).sum() / inside.sum()

    assert roughness(hint[:, :3]) < 0.4 * roughness(batch.window)


def test_patches_lie_on_the_mouth(batch):
    (mask,) = patches(batch.mask, batch.mask, reach=0)
    assert mask.shape == (4, 1, *PATCH)
    assert (mask.sum((1, 2, 3)) > 0.8 * batch.mask.sum((1, 2, 3))).all()


def test_each_network_is_trained_by_its_own_loss(batch):
    torch.manual_seed(0)
    objective = Objective(MouthPainter(TINY), Discriminator(4), None, LossWeights())
    painting = objective.paint(batch)
    objective.critic(batch, painting).backward()
    assert all(p.grad is not None for p in objective.discriminator.parameters())
    assert all(p.grad is None for p in objective.painter.parameters())
    objective.discriminator.zero_grad(set_to_none=True)
    losses = objective(batch, painting, adversarial=True)
    assert all(torch.isfinite(loss) for loss in losses.values())
    losses["total"].backward()
    assert all(p.grad is not None for p in objective.painter.parameters())
    assert all(p.grad is None and p.requires_grad for p in objective.discriminator.parameters())
    assert "fooled" not in objective(batch, objective.paint(batch), adversarial=False)


def test_verdicts_on_what_is_not_painted_do_not_count(batch):
    objective = Objective(MouthPainter(TINY), Discriminator(4), None, LossWeights())
    painting = objective.paint(batch)
    torch.manual_seed(0)
    before = objective.critic(batch, painting)
    torch.manual_seed(0)
    nothing = objective.critic(batch._replace(mask=torch.zeros_like(batch.mask)), painting)
    assert before > 1 and nothing == 0


def test_a_perfect_painter_has_the_texture_of_real_mouths_and_their_rest(folder):
    group = Group.of(Examples(Mouths(folder, "validation")), [0, 1, 2])
    answers = [group.batch.window, group.batch.twin]

    class Perfect(MouthPainter):
        def forward(self, seen, code):
            return answers.pop(0)

    figures = group.figures(Perfect(TINY), "blind")
    assert figures["l1"] == 0
    assert figures["unrest"] < 0.1
    assert figures["checkerboard"] == pytest.approx(1) and figures["detail"] == pytest.approx(1)


def test_a_painter_that_changes_with_every_motion_is_restless(folder):
    group = Group.of(Examples(Mouths(folder, "validation")), [0, 1, 2])
    answers = [group.batch.window, -group.batch.twin]

    class Restless(MouthPainter):
        def forward(self, seen, code):
            return answers.pop(0)

    assert group.figures(Restless(TINY), "blind")["unrest"] > 0.5


def test_validation_has_figures_and_rows_of_all_that_may_be_given(folder):
    validation, painter = Validation(Mouths(folder, "validation")), MouthPainter(TINY).eval()
    figures = validation.figures(painter)
    given = {name.rsplit("_", 1)[0] for name in figures}
    assert given == {"portraits_blind", "portraits_told", *(f"speech_{g}" for g in ("blind", "told", "hinted", "full"))}
    rows = validation.rows(painter)
    assert len({row.shape for row in rows}) == 1 and len(rows) == 8
