"""An endless supply of arithmetic word problems, for runs without a download and for tests.

They are in the spirit of SVAMP (one or two steps, the four operations, numbers that play no part), but every wording
is our own. A problem is a template of the table below with its slots filled: numbers are drawn until every step gives
a sensible result. It belongs to the split that a checksum of its question says, so train and test share no problem.
"""

import operator
import random
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from data.problem import Problem

SIZES = {"train": 4000, "test": 500}  # how many problems load() returns


class Template(NamedTuple):
    """A wording and the way to its answer.

    text   slots are number letters ({a}, see RANGES), people ({person}, {other}, {third}; {he} {He} {him} are
           the first one's) and nouns (for every key of NOUNS: {item} {items} {other_item} {other_items})
    steps  one or two operations on number letters, in the order of the rationale; `it` is the last step's result
    also   further steps that have to come out sensibly, so that nobody gives away more than they have
    """

    text: str
    steps: str
    also: str = ""


# What a number letter may be. The numbers of a problem differ from each other, and none is 1: nouns stay plural.
RANGES = {"m": (2, 12), "n": (2, 12), "k": (2, 12), "h": (100, 900)} | {letter: (2, 99) for letter in "abcd"}

# Names: girls', then boys'. None ends in s, so that 's makes the possessive.
GIRLS, BOYS = (names.split() for names in (
    "Aisha Amara Astrid Bianca Camila Chloe Daphne Elena Farah Freya Greta Hana Imani Ingrid Jasmine Kavya Keiko Leila "
    "Linnea Lucia Maren Mei Nadia Naomi Noor Odette Petra Priya Rosa Sakura Selma Soraya Tamar Uma Vera Wanda Yara",
    "Ahmed Akira Anton Arjun Benno Bruno Cedric Dario Diego Emil Enzo Farid Felipe Gustav Hamid Hugo Ilya Ivan Javier "
    "Jonah Kenji Kofi Leif Lorenzo Malik Mateo Milan Nikhil Olaf Omar Pavel Quentin Rafael Ravi Sven Tariq Viktor",
))  # fmt: skip

# Singular forms; plural() makes the others. Within a kind no noun is part of another ("bead" and "glass bead").
NOUNS = {
    "item": (
        "badge|balloon|battery|bead|bell|block|bookmark|bow|bowl|bracelet|brush|button|calendar|candle|cap|coin|comb|"
        "comic book|crayon|cup|cushion|doll|drum|envelope|eraser|flag|flashlight|flute|fork|hat|headband|key|kite|"
        "lamp|lantern|magnet|map|marble|marker|mask|medal|mug|napkin|necklace|notebook|paper crane|patch|pencil|"
        "pillow|pin|pinwheel|postcard|poster|puppet|puzzle|ribbon|ring|ruler|seashell|spoon|sponge|stamp|sticker|"
        "tile|token|towel|toy car|trading card|umbrella|vase|water bottle|whistle"
    ),
    "fruit": "apple|apricot|banana|cherry|fig|grape|guava|kiwi|nectarine|orange|papaya|peach|pear|persimmon|plum",
    "treat": "bagel|brownie|bun|cookie|cracker|cupcake|muffin|pancake|pastry|pie|pretzel|sandwich|scone|tart|waffle",
    "animal": "alpaca|cow|donkey|duck|goat|hen|horse|lamb|llama|pig|pony|rabbit|turkey",
    "container": "bag|basket|bin|box|bucket|carton|case|chest|crate|sack",
    "colour": "black|blue|brown|green|orange|pink|purple|red|white|yellow",
}
NOUNS = {kind: nouns.split("|") for kind, nouns in NOUNS.items()}

