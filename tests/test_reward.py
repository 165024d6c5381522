"""Specification of the reward: which texts hold the reference, which do not, and what a hostile policy cannot do."""

import json
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import folder_of

from answers import MAX_CHARACTERS, MAX_EXPONENT, canonical
from data.problem import Problem
from docs.grading import fuzz
from reward import extract_answer, is_correct
from support.graders import MathVerify, by_rules, make_grader

CASES = Path(__file__).parents[2] / "shared" / "cases"

RIGHT = [  # completion, reference
    ("#### 42", "42"),
    ("####42", "42"),
    ("#### 42\n", "42"),
    ("#### 42 apples", "42"),
    ("#### 5kg", "5"),
    ("#### 5 m", "5"),
    ("#### 60 miles/hour", "60"),
    ("#### $5/hour", "5"),
    ("#### 42 (in all)", "42"),
    ("#### $18", "18"),
    ("#### 18€", "18"),
    ("#### 1,000,000", "1000000"),
    ("#### 1000", "1,000"),
    ("#### x = 5", "5"),
    ("#### \\boxed{42}", "42"),
    ("The answer is 42", "42"),
    ("The answer is: 42", "42"),
    ("the ANSWER IS 42.", "42"),
    ("**The answer is 42**", "42"),
    ("**The answer is 42.**", "42"),
    ("**The answer is:** 42", "42"),
    ("The answer is **42** apples.", "42"),
    ("The answer is $42$", "42"),
    ("The answer is \\(42\\).", "42"),
    ("The answer is $1,234.50.", "1234.5"),
    ("The answer is 42. I checked it 3 times.", "42"),
    ("The answer is 42! All 3 checks agree.", "42"),
    ("The answer is $\\boxed{42}$.", "42"),
    ("\\boxed{42}", "42"),
    ("\\boxed{\n42\n}", "42"),
    ("\\boxed{\\$5}", "5"),
    ("\\boxed{1{,}234}", "1234"),
    ("\\boxed{1,\\!234}", "1234"),
    ("\\boxed{1\\,234}", "1234"),
    ("\\boxed{42\\text{ apples}}", "42"),
    ("\\boxed{90^\\circ}", "90"),
    ("\\boxed{\\boxed{42}}", "42"),
    ("\\boxed{3/4}", "0.75"),
    ("\\boxed{\\frac{3}{4}}", "3/4"),
    ("\\boxed{-\\frac34}", "-\\dfrac{3}{4}"),
    ("#### -7", "-7"),
    ("#### \N{MINUS SIGN}7", "-7"),
    ("#### -$7", "-7"),
    ("#### $-7", "-7"),
    ("#### +5", "5"),
    ("#### -0", "0"),
    ("#### 007", "7"),
    ("#### 1e3", "1000"),
    ("#### 2.5E-1", "1/4"),
    ("#### 50%", "50"),
    ("#### 50\\%", "50"),
    ("#### .5", "0.5"),
    ("#### 2.50", "2.5"),
    ("#### 0.1", "1/10"),
    ("#### 3 / 4 cup", "3/4"),
    ("#### 1 1/2", "1.5"),
    ("\\boxed{1\\frac12}", "1.5"),
    ("\\boxed{-3 \\dfrac{1}{4}}", "-13/4"),
    ("\\boxed{\\frac{-3}{4}}", "-0.75"),
    ("\\boxed{\\frac{1,000}{3}}", "1000/3"),
    ("\\boxed{\\text{5 cm}}", "5"),
    ("\\boxed{5\\text{ cm}^2}", "5"),
    ("\\boxed{x = \\tfrac{1}{2}}", "0.5"),
    ("\\boxed{\\left(\\frac{1}{2}\\right)}", "0.5"),
    ("\\boxed{1.2 \\times 10^{5}}", "120000"),
    ("\\boxed{3 \\cdot 10^{-2}}", "0.03"),
    ("3 + 4 = 7\n#### 7", "7"),
    ("#### 1\nNo: #### 42", "42"),
    ("The answer is 1.\n\\boxed{42}", "42"),
    # Where the answer stands
    ("\\boxed {42}", "42"),
    ("\\fbox{42}", "42"),
    ("The answer is:\n\n42", "42"),
    ("The answer is\n42.", "42"),
    ("**The answer is:**\n\n42", "42"),
    ("The answer is:\n\\[\n42\n\\]", "42"),
    ("The answer is:\n$$\n42\n$$", "42"),
    ("The answer is Mr. Watson.", "Mr. Watson"),
    ("The answer is Mrs. Bell. She was late.", "Mrs. Bell"),
    ("The answer is 36 sq. inches.", "36"),
    ("The answer is 12 fl. oz. of milk.", "12"),
    ("The answer is 4:30 p.m. on Monday.", "4:30 PM"),
    # What stands before and behind a number
    ("#### =42", "42"),
    ("#### is 42", "42"),
    ('#### "42"', "42"),
    ("#### “42”", "42"),
    ("#### `42`", "42"),
    ("#### 42,", "42"),
    ("#### 42;", "42"),
    ("#### ¥42", "42"),
    ("#### £42.50", "42.5"),
    ("#### USD 42", "42"),
    ("#### US$42", "42"),
    ("#### Rs. 42", "42"),
    ("#### 42 USD", "42"),
    ("#### ½", "0.5"),
    ("#### 1½", "3/2"),
    ("#### ¾ cup", "0.75"),
    ("\\boxed{10^{-3}}", "0.001"),
    ("\\boxed{10^6}", "1000000"),
    ("\\boxed{-10^2}", "-100"),
    ("\\boxed{\\frac{1}{3} \\approx 0.333}", "1/3"),
    ("\\boxed{x = \\frac{1}{3} ≈ 0.333}", "1/3"),
    ("\\boxed{\\frac12 = 0.5}", "0.5"),
    ("\\boxed{x = \\frac{1}{2} = 0.5}", "1/2"),
    ("The answer is 42, because 40 + 2 = 42.", "42"),
    ("The answer is 42 (since 6 times 7 is 42).", "42"),
    ("The answer is 42 which is even.", "42"),
    ("#### –7", "-7"),
]

