"""docs/tour.ipynb, the method in one notebook: it runs, and it and its page, docs/tour.md, are what they should be.

After a change, from the repository's root, in this order:

    jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False docs/tour.ipynb
    jupyter nbconvert --to markdown docs/tour.ipynb
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOUR, PAGE = ROOT / "docs" / "tour.ipynb", ROOT / "docs" / "tour.md"
CELLS = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_the_committed_notebook_was_run_from_top_to_bottom():
    """Each cell once and in order, without an error or a warning; what its cells print or draw is there."""
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    for cell in CODE:
        source = "".join(cell["source"])
        assert all(output["output_type"] != "error" for output in cell["outputs"]), source
        assert all(output.get("name") != "stderr" for output in cell["outputs"]), source
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        assert cell["outputs"] or not re.search(r"print\(|show\(|main\(", source), source
        assert "image/png" in kinds or "plt.show()" not in source, source


def test_the_notebook_says_nothing_of_the_machine_that_ran_it():
    """Its outputs name no absolute path, and it is small enough to be read online."""
    texts = [json.dumps({k: v for k, v in cell.items() if k != "outputs"}) for cell in CELLS]
    for cell in CODE:
        for output in cell["outputs"]:
            data = {kind: text for kind, text in output.get("data", {}).items() if kind != "image/png"}
            texts += [json.dumps(data), "".join(output.get("text", []))]
    place = r"(?<![\w.)])/(?:home|root|tmp|usr|opt|var|work|mnt|Users|private)/\S*|[A-Z]:\\{1,2}Users"
    assert not re.findall(place, "\n".join(texts))
    assert TOUR.stat().st_size < 600_000


def test_the_page_says_what_the_notebook_says():
    """docs/tour.md is made from the notebook: each of its cells is there, its pictures exist, and its links lead
    somewhere."""
    page = PAGE.read_text(encoding="utf-8")
    for cell in CELLS:
        assert "".join(cell["source"]).strip() in page
    pictures = re.findall(r"!\[png\]\(([^)]+)\)", page)
    assert len(pictures) == sum("image/png" in output.get("data", {}) for cell in CODE for output in cell["outputs"])
    links = re.findall(r"(?<!!)\[[^]]+\]\(([^)#:]+)(?:#[^)]*)?\)", page)
    assert links and all((PAGE.parent / path).exists() for path in (*pictures, *links))
    assert set(pictures) == {f"tour_files/{path.name}" for path in (PAGE.parent / "tour_files").iterdir()}


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    """Every cell, on one core, in a copy that is thrown away."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient (requirements-dev.txt)")
    pytest.importorskip("ipykernel", reason="needs ipykernel (requirements-dev.txt)")
    pytest.importorskip("matplotlib", reason="needs matplotlib (requirements-dev.txt)")
    import nbformat  # comes with nbclient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook, place = nbformat.read(TOUR, as_version=4), {"metadata": {"path": str(TOUR.parent)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place).execute()
