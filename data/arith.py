"""An endless supply of arithmetic word problems, for runs without a download and for tests.

They are in the spirit of SVAMP (one or two steps, the four operations, numbers that play no part), but every word is
our own: a grammar, whose tables are data/wordings.py, composes them. A problem begins as a story: quantities, which
have letters, and relations between them ("e = s - x": what is left is what there was, less what went). One quantity is
asked for, a way to it in one or two steps is chosen, the quantities that it starts from are told, others may be, and
numbers are drawn until all of it makes sense. There are three splits, and no two share a problem:

    train, test  the grammar without its held-out productions; a checksum of the question says which of the two
    wordings     at least one held-out production in every problem: a verb, a place, a form of question, a whole story

test asks for new numbers and new combinations, wordings for words and sentences that train never shows. A model that is
good at the first alone has learned sentences by heart.
"""

import operator
import random
import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from data.problem import Problem
from data.wordings import (
    ADJECTIVES,
    ASIDES,
    BOYS,
    DOMAIN_LINES,
    GIRLS,
    KIN,
    MEASURES,
    NOUNS,
    OPENINGS,
    STORY_BLOCKS,
    TIMES,
)

SIZES = {"train": 4000, "test": 500, "wordings": 500}  # how many problems load() returns

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}
VERBS = {"had": ("had", "hold"), "did": ("did", "do"), "+": ("got", "get"), "-": ("lost", "lose")}  # told, asked
TOGETHER = {"times": "t1 t2 t3", "AB": "A1 B1", "XYZ": "X Y Z", "Hh": "H h"}  # slots that one choice fills
SOMEBODY = {"aux": "did", "aux2": "did", "does": "does", "has": "has ~", "have": "have", "left": "left"}
THERE = SOMEBODY | {"aux": "", "does": "", "has": "there are ~", "have": "are there"}  # nobody has them: "there were 5"
IRREGULAR = {"leaf": "leaves", "loaf": "loaves", "potato": "potatoes", "tomato": "tomatoes", "foot": "feet"}
# How a sentence begins that needs one before it; a star marks what is held out.
LATER = re.compile(r"\*?(then|later|after that,|next,|now|in the end|and|that was) ")

Step = tuple[str, str, str, str]  # left, operation, right, result: letters


class Story(NamedTuple):
    """A block of STORY_BLOCKS."""

    held_out: bool
    weight: int
    name: str
    kinds: str  # what it is about, keys of NOUNS; empty where a line of DOMAINS says so
    relations: list[tuple[str, str, str, str]]  # z, x, operation or ± and a letter, y
    facts: list[tuple[str, str]]  # how it may be left out, text
    questions: list[tuple[str, str]]  # the letter of the answer, text


class Domain(NamedTuple):
    """A line of DOMAIN_LINES, with those that begin with + and - under it as slots of that name."""

    held_out: bool
    names: list[str]  # of stories
    kinds: str
    slots: dict[str, str]


def read_story(block: str) -> Story:
    """A line with (a/b) stands for two lines."""
    head, *lines = block.split("\n")
    star, name, weight, kinds, relations = re.fullmatch(r"(\*?)(\S+) (\d+)(?: \((.*)\))?: (.*)", head).groups()
    facts, questions = [], []
    for line in lines:
        variants = max([1, *(pair.count("/") + 1 for pair in re.findall(r"\([^()]*\)", line))])
        for i in range(variants):
            mark, text = re.sub(r"\(([^()]*)\)", lambda m, i=i: m[1].split("/")[i], line).split(" ", 1)
            if mark in ".?!":
                facts.append((mark, text))
            else:
                questions.append((mark, text))
    parts = [re.fullmatch(r"(\w) = (\w) (\S+) (\w)", relation).groups() for relation in relations.split(", ")]
    return Story(bool(star), int(weight), name, kinds or "", parts, facts, questions)


def read_domain(block: str) -> Domain:
    head, *lines = block.split("\n")
    star, names, kinds, rest = re.fullmatch(r"(\*?)([^(]*) \((.*)\): (.*)", head).groups()
    slots = dict(slot.partition(" ")[::2] for slot in rest.split("; "))
    for line in lines:
        slots[line[0]] = f"{slots[line[0]]} & {line[2:]}" if line[0] in slots else line[2:]
    return Domain(bool(star), names.split(), kinds, slots)


def blocks(text: str, between: str) -> list[str]:
    """A line that begins with a space goes on with the one before."""
    return re.split(between, re.sub(r"\n +", " ", text).strip())


STORIES = [read_story(block) for block in blocks(STORY_BLOCKS, "\n\n")]
DOMAINS = [read_domain(block.strip()) for block in blocks(DOMAIN_LINES, r"\n(?=[*a-z])")]

DOMAINS_OF = {story.name: [domain for domain in DOMAINS if story.name in domain.names] for story in STORIES}


