"""Word problems made from templates: right by recomputation, sound English as far as a program can tell."""

import random
import re
import zlib
from itertools import islice

import pytest

import data
from data import arith
from data.arith import load, plural, stream
from data.wordings import BOYS, GIRLS, HELD_OUT, NOUNS, RANGES, TEMPLATES

TABLES = {"train": TEMPLATES, "test": TEMPLATES, "wordings": HELD_OUT}
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


@pytest.fixture(scope="module", params=[("train", 8_000), ("test", 1_000), ("wordings", 3_000)], ids=lambda p: p[0])
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


def pattern(text):
    """What a wording, or a sentence of it, may look like when its slots are filled."""
    parts = re.split(r"\{(\w+)\}", text)  # every other one is a slot
    filled = [r"\d+" if len(part) == 1 else r"\w+(?: \w+)?" for part in parts[1::2]]
    return re.compile("".join(re.escape(part) + slot for part, slot in zip(parts[::2], [*filled, ""], strict=True)))


def sentences(text):
    return re.split(r"(?<=[.?!]) ", text)


def test_numbers_that_suit_a_wording_are_found_soon():
    """Numbers are drawn until they suit: a wording that few or none suit would slow the supply down, or hang it."""

    class Counted(random.Random):
        def randint(self, low, high):
            self.rolls += 1
            assert self.rolls < self.limit, template.text
            return super().randint(low, high)

    rng, problems, tries = Counted(0), 20, 50
    for template in TEMPLATES + HELD_OUT:
        rng.rolls, rng.limit = 0, problems * tries * len(re.findall(r"\{\w\}", template.text))
        for _ in range(problems):
            arith.draw_problem(rng, [template])


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


def test_numbers_in_a_question_differ(problems):
    """With two equal numbers, a solution that takes the distractor could not be told from the right one."""
    for problem in problems:
        numbers = re.findall(r"\d+", problem.question)
        assert len(set(numbers)) == len(numbers), problem


def test_train_and_test_are_disjoint_whatever_the_seeds():
    """Accuracy on problems that were trained on says nothing; both splits may be drawn with any seed."""
    train, test = (
        {p.question for seed in (0, 1) for p in islice(stream(split, seed), 500)} for split in ("train", "test")
    )
    assert train.isdisjoint(test)
    assert all(zlib.crc32(question.encode()) % 10 == 0 for question in test)
    assert not any(zlib.crc32(question.encode()) % 10 == 0 for question in train)


@pytest.mark.parametrize("split", ["wordings", *(pytest.param(s, marks=pytest.mark.slow) for s in ("train", "test"))])
def test_a_split_shows_every_wording_of_its_table_and_no_other(split):
    """A wording that its own constraints rule out would hang the draw; one of the other table, spoil `wordings`."""
    wordings = {template.text: pattern(template.text) for template in TEMPLATES + HELD_OUT}
    seen = set()
    for problem in islice(stream(split), 2_500):
        [text] = [text for text, regex in wordings.items() if regex.fullmatch(problem.question)]
        seen.add(text)
    assert seen == {template.text for template in TABLES[split]}


def test_the_two_tables_share_no_sentence():
    """A held-out wording with a known question at its end would be half known."""
    known, held_out = (
        {re.sub(r"\{\w+\}", "_", sentence) for template in table for sentence in sentences(template.text)}
        for table in (TEMPLATES, HELD_OUT)
    )
    assert known.isdisjoint(held_out), known & held_out


def test_no_wording_is_taken_from_svamp(data_dir):
    """The wordings are ours. Stock questions ("How many more _ does _ have than _?") are everybody's and pass."""
    theirs = [problem.question for split in data.SPLITS["svamp"] for problem in data.load("svamp", split, data_dir)]
    theirs = "\n".join({*theirs, *(sentence for question in theirs for sentence in sentences(question))})
    for text in (template.text for template in TEMPLATES + HELD_OUT):
        for part in (text, *sentences(text)):
            fixed = re.split(r"\{\w+\}", part)
            words = (" ".join(fixed) if part.endswith("?") else part).split()
            if (part == text or len(words) >= 8) and max(fixed, key=len) in theirs:  # `in` is for speed alone
                assert not re.search(f"^{pattern(part).pattern}$", theirs, re.MULTILINE), part


@pytest.mark.parametrize("split", TABLES)
def test_same_seed_same_problems_other_seed_other_problems(split):
    """A run is reproducible from its seed, and a seed is not without effect."""
    first, again, other = (list(islice(stream(split, seed), 100)) for seed in (7, 7, 8))
    assert first == again
    assert set(first).isdisjoint(other)


