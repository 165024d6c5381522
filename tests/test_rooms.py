"""The shape of the code: who imports whom. A room imports lower floors, or its own where that makes no circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {  # docs/ and tests/ stand above all
    **dict.fromkeys(("model", "cache", "losses", "units", "answers", "reward"), 0),
    **dict.fromkeys(("skip", "data"), 1),
    "support": 2,
    **dict.fromkeys(("rollout", "report"), 3),  # report reads files alone; a run prints what it makes of them
    **dict.fromkeys(("nested", "evaluate", "look"), 4),
    "run": 5,
    "train": 6,
    "bench": 7,
}
FILES = {  # by the name that they are imported under
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
    for place in (".", "data", "support")
    for path in (ROOT / place).glob("*.py")
}


def imports(node: ast.AST) -> set[str]:
    """What is imported anywhere in a tree: modules, and names of modules as "module.name"."""
    found = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            found |= {alias.name for alias in each.names}
        elif isinstance(each, ast.ImportFrom):
            found |= {each.module} | {f"{each.module}.{alias.name}" for alias in each.names}
    return found


def tree_of(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def test_every_file_has_its_floor():
    """A new file has to say where it stands."""
    assert {name.split(".")[0] for name in FILES} == FLOORS.keys()


@pytest.mark.parametrize("name", FILES)
def test_no_import_goes_up(name):
    """What is below can be read, and trusted, without what is above. model.py has the one door: from_pretrained and
    save_pretrained reach up to support/ when they are called."""
    tree, own = tree_of(name), name.split(".")[0]
    rooms = {imported.split(".")[0] for imported in imports(tree)}
    up = {room for room in rooms & FLOORS.keys() if FLOORS[room] > FLOORS[own]}
    assert up == ({"support"} if name == "model" else set()) and not rooms & {"docs", "tests"}
    if name == "model":
        doors = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and imports(node)]
        assert [door.name for door in doors] == ["from_pretrained", "save_pretrained"]


def test_imports_make_no_circle():
    """Neither among the files of a floor: each can be read before those that import it."""
    graph = {}
    for name in FILES:
        statements = [node for node in tree_of(name).body if isinstance(node, ast.Import | ast.ImportFrom)]
        graph[name] = (set().union(*map(imports, statements)) & FILES.keys()) - {name}
    done: set[str] = set()
    while ready := {name for name in graph.keys() - done if graph[name] <= done}:
        done |= ready
    assert done == graph.keys()


def test_support_knows_no_run():
    """What any training program needs is given what it needs, and not the run."""
    for name in FILES:
        if name.startswith("support"):
            nodes = list(ast.walk(tree_of(name)))
            names = {node.id for node in nodes if isinstance(node, ast.Name)}
            assert not (names | {node.arg for node in nodes if isinstance(node, ast.arg)}) & {"run", "Run"}, name


def test_no_file_lends_another_its_handling_of_errors():
    """What a command says when it fails, and with which status it ends, stands in support/."""
    for name in FILES:
        borrowed = {each for each in imports(tree_of(name)) if each.endswith((".report_error", ".out_of_memory"))}
        assert all(each.startswith("support.") for each in borrowed), name
