"""The documents and the code say the same: equation tags, metrics, settings and file names."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import losses
import reward
from support.log import METRICS
from support.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def test_every_equation_tag_of_the_code_has_its_row_and_the_other_way_round():
    """A tag on a line of these files stands for an equation: docs/method.md says which."""
    files = ("losses.py", "skip.py", "model.py", "nested.py")
    code = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    assert set(re.findall(r"^\| ([DE]\d+) \|", METHOD, re.M)) == set(re.findall(r"\b([DE]\d+)\b", code))
    comments = re.findall(r"  # (.*)", (ROOT / "losses.py").read_text(encoding="utf-8"))
    marked = re.findall(r"\bE\d+\b", " ".join(comments))
    assert set(marked) == {f"E{n}" for n in range(1, 12)}, "each equation is tagged on its line"


def test_every_theorem_has_its_row_and_its_tests_and_the_other_way_round():
    """T1-T7 are claims of docs/method.md; a docstring of tests/test_theory.py that begins with the tag is the proof."""
    theorems = re.findall(r"^\| (T\d) \|", METHOD, re.M)
    tests = (ROOT / "tests" / "test_theory.py").read_text(encoding="utf-8")
    found = re.findall(r'^def test_(t\d)_\w+\(.*\n    """(T\d)', tests, re.M)
    assert all(name.upper() == tag for name, tag in found)
    assert theorems == sorted(set(theorems)) == sorted({tag for _, tag in found})


def test_functions_and_tests_that_the_equations_point_to_exist():
    """A map that leads nowhere is worse than none."""
    table = METHOD.partition("## Equations")[2].partition("##")[0]
    for module, name in re.findall(r"`(\w+)\.(\w+)", table):
        assert re.search(rf"^(def|class) {name}\b", (ROOT / f"{module}.py").read_text(encoding="utf-8"), re.M), name
    for name in set(re.findall(r"test_\w+\.py", table)):
        assert (ROOT / "tests" / name).is_file(), name


def test_every_trouble_has_its_test():
    """A row of docs/troubles.md is a promise."""
    rows = (ROOT / "docs" / "troubles.md").read_text(encoding="utf-8").partition("## What can go wrong")[2]
    rows = rows.partition("|---|")[2].splitlines()[1:]
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for row in filter(None, rows[: rows.index("")]):
        names = re.findall(r"`(test_\w+)`", row.split("|")[4])
        assert names and all(f"def {name}(" in tests for name in names), row


def test_every_metric_is_defined_and_nothing_else():
    """One line each in docs/method.md."""
    table = METHOD.partition("## Metrics")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) and set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(
        METRICS
    )


def test_flags_that_the_documents_name_exist():
    """What a reader copies from a page has to run."""
    flags = {f"--{field.name.replace('_', '-')}" for field in fields(Settings)}
    own = {"--split", "--problems", "--batch", "--step", "--problem", "--html"}  # of evaluate.py and look.py
    elsewhere = {"--help", "--resume", "--compare", "--index-url", "--nproc-per-node"}  # the last of pip and torchrun
    for page in ("README.md", "docs/method.md", "docs/usage.md", "docs/data.md", "docs/troubles.md"):
        named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", (ROOT / page).read_text(encoding="utf-8")))
        assert named <= flags | own | elsewhere, page


def test_the_readme_is_read_in_five_minutes():
    """It has outgrown that before. What is longer belongs into docs/."""
    assert len(README.splitlines()) <= 190 and len(README.split()) <= 1900


def test_the_steps_of_the_method_have_the_same_names_and_numbers_everywhere():
    """In README's table, in the picture, and as comments of train.py: whoever knows one finds the others."""
    steps = re.findall(r"^\| \*\*(\d)\. (\w+)\*\*", README, re.M)
    picture = (ROOT / "docs" / "picture.py").read_text(encoding="utf-8")
    code = (ROOT / "train.py").read_text(encoding="utf-8")
    assert [(number, name.lower()) for number, name in steps] == re.findall(r'"(\d)  (\w+)"', picture)
    assert [(number, name.lower()) for number, name in steps] == re.findall(r"# (\d) (\w+)", code)


def test_answers_are_compared_as_the_page_on_data_says():
    """Its table has what is accepted for a reference, and what is not."""
    table = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("| reference |")[2]
    rows = re.findall(r"^\| `(.*?)` \| (.*?) \| (.*?) \|$", table, re.M)
    assert len(rows) == 9
    for answer, *columns in rows:
        for said, column in zip((True, False), columns, strict=True):
            for text in re.findall(r"`(?:#### )?(.*?)`", column):
                assert reward.is_correct(f"#### {text}", answer) == said, (text, answer)


def test_the_examples_of_the_readme_run():
    """A weight and a reward of one's own are a function each, and stand there as they can be pasted."""
    weight, pay = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(weight, room := vars(losses).copy())
    log_rho = torch.tensor([[2.0, 0.5, 4.0]]).log()
    log_w = room["is_least"](log_rho, torch.ones(1, 3, dtype=torch.bool), 1.0)
    torch.testing.assert_close(log_w.exp(), torch.tensor([[2.0, 1.0, 2.0]]))
    exec(pay, room := vars(reward).copy())
    assert [room["reward"](text, text == "#### 7") for text in ("#### 7", "#### 8", "7")] == [1.1, 0.1, 0]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings_that_exist(name):
    """The reading order is a promise about files."""
    page = ROOT / name
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([\w-]+))?\)", page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("name", PAGES)
def test_a_table_is_whole(name):
    """An empty line within a table ends it, and the rows after it are shown as they stand."""
    text = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.M | re.S)
    for block in re.split(r"\n\s*\n", text):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert not rows or (len(rows) > 2 and set(rows[1]) <= set("|-: ")), rows[0]
