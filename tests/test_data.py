"""Specification of the data sets: what is made of a published record, which files are refused, what a download leaves.

The files are small and made here, in the published formats; the published ones are read where `folder_of` finds them.
"""

import hashlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import folder_of

import data
from data import svamp
from reward import is_correct
from support.pretrained import find_checkpoint

FILES = {
    ("svamp", "train"): "svamp.json",
    ("svamp", "test"): "svamp.json",
    ("gsm8k", "train"): "gsm8k_train.jsonl",
    ("gsm8k", "test"): "gsm8k_test.jsonl",
    ("math12k", "train"): "math12k_train.jsonl",
    ("math12k", "test"): "math500.jsonl",
}
COUNTS = dict(zip(FILES, (700, 300, 7473, 1319, 12000, 500), strict=True))
PART = "math12k_part.jsonl"

SVAMP = {"Body": "Pens cost 76 dollars.", "Question": "And now?", "Equation": "( 76.0 - 25.0 )", "Answer": 51.0}
GSM8K = {
    "question": "How many?",
    "answer": "He sold 48/2 = <<48/2=24>>24 clips.\nThat is $<<24*50=1200>>1,200.\n#### 1,200",
}
MATH = {"problem": "What is $x$?", "solution": "Clearly $\\boxed{\\frac{1}{2}}$.", "answer": "\\frac{1}{2}"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Nothing but this machine is asked for anything, and its own cache is not read."""
    urlopen = torch.hub.urlopen

    def guarded(request):
        if not request.full_url.startswith("http://127.0.0.1:"):
            pytest.fail(f"asked for {request.full_url}")
        return urlopen(request)

    monkeypatch.setattr(torch.hub, "urlopen", guarded)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


# What is made of a record


@pytest.mark.parametrize(
    "equation, answer, rationale",
    [
        ("( 76.0 - 25.0 )", 51.0, "76 - 25 = 51 #### 51"),
        ("( 76.0 - 25.0 )", 51, "76 - 25 = 51 #### 51"),
        ("( 5.0 / 2.0 )", 2.5, "5 / 2 = 2.5 #### 2.5"),
        ("( 10.05 + 1.0 )", 11.05, "10.05 + 1 = 11.05 #### 11.05"),  # only a whole number's .0 goes
        ("( 6.0 - ( 3.0 + 2.0 ) )", 1.0, "6 - (3 + 2) = 1 #### 1"),
        ("( ( 4.0 + 13.0 ) * 15.0 )", 255.0, "(4 + 13) * 15 = 255 #### 255"),
        ("8.0", 8.0, "8 = 8 #### 8"),
        ("( 1.0 + 2.0 ) * ( 3.0 + 4.0 )", 21.0, "(1 + 2) * (3 + 4) = 21 #### 21"),
        ("( 22090600.0 + 3.0 )", 22090603.0, "22090600 + 3 = 22090603 #### 22090603"),  # the largest; no 2.20906e+07
    ],
)
def test_an_svamp_equation_reads_as_a_child_would_write_it(equation, answer, rationale):
    """The rationale is what a warm-up teaches: the outermost brackets and the .0 of every number would be learned."""
    problem = svamp.to_problem(SVAMP | {"Equation": equation, "Answer": answer})
    assert problem == data.Problem("Pens cost 76 dollars. And now?", rationale.split(" #### ")[1], rationale)


def test_svamp_is_split_after_its_700th_problem(tmp_path):
    """There is no official split; this one has to be the same for everybody, or accuracies cannot be compared."""
    records = [SVAMP | {"Answer": float(i)} for i in range(1000)]
    (tmp_path / "svamp.json").write_text(json.dumps(records))
    assert [problem.answer for problem in data.load("svamp", "train", tmp_path)] == [str(i) for i in range(700)]
    assert [problem.answer for problem in data.load("svamp", "test", tmp_path)] == [str(i) for i in range(700, 1000)]


def test_gsm8k_loses_its_calculator_notes_and_the_comma_of_thousands(tmp_path):
    """<<48/2=24>> is for a calculator that is not there; the answer is one spelling, whatever the file has."""
    (tmp_path / "gsm8k_test.jsonl").write_text(lines(GSM8K))
    [problem] = data.load("gsm8k", "test", tmp_path)
    assert problem.answer == "1200"
    assert problem.rationale == "He sold 48/2 = 24 clips.\nThat is $1,200.\n#### 1200"


def test_math12k_ends_its_solution_with_the_marker_that_the_prompt_asks_for(tmp_path):
    """MATH boxes its answers; a warm-up on bare solutions would teach a form that the prompt does not ask for."""
    two_lines = MATH | {"answer": "1,\n2"}  # a marker's answer ends with its line
    (tmp_path / "math500.jsonl").write_text(lines(MATH, two_lines))
    one, two = data.load("math12k", "test", tmp_path)
    assert one.rationale == MATH["solution"] + "\n#### \\frac{1}{2}"
    assert two.answer == "1, 2" and two.rationale.endswith("\n#### 1, 2")


def test_a_part_of_math12k_serves_only_where_the_whole_is_absent(tmp_path, capsys):
    """A part may be all that somebody has, but must not go unnoticed or shadow the whole file."""
    (tmp_path / "math12k_part.jsonl").write_text(lines(MATH | {"problem": "of the part"}))
    assert [problem.question for problem in data.load("math12k", "train", tmp_path)] == ["of the part"]
    assert "math12k_part.jsonl: 1 problems (the published file has 12,000)" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="math500.jsonl"):
        data.load("math12k", "test", tmp_path)  # train problems are no test split

    (tmp_path / "math12k_train.jsonl").write_text(lines(MATH | {"problem": "of the whole"}))
    assert [problem.question for problem in data.load("math12k", "train", tmp_path)] == ["of the whole"]


@pytest.mark.parametrize("name, split", FILES)
def test_the_published_files_hold_what_the_literature_counts(name, split, capsys):
    """A record dropped or read twice would make every accuracy incomparable with published ones."""
    folder = folder_of(FILES[name, split], *[PART] * ((name, split) == ("math12k", "train")))
    partial = not (folder / FILES[name, split]).is_file()
    assert len(data.load(name, split, folder)) == (4500 if partial else COUNTS[name, split])
    assert ("the published file has" in capsys.readouterr().err) == partial  # a whole file needs no remark


@pytest.mark.parametrize(
    "name, split", [f if f[1] == "test" else pytest.param(*f, marks=pytest.mark.slow) for f in FILES]
)
def test_every_rationale_earns_the_reward_of_its_own_answer(name, split):
    """A warm-up teaches the rationales; one that the reward refuses would be unlearned by what follows."""
    folder = folder_of(FILES[name, split], PART)
    assert [p for p in data.load(name, split, folder) if not is_correct(p.rationale, p.answer)] == []


# Which files are refused


@pytest.mark.parametrize("name, split", FILES)
def test_a_named_folder_that_lacks_the_file_is_an_error_and_no_download(tmp_path, name, split):
    """Who names a folder means its files; fetching others in their place would hide a typing error."""
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError) as error:
            data.load(name, split, folder)
        assert str(folder / FILES[name, split]) in str(error.value)


def test_valid_is_the_last_hundred_of_train(tmp_path):
    """Of every data set, to make choices with; one too small has none."""
    (tmp_path / "gsm8k_train.jsonl").write_text(lines(*({**GSM8K, "question": f"{i}?"} for i in range(120))))
    train = data.load("gsm8k", "train", tmp_path)
    assert data.load("gsm8k", "valid", tmp_path) == train[20:]
    (tmp_path / "gsm8k_train.jsonl").write_text(lines(*({**GSM8K, "question": f"{i}?"} for i in range(100))))
    with pytest.raises(ValueError, match="'valid': the last 100 of train, which has only 100"):
        data.load("gsm8k", "valid", tmp_path)


@pytest.mark.parametrize(
    "content, place",
    [
        (lines(GSM8K) + '{"question": "cut in the mid', "line 2"),
        (lines(GSM8K) + "\n" + lines({"question": "no answer"}), "line 3"),  # blank lines pass, and are counted
        (lines(GSM8K, {"question": "of a wrong type", "answer": 4}), "line 2"),
        (lines(GSM8K, ["not", "a", "record"]), "line 2"),
        (lines(GSM8K, {"question": "no marker", "answer": "It is 4."}), "line 2: expected '####"),
        (lines(GSM8K, {"question": "no number", "answer": "#### four"}), "line 2: expected a number"),
        (lines(GSM8K, {"question": "no answer", "answer": "#### "}), "line 2: expected a number"),
        (lines(GSM8K, {"question": "two numbers", "answer": "#### 1,2"}), "line 2: expected a number"),
        (lines(GSM8K, {"question": "a number and more", "answer": "#### 5\nthe end"}), "line 2: expected a number"),
        (lines(GSM8K, {"question": " ", "answer": "#### 4"}), "line 2: the question is empty"),
        (lines(GSM8K, {"question": "half a character \ud800", "answer": "#### 4"}), "line 2"),
        ("[" * 100_000, "the whole file: no JSON"),
        ("9" * 10_000, "line 1: no JSON"),
        ("", "no records"),
        ("\n \n", "no records"),
        (lines(GSM8K).encode() + b"\xff\xfe", "UTF-8"),
    ],
)
def test_broken_json_lines_name_the_file_and_the_line(tmp_path, content, place):
    """Seven thousand lines are not searched by eye; and no broken record may be skipped in silence."""
    path = tmp_path / "gsm8k_test.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        data.load("gsm8k", "test", tmp_path)
    assert str(path) in str(error.value) and place in str(error.value)


@pytest.mark.parametrize(
    "content, place",
    [
        (json.dumps([SVAMP, {"Body": "and no more"}]), "record 2"),
        (json.dumps([SVAMP, SVAMP | {"Answer": "51"}]), "record 2"),
        (json.dumps([SVAMP, SVAMP | {"Answer": float("nan")}]), "NaN is no number"),
        (json.dumps([SVAMP]).replace("51.0", "1e400"), "1e400 is no number"),
        (json.dumps([SVAMP])[:-10], "no JSON"),
        ("[]", "no records"),
        ("5", "svamp.json"),
    ],
)
def test_a_broken_json_list_names_the_file_and_the_record(tmp_path, content, place):
    """As above, for the one data set that is published as a list."""
    (tmp_path / "svamp.json").write_text(content)
    with pytest.raises(ValueError) as error:
        data.load("svamp", "train", tmp_path)
    assert str(tmp_path / "svamp.json") in str(error.value) and place in str(error.value)


@pytest.mark.parametrize("answer", ["", "$", "x" * 2000, "4 #### 5", "\\boxed{4}"])
def test_an_answer_of_math12k_that_nothing_could_equal_is_an_error(tmp_path, answer):
    """It would cost a group of completions in every epoch, and never pay one."""
    (tmp_path / "math500.jsonl").write_text(lines(MATH, MATH | {"answer": answer}))
    with pytest.raises(ValueError, match=r"math500.jsonl, line 2: expected the answer alone"):
        data.load("math12k", "test", tmp_path)


def test_a_part_of_svamp_without_test_problems_is_an_error(tmp_path):
    """The test split begins at the 701st problem: a shorter file has none, and nothing could be measured."""
    (tmp_path / "svamp.json").write_text(json.dumps([SVAMP] * 5))
    with pytest.raises(ValueError, match=r"svamp\.json"):
        data.load("svamp", "test", tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    """An editor adds them unasked; the mark would break the first line, a return would end up in an answer."""
    path = tmp_path / "gsm8k_test.jsonl"
    path.write_text(lines(GSM8K, GSM8K))
    plain = data.load("gsm8k", "test", tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + lines(GSM8K, GSM8K).replace("\n", "\r\n").encode())
    assert data.load("gsm8k", "test", tmp_path) == plain


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path):
    """U+2028 and U+0085 stand unescaped in valid JSON; str.splitlines would tear such a record apart."""
    record = GSM8K | {"question": "one\u2028two\u0085three"}
    (tmp_path / "gsm8k_test.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    assert data.load("gsm8k", "test", tmp_path)[0].question == record["question"]


@pytest.mark.parametrize(
    "name, split, known",
    [
        ("svmap", "train", "'svmap': expected one of svamp, gsm8k, math12k, arith"),
        ("svamp", "dev", "'dev': expected one of train, test"),
    ],
)
def test_an_unknown_data_set_or_split_is_answered_with_the_known_ones(name, split, known):
    """The names are few, and a typing error should not cost a look into the source."""
    with pytest.raises(ValueError, match=known):
        data.load(name, split)


# A file of the user's own


def test_a_file_of_ones_own_needs_questions_and_answers(tmp_path):
    """AIME's answers are whole numbers, others' are LaTeX; solutions and further fields are welcome and not needed."""
    path = tmp_path / "own.jsonl"
    records = [
        {"id": 7, "question": "Two and two?", "answer": 4},
        {"problem": "Half of one?", "answer": 0.5},
        {"problem": "Factor.", "answer": "(x+1)(x-1)\n", "solution": "By hand."},
    ]
    path.write_text(lines(*records))
    problems = [
        data.Problem("Two and two?", "4", ""),
        data.Problem("Half of one?", "0.5", ""),
        data.Problem("Factor.", "(x+1)(x-1)", "By hand.\n#### (x+1)(x-1)"),
    ]
    assert data.load(str(path), "all") == problems
    path.with_suffix(".json").write_text(json.dumps(records))
    assert data.load(str(path.with_suffix(".json")), "all") == problems


def test_a_file_of_ones_own_is_split_by_its_questions(tmp_path):
    """Nothing is tested with that is trained on, not even where a question comes twice; and more lines move none."""
    path = tmp_path / "own.jsonl"
    path.write_text(lines(*({"question": f"{i % 150} and 1?", "answer": i % 150 + 1} for i in range(200))))
    assert data.splits(str(path)) == ("train", "test")
    train, test, every = (data.load(str(path), split) for split in ("train", "test", "all"))
    assert len(train) + len(test) == len(every) == 200 and not set(train) & set(test)
    assert 5 <= len(set(test)) <= 30
    with path.open("a") as file:
        file.write(lines(*({"question": f"{i} and 1?", "answer": i + 1} for i in range(200, 400))))
    assert data.load(str(path), "test")[: len(test)] == test


@pytest.mark.parametrize(
    "record, expected",
    [
        ({"query": "Two and two?", "answer": 4}, "'question' or 'problem'"),
        ({"question": "Two and two?", "Question": "Two and three?", "answer": 4}, "called 'question', and differ"),
        ({"question": "Which?", "answer": "B", "A": "4", "B": "5"}, "'A' is not read; write the choices"),
        ({"question": "Which?", "answer": "B", "Option A": "4"}, "'Option A' is not read; write the choices"),
        ({"question": "Two and two?"}, "'answer', got the fields question"),
        ({"question": "Two and two?", "answer": [4, 5]}, "'answer', got \\[4, 5\\]"),
        ({"question": "Two and two?", "final_answer": ["4", "5"]}, "'answer', got \\['4', '5'\\]"),
        ({"question": "Which?", "answer": "B", "choices": ["4", "5"]}, "'choices' is not read"),
        ({"question": "Which?", "answer": "B", "options": {"A": 4}}, "'options' is not read"),
        ({"question": "How many?", "answer": 4, "context": {"text": "Tom has 4."}}, "a text before the question"),
        ({"question": "Two and two?", "solution": "It is 4."}, "'answer', got the fields question, solution"),
        ({"question": "Two and two?", "answer": True}, "'answer', got True"),
        ({"question": "Two and two?", "answer": float("nan")}, "NaN is no number"),
        ({"question": "Two and two?", "answer": ""}, "the answer alone"),
        ({"question": "Two and two?", "answer": "The answer is 4"}, "the answer alone"),
        ({"question": "Two and two?", "answer": 4, "solution": 0}, "'solution', got 0"),
        ({"question": "Two and two?", "answer": "It is 4.\n#### 4"}, "the answer alone"),
        ({"question": "Two and two?", "answer": 4, "solution": ["2 + 2", "4"]}, "'solution'"),
        ({"question": "", "answer": 4}, "the question is empty"),
        (["Two and two?", 4], "expected a record"),
    ],
)
def test_a_broken_record_of_ones_own_is_named_with_what_was_expected(tmp_path, record, expected):
    """Files of one's own are where the fields have other names."""
    path = tmp_path / "own.jsonl"
    path.write_text(lines({"question": "Two and two?", "answer": 4}, record))
    with pytest.raises(ValueError, match=f"own.jsonl, line 2: .*{expected}"):
        data.load(str(path), "all")


@pytest.mark.parametrize(
    "record, question, answer",
    [
        ({"body": "Tom has 2 pens.", "question": "How many?", "answer": 2}, "Tom has 2 pens.\nHow many?", "2"),
        ({"context": "Tom has 2.", "question": "How many?", "answer": 2}, "Tom has 2.\nHow many?", "2"),
        ({"passage": "Tom has 2.", "problem": "How many?", "answer": 2}, "Tom has 2.\nHow many?", "2"),
        ({"context": None, "question": "Find x.", "final_answer": ["$2$"], "solution": ["So 2."]}, "Find x.", "$2$"),
        ({"question": "Two?", "final_answer": 2, "answer": "2"}, "Two?", "2"),
        ({"problem": "Find x.", "solution": "So $x = \\boxed{2}$.", "level": 3}, "Find x.", "2"),
        ({"Body": "Tom has 2.", "question": "How many?", "Answer": 2}, "Tom has 2.\nHow many?", "2"),
        ({"CONTEXT": "Tom has 2.", "Problem": "How many?", "Final Answer": 2}, "Tom has 2.\nHow many?", "2"),
        ({"passage ": "Tom has 2.", "QUESTION": "How many?", "final-answer": 2}, "Tom has 2.\nHow many?", "2"),
        ({"question": "Two?", "answer": 2, "choices": [], "options": None}, "Two?", "2"),
    ],
)
def test_what_published_files_call_their_fields_is_read_whole(tmp_path, recwarn, record, question, answer):
    """A question without the sentence before it cannot be answered, and nothing would say so."""
    path = tmp_path / "own.jsonl"
    path.write_text(lines(record))
    [problem] = data.load(str(path), "all")
    assert (problem.question, problem.answer) == (question, answer) and not recwarn.list


def test_text_that_is_not_read_is_named_once(tmp_path):
    """A table that the question speaks of, a field whose name is misspelt, a second question or answer: only the user
    knows whether it belongs to the problem."""
    path = tmp_path / "own.jsonl"
    path.write_text(
        lines(
            *(
                {"question": "How many?", "answer": 2, "hint": "", "bodyy": "Tom", "id": i}
                | {"Story": "Long ago.", "table": ["a", "b"], "problem": "He sings.", "final_answer": "two"}
                for i in range(3)
            )
        )
    )
    with pytest.warns(UserWarning, match="own.jsonl: fields .* not read: Story, bodyy, final_answer, problem, table$"):
        problems = data.load(str(path), "all")
    assert {(problem.question, problem.answer) for problem in problems} == {("How many?", "2")}


@pytest.mark.parametrize("name", ["own.jsonl", "own.json", "own.txt"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_list_and_lines_are_read_whatever_the_file_is_called(tmp_path, name, whole):
    """Exports are named either way."""
    records = [{"question": "Two and two?", "answer": 4}, {"question": "Two and three?", "answer": 5}]
    (tmp_path / name).write_text(json.dumps(records, indent=1) if whole else lines(*records))
    assert [problem.answer for problem in data.load(str(tmp_path / name), "all")] == ["4", "5"]


@pytest.mark.parametrize("name, reader", [("own.csv", "read_csv"), ("own.parquet", "read_parquet")])
def test_a_table_is_refused_with_the_command_that_makes_lines_of_it(tmp_path, name, reader):
    """pandas reads tables; we need not."""
    (tmp_path / name).write_bytes(b"PAR1")
    with pytest.raises(
        ValueError, match=rf"{name}: expected JSON lines; .* {reader}\('{name}'\)\.to_json\('own.jsonl'"
    ):
        data.load(str(tmp_path / name), "all")


def test_answers_that_say_more_than_a_number_and_its_unit_are_counted_and_named(tmp_path, recwarn):
    """A completion has to say all of `5 dozen`: a file of such answers would earn next to nothing, unexplained."""
    path = tmp_path / "own.jsonl"
    plain = [
        "9 (apples)",
        "$5",
        "10 cm",
        "5 percent",
        "x = 5 feet",
        r"2 \pi",
        "5x",
        "(1, 2)",
        "x + 1",
        7,
        "No",
        "$5 per hour",
    ]
    path.write_text(lines(*({"question": "What?", "answer": answer} for answer in plain)))
    assert len(data.load(str(path), "all")) == len(plain) and not recwarn.list
    more = ["5 dozen", "12 hours 30 minutes", "9 a.m.", "$3 million", "4 apples and 2 pears"]
    path.write_text(lines(*({"question": "What?", "answer": answer} for answer in ["9 (apples)", *more])))
    with pytest.warns(
        UserWarning, match=r"own.jsonl: answers that say more than .* unit: 5, '5 dozen' \(line 2\), '12 hours"
    ):
        assert len(data.load(str(path), "all")) == 6


@pytest.mark.parametrize("answer", ["2 h 30 min", "1 m 20 cm", "5 ft 6 in", "5 lbs 3 oz", "2h 30m", "3 d 4 h"])
def test_an_amount_of_two_units_says_more_than_one_number(tmp_path, answer):
    """As `2 hours 30 minutes` does: the number alone earns nothing."""
    (tmp_path / "own.jsonl").write_text(lines({"question": "How long?", "answer": answer}))
    with pytest.warns(UserWarning, match="say more than a number and its unit: 1, "):
        data.load(str(tmp_path / "own.jsonl"), "all")


def test_answers_that_are_sentences_or_computed_are_counted_and_named(tmp_path, recwarn):
    """A completion would have to repeat a sentence word for word; of a double with all its digits it need not."""
    path = tmp_path / "own.jsonl"
    golds = ["There are 7 pens in it.", "Yes, for all even numbers", 0.16666666666666666, 2.5, "No", ".0000672"]
    path.write_text(lines(*({"question": f"{i}?", "answer": answer} for i, answer in enumerate(golds))))
    data.load(str(path), "all")
    first, second = (str(warning.message) for warning in recwarn.list)
    assert (
        "answers that read as sentences, which" in first and ": 2, 'There are 7 pens in it.' (line 1), 'Yes," in first
    )
    assert "have so many decimals" in second and second.endswith(": 1, '0.16666666666666666' (line 3)")


def test_one_answer_that_many_problems_have_is_named(tmp_path, recwarn):
    """A mark pays a model that says it to every problem, however it is spelt. Numbers and choices may be common."""
    path = tmp_path / "own.jsonl"
    marks = ["unsolved", "Unsolved", "unsolved.", r"\text{unsolved}", "Unsolved."]
    for answers, warned in ((marks, 1), ([7] * 9, 0), (["B"] * 5, 0), (["Yes"] * 5, 0), ([r"\text{(C)}"] * 5, 0)):
        golds = [*answers, *range(20, 116), *[3] * 20, *"ABCD" * 20]
        path.write_text(lines(*({"question": f"{i}?", "answer": gold} for i, gold in enumerate(golds))))
        data.load(str(path), "all")
        said = [str(warning.message) for warning in recwarn.list]
        assert len(said) == warned and all("5 of 201 problems have the answer 'unsolved'" in each for each in said)
        recwarn.clear()
    golds = [*marks, *range(20, 270)]  # fewer than two in a hundred
    path.write_text(lines(*({"question": f"{i}?", "answer": gold} for i, gold in enumerate(golds))))
    data.load(str(path), "all")
    assert not recwarn.list


@pytest.mark.parametrize(
    "answer", ["proof", "notfound", "N/A", "None", "nan", "?", "—", "See the solution", r"\square"]
)
def test_answers_that_look_like_marks_are_named(tmp_path, answer):
    """Data sets mark with them what has no answer, and a completion that says so would be paid."""
    (tmp_path / "own.jsonl").write_text(lines({"question": "Prove it.", "answer": answer}))
    with pytest.warns(UserWarning, match="answers that look like marks: 1, "):
        data.load(str(tmp_path / "own.jsonl"), "all")


@pytest.mark.parametrize("answer", ["500/-", "25 元", "3-1/2", "0.333...", "1⁄2"])
def test_a_number_that_is_compared_as_text_is_named(tmp_path, answer):
    """Only the same characters would be right."""
    (tmp_path / "own.jsonl").write_text(lines({"question": "How many?", "answer": answer}))
    with pytest.warns(UserWarning, match="answers that hold a number and are compared as text: 1, "):
        data.load(str(tmp_path / "own.jsonl"), "all")


def test_an_answer_out_of_a_solution_is_its_box_and_not_a_phrase(tmp_path):
    """In three solutions of MATH "the answer is correct" comes after the box."""
    records = [
        {"problem": "One?", "solution": r"So $x = \boxed{-5}$. We check that the answer is correct."},
        {"problem": "Two?", "solution": "It is 7.\n#### 7\nThe answer is positive."},
        {"problem": "Three?", "solution": "So the answer is 8."},
    ]
    (tmp_path / "own.jsonl").write_text(lines(*records))
    assert [problem.answer for problem in data.load(str(tmp_path / "own.jsonl"), "all")] == ["-5", "7", "8"]


def test_two_problems_are_the_same_by_their_words_numbers_and_signs():
    """Copies of MATH in other sets differ in spaces, dollars and quotes; a number or a sign makes another problem."""

    def key(question: str) -> str:
        return data.Problem(question, "", "").key

    for question in (
        r"What's \( (x^2+\frac{1}{2}) \) if x=1,000 ?",
        r"WHAT'S  $(x^2 + \frac{1}{2})$, if $x = 1,000$",
        "What’s $\u200b(x² + \\tfrac{1}{2})$ if x = 1,000?",
    ):
        assert key(question) == key(r"What’s $\left(x^{2} + \dfrac{1}{2}\right)$, if x = 1,000?"), question
    apart = ["312", "31 2", "3 12", "3, 1, 2", "3.12", "3 + 12", "3 - 12", "-312", "x^12", "x 12"]
    assert len({key(f"What is {text}?") for text in apart}) == len(apart)


TWICE = [
    "How many  pens? ",
    "how many pens?",
    "How\u00a0many pens?",
    "HOW MANY PENS?",
    "How many\npens?",
    "Ｈow many pens?",
]


@pytest.mark.parametrize("spelling", TWICE)
def test_a_question_that_comes_twice_is_on_one_side_of_the_split(tmp_path, spelling):
    """However it is spaced and capitalised: else it is trained on and tested with."""
    path = tmp_path / "own.jsonl"
    questions = [f"How many pens? {i}" for i in range(40)]
    twice = [spelling.strip() + f" {i}" for i in range(40)]
    path.write_text(lines(*({"question": question, "answer": 1} for question in questions + twice)))
    train, test = ({problem.key for problem in data.load(str(path), split)} for split in ("train", "test"))
    assert test and not train & test


@pytest.mark.parametrize("spelling", TWICE)
def test_a_problem_that_is_tested_with_is_not_trained_on(tmp_path, spelling):
    """However it is spaced and capitalised; nor one that stands again among the last hundred, which are valid."""
    path, other = tmp_path / "own.jsonl", tmp_path / "test.jsonl"
    solved = {"answer": 1, "solution": "One."}  # the other file has none: it is the question that counts
    path.write_text(lines(*({"question": question} | solved for question in ("How many pens?", "How many hats?"))))
    other.write_text(lines({"question": spelling, "answer": 1}))
    with pytest.warns(UserWarning, match="that are tested with, and so not trained on: 1$"):
        train, _ = data.load_splits(str(path), test_file=str(other))
    assert [problem.question for problem in train] == ["How many hats?"]
    questions = ["How many pens?", *(f"{i}?" for i in range(100, 349)), spelling]
    path.write_text(lines(*({"question": question, "answer": 1} for question in questions)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.own, "split_of", lambda question: "train")
        train, tests = data.load_splits(str(path), eval_split="valid")
    assert len(tests["valid"]) == 100 and train[0].question == "100?"


def test_a_file_of_ones_own_that_is_missing_or_too_small_is_named(tmp_path):
    """A path is mistyped; and of three problems none may fall to the test split, on which nothing could be measured."""
    with pytest.raises(FileNotFoundError, match="absent.jsonl: no such file"):
        data.load(str(tmp_path / "absent.jsonl"), "train")
    (tmp_path / "own.jsonl").write_text(lines({"question": "Two and two?", "answer": 4}))
    [empty] = [split for split in ("train", "test") if data.arith.split_of("Two and two?") != split]
    with pytest.raises(ValueError, match=rf"none of its problems \(1\) is in the {empty} split"):
        data.load(str(tmp_path / "own.jsonl"), empty)


# What a download leaves


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        if self.server.barrier is not None:
            self.server.barrier.wait(timeout=10)
        self.send_response(200)
        for header in self.server.headers.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(self.server.body)  # then the connection closes, whatever the headers promised

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, no_network):
    """A server of a small SVAMP that the loader takes for the published one; .body and .headers may be changed."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.body, server.requests, server.barrier = json.dumps([SVAMP]).encode(), 0, None
        server.headers = {"Content-Length": str(len(server.body))}
        url = f"http://127.0.0.1:{server.server_port}/SVAMP.json"
        source = replace(svamp.SOURCE, url=url, sha256=hashlib.sha256(server.body).hexdigest(), records=1)
        monkeypatch.setattr(svamp, "SOURCE", source)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def left_behind(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_file_is_fetched_once_and_kept_in_the_cache(server, tmp_path):
    """Every run reads its data anew; only the first may need a network."""
    first = data.load("svamp", "train")
    assert [path.read_bytes() for path in left_behind(tmp_path)] == [server.body]
    assert data.load("svamp", "train") == first
    assert server.requests == 1
    assert socket.getdefaulttimeout() is None, "what comes after a download may wait longer"


@pytest.mark.parametrize(
    "body, headers",
    [
        pytest.param(b"[]", {"Content-Length": "2"}, id="another file"),
        pytest.param(b'[{"Body": ', {"Content-Length": "9999"}, id="cut in the middle"),
        pytest.param(b"ff\r\n[{", {"Transfer-Encoding": "chunked"}, id="cut in the middle of a chunk"),
    ],
)
def test_a_wrong_or_cut_download_leaves_nothing_and_is_tried_again(server, tmp_path, body, headers):
    """A broken file in the cache would be believed for ever: the sum is checked before the name is given."""
    whole, server.body = server.body, body
    whole_headers, server.headers = server.headers, headers
    with pytest.raises(ConnectionError, match="could not download"):
        data.load("svamp", "train")
    assert left_behind(tmp_path) == []

    server.body, server.headers = whole, whole_headers
    assert len(data.load("svamp", "train")) == 1


def test_without_a_home_no_folder_called_tilde_is_made(server, tmp_path, monkeypatch):
    """A container's user may have none; the download would lie in the folder that one happens to be in."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(data.files.os.path, "expanduser", str)  # what Python does with "~" where it knows no home
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="set HOME or XDG_CACHE_HOME, or give --data-dir"):
        data.load("svamp", "train")
    for variable in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(FileNotFoundError, match="someone/some-model: no home folder .*; set HOME or HF_HOME"):
        find_checkpoint("someone/some-model")
    assert not list(tmp_path.iterdir())


def test_two_runs_that_download_at_once_both_get_the_file(server, tmp_path):
    """A sweep starts its runs together, on an empty cache."""
    server.barrier = threading.Barrier(2)  # neither is served before both have asked
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: data.load("svamp", "train"), range(2))
    assert first == second and server.requests == 2
    assert [path.read_bytes() for path in left_behind(tmp_path)] == [server.body]


def test_ctrl_c_in_a_download_leaves_nothing(tmp_path, monkeypatch):
    """Half a file under a temporary name would lie there for ever."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.hub, "urlopen", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.load("svamp", "train")
    assert left_behind(tmp_path) == []


def test_without_a_network_the_error_says_which_file_to_put_where(tmp_path, monkeypatch):
    """Somebody behind a firewall needs the address, the place and a way to begin without either."""
    with socket.socket() as unused:  # bound but not listening: a connection is refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/SVAMP.json"
        monkeypatch.setattr(svamp, "SOURCE", replace(svamp.SOURCE, url=url))
        with pytest.raises(ConnectionError) as error:
            data.load("svamp", "train")
    for part in (url, str(tmp_path / "cache" / "nested-reft" / "svamp.json"), "--data-dir", "--dataset arith"):
        assert part in str(error.value)
    assert left_behind(tmp_path) == []
    assert data.load("arith", "test")  # which indeed asks for nothing
