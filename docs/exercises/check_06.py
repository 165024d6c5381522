"""Exercise 6: a reward that can be gamed, the game, and the mended reward. The page is 06.md."""

from itertools import islice

import pytest

import reward
from data import arith

PROBLEMS = list(islice(arith.stream("train"), 200))
RIGHT = [  # texts whose answer is right, with the reference
    ("3 + 4 = 7\n#### 7", "7"),
    ("3 + 4 = 7 #### 7", "7"),
    ("#### 7.", "7"),
    ("So the answer is 7.", "7"),
    ("The answer is: 7", "7"),
    (r"so \boxed{7} it is", "7"),
    ("12 apples and 30 pears.\n#### 42 apples", "42"),
    ("#### $5", "5"),
    ("#### 1,234", "1234"),
    ("#### 7.0", "7"),
    ("#### -3", "-3"),
    ("#### 0.5", "1/2"),
    ("#### 8\nNo, I forgot one.\n#### 9", "9"),
    ("The answer is 8. No:\n#### 9\nI am sure of it.", "9"),
]
GAMES = [  # texts that earn nothing
    ("7", "7"),
    ("3 + 4 = 7", "7"),
    ("#### 7\nor else\n#### 8", "7"),
    ("#### 7 or 8", "7"),
    ("#### 7, 8", "7"),
    ("#### 7 8", "8"),
    ("The answer is 7 or 8 or 9", "7"),
    ("The answer is 8. 1 2 3 4 5 6 7", "7"),
    ("#### 8\n7", "7"),
    ("#### 70", "7"),
    ("#### 17", "7"),
    ("#### -7", "7"),
    ("#### 7/2", "7"),
    ("####", "7"),
    ("", "7"),
    ("1 + 1 = 2. 2 + 2 = 4. #### Step by step, as asked.", "4"),
]


def pays(what, text: str, reference: str) -> float:
    got = what(text, reference)
    assert isinstance(got, int | float), f"expected a number for {text!r}, got {got!r}"
    return float(got)


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def test_the_lists_say_what_reward_py_says():
    assert all(reward.is_correct(*pair) for pair in RIGHT) and not any(reward.is_correct(*pair) for pair in GAMES)


def test_the_answer_is_its_own(answer):
    """It may not ask reward.py what is right."""
    borrowed = answer.imports() & {"reward", "evaluate", "support.graders"}
    assert not borrowed, f"expected rewards of your own, got an import of {', '.join(borrowed)}"


def test_the_flawed_reward_looks_like_one(answer):
    """Nobody would use a reward that seldom tells a right solution from a wrong one."""
    told = 0
    for problem in PROBLEMS:
        wrong = f"{problem.rationale.partition('####')[0].rpartition('=')[0]}= 9999 #### 9999"
        told += pays(answer.flawed, problem.rationale, problem.answer) > pays(answer.flawed, wrong, problem.answer)
    assert told >= 0.8 * len(PROBLEMS), (
        f"expected more for the right solution than for one that ends in 9999, on 160 of 200 problems; got {told}"
    )


def test_the_game_earns_more_than_right_answers_and_is_never_right(answer):
    """The game is a policy: it sees the question, as a model does, and not the answer."""
    texts = [answer.game(problem.question) for problem in PROBLEMS]
    for text, problem in zip(texts, PROBLEMS, strict=True):
        assert isinstance(text, str), f"expected a text from game(question), got {text!r}"
        assert not reward.is_correct(text, problem.answer), (
            f"expected a text that reward.py pays nothing for, got {text[-80:]!r}, and {problem.answer} is right"
        )
    game = mean(pays(answer.flawed, text, problem.answer) for text, problem in zip(texts, PROBLEMS, strict=True))
    honest = mean(pays(answer.flawed, problem.rationale, problem.answer) for problem in PROBLEMS)
    assert game > honest, (
        f"flawed pays {honest:.2f} for right solutions on average; expected more for the game, got {game:.2f}"
    )


@pytest.mark.parametrize("text, reference", RIGHT)
def test_the_mended_reward_pays_what_is_right(answer, text, reference):
    got = pays(answer.mended, text, reference)
    assert got == 1, f"{text!r} with the reference {reference!r}: expected 1, got {got}"


@pytest.mark.parametrize("text, reference", GAMES)
def test_the_mended_reward_pays_no_game(answer, text, reference):
    got = pays(answer.mended, text, reference)
    assert got == 0, f"{text!r} with the reference {reference!r}: expected 0, got {got}"


def test_on_problems_the_mended_reward_pays_solutions_and_not_your_game(answer):
    for problem in PROBLEMS:
        for text, expected in ((problem.rationale, 1), (answer.game(problem.question), 0)):
            got = pays(answer.mended, text, problem.answer)
            assert got == expected, (
                f"{text[-80:]!r} with the reference {problem.answer}: expected {expected}, got {got}"
            )