TEMPLATES = [
    # One step: addition
    ("{person} has {a} {items}. {other} gives {him} {b} more. How many {items} does {person} have now?", "a + b"),
    ("{person} has {a} {items} and {other} has {b}. How many {items} do they have together?", "a + b"),
    ("There are {a} {colour} {items} and {b} {other_colour} ones in a {container}. How many {items} are there in the "
     "{container}?", "a + b"),
    ("{person} gave {a} {items} to {other} and still has {b}. How many {items} did {person} have at first?", "a + b"),
    ("{person} picked {a} {fruits} before lunch and {b} after lunch. How many {fruits} did {he} pick in all?", "a + b"),
    ("A baker made {a} {treats} on Saturday. On Sunday the baker made {b} more {treats} than on Saturday. How many "
     "{treats} did the baker make on Sunday?", "a + b"),
    ("{other} has {a} {items}. {person} has {m} more than {other}. How many {items} does {person} have?", "a + m"),
    ("{person} sold {m} {items} at the fair and went home with {a}. How many {items} did {he} bring to the fair?",
     "m + a"),
    ("A train left the station with {a} passengers. At the next stop {b} people got on and nobody got off. How many "
     "passengers were on the train then?", "a + b"),
    ("{person} walked {m} miles on Saturday and {n} miles on Sunday. How many miles did {he} walk over the weekend?",
     "m + n"),
    ("{person} saved {a} dollars in May and {b} dollars in June. How many dollars did {he} save in these two months?",
     "a + b"),
    ("A school library had {h} books. Then it bought {a} new ones. How many books does it have now?", "h + a"),
    ("{person} has {a} {items}, {b} {other_items} and {m} {fruits}. How many {items} and {other_items} does {he} have "
     "in all?", "a + b"),
    ("A farm has {a} {animals} and {b} {other_animals}. Its barn is {c} years old. How many animals live on the farm?",
     "a + b"),
    ("{person} found {a} {items} in the attic and {b} in the garage. It took {him} {m} hours. How many {items} did "
     "{he} find?", "a + b"),
    # One step: subtraction
    ("{person} had {a} {items}. {He} lost {b} of them on the way home. How many {items} does {he} have left?", "a - b"),
    ("{person} has {a} {items} and {other} has {b}. How many more {items} does {person} have than {other}?", "a - b"),
    ("{person} has {a} {items}. {other} has {b}. How many fewer {items} does {other} have than {person}?", "a - b"),
    ("There were {a} {animals} in a field. Some of them went into the barn, and {b} stayed in the field. How many "
     "{animals} went into the barn?", "a - b"),
    ("{person} needs {a} {items} for a school project. {He} already has {b}. How many more {items} does {he} need?",
     "a - b"),
    ("{person} had some {items}. {other} gave {him} {b} more, and now {he} has {a}. How many {items} did {person} have "
     "at the start?", "a - b"),
    ("A rope is {a} feet long. {person} cuts off {b} feet. How many feet of rope are left?", "a - b"),
    ("There are {a} children in a club. {b} of them ride the bus, and the others walk. How many children walk?",
     "a - b"),
    ("The older tree in {person}'s garden is {a} feet tall, and the younger one is {b} feet tall. How many feet taller "
     "is the older tree?", "a - b"),
    ("{person} scored {a} points in the first game and {b} points in the second. How many fewer points did {he} score "
     "in the second game than in the first?", "a - b"),
    ("Of the {h} seats in a concert hall, {a} are empty. How many seats are taken?", "h - a"),
    ("{person} and {other} have {a} {items} together. {b} of them are {other}'s. How many {items} does {person} have?",
     "a - b"),
    ("A stall opened with {a} {treats} and {b} {other_treats}. By noon {c} {treats} and {d} {other_treats} were sold. "
     "How many {treats} were left?", "a - c", "b - d"),
    ("{person} is reading a book with {m} chapters and {h} pages. So far {he} has read {a} pages. How many pages are "
     "left?", "h - a"),
    ("{person} has {a} {colour} {items} and {b} {other_colour} ones. {other} has {c} {items}. How many more {colour} "
     "{items} than {other_colour} {items} does {person} have?", "a - b"),
    ("{person} had {a} dollars. {He} spent {b} dollars on a book of {h} pages. How many dollars does {he} have left?",
     "a - b"),
    ("{person} had {a} {items}. {He} gave {m} of them to {other} and {n} to {third}. How many more {items} did {other} "
     "get than {third}?", "m - n", "a - m, it - n"),
    # One step: multiplication
    ("There are {n} {containers} with {a} {items} in each. How many {items} are there in all?", "n * a"),
    ("{person} buys {n} {items} for {m} dollars each. How many dollars does {he} pay?", "n * m"),
    ("{person} reads {a} pages a day. How many pages does {he} read in {n} days?", "a * n"),
    ("A gardener plants {m} rows of tulips with {a} tulips in each row. How many tulips does the gardener plant?",
     "m * a"),
    ("{person} has {m} {items}. {other} has {n} times as many. How many {items} does {other} have?", "m * n"),
    ("A group of {n} friends went to the fair, and each of them bought {m} {treats}. How many {treats} did they buy in "
     "all?", "n * m"),
    ("A machine makes {a} chairs an hour. How many chairs does it make in {n} hours?", "a * n"),
    ("A parking garage has {n} floors with {a} spaces on each floor. How many cars can park in it?", "n * a"),
    ("{person} runs {m} miles every morning. How many miles does {he} run in {a} mornings?", "m * a"),
    ("Each {container} holds {a} {items} and weighs {m} pounds. How many {items} do {n} {containers} hold?", "a * n"),
    ("{person} earns {m} dollars an hour and works {n} hours a day. The walk to work takes {a} minutes. How many "
     "dollars does {he} earn in a day?", "m * n"),
    ("A farmer has {n} pens with {m} {animals} in each, and {a} {other_animals} in the field. How many {animals} are "
     "in the pens?", "n * m"),
    ("A boat ticket costs {m} dollars, and the ride takes {a} minutes. How many dollars do {n} tickets cost?", "m * n"),
    # One step: division
    ("{person} shares {a} {items} equally among {n} friends. How many {items} does each friend get?", "a / n"),
    ("{person} puts {a} {treats} on plates, {n} on each plate. How many plates does {he} need?", "a / n"),
    ("A teacher splits {a} children into {n} teams of the same size. How many children are in each team?", "a / n"),
    ("{person} paid {a} dollars for {n} {items} of the same price. How many dollars did each {item} cost?", "a / n"),
    ("A board {a} inches long is cut into pieces of {n} inches each. How many pieces are there?", "a / n"),
    ("{person} has {a} {items}. That is {n} times as many as {other} has. How many {items} does {other} have?",
     "a / n"),
    ("{person} read a book of {h} pages in {n} days, the same number of pages every day. How many pages did {he} read "
     "each day?", "h / n"),
    ("Each van carries {n} people. How many vans are needed to carry {a} people?", "a / n"),
    ("A farmer keeps {a} {animals} in {n} pens, the same number in each. How many {animals} are in each pen?", "a / n"),
    ("A cook uses {n} eggs for every cake. How many cakes can the cook make with {a} eggs?", "a / n"),
    ("{person} has {a} {items} and {b} {other_items}. {He} packs the {items} into {n} {containers}, the same number in "
     "each. How many {items} are in each {container}?", "a / n"),
    ("{person} saves {n} dollars a week for a bicycle that costs {a} dollars. The shop is {m} miles away. How many "
     "weeks does {he} have to save?", "a / n"),
    ("A choir of {a} singers stands in {n} equal rows and sings {m} songs. How many singers are in each row?", "a / n"),
    ("{person} and {m} other people are in a club. The club buys {a} {items} in packs of {n}. How many packs does it "
     "buy?", "a / n"),
    # Two steps: addition and subtraction
    ("{person} has {a} {items}, {other} has {b} and {third} has {c}. How many {items} do the three of them have "
     "together?", "a + b, it + c"),
    ("{person} had {a} {items}. {He} bought {b} more and then gave {c} to {other}. How many {items} does {person} have "
     "now?", "a + b, it - c"),
    ("A bus had {a} passengers. At the next stop {b} got off and {c} got on. How many passengers are on the bus now?",
     "a - b, it + c"),
    ("{person} made {a} {treats}. {He} gave {b} to {other} and {c} to {third}. How many {treats} does {person} have "
     "left?", "a - b, it - c"),
    ("{person} has {a} {items}. {other} has {b} fewer than {person}. How many {items} do they have together?",
     "a - b, it + a"),
    ("A shop sold {a} {items} on Friday. On Saturday it sold {b} more than on Friday. How many {items} did it sell on "
     "the two days together?", "a + b, it + a"),
    ("{person} picked {a} {fruits} and {other} picked {b}. On the way home they ate {m} of them. How many {fruits} do "
     "they have left?", "a + b, it - m"),
    ("{person} has {a} {items}. {other} has {b} more than {person}, and {third} has {c} fewer than {other}. How many "
     "{items} does {third} have?", "a + b, it - c"),
    ("{person} pays for a book that costs {m} dollars and a game that costs {n} dollars with {a} dollars. How many "
     "dollars does {he} get back?", "m + n, a - it"),
    ("{person}'s team scored {a} points in the first half and {b} in the second. The other team scored {c} points in "
     "the whole game. By how many points did {person}'s team win?", "a + b, it - c"),
    ("{person} is {a} years old, and {other} is {m} years younger. How old will {other} be in {n} years?",
     "a - m, it + n"),
    ("There are {h} books in a shop. {a} of them are about animals, {b} are about history, and the others are novels. "
     "How many novels are there?", "h - a, it - b"),
    ("{person} has {a} {items} and {b} {other_items}. {He} finds {c} more {items} and gives {m} {items} to {other}. "
     "How many {items} does {person} have now?", "a + c, it - m"),
    ("A farm had {a} {animals}, {b} {other_animals} and {m} tractors. Then the farmer sold {n} of the {animals}. How "
     "many animals does the farm have now?", "a + b, it - n", "a - n"),
    ("{person} had {a} dollars. {He} earned {b} dollars for {m} hours of work and spent {c} dollars. How many dollars "
     "does {he} have now?", "a + b, it - c"),
    # Two steps: multiplication with addition or subtraction
    ("{person} buys {n} {containers} with {m} {items} in each and gives {a} of the {items} to {other}. How many "
     "{items} does {person} have left?", "n * m, it - a"),
    ("{person} has {n} {containers} with {a} {items} in each, and {b} more {items} on a shelf. How many {items} does "
     "{he} have in all?", "n * a, it + b"),
    ("{person} has {a} dollars. {He} buys {n} {items} for {m} dollars each. How many dollars does {he} have left?",
     "n * m, a - it"),
    ("{person} has {m} {items}, and {other} has {n} times as many. How many {items} do they have together?",
     "m * n, it + m"),
    ("{person} has {m} {items}. {other} has {n} times as many. How many more {items} does {other} have than {person}?",
     "m * n, it - m"),
    ("{person} earns {m} dollars an hour. {He} worked {n} hours on Saturday and {k} hours on Sunday. How many dollars "
     "did {he} earn on the two days together?", "n + k, it * m"),
    ("{person} is reading a book of {h} pages. {He} has read {a} pages a day for {n} days. How many pages are left?",
     "a * n, h - it"),
    ("{person} made {a} {treats} and kept {m} of them. {He} sold the others for {n} dollars each. How many dollars did "
     "{he} get?", "a - m, it * n"),
    ("A full tank holds {h} gallons of water. Every day {m} gallons leak out. How many gallons are left in it after "
     "{n} days?", "m * n, h - it"),
    ("A hall has {m} rows of seats with {a} seats in each row. {b} of the seats are taken. How many seats are free?",
     "m * a, it - b"),
    ("{person} solved {m} puzzles a day for {n} days. {other} solved {k} puzzles in all. How many more puzzles did "
     "{person} solve than {other}?", "m * n, it - k"),
    ("{person} rents a boat for {n} hours. It costs {m} dollars an hour and {a} dollars for cleaning. How many dollars "
     "does {he} pay?", "n * m, it + a"),
    ("{person} bought {n} {containers} for {k} dollars each. Every {container} held {a} {items}. {He} gave {b} of the "
     "{items} to {other}. How many {items} does {person} have left?", "n * a, it - b"),
    ("A farmer had {m} pens with {n} {animals} in each, and {a} {other_animals}. Then {k} of the {animals} ran away. "
     "How many {animals} does the farmer have now?", "m * n, it - k"),
    # Two steps: division with addition or subtraction
    ("{person} had {a} {items}. {He} kept {b} of them and shared the others equally among {n} friends. How many "
     "{items} did each friend get?", "a - b, it / n"),
    ("{person} has {a} {colour} {items} and {b} {other_colour} ones. {He} puts all of them into {n} {containers}, the "
     "same number in each. How many {items} are in each {container}?", "a + b, it / n"),
    ("{person} shared {a} {treats} equally among {n} children. {other} was one of them and already had {m} {treats}. "
     "How many {treats} does {other} have now?", "a / n, it + m"),
    ("{person} packed {a} {items} into {n} {containers}, the same number in each. Then {he} took {m} out of one "
     "{container}. How many {items} are left in that {container}?", "a / n, it - m"),
    ("A trip is planned for {a} children and {m} teachers. Each van carries {n} people. How many vans are needed?",
     "a + m, it / n"),
    ("{person} wants to buy a tent for {h} dollars. {He} has {a} dollars and saves {m} dollars a week. How many weeks "
     "does {he} have to save?", "h - a, it / m"),
    ("{person} cuts {m} inches off a ribbon of {a} inches and cuts the rest into {n} equal pieces. How many inches "
     "long is each piece?", "a - m, it / n"),
    ("A farmer collects {a} eggs in the morning and {b} in the evening. Each carton holds {n} eggs. How many cartons "
     "can the farmer fill?", "a + b, it / n"),
    ("{person} paid {a} dollars for {n} {items} of the same price. In another shop each one costs {m} dollars less. "
     "How many dollars does one {item} cost there?", "a / n, it - m"),
    ("{person} packed {a} {items} in {n} hours and took {b} {items} home. {other} packed {m} more {items} an hour than "
     "{person}. How many {items} did {other} pack each hour?", "a / n, it + m", "a - b"),
    ("A summer camp has {a} boys and {b} girls, and its hall has {m} windows. Each table seats {n} children. How many "
     "tables does the camp need?", "a + b, it / n"),
    # Two steps: multiplication and division
    ("A shop has {n} shelves. On each shelf are {m} {containers}, and each {container} holds {k} {items}. How many "
     "{items} are there in all?", "n * m, it * k"),
    ("{person} has {n} {containers} with {a} {items} in each. {He} shares all of the {items} equally among {m} "
     "friends. How many {items} does each friend get?", "n * a, it / m"),
    ("At the market {n} {fruits} cost {a} dollars. At the same price, how many dollars do {m} {fruits} cost?",
     "a / n, it * m"),
    ("{person} has {a} {items}. They are packed in {n} equal {containers}. How many {items} are there in {m} of the "
     "{containers}?", "a / n, it * m", "n - m"),
    ("A machine fills {a} bottles in {n} minutes. How many bottles does it fill in {m} minutes at the same speed?",
     "a / n, it * m"),
    ("A school orders {m} cases with {n} {items} in each, and {a} chairs. The {items} go to {k} rooms, the same number "
     "to each. How many {items} does each room get?", "m * n, it / k"),
]  # fmt: skip
TEMPLATES = [Template(*row) for row in TEMPLATES]

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def work_out(steps: str, numbers: dict[str, int]) -> list[tuple[int, str, int, int]] | None:
    """[(left, operation, right, result), ...], or None where a result is not a whole number from 2 to 999."""
    done: list[tuple[int, str, int, int]] = []
    for step in steps.split(", "):
        left, operation, right = step.split()
        x, y = (done[-1][3] if term == "it" else numbers[term] for term in (left, right))
        if operation == "/" and x % y:
            return None
        result = OPERATIONS[operation](x, y)
        if not 2 <= result <= 999:
            return None
        done.append((x, operation, y, result))
    return done


