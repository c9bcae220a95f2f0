"""Feed the parsers of what comes from outside with mutated inputs: SDP, messages, pictures, sound, configuration.

    python scripts/fuzz.py                        # 100,000 inputs for each parser
    python scripts/fuzz.py offer image --seed 2 --minutes 5 --finds finds

A parser may refuse an input with its documented error, in one line, soon and within bounded memory. Any other error, a
hang or a crash is a find: the input is written to the folder of --finds, and the exit code is 1. The same seed gives
the same inputs. A process is used for each parser, so that one that crashes says which input it was.
"""

import asyncio
import json
import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parent.parent


def feed(name: str, options: dict[str, Any], last: str, results: Any) -> None:
    """Fuzz one parser in this process; put the row of its report."""
    from tests.support.fuzz_targets import targets
    from tests.support.fuzzing import fuzz

    target = targets(Path(last).parent)[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    most = options.pop("memory_mb") * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    report = asyncio.run(fuzz(target, on_input=Path(last).write_bytes, **options))
    results.put(
        {
            "parser": name,
            "inputs": report.inputs,
            "refused": report.refused,
            "outcomes": len(report.outcomes),
            "cpu_s": round(report.seconds, 1),
            "slowest_ms": round(1000 * report.slowest, 1),
            "memory_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
            "finds": {find.what: [find.data.hex(), find.trace] for find in report.finds.values()},
        }
    )


def main(
    parsers: Annotated[list[str] | None, typer.Argument(help="Which; all without a name.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Inputs for each.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Of the mutations.")] = 1,
    minutes: Annotated[float, typer.Option(help="CPU time for each, at most.")] = 10.0,
    seconds: Annotated[float, typer.Option(help="CPU time for one input, at most.")] = 2.0,
    memory_mb: Annotated[int, typer.Option(help="Address space of the process.")] = 4096,
    finds: Annotated[Path, typer.Option(help="Folder for the inputs.")] = Path("finds"),
    report: Annotated[Path | None, typer.Option(help="File for the figures, JSON.")] = None,
) -> None:
    """Feed the parsers with mutated inputs."""
    sys.path.insert(0, str(ROOT))
    from tests.support.fuzz_targets import targets

    known = targets(finds)
    unknown = [name for name in parsers or () if name not in known]
    if unknown:
        print(f"got {unknown[0]}, expected of {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    rows, context = [], multiprocessing.get_context("spawn")
    line = "{:<12}{:>9}{:>9}{:>9}{:>8}{:>11}{:>10}  {}"
    print(line.format("parser", "inputs", "refused", "outcomes", "CPU s", "slowest ms", "memory MB", "finds"))
    for name in parsers or known:
        results = context.SimpleQueue()
        options = {
            "count": count,
            "seed": seed,
            "minutes": minutes,
            "hang_seconds": seconds,
            "memory_mb": memory_mb,
        }
        with tempfile.TemporaryDirectory(prefix="avatard-fuzz-") as scratch:
            last = Path(scratch, "last")
            process = context.Process(target=feed, args=(name, options, str(last), results))
            process.start()
            process.join()
            row: dict[str, Any] = {"parser": name, "finds": {}}
            if not results.empty():
                row = results.get()
            else:
                row["finds"][f"it ended with {process.exitcode}"] = [last.read_bytes().hex(), ""]
        rows.append(row)
        figures = [row.get(key, "") for key in ("inputs", "refused", "outcomes", "cpu_s", "slowest_ms", "memory_mb")]
        print(line.format(name, *figures, len(row["finds"])), flush=True)
        for number, (what, (data, trace)) in enumerate(row["finds"].items()):
            finds.mkdir(parents=True, exist_ok=True)
            path = finds / f"{name}-{seed}-{number}.bin"
            path.write_bytes(bytes.fromhex(data))
            print(f"  {what}: {path}\n    " + trace.strip().replace("\n", "\n    "))
    if report is not None:
        report.write_text(json.dumps(rows, indent=1) + "\n")
    raise SystemExit(any(row["finds"] for row in rows))


if __name__ == "__main__":
    typer.run(main)
