"""A fuzzer: seeds are mutated, and inputs with a new outcome are mutated further.

    report = await fuzz(target, count=100_000, seed=1)

A parser may accept an input, or refuse it with one of its documented errors, in one line. Anything else is a find. The
outcome (the text of a refusal without its numbers and quotations) takes the place of code coverage as feedback: it
costs nothing, and an error that is new comes from a branch that was not reached before.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

MOST_CORPUS = 400
MOST_TEXT = 1000  # characters of a refusal
MOST_DEPTH = 1200  # of nested values
SHRINK_TRIES = 300

#: Between the messages of an input that has several.
NEXT = b"\x1e"
#: What breaks parsers: digits that are none, line ends that are none, numbers at the edges.
WORDS = (
    "²", "٣", "\u2028", "\x85", "\x00", "\ufeff", "\U0001f600", "\\ud800", "-1", "0", "1e999", "NaN", "255", "256",
    "65536",
    "4294967296", "18446744073709551616", "9" * 30, "9" * 5000, "%s", "{}", "../", "\r\n", "\t", "'", '"', "\\",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64 - 1, 1e308, -0.5, "", "x" * 65, "x" * 5000, "²", "\x00", "\u2028",
    [], {}, [[]], {"": ""}, b"", b"\xff" * 100,
)  # fmt: skip


class Hang(BaseException):
    """An input that takes too long; no parser catches it."""


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        name: for the command line.
        seeds: inputs that are accepted, and a few that are refused.
        parse: takes an input; returns the outcome in a word.
        refusals: the documented errors.
        words: what inputs are made of.
        form: `json` and `msgpack` are mutated as values, too.
        settle: lets work that an input began go on; raises what went wrong in it.
        most_bytes: of an input.
    """

    name: str
    seeds: Sequence[bytes]
    parse: Callable[[bytes], str]
    refusals: tuple[type[Exception], ...]
    words: Sequence[str] = ()
    form: str = ""
    settle: Callable[[], Any] | None = None
    most_bytes: int = 1 << 18


@dataclass
class Find:
    """An input that a parser neither accepts nor refuses as it should."""

    what: str
    data: bytes
    trace: str


@dataclass
class Report:
    """What came of it."""

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0  # of CPU
    slowest: float = 0.0  # of CPU, for one input
    outcomes: Counter[str] = field(default_factory=Counter)
    finds: dict[str, Find] = field(default_factory=dict)


async def fuzz(
    target: Target,
    count: int,
    seed: int,
    minutes: float = 1e9,
    hang_seconds: float = 0.0,
    on_input: Callable[[bytes], object] = len,
) -> Report:
    """Feed a parser.

    Args:
        target: the parser.
        count: inputs.
        seed: the same one gives the same inputs.
        minutes: end sooner.
        hang_seconds: CPU time after which an input is a find; 0 does not look.
        on_input: called with each input before it is tried, for a parser that ends the process.
    """
    report, corpus = Report(), list(target.seeds)
    mutator = Mutator(random.Random(f"{seed} {target.name}"), target)
    began = time.process_time()
    for number in range(count):
        if number >= len(target.seeds):
            data = mutator.mutate(corpus)
        else:
            data = target.seeds[number]
        on_input(data)
        since = time.process_time()
        outcome, find = await _try(target, data, hang_seconds)
        report.slowest = max(report.slowest, time.process_time() - since)
        report.inputs += 1
        report.refused += outcome.startswith("refused")
        report.outcomes[outcome] += 1
        if find is not None and find.what not in report.finds:
            report.finds[find.what] = await _shrunk(target, find, hang_seconds)
        if report.outcomes[outcome] == 1 and len(corpus) < MOST_CORPUS and find is None:
            corpus.append(data)
        if time.process_time() - began > 60 * minutes:
            break
    report.seconds = time.process_time() - began
    return report


