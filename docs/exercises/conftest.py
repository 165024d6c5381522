"""What the checkers share: the student's answer, found by the checker's number, and the world of tests/test_theory.py.

An answer is read from docs/exercises, or from the folder that the environment variable NESTED_REFT_ANSWERS names.
"""

import ast
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from test_theory import world  # noqa: E402, F401  (a fixture)


def load(number: str) -> ModuleType:
    """The answer to an exercise, read anew, as a new process would. Fails where there is none."""
    path = Path(os.environ.get("NESTED_REFT_ANSWERS") or HERE) / f"answer_{number}.py"
    if not path.is_file():
        pytest.fail(f"write docs/exercises/answer_{number}.py, see docs/exercises/{number}.md", pytrace=False)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Answer:
    """answer.name is what the student's file calls so, read on first use. A name that is not there fails the test."""

    def __init__(self, number: str):
        self.number, self.module = number, None

    def __getattr__(self, name: str):
        self.module = self.module or load(self.number)
        if not hasattr(self.module, name):
            pytest.fail(f"answer_{self.number}.py has no {name}, see docs/exercises/{self.number}.md", pytrace=False)
        return getattr(self.module, name)

    def imports(self) -> set[str]:
        """The modules that the file imports."""
        self.module = self.module or load(self.number)
        nodes = list(ast.walk(ast.parse(inspect.getsource(self.module))))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        return imported | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}

    def again(self) -> "Answer":
        """The same file in what stands for a new process."""
        return Answer(self.number)


@pytest.fixture(scope="module")
def answer(request) -> Answer:
    return Answer(request.path.stem.removeprefix("check_"))
