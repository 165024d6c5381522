"""What a nested model wrote for a problem, and what each gradient makes of it.

    python look.py                           # the embedded model
    python look.py --model FOLDER --dataset svamp --problem 17 --skip-ratio 0.2
    python look.py runs/NAME --step 40       # what a run recorded: no model
    python look.py --html look.html          # as a page for a browser

A group of completions, each token coloured by log ρ = log π − log η: orange
where the nested model (η) likes it more than the full one (π), and writes it
too often; blue where less. Then one completion token by token: both
probabilities, ρ, the weight w of each gradient in losses.py, and what the full
model would rather have written.
"""

import support.interrupt  # noqa: F401 (Ctrl-C during the imports is one line)

import argparse
import contextlib
import json
import os
import shutil
import string
import sys
import textwrap
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

import data
from evaluate import grade
from losses import WEIGHTS, gradient_weights, group_advantages
from nested import NestedModels
from rollout import completion_hidden, generate, log_softmax, prefill
from support import lora
from support.graders import make_grader
from support.log import read, report_error, writable
from support.page import Row
from support.page import page as html_page
from support.pretrained import check_context, find_checkpoint, load_model
from support.settings import Settings, add_flags, flag, parse_strictly, read_settings, with_whole_paths
from support.tokenizer import Tokenizer

FLAGS = (
    "skip_ratio valid_layers bypass prefill cap bound advantage samples max_new_tokens temperature model adapter "
    "dataset data_dir prompt_template grader dtype device seed"
).split()
KEPT = ("step", "group", "question", "answer", "correct", "ended", "reward", "advantage")  # of a completion, besides
END = "∎"  # the end token
LEVELS = (0.1, 0.5, 1.0, 2.0)  # of |log ρ|, from which a colour begins
COLOURS = {  # of a level: xterm's number, and the same for a page; the darker, the further from 0
    **{-1: (223, "#ffd7af"), -2: (216, "#ffaf87"), -3: (209, "#ff875f"), -4: (202, "#ff5f00")},
    **{1: (153, "#afd7ff"), 2: (117, "#87d7ff"), 3: (75, "#5fafff"), 4: (33, "#0087ff")},
}
SCALE = (-2.0, -1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0, 2.0)
LEGEND = (
    "{}: the nested model (η) likes the token more than the full one (π), and writes it too often; {}: less.",
    "Πρ: the product of the ratios. accepted: Π min(1, ρ), the share of such completions that the full model would "
    "accept. advantage: the reward against its group's.",
)
COLUMNS = {  # of the table of tokens, besides the weights
    "t": "position in the completion",
    "token": f"as it was written; {END} ends the completion, ↵ is a new line, ∅ no text of its own",
    "π": "probability of the token under the full model",
    "η": "probability under the nested model, which wrote it",
    "ρ": "their ratio, π/η",
    "rather": "what the full model finds most probable here, if that is another token",
}


@dataclass
class Completion:
    """T tokens that a nested model wrote, and how probable both models find them."""

    tokens: list[str]
    log_eta: Tensor  # (T,)
    log_pi: Tensor  # (T,)
    record: dict  # reward, correct, ended
    advantage: float
    wanted: list[tuple[str, float]] | None = None  # the full model's most probable tokens; None: not recorded

    @property
    def log_rho(self) -> Tensor:
        return self.log_pi - self.log_eta

    @property
    def acceptance(self) -> float:
        """Π min(1, ρ): the share of such completions that the full model would accept."""
        return self.log_rho.clamp(max=0).sum().exp().item()

    def weights(self, s: Settings) -> Tensor:
        """(entries of WEIGHTS, T)"""
        log_rho = self.log_rho[None]
        ones = torch.ones_like(log_rho, dtype=torch.bool)
        return torch.cat(
            [gradient_weights(kind, log_rho, ones, s.effective_cap, s.retrace_lambda, s.bound) for kind in WEIGHTS]
        )


@dataclass
class Group:
    """The completions of one problem, and where they come from."""

    where: str
    question: str
    answer: str
    skipped: list[int]
    completions: list[Completion]
    settings: Settings


# ---- where a group comes from


