from types import SimpleNamespace

from avatard.models.evaluation.motion_validation import halves
from avatard.models.training.clips import Entry


def test_people_are_in_one_half_each():
    def clips(speaker, count):
        return [SimpleNamespace(entry=Entry("lrw_ar", str(n), speaker, 9, "x")) for n in range(count)]

    every = [*clips("a", 5), *clips("b", 3), *clips("c", 2)]
    first, second = halves(every)
    assert [{clip.entry.speaker for clip in half} for half in (first, second)] == [{"a"}, {"b", "c"}]
    assert halves(clips("a", 2))[1] == halves(clips("a", 2))[0]
