"""Which device a setting means, and what is said where there is none; as if there were one, on a machine without."""

import pytest
import torch

from avatard.models import device as module
from avatard.models.device import CPU, DeviceError, allocated_bytes, choose_device, device_memory, refused_when_full
from avatard.models.precision import inference_autocast, inference_dtype

CUDA = torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch):
    """A machine with a build for CUDA and one device that works; `count` is how many there are."""

    def of(count=1, failure=None):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(module, "_failure", lambda device: failure)

    return of


@pytest.fixture
def none(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_without_a_gpu_auto_is_the_processor_and_the_others_are_refused_in_one_line(none):
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(DeviceError, match=r"^inference.device = 'cuda': PyTorch .* is built without CUDA: .*$"):
        choose_device("cuda")
    with pytest.raises(DeviceError, match=r"^inference.device = 'mps': no MPS device on this machine.*$"):
        choose_device("mps")


def test_auto_takes_a_gpu_that_works(cuda):
    cuda()
    assert choose_device("auto") == choose_device("cuda") == CUDA
    assert choose_device("cpu") == CPU


def test_a_build_without_a_device_and_a_device_too_many_are_said_to_be_so(cuda):
    cuda(0)
    with pytest.raises(DeviceError, match="no CUDA device on this machine"):
        choose_device("cuda")
    assert choose_device("auto").type != "cuda"
    cuda(2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="there are 2 CUDA devices, counted from 0"):
        choose_device("cuda:2")


def test_a_gpu_that_does_not_work_is_passed_over_by_auto_only(cuda):
    cuda(failure="it does not work: no kernel image is available")
    assert choose_device("auto").type != "cuda"
    with pytest.raises(DeviceError, match="no kernel image"):
        choose_device("cuda")


def test_what_the_networks_ask_of_a_device_is_tried():
    assert module._failure(CPU) is None
    assert str(module._failure(torch.device("meta"))).startswith("it does not work: ")


def test_a_full_memory_is_a_refusal_and_other_errors_stay_what_they_are():
    with pytest.raises(DeviceError, match=r"^this portrait: the GPU's memory is full: .*$") as refused:
        with refused_when_full("this portrait"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    assert refused.value.code == "device-full"
    with pytest.raises(ZeroDivisionError), refused_when_full("this portrait"):
        raise ZeroDivisionError


def test_numbers_are_narrow_where_that_is_faster(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert inference_dtype(CUDA) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert inference_dtype(CUDA) is torch.float16
    assert inference_dtype(torch.device("mps")) is torch.float32
    assert inference_autocast(CPU).fast_dtype is torch.bfloat16


def test_a_processor_has_no_memory_of_its_own():
    assert device_memory(CPU) is None and allocated_bytes(CPU) is None