@torch.no_grad()
def sampled(s: Settings, split: str, number: int, step: int) -> Group:
    """A new group, as step `step` of a run would sample it. Raises ValueError or OSError for what does not fit."""
    problems, learnt = (data.load(s.dataset, each, s.data_dir or None) for each in (split, "train"))
    if not 0 <= number < len(problems):
        raise ValueError(
            f"--problem is {number}; expected 0 to {len(problems) - 1}, the problems of {s.dataset} {split}"
        )
    problem = problems[number]
    model, tokenizer = load_model(s.model, s.dtype, s.device, s.prompt_template or None)
    if s.adapter:
        lora.load(model, Path(s.adapter))
    check_context(model, tokenizer, [problem.question], s.max_new_tokens)
    nested = NestedModels(model, tokenizer, learnt, s)
    if nested.is_due(step):
        with contextlib.redirect_stdout(sys.stderr):  # the table of layers
            nested.measure(step)
    skip, prompt = nested.skip_mask(step), tokenizer.encode_prompt(problem.question)
    rollout = generate(
        model, [prompt], s.samples, s.max_new_tokens, tokenizer.eos_ids, s.temperature,
        skip=skip, seed=s.seed, bypass=nested.bypass, full_prefill=s.prefill == "full",
    )  # fmt: skip
    (records,) = grade(tokenizer, [problem], rollout, make_grader(s.grader))
    advantages = group_advantages(torch.tensor([[record["reward"] for record in records]]), s.advantage)[0]
    completions = []
    for row, record in enumerate(records):
        tokens, mask = rollout.tokens[row : row + 1], rollout.mask[row : row + 1]
        ids, log_eta = tokens[mask], rollout.logprobs[row : row + 1][mask].cpu()  # (T,)
        states = completion_hidden(model, prefill(model, [prompt]), tokens, mask)  # (T, C)
        log_pi = log_softmax(model.lm_head(states), s.temperature)  # (T, V)
        best = log_pi.max(dim=-1)
        wanted = [
            (tokenizer.decode([i]), p) for i, p in zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
        ]
        log_pi = log_pi.gather(1, ids[:, None])[:, 0].cpu()
        spelt = pieces(tokenizer, ids.tolist())
        completions.append(Completion(spelt, log_eta, log_pi, record, advantages[row].item(), wanted))
    skipped = [layer for layer, out in enumerate(skip) if out]
    where = (
        f"problem {number} of {s.dataset} {split}, {s.model or 'the embedded model'}{s.adapter and ', ' + s.adapter}"
    )
    return Group(where, problem.question, problem.answer, skipped, completions, s)


def recorded(folder: Path, step: int | None, number: int) -> Group:
    """A group that a run kept. Raises ValueError or OSError where there is none."""
    s, path = read_settings(folder), folder / "samples.jsonl"
    kept = [record for record in records_of(path) if "tokens" in record] if path.is_file() else []
    steps = sorted({record["step"] for record in kept})
    if not steps:
        raise ValueError(f"{path}: no group of completions yet; they are kept at each evaluation (--eval-every)")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"--step is {step}; the steps whose samples are kept are {', '.join(map(str, steps))}")
    groups = [list(each) for _, each in groupby((r for r in kept if r["step"] == step), key=lambda r: r["group"])]
    if not 0 <= number < len(groups):
        raise ValueError(f"--problem is {number}; expected 0 to {len(groups) - 1}, the groups that step {step} kept")
    skipped = [row["skipped_layers"] for row in read(folder) if (row["phase"], row["step"]) == ("reinforce", step)]
    if not skipped:
        raise ValueError(f"{folder / 'metrics.jsonl'}: no line of step {step}, whose samples are in {path.name}")
    saved = folder / "checkpoint"
    tokenizer = Tokenizer(saved if saved.is_dir() else find_checkpoint(s.model or data.EMBEDDED))
    completions = [
        Completion(pieces(tokenizer, r["tokens"]), *map(torch.tensor, (r["log_eta"], r["log_pi"])), r, r["advantage"])
        for r in groups[number]
    ]
    first = groups[number][0]
    where = f"{folder}, step {step}" + f", before the last of its {s.updates} updates" * (s.updates > 1)
    return Group(where, first["question"], first["answer"], skipped[0], completions, s)


