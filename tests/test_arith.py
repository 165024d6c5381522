"""Word problems composed by a grammar: right by recomputation, sound English as far as a program can tell."""

import random
import re
import zlib
from itertools import islice
from pathlib import Path

import pytest
from conftest import folder_of

import data
from data import arith, wordings
from data.arith import DOMAINS, STORIES, load, plural, stream
from data.wordings import ADJECTIVES, BOYS, GIRLS, NOUNS

STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
SPLITS = ("train", "test", "wordings")


@pytest.fixture(scope="module", params=[("train", 2_000), ("test", 500), ("wordings", 1_500)], ids=lambda p: p[0])
def problems(request):
    split, number = request.param
    return list(islice(stream(split), number))


def steps_of(problem):
    """The rationale's steps as (left, operation, right, result), read from its text alone."""
    steps = problem.rationale.split(" #### ")[0].split(", ")
    return [(int(x), op, int(y), int(result)) for x, op, y, result in (STEP.fullmatch(step).groups() for step in steps)]


def numbers_of(question):
    return {int(number) for number in re.findall(r"\d+", question)}


def starting_numbers(problem):
    """The numbers that the rationale takes from the question: all but the result that one step hands to the next."""
    steps = steps_of(problem)
    used = [number for x, _, y, _ in steps for number in (x, y)]
    for _, _, _, result in steps[:-1]:
        used.remove(result)
    return set(used)


def test_every_step_is_right_and_the_last_one_gives_the_answer(problems):
    """A wrong reference would be learned as if it were right; the sums here are done apart from the generator's."""
    for problem in problems:
        for x, op, y, result in steps_of(problem):
            right = {"+": x + y == result, "-": x - y == result, "*": x * y == result, "/": result * y == x}
            assert right[op], problem
        assert problem.rationale.endswith(f" = {problem.answer} #### {problem.answer}"), problem


def test_a_second_step_uses_the_first_result(problems):
    """Otherwise the first step would be idle, and the problem have one step only."""
    for problem in problems:
        steps = steps_of(problem)
        assert len(steps) in (1, 2), problem
        if len(steps) == 2:
            assert steps[0][3] in (steps[1][0], steps[1][2]), problem


def test_the_question_states_every_number_that_the_rationale_starts_from(problems):
    """A number from nowhere could only be guessed."""
    for problem in problems:
        assert starting_numbers(problem) <= numbers_of(problem.question), problem


def test_results_are_positive_and_below_1000(problems):
    """Nobody gives away more than they have, and a tiny model meets no number longer than three digits."""
    for problem in problems:
        assert all(0 < result < 1000 for *_, result in steps_of(problem)), problem
        assert all(1 < number < 1000 for number in numbers_of(problem.question)), problem


def test_numbers_in_a_question_differ(problems):
    """With two equal numbers, a solution that takes the wrong one could not be told from the right one."""
    for problem in problems:
        numbers = re.findall(r"\d+", problem.question)
        assert len(set(numbers)) == len(numbers), problem


@pytest.mark.parametrize(
    ("asked", "relations", "expected"),
    [
        ("e", ["e = s - x"], {"s - x"}),
        ("s", ["e = s - x"], {"e + x"}),
        ("x", ["e = s - x"], {"s - e"}),
        ("n", ["t = n * m"], {"t / m"}),
        ("t", ["k = t / n"], {"k * n"}),
        ("s", ["h = s + x", "e = h - y"], {"h - x", "e + y = h, h - x"}),
        ("w", ["b = a + d", "w = a + b"], {"a + b", "b - d = a, a + b", "a + d = b, a + b"}),
    ],
)
def test_relations_are_solved_for_each_of_their_letters(asked, relations, expected):
    """What makes two steps out of two relations, and a subtraction out of an addition that is read backwards."""
    relations = [(z, x, op, y) for z, _, x, op, y in map(str.split, relations)]
    found = {
        ", ".join(f"{x} {op} {y}" + f" = {z}" * (z != asked) for x, op, y, z in way)
        for way in arith.ways(asked, relations)
    }
    assert found == expected


def test_train_and_test_are_disjoint_whatever_the_seeds():
    """Accuracy on problems that were trained on says nothing; both splits may be drawn with any seed."""
    train, test = (
        {p.question for seed in (0, 1) for p in islice(stream(split, seed), 150)} for split in ("train", "test")
    )
    assert train.isdisjoint(test)
    assert all(zlib.crc32(question.encode()) % 10 == 0 for question in test)
    assert not any(zlib.crc32(question.encode()) % 10 == 0 for question in train)


# Words that stand in held-out productions alone: places, verbs, a form of question, whole stories.
HELD_OUT_WORDS = (
    "garage kiosk ordered stable rancher pantry laptop cellar acquired archive showed stolen tailor painter "
    "carpenter meeting caught counted lifted hiked recipes stacks originally"
).split()


