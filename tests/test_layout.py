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


#: The folders of the daemon from the ground up: a module imports from its own folder and from those before it.
FLOORS = [
    ("timebase", "errors", "frame", "portrait"),
    ("clock", "config", "config_loader", "log", "models", "protocols", "media"),
    ("tts",),
    ("playout",),
    ("inference",),
    ("engine",),
    ("session",),
    ("integrations", "cluster"),
    ("gateways",),
    ("commands",),
    ("cli", "__main__"),
]


def floor_of(name: str) -> int:
    """Of a module by its full name; the package itself is below all."""
    parts = name.split(".")
    return -1 if len(parts) == 1 else next((n for n, rooms in enumerate(FLOORS) if parts[1] in rooms), -1)


def all_modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in modules(package):
            name = ".".join([package, *path.relative_to(folder).with_suffix("").parts])
            found[name.removesuffix(".__init__")] = path
    return found


def test_no_module_imports_upwards():
    for name, path in all_modules().items():
        for imported in imports(path):
            if under(imported, "avatard"):
                assert floor_of(imported) <= floor_of(name), f"{name} imports {imported}"


def test_imports_have_no_circle():
    """Also those inside functions and for type checkers."""
    known = all_modules()
    graph = {name: {i for i in imports(path) if i in known and i != name} for name, path in known.items()}
    graph = {name: {i for i in found if known[i].name != "__init__.py"} for name, found in graph.items()}
    while graph:
        free = [name for name, found in graph.items() if not found & graph.keys()]
        assert free, f"a circle of imports among {sorted(graph)}"
        graph = {name: found for name, found in graph.items() if name not in free}


def test_the_top_of_the_daemon_is_short():
    assert len([path for path in (ROOT / "avatard").iterdir() if path.is_file()]) <= 12


def test_what_serving_does_not_need_is_not_among_the_networks():
    """Every module of models/ outside training and evaluation is used by a verb."""
    known = all_modules()
    reached, waiting = set[str](), ["avatard.cli", "avatard.inference.worker", "avatard.engine.engine"]
    while waiting:
        name = waiting.pop()
        if name in known and name not in reached:
            reached.add(name)
            waiting += imports(known[name])
    unused = {
        name
        for name, path in known.items()
        if under(name, "avatard.models") and path.name != "__init__.py" and name not in reached
        if not under(name, "avatard.models.training") and not under(name, "avatard.models.evaluation")
    }
    assert not unused


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