def plural(noun: str) -> str:
    """child/children, or by the rules of spelling; of "loaf of bread" the first word."""
    if "/" in noun:
        return noun.partition("/")[2]
    noun, of, rest = noun.partition(" of ")
    head, space, last = noun.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return head + space + last + of + rest


class Writer:
    """The choices of one problem; `slots` hold what is settled. What is held out keeps its star, to be known by."""

    def __init__(self, rng: random.Random, held_out: bool):
        self.rng, self.held_out = rng, held_out
        self.signs: dict[str, str] = {}  # of letters in relations with ±
        self.name, other, third = rng.sample(GIRLS + BOYS, 3)
        self.slots = {"P": "#P", "he": "#he", "him": "#him", "his": "#his", "Q": other, "R": third, "t1": ""}
        if self.chance(0.2):
            self.slots["Q"] = f"#P's {self(KIN)}"
        self.slots |= {
            "it": "#he",
            "i": self("[day|month|*hour]"),
            "place": self.noun("place")[0],
            "G": self.noun("group")[1],
        }
        self.slots["c"], self.slots["C"] = self.noun("container")

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def choose(self, options: list, p: float = 0.5) -> object:
        """One of them: a held-out one with probability p, or never where nothing is held out."""
        if isinstance(options[0], str):
            held_out = [option for option in options if option[:1] == "*"]
        else:
            held_out = [option for option in options if option.held_out]
        if self.held_out and held_out and self.chance(p):
            options = held_out
        else:
            options = [option for option in options if option not in held_out]
        return self.rng.choices(options, [getattr(option, "weight", 1) for option in options])[0]

    def __call__(self, text: str) -> str:
        """Every choice made and every slot filled, but for people: #P will be a name or a pronoun in the end."""
        text = re.sub(r"<(\w) ([^|<>]*)\|([^<>]*)>", lambda m: m[2 if self.signs[m[1]] == "+" else 3], text)
        while found := re.search(r"\[([^][]*)\]|\{(\w+)(?::([^{}]*))?\}", text):
            options, slot, thing = found.groups()
            new = self.slots[slot].replace("~", thing or "") if slot else self.choose(options.split("|"))
            text = text[: found.start()] + new + text[found.end() :]
        return " ".join(text.split())

    def noun(self, kind: str, *but: str) -> tuple[str, str]:
        """Singular and plural."""
        noun = self.choose([noun for noun in NOUNS[kind] if noun.partition("/")[0] not in but])
        return noun.partition("/")[0], plural(noun)

    def fill_nouns(self, kinds: str) -> None:
        """K, L and M are three kinds of thing, k is one K; A and B are N with two adjectives, A1 and B1."""
        kind = self.rng.choice(kinds.split())
        one, many = self.noun(kind)
        first, second = self.choose(ADJECTIVES.get(kind, ADJECTIVES["toy"])).split()
        self.slots |= {
            "N": many,
            "K": many,
            "k": one,
            "A1": first,
            "A": f"{first} {many}",
            "B1": second,
            "B": f"{second} {many}",
        }
        self.slots["D"] = many if kind in ("toy", "fruit", "treat", "animal", "drink") else "cards"  # in asides
        if len(NOUNS[kind]) > 2:
            other, self.slots["L"] = self.noun(kind, one)
            self.slots["M"] = self.noun(kind, one, other)[1]
            if " of " not in one and kind in ADJECTIVES and self.chance(0.4):
                self.slots |= {"K": f"{first} {many}", "k": f"{first} {one}", "L": f"{second} {many}"}

    def fill_verb(self, text: str, past: str, base: str) -> None:
        """ "found/find ~ / at the park", "there were ~" or "~ got on": with its object, and as questions need it."""
        body, _, adverb = (part.strip() for part in f"{self(text)} ".partition(" /"))
        if found := re.fullmatch(r"(\*?)(\S+)/(\S*) (.*)", body):
            star, said, asked, rest = found.groups()
            self.slots[past] = f"{star}{said} {rest} {adverb}"
            self.slots[base] = f"{star}{asked} {rest.replace('~', '')} {self.rng.choice([adverb, ''])}"
        else:
            self.slots[past] = body
            self.slots[base] = re.sub("^there were", "were there", body).replace("~", "")

    def fill(self, slots: dict[str, str]) -> None:
        """The slots of a Domain, and those that follow from them."""
        who = slots.get("who", "{P}" if "did" in slots else "")
        self.slots |= {"who": self(who)} | (SOMEBODY if who else THERE)
        if "had" in slots:
            self.slots["it"] = self("[|the ones ]" + ("#he" if who == "{P}" else "it")) if who else ""
        for name, text in slots.items():
            if name in TOGETHER:
                options = TIMES[self.rng.choice(text.split())] if name == "times" else text.split(" & ")
                self.slots |= dict(zip(TOGETHER[name].split(), self(self.choose(options)).split("/"), strict=False))
            elif name in VERBS:  # of what comes and what goes two different ones
                verbs = [verb for verb in text.split(" & ") if self.held_out or verb[0] != "*"]
                for number, verb in zip(("", "2"), self.rng.sample(verbs, min(2, len(verbs))), strict=False):
                    self.fill_verb(verb, *(slot + number for slot in VERBS[name]))
            else:
                self.slots[name] = self(text)


