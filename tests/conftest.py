"""What the tests share: small models with random weights, and the data sets where they lie beside the repository."""

import functools
import inspect
import signal
from datetime import datetime
from pathlib import Path

import pytest
import torch

import report
import train
from data import arith
from data.files import cache_folder
from docs import tiny
from model import Config, Decoder
from rollout import Rollout
from support.optimizer import Optimizer
from support.settings import Settings

torch.set_num_threads(1)  # the models are too small to share work, and two threads wait for each other
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with Ctrl-C ignored
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup's with this
SMALLEST = {  # sizes for docs.tiny.build, where a checkpoint is needed and what it says is not
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
FOLDERS = (Path(__file__).resolve().parents[2] / "shared" / "data", cache_folder())  # of published files


drawn = functools.cache(lambda split, size, load=arith.load: sorted(load(split), key=lambda p: len(p.question)))


@pytest.fixture(autouse=True, scope="module")
def few_problems(request):
    """A run encodes all problems and draws a few: a tenth of arith's will do, drawn once, the shortest first.
    test_arith.py has arith as it is."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_arith":
            for split, size in (("train", 400), ("test", 200), ("wordings", 100)):
                patch.setitem(arith.SIZES, split, size)
            patch.setattr(arith, "load", lambda split: list(drawn(split, arith.SIZES.get(split))))
        yield


@pytest.fixture(autouse=True, scope="module")
def no_picture(request):
    """A picture takes longer to draw than a small run to learn; test_report.py draws one."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_report":
            patch.setattr(report, "draw", lambda *given: None)
        yield


def folder_of(*names: str) -> Path:
    """The folder with one of these published files: beside the repository, or where train.py keeps its downloads."""
    for folder in FOLDERS:
        if any((folder / name).is_file() for name in names):
            return folder
    pytest.skip(f"needs {names[0]} in {' or '.join(map(str, FOLDERS))}; evaluate.py --dataset … downloads it")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A folder with a small Llama of random weights and a tokenizer of 300 tokens."""
    sizes = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    with pytest.MonkeyPatch.context() as patch:  # three hundred tokens are found in a few problems
        patch.setitem(arith.SIZES, "train", 400)
        return tiny.build(tmp_path_factory.mktemp("tiny"), vocab_size=300, **sizes)


def pay(monkeypatch, reward) -> None:
    """Pays sample g of problem p what reward(text, p, g) says, in place of the answer's reward."""
    original = train.grade

    def grade(*arguments):
        records = original(*arguments)
        for p, samples in enumerate(records):
            for g, record in enumerate(samples):
                record["reward"] = float(reward(record["completion"], p, g))
        return records

    monkeypatch.setattr(train, "grade", grade)


def small_model(dtype=torch.float64, seed: int = 0, std: float = 0.3, **sizes) -> Decoder:
    """A random Llama of 4 layers whose distributions are far from uniform, so that skipping a layer shows."""
    default_sizes = {
        "vocab_size": 29,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Decoder(Config("llama", rms_norm_eps=1e-5, **default_sizes | sizes)).to(dtype)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=std)
    return model


class Letters:
    """A tokenizer in which token i is the character chr(65 + i), for models of 29 tokens; three of them end."""

    eos_ids, eos_id, now = [0, 12, 20], 0, datetime(2026, 1, 31)

    def encode_prompt(self, question: str) -> list[int]:
        return [1, *self.encode(question)]

    def encode_completion(self, text: str) -> list[int]:
        return [*self.encode(text), self.eos_id]

    def encode(self, text: str) -> list[int]:
        return [ord(character) - 65 for character in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(65 + i) for i in ids)

    def save(self, folder) -> None:
        (Path(folder) / "letters").touch()


def gradient_of(model: Decoder, rollout: Rollout, advantages: torch.Tensor, settings: Settings) -> torch.Tensor:
    """The whole gradient of a batch, as a vector, that `train.update` leaves for the optimiser's step."""
    optimizer, gradient = Optimizer(model), []

    def step(*_):
        optimizer.reduce_gradients()
        gradient.append(torch.cat([p.grad.flatten() for p in optimizer.masters]))

    optimizer.step = step
    train.update(model, optimizer, rollout, advantages, settings, lr=0.0)
    for parameter in (*optimizer.masters, *model.parameters()):
        parameter.grad = None
    return gradient[0]


def spy(monkeypatch, module, name: str) -> list[dict]:
    """The arguments of every call that a module makes of one of its functions, by name, defaults included."""
    calls, original = [], getattr(module, name)

    def call(*arguments, **keywords):
        bound = inspect.signature(original).bind(*arguments, **keywords)
        bound.apply_defaults()
        calls.append(dict(bound.arguments))
        return original(*arguments, **keywords)

    monkeypatch.setattr(module, name, call)
    return calls