def test_train_never_shows_a_held_out_production(problems, request):
    """Else `wordings` would not ask for reading."""
    seen = re.compile(rf"\b({'|'.join(HELD_OUT_WORDS)})\b")
    found = [seen.findall(problem.question) for problem in problems]
    if "wordings" in request.node.name:
        assert sum(map(bool, found)) > len(problems) / 5
        assert {word for words in found for word in words} == set(HELD_OUT_WORDS)
    else:
        assert not any(found)


def test_verbs_questions_and_whole_stories_are_held_out():
    """Productions, not only their combinations; and of each kind, enough are left to train on."""
    assert sum("|*" in text for story in STORIES for _, text in story.questions) >= 15
    assert sum(" & *" in domain.slots.get(sign, "") for domain in DOMAINS for sign in "+-") >= 15  # verbs
    for table in (STORIES, DOMAINS):
        held_out = [entry for entry in table if entry.held_out]
        assert 2 <= len(held_out) <= len(table) / 3


PEOPLE = re.compile(rf"\b({'|'.join(GIRLS + BOYS)}|[Ss]he|[Hh]er|[Hh]e|[Hh]is|him)\b")
ADJECTIVE_WORDS = {word for pairs in ADJECTIVES.values() for pair in pairs for word in pair.lstrip("*").split()}
NOUN_WORDS = {
    form
    for nouns in NOUNS.values()
    for noun in nouns
    for form in (noun.lstrip("*").partition("/")[0], plural(noun.lstrip("*")))
}
THINGS = re.compile(rf"\b({'|'.join(sorted(NOUN_WORDS | ADJECTIVE_WORDS, key=len, reverse=True))})\b")


def wording(question):
    """A question without its numbers, people, things and adjectives."""
    return THINGS.sub("thing", PEOPLE.sub("person", re.sub(r"\d+", "0", question)))


@pytest.mark.slow
def test_there_are_more_than_100_000_wordings():
    """Composed, not listed: counted with numbers, names, pronouns, nouns and adjectives taken out."""
    assert len({wording(problem.question) for problem in islice(stream("train", 1), 130_000)}) > 100_000


def test_hardly_a_wording_comes_twice():
    """The same on fewer problems, for every run of the tests."""
    assert len({wording(problem.question) for problem in islice(stream("train", 1), 2_000)}) > 1_900


def eights(text):
    words = re.findall(r"[a-z]+|\d+", text.lower())
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}


@pytest.mark.slow
def test_no_eight_words_in_a_row_are_svamps():
    """Every word is ours. Numbers count as equal, so that a sentence with other numbers is no other sentence."""
    theirs = {
        eight
        for split in data.SPLITS["svamp"]
        for problem in data.load("svamp", split, folder_of("svamp.json"))
        for eight in eights(re.sub(r"\d+", "0", problem.question))
    }
    assert len(theirs) > 5_000
    for split, number in (("train", 10_000), ("wordings", 2_000)):
        for problem in islice(stream(split, 2), number):
            shared = eights(re.sub(r"\d+", "0", problem.question)) & theirs
            assert not shared, (problem.question, shared)


@pytest.mark.parametrize("split", SPLITS)
def test_same_seed_same_problems_other_seed_other_problems(split):
    """A run is reproducible from its seed, and a seed is not without effect."""
    first, again, other = (list(islice(stream(split, seed), 100)) for seed in (7, 7, 8))
    assert first == again
    assert set(first).isdisjoint(other)


def test_a_seed_gives_the_same_problems_on_every_machine():
    """Splits rest on a checksum and on random.Random, neither of which depends on the process, as hash() would.

    Extending the grammar changes what a seed draws: then put the new question here.
    """
    first = (
        "Today is Jonah's birthday. He did 437 knee push-ups in the morning. "
        "Jonah did 95 belly crunches in the morning. How many more knee push-ups than belly crunches did Jonah do?"
    )
    assert next(stream("train", seed=0)).question == first


@pytest.mark.parametrize("split", SPLITS)
def test_load_gives_the_first_distinct_problems_of_the_stream(split, monkeypatch):
    """A problem that came twice would count twice in an accuracy."""
    assert arith.SIZES == {"train": 4_000, "test": 500, "wordings": 500}
    monkeypatch.setitem(arith.SIZES, split, size := 200)
    loaded = load(split)
    assert len(loaded) == len({problem.question for problem in loaded}) == size
    assert loaded[:50] == list(dict.fromkeys(islice(stream(split), 100)))[:50]


def test_an_unknown_split_is_an_error_that_names_the_choices():
    """A typing error must not yield another split, and the message says what to write instead."""
    with pytest.raises(ValueError, match=r"'valid'.*train, test, wordings"):
        load("valid")


