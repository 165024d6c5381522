"""What sampling and a training step cost, with the nested model and the full one.

    python bench.py                       # all parts, on the embedded model
    python bench.py rollout step --model DIR --dataset svamp --compare

    rollout   tokens/s (up to and including the end token), for several numbers
              of prompts and samples; with --compare those of transformers'
              generate on the same prompts, in turn with ours
    nested    tokens/s with layers skipped over tokens/s with none, for
              completions of one fixed length, beside the ideal: head and
              sampling are never skipped, so it is 1/(1 − share left out)
    decode    where the time of one new token for 64 rows goes, and the share of
              the machine's matrix products reached
    step      seconds of a training step in which every group has a signal
    growth    seconds and memory against the length of completions, the number
              of rows, and the vocabulary

Figures are medians over --repeats, and what is compared is run in turn, so that
a busy minute meets all of it. The tables are followed by a line of JSON.
"""

import support.interrupt  # noqa: F401 (Ctrl-C during the imports is one line)

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

import data
import model as model_module
import rollout as rollout_module
from cache import KVCache
from losses import group_advantages
from model import Decoder
from rollout import completion_logprobs, generate
from skip import sample_mask, valid_layers
from support.batches import micro_batches
from support.log import report_error
from support.optimizer import Optimizer
from support.pretrained import load_model
from support.settings import Settings, nearest, parse_strictly
from train import update


