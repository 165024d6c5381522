"""A small Llama checkpoint with random weights, for a first run without a download and for tests.

It knows nothing until a warm-up (`--warmup-epochs`) has taught it; its tokenizer is trained on arith, digit by digit.
"""

import json
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from data import arith
from data.prompts import ASK
from model import Config, Decoder

END = "<|end|>"


def build(folder: str | Path, seed: int = 0, vocab_size: int = 1024, **sizes: int) -> Path:
    """Writes config.json, model.safetensors and the tokenizer to `folder`; `sizes` replace entries of Config."""
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
    texts = [f"{problem.question}\n{problem.rationale}" for problem in arith.load("train")]
    tokenizer.train_from_iterator([ASK, *texts], trainer)

    default_sizes = {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
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
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}) + "\n", encoding="utf-8")
    return folder