UNITS = [  # texts with one number and one unit: each equals the number alone, and those of its row, on either side
    (
        "9",
        "9 apples",
        "9 (apples)",
        "9 Apples",
        "9 apple",
        "9  apples.",
        r"9\text{ apples}",
        r"9 \textnormal{ (apples)}",
    ),
    ("10", "10 cm", "10cm", "10 (cm)", r"10\,\mathrm{cm}", r"10\text{cm}", "10 CM"),
    ("36", "36 (sq. inches)", "36 sq. inches", "36 sq inch", "36 (Sq. Inches)"),
    ("36", "36 square inches", r"36 \text{ square inches}", "36 square-inches"),
    ("36", "36 cm^2", r"36\text{ cm}^2", r"36 \mathrm{cm}^{2}"),
    ("60", "60 miles/hour", "60 mile/hour", "60 miles / hour", "60 (miles/hour)"),
    ("60", "60 miles per hour", "60 mile per hour", "60 Miles per Hour"),
    ("5", "5/hour", "5 / hour"),
    ("5", "5 m", "$5$ m"),
    ("20", "20 dollars", "$20 dollars", "20 dollar", "$20"),
    ("50", "50 percent", "50%", r"50\%", "50 percent."),
    ("9563", "9,563 tickets", "9563 tickets", "9{,}563 ticket"),
    ("2.5", "2.5 hours", r"\frac52 \text{ hours}", "2 1/2 hours", "5/2 hours", "2½ hours", r"2\frac{1}{2} hours"),
    ("-4", "-4 degrees", r"-4^\circ", "-4°", "−4 degrees"),
    ("30", "30 degrees Celsius", "30 Degrees celsius"),
    ("3", "3 berries", "3 berry"),
    ("3", "3 boxes", "3 box"),
    ("3", "3 glasses", "3 glass"),
    ("3", "3 in all", "3 (in all)"),
    (r"9\pi", r"9\pi square inches", r"9 \pi\text{ square inches}", r"9π (square inches)"),
    (r"3\sqrt{2}", r"3\sqrt2\text{ m}", r"3 \sqrt{2} m"),
    ("(3, 4)", "(3, 4) cm"),
    ("x = 3", "x = 3 cm", r"x = 3\text{ cm}"),
    ("300000000", r"3 \times 10^8 \text{ m/s}", "300,000,000 m/s"),
    ("0.75", "¾ cup", "3/4 cups"),
    ("36", "36 cm²", "36 cm^2", r"36\text{ cm²}"),
    ("16", "16 m", "16 meters", "16 metres", "16 (meter)", r"16\text{ m}"),
    ("60", "60 km/h", "60 kmh", "60 kph", "60 kilometers per hour", "60 kilometres an hour", "60km/h"),
    ("60", "60 mph", "60 miles per hour", "60 miles/hour"),
    ("5", "5 kg", "5kgs", "5 kilograms", "5 kilogram"),
    ("5", "5 min", "5 mins", "5 minutes", "5min"),
    ("5", "5 hrs", "5 hr", "5 hours", "5 h"),
    ("5", "5 lbs", "5 lb", "5 pounds"),
    ("5", "5 pounds", "£5"),
    ("36", "36 sq ft", "36 square feet", "36 ft²", "36 ft^2", "36 sq. foot"),
    ("36", "36 cubic meters", "36 m^3", "36 m³", "36 cu. meters"),
    ("50", "50¢", "50 cents", "50 ¢"),
    ("30", "30°C", "30 degrees Celsius", "30 C", r"30^\circ C"),
    ("3", "3 years", "3 yrs", "3 yr"),
    ("2", "2 tbsp", "2 tablespoons"),
    ("2", "2 fl. oz.", "2 fluid ounces"),
    ("60", r"60 \mathrm{~km} / \mathrm{h}", "60 km/h"),
    ("12", "12 apples", "12 apples left"),
    ("12", "12 apples", "12 apple in all"),
    ("12", "12 apples", "12 red apples"),
    ("36", "36 square meters", "36 square meters of carpet", "36 m^2"),
    ("3", "3 cookies", "3 cookie"),
    ("3", "3 buses", "3 bus"),
    ("3", "3 children", "3 child"),
    ("3", "3 calories", "3 calorie"),
    ("5", "$5/hour", "5 dollars per hour", "5 dollars an hour"),
]
LETTERS = [  # a letter that touches the number is a unit where the other side has one: alone it may be algebra
    ("5m", "5 m"),
    ("5m", "5 meters"),
    ("5s", "5 seconds"),
    ("5h", "5 hours"),
    ("5g", "5 g"),
]
AMBIGUOUS = [  # completion, reference, whether it is right: an m is what the reference says
    ("16 m", "16 minutes", True),
    ("16 m", "16 miles", True),
    ("16 m", "16 meters", True),
    ("16 meters", "16 m", True),
    ("16 minutes", "16 m", False),
    ("16 miles", "16 m", False),
    ("16 minutes", "16 meters", False),
    ("5 lbs", "£5", False),
    ("£5", "5 lb", False),
    ("5m", "5 s", False),
    ("5", "5m", False),
]

TWO_UNITS = [  # other amounts, though the numbers are the same
    ("5 cents", "5 dollars"),
    ("5 feet", "5 inches"),
    ("5 cm", "5 m"),
    ("15 cm^2", "15 cm^3"),
    ("5/hour", "5/day"),
    ("3 oranges", "9 apples"),
    ("3 oranges", "3 apples"),
    (r"5\text{ kg}", "5 (grams)"),
    (r"9\pi \text{ feet}", r"9\pi \text{ inches}"),
    ("12 months", "12 (years)"),
    ("5 cents", "$5"),
    ("75 cents", r"\$75"),
    ("9 (apples)", "$9"),
    ("€5", "$5"),
    ("5 pence", "£5"),
    ("5 feet, 6 inches", "5 feet, 6 cm"),
    ("5 hours", "5/hour"),
    ("5 oz", "5 fl oz"),
    ("60 mph", "60 km/h"),
    ("5 ft", "5 sq ft"),
    ("5 m/s", "5 m"),
    ("3 yd", "3 yr"),
    ("5 light years", "5 years"),
    ("5 apples per day", "5 apples"),
    ("5 ft lb", "5 ft"),
    ("5 pounds of flour", "5 flour"),
]

