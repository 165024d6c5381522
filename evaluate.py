"""Accuracy of a checkpoint on a data set: greedy, or by several samples a problem.

    python evaluate.py --model DIR --dataset svamp                # greedy
    python evaluate.py --model DIR --dataset svamp --samples 8    # and pass@8

Without --model it is the embedded model. Writes what was generated (--out).
"""

import support.interrupt  # noqa: F401 (Ctrl-C during the imports is one line)

import argparse
import json
import math
import os
import sys
import time
from itertools import count
from pathlib import Path

from tqdm import tqdm

import data
from model import Decoder
from reward import extract_answer, verdict
from rollout import Rollout, generate
from support.distributed import from_rank_0, join, leave, no_bar, on_rank_0, rank_0_first, world_size
from support.graders import Grader, by_rules, make_grader
from support.log import path_in_errors, report_error, writable
from support.pretrained import check_context, load_model
from support.settings import Settings, add_flags, parse_strictly
from support.tokenizer import Tokenizer

FLAGS = "model dataset data_dir prompt_template grader max_new_tokens temperature dtype device seed".split()


def grade(
    tokenizer: Tokenizer,
    problems: list[data.Problem],
    rollout: Rollout,
    grader: Grader = by_rules,
) -> list[list[dict]]:
    """What each of the problems' G completions says, whether it is correct, and what it earns, [problem][sample].

    Rank 0 grades for all processes: a time limit must not let them disagree.
    """

    def grade_all() -> list[list[dict]]:
        G = len(rollout.prompts) // len(problems)
        records = []
        for row, problem in enumerate(problem for problem in problems for _ in range(G)):
            text, ended = tokenizer.decode(rollout.completion(row)), bool(rollout.ended[row])
            asked, said = {"question": problem.question, "answer": problem.answer}, {"completion": text, "ended": ended}
            records.append(asked | said | verdict(text, ended, ended and grader(text, problem)))
        return [records[start : start + G] for start in range(0, len(records), G)]

    return from_rank_0(grade_all)


