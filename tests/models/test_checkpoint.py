import hashlib
import json

import numpy as np
import pytest
import torch

from avatard.models import checkpoint
from avatard.models.checkpoint import CheckpointError, load, locate, save, shipped, verified, weights_dir


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A weights folder with one listed network."""
    monkeypatch.setattr(checkpoint, "weights_dir", lambda: tmp_path)
    save(tmp_path / "tiny.safetensors", {"weight": torch.arange(6.0).reshape(2, 3)}, {"config": "{}"})
    digest = hashlib.sha256((tmp_path / "tiny.safetensors").read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  tiny.safetensors\n")
    return tmp_path


def test_round_trip_keeps_values_types_and_metadata(tmp_path):
    tied = torch.randn(4, 4)
    tensors = {"a": tied, "b": tied.t(), "half": torch.randn(3).to(torch.bfloat16), "step": torch.tensor(7)}
    save(tmp_path / "net.safetensors", tensors, {"config": json.dumps({"width": 4})})
    read, metadata = load(tmp_path / "net.safetensors")
    assert json.loads(metadata["config"]) == {"width": 4}
    assert read.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_arrays_round_trip(tmp_path):
    arrays = {"mean": np.arange(12.0).reshape(3, 4).T, "index": np.array([3, 1], dtype=np.int32)}
    save(tmp_path / "net.safetensors", arrays, {})
    read, _ = load(tmp_path / "net.safetensors", framework="numpy")
    for key, array in arrays.items():
        np.testing.assert_array_equal(read[key], array, strict=True)


def test_a_failed_save_leaves_the_previous_file(tmp_path):
    path = tmp_path / "net.safetensors"
    save(path, {"a": torch.zeros(2)}, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save(path, {"a": torch.ones(2)}, {"step": 3})  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_shipped_network_is_found_by_name_and_by_path(folder):
    assert (
        locate("tiny")
        == locate("tiny.safetensors")
        == locate(folder / "tiny.safetensors")
        == verified("tiny.safetensors")
    )
    assert torch.equal(load("tiny")[0]["weight"], torch.arange(6.0).reshape(2, 3))


def test_a_file_in_the_working_folder_needs_no_folder(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    save("mine.safetensors", {"a": torch.ones(1)}, {})
    assert load("mine.safetensors")[0]["a"] == 1


def test_a_damaged_verified_is_refused(folder):
    path = folder / "tiny.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    for name in ("tiny", path):
        with pytest.raises(CheckpointError, match="is damaged: sha256 .* reinstall avatard$"):
            load(name)


def test_an_unlisted_file_in_the_weights_folder_is_refused(folder):
    save(folder / "other.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="is not listed in SHA256SUMS"):
        load("other")


def test_a_missing_network_says_what_there_is(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no weights 'atom.safetensors' ship with avatard, only tiny.safetensors"):
        load("atom")
    with pytest.raises(CheckpointError, match="no weights at"):
        load(tmp_path / "missing.safetensors")
    (folder / "tiny.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing: reinstall avatard"):
        load("tiny")


def test_a_file_that_is_not_safetensors_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"\x80\x04pickle?")
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        load(path)


def test_a_malformed_sum_is_named_by_line(folder):
    (folder / "SHA256SUMS").write_text("0123  tiny.safetensors\n")
    with pytest.raises(CheckpointError, match="SHA256SUMS, line 1: expected"):
        shipped()


def test_everything_that_ships_is_listed_and_intact():
    files = {path.name for path in weights_dir().glob("*") if path.suffix in {".safetensors", ".tflite"}}
    assert files == set(shipped())
    for name in files:
        verified(name)