WRONG = [  # completion, reference, why
    ("#### 43", "42", "another number"),
    ("#### -42", "42", "another sign"),
    ("#### 0.333", "1/3", "rounded"),
    ("#### 0.30000000000000001", "0.3", "equal as floats only"),
    ("", "42", "nothing"),
    ("42", "42", "no marker"),
    ("She has 42 apples.", "42", "no marker"),
    ("### 42", "42", "three signs are no marker"),
    ("The answer isn't 42", "42", "no marker"),
    ("The answer is not 42", "42", "words before the value"),
    ("####", "42", "empty"),
    ("#### \n42", "42", "the marker ends with its line"),
    ("The answer is.\n42", "42", "empty"),
    ("\\boxed{}", "42", "empty"),
    ("\\boxed{42", "42", "unbalanced"),
    ("\\boxed{42\\}", "42", "an escaped brace closes nothing"),
    ("#### 42\n####", "42", "the last marker is empty"),
    ("#### 42\n\\boxed{", "42", "the last marker is unreadable"),
    ("#### 42, so the answer is clear", "42", "the last marker holds no value"),
    ("#### 42\n#### 43", "42", "the last marker counts"),
    ("\\boxed{42 \\boxed{43}}", "42", "the inner marker counts"),
    ("#### 5 or 6", "5", "two values"),
    ("#### 5, 6", "5", "two values"),
    ("#### 5-6", "5", "two values"),
    ("#### 5 6", "5", "two values"),
    ("#### $5$6", "56", "two values"),
    ("#### 5 apples and 6 pears", "5", "two values"),
    ("#### 3 + 4 = 7", "7", "several values"),
    ("#### 2^5", "32", "an expression"),
    ("#### 2**5", "2", "an expression"),
    ("#### 5x", "5", "algebra"),
    ("\\boxed{2\\pi}", "2", "algebra"),
    ("\\boxed{\\sqrt{4}}", "2", "an expression"),
    ("#### 1 1/2 1/3", "1.5", "two values"),
    ("#### 1 1", "11", "two values"),
    ("#### 1 2/2", "2", "no mixed number"),
    ("#### [5]", "5", "a list of one"),
    ("\\boxed{\\frac125}", "12/5", "the LaTeX reads 1/2 5"),
    ("#### 1/2/3", "1/6", "an expression"),
    ("#### 1,23", "123", "malformed separators"),
    ("#### 12,34,5", "12345", "malformed separators"),
    ("#### 1,2345", "12345", "malformed separators"),
    ("#### 0,500", "500", "malformed separators"),
    ("#### 1.234.567", "1234567", "two points"),
    ("#### 1_000", "1000", "Python's notation"),
    ("#### 0x2A", "42", "Python's notation"),
    ("#### 42...", "42", "an unfinished number"),
    ("#### 1/0", "0", "not a number"),
    ("#### 1 1/0", "1", "not a number"),
    ("#### \N{ARABIC-INDIC DIGIT FOUR}\N{ARABIC-INDIC DIGIT TWO}", "42", "digits are ASCII"),
    ("#### 4\N{SUPERSCRIPT TWO}", "4", "digits are ASCII"),
    ("#### \N{RIGHT-TO-LEFT OVERRIDE}24", "24", "shown as 42"),
    ("#### 42\0", "42", "a null byte is no unit"),
    ("#### 42" + " " * 2000 + "or 43", "42", "two values, the second out of sight"),
    ("The answer is 42" + " " * 2000 + "or 43", "42", "two values, the second out of sight"),
    ("#### Total: 42", "42", "a colon names nothing: it might be 'wrong: 42'"),
    ("#### wrong: 42", "42", "words before the number"),
    ("#### anything except: 42", "42", "words before the number"),
    ("#### minus: 42", "42", "words before the number"),
    ("#### is not 42", "42", "words before the number"),
    ("#### is is 42", "42", "words before the number"),
    ("#### 42, which is even", "42", "a clause is no unit"),
    ("#### --5", "5", "two signs"),
    ("#### - -5", "5", "two signs"),
    ("#### 5xy", "5", "algebra"),
    ("#### 5 xy", "5", "algebra"),
    ("#### 5 xyz", "5", "algebra"),
    ("#### 5ab-ba", "5", "algebra"),
    ("#### 5 (x)", "5", "algebra"),
    ("#### 5m", "5", "algebra: one letter is a unit behind a space alone"),
    ("#### 5 k", "5", "thousands"),
    ("#### 5K", "5", "thousands"),
    ("#### 5 and one half", "5", "a word for a number"),
    ("#### 5 or six", "5", "a word for a number"),
    ("#### 5 divided by ten", "5", "a word for a number"),
    ("#### 5 feet six inches", "5", "a word for a number"),
    ("#### 5 hours thirty minutes", "5", "a word for a number"),
    ("#### 5 twenty-fifths", "5", "a fraction"),
    ("#### 5 feet 6 inches", "5", "two values"),
    ("The answer is 5 ft. 6 in.", "5", "no sentence ends before a number"),
    ("#### 5 a.m.", "5", "a time"),
    ("#### 0.3 repeating", "0.3", "a third"),
    ("#### 5 apples not oranges", "5", "a negation"),
    ("#### 5 degrees below zero", "5", "a comparison"),
    ("#### 8", "9 apples", "another number"),
    ("#### 95", "9,563 tickets", "another number"),
    ("#### 5", "5 dozen", "the reference is sixty"),
    ("#### 12", "12 hours 30 minutes", "the reference says more"),
    ("#### 10", "10:30", "the reference says more"),
    ("\\boxed{0.333 \\approx \\frac{1}{3}}", "1/3", "the value is on the left"),
    ("\\boxed{x \\approx 0.333}", "0.333", "what is on the left is no value"),
    ("\\boxed{\\frac12 = 0.6}", "0.6", "two values"),
    ("-\\boxed{5}", "5", "the sign stands outside"),
    ("#### 30 and 2", "2 hours and 30 minutes", "an order of amounts"),
    ("#### 6, 5", "5 feet, 6 inches", "an order of amounts"),
    ("#### 5cm-mm", "5", "algebra"),
    ("\\boxed{2^{10^3}}", "1000", "an exponent"),
    ("\\boxed{10^{1}2}", "10^{12}", "the LaTeX reads 10 · 2"),
]

LATEX = {  # reference: (what equals it, what does not)
    # Rationals
    r"\frac{3}{4}": (
        [
            r"\dfrac{3}{4}",
            r"\tfrac34",
            r"\cfrac{3}{4}",
            r"\frac 3 4",
            "3/4",
            "0.75",
            ".75",
            r"\frac{6}{8}",
            r"$\frac{3}{4}$",
        ],
        [r"\frac{4}{3}", "3,4", r"\frac{3}{4}, \frac{3}{4}", "3/4/1", r"\frac{3}{4}\pi"],
    ),
    r"11 \frac{2}{3}": (
        ["35/3", r"\frac{35}{3}", "11 2/3", r"11\frac23"],
        ["11", "2/3", r"\frac{112}{3}", r"11, \frac{2}{3}"],
    ),
    # Roots, π and other formulas: as they are written
    r"\frac{\sqrt{3}}{2}": (
        [r"\frac{\sqrt3}{2}", r"\dfrac{\sqrt{3}}2", r"x = \frac{\sqrt{3}}{2}"],
        [r"\frac{3}{2}", r"\sqrt{\frac{3}{2}}", r"\frac{2}{\sqrt{3}}", r"-\frac{\sqrt{3}}{2}", r"\frac{\sqrt{3}}{22}"],
    ),
    r"-\frac{\pi}{4}": (
        [r"-\dfrac{\pi}4", r"-\frac{π}{4}"],
        [r"\frac{\pi}{4}", r"-\frac{4}{\pi}"],
    ),
    r"14\pi": (
        [r"14 \pi", r"14\cdot\pi", r"14 \times \pi", "14π", r"14\,\pi", r"14\pi \text{ cm}^2"],
        ["14", r"\pi", r"1 4\pi"],
    ),
    r"\sqrt{12}": ([r"\sqrt {12}", "√12"], [r"\sqrt12", r"\sqrt{1}2", "12", r"\sqrt{1} 2"]),
    r"3 + 2i": (["3+2i", "+3 + 2i"], ["3-2i", "2+3i", "-3+2i", "3 + 2"]),
    "2 - x": (["2-x", "2 − x"], ["x - 2", "2 + x", "2x"]),
    "x^{10}": (["x^10", "{x}^{10}"], ["x^1 0", "x10", "x^{1}0", "10^x"]),
    "2(x+1)": ([r"2\left(x+1\right)", "2 (x + 1)"], ["2x+2", "2(x+2)", "2"]),
    "5mn": (["$5mn$"], ["5", "5m", "mn"]),
    "11010_2": (["11010_{2}"], ["11010", "26", "11010_3", "11010_{22}"]),
    "y = 2x + 1": (["2x+1", "y=2x+1"], ["2x", "y = 1", "x = 2y + 1"]),
    r"\binom{11}{2}": ([r"\binom {11} 2"], [r"\binom{1}{12}", r"\binom{2}{11}", "55"]),
    r"\angle ABC": ([r"\angle  ABC."], [r"\angle DEF", r"\angle", "ABC"]),
    r"0.\overline{12}": ([r"0.\overline {12}"], ["0.12", r"0.\overline{1}2"]),
    r"\sqrt[3]{4}": ([r"\sqrt[3]4"], [r"\sqrt{4}", r"\sqrt[4]{3}", "34"]),
    "3:1": (["3 : 1"], ["1:3", "3", "31"]),
    # Tuples, intervals, unions, sets, lists, matrices: part by part
    r"(1, \frac{1}{2})": (
        ["(1,0.5)", r"\left( 1, \dfrac12 \right)", r"$(1, 1/2)$", r"\bigl(1, \tfrac{1}{2}\bigr)"],
        [r"(\frac{1}{2}, 1)", r"[1, \frac{1}{2}]", "(1)", "1", "(1, 0.5, 2)", "(1, 0.5", "1, 0.5", r"(1 \frac{1}{2})"],
    ),
    r"[0, \infty)": (
        ["[0,∞)", r"\left[0,\infty\right)", r"[0,+\infty)", r"x \in [0, \infty)"],
        [r"(0, \infty)", r"[0, \infty]"],
    ),
    r"(-\infty, 2)\cup(3, \infty)": (
        [r"(3,\infty) \cup (-\infty,2)", "(-∞, 2) ∪ (3, ∞)"],
        [r"(-\infty, 2]\cup(3, \infty)", r"(-\infty, 2)", r"(-\infty, 2),(3, \infty)"],
    ),
    "1, 2, 3": (
        [
            "3,2,1",
            r"\{1,2,3\}",
            "1, 2, and 3",
            r"1,2 \text{ and } 3",
            r"\left\{ 1, 2, 3 \right\}",
            "1; 2; 3",
            "{1,2,3}",
        ],
        ["1, 2", "(1, 2, 3)", "123", r"\{1,\{2,3\}\}", r"\{\{1,2,3\}\}"],
    ),
    r"2, -2": ([r"\pm 2", r"x = 2 \text{ or } x = -2", "-2 or 2"], ["2", "-2", "2, 2", r"\pm 1"]),
    r"1 + \sqrt{2}, 1 - \sqrt{2}": ([r"1 \pm \sqrt{2}", r"1-\sqrt2, 1+\sqrt2"], [r"1 + \sqrt{2}", r"1 \pm \sqrt{3}"]),
    r"\begin{pmatrix} 1 & 2 \\ -3 & \frac{1}{2} \end{pmatrix}": (
        [
            r"\begin{bmatrix}1&2\\-3&0.5\end{bmatrix}",
            r"\left(\begin{array}{cc}1&2\\-3&0.5\end{array}\right)",
            r"\left[ \begin{matrix} 1 & 2 \\ -3 & 0.5 \\ \end{matrix} \right]",
            r"\begin{array}{c|c}1&2\\-3&0.5\end{array}",
        ],
        [
            r"\begin{pmatrix} 1 & -3 \\ 2 & 0.5 \end{pmatrix}",
            r"\begin{pmatrix} 1 & 2 & -3 & 0.5 \end{pmatrix}",
            r"\begin{vmatrix} 1 & 2 \\ -3 & \frac{1}{2} \end{vmatrix}",
            "1,2,-3,0.5",
        ],
    ),
    # Relations, in any spelling of their signs
    r"x \le 3": (["x <= 3", "x≤3", r"x \leq 3", r"x\leqslant 3"], ["x < 3", r"x \ge 3", "3", r"y \le 3"]),
    "x < 3": ([r"x \lt 3", "x<3", r"x\lt3"], [r"x \gt 3", "x <= 3", "3 < x"]),
    r"x \ne 3": (["x != 3", r"x \neq 3", r"x \not= 3", "x≠3"], ["x = 3", "3"]),
    r"-1 < x \le 3": ([r"-1\lt x\leq 3", "-1 < x <= 3"], [r"-1 \le x < 3", "x <= 3"]),
    r"x<-1 \text{ or } x>3": (["x > 3 or x < -1", r"x<-1\text{ or }x>3"], [r"x<-1 \text{ and } x>3", "x<-1"]),
    # Times and ratios
    r"4:30 \text{ p.m.}": (
        ["4:30 PM", "4:30 p.m.", "4:30pm", r"4:30\text{ P.M.}"],
        ["4:30", "4:30 AM", "3:30 PM", "4"],
    ),
    # Names of functions and sets
    r"\ln 2": ([r"\operatorname{ln} 2", r"\mathrm{ln}\,2", "ln 2"], ["2", r"\log 2", r"\ln 3"]),
    r"\varnothing": ([r"\emptyset", "∅"], ["0", r"\{0\}"]),
    # Words
    r"\text{(B)}": (
        ["B", "(B)", r"\text{B}", r"\textbf{(B)}"],
        ["A", "b", "A, B", "B or C", "(a)"],
    ),
    r"\text{Sunday}": (["Sunday", "sunday", r"\mbox{Sunday}"], ["Monday", "Sunday, Monday", "Sun"]),
    "No": (["no", "NO", "no."], ["Yes", "not", "N"]),
    "aBC": (["a B C"], ["ABc", "ABC", "abc"]),
}