def draw_words(rng: random.Random) -> dict[str, str]:
    """A filling for every slot that is not a number."""
    person, other, third = rng.sample(GIRLS + BOYS, 3)
    he, him = ("she", "her") if person in GIRLS else ("he", "him")
    words = dict(person=person, other=other, third=third, he=he, He=he.capitalize(), him=him)
    for kind, nouns in NOUNS.items():
        first, second = rng.sample(nouns, 2)
        words |= {kind: first, f"{kind}s": plural(first), f"other_{kind}": second, f"other_{kind}s": plural(second)}
    return words


def draw_problem(rng: random.Random) -> Problem:
    template = rng.choice(TEMPLATES)
    letters = re.findall(r"\{(\w)\}", template.text)
    done = None
    while done is None:
        numbers = {letter: rng.randint(*RANGES[letter]) for letter in letters}
        if len(set(numbers.values())) == len(numbers) and (not template.also or work_out(template.also, numbers)):
            done = work_out(template.steps, numbers)
    answer = str(done[-1][3])
    rationale = ", ".join(f"{x} {operation} {y} = {result}" for x, operation, y, result in done)
    return Problem(template.text.format(**numbers, **draw_words(rng)), answer, f"{rationale} #### {answer}")


def split_of(question: str) -> str:
    """One question in ten is for testing. crc32 is the same on every machine and in every run, unlike hash()."""
    return "test" if zlib.crc32(question.encode()) % 10 == 0 else "train"


def stream(split: str, seed: int = 0) -> Iterator[Problem]:
    """Endless, and the same for the same seed; a problem may come up again."""
    if split not in SIZES:
        raise ValueError(f"unknown split {split!r} of arith: choose from {', '.join(SIZES)}")
    rng = random.Random(seed)
    while True:
        problem = draw_problem(rng)
        if split_of(problem.question) == split:
            yield problem


def load(split: str) -> list[Problem]:
    """The first distinct problems of stream(split): 4,000 to train on, 500 to test on."""
    problems: dict[Problem, None] = {}  # a dict keeps the order in which they came
    for problem in stream(split):
        problems[problem] = None
        if len(problems) == SIZES[split]:
            return list(problems)