async def _try(target: Target, data: bytes, hang_seconds: float) -> tuple[str, Find | None]:
    """The outcome of an input, and whether it is a find."""
    try:
        try:
            with _limited(hang_seconds):
                outcome = target.parse(data)
        finally:
            if target.settle is not None:
                await target.settle()
    except target.refusals as error:
        text = str(error)
        wrong = _fault_of(text)
        if wrong:
            return wrong, Find(f"{type(error).__name__}: {wrong}", data, text[:500])
        return f"refused {type(error).__name__} {gist(text)}", None
    except asyncio.CancelledError:
        raise
    except (Exception, Hang) as error:
        trace = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in trace if "site-packages" not in frame.filename] or list(trace)
        where = f"{own[-1].filename.rpartition('/')[2]}:{own[-1].name}"
        return "failed", Find(
            f"{type(error).__name__} in {where}", data, "".join(traceback.format_exception(error))[-3000:]
        )
    return f"accepted {outcome}", None


def _fault_of(text: str) -> str:
    """What is wrong with the text of a refusal."""
    if not text.strip() or len(text.splitlines()) > 1:
        return "the text is not one line"
    if len(text) > MOST_TEXT:
        return "the text is too long"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the text is not Unicode"
    return ""


def gist(text: str) -> str:
    """A refusal without what it quotes."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[\d.,]+|\b[0-9a-f]{6,}\b", "#", text)[:70]


async def _shrunk(target: Target, find: Find, hang_seconds: float) -> Find:
    """A smaller input with the same fault."""
    size, tries = len(find.data) // 2, 0
    while size and tries < SHRINK_TRIES:
        at = 0
        while at < len(find.data) and tries < SHRINK_TRIES:
            tries += 1
            _, found = await _try(target, find.data[:at] + find.data[at + size :], hang_seconds)
            if found is not None and found.what == find.what:
                find = found
            else:
                at += size
        size //= 2
    return find


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `Hang` in what takes more CPU time; 0: never. Only in the main thread."""
    if not seconds:
        yield
        return

    def hang(*_: object) -> None:
        raise Hang(f"it took more than {seconds:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class Mutator:
    """Makes inputs out of others.

    Args:
        rng: decides.
        target: what they are for.
    """

    def __init__(self, rng: random.Random, target: Target) -> None:
        self._rng = rng
        self._words = [word.encode() for word in (*target.words, *WORDS)]
        self._form = target.form
        self._most = target.most_bytes
        self._moves = [
            self._flip, self._set, self._insert, self._insert_word, self._delete, self._copy, self._repeat,
            self._splice, self._number, self._swap_lines, self._cut,
        ]  # fmt: skip

    def mutate(self, corpus: Sequence[bytes]) -> bytes:
        """The next input."""
        rng = self._rng
        # The newest outcomes are the most interesting ones.
        data = corpus[-1 - int(len(corpus) * rng.random() ** 2)]
        if self._form and rng.random() < 0.5:
            data = self._as_value(data)
            if rng.random() < 0.7:
                return data[: self._most]
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 8))):
            data = rng.choice(self._moves)(data, corpus)
        return data[: self._most]

    def _slice(self, data: bytes) -> tuple[int, int]:
        start = self._rng.randrange(len(data) + 1)
        return start, min(len(data), start + int(2 ** (self._rng.random() * 8)))

    def _flip(self, data: bytes, _: Sequence[bytes]) -> bytes:
        if not data:
            return data
        at = self._rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << self._rng.randrange(8))]) + data[at + 1 :]

    def _set(self, data: bytes, _: Sequence[bytes]) -> bytes:
        at = self._rng.randrange(len(data) + 1)
        return (
            data[:at] + bytes([self._rng.choice((0, 1, 0x7F, 0x80, 0xFF, self._rng.randrange(256)))]) + data[at + 1 :]
        )

    def _insert(self, data: bytes, _: Sequence[bytes]) -> bytes:
        at = self._rng.randrange(len(data) + 1)
        return data[:at] + self._rng.randbytes(self._rng.randrange(1, 9)) + data[at:]

    def _insert_word(self, data: bytes, _: Sequence[bytes]) -> bytes:
        start, end = self._slice(data)
        return data[:start] + self._rng.choice(self._words) + data[self._rng.choice((start, end)) :]

    def _delete(self, data: bytes, _: Sequence[bytes]) -> bytes:
        start, end = self._slice(data)
        return data[:start] + data[end:]

    def _copy(self, data: bytes, _: Sequence[bytes]) -> bytes:
        start, end = self._slice(data)
        at = self._rng.randrange(len(data) + 1)
        return data[:at] + data[start:end] + data[at:]

    def _repeat(self, data: bytes, _: Sequence[bytes]) -> bytes:
        start, end = self._slice(data)
        if self._rng.random() < 0.5:  # whole lines
            start = data.rfind(b"\n", 0, start) + 1
            end = data.find(b"\n", start) + 1 or len(data)
        times = int(2 ** (self._rng.random() * 14)) if self._rng.random() < 0.1 else self._rng.randrange(2, 6)
        times = min(times, self._most // max(1, end - start))
        return data[:start] + data[start:end] * times + data[end:]

    def _splice(self, data: bytes, corpus: Sequence[bytes]) -> bytes:
        other = self._rng.choice(corpus)
        start, end = self._slice(other)
        at = self._rng.randrange(len(data) + 1)
        return data[:at] + (other[start:] if self._rng.random() < 0.3 else other[start:end] + data[at:])

    def _number(self, data: bytes, _: Sequence[bytes]) -> bytes:
        """Another number in a text, or in four bytes."""
        found = list(re.finditer(rb"\d+", data[:4096]))
        if found and self._rng.random() < 0.7:
            one = self._rng.choice(found)
            value = str(int(one[0][:9]) + self._rng.choice((-1, 1, 2**16, 2**31, 2**32))).encode()
            return data[: one.start()] + value + data[one.end() :]
        at = self._rng.randrange(len(data) + 1)
        value = self._rng.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1)).to_bytes(
            4, self._rng.choice(("little", "big"))
        )
        return data[:at] + value + data[at + 4 :]

    def _swap_lines(self, data: bytes, _: Sequence[bytes]) -> bytes:
        lines = data.split(b"\n")
        one, other = self._rng.randrange(len(lines)), self._rng.randrange(len(lines))
        lines[one], lines[other] = lines[other], lines[one]
        return b"\n".join(lines)

    def _cut(self, data: bytes, _: Sequence[bytes]) -> bytes:
        return data[: self._rng.randrange(len(data) + 1)]

    def _as_value(self, data: bytes) -> bytes:
        """An input with another value somewhere in it; itself where it is none."""
        try:
            if self._form == "msgpack":
                return msgspec.msgpack.encode(self._change(msgspec.msgpack.decode(data)))
            parts = data.split(NEXT)
            at = self._rng.randrange(len(parts))
            parts[at] = json.dumps(self._change(json.loads(parts[at])), default=repr).encode()
            return NEXT.join(parts)
        except (RecursionError, OverflowError, TypeError, ValueError, msgspec.MsgspecError):
            return data

    def _change(self, value: Any) -> Any:
        rng = self._rng
        if isinstance(value, dict) and value and rng.random() < 0.85:
            key = rng.choice(list(value))
            changed = dict(value)
            match rng.randrange(6):
                case 0:
                    del changed[key]
                case 1:
                    changed[rng.choice(self._words).decode()] = changed[key]
                case 2:
                    other = rng.choice(list(value))
                    changed[key] = changed[other]
                case _:
                    changed[key] = self._change(changed[key])
            return changed
        if isinstance(value, list) and value and rng.random() < 0.7:
            at = rng.randrange(len(value))
            return [*value[:at], self._change(value[at]), *value[at + rng.randrange(2) :]]
        if isinstance(value, str) and rng.random() < 0.5:
            at = rng.randrange(len(value) + 1)
            return value[:at] + rng.choice(self._words).decode() + value[at:]
        if rng.random() < 0.1:
            for _ in range(rng.randrange(MOST_DEPTH)):
                value = [value] if rng.random() < 0.9 else {"t": value}
            return value
        return rng.choice(VALUES)