def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    problems: list[data.Problem],
    max_new_tokens: int,
    n_samples: int = 1,
    temperature: float = 0.0,
    batch: int = 64,
    seed: int = 0,
    grader: Grader = by_rules,
    label: str = "evaluating",
) -> list[list[dict]]:
    """`grade`'s records of all problems with the whole model, in the order of the problems.

    temperature 0: greedy, one sample.  batch: completions at a time; similar prompts go together.  label: of the bar.
    """
    prompts = [tokenizer.encode_prompt(problem.question) for problem in problems]
    order = sorted(range(len(problems)), key=lambda i: len(prompts[i]))
    size = max(1, batch // n_samples) * world_size()
    records = [[] for _ in problems]
    for start in tqdm(range(0, len(order), size), desc=label, leave=False, disable=no_bar()):
        chosen = order[start : start + size]
        some, seeds = [prompts[i] for i in chosen], [seed + i for i in chosen]
        rollout = generate(model, some, n_samples, max_new_tokens, tokenizer.eos_ids, temperature, seed=seeds)
        for i, record in zip(chosen, grade(tokenizer, [problems[i] for i in chosen], rollout, grader), strict=True):
            records[i] = record
    return records


def accuracy(records: list[list[dict]]) -> tuple[float, float]:
    """Share of correct completions, with its standard error over problems (the samples of one are not independent).

    The error is that with one problem more right and one more wrong (Laplace), so that 0 of 4 is no certainty.
    """
    means = [sum(record["correct"] for record in samples) / len(samples) for samples in records]
    more = [*means, 0.0, 1.0]
    middle = sum(more) / len(more)
    variance = sum((m - middle) ** 2 for m in more) / (len(more) - 1)
    return sum(means) / len(means), math.sqrt(variance / len(more))


def evaluate_splits(
    model: Decoder, tokenizer: Tokenizer, splits: dict[str, list[data.Problem]], s: Settings, grader: Grader
) -> tuple[dict[str, float], dict[str, list[list[dict]]]]:
    """The whole model, greedy and sampled, on several splits: figures by the keys of metrics.jsonl, and `evaluate`'s
    records by what they are of, "test, full, greedy"."""
    figures, records = {}, {}
    modes = [(split, mode) for split in splits for mode in ("greedy", "sampled")]
    for i, (split, mode) in enumerate(modes, start=1):
        temperature = s.temperature if mode == "sampled" else 0.0
        batch, label = s.prompts * s.samples, f"evaluating {split}, {mode} ({i} of {len(modes)})"
        some = evaluate(
            model, tokenizer, splits[split], s.max_new_tokens, 1, temperature, batch, grader=grader, label=label
        )
        key = f"{split}_accuracy" + "_sampled" * (mode == "sampled")
        figures[key], figures[f"{key}_se"] = accuracy(some)
        records[f"{split}, full, {mode}"] = some
    return figures, records


def compare_with_full(  # SKIP
    model: Decoder, tokenizer: Tokenizer, problems: list[data.Problem], s: Settings, seed: int, grader: Grader
) -> dict[str, float]:
    """Cost and reward of the whole model, on the problems and streams that a nested one has just sampled from."""
    prompts, start = [tokenizer.encode_prompt(problem.question) for problem in problems], time.perf_counter()
    rollout = generate(model, prompts, s.samples, s.max_new_tokens, tokenizer.eos_ids, s.temperature, seed=seed)
    seconds = time.perf_counter() - start
    rewards = [record["reward"] for group in grade(tokenizer, problems, rollout, grader) for record in group]
    length, speed = (int(rollout.mask.sum()) / per for per in (len(rewards), seconds))
    return {"full_reward": sum(rewards) / len(rewards), "full_mean_length": length, "full_tokens_per_second": speed}


def none_correct(records: list[list[dict]]) -> str:
    """A completion beside its reference, where none is correct: perhaps right answers are written otherwise."""
    record = max((record for samples in records for record in samples), key=lambda record: record["ended"])
    answer, unfinished = extract_answer(record["completion"]), " (unfinished)" * (not record["ended"])
    return (
        f"no completion was correct; one ends{unfinished}: {record['completion'][-200:]!r}\n"
        f"  marked as its answer: {'nothing' if answer is None else repr(answer[:80])}; expected: {record['answer']!r}"
    )


def summarise(what: str, n_samples: int, records: list[list[dict]]) -> None:
    mean, error = accuracy(records)
    print(f"{what}: accuracy {mean:.1%} ± {error:.1%}")
    if mean == 0:
        print(none_correct(records))
    if n_samples > 1:
        solved = [[{"correct": any(record["correct"] for record in samples)}] for samples in records]
        mean, error = accuracy(solved)
        print(f"pass@{n_samples}: {mean:.1%} ± {error:.1%}")
    ended = sum(record["ended"] for samples in records for record in samples) / sum(map(len, records))
    print(f"{ended:.1%} of the completions ended by themselves", flush=True)


def free_name() -> Path:
    """generated.jsonl, or the first of generated_2.jsonl, generated_3.jsonl, … that is not there."""
    names = (Path(f"generated{f'_{n}' * (n > 1)}.jsonl") for n in count(1))
    return next(path for path in names if not path.exists())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser, FLAGS)
    parser.add_argument(
        "--split",
        default="test",
        help="test, train, valid (its last 100); wordings of arith, all of a file (default: test)",
    )
    parser.add_argument("--problems", type=int, metavar="X", help="only the first so many (default: all)")
    parser.add_argument("--samples", type=int, metavar="X", help="samples a problem (default: one, greedy)")
    parser.add_argument("--batch", type=int, default=64, metavar="X", help="completions at a time (default: 64)")
    parser.add_argument(
        "--out", help="where to write the texts (default: generated.jsonl; generated_2.jsonl, … if that is there)"
    )
    given = vars(parse_strictly(parser, arguments))
    split, n_problems, n_samples, batch, out = (given.pop(k) for k in ("split", "problems", "samples", "batch", "out"))
    for name, value in {"problems": n_problems, "samples": n_samples, "batch": batch}.items():
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; expected 1 or more")
    try:
        s = Settings(**given)
        if "temperature" in given and n_samples is None:
            raise ValueError("--temperature is of samples; give their number too (--samples)")
        device = join(s.device)
        with rank_0_first():
            problems = data.load(s.dataset, split, s.data_dir or None)
        if data.is_file(s.dataset) and split != "all":
            found, n = f"the {split} split of {s.dataset} has {len(problems)}", len(data.load(s.dataset, "all"))
            on_rank_0(lambda: print(f"{found} of its {n} problems; --split all takes all", file=sys.stderr))
        problems = problems[:n_problems]
        grader = make_grader(s.grader)
        with rank_0_first():
            model, tokenizer = load_model(s.model, s.dtype, device, s.prompt_template or None)
        check_context(model, tokenizer, [problem.question for problem in problems], s.max_new_tokens)
        out = Path(os.path.expanduser(out)) if out else from_rank_0(free_name)
        if data.is_file(s.dataset) and out.resolve() == Path(os.path.expanduser(s.dataset)).resolve():
            raise ValueError(f"--out {out} is the data set itself; name another file")
        temperature = s.temperature if n_samples else 0.0
        with writable(out):
            records = evaluate(
                model, tokenizer, problems, s.max_new_tokens, n_samples or 1, temperature, batch, s.seed, grader
            )
            lines = (json.dumps(record) + "\n" for samples in records for record in samples)
            try:
                with path_in_errors(out):
                    on_rank_0(lambda: out.write_text("".join(lines), encoding="utf-8"))
            finally:  # a full disk does not cost the accuracy, nor a closed pipe the texts
                sampled = f"{n_samples} sample{'s' * (n_samples != 1)} a problem at temperature {temperature:g}"
                asked = f"{len(records)} problem{'s' * (len(records) > 1)}, {sampled if n_samples else 'greedy'}"
                summarise(f"{s.dataset} {split}, {asked}", n_samples or 1, records)
        print(f"texts in {out}")
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error, "lower --batch, --samples or --max-new-tokens")
    leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
