"""What the tests share: small models with random weights, and the data sets where they lie beside the repository."""

from pathlib import Path

import pytest
import torch

from model import Config, Decoder

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The published files of the data sets."""
    if not DATA.is_dir():
        pytest.skip(f"needs the data sets' published files in {DATA}")
    return DATA


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
