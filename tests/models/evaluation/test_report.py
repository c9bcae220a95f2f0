import json

from avatard.models.evaluation.report import complete, table, transposed_table, write_json


def test_figures_as_json_and_as_tables(tmp_path):
    figures = {"real": {"psnr": 31.23456, "csim": None}, "still": None}
    write_json(tmp_path / "out.json", {"clips": 2}, figures)
    assert json.loads((tmp_path / "out.json").read_text()) == {"settings": {"clips": 2}, **figures}
    assert table(figures, ["psnr", "csim"]).splitlines() == [
        "| variant | psnr | csim |",
        "|---|---|---|",
        "| real | 31.23 | – |",
        "| still | – | – |",
    ]
    assert transposed_table({"real": {"psnr": 31.23456}}, ["psnr"]).splitlines()[-1] == "| psnr | 31.2 |"


def test_missing_figures_are_null_and_others_follow():
    assert list(complete({"b": 1.0, "a": 2.0}, ["a", "c"]).items()) == [("a", 2.0), ("c", None), ("b", 1.0)]