def test_a_seed_gives_the_same_problems_on_every_machine():
    """Splits rest on a checksum and on random.Random, neither of which depends on the process, as hash() would.

    Extending the table changes what a seed draws: then put the new question here.
    """
    first = (
        "A summer camp has 50 boys and 28 girls, and its hall has 2 windows. Each table seats 6 children. How many "
        "tables does the camp need?"
    )
    assert next(stream("train", seed=0)).question == first


@pytest.mark.parametrize(("split", "size"), [("train", 4_000), ("test", 500), ("wordings", 500)])
def test_load_gives_the_first_distinct_problems_of_the_stream(split, size):
    """A problem that came twice would count twice in an accuracy."""
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


def test_operations_and_step_counts_are_balanced(problems):
    """A quarter of the problems at the least shows each operation, and a third each number of steps."""
    operations = [{op for _, op, _, _ in steps_of(problem)} for problem in problems]
    for op in "+-*/":
        assert sum(op in used for used in operations) > len(problems) / 4, op
    two = sum(len(steps_of(problem)) == 2 for problem in problems)
    assert len(problems) / 3 < two < 2 * len(problems) / 3


def test_some_questions_hold_a_number_that_plays_no_part(problems):
    """SVAMP is made to catch models that combine whatever numbers they find; a part of these problems must as well."""
    distracted = sum(starting_numbers(problem) < numbers_of(problem.question) for problem in problems)
    assert 0.2 * len(problems) < distracted < 0.4 * len(problems)


def test_questions_are_well_formed_sentences(problems):
    """Slots are filled, sentences start with a capital letter or a number, and spacing is that of plain prose."""
    for problem in problems:
        question = problem.question
        assert not re.search(r"[{}\n]|  | [.,?]|^ | $", question), question
        assert question[0].isupper(), question
        assert question.endswith("?") and question.count("?") == 1, question
        assert re.search(r"[.!,?]\S", question) is None, question
        assert not re.search(r"[.] [a-z]", question), question


def test_nouns_agree_with_their_numbers(problems):
    """No count is 1, so that every counted noun is a plural; `a` never stands before a vowel or a number (8, 11)."""
    for problem in problems:
        assert not re.search(r"\b[01]\b", problem.question), problem.question
        assert not re.search(r"\b[Aa] [aeiou\d]", problem.question), problem.question
    singular = re.compile(r"\d+ (" + "|".join(noun for nouns in NOUNS.values() for noun in nouns) + r")\b")
    colours = set(NOUNS["colour"])
    for problem in problems[:5_000]:
        assert not [noun for noun in singular.findall(problem.question) if noun not in colours], problem.question


def test_plurals_follow_the_spelling_rules():
    """One of each ending that the lists hold."""
    nouns = {"kite": "kites", "box": "boxes", "brush": "brushes", "peach": "peaches", "cherry": "cherries"}
    nouns |= {"turkey": "turkeys", "key": "keys", "toy car": "toy cars", "comic book": "comic books"}
    assert {noun: plural(noun) for noun in nouns} == nouns


def test_word_lists_are_large_and_unambiguous():
    """Names without repetition or a final s; no thing whose name is part of another thing's ("bead", "glass bead")."""
    names = GIRLS + BOYS
    assert len(names) == len(set(names)) >= 60
    assert not [name for name in names if name.endswith("s")]
    assert len(NOUNS["item"]) >= 60
    for nouns in NOUNS.values():
        words = [word for noun in nouns for word in {noun, *noun.split()}]
        assert len(words) == len(set(words)), sorted(words)


def test_templates_are_many_and_distinct():
    """Variety is in the wordings more than in the words; a text that stood twice would have two weights."""
    texts = [template.text for template in TEMPLATES + HELD_OUT]
    assert len(texts) == len(set(texts))
    assert len(TEMPLATES) >= 165 and len(HELD_OUT) >= 30


def test_question_length_is_that_of_a_short_story(problems):
    """About as long as SVAMP's questions, so that prompts of either fit the same budget of tokens."""
    lengths = [len(problem.question.split()) for problem in problems]
    assert 20 < sum(lengths) / len(lengths) < 40
    assert min(lengths) >= 10 and max(lengths) <= 60


def test_draws_are_in_a_sensible_range():
    """The ranges keep 0 and 1 out, which make plurals and answers degenerate."""
    assert all(2 <= low < high <= 999 for low, high in RANGES.values())
