"""The record that every data set yields."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    question: str  # the problem in plain words
    answer: str  # the reference answer alone, "51"
    rationale: str  # a worked solution that ends with the marker and the answer, "76 - 25 = 51 #### 51"
