"""The exercises of docs/exercises: complete, solvable, and not solved by their own pages."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXERCISES = ROOT / "docs" / "exercises"
NUMBERS = [f"{n:02}" for n in range(1, 11)]


def page(number: str) -> str:
    return (EXERCISES / f"{number}.md").read_text(encoding="utf-8")


def skeleton(number: str) -> str:
    """What the page gives to copy."""
    (found,) = re.findall(r"```python\n(.*?)```", page(number), re.S)
    return found


def names(source: str) -> dict[str, list[str] | None]:
    """The functions of a file by their arguments, and its constants."""
    tree = ast.parse(source).body
    functions = {node.name: [a.arg for a in node.args.args] for node in tree if isinstance(node, ast.FunctionDef)}
    return functions | {node.targets[0].id: None for node in tree if isinstance(node, ast.Assign)}


@pytest.mark.parametrize("number", NUMBERS)
def test_each_has_a_page_a_checker_and_a_solution_that_fit(number):
    """The index lists it with its title, and the solution has all that the page's skeleton has."""
    for name in (f"{number}.md", f"check_{number}.py", f"solutions/answer_{number}.py"):
        assert (EXERCISES / name).is_file(), name
    title, *rest = page(number).splitlines()
    assert f"| {int(number)} | [{title.partition('. ')[2]}]({number}.md) | " in page("README")
    assert f"    python -m pytest docs/exercises/check_{number}.py" in rest and len(rest) < 60
    assert f"docs/exercises/answer_{number}.py" in page(number)
    solution = names((EXERCISES / f"solutions/answer_{number}.py").read_text(encoding="utf-8"))
    asked = names(skeleton(number))
    assert asked and asked.items() <= solution.items()


@pytest.mark.parametrize("number", NUMBERS)
def test_no_page_contains_its_solution(number):
    """Neither a line of a function, nor a constant that is asked for."""
    source = (EXERCISES / f"solutions/answer_{number}.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        statements = node.body if isinstance(node, ast.FunctionDef) else [node] * isinstance(node, ast.Assign)
        for statement in statements:
            text = ast.get_source_segment(source, statement)
            assert text not in page(number) and text.removeprefix("return ") not in page(number), text


@pytest.mark.parametrize("name", ["README", *NUMBERS])
def test_links_of_the_pages_lead_to_files(name):
    for target in re.findall(r"\]\(([^)#:]+)", page(name)):
        assert (EXERCISES / target).exists(), target


def check(number: str, answers: Path, *flags: str) -> subprocess.CompletedProcess:
    """The checker of a student's answer, as a student runs it."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"docs/exercises/check_{number}.py", *flags]
    environment = os.environ | {"NESTED_REFT_ANSWERS": str(answers), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_a_checker_refuses_no_answer_and_the_skeleton_and_accepts_the_solution(number, tmp_path):
    """It fails, and does not skip, and says in one sentence what to write."""
    nothing = check(number, tmp_path, "-x")
    assert nothing.returncode == 1 and not re.search(r"\d skipped", nothing.stdout), nothing.stdout
    assert f"write docs/exercises/answer_{number}.py, see docs/exercises/{number}.md" in nothing.stdout
    (tmp_path / f"answer_{number}.py").write_text(skeleton(number), encoding="utf-8")
    unsolved = check(number, tmp_path, "-x")
    assert unsolved.returncode == 1, unsolved.stdout
    solved = check(number, EXERCISES / "solutions")
    assert solved.returncode == 0 and not re.search(r"\d skipped", solved.stdout), solved.stdout