def in_turn(cases: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of each case's figure; the cases take turns, after one run each that does not count."""
    for case in cases.values():
        case()
    figures = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            figures[name].append(case())
    return {name: statistics.median(values) for name, values in figures.items()}


def seconds(work: Callable) -> float:
    """Until a GPU, CUDA's or Apple's, has done it too."""
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def peak_memory() -> float:
    """The most memory that this process has had, in GiB; nan where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


class Bench:
    """The model, prompts and flags that the parts share."""

    def __init__(self, flags: argparse.Namespace):
        self.flags = flags
        self.folder = flags.model or data.EMBEDDED
        self.model, self.tokenizer = load_model(self.folder, flags.dtype, flags.device)
        self.model.gradient_checkpointing = flags.gradient_checkpointing
        problems = data.load(flags.dataset, "test", flags.data_dir)
        self.prompts = [self.tokenizer.encode_prompt(problem.question) for problem in problems]
        self.lengths = defaultdict(list)  # of the completions, by case

    def sample(self, P: int, G: int, case: str, skip=None, ends: bool = True):
        """A rollout of P prompts and G samples; ends=False: every completion takes all of --max-new-tokens."""
        eos = self.tokenizer.eos_ids if ends else []
        length = self.flags.max_new_tokens
        rollout = generate(self.model, self.prompts[:P], G, length, eos, skip=skip, full_prefill=True)
        self.lengths[case].append(rollout.mask.sum().item() / (P * G))
        return rollout

    def tokens_per_second(self, P: int, G: int, case: str, **options) -> float:
        elapsed = seconds(lambda: self.sample(P, G, case, **options))
        return self.lengths[case][-1] * P * G / elapsed

    # ---- the parts: each returns the rows of its table

    def rollout(self) -> list[dict]:
        rows = []
        for P, G in self.flags.shapes:
            cases = {"ours": partial(self.tokens_per_second, P, G, "ours")}
            if self.flags.compare:
                cases["transformers"] = self.transformers(P, G)
            speed = in_turn(cases, self.flags.repeats)
            row = {"prompts × samples": f"{P} × {G}", "tokens/s": speed["ours"], "length": self.length("ours")}
            if self.flags.compare:
                row |= {"transformers": speed["transformers"], "its length": self.length("transformers")}
                row["times"] = speed["ours"] / speed["transformers"]
            rows.append(row)
        return rows

    def length(self, case: str) -> float:
        return statistics.median(self.lengths.pop(case))

    def transformers(self, P: int, G: int) -> Callable[[], float]:
        try:
            from transformers import AutoModelForCausalLM
        except ImportError:
            raise ValueError("--compare needs transformers: pip install -r requirements-dev.txt") from None
        theirs = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, self.flags.dtype))
        theirs = theirs.eval().to(self.model.device)
        longest = max(map(len, self.prompts[:P]))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in self.prompts[:P]], device=theirs.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in self.prompts[:P]], device=theirs.device)
        eos = torch.tensor(self.tokenizer.eos_ids, device=theirs.device)

        def tokens_per_second() -> float:
            sample = partial(
                theirs.generate, ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=G, max_new_tokens=self.flags.max_new_tokens, eos_token_id=eos.tolist(),
                pad_token_id=self.tokenizer.eos_ids[0],
            )  # fmt: skip
            results = []
            elapsed = seconds(lambda: results.append(sample()[:, longest:]))
            ended = torch.isin(results[0], eos).int()
            useful = int((ended.cumsum(dim=1) - ended == 0).sum())  # up to and including the first end token
            self.lengths["transformers"].append(useful / (P * G))
            return useful / elapsed

        return tokens_per_second

    def nested(self) -> list[dict]:
        L, (P, G) = self.model.config.num_hidden_layers, self.flags.shapes[0]
        generator = torch.Generator().manual_seed(0)
        ratios = {ratio: round(ratio * L) for ratio in (0.0, 0.1, 0.2, 0.3, 0.5)}
        masks = {r: sample_mask(L, k / L, valid_layers(L, border=1), generator) for r, k in ratios.items()}
        cases = {
            str(ratio): partial(self.tokens_per_second, P, G, str(ratio), skip=mask, ends=False)
            for ratio, mask in masks.items()
        }
        cases["no layers"] = partial(self.tokens_per_second, P, G, "no layers", skip=(True,) * L, ends=False)
        speed = in_turn(cases, self.flags.repeats)
        share = 1 - speed["0.0"] / speed["no layers"]  # of a rollout's time that is spent in the layers
        rows = []
        for ratio, k in ratios.items():
            gain, ideal = speed[str(ratio)] / speed["0.0"], 1 / (1 - share * k / L)
            row = {"skip ratio": ratio, "layers skipped": f"{k} of {L}", "tokens/s": speed[str(ratio)], "gain": gain}
            rows.append(row | {"ideal": ideal, "gain : ideal": gain / ideal, "length": self.length(str(ratio))})
        print(f"the layers take {share:.1%} of the time; {P} × {G} completions")
        return rows

    def decode(self) -> list[dict]:
        """One rollout of 64 rows of fixed length, function by function."""
        places = {
            "prefill": (rollout_module, "prefill"),
            "layers": (model_module.Block, "forward"),
            "attention (of the layers)": (model_module, "attend"),
            "sampling": (rollout_module, "sample"),
            "compaction": (KVCache, "keep_rows"),
            "forward": (Decoder, "forward"),
            "hidden": (Decoder, "hidden"),
        }

        def add(part: str, elapsed: float) -> None:
            spent[part] += elapsed

        spent = dict.fromkeys(places, 0.0)
        self.sample(8, 8, "decode", ends=False)
        with timed(places, add):
            total = seconds(lambda: self.sample(8, 8, "decode", ends=False))
        spent["head"] = spent.pop("forward") - (spent.pop("hidden") - spent["prefill"])
        spent["all"] = total
        rows = [{"part": part, "seconds": spent[part], "share": spent[part] / total} for part in spent]

        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            self.sample(8, 8, "decode", ends=False)
        own = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
        products = sum(own.get(f"aten::{name}", 0) for name in ("mm", "addmm", "bmm", "baddbmm", "linear"))
        products += sum(value for key, value in own.items() if key.startswith("mkldnn::"))
        rows.append({"part": "matrix products", "seconds": products / 1e6, "share": products / sum(own.values())})
        weights = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, torch.nn.Linear))
        reached = 2 * weights * 64 * self.flags.max_new_tokens / (total - spent["prefill"])
        peak = self.peak()
        print(f"{reached / 1e9:.0f} GFLOP/s, {reached / peak:.0%} of large {self.flags.dtype} products")
        return rows

    def peak(self, n: int = 2048) -> float:
        a = torch.randn(n, n).to(self.model.device, self.model.dtype)
        return 2 * n**3 / in_turn({"": lambda: seconds(lambda: a @ a)}, 5)[""]

    def step(self) -> list[dict]:
        """Advantages by the parity of a completion's length: every group has a signal."""
        P, G = self.flags.shapes[0]
        s = Settings(micro_batch_tokens=self.flags.micro_batch_tokens)
        optimizer, times = Optimizer(self.model), defaultdict(list)
        for _ in range(self.flags.repeats):
            start = time.perf_counter()
            rollout = self.sample(P, G, "step")
            sampled = time.perf_counter()
            rewards = rollout.mask.sum(dim=1).view(P, G) % 2
            rewards[:, 0] = 1 - rewards[:, 1]  # never all the same
            advantages, own = group_advantages(rewards.float()).flatten(), {}
            with timed({"optimiser": (Optimizer, "step")}, own.__setitem__):
                update(self.model, optimizer, rollout, advantages, s, lr=1e-6)
            updated = time.perf_counter()
            with torch.no_grad():
                for rows, _ in micro_batches(rollout.prompts, rollout.mask, advantages != 0, s.micro_batch_tokens):
                    prompts = [rollout.prompts[row] for row in rows]
                    at = torch.tensor(rows, device=self.model.device)
                    completion_logprobs(self.model, prompts, rollout.tokens[at], rollout.mask[at])
            forward = time.perf_counter() - updated
            parts = {"sample": sampled - start, "forward": forward}
            parts |= {"backward": updated - sampled - forward - own["optimiser"]} | own | {"step": updated - start}
            for name, value in parts.items():
                times[name].append(value)
        rows = [{"part": name, "seconds": statistics.median(values)} for name, values in times.items()]
        length = self.length("step")
        print(f"{P} × {G} completions of {length:.0f} tokens; peak memory of the process {peak_memory():.1f} GiB")
        return rows

    def growth(self) -> list[dict]:
        """Each point in a process of its own, for its peak memory; random weights in the embedded model's shape."""
        start = {"rows": 64, "length": 128, "vocabulary": 2048}
        points = [start | {"length": n} for n in (64, 128, 256, 512, 1024)]
        points += [start | {"rows": n} for n in (8, 32, 128, 512)]
        points += [start | {"vocabulary": n} for n in (8192, 32768, 131072)]
        command = [sys.executable, __file__, "point", "--repeats", "1", "--point"]
        rows = []
        for point in points:
            done = subprocess.run([*command, json.dumps(point)], capture_output=True, text=True)
            if done.returncode:
                said = done.stderr.strip().splitlines() or ["killed, for memory perhaps"]
                raise ChildProcessError(f"growth at {point}: {said[-1]}")
            rows.append(json.loads(done.stdout.splitlines()[-1])["point"][0])
        return rows

    def point(self) -> list[dict]:
        point = json.loads(self.flags.point)
        config = replace(self.model.config, vocab_size=point["vocabulary"], max_position_embeddings=2048)
        self.model = Decoder(config)
        self.prompts = [[1] * 32] * (point["rows"] // 8)
        self.flags.max_new_tokens = point["length"]
        rollouts = []
        sample = seconds(lambda: rollouts.append(self.sample(point["rows"] // 8, 8, "point", ends=False)))
        advantages = torch.ones(point["rows"])
        step = partial(update, self.model, Optimizer(self.model), rollouts[0], advantages, Settings(), lr=1e-6)
        learn = seconds(step)
        return [point | {"sample, s": sample, "update, s": learn, "peak, GiB": peak_memory()}]


@contextmanager
def timed(places: dict, add: Callable[[str, float], None]):
    """Reports the seconds spent inside each function of `places`."""
    originals = {name: getattr(owner, attribute) for name, (owner, attribute) in places.items()}

    def watch(name: str) -> Callable:
        def call(*arguments, **keywords):
            results = []
            add(name, seconds(lambda: results.append(originals[name](*arguments, **keywords))))
            return results[0]

        return call

    for name, (owner, attribute) in places.items():
        setattr(owner, attribute, watch(name))
    try:
        yield
    finally:
        for name, (owner, attribute) in places.items():
            setattr(owner, attribute, originals[name])


def table(rows: list[dict]) -> str:
    def cell(value) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PARTS = ("rollout", "nested", "decode", "step", "growth")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--model", default="", help="folder of a checkpoint, or a hub id (default: the embedded one)")
    parser.add_argument(
        "--dataset", default="arith", help=f"whose test split gives the prompts: {', '.join(data.DATASETS)}, or a file"
    )
    parser.add_argument("--data-dir", help="folder with the data set's files (default: a cache, filled by a download)")
    parser.add_argument("--shapes", default="8x8", help="prompts × samples, such as 8x8,1x1 (default: 8x8)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="(default: 128)")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048, help="of a backward pass (default: 2048)")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory for a slower update")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (default: float32)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument("--repeats", type=int, default=3, help="runs whose median is printed (default: 3)")
    parser.add_argument("--compare", action="store_true", help="time transformers' generate beside the rollouts")
    parser.add_argument("--point", help=argparse.SUPPRESS)  # one point of growth, in a process of its own
    flags = parse_strictly(parser, arguments)
    unknown = sorted(set(flags.parts) - {*PARTS, "point"})
    try:
        if unknown:
            hint = nearest(unknown[0], PARTS)
            raise ValueError(f"no such part: {', '.join(unknown)}; choose from {', '.join(PARTS)}{hint}")
        Settings(dtype=flags.dtype, max_new_tokens=flags.max_new_tokens, micro_batch_tokens=flags.micro_batch_tokens)
        if flags.repeats < 1:
            raise ValueError(f"--repeats is {flags.repeats}; expected 1 or more")
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*(,[1-9]\d*x[1-9]\d*)*", flags.shapes):
            raise ValueError(f"--shapes is {flags.shapes!r}; expected prompts x samples, such as 8x8 or 8x8,1x64")
        flags.shapes = [tuple(map(int, shape.split("x"))) for shape in flags.shapes.split(",")]
        if "step" in flags.parts and flags.shapes[0][1] < 2:
            raise ValueError(
                f"--shapes is {flags.shapes[0][0]}x1; step takes two samples or more, for a group's signal"
            )
        bench = Bench(flags)
        if (most := max(P for P, _ in flags.shapes)) > len(bench.prompts):
            raise ValueError(
                f"--shapes asks for {most} prompts; the test split of {flags.dataset} has {len(bench.prompts)}"
            )
        results = {}
        for part in flags.parts:
            print(f"\n{part}\n")
            results[part] = getattr(bench, part)()
            print(f"\n{table(results[part])}")
        print(json.dumps(results))
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error, "lower --shapes or --max-new-tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
