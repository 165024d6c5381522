"""Exercise 2: which theorems fail when the end token is no action. The page is 02.md."""

import inspect
from dataclasses import replace

import pytest
import test_theory
import torch


def theorem(name: str):
    """The test of that name, if it is one that needs a world and nothing else."""
    found = getattr(test_theory, str(name), None)
    assert inspect.isfunction(found) and str(name).startswith("test_t"), (
        f"expected the name of a test of tests/test_theory.py that begins with test_t, got {name!r}"
    )
    arguments = set(inspect.signature(found).parameters) - {marks(found)[0]}
    assert arguments == {"world"} and "on_the_real_path" not in name, (
        f"expected a theorem that is enumerated, with `world` as its argument, got {name}"
    )
    return found


def marks(test) -> tuple[str, list]:
    """The parameter of a test and its values; a test has one at most here."""
    parametrized = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    return parametrized[0] if parametrized else ("", [None])


def holds(test, world) -> list[bool]:
    """Whether the theorem holds in that world, for each value of its parameter."""
    name, values = marks(test)
    outcomes = []
    for value in values:
        try:
            test(world, **({name: value} if name else {}))
            outcomes.append(True)
        except AssertionError:
            outcomes.append(False)
    return outcomes


@pytest.fixture
def shortened(answer, world):
    """The world without end tokens in its mask, by the student's function."""
    return replace(world, mask=answer.without_end(world.tokens.clone(), world.mask.clone(), test_theory.END))


def test_the_end_token_leaves_the_mask_and_nothing_else_does(answer, world, shortened):
    got, expected = shortened.mask, world.mask & (world.tokens != test_theory.END)
    assert isinstance(got, torch.Tensor) and got.shape == expected.shape and got.dtype == torch.bool, (
        f"expected a mask of bools {tuple(expected.shape)}, got {got}"
    )
    for tokens, before, want, have in zip(world.tokens, world.mask, expected, got, strict=True):
        assert torch.equal(want, have), (
            f"tokens {tokens.tolist()}, mask {before.tolist()}, end token 0: "
            f"expected {want.tolist()}, got {have.tolist()}"
        )
    other = answer.without_end(
        torch.tensor([[5, 7, 3], [7, 0, 0], [5, 0, 7]]), torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool(), 7
    )
    assert other.tolist() == [[True, False, True], [False, False, False], [True, True, False]], (
        f"with 7 as the end token 7s leave the mask, and 0s stay: got {other.tolist()}"
    )


def test_one_theorem_fails(answer, world, shortened):
    test = theorem(answer.FAILS)
    assert all(holds(test, world)), f"{answer.FAILS} fails in the world as it is"
    assert not any(holds(test, shortened)), f"expected a theorem that fails without the end token; {answer.FAILS} holds"


def test_another_still_holds(answer, world, shortened):
    test = theorem(answer.HOLDS)
    assert all(holds(test, shortened)), f"expected a theorem that holds without the end token; {answer.HOLDS} fails"