def ways(asked: str, relations: list[tuple[str, str, str, str]]) -> list[list[Step]]:
    """Every way to a letter in one or two steps: each relation, solved for each of its letters."""
    solved: dict[str, list[Step]] = {}
    for z, x, op, y in relations:
        solved.setdefault(z, []).append((x, op, y, z))
        solved.setdefault(x, []).append((z, INVERSE[op], y, x))
        solved.setdefault(y, []).append((x, op, z, y) if op in "-/" else (z, INVERSE[op], x, y))
    one = [[step] for step in solved.get(asked, [])]
    two = [[first, step] for [step] in one for middle in (step[0], step[2]) for first in solved.get(middle, [])]
    return one + [way for way in two if asked not in way[0] and {*way[0]} != {*way[1]}]


def starts(way: list[Step]) -> set[str]:
    """The letters that a way begins with."""
    return {letter for x, _, y, _ in way for letter in (x, y)} - {z for *_, z in way}


def letters(texts: list[str]) -> set[str]:
    return set(re.findall(r"@(\w)", " ".join(texts)))


def tell(write: Writer, story: Story, told: set[str]) -> list[str]:
    """The sentences that tell these letters, each once."""
    sentences: list[str] = []
    for mark, fact in story.facts:
        here = letters([fact])
        if here & letters(sentences) or not here <= told and (mark != "." or len(here) > 1):
            continue
        if len(here) > 1 and not story.kinds and write.chance(0.4):
            continue  # one by one, below
        text = write(fact if here <= told else re.sub(r"@\w( of the| of those)?", "some", fact))
        sentences += text.split(". ")
    if all(mark == "?" for mark, _ in story.facts) and write.chance(0.3):
        write.rng.shuffle(sentences)
    return [re.sub(r"^\*?(then|later|after that,|next,|now) ", "", text) for text in sentences[:1]] + sentences[1:]


def draw_numbers(
    rng: random.Random,
    story: Story,
    relations: list[tuple[str, str, str, str]],
    told: set[str],
    way: list[Step],
    top: int,
) -> dict[str, int] | None:
    """A number for every letter: what is told differs and is 2 or more, results are 1 or more, all are below 1,000."""
    there = [z for z, _, op, _ in story.relations if op[0] == "±"]  # what there is after coming and going
    factors = {letter for _, x, op, y in relations if op in "*/" for letter in (x, y)}
    needed = sorted({letter for z, x, _, y in relations for letter in (z, x, y)} | told)
    for _ in range(60):
        largest = min(top, rng.choice((12, 12, 20, 20, 50, 99, 99, 600)))
        small = {letter: rng.choice((10, 12, 25)) for letter in sorted(factors)} | {"l": 30}  # l: of asides
        values = {letter: rng.randint(2, min(largest, small.get(letter, largest))) for letter in needed}
        for z, x, op, y in relations:
            values[z] = OPERATIONS[op](values[x], values[y] or 1)
        numbers, results = [values[letter] for letter in told], [values[z] for *_, z in way]
        sensible = min(numbers) > 1 and min(results) > 0 and max(*numbers, *results) < 1000
        sensible = sensible and all(values[z] >= 0 for z in there)
        if not sensible or len(set(numbers)) < len(numbers):
            continue
        if all(OPERATIONS[op](values[x], values[y]) == values[z] for x, op, y, z in way) and all(
            values[y] * values[z] == values[x] for x, op, y, z in way if op == "/"
        ):
            return values
    return None


