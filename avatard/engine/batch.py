"""Sessions that share the passes of the networks: all that ask at the same time are served by one pass.

A pass is a function of a tree of tensors, whose first dimension counts sessions, and of whole numbers; it returns a
tree. On a GPU a pass of thirty sessions takes as long as one of a single session. On a processor it takes thirty times
as long, and sums that are grouped otherwise would differ in their last bits: there every session has its own passes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor

from avatard.inference.engine_api import Timer, untimed
from avatard.models.device import refused_when_full

I = TypeVar("I", bound=tuple[Any, ...])  # noqa: E741
O = TypeVar("O")  # noqa: E741

#: Most sessions in a pass: from there on a GPU's time grows with their number.
MOST_SESSIONS: Final = 32


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of a tree of (named) tuples, in their order; None has none."""
    if isinstance(tree, Tensor):
        yield tree
    elif tree is not None:
        for part in tree:
            yield from leaves(part)


def rebuilt(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """A tree of the same kind from the next of these tensors."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if tree is None:
        return None
    parts = [rebuilt(part, tensors) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def signature(tree: Any) -> Hashable:
    """What two trees must have in common to be joined: everything but the number of sessions."""
    if isinstance(tree, Tensor):
        return tree.shape[1:], tree.dtype, tree.device
    return None if tree is None else tuple(signature(part) for part in tree)


def together(run: Callable[..., O], inputs: Sequence[I], *settings: int) -> list[O]:
    """One pass for several sessions.

    Args:
        run: the pass.
        inputs: of each session; their `signature`s are equal.
        settings: of the pass.

    Returns:
        What `run` makes of each, in memory of its own.
    """
    if len(inputs) == 1:
        return [run(inputs[0], *settings)]
    joined = (torch.cat(parts) for parts in zip(*map(leaves, inputs), strict=True))
    made = run(rebuilt(inputs[0], joined), *settings)
    counts = [len(next(leaves(one))) for one in inputs]
    # Copies: a part would keep all of the pass's memory for as long as one of its sessions lives.
    split = zip(*([part.clone() for part in torch.split(whole, counts)] for whole in leaves(made)), strict=True)
    return [rebuilt(made, iter(parts)) for parts in split]


@dataclass(eq=False)
class _Asked(Generic[I, O]):
    """A session that waits for a pass."""

    inputs: I
    settings: tuple[int, ...]
    made: O | None = None
    error: BaseException | None = None
    done: bool = False

    @property
    def kind(self) -> Hashable:
        return self.settings, signature(self.inputs)


class Shared(Generic[I, O]):
    """A pass that sessions on several threads share.

    There is no tick to wait for: while a pass runs, those who come wait together, and the next pass is theirs. One of
    them runs it on its own thread. So a lone session waits for nobody, and the more there are, the more share a pass.

    Args:
        run: the pass; it is called by one thread at a time.
        most: sessions in a pass.
    """

    def __init__(self, run: Callable[..., O], most: int = MOST_SESSIONS) -> None:
        self._run = run
        self._most = most
        self._changed = threading.Condition()
        self._waiting: list[_Asked[I, O]] = []
        self._running = False

    def __call__(self, inputs: I, *settings: int, timer: Timer = untimed) -> O:
        """The pass of one session, whoever shares it.

        Args:
            inputs: of the pass, of one session.
            settings: of the pass; sessions with others have another pass.
            timer: entered around the wait and the pass.

        Raises:
            DeviceError: the device's memory does not even hold the pass of this session alone.
        """
        with timer("networks"):
            return self._shared(inputs, settings)

    def _shared(self, inputs: I, settings: tuple[int, ...]) -> O:
        asked = _Asked[I, O](inputs, settings)
        with self._changed:
            self._waiting.append(asked)
        while not asked.done:
            with self._changed:
                self._changed.wait_for(lambda: asked.done or not self._running)
                if asked.done:
                    break
                self._running, chosen = True, self._oldest()
            self._serve(chosen)
            with self._changed:
                for one in chosen:
                    one.done = True
                self._running = False
                self._changed.notify_all()
        if asked.error is not None:
            raise asked.error
        return asked.made  # type: ignore[return-value]  # a pass may well make None

    def _oldest(self) -> list[_Asked[I, O]]:
        """Who has waited longest, and those who can share its pass; they wait no more."""
        kind = self._waiting[0].kind
        chosen = [one for one in self._waiting if one.kind == kind][: self._most]
        self._waiting = [one for one in self._waiting if one not in chosen]
        return chosen

    def _serve(self, chosen: Sequence[_Asked[I, O]]) -> None:
        """Run a pass; if it fails, in halves: one session's mistake, or the memory of many, is nobody else's loss."""
        try:
            with refused_when_full("the networks"):
                made = together(self._run, [one.inputs for one in chosen], *chosen[0].settings)
            for one, result in zip(chosen, made, strict=True):
                one.made = result
        except BaseException as error:
            if len(chosen) == 1:
                chosen[0].error = error
                return
            half = len(chosen) // 2
            if getattr(error, "code", "") == "device-full":
                self._most = half
            self._serve(chosen[:half])
            self._serve(chosen[half:])
