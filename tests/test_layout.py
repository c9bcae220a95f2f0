"""The rules of the folders, which no linter knows: who may import whom, and who may read a clock."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "avatard": ROOT / "avatard",
    "avatard.models": ROOT / "models",
    "avatard.protocols": ROOT / "protocols",
}
# Modules that every package may import; they import nothing but each other.
LEAVES = {"avatard.timebase", "avatard.errors", "avatard.frame", "avatard.portrait"}
# Arrows point one way: the daemon knows both, and neither knows the daemon or the other.
FORBIDDEN = {
    "avatard": (),
    "avatard.models": ("avatard.protocols", "aiohttp", "aiortc", "zmq"),
    "avatard.protocols": ("avatard.models", "torch", "transformers"),
}


def modules(package: str) -> list[Path]:
    links = {"models", "protocols", "configs"}
    return [
        path
        for path in sorted(PACKAGES[package].rglob("*.py"))
        if package != "avatard" or path.relative_to(ROOT / "avatard").parts[0] not in links
    ]


def imports(path: Path) -> set[str]:
    """Full names of what a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package):
    for path in modules(package):
        for name in imports(path):
            assert not any(under(name, banned) for banned in FORBIDDEN[package]), f"{path} imports {name}"
            if package != "avatard" and under(name, "avatard") and name != "avatard" and not is_leaf(name):
                assert under(name, package), f"{path} imports {name}"


def is_leaf(name: str) -> bool:
    return any(under(name, leaf) for leaf in LEAVES)


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaves_import_only_leaves(leaf):
    path = ROOT / (leaf.replace(".", "/") + ".py")
    assert not [name for name in imports(path) if under(name, "avatard") and not is_leaf(name)]


# The daemon's folders from the top down; those of one line do not know each other.
LAYERS = (("commands",), ("gateways",), ("session", "engine"), ("inference",), ("playout",), ("media",))


@pytest.mark.parametrize("folder", [folder for layer in LAYERS for folder in layer])
def test_folders_of_the_daemon_import_downwards(folder):
    level = next(i for i, layer in enumerate(LAYERS) if folder in layer)
    above = [f"avatard.{other}" for layer in LAYERS[: level + 1] for other in layer if other != folder]
    for path in sorted((ROOT / "avatard" / folder).rglob("*.py")):
        assert not [name for name in imports(path) if any(under(name, other) for other in above)], path


def reads_a_clock(path: Path) -> bool:
    """Whether it uses `time` for more than to sleep, or `datetime.now` and its like."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asks = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | imports(path)
    return any(re.fullmatch(r"time\.(?!sleep$)\w+|.*\bdate(time)?\.(now|utcnow|today)", ask) for ask in asks)


def test_only_the_clock_module_reads_a_clock():
    readers = {
        path.relative_to(ROOT).as_posix() for package in PACKAGES for path in modules(package) if reads_a_clock(path)
    }
    assert readers == {"avatard/clock.py"}


@pytest.mark.parametrize("name", ["models", "protocols", "configs"])
def test_links_are_relative_and_committed_as_links(name):
    link = ROOT / "avatard" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
