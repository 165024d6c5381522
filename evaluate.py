"""Accuracy of a checkpoint on a data set: greedy, or by several samples a problem. Writes what was generated.

python evaluate.py --model DIR --dataset svamp                 # greedy
python evaluate.py --model DIR --dataset svamp --samples 8     # mean accuracy of 8 samples, and pass@8
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

import data
from model import Decoder
from reward import verdict
from rollout import Rollout, generate
from support.distributed import by_first, first_alone, from_first, join, leave, silent, world
from support.graders import GRADERS, by_rules, make_grader
from support.log import complain, naming
from support.pretrained import check_room, load_model
from support.settings import parse_strictly
from support.tokenizer import Tokenizer


def grade(
    tokenizer: Tokenizer,
    problems: list[data.Problem],
    rollout: Rollout,
    grader: Callable[[str, data.Problem], bool] = by_rules,
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
            records.append(asked | said | verdict(text, ended, lambda text, problem=problem: grader(text, problem)))
        return [records[start : start + G] for start in range(0, len(records), G)]

    return from_first(grade_all)


def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    problems: list[data.Problem],
    max_new_tokens: int,
    n_samples: int = 1,
    temperature: float = 0.0,
    batch: int = 64,
    seed: int = 0,
    grader: Callable[[str, data.Problem], bool] = by_rules,
    what: str = "evaluating",
) -> list[list[dict]]:
    """`grade`'s records of all problems with the whole model, in the order of the problems.

    temperature 0: greedy, one sample.  batch: completions at a time; similar prompts go together.  what: names the bar.
    """
    prompts = [tokenizer.encode_prompt(problem.question) for problem in problems]
    order = sorted(range(len(problems)), key=lambda i: len(prompts[i]))
    size = max(1, batch // n_samples) * world()
    records = [[] for _ in problems]
    for start in tqdm(range(0, len(order), size), desc=what, leave=False, disable=silent()):
        chosen = order[start : start + size]
        rollout = generate(
            model,
            [prompts[i] for i in chosen],
            n_samples,
            max_new_tokens,
            tokenizer.eos_ids,
            temperature=temperature,
            seed=[seed + i for i in chosen],
        )
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
    model: Decoder,
    tokenizer: Tokenizer,
    splits: dict[str, list[data.Problem]],
    max_new_tokens: int,
    temperature: float,
    batch: int,
    grader: Callable[[str, data.Problem], bool] = by_rules,
) -> tuple[dict[str, float], dict[str, list[list[dict]]]]:
    """The whole model, greedy and sampled, on several splits: figures by the keys of metrics.jsonl, and `evaluate`'s
    records by what they are of, "test, full, greedy"."""
    figures, records = {}, {}
    modes = [(split, mode) for split in splits for mode in ("greedy", "sampled")]
    for i, (split, mode) in enumerate(modes, start=1):
        tau, what = temperature if mode == "sampled" else 0.0, f"evaluating {split}, {mode} ({i} of {len(modes)})"
        some = evaluate(
            model, tokenizer, splits[split], max_new_tokens, temperature=tau, batch=batch, grader=grader, what=what
        )
        key = f"{split}_accuracy" + "_sampled" * (mode == "sampled")
        figures[key], figures[f"{key}_se"] = accuracy(some)
        records[f"{split}, full, {mode}"] = some
    return figures, records


def compare_with_full(  # SKIP
    model: Decoder,
    tokenizer: Tokenizer,
    problems: list[data.Problem],
    n_samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    grader: Callable[[str, data.Problem], bool] = by_rules,
) -> dict[str, float]:
    """Cost and reward of the whole model, on the problems and streams that a nested one has just sampled from."""
    prompts = [tokenizer.encode_prompt(problem.question) for problem in problems]
    start = time.perf_counter()
    rollout = generate(model, prompts, n_samples, max_new_tokens, tokenizer.eos_ids, temperature, seed=seed)
    seconds = time.perf_counter() - start
    rewards = [record["reward"] for group in grade(tokenizer, problems, rollout, grader) for record in group]
    length, speed = (int(rollout.mask.sum()) / per for per in (len(rewards), seconds))
    return {"full_reward": sum(rewards) / len(rewards), "full_mean_length": length, "full_tokens_per_second": speed}


def summarise(a: argparse.Namespace, records: list[list[dict]]) -> None:
    mean, error = accuracy(records)
    kind = f"{a.samples} samples a problem at temperature {a.temperature:g}" if a.samples else "greedy"
    print(f"{a.dataset} {a.split}, {len(records)} problems, {kind}: accuracy {mean:.1%} ± {error:.1%}")
    if a.samples > 1:
        solved = [[{"correct": any(record["correct"] for record in samples)}] for samples in records]
        mean, error = accuracy(solved)
        print(f"pass@{a.samples}: {mean:.1%} ± {error:.1%}")
    ended = sum(record["ended"] for samples in records for record in samples) / sum(map(len, records))
    print(f"{ended:.1%} of the completions ended by themselves", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder of a checkpoint, or a hub id")
    parser.add_argument("--dataset", required=True, help=f"{', '.join(data.DATASETS)}, or a file *.jsonl")
    parser.add_argument("--data-dir", help="folder with the data set's files (default: a cache, filled by a download)")
    parser.add_argument(
        "--split",
        default="test",
        help="test, train, valid (its last 100); wordings of arith, all of a file (default: test)",
    )
    parser.add_argument(
        "--grader", default=GRADERS[0], choices=GRADERS, help="of answers that are no numbers (default: rules)"
    )
    parser.add_argument("--problems", type=int, help="only the first so many (default: all)")
    parser.add_argument("--samples", type=int, default=0, help="samples a problem; 0: one, greedy (default: 0)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the samples (default: 1)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest completion (default: 128)")
    parser.add_argument("--prompt-template", help="prompt with {question} in it (default: the checkpoint's own)")
    parser.add_argument("--batch", type=int, default=64, help="completions at a time (default: 64)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="(default: float32)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    parser.add_argument("--out", default="generated.jsonl", help="where to write the texts (default: generated.jsonl)")
    a = parse_strictly(parser, arguments)
    low = {"problems": 1, "max_new_tokens": 1, "batch": 1, "samples": 0, "seed": 0, "temperature": 0.01}
    for name, bound in low.items():
        if getattr(a, name) is not None and not bound <= getattr(a, name) < math.inf:
            parser.error(f"--{name.replace('_', '-')} is {getattr(a, name)}; expected {bound} or more")
    if a.temperature != 1 and not a.samples:
        parser.error("--temperature is of samples; give their number too (--samples)")
    try:
        device = join(a.device)
        with first_alone():
            problems = data.load(a.dataset, a.split, a.data_dir or None)
        if data.is_file(a.dataset) and a.split != "all":
            whole = len(data.load(a.dataset, "all"))
            said = (
                f"the {a.split} split of {a.dataset} has {len(problems)} of its {whole} problems; --split all takes all"
            )
            by_first(lambda: print(said, file=sys.stderr))
        problems = problems[: a.problems]
        grader = make_grader(a.grader)
        with first_alone():
            model, tokenizer = load_model(a.model, a.dtype, device, a.prompt_template)
        temperature, n_samples = (a.temperature, a.samples) if a.samples else (0.0, 1)
        check_room(model, tokenizer, [problem.question for problem in problems], a.max_new_tokens)
        out = Path(os.path.expanduser(a.out))
        if data.is_file(a.dataset) and out.resolve() == Path(os.path.expanduser(a.dataset)).resolve():
            raise ValueError(f"--out {out} is the data set itself; name another file")
        by_first(lambda: out.open("a").close())  # what cannot be written to should say so before the work
        records = evaluate(
            model, tokenizer, problems, a.max_new_tokens, n_samples, temperature, a.batch, a.seed, grader
        )
        lines = (json.dumps(record) + "\n" for samples in records for record in samples)
        try:
            with naming(out):
                by_first(lambda: out.write_text("".join(lines), encoding="utf-8"))
        finally:
            summarise(a, records)  # a full disk does not cost the accuracy, nor a closed pipe the texts
        print(f"texts in {out}")
    except (Exception, KeyboardInterrupt) as error:
        return complain(error, "lower --batch, --samples or --max-new-tokens")
    leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