SAME = [  # completion, reference: dresses that a reader of LaTeX has to see through
    (r"\pm\frac{1}{2}", r"\frac12, -\frac12"),
    (r"\frac{1\pm\sqrt5}{2}", r"\frac{1+\sqrt5}{2},\frac{1-\sqrt5}{2}"),
    (r"1+\sqrt5, 1-\sqrt5, -2", r"1\pm\sqrt{5}, -2"),
    (r"\pm1, \pm2", "1,-1,2,-2"),
    (r"\begin{pmatrix}1/2\\2\end{pmatrix}", r"\begin{pmatrix}\frac{1}{2}\\2\end{pmatrix}"),
    (r"\{\frac{-1}{2},1\}", r"\{-\frac{1}{2},1\}"),
    (r"\frac{ab}{2}", r"\frac{a b}{2}"),
    ("-12;-11", "-12,-11"),
    ("(1; 2)", "(1, 2)"),
    (r"\frac{\sqrt3}{3} \approx 0.577", r"\frac{\sqrt{3}}{3}"),
    (r"5 \cdot x", "5x"),
    (r"x\le\frac12", r"x \leq 1/2"),
    ("(10000, 5)", "(10{,}000, 5)"),
    (r"[1234, 5]", r"[1\,234, 5]"),
    (r"\theta = 30^\circ", "30"),
    ("x_1 = 5", "5"),
    ("f(2) = 5", "5"),
    (r"AB = 5\sqrt2", r"5\sqrt{2}"),
    (r"\text{Area} = 5\pi", r"5\pi"),
    ("(x,y)=(1,2)", "(1,2)"),
    ("x = 1, -1", "-1, 1"),
    (r"3\sqrt{2}\text{ m}", r"3\sqrt2"),
    (r"9\pi square inches", r"9\pi"),
    (r"5\text{ N}", "5"),
    (r"30^\circ\text{C}", "30"),
    (r"1.5\times{10}^{3}", "1500"),
    (r"\lbrace 1,2\rbrace", "1,2"),
    ("x≤5", r"x\le 5"),
    ("±2", "2,-2"),
    (r"3+2\mathrm{i}", "3+2i"),
    (r"(100,\,200)", "(100, 200)"),
    (r"\{1,\,100\}", "1, 100"),
    ("2^-12", "2^{-12}"),
    (r"3 \times 10^-5", "0.00003"),
    (r"x\in(-\infty,1)\cup(2,\infty)", r"(-\infty,1)\cup(2,\infty)"),
    (r"(1.2\times10^5, 3)", "(120000, 3)"),
    ("Semi circle", "Semi circle"),
    ("6", r"6\textrm{ cm}"),
    (r"5\pi\textrm{ cm}", r"5\pi"),
    (r"\begin{pmatrix} 1 \\ 2 \\ \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\dbinom{5}{2}", r"\binom52"),
    ("1 1/2, 3", "1.5,3"),
    ("(1 1/2, 3)", "(1.5,3)"),
]

