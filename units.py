"""The unit behind a number: which words are one, and whether two are the same.

    split_unit("16 sq. feet")  ->  "16", "ft2"          split_unit("16 dozen")  ->  "16 dozen", None
    same_unit("metre", "m")    ->  True                 same_unit("min", "m")   ->  False

A unit is any word or words that leave the number as it is: apples are one. Those of UNITS have one name for all their
spellings; a letter that stands for several is only what the reference says. Of others "apples left" are "apples".
"""

import re

TABLE = """mm millimeter millimetre; cm centimeter centimetre; metre meter m; km kilometer kilometre; in inch inches;
ft foot feet; yd yard; mi mile; mg milligram; g gram gramme gm; kg kilogram kilogramme; lb; oz ounce;
ml milliliter millilitre; l liter litre; gal gallon; qt quart; tsp teaspoon; tbsp tablespoon; s second sec; min minute;
h hour hr; day; wk week; mo month; yr year; mi/h mph; km/h kmh kph kmph; metre/s mps; fl fluid; cent; dollar usd;
euro eur; percent pct; celsius c; fahrenheit f; child children; man men; woman women; person people; leaf leaves;
loaf loaves; / per a an"""
UNITS = {spelling: row.split()[0] for row in TABLE.split(";") for spelling in row.split()}
NAMES = set(UNITS.values()) - {"in"}  # which is a word as well
SEVERAL = {"m": ("metre", "min", "mi"), "pound": ("lb", "sterling")}  # what a name may stand for

# These words change the number, or leave it open:
NO_UNIT = """zero one two three four five six seven eight nine ten eleven twelve [a-z]*teen twenty thirty forty fifty
sixty seventy eighty ninety hundred thousand thou mill? bil [a-z]*illion doz(?:en)? score pair couple gross(?:es)?
grand lakh crore myriad kilo mega milli centi half halve quarter third hundreth
(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf)th [a-z]*(?:teen|tie|red|ion|and)th once twice thrice [a-z]*fold
doubled? tripled? halved squared cubed factorial root power raised mod modulo choose plus minus times over by to
divided multiplied remainder inverse reciprocal pi sqrt log ln exp sin cos tan cot csc repeating recurring rounded
infinity mille am pm no not none never neither nor without except excluding wrong incorrect false negative maybe
perhaps about approx approximately roughly few several more less fewer greater smaller larger bigger above below over
under than least most minimum maximum and or but if unless versus vs"""
NO_UNIT = re.compile(rf"\b(?:{'|'.join(NO_UNIT.split())})s?\b", re.IGNORECASE)
NUMERIC = re.compile(
    r"(?:.*(?:=|\\in))?(?:\\(?:frac|sqrt|pi|cdot|times|pm|and|or)(?![a-z])|[0-9]e|[-+*/^{}()[\]0-9., ])+"
)
SHORT = r"(?i:mm|cm|km|kgs?|mg|ml|lbs?|oz|ft|mph|kmh|kph|hrs?|min)\b"  # glued to the number or not
WORDS = r"[A-Za-z]+\.?(?:(?:\ |\ ?/\ ?)[A-Za-z]{2,}\.?|-[A-Za-z]{3,}|\ a\b|\ ?/\ ?[A-Za-z]\b)*(?:\ ?\^\ ?\{?[23]\}?)?"
UNIT = re.compile(
    rf"""(?:(?<=[0-9}})])|(?<=\\pi)) (?:(?={SHORT})|\ |\ ?/\ ?|\ (\())  # 5cm, 5 cm, 5/hour, 5 (apples)
    (?=(?i:{SHORT}|(?:in|mi|yds?|sq|cu|fl|qts?|tbsp|tsp|wks?|mo|yrs?)\b|(?=[a-z]*[aeiou])[a-z]{{3}})
       |m\b|(?<=[0-9]\ )[CFghJlLNsVW]\b)
    ({WORDS}) (?(1)\))$""",
    re.VERBOSE,
)
LETTER = re.compile(r"(?<=[0-9])(?=[CFghJlLNsVWm]$)")  # 5m, which may be algebra
PLURAL = re.compile(r"(?<=[a-z])(?:(?<=[a-z]{2})(?:ies|ie)|(?<=[^aeiou])y|es|e|(?<![su])s)\b")
POWERS = {"sq": "2", "square": "2", "cu": "3", "cubic": "3"}


def split_unit(text: str) -> tuple[str, str | None]:
    """A plain text without its unit, and the unit's name; the text itself and None where there is none."""
    unit = UNIT.search(text)
    if not unit or NO_UNIT.search(unit[2]) or not NUMERIC.fullmatch(text, 0, unit.start()):
        return text, None
    per = "/" * ("/" in text[unit.start() : unit.start(2)])  # 5/hour
    return text[: unit.start()], per + unit_name(unit[2].lower())


def unit_name(text: str) -> str:
    """One name for all spellings: "sq. feet" is "ft2", "kilometers per hour" is "km/h". A single letter stays."""
    text = re.sub(r"\b(sq|square|cu|cubic)\b\.?[ -]*([a-z]+)", lambda m: m[2] + POWERS[m[1]], text)
    words = re.findall("[a-z]+|[0-9/]", re.sub(r"\bdegrees? (?=[a-z])", "", text))
    if len(words) == 1 and words[0] in SEVERAL:
        return words[0]
    singular = [word.removesuffix("s") if len(word) > 2 else word for word in words]
    pairs = zip(words, singular, strict=True)
    names = (UNITS.get(word) or UNITS.get(one) or PLURAL.sub("", word) for word, one in pairs)
    return re.sub("(?<=/) | (?=[0-9/])", "", " ".join(names))


def same_unit(given: str | None, expected: str | None) -> bool:
    """Whether the unit of an answer is the reference's; it is where either has none, or no more than "/hour"."""
    if not given or not expected:
        return True
    short, long = sorted((given, expected), key=len)
    meant = SEVERAL.get(expected, ())[: 1 if len(expected) == 1 else None]
    same = {given, *SEVERAL.get(given, ())} & {expected, *meant} or (short[0] == "/" and long.endswith(short))
    return bool(same) or says_more(long.split(), short.split())


def says_more(long: list[str], short: list[str]) -> bool:
    """Whether a unit is another one with a word more: "apples left", "red apples", "pounds of flour"."""
    n = len(short)
    if long[:n] == short:
        more = long[n:]
    elif long[-n:] == short and short[-1] not in NAMES:  # a light year is no year
        more = long[:-n]
    else:
        return False
    return not any(word in NAMES or word in SEVERAL or re.search("[0-9/]", word) for word in more)
