"""The rooms: who may import whom, and how long a file and a function may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = ("train", "generate", "evaluate", "score")
# each place knows those before it, and itself; nothing imports the command lines
ORDER = (
    ("common",),
    ("vqvae",),
    ("dataset",),
    ("sources",),
    ("models", "pixelcnn"),
    ("utils",),
    ("inference",),
    ("reporting",),
    ("scoring",),
    ("training",),
    COMMANDS,
)
STRANGERS = {("models", "sources"), ("pixelcnn", "sources"), ("utils", "sources")}
MOST_AT_THE_TOP, LONGEST_FILE, LONGEST_FUNCTION, LONGEST_SAMPLER = 8, 450, 60, 380
FILES = sorted(
    path for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")] if path.parent.name not in ("tests", "benchmarks")
)


def place_of(path: Path) -> str:
    """The room of a file, or the name of a file at the top."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The first part of every module that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names.add(node.module.split(".")[0])
    return names


def test_every_file_has_its_place():
    places = {name for step in ORDER for name in step}
    assert {place_of(path) for path in FILES} == places
    assert len([path for path in FILES if path.parent == ROOT]) <= MOST_AT_THE_TOP


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    rank = {name: index for index, step in enumerate(ORDER) for name in step}
    here = place_of(path)
    for other in (imported(path) & rank.keys()) - {here}:
        assert other not in COMMANDS, f"{path.name} imports the command line {other}"
        assert rank[other] <= rank[here], f"{here} is not to know {other}"
        assert (here, other) not in STRANGERS, f"{here} is not to know {other}"


def test_no_module_imports_itself_in_a_circle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    needs = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text())
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        found = {node.module for node in froms} | {f"{node.module}.{a.name}" for node in froms for a in node.names}
        needs[name] = found & modules.keys() - {name}
    ended: set[str] = set()
    while len(ended) < len(modules):
        free = {name for name in modules.keys() - ended if needs[name] <= ended}
        assert free, f"a circle among {sorted(modules.keys() - ended)}"
        ended |= free


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= (LONGEST_SAMPLER if path.name == "sampler.py" else LONGEST_FILE)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= LONGEST_FUNCTION, node.name


def test_no_two_neighbours_have_names_that_differ_by_a_suffix():
    for folder in {path.parent for path in FILES}:
        names = sorted(path.stem for path in FILES if path.parent == folder)
        twins = {(a, b) for a in names for b in names if a != b and b.startswith(a[:-1])}
        assert not twins, twins
