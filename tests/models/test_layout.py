"""The rules of the folders under models/: no circles, and nothing that serving does not need beside the networks."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LINKS = {"models", "protocols", "configs"}
#: What may be there for training and evaluation alone.
OFFLINE = ("avatard.models.training", "avatard.models.evaluation")
#: Modules of `avatard` that no verb imports: scripts do.
FOR_SCRIPTS = {"avatard.commands.offline", "avatard.commands.script"}


def sources() -> dict[str, Path]:
    """Every module of the installed package, by its full name."""
    found = {}
    for package, folder in (("avatard", ROOT / "avatard"), ("avatard.models", ROOT / "models")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if package != "avatard" or parts[0] not in LINKS:
                found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


SOURCES = sources()


def imports(name: str) -> set[str]:
    """The modules of ours that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return {found for found in names if found in SOURCES and found != name and not found == "avatard.models"}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The names of one circle, or none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


MODELS = [name for name in SOURCES if name.startswith("avatard.models.")]


def test_no_circle_of_modules():
    assert not circle({name: {other for other in imports(name) if other in MODELS} for name in MODELS})


def test_no_circle_of_folders():
    graph: dict[str, set[str]] = defaultdict(set)
    for name in MODELS:
        folder = SOURCES[name].parent
        graph[folder.as_posix()] |= {SOURCES[other].parent.as_posix() for other in imports(name) if other in MODELS} - {
            folder.as_posix()
        }
    assert not circle(graph)


@pytest.fixture(scope="module")
def served() -> set[str]:
    """All that the verbs import."""
    waiting = [name for name in SOURCES if not name.startswith("avatard.models") and name not in FOR_SCRIPTS]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imports(name)
    return found


def test_serving_imports_nothing_of_training_and_evaluation(served):
    assert not [name for name in served if name.startswith(OFFLINE)]


def test_what_serving_does_not_need_is_training_or_evaluation(served):
    offline = [name for name in MODELS if not name.startswith(OFFLINE) and SOURCES[name].name != "__init__.py"]
    assert not sorted(set(offline) - served)
