"""The rules of the folders under models/: no circles between them, and nothing of training where avatars are served."""

from collections import defaultdict

from tests.test_layout import all_modules, imports, under

KNOWN = all_modules()
OFFLINE = ("avatard.models.training", "avatard.models.evaluation")
#: What the files under scripts/ import, and no verb does.
FOR_SCRIPTS = {"avatard.commands.offline", "avatard.commands.script"}


def test_folders_have_no_circle():
    graph: dict[str, set[str]] = defaultdict(set)
    for name, path in KNOWN.items():
        if under(name, "avatard.models"):
            found = [i for i in imports(path) if i in KNOWN and KNOWN[i].name != "__init__.py"]
            graph[str(path.parent)] |= {str(KNOWN[i].parent) for i in found if under(i, "avatard.models")}
    for folder in graph:
        graph[folder].discard(folder)
    while graph:
        free = [folder for folder, needed in graph.items() if not needed & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for folder in free:
            del graph[folder]


def test_serving_imports_nothing_of_training_and_evaluation():
    for name, path in KNOWN.items():
        if name not in FOR_SCRIPTS and not any(under(name, offline) for offline in OFFLINE):
            assert not [i for i in imports(path) if any(under(i, offline) for offline in OFFLINE)], name
