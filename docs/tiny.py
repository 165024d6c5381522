"""The embedded model: a small Llama that has seen arith's problems for a while and solves about half of them.

    python -m docs.tiny --out FOLDER        # 80 minutes on two cores; without --out: data/tiny

Tokenizer and model are trained from scratch on problems of arith's train split; its test split and its held-out
wordings are never seen. The completions are rationales, but in the last seventh of the training a fifth of them are the
answer alone. So the model works a problem out or answers at once, which is wrong more often: that is for reinforcement
to find out. No layer is ever left out: docs/results.md says what a training with layer dropout gives instead.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

import data
from data import arith
from evaluate import accuracy, evaluate
from losses import normaliser, supervised_loss
from model import Config, Decoder
from reward import extract_answer
from rollout import completion_logprobs
from support.batches import pad_right
from support.tokenizer import ASK, Tokenizer

END = "<|end|>"
# It always answers in arith's form and need not be asked for it: the question alone halves the prompt.
TEMPLATE = r"{{ messages[0]['content'].split('\n" + ASK.partition('"')[0] + r"')[0] + '\n' }}"


def build(folder: str | Path, seed: int = 0, vocab_size: int = 3000, **sizes: int) -> Path:
    """Writes config.json, model.safetensors with random weights, and a tokenizer; `sizes` replace entries of Config."""
    folder = Path(folder)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((f"{p.question}\n{p.rationale}" for p in arith.load("train")), trainer)

    default_sizes = {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "max_position_embeddings": 1024,
    }
    config = Config(
        model_type="llama",
        vocab_size=tokenizer.get_vocab_size(),
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        extra={"eos_token_id": tokenizer.token_to_id(END)},
        **default_sizes | sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Decoder(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": END, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
    return folder


def batches(tokenizer: Tokenizer, size: int, seed: int, bare: int) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Endless (prompt, completion) pairs of arith's train split; the prompts of a batch are of similar length.

    The completions are rationales; from batch `bare` on, a fifth of them are the answer alone. Words of the prompts
    fall to pieces at random (BPE dropout; Provilkov et al., 2020): so the pieces of words that arith lacks are known.
    """
    problems, rng = arith.stream("train", seed), random.Random(seed)
    for drawn in count(0, 32):  # batches
        pairs = []
        for problem in islice(problems, 32 * size):
            text = f"#### {problem.answer}" if drawn >= bare and rng.random() < 0.2 else problem.rationale
            tokenizer.tokenizer.model.dropout = 0.1
            prompt = tokenizer.encode_prompt(problem.question)
            tokenizer.tokenizer.model.dropout = None
            pairs.append((prompt, tokenizer.encode_completion(text)))
        pairs.sort(key=lambda pair: len(pair[0]))
        pool = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        rng.shuffle(pool)
        yield from pool


def teach(model: Decoder, tokenizer: Tokenizer, steps: int, size: int = 64, lr: float = 5e-3, seed: int = 0) -> None:
    """Supervised learning.

    Muon (Jordan et al., 2024) moves the matrices of the layers, AdamW the rest. The rate falls over the second half.
    Products are in bfloat16, weights and their moments in float32.
    """
    matrices = [p for p in model.model["layers"].parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=lr / 2, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 100, 1, 2 * (1 - step / steps)))
        for optimizer in (muon, adamw)
    ]
    drawn = islice(batches(tokenizer, size, seed, bare=6 * steps // 7), steps)
    progress = tqdm(drawn, total=steps, desc="steps", mininterval=10)
    for step, pairs in enumerate(progress, start=1):
        tokens, mask = pad_right([completion for _, completion in pairs], "cpu")
        with torch.autocast("cpu", torch.bfloat16):
            logprobs, _ = completion_logprobs(model, [prompt for prompt, _ in pairs], tokens, mask)
        loss = supervised_loss(logprobs, mask, normaliser(mask))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip((muon, adamw), schedule, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
        if step % 100 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=data.EMBEDDED, help="folder (default: data/tiny)")
    parser.add_argument("--steps", type=int, default=5320, help="batches of 64 problems (default: 5320)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and problems (default: 0)")
    a = parser.parse_args(arguments)
    if a.out.exists():
        print(f"error: {a.out} is there already; delete it, or name another --out", file=sys.stderr)
        return 2
    partial = a.out.with_name(f"{a.out.name}.partial")
    tokenizer = Tokenizer(build(partial, a.seed))
    model = Decoder.from_pretrained(partial)
    teach(model, tokenizer, a.steps, seed=a.seed)
    model.half().save_pretrained(partial)
    partial.rename(a.out)

    model = Decoder.from_pretrained(a.out)  # what a reader of the folder gets: rounded to float16
    for split in ("test", "wordings"):
        for mode, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            records = evaluate(model, tokenizer, arith.load(split), max_new_tokens=128, temperature=temperature)
            answers = [record["ended"] and extract_answer(record["completion"]) for (record,) in records]
            readable = sum(bool(answer) for answer in answers) / len(answers)
            mean, error = accuracy(records)
            print(f"{split}, {mode}: accuracy {mean:.1%} ± {error:.1%}; readable answers {readable:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
