"""pretrained.load: from a name to a model; what it costs in memory."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import llamamm.pretrained
from llamamm import Llama3Model, TextConfig, from_pretrained, save_pretrained
from llamamm.errors import CheckpointError, FetchError, InputError
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.pretrained.locate import locate
from tests.processes import finish


@pytest.fixture
def folder(tmp_path):
    save_pretrained(Llama3Model(TextConfig.tiny()), tmp_path / "m")
    return tmp_path / "m"


def test_an_asset_by_name(smollm2_dir):
    assert locate("smollm2") == smollm2_dir


def test_a_folder_comes_before_a_name_elsewhere(folder, monkeypatch):
    (folder.parent / "smollm2").mkdir()
    monkeypatch.chdir(folder.parent)
    assert locate("smollm2").resolve() == (folder.parent / "smollm2").resolve()


@pytest.mark.parametrize("name", ["no-such", "./no/such", "a/b/c", "x/y.gguf", "~/nothing"])
def test_what_is_nothing_is_named_with_the_assets(name):
    with pytest.raises(FetchError, match="smollm2"):
        locate(name)


@pytest.mark.parametrize("name", ["shakespeare", "dialogues", "wiki"])
def test_a_corpus_is_no_model(name):
    with pytest.raises(FetchError, match=f"'{name}' is a corpus.*models are smollm2, senses$"):
        from_pretrained(name)


@pytest.mark.parametrize(("name", "what"), [
    ("vit-s", "a vision tower"), ("whisper-tiny", "an audio model"), ("llama3-tokenizer", "a file")])  # fmt: skip
def test_other_assets_are_no_text_model(name, what):
    with pytest.raises(FetchError, match=f"'{name}' is {what}, .* not a text model; text models are smollm2, senses$"):
        from_pretrained(name)


def test_the_skill_of_the_package_goes_by_its_name_and_a_folder_here_comes_before_it(tmp_path, monkeypatch):
    assert locate("senses") == Path(llamamm.pretrained.__file__).parent / "senses"
    with pytest.raises(FetchError, match="'senses' is no file or folder here.* none of the assets vit-s$"):
        locate("senses", kind="vision")
    (tmp_path / "senses").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("senses").resolve() == tmp_path / "senses"


def test_a_tower_is_found_where_one_is_asked_for(vit_s_dir, whisper_tiny_dir):
    assert locate("vit-s", kind="vision") == vit_s_dir and locate("whisper-tiny", kind="audio") == whisper_tiny_dir
    with pytest.raises(FetchError, match="'smollm2' is a text model, .* not a vision tower; vision towers are vit-s$"):
        locate("smollm2", kind="vision")


def test_only_models_are_offered():
    with pytest.raises(FetchError, match="none of the assets smollm2, senses$"):
        locate("no-such")


def test_a_file_inside_a_folder_loads_too(folder):
    model, tokenizer = from_pretrained(folder / "model.safetensors")
    assert model.cfg == TextConfig.tiny() and tokenizer is None


@pytest.mark.parametrize(("content", "message"), [(None, "no config.json"), ("{", "not JSON"), ("\xff", "not JSON")])
def test_a_missing_or_damaged_config_is_named(folder, content, message):
    if content is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(folder)


def test_weights_that_do_not_fit_the_config_are_listed(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "intermediate_size": 99}))
    with pytest.raises(CheckpointError, match=r"(?s)\(128, 64\), the model \(99, 64\).*missing \(9\)"):
        from_pretrained(folder)


def test_a_tokenizer_too_large_for_the_model_is_refused(folder, smollm2):
    smollm2[1].save(folder)
    with pytest.raises(CheckpointError, match="49152 tokens, the model 512"):
        from_pretrained(folder)


def test_dtype_is_the_files_own_unless_asked(folder):
    assert from_pretrained(folder)[0].norm.weight.dtype == torch.float32
    model, _ = from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.cos.dtype == torch.float32  # angles stay exact


def test_loaded_models_are_ready_to_answer_and_to_train(folder):
    model, _ = from_pretrained(folder)
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1.0), ("bfloat16", 0.5)])
def test_peak_memory_is_the_weights_and_one_tensor(smollm2_dir, dtype, factor):
    """The weights over the interpreter's baseline, and the largest tensor as the file holds it, while casting too."""
    script = f"""
import psutil, torch
from llamamm import from_pretrained
from llamamm.evals.speed import peak_rss
before = psutil.Process().memory_info().rss
model, _ = from_pretrained({str(smollm2_dir)!r}, dtype=torch.{dtype}, progress=False)
print(peak_rss() - before, sum(p.nbytes for p in model.parameters()))
"""
    done = finish([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr
    growth, weights = map(int, done.stdout.split())
    assert weights == int(538_060_032 * factor)
    largest = 49_152 * 576 * 4  # the table of tokens, in fp32
    assert 0.9 * weights <= growth <= weights + largest + 40_000_000, f"{growth / weights:.2f} x"

# ---- what a folder says besides ----


def in_two_dtypes(folder):
    """bf16 weights, fp32 norms: as trainers of adapters leave a model."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {k: v.float() if "norm" in k else v.bfloat16() for k, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def say(folder, file="config.json", **changes):
    data = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({k: v for k, v in {**data, **changes}.items() if v is not None}))


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_tensors_of_several_dtypes_take_the_one_in_the_config(folder, key):
    in_two_dtypes(folder)
    say(folder, **{"torch_dtype": None, key: "bfloat16"})
    model, _ = from_pretrained(folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} == {model.cfg.dtype}
    assert from_pretrained(folder, dtype=torch.float32)[0].cfg.dtype == torch.float32
    say(folder, torch_dtype=None, dtype=None)
    with pytest.raises(CheckpointError, match="bfloat16 and torch.float32.*dtype="):
        from_pretrained(folder)


def test_tensors_of_one_dtype_keep_it_whatever_the_config_says(folder):
    say(folder, torch_dtype="float16")
    assert from_pretrained(folder)[0].cfg.dtype == torch.float32


def byte_tokenizer(*added):
    """A tokenizer.json of the 256 bytes, and what was added to it."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_tokens(list(added))
    return tokenizer


@torch.no_grad()
@pytest.mark.parametrize("special", [True, False])
def test_a_pad_added_to_a_tokenizer_whose_model_was_not_resized(tmp_path, special):
    torch.manual_seed(0)
    save_pretrained(Llama3Model(TextConfig.tiny(vocab_size=256)), tmp_path / "m")
    byte_tokenizer(AddedToken("[PAD]", special=special), AddedToken("<extra>", special=special)).save(
        str(tmp_path / "m" / "tokenizer.json"))  # fmt: skip
    model, tokenizer = from_pretrained(tmp_path / "m")
    assert tokenizer.vocab_size == 258 and model.cfg.vocab_size == 256
    assert model(torch.tensor([tokenizer.encode("Hi")])).isfinite().all()
    with pytest.raises(InputError, match="token id 256 is outside the vocabulary of 256"):
        model(torch.tensor([tokenizer.encode("[PAD]", allowed_special="all")]))


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    save_pretrained(Llama3Model(TextConfig.tiny(vocab_size=255)), tmp_path / "m")
    byte_tokenizer(AddedToken("[PAD]", special=True)).save(str(tmp_path / "m" / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="257 tokens, the model 255: they do not belong together"):
        from_pretrained(tmp_path / "m")


@torch.no_grad()
def test_a_multimodal_model_keeps_a_head_of_its_own_and_its_configs_dtype(tmp_path):
    torch.manual_seed(0)
    model = MultimodalLlama(MultimodalConfig.tiny()).eval()
    save_pretrained(model, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    head = tensors["model.embed_tokens.weight"] * 2
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}
    save_file({**tensors, "lm_head.weight": head}, file, metadata={"format": "pt"})
    again, _ = from_pretrained(tmp_path / "m")
    assert torch.equal(again.lm_head.weight, head) and not again.cfg.tie_embeddings
    assert not again.full_config.text.tie_embeddings
    ids = torch.arange(9)[None]
    assert torch.allclose(again(ids), 2 * model(ids), atol=1e-5)