OTHER = [  # completion, reference: other values that differ by what a careless reader drops
    ("1", r"\frac{1}{xy}"),
    ("3", "3(m-n)"),
    ("12", r"12\,xy"),
    ("1/2", r"\frac12 bh"),
    (r"\frac{1}{xy}", r"\frac{1}{ab}"),
    (r"\frac{-1+\sqrt{5}}{2}", r"-\frac{1+\sqrt{5}}{2}"),
    (r"\frac{1}{-x+1}", r"-\frac{1}{x+1}"),
    (r"\frac{1}{2}3", r"\frac{1}{23}"),
    (r"\frac{3}{4}e2", "3/400"),
    (r"\frac{a}{b}c", r"\frac{a}{bc}"),
    (r"\frac{1}{\pi}x", r"\frac{1}{\pi x}"),
    (r"\sqrt[3]{x+1}", r"\sqrt[3]{x}+1"),
    (r"\sqrt[3]{x^2}", r"\sqrt[3]{x}^2"),
    (r"\binom{5}{x+1}", r"\binom{5}{x}+1"),
    (r"2 \cdot \frac{1}{2}", "2.5"),
    (r"x \cdot -1", "x-1"),
    (r"2{\frac12}", "21/2"),
    ("5} or 6", "5"),
    ("(1,2)} (3,4)", "(1,2)"),
    ("y=2", "x=2"),
    ("x=1,y=2", "x=2,y=1"),
    ("x", "y=x"),
    ("B = A", "A"),
    ("not: 5", "5"),
    (r"9 \text{ PM}", r"9 \text{ AM}"),
    (r"\frac{2\pm\sqrt3}{2}", r"2\pm\sqrt{3}/2"),
    ("(10{,}000, 5)", "(10, 0, 5)"),
    ("|a+b|c", "b|c+|a"),
    ("AB", "ab"),
    ("5 minus two", "5"),
    ("5 squared", "5"),
    ("5pi", "5"),
    (r"5\text{ or 6}", "5"),
    (r"5\text{, 6, 7, 8}", "5"),
    (r"5\text{6}", "5"),
    (r"2\pi\text{ or 3\pi}", r"2\pi"),
    (r"(1,2)\text{ or (3,4)}", "(1,2)"),
    (r"101_2\text{ or 110_2}", "101_2"),
    (r"(B)\text{ or (C)}", "B"),
    (r"5\text{ minus two}", "5"),
    (r"3+2\mathrm{i}", "3+2"),
    (r"3\mathrm{e}", "3"),
    (r"2\pi\mathrm{i}", r"2\pi"),
    ("3", r"3\mathrm{e}"),
    (r"9\text{ A}", r"9\text{ B}"),
    (r"0.\overline{03}", r"0.\overline{3}"),
    (r"0.1\overline{6}", r"0.10\overline{6}"),
    ("12:05", "12:5"),
    (r"x \not= 5", "5"),
    (r"x \not= \pi", r"\pi"),
    (r"x \not\in\{1,2\}", "1,2"),
    ("not x = 5", "5"),
    ("not = 5", "5"),
    ("anything but x = 5", "5"),
    (r"not x = \pi", r"\pi"),
    (r"\neg x = 5", "5"),
    ("Not: 5", "5"),
    ("5", r"x \not= 5"),
    ("|x-3| = 2", "2"),
    ("|x| = 5", "5"),
    ("x(x+1) = 0", "0"),
    (r"x \cdot 2 = 4", "4"),
    (r"x\sqrt{2} = 4", "4"),
    (r"\log x = 2", "2"),
    ("x! = 6", "6"),
    ("12", "xy = 12"),
    ("0", "x(x+1) = 0"),
    (r"\pi over four", r"\pi"),
    (r"\sqrt{2} over two", r"\sqrt{2}"),
    ("x^2 plus one", "x^2"),
    ("(0,1) except zero", "(0,1)"),
    ("(B) incorrect", "B"),
    ("5 Minus two", "5"),
    ("5exp(x)", "5"),
    ("5cot(x)", "5"),
    (r"(1,\,234)", "1234"),
    ("2(3)/4", "2.75"),
    ("(3)(4)/5", "19/5"),
    (r"(2)\frac{1}{2}", "5/2"),
    (r"2\frac{5}{2}", "9/2"),
    (r"\langle 1,2,3,4\rangle", r"\langle 1,3,2,4\rangle"),
    (r"\sqrt2+\sqrt3, -\sqrt2-\sqrt3", r"\pm\sqrt2\pm\sqrt3"),
    (r"\pm\sqrt2\pm\sqrt3", r"\sqrt2\sqrt3"),
    (r"(\sqrt2 \approx 1.41, 3)", r"\sqrt2"),
    (r"5 \pm 1", "5"),
    ("10^-12", "10^{-1}2"),
    (r"3\times10^{1}2", "3e12"),
    ("ABC", "abc"),
    ("(1/2)!", "1/2!"),
]

