"""The record that every data set yields."""

import re
from dataclasses import dataclass

from answers import SIGNS

TYPESETTING = re.compile(r"\\(?:left|right)\b|(?<=\\)[dt](?=frac)")
KEY = re.compile(r"[0-9]+(?:[.,][0-9]+)*|[^\W0-9_]+|[-+*/=<>^]")


@dataclass(frozen=True)
class Problem:
    question: str  # the problem in plain words
    answer: str  # the reference answer alone, "51"
    rationale: str  # a worked solution that ends with the marker and the answer, "76 - 25 = 51 #### 51"

    @property
    def key(self) -> str:
        """The question's words, numbers and signs of operations: two problems with one key are the same, however they
        are spaced, capitalised, punctuated and typeset."""
        return " ".join(KEY.findall(TYPESETTING.sub("", self.question.translate(SIGNS)).casefold()))