def test_wordings_is_a_split_of_arith_alone():
    """The other data sets have no such split, and no run may take another in its place."""
    assert data.load("arith", "wordings") == load("wordings")
    with pytest.raises(ValueError, match="'svamp', split 'wordings'.*one of train, test, valid$"):
        data.load("svamp", "wordings")
    with pytest.raises(ValueError, match="'arith', split 'all'.*wordings, valid$"):
        data.load("arith", "all")


def test_operations_and_step_counts_are_mixed(problems):
    """Each operation has its share, a third of the problems or more have two steps: about as in SVAMP, and harder."""
    operations = [{op for _, op, _, _ in steps_of(problem)} for problem in problems]
    for op, least in {"+": 0.25, "-": 0.4, "*": 0.1, "/": 0.1}.items():
        assert sum(op in used for used in operations) > least * len(problems), op
    two = sum(len(steps_of(problem)) == 2 for problem in problems)
    assert len(problems) / 4 < two < len(problems) / 2


def test_some_questions_hold_a_number_that_plays_no_part(problems):
    """SVAMP is made to catch models that combine whatever numbers they find; a part of these problems must as well."""
    distracted = sum(starting_numbers(problem) < numbers_of(problem.question) for problem in problems)
    assert 0.3 * len(problems) < distracted < 0.7 * len(problems)


def test_questions_are_well_formed_sentences(problems):
    """Slots and choices are settled, sentences start with a capital letter or a number, spacing is as in prose."""
    for problem in problems:
        question = problem.question
        assert not re.search(r"[][{}<>|~@#*/_\n]|  | [.,?]|^ | $", question), question
        assert re.match(r"[A-Z\d$]", question), question
        assert question.endswith("?") and question.count("?") == 1, question
        assert re.search(r"[.!,?]\S", question) is None, question
        assert not re.search(r"[.] [a-z]", question), question
        assert not re.search(r"\b(\w+) \1\b", question), question


def test_nouns_agree_with_their_numbers(problems):
    """No count is 1, so that every counted noun is a plural; `a` never stands before a vowel or a number (8, 11)."""
    for problem in problems:
        assert not re.search(r"\b[01]\b", problem.question), problem.question
        assert not re.search(r"\b[Aa] [aeiou\d]", problem.question), problem.question
    singular = {noun.partition("/")[0].partition(" of ")[0] for nouns in NOUNS.values() for noun in nouns}
    singular -= {plural(noun) for nouns in NOUNS.values() for noun in nouns} | ADJECTIVE_WORDS
    wrong = re.compile(rf"\d+ ({'|'.join(re.escape(noun) for noun in sorted(singular))})\b(?! \w+s\b)")
    for problem in problems[:5_000]:
        assert not wrong.search(problem.question), problem.question


def test_plurals_follow_the_spelling_rules():
    """One of each ending that the lists hold."""
    nouns = {"kite": "kites", "box": "boxes", "brush": "brushes", "peach": "peaches", "cherry": "cherries"}
    nouns |= {"turkey": "turkeys", "key": "keys", "toy car": "toy cars", "child/children": "children"}
    nouns |= {"loaf of bread": "loaves of bread", "foot of rope": "feet of rope", "potato": "potatoes"}
    assert {noun: plural(noun) for noun in nouns} == nouns


def test_word_lists_are_large():
    """Names without repetition or a final s; nouns enough that none can be told by its place in a list."""
    names = GIRLS + BOYS
    assert len(names) == len(set(names)) >= 100
    assert not [name for name in names if name.endswith("s")]
    assert sum(len(nouns) for nouns in NOUNS.values()) > 250
    for nouns in NOUNS.values():
        assert len(nouns) == len(set(nouns)), nouns


def test_every_line_of_the_tables_can_be_used():
    """A story that no line of verbs names, or a line that names no story, would be dead text."""
    stories = {story.name for story in STORIES if not story.kinds}
    assert stories == {name for domain in DOMAINS for name in domain.names}
    kinds = {kind for entry in STORIES + DOMAINS for kind in entry.kinds.split()}
    assert kinds | {"container", "group", "place"} == set(NOUNS)


def test_question_length_is_that_of_a_short_story(problems):
    """About as long as SVAMP's questions, so that prompts of either fit the same budget of tokens."""
    lengths = [len(problem.question.split()) for problem in problems]
    assert 25 < sum(lengths) / len(lengths) < 40
    assert min(lengths) >= 7 and max(lengths) <= 100


def test_a_problem_is_found_soon():
    """Choices that do not fit are drawn again: if few did, the supply would be slow."""
    rng = random.Random(0)
    for held_out, least in ((False, 0.5), (True, 0.3)):
        drawn = [arith.draw_problem(rng, held_out) for _ in range(500)]
        assert sum(problem is not None for problem in drawn) > least * 500


def test_the_grammar_is_short():
    """Composed rather than listed."""
    assert len(Path(wordings.__file__).read_text(encoding="utf-8").splitlines()) < 600
