import numpy as np
import pytest

from avatard.models.training.draws import Draws, philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected):
    assert tuple(philox(np.array(counter, np.uint64), key).tolist()) == expected


def test_a_number_depends_on_seed_example_and_purpose_alone():
    together, alone = Draws(7, np.arange(10)), Draws(7, np.array([4]))
    np.testing.assert_array_equal(together.normal("shift", 2)[4], alone.normal("shift", 2)[0])
    np.testing.assert_array_equal(together.uniform("a"), together.uniform("a"))
    assert not np.array_equal(together.uniform("a"), together.uniform("b"))
    assert not np.array_equal(Draws(8, np.arange(10)).uniform("a"), together.uniform("a"))
    assert len(np.unique(Draws(0, np.array([0, 1, 1 << 32])).uniform("a"))) == 3


def test_numbers_are_distributed_as_they_should_be():
    draws = Draws(1, np.arange(20_000))
    uniform, normal = draws.uniform("u", 3), draws.normal("n", 3)
    assert 0 <= uniform.min() and uniform.max() < 1
    np.testing.assert_allclose([uniform.mean(), uniform.std()], [0.5, 12**-0.5], atol=0.01)
    np.testing.assert_allclose([normal.mean(), normal.std(), (normal**4).mean()], [0, 1, 3], atol=0.05)
    assert np.bincount(draws.index("i", 5)).min() > 3800
    assert abs(draws.below("b", 0.3).mean() - 0.3) < 0.02
