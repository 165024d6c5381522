"""The record that every data set yields."""

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    question: str  # the problem in plain words
    answer: str  # the reference answer alone, "51"
    rationale: str  # a worked solution that ends with the marker and the answer, "76 - 25 = 51 #### 51"

    @property
    def key(self) -> str:
        """The question, the same however it is spaced and capitalised: two problems with one key are the same."""
        return " ".join(unicodedata.normalize("NFKC", self.question).casefold().split())
