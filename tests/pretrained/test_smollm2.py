"""The real SmolLM2, against transformers: the same logits, the same text, alone, in a batch, cached and not."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llamamm import TextStream, chat_format, generate, pad_left

PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "The three primary colours are",
    "E = mc^2 means that",
    "Der schnellste Weg nach",
    "import numpy as np\n\ndef",
    "1, 1, 2, 3, 5, 8,",
    "To bake bread you need",
    "Question: What is the largest planet?\nAnswer:",
    "The French word for 'cat' is",
    "In 1969,",
    "Photosynthesis is the process by which",
    "<html>\n<head>",
    "She opened the door and",
    "The opposite of hot is",
    "A list of fruits:\n- apple\n-",
    "Dear Sir or Madam,\n\n",
    "👋 Hello! How",
]
N_NEW = 24


@pytest.fixture(scope="module")
def reference(smollm2_dir):
    return AutoModelForCausalLM.from_pretrained(smollm2_dir).eval()


@pytest.fixture(scope="module")
def batch(smollm2):
    return pad_left([smollm2[1].encode(p) for p in PROMPTS], pad_id=smollm2[1].pad_id)


@pytest.fixture(scope="module")
def our_batch(smollm2, batch):
    ids, padding = batch
    return generate(smollm2[0], ids, N_NEW, padding=padding)[:, ids.shape[1] :]


@torch.no_grad()
def test_logits_equal_transformers(smollm2, reference):
    model, tokenizer = smollm2
    for prompt in PROMPTS[:5]:
        ids = torch.tensor([tokenizer.encode(prompt * 5)])
        assert (model(ids) - reference(ids).logits).abs().max() < 1e-4


def test_greedy_text_of_20_prompts_equals_transformers(reference, batch, our_batch):
    ids, padding = batch
    theirs = reference.generate(
        ids, attention_mask=padding.long(), max_new_tokens=N_NEW, do_sample=False, eos_token_id=None, pad_token_id=2
    )
    assert our_batch.tolist() == theirs[:, ids.shape[1] :].tolist()


def test_each_prompt_alone_gives_the_same_as_in_the_batch(smollm2, our_batch):
    """Two to the end, the longest among them, which has no padding; the others until a wrong place would show."""
    model, tokenizer = smollm2
    longest = max(range(len(PROMPTS)), key=lambda row: len(tokenizer.encode(PROMPTS[row])))
    for row, prompt in enumerate(PROMPTS):
        ids, n = torch.tensor([tokenizer.encode(prompt)]), N_NEW if row in (0, longest) else 4
        alone = generate(model, ids, n)[0, ids.shape[1] :]
        assert alone.tolist() == our_batch[row, :n].tolist(), prompt


def test_the_outline_runs_as_written(smollm2_dir, smollm2_gguf):
    """With the imports of this package, and SmolLM2 in the place of a gated model."""
    from llamamm import SMOLLM2_CONFIG, Llama3Model, Tokenizer, load_weights_into_llama

    config = SMOLLM2_CONFIG.replace(dtype=torch.float32)
    tok_path = smollm2_gguf
    params = load_file(smollm2_dir / "model.safetensors")

    model = Llama3Model(config)
    load_weights_into_llama(model, config, params)
    tokenizer = Tokenizer(tok_path)
    idx = torch.tensor([tokenizer.encode("The capital of France is", bos=True)])
    out = generate(
        model, idx, max_new_tokens=12, context_size=config["context_length"], temperature=0.8, top_k=50
    )
    text = tokenizer.decode(out.squeeze(0).tolist())
    assert out.shape == (1, idx.shape[1] + 12)
    assert text.startswith("<|im_start|>The capital of France is")


def test_uncached_gives_the_same(smollm2, batch, our_batch):
    ids, padding = batch
    out = generate(smollm2[0], ids[:4], 8, padding=padding[:4], use_cache=False)
    assert out[:, ids.shape[1] :].tolist() == our_batch[:4, :8].tolist()


def test_bf16_speaks(smollm2_dir):
    from llamamm import from_pretrained

    model, tokenizer = from_pretrained(smollm2_dir, dtype=torch.bfloat16)
    out = generate(model, torch.tensor([tokenizer.encode("The capital of France is")]), 6)
    assert "Paris" in tokenizer.decode(out[0].tolist())


def test_it_answers_a_question_through_its_chat_format(smollm2):
    model, tokenizer = smollm2
    ids = chat_format(tokenizer).encode([{"role": "user", "content": "What is the capital of France?"}])
    stream = TextStream(model, tokenizer, ids, max_new_tokens=40)
    assert "Paris" in "".join(stream)
    assert stream.stop_reason == "stop"