MEGABYTE = 1_000_000
HOSTILE = {
    "digits": "9" * 10 * MEGABYTE,
    "braces": "{" * MEGABYTE,
    "boxes": "\\boxed{" * (MEGABYTE // 7),
    "balanced boxes": "\\boxed{" * 100_000 + "42" + "}" * 100_000,
    "box of braces": "\\boxed{" + "{}" * (MEGABYTE // 2),
    "backslashes": "\\boxed{" + "\\" * MEGABYTE,
    "hashes": "#" * MEGABYTE,
    "spaced hashes": "#### " * (MEGABYTE // 5),
    "answers": "answer is " * (MEGABYTE // 10),
    "full stops": "." * MEGABYTE,
    "white space": " " * MEGABYTE + "x",
    "line ends": "\r\n" * MEGABYTE + "#",
    "letters then a digit": "a" * MEGABYTE + "5",
    "a digit then letters": "5" + "a" * MEGABYTE + "5",
    **{f"a unit of{word}s": "5 abc" + word * 300 + "!" for word in (" an", " a", " a b", "/a", " / a", "-abc", " per")},
    **{f"numbers of{part!r}": "1" + part * 240 + "x" for part in (" 234", ",23", ",234", "'234", "= 1,234")},
    "commas": "1" + ",000" * (MEGABYTE // 4) + "x",
    "words": "iii " * (MEGABYTE // 4) + "!",
    "subscripts": "x" + "_x" * 490 + "=5",
    "slashes": "1/" * MEGABYTE,
    "signs": "+-" * MEGABYTE,
    "fractions": "\\frac{1}{2}" * (MEGABYTE // 11),
    "texts": "\\text{" * (MEGABYTE // 6),
    "tower": "9^{9^{9^9}}",
    "exponent": "1e999999999",
    "negative exponent": "1e-999999999",
    "exponent of many digits": "1e" + "9" * MEGABYTE,
    "fraction of exponents": "1e999/1e-99999",
    "null bytes": "\0" * MEGABYTE,
    "right-to-left marks": "\N{RIGHT-TO-LEFT MARK}" * MEGABYTE,
    "lone surrogates": "\ud800" * MEGABYTE,
    **{
        f"nested {opening}": opening * 300
        for opening in ("^(", "√(", "(1,", r"\frac", r"\sqrt", "x^", r"\pm", "-", "({")
    },
    "ten megabytes of a box": "\\boxed{" + "\\{" * 5 * MEGABYTE,
    "code": "__import__('os').system('true')",
}


@pytest.mark.parametrize("completion, answer", RIGHT)
def test_a_right_form_earns_the_reward(completion, answer):
    """Real models write one value in many ways; each that is refused is a right answer punished."""
    assert is_correct(completion, answer) is True


@pytest.mark.parametrize("completion, answer, why", WRONG)
def test_a_wrong_form_earns_nothing(completion, answer, why):
    """Whatever is paid for without one right value in the last marker, a policy learns to write."""
    assert is_correct(completion, answer) is False, why


@pytest.mark.parametrize("row", UNITS, ids=lambda row: row[1])
def test_a_unit_is_dropped_where_the_other_side_has_none(row):
    """On the reference as on the completion: `9 (apples)` is a data set's way to write 9. Both may have the same."""
    for answer in row:
        for text in row:
            assert is_correct(f"#### {text}", answer) and is_correct(f"\\boxed{{{text}}}", answer), (text, answer)
        assert not is_correct("#### 8", answer) and not is_correct("#### 8 apples", answer)


@pytest.mark.parametrize("one, other", TWO_UNITS)
def test_two_units_have_to_be_one(one, other):
    """Five cents are not five dollars."""
    assert not is_correct(f"#### {one}", other) and not is_correct(f"#### {other}", one)
    assert is_correct(f"#### {one}", one) and is_correct(f"#### {other}", other)


@pytest.mark.parametrize("one, other", LETTERS)
def test_a_letter_that_touches_the_number_is_a_unit_where_the_other_side_has_one(one, other):
    """Either may be the reference; without a unit on the other side it stays algebra."""
    assert is_correct(f"#### {one}", other) and is_correct(f"#### {other}", one)
    assert not is_correct(f"#### {one}", "5") and not is_correct("#### 5", one)


@pytest.mark.parametrize("completion, answer, right", AMBIGUOUS)
def test_a_unit_that_may_be_several_is_what_the_reference_says(completion, answer, right):
    """An m is a metre, a minute or a mile; but a metre is never a minute."""
    assert is_correct(f"#### {completion}", answer) is right


COMPUTED = {  # a reference with all digits of a double: what equals it, what does not
    "0.16666666666666666": (
        ["1/6", r"\frac16", "0.17", "0.167", "0.1666667", "0.16666666666666666"],
        ["0.2", "0.16", "0.166", "1/7", ".1"],
    ),
    "33.333333333333336": (["33.33", "100/3", "33 1/3", "33.333 dollars"], ["33.3", "33", "33.34", "-33.33"]),
    "0.9975212478233336": (["0.998", "1.00", "0.99752"], ["1", "100%", "1.0", "0.99"]),
    "0.5026455026455027": (["0.50", "0.503"], ["1/2", ".5", "0.5", "50%"]),
    "16.666666666666664": (["50/3", r"16\frac23", "16.67", "16.666666666666668"], ["17", "16.66"]),
    "0.33333333": (["1/3", "0.33"], ["0.3", "1/4", "0.34"]),
    "3.14159265358979": (["3.14", "3.1416"], ["3.1400", "22/7", "3.1"]),
    "6.62607015e-34": (["6.626e-34", r"6.63 \times 10^{-34}"], ["6.7e-34", "6.626e-35", "0"]),
    "0.30000000000000004": (["0.3", "0.30", "3/10"], ["0.31", "0.2999", "1/3"]),
    "2.9999999999999996": (["3", "3.00"], ["2.99", "3.01"]),
    "0.0034482758620689655": (["0.0034", "1/290", "0.00345"], ["0.00", "0", "0.003", "0.0035"]),
    "0.006896551724137931": (["0.0069", "2/290"], ["0.007"]),
    "1.6666666666666667e-05": (["0.000017", "1/60000"], ["0", "0.00002"]),
    "16.666666666666668 km": (["16.67", "16.67 kilometers", "50/3 km"], ["16.67 m", "16.7"]),
    "-0.8333333333333334": (["-5/6", "-0.83"], ["5/6", "0.83", "-0.84"]),
    ".0000672": ([".0000672"], ["0.000067"]),  # exact: few digits
    "0.3333": (["0.3333"], ["1/3", "0.33"]),
    "1/3": (["1/3"], ["0.33", "0.3333333333333333"]),
}


@pytest.mark.parametrize("answer", COMPUTED)
def test_a_reference_that_a_program_computed_can_be_reached(answer):
    """Nobody writes 17 digits. Its fraction counts, and its rounding to two decimals that leave two digits, no less."""
    right, wrong = COMPUTED[answer]
    for text in right:
        assert is_correct(f"#### {text}", answer), text
    for text in ["", "1e999", "1e-999", *wrong]:
        assert not is_correct(f"#### {text}", answer), text


@pytest.mark.parametrize("written", ["1,10,100", "10,100", "1,234,567"])
def test_groups_of_digits_are_a_list_where_the_other_side_has_one(written):
    """LaTeX writes lists without spaces; the number that they would be is still one."""
    spaced, joined = written.replace(",", ", "), written.replace(",", "")
    assert is_correct(f"#### {written}", spaced) and is_correct(f"#### {spaced}", written)
    assert is_correct(f"#### {written}", joined) and not is_correct(f"#### {spaced}", joined)


@pytest.mark.parametrize(
    "text, number",
    [
        ("1 234", "1234"),
        ("1'234", "1234"),
        ("1’234", "1234"),
        ("1\u00a0234", "1234"),
        ("1\u202f234.5", "1234.5"),
        ("12 345 678", "12345678"),
        ("1,23,456", "123456"),
        ("12,34,56,789", "123456789"),
        ("１，２３４．５", "1234.5"),
        ("1\u200b234", "1234"),
        ("\ufeff42", "42"),
        ("$1 234", "1234"),
        ("x = 1,234", "1234"),
        ("x=$1,234,567", "1234567"),
        ("-1 234 km", "-1234"),
    ],
)
def test_digits_may_be_grouped_as_in_other_countries(text, number):
    """On a reference, where nothing else would be right, and on a completion."""
    assert is_correct(f"#### {number}", text) and is_correct(f"#### {text}", number)
    assert not is_correct("#### 1", text) and not is_correct("#### 234", text)


@pytest.mark.parametrize("text", ["1 23", "1 2345", "1 234 5", "1 234/5", "1 234, 5", "0 234", "1,2,345", "1,23,45"])
def test_two_numbers_do_not_grow_together(text):
    """Only whole groups of three, or India's two and three, make one number."""
    digits = "".join(letter for letter in text if letter.isdigit())
    assert not is_correct(f"#### {text}", digits)


@pytest.mark.parametrize(
    "words",
    ["six", "dozen", "hundred", "thousand", "million", "dozens", "pairs", "grand", "half", "halves", "thirds", "tenths"]
    + ["hundredths", "twentieths", "fourteenths", "quarter", "squared", "factorial", "times ten", "over two", "to one"]
    + ["plus one", "mod three", "root two", "more", "less", "or more", "at least", "below zero", "above", "or", "not"]
    + ["and a half", "or six", "but no more", "if any", "versus two", "wrong", "except zero", "am", "p.m.", "AM", "pi"]
    + [
        "doz",
        "quadrillion",
        "mil",
        "tenfold",
        "doubled",
        "halved",
        "hundreths",
        "roughly",
        "maybe",
        "at most",
        "maximum",
    ]
    + ["apples and pears", "dollars and fifty cents", "men (or six)", "hours thirty minutes"],
)
def test_words_that_change_a_number_are_no_unit_of_it(words):
    """Each is another value, or leaves open which; on a reference, the number alone is not all that is asked for."""
    for text in (f"5 {words}", f"5 ({words})", f"5\\text{{ {words}}}", f"5 {words.upper()}"):
        assert not is_correct(f"#### {text}", "5"), text
        assert not is_correct("#### 5", text), text
        assert is_correct(f"#### {text}", text), text


def test_the_words_of_a_unit_are_not_taken_for_those():
    """Whole words: months hold no nth, seconds no second, and a bathroom is no bath or 'm'."""
    for unit in "months seconds widths teeth tenants nothing orders minutes notes cloths impairs".split():
        assert is_correct(f"#### 5 {unit}", "5"), unit


def test_a_letter_in_brackets_is_a_choice_where_the_reference_is_one():
    """(e) is the fifth choice, e is a number; (x) names nothing."""
    for text in ("(e)", "(E)", r"\text{(e)}", r"\mathrm{(e)}", r"\left(e\right)"):
        assert is_correct(f"\\boxed{{{text}}}", "E") and is_correct(f"\\boxed{{{text}}}", r"\text{(E)}")
        assert not is_correct(f"\\boxed{{{text}}}", "D")
    for text, answer in [("e", "E"), ("E", "e"), ("(d), (e)", "E"), ("(f)", "F"), ("(x)", "X"), ("(e)", "e x")]:
        assert not is_correct(f"\\boxed{{{text}}}", answer)


@pytest.mark.parametrize("name", ["reward", "real"])
@pytest.mark.skipif(not CASES.exists(), reason=f"needs the cases at {CASES}")
def test_every_verdict_on_the_cases_is_as_marked(name):
    """Pairs that stand for what people write, and real completions of published models."""
    rows = [json.loads(line) for line in (CASES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row for row in rows if is_correct(row["completion"], row["answer"]) is not row["right"]] == []


@pytest.mark.parametrize("answer", LATEX)
@pytest.mark.parametrize("marker", ["#### {}", "so \\boxed{{{}}}.", "The answer is ${}$."])
def test_a_reference_in_latex_equals_itself_and_other_dresses_of_it(answer, marker):
    """Half of MATH's answers are no plain numbers; the same value is written in many ways."""
    equal, _ = LATEX[answer]
    for text in (answer, *equal):
        if marker.startswith("The") and any(character in text for character in "$√") or ". " in text:
            continue
        assert is_correct(marker.format(text), answer), text
        assert is_correct(marker.format(answer), text), text


@pytest.mark.parametrize("answer", LATEX)
def test_a_reference_in_latex_is_nothing_else(answer):
    """What is near it in spelling is another answer; and no algebra is done."""
    for text in LATEX[answer][1]:
        assert not is_correct(f"\\boxed{{{text}}}", answer), text
        assert not is_correct(f"#### {text}", answer), text


@pytest.mark.parametrize("text, answer", SAME)
def test_what_is_only_dress_is_seen_through(text, answer):
    """Each of these, refused, would be a right answer punished."""
    for marker in ("#### {}", "\\boxed{{{}}}"):
        assert is_correct(marker.format(text), answer)


@pytest.mark.parametrize("text, answer", OTHER)
def test_what_is_no_dress_is_not_dropped(text, answer):
    """Each of these, believed, would be another answer paid."""
    for marker in ("#### {}", "\\boxed{{{}}}"):
        if marker[0] == "#" or text.count("{") == text.count("}"):  # else the box ends before
            assert not is_correct(marker.format(text), answer)


@pytest.mark.parametrize("answer", ["7", r"\frac{1}{2}", r"\pi", "(1, 2)", r"\text{(B)}", "x + 1", "1, 2"])
@pytest.mark.parametrize(
    "game",
    [
        "#### {answer} or 8",
        "#### {answer}, {answer}",
        "#### 8 {answer}",
        "#### either {answer} or not {answer}",
        "#### What is {answer}?",
        "#### {answer} = 8",
        "#### the value of 3 + {answer}",
        "\\boxed{{}} {answer}",
        "{answer} \\boxed{{}}",
        "\\boxed{{8}} \\boxed{{{answer}}} \\boxed{{8}}",
        "#### {answer}\n#### 8",
        "The answer is not {answer}.",
        "\\boxed{{\\begin{{pmatrix}} {answer} \\\\ 8 \\end{{pmatrix}}}}",
        "\\boxed{{{answer}",
    ],
)
def test_a_hedge_or_an_echo_earns_nothing(game, answer):
    """What would be paid for without knowing the answer, a policy learns to write."""
    assert not is_correct(game.format(answer=answer), answer)


@pytest.mark.parametrize("separator", [" ", ", ", ",", "/", "-", " or ", "\t", "$", "**", "\\,", "{}", "\0"])
@pytest.mark.parametrize("marker", ["#### {}", "The answer is {}", "\\boxed{{{}}}"])
def test_every_number_from_0_to_100_in_one_marker_earns_nothing(marker, separator):
    """The plainest game: a list of all answers holds the right one."""
    completion = marker.format(separator.join(map(str, range(101))))
    assert not any(is_correct(completion, str(n)) for n in (0, 1, 2, 10, 42, 99, 100))


@pytest.mark.parametrize("marker", ["#### {}", "The answer is {}", "\\boxed{{{}}}"])
@pytest.mark.parametrize("separator", [" ", "\n", ". "])
def test_a_marker_for_every_number_pays_for_the_last_alone(marker, separator):
    """The same game over many markers: only the last is looked at."""
    completion = separator.join(marker.format(n) for n in range(101))
    assert [n for n in range(101) if is_correct(completion, str(n))] == [100]


@pytest.mark.parametrize("form", ["#### {}", "The answer is {}.", "\\boxed{{{}}}", "#### {}.00", "#### ${} in all"])
def test_a_number_equals_itself_alone(form):
    """Equality is that of the numbers, whatever their dress."""
    numbers = [-1000, -7, -1, 0, 1, 7, 10, 70, 100, 1000, 10_000, 1_234_567]
    for n in numbers:
        for dressed in (form.format(n), form.format(f"{n:,}")):
            assert [m for m in numbers if is_correct(dressed, str(m))] == [n], dressed


@pytest.mark.parametrize(
    "completion, text",
    [
        ("so 42", None),
        ("\\boxed{1", None),
        ("#### 42 apples \nbye", "42 apples"),
        ("####", ""),
        ("The answer is 3.5 m. Yes.", "3.5 m"),
        ("#### 3.5 m. Yes.", "3.5 m. Yes."),
        ("\\boxed{\\{1, {2}\\}} and so on", "\\{1, {2}\\}"),
    ],
)
def test_a_marker_ends_with_its_line_sentence_or_brace(completion, text):
    """What follows a marker's end is running text again."""
    assert extract_answer(completion) == text


@pytest.mark.parametrize(
    "text, value",
    [
        ("0.1", Fraction(1, 10)),
        ("-3/4", Fraction(-3, 4)),
        ("1e-2", Fraction(1, 100)),
        ("12345678901234567890.1", Fraction(123456789012345678901, 10)),
        ("", None),
        ("5 6", None),
        ("1/0", None),
        ("1/0.0", None),
        (f"1e{MAX_EXPONENT}", Fraction(10) ** MAX_EXPONENT),
        (f"1e{MAX_EXPONENT + 1}", None),
        (f"1e-{MAX_EXPONENT + 1}", None),
        ("9" * MAX_CHARACTERS, Fraction(10) ** MAX_CHARACTERS - 1),
        ("9" * (MAX_CHARACTERS + 1), None),
    ],
)
def test_a_number_is_read_exactly_or_not_at_all(text, value):
    """Floats would call 0.1 + 2e-17 a right 0.1; and numbers without a limit would cost time and memory without one."""
    found, _ = canonical(text)
    assert found == value if value is not None else not isinstance(found, Fraction)


@pytest.mark.parametrize(
    "marker",
    [
        "{}",
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in ("#### {}", "The answer is {}", "\\boxed{{{}}}", "{} #### 42")
        ),
    ],
)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_string_costs_under_a_second(name, marker):
    """One completion must not stall or end a training run; the limit is a second for texts of up to 10 MB."""
    completion = marker.format(HOSTILE[name])
    start = time.process_time()
    is_correct(completion, "42")
    is_correct(completion, "x + 1")
    is_correct("#### 42", HOSTILE[name])
    seconds = time.process_time() - start
    assert seconds < 1, f"{name}: {seconds:.2f} s"


def test_no_two_strings_raise():
    """A policy early in training writes anything. Seeded, so that a failure can be repeated."""
    pieces = ["####", "answer is", "\\boxed{", "\\frac", "\\text{", "{", "}", "\\", "$", "**", "%", "/", ",", "."]
    pieces += ["-", "\N{MINUS SIGN}", "=", "e", "E+", "0", "1", "42", "000", "9" * 50, "x", "kg", " ", "\n", "\r"]
    pieces += ["\0", "²", "٤", "\u200f", "\u2028", "\ud800", "\U0001f34e"]
    rng = random.Random(0)
    for _ in range(3_000):  # a hundred thousand in the slow tests
        completion, answer = ("".join(rng.choices(pieces, k=rng.randrange(20))) for _ in range(2))
        assert is_correct(completion, answer) in (True, False)
        assert is_correct("#### " + completion, completion) in (True, False)


def test_every_reference_solution_of_gsm8k_is_correct():
    """The data set's own solutions are right for their own number, and wrong for the next."""
    path = folder_of("gsm8k_test.jsonl") / "gsm8k_test.jsonl"
    solutions = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    for solution in solutions:
        number = solution.rpartition("#### ")[2]
        assert is_correct(solution, number)
        assert not is_correct(solution, str(canonical(number)[0] + 1))


@pytest.mark.slow
def test_a_hundred_thousand_odd_strings_take_no_time_and_raise_nothing():
    """docs/log.md has 0.4 ms in the middle and 14 at worst. The bounds leave room for a slow and busy machine: they are
    there for what grows with the square of a string."""
    found = fuzz(100_000)
    assert found["raised"] == 0 and found["median"] < 4e-3 and found["worst"] < 1


# The graders


def asked(answer: str, question: str = "What is it?") -> Problem:
    return Problem(question, answer, "")


def test_a_grader_takes_a_completion_and_its_problem():
    """The question belongs to what is judged: see below."""
    assert make_grader("rules") is by_rules
    assert by_rules("#### 7 apples", asked("7")) and not by_rules("#### 8", asked("7"))


def test_what_the_question_holds_is_not_put_to_math_verify(math_verify):
    """To box the formula that is to be simplified would otherwise be paid as its simplification, without a thought."""
    problem = asked("x+1", r"Simplify $\dfrac{x^2 + x}{x}$, that is, $f(x) = (x^2+x) \cdot \frac1x$.")
    for copied in (
        r"\frac{x^2+x}{x}",
        r"\dfrac{x^2 + x}x",
        r"f(x) = \frac{x^2+x}{x}",
        r"(x^2+x)\frac{1}{x}",
        r"(x^2+x)",
    ):
        assert not math_verify.is_correct(rf"\boxed{{{copied}}}", problem), copied
    assert math_verify.equal(r"\frac{x^2+x}{x}", "x+1"), "else this test says nothing"
    assert math_verify.is_correct(r"\boxed{1 + x}", problem)
    assert math_verify.is_correct(r"\boxed{x + 1}", asked("x+1", "Is it $x+1$ or $x+2$?")), (
        "reward.py's own verdict stays"
    )


@pytest.fixture(scope="module")
def math_verify():
    pytest.importorskip("math_verify", reason="needs math-verify")
    grader = MathVerify(limit_s=20)
    yield grader
    grader.close()


def test_math_verify_knows_algebra_and_is_asked_about_formulas_alone(math_verify):
    """`2(x+1)` is `2x+2` by calculation; but 3 + 4 is no answer where 7 is asked for, whoever grades."""
    for completion, answer in [
        ("\\boxed{2(x+1)}", "2x+2"),
        ("\\boxed{2+x}", "x+2"),
        ("#### \\sqrt{8}", "2\\sqrt{2}"),
        ("\\boxed{14\\pi}", "14 \\pi"),
        ("\\boxed{\\frac{28\\pi}{2} \\text{ cm}}", "14 \\pi"),
        ("\\boxed{-x+y}", "y-x"),
    ]:
        assert math_verify.is_correct(completion, asked(answer))
    for completion, answer in [("\\boxed{2(x+1)}", "2x+1"), ("#### 3 + 4", "7"), ("#### 8 = 7", "7"), ("2x+2", "2x+2")]:
        assert not math_verify.is_correct(completion, asked(answer))


@pytest.mark.parametrize("answer", ["\\pi", "(1, 2)", "\\sqrt{2}"])
def test_math_verify_is_not_fooled_by_hedges(math_verify, answer):
    """The marker is read by the same rules, whoever compares."""
    every = ", ".join(["\\pi", "\\sqrt{2}", "(1, 2)", "\\sqrt{3}", *map(str, range(101))])
    for game in (f"#### {every}", f"#### {answer} or 8", f"{answer} \\boxed{{}}", f"#### {answer}\n#### 8", answer):
        assert not math_verify.is_correct(game, asked(answer))


def test_what_takes_math_verify_too_long_is_ended_and_counts_as_no(math_verify):
    """A tower of powers would be worked out for ever. The next question finds another process."""
    assert math_verify.equal("x", "x")
    first, math_verify.limit_s = math_verify.worker, 0.5
    start = time.perf_counter()
    assert not math_verify.is_correct("\\boxed{9^{9^{9^9}}}", asked("\\pi"))
    assert time.perf_counter() - start < 5 and first.poll() is not None
    math_verify.limit_s = 20
    assert math_verify.equal("2(x+1)", "2x+2") and math_verify.worker is not first


def test_an_interrupted_question_does_not_answer_the_next(math_verify, monkeypatch):
    """Ctrl-C in a notebook: the answer that was on its way is nobody's."""
    assert math_verify.equal("x", "x")
    monkeypatch.setattr(
        math_verify.worker.stdin, "flush", lambda: (_ for _ in ()).throw(KeyboardInterrupt), raising=False
    )
    with pytest.raises(KeyboardInterrupt):
        math_verify.equal("x", "x")
    assert not math_verify.equal("x", "y")


def test_a_math_verify_that_does_not_run_is_said_at_once(monkeypatch, tmp_path):
    """A broken installation would otherwise call every formula wrong."""
    (tmp_path / "math_verify.py").write_text("raise ImportError('no antlr here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="no antlr here"):
        MathVerify()


@pytest.mark.parametrize(
    "text, answer",
    [
        ("8 = \\pi", "\\pi"),
        ("8 = x+1", "x+1"),
        ("5", "x+y=5"),
        ("(2,1)", "1,2"),
        ("1010_3", "1010_2"),
        ("3.14159", "\\pi"),
        ("n/2", "N/2"),
        ("x^2 + X", "X^2 + x"),
        (r"3:30 \text{ a.m.}", r"3:30 \text{ p.m.}"),
        (r"9\text{ a.m.}", r"9\text{ p.m.}"),
        ("3:1", "6:2"),
        (r"\frac{10\pi}{2} \text{ cm}", r"5\pi \text{ m}"),
        ("x < 5", "x > 5"),
        (r"5 \text{ dozen}", "5 + x - x"),
        ("(1,2)", "[1,2]"),
    ],
)
def test_math_verify_is_not_asked_to_overlook_a_form(math_verify, text, answer):
    """Taken at its word, it would pay each of these."""
    assert not math_verify.is_correct(f"#### {text}", asked(answer))


def test_a_grader_that_was_killed_from_without_is_started_again(math_verify):
    """The machine's want of memory takes the largest process, which may be this one."""
    assert math_verify.equal("x", "x")
    math_verify.worker.kill()
    math_verify.worker.wait()
    assert math_verify.equal("2x", "x + x")


@pytest.mark.slow
def test_no_hostile_string_breaks_math_verify(math_verify):
    """It is a library with a parser, under a policy that writes anything."""
    math_verify.limit_s = 1
    for text in HOSTILE.values():
        assert math_verify.is_correct(f"#### {text}", asked("x + 1")) is False
    math_verify.limit_s = 20
    assert math_verify.equal("1 + x", "x + 1")
