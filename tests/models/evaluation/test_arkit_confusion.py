import numpy as np

from avatard.models.evaluation.arkit_confusion import GROUPS, confusion


def test_every_motion_is_found_as_itself_first():
    table = confusion(people=4)
    assert table.found.argmax(axis=1).tolist() == list(range(len(GROUPS)))
    assert np.diag(table.found).min() > 0.5
    assert (table.found - np.diag(np.diag(table.found))).max() < 0.4


def test_the_table_names_motions_and_leaves_out_what_is_nothing():
    lines = confusion(people=2, noise=np.zeros(3)).markdown().splitlines()
    assert len(lines) == len(GROUPS) + 2
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(GROUPS)
    jaw = [cell.strip() for cell in lines[2].split("|")[2:-1]]
    assert float(jaw[0]) > 0.95 and not any(jaw[1:])
