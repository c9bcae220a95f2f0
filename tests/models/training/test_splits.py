from avatard.models.training.splits import SplitTable


def test_named_people_and_an_eighth_of_all_others_are_kept_out():
    table = SplitTable.load()
    assert table.split("lrw_ar", "b21") == "validation" and table.split("lrw_ar", "b01") == "train"
    assert table.split("lrw_ar", "a04") == table.split("grid_more", "anybody") == "test"
    assert table.split("grid_s1", "a04") == "train"
    chosen = [table.split("officials", f"{n:06d}") for n in range(1000)]
    assert 90 < chosen.count("validation") < 160 and "test" not in chosen
    assert [table.split("synthetic", f"{n:06d}") for n in range(1000)] == chosen


def test_clips_made_of_portraits_are_known():
    table = SplitTable.load()
    assert table.animated("factory") and table.animated("factory_validation") and not table.animated("lrw_ar")
    assert table.split("factory_validation", "anybody") == "validation"
    assert table.shipped >= {"lrw_ar", "grid_s1", "factory"}
