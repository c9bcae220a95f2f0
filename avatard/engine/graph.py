"""Passes as CUDA graphs: recorded once, then launched as a whole.

Without them a GPU waits for the processor, which launches a hop's thousands of kernels one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from avatard.engine.batch import leaves, rebuilt, signature

logger = logging.getLogger(__name__)

I = TypeVar("I", bound=tuple[Any, ...])  # noqa: E741
O = TypeVar("O")  # noqa: E741

#: Records what a function launches: what it returned, and what launches it again, to the same memory.
Record: TypeAlias = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]


class CudaRecord:
    """Records CUDA graphs. They share memory: none may be launched while the result of another one is read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """See `Record`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            stream = self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            # Libraries prepare themselves for each thread and stream, which cannot be recorded.
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                run()
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads go on using the device meanwhile.
            with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
                made = run()
            self._pool = graph.pool()
        return made, graph.replay


class _Recording(NamedTuple):
    inputs: list[Tensor]
    made: Any
    launch: Callable[[], None]


class Graphed(Generic[I, O]):
    """A pass that is recorded when inputs of the same shapes come a second time, and replayed from then on.

    What comes only once is not worth it. Numbers of sessions are rounded up to powers of two, so that few recordings
    serve all; what is computed beyond them is left out. If a pass cannot be recorded, it runs as it is for good. One
    thread at a time may call it.

    Args:
        run: the pass.
        record: how it is recorded.
    """

    def __init__(self, run: Callable[..., O], record: Record) -> None:
        self._run = run
        self._record = record
        self._seen: set[Hashable] = set()
        self._recordings: dict[Hashable, _Recording | None] = {}

    @torch.inference_mode()
    def __call__(self, inputs: I, *settings: int) -> O:
        """See `avatard.engine.batch`."""
        given = list(leaves(inputs))
        count = len(given[0])
        rows = 1 << (count - 1).bit_length()
        kind = (rows, settings, signature(inputs))
        if kind not in self._recordings:
            if kind not in self._seen:
                self._seen.add(kind)
                return self._run(inputs, *settings)
            self._recordings[kind] = self._recorded(inputs, rows, settings)
        recording = self._recordings[kind]
        if recording is None:
            return self._run(inputs, *settings)
        for place, tensor in zip(recording.inputs, given, strict=True):
            place[:count].copy_(tensor)
        recording.launch()
        made: O = rebuilt(recording.made, (tensor[:count].clone() for tensor in leaves(recording.made)))
        return made

    def _recorded(self, inputs: I, rows: int, settings: tuple[int, ...]) -> _Recording | None:
        """A recording for this many sessions; None if there cannot be one."""
        # A session's inputs stand in the rows that no session has: they are as good as any.
        places = [torch.cat([t, t[:1].expand(rows - len(t), *t.shape[1:])]) for t in leaves(inputs)]
        try:
            made, launch = self._record(lambda: self._run(rebuilt(inputs, iter(places)), *settings))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("networks not recorded", extra={"reason": str(error).splitlines()[0]})
            return None
        return _Recording(places, made, launch)