def draw_problem(rng: random.Random, held_out: bool = False) -> Problem | None:
    """A problem, or None where the choices did not fit together."""
    write = Writer(rng, held_out)
    story = write.choose(STORIES, p=0.08)
    domain = None if story.kinds else write.choose(DOMAINS_OF[story.name], p=0.25)
    write.fill_nouns(story.kinds or domain.kinds)
    slots = domain.slots if domain else {}
    write.fill(slots)
    relations = []
    for z, x, op, y in story.relations:
        if op[0] == "±":
            op = write.signs.setdefault(op[1:] or y, rng.choice("+-"))
        relations.append((z, x, op, y))

    asked, question = rng.choice(story.questions)
    can_tell = letters([fact for _, fact in story.facts]) - {asked}
    found = [way for way in ways(asked, relations) if starts(way) <= can_tell]
    used = re.findall(r"{(\w+)", " ".join([question, *(fact for _, fact in story.facts)]))
    if not found or not set(used) <= set(write.slots):  # as where there is but one kind of money
        return None
    length = rng.choice((1, 2))
    way = rng.choice([way for way in found if len(way) == length] or found)
    extra = letters([fact for mark, fact in story.facts if mark != "!"]) - {asked}
    chance = 0.2 if write.signs else 0.4
    sentences = tell(write, story, starts(way) | {letter for letter in sorted(extra) if write.chance(chance)})
    way = min((way for way in found if starts(way) <= letters(sentences)), key=len, default=None)
    if way is None:
        return None
    if write.chance(0.15):
        sentences.insert(0, write(write.choose(OPENINGS.split(" & "))))
    if write.chance(0.3):
        sentences.insert(rng.randint(1, len(sentences)), write(write.choose(ASIDES.split(" & "))))
    values = draw_numbers(rng, story, relations, letters(sentences), way, top=99 if "unit" in slots else 600)
    text = finish(write, sentences, write(question))
    if story.held_out or domain and domain.held_out:
        text = "*" + text
    if values is None or held_out and "*" not in text:
        return None
    text = polish(write, " ".join(text.replace("*", "").split()))
    answer = str(values[asked])
    rationale = ", ".join(f"{values[x]} {op} {values[y]} = {values[z]}" for x, op, y, z in way)
    return Problem(re.sub(r"@(\w)", lambda found: str(values[found[1]]), text), answer, f"{rationale} #### {answer}")


def finish(write: Writer, sentences: list[str], question: str) -> str:
    """Sentences joined, and the question in one of its forms."""
    joined: list[str] = []
    for text in sentences:
        if joined and not LATER.match(text) and len(joined[-1].split()) < 12 and write.chance(0.2):
            joined[-1] += write.choose([" and ", ", and ", "*, while "]) + text
        else:
            joined.append(text)
    last = joined.pop()
    forms = ["{last}. {question}"] * 5 + [
        "{last}. [so|then] {question}",
        "*{last}. [say|tell me|let us see]: {question}",
    ]
    if not LATER.match(last) and " and " not in last:
        forms += ["if {last}, {question}"] * 2 + ["{question} if {last}", "*given that {last}, {question}"]
    write.slots |= {"last": last, "question": question}
    return ". ".join([*joined, write(write.choose(forms))]) + "?"


def polish(write: Writer, text: str) -> str:
    """Dollars, names and pronouns, capitals."""
    text = re.sub(r"how many dollars (do|does)\b", r"how much money \1", text).replace("some dollars", "some money")
    text = re.sub(rf"some (more )?({MEASURES}) of ", r"some \1", text)  # flour
    dollars = write.rng.choice(["$@", "$@", "@ dollars", "$ @"])
    text = re.sub(r"@(\w) dollars", lambda found: dollars.replace("@", f"@{found[1]}"), text)

    met = False  # #P, by name

    def person(found: re.Match) -> str:
        nonlocal met
        slot, possessive = found[1], found[2] or ""
        another = not possessive and re.search(rf"({write.slots['Q']}|{write.slots['R']})\b", text[: found.start()])
        by_name, met = not met or slot == "P" and (another or write.chance(0.5)), True
        if by_name:
            return write.name + ("'s" if slot == "his" else possessive)
        slot = {"P": "his" if possessive else "he"}.get(slot, slot)
        return {"he": "she", "him": "her", "his": "her"}[slot] if write.name in GIRLS else slot

    text = re.sub(r"#(P|him|his|he)\b('s)?", person, text).replace(" ,", ",")
    return re.sub(r"(^|[.?] )([a-z])", lambda found: found[1] + found[2].upper(), text)


def split_of(question: str) -> str:
    """One question in ten is for testing. crc32, unlike hash(), is the same on every machine."""
    return "test" if zlib.crc32(question.encode()) % 10 == 0 else "train"


def stream(split: str, seed: int = 0) -> Iterator[Problem]:
    """Endless, and the same for the same seed; a problem may come up again. The module's docstring lists the splits."""
    if split not in SIZES:
        raise ValueError(f"unknown split {split!r} of arith: choose from {', '.join(SIZES)}")
    rng = random.Random(seed)
    while True:
        problem = draw_problem(rng, split == "wordings")
        if problem and split in ("wordings", split_of(problem.question)):
            yield problem


def load(split: str) -> list[Problem]:
    """The first distinct problems of stream(split): 4,000 to train on, 500 of each other split."""
    problems: dict[Problem, None] = {}  # a dict keeps the order in which they came
    for problem in stream(split):
        problems[problem] = None
        if len(problems) == SIZES[split]:
            return list(problems)