def records_of(path: Path) -> list[dict]:
    """The lines of samples.jsonl. ValueError that names the first which is none."""
    records, needed = [], {*KEPT, "tokens", "log_eta", "log_pi"}
    for n, line in enumerate(path.read_bytes().splitlines(), start=1):  # of a text it would cut at U+2028 too
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or ("tokens" in record and not needed <= record.keys()):
            raise ValueError(
                f"{path}, line {n}: not a sample of a run of this version: {line[:80].decode(errors='replace')}"
            )
        records.append(record)
    return records


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text that each token adds. A letter of several tokens comes with its last; the end token is ∎."""
    shown, texts = "", []
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:n])
        text = text.rstrip("\ufffd") if n < len(ids) else text
        texts.append(text[len(shown) :] or END * (ids[n - 1] in tokenizer.eos_ids))
        shown = text
    return texts


# ---- how it is shown


def level(log_rho: float) -> int:
    """From 0, nearly on-policy, to ±4."""
    return sum(abs(log_rho) >= bound for bound in LEVELS) * (1 if log_rho > 0 else -1)


def visible(token: str) -> str:
    token = token.replace("\n", "↵").replace("\t", "→") or "∅"
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in token)


def painted(text: str, log_rho: float, colour: bool) -> str:
    """For a terminal; without colours an arrow stands behind it, so↓ or so↑, where ρ is below 0.6 or above 1.6."""
    far = level(log_rho)
    if not colour:
        return text + "↓↑"[far > 0] if abs(far) > 1 else text
    return f"\x1b[38;5;16;48;5;{COLOURS[far][0]}m{text}\x1b[0m" if far else text


def wrapped(completion: Completion, width: int, colour: bool) -> list[str]:
    """The painted text in lines of at most `width` characters, each token whole."""
    lines, used = [""], 0
    for token, log_rho in zip(completion.tokens, completion.log_rho.tolist(), strict=True):
        shown = visible(token)
        size = len(painted(shown, log_rho, False) if not colour else shown)
        if used and used + size > width:
            lines, used = [*lines, ""], 0
        lines[-1] += painted(shown, log_rho, colour)
        used += size
        if "\n" in token:
            lines, used = [*lines, ""], 0
    return [line for line in lines if line]


def head(n: int, c: Completion) -> str:
    said = "right" if c.record["correct"] else "wrong" if c.record["ended"] else "unfinished"
    earned = f"{n}  {said}  reward {c.record['reward']:g}  advantage {c.advantage:+.2f}"
    return f"{earned}  Πρ {c.log_rho.sum().exp().item():.3g}  accepted {c.acceptance:.2f}"


def facts(group: Group) -> list[str]:
    s, layers = group.settings, ", ".join(map(str, group.skipped)) or "none"
    bound = "no cap" if s.effective_cap is None else f"cap {s.effective_cap:g} ({s.bound})"
    sampling = f"bypass {s.bypass}, prompt read by the {s.prefill} model, temperature {s.temperature:g}"
    return [
        f"{group.where}; skipped layers: {layers}; {sampling}; {bound}, λ {s.retrace_lambda:g}",
        f"Question: {visible(group.question)}",
        f"Answer: {group.answer}",
    ]


def table(c: Completion, s: Settings) -> list[list[str]]:
    """A row a token: t, token, π, η, ρ, the weights in the order of WEIGHTS, and what the full model would rather have
    written, where its most probable token is another one."""
    rows = []
    for t, (token, weights) in enumerate(zip(c.tokens, c.weights(s).T.tolist(), strict=True)):
        pi, eta, rho = (x[t].exp().item() for x in (c.log_pi, c.log_eta, c.log_rho))
        other, p = c.wanted[t] if c.wanted else ("", 0.0)
        rather = f"{visible(other.strip() or other or END)} {p:.2f}" if p > pi + 1e-6 else ""
        numbers = [digits(pi, 3), digits(eta, 3), digits(rho, 2), *(digits(w, 2) for w in weights)]
        rows.append([str(t), visible(token), *numbers, rather])
    return rows


def digits(x: float, n: int) -> str:
    """n digits behind the point, or 2e-07 where these were 0."""
    return f"{x:.{n}f}" if x == 0 or x >= 0.5 * 10**-n else f"{x:.0e}"


def terminal(group: Group, chosen: int, width: int, colour: bool) -> str:
    """At most `width` columns wide, 80 or more."""
    lines = [line for fact in facts(group) for line in textwrap.wrap(fact, width, break_on_hyphens=False)]
    if colour:
        lines.append("log ρ  " + "".join(painted(f" {far:g} ", far, True) for far in SCALE))
    for line in LEGEND:
        lines += textwrap.wrap(line.format(*(("Orange", "blue") if colour else ("↓", "↑"))), width)
    for n, completion in enumerate(group.completions):
        lines += ["", head(n, completion), *(f"   {line}" for line in wrapped(completion, width - 3, colour))]
    letters = string.ascii_lowercase[: len(WEIGHTS)]
    named = "  ".join(f"{letter} {name}" for letter, name in zip(letters, WEIGHTS, strict=True))
    lines += [
        "",
        *textwrap.wrap(f"Completion {chosen}, token by token. Weights: {named}", width, break_on_hyphens=False),
    ]
    chosen = group.completions[chosen]
    rows = table(chosen, group.settings)
    names = [*list(COLUMNS)[:-1], *letters, "rather"]
    widths = [min(12, max(map(len, column))) for column in zip(names, *rows, strict=True)]
    for row, log_rho in zip([names, *rows], [0.0, *chosen.log_rho.tolist()], strict=True):
        cells = [cell[:size].rjust(size) for cell, size in zip(row[:-1], widths, strict=False)]
        left = width - len(" ".join(cells)) - 1
        cells[1] = painted(cells[1], log_rho, True) if colour else cells[1]
        lines.append(" ".join([*cells, row[-1][: max(0, left)]]).rstrip())
    meanings = "; ".join(f"{name}: {said}" for name, said in COLUMNS.items())
    lines += ["", *textwrap.wrap(f"{meanings}.", width, break_on_hyphens=False)]
    return "\n".join(lines)


def page(group: Group, chosen: int) -> str:
    """The same as one file of HTML."""
    s, (where, *asked) = group.settings, facts(group)
    weights = {kind: f"weight of the token's gradient, --gradient {kind}" for kind in WEIGHTS}
    names = [*list(COLUMNS)[:-1], *WEIGHTS, "rather"]
    completions = []
    for n, c in enumerate(group.completions):
        rows = zip(table(c, s), c.tokens, c.log_rho.tolist(), strict=True)
        shown = [Row(cells, text, log_rho, colour_of(log_rho)) for cells, text, log_rho in rows]
        completions.append((head(n, c), shown))
    return html_page(
        title=asked[0],
        facts=[asked[1], where, *(line.format("Orange", "blue") for line in LEGEND),
               "The numbers of a token are under the pointer; a completion opens on a click."],
        scale=[(f"{far:g}", colour_of(far)) for far in SCALE],
        columns={name: (COLUMNS | weights)[name] for name in names},
        kinds=list(WEIGHTS),
        settings={"kind": s.gradient, "cap": s.effective_cap or 0, "bound": s.bound, "lam": s.retrace_lambda},
        completions=completions,
        chosen=chosen,
    )  # fmt: skip


def colour_of(log_rho: float) -> str:
    far = level(log_rho)
    return COLOURS[far][1] if far else ""


def has_colours() -> bool:
    """https://no-color.org, and FORCE_COLOR for a pipe that keeps them."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return (sys.stdout and sys.stdout.isatty()) or os.environ.get("FORCE_COLOR") not in (None, "", "0")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", nargs="?", help="folder of a run, to look at what it recorded; none: sample anew")
    parser.add_argument(
        "--step", type=int, metavar="X", help="of the run (default: the last that was kept), or the mask's"
    )
    parser.add_argument(
        "--problem", type=int, default=0, metavar="X", help="of the split, or of those kept (default: 0)"
    )
    parser.add_argument("--split", help="of a new sample, as in evaluate.py (default: test)")
    parser.add_argument(
        "--completion", type=int, metavar="X", help="to show token by token (default: the least acceptable)"
    )
    parser.add_argument("--html", metavar="FILE", help="write a page in place of the text")
    add_flags(parser, FLAGS)
    given = vars(parse_strictly(parser, arguments))
    own = {name: given.pop(name) for name in ("run", "step", "problem", "split", "completion", "html")}
    try:
        if own["run"] and (given or own["split"]):
            raise ValueError(
                f"{flag(next(iter(given), 'split'))} is of a new sample; {own['run']} has its own settings"
            )
        if own["step"] is not None and not 1 <= own["step"] < 2**31:
            raise ValueError(f"--step is {own['step']}; expected 1 or more")
        s = Settings(**with_whole_paths(given)).decided()
        if not own["run"] and not 0 <= (own["completion"] or 0) < s.samples:
            raise ValueError(f"--completion is {own['completion']}; expected 0 to {s.samples - 1}")
        html = None if own["html"] is None else Path(os.path.expanduser(own["html"]))
        with writable(html) if html else contextlib.nullcontext():
            if own["run"]:
                group = recorded(Path(os.path.expanduser(own["run"])), own["step"], own["problem"])
            else:
                group = sampled(s, own["split"] or "test", own["problem"], own["step"] or 1)
            chosen, n = own["completion"], len(group.completions)
            if chosen is None:
                chosen = min(range(n), key=lambda i: group.completions[i].acceptance)
            if not 0 <= chosen < n:
                raise ValueError(f"--completion is {chosen}; expected 0 to {n - 1}")
            if html:
                html.write_text(page(group, chosen), encoding="utf-8")
        if html:
            print(f"page: {html}")
        else:
            print(terminal(group, chosen, max(80, shutil.get_terminal_size().columns), has_colours()))
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error, "lower --samples or --max-new-tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
