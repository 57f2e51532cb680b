"""Folders of Llama 3.2 Vision: transformers' load here and ours there with equal logits; faults are named; memory."""

import json
import logging
import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText, MllamaForConditionalGeneration, MllamaTextConfig
from transformers import MllamaConfig as HFConfig
from transformers import MllamaVisionConfig as HFVisionConfig

from llamamm import Llama3Model, TextConfig, apply_lora, from_pretrained, merge_lora, save_pretrained
from llamamm.errors import CheckpointError, ConfigError, InputError
from llamamm.generation.prompts import Image
from llamamm.llama32_vision.config import MllamaConfig
from llamamm.llama32_vision.model import MllamaModel, TiledImages
from llamamm.llama32_vision.processor import MllamaProcessor
from llamamm.llama32_vision.tiles import TileProcessor
from llamamm.weights.checkpoint import INDEX_FILE, open_checkpoint
from llamamm.weights.saving import write_weights
from tests.processes import finish

IMAGE = 512
SHARD = 200_000  # bytes: seven shards


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    vision = HFVisionConfig(hidden_size=32, num_hidden_layers=4, num_global_layers=2, attention_heads=4, image_size=28,
                            intermediate_size=64, vision_output_dim=96, patch_size=7,
                            intermediate_layers_indices=[1, 2])  # fmt: skip
    text = MllamaTextConfig(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
                            num_attention_heads=4, num_key_value_heads=2, cross_attention_layers=[1, 3],
                            max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                            rope_parameters={"rope_type": "default", "rope_theta": 10000.0})  # fmt: skip
    model = MllamaForConditionalGeneration(
        HFConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    ).eval()
    for parameter in model.parameters():  # gates and biases too
        torch.nn.init.normal_(parameter, std=0.15)
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder, max_shard_size=f"{SHARD // 1000}KB")
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """A folder that may be spoilt."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def prompts(image_token=IMAGE):
    """Two prompts, words first, then two images each."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 500, (2, 12), generator=generator)
    ids[:, 2] = ids[:, 5] = image_token
    images = TiledImages(torch.randn(2, 2, 4, 3, 28, 28, generator=generator), torch.tensor([[6, 2], [1, 3]]),
                         torch.tensor([[4, 2], [1, 3]]))  # fmt: skip
    return ids, images


@torch.no_grad()
def reference(model, ids, images):
    sees = torch.zeros(2, 12, 2, 4, dtype=torch.int64)
    tiles = (torch.arange(4) < images.n_tiles[..., None]).long()  # (B, I, t)
    sees[:, 2:5, 0] = tiles[:, None, 0]
    sees[:, 5:, 1] = tiles[:, None, 1]
    return model(input_ids=ids, pixel_values=images.pixels, aspect_ratio_ids=images.aspect_ratio_ids,
                 aspect_ratio_mask=tiles, cross_attention_mask=sees).logits  # fmt: skip


@torch.no_grad()
def difference(ours, theirs, image_token=IMAGE):
    ids, images = prompts(image_token)
    return (ours(ids, images=images) - reference(theirs, ids, images)).abs().max()


# ---- theirs, read here ----


def test_a_folder_of_transformers_gives_its_logits(theirs, folder):
    assert len(list(folder.glob("*.safetensors"))) > 3
    ours, processor = from_pretrained(folder, like_transformers=True)
    assert isinstance(ours, MllamaModel) and processor is None and not ours.training
    assert all(p.requires_grad for p in ours.parameters())
    assert difference(ours, theirs) < 1e-4


def test_both_spellings_of_names_are_read(theirs, copy):
    """On disk stand the Hub's names; transformers 5 has others in memory, which other programs may have saved."""
    names = set(json.loads((copy / INDEX_FILE).read_text())["weight_map"])
    assert "language_model.model.layers.1.cross_attn.q_proj.weight" in names
    state = theirs.state_dict()
    assert "model.language_model.layers.1.cross_attn.q_proj.weight" in state
    for file in copy.glob("*.safetensors*"):
        file.unlink()
    write_weights(state, copy, max_shard_bytes=SHARD)
    assert difference(from_pretrained(copy, like_transformers=True)[0], theirs) < 1e-4


@torch.no_grad()
def test_without_asking_it_is_metas_reading(theirs, folder):
    ours, _ = from_pretrained(folder)
    assert not ours.vision_model.after_blocks
    assert not any(layer.blind_rows_attend for layer in ours.layers if hasattr(layer, "blind_rows_attend"))
    assert difference(ours, theirs) > 1e-2
    ids, _ = prompts(image_token=7)
    assert (ours(ids) - theirs(input_ids=ids).logits).abs().max() < 1e-4  # words alone are the same in both


def test_like_transformers_is_for_this_family_alone(tmp_path):
    save_pretrained(Llama3Model(TextConfig.tiny()), tmp_path / "m")
    with pytest.raises(InputError, match="Llama 3.2 Vision.*'llama'"):
        from_pretrained(tmp_path / "m", like_transformers=True)


def test_dtype_is_the_files_own_unless_asked(folder):
    model, _ = from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} == {model.cfg.dtype, model.mllama_cfg.text.dtype}
    assert from_pretrained(folder)[0].cfg.dtype == torch.float32
    ids, images = prompts()
    assert model(ids, images=images).isfinite().all()


# ---- ours, read there ----


def test_transformers_loads_what_is_saved_here(folder, theirs, tmp_path):
    ours, _ = from_pretrained(folder, like_transformers=True)
    save_pretrained(ours, tmp_path / "m", max_shard_bytes=SHARD)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    logging.disable(logging.WARNING)  # it says that Llama 3's bos is beyond this vocabulary
    try:
        back, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "m", output_loading_info=True)
    finally:
        logging.disable(logging.NOTSET)
    assert isinstance(back, MllamaForConditionalGeneration)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = theirs.state_dict()
    assert {name: torch.equal(t, state[name]) for name, t in back.state_dict().items()} == dict.fromkeys(state, True)
    assert difference(ours, back.eval()) < 1e-4


def test_saved_and_loaded_is_the_same(folder, tmp_path):
    ours, _ = from_pretrained(folder, dtype=torch.bfloat16)
    save_pretrained(ours, tmp_path / "m", max_shard_bytes=SHARD)
    again, _ = from_pretrained(tmp_path / "m")
    state = ours.state_dict()
    assert again.mllama_cfg == ours.mllama_cfg
    assert {name: torch.equal(t, state[name]) for name, t in again.state_dict().items()} == dict.fromkeys(state, True)


def test_the_configuration_names_the_dtype_of_the_weights(folder, tmp_path):
    save_pretrained(from_pretrained(folder)[0].to(torch.bfloat16), tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@torch.no_grad()
def test_words_and_images_from_folder_to_logits(smollm2, tmp_path):
    torch.manual_seed(0)
    _, tokenizer = smollm2
    text = TextConfig.tiny(vocab_size=49_152, n_layers=4, tie_embeddings=False, dtype=torch.bfloat16)
    model = MllamaModel(MllamaConfig.tiny(text=text, image_token=49_152)).eval()
    save_pretrained(model, tmp_path / "m", processor=MllamaProcessor(tokenizer, TileProcessor(28), 49_152))
    assert {"preprocessor_config.json", "tokenizer.json"} <= {f.name for f in (tmp_path / "m").iterdir()}
    again, processor = from_pretrained(tmp_path / "m")
    picture = torch.full((3, 40, 90), 200, dtype=torch.uint8)
    messages = [{"role": "user", "content": [Image(picture), "What is this?"]}]
    ids, padding, inputs = processor.batch([processor.chat(messages)])
    assert torch.equal(again(ids, padding=padding, **inputs), model(ids, padding=padding, **inputs))
    stop = json.loads((tmp_path / "m" / "generation_config.json").read_text())["eos_token_id"]
    assert stop == sorted(tokenizer.stop_ids) == sorted(processor.stop_ids)


def test_a_merged_adapter_is_saved_and_an_open_one_refused(folder, tmp_path):
    model, _ = from_pretrained(folder)
    torch.manual_seed(0)
    apply_lora(model, r=2, alpha=4, targets=("q_proj",))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    ids, images = prompts()
    with pytest.raises(CheckpointError, match="not merged"):
        save_pretrained(model, tmp_path / "m")
    merge_lora(model)
    save_pretrained(model, tmp_path / "m")
    with torch.no_grad():
        merged = model(ids, images=images)
        assert (from_pretrained(tmp_path / "m")[0](ids, images=images) - merged).abs().max() < 1e-5
        assert (from_pretrained(folder)[0](ids, images=images) - merged).abs().max() > 1e-2


def test_one_of_tokenizer_and_processor(folder, llama, tmp_path):
    model, _ = from_pretrained(folder)
    with pytest.raises(InputError, match="a tokenizer or a processor"):
        save_pretrained(model, tmp_path / "m", tokenizer=llama, processor=MllamaProcessor(llama, TileProcessor(28), 5))
    assert not (tmp_path / "m").exists()


# ---- faults ----


def test_tensors_that_do_not_fit_are_listed(copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 5, "intermediate_size": 99}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"(?s)\(128, 64\), the model \(99, 64\).*missing \(9\)"):
        from_pretrained(copy)


def test_unknown_tensors_are_named_as_in_the_file(copy):
    tensors = {name: ref.read() for name, ref in open_checkpoint(copy).items()}
    for file in copy.glob("*.safetensors*"):
        file.unlink()
    write_weights({**tensors, "vision_model.transformer.layers.9.mlp.fc1.bias": torch.zeros(64)}, copy)
    with pytest.raises(CheckpointError, match=r"(?s)unexpected \(1\):\n +vision_model.transformer.layers.9.mlp.fc1"):
        from_pretrained(copy)


def test_a_tied_head_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="8 rows more than the 512"):
        from_pretrained(copy)


def test_small_files_are_checked_before_the_weights_are_read(copy, smollm2, monkeypatch):
    monkeypatch.setattr("llamamm.pretrained.load.build_mllama", None)
    smollm2[1].save(copy)
    with pytest.raises(CheckpointError, match="49152 tokens, the model 520"):
        from_pretrained(copy)
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["vocab_size"] = 49_144  # with its eight rows more just enough
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no preprocessor_config.json.* a model that reads images"):
        from_pretrained(copy)


# ---- memory ----


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory_is_the_weights_and_one_tensor(tmp_path):
    """A model of 188 MB in shards of 40 MB: at most the weights, its largest tensor, and a little."""
    text = TextConfig.tiny(vocab_size=16_000, hidden_size=512, intermediate_size=2048, n_layers=8, tie_embeddings=False,
                           n_heads=8)  # fmt: skip
    model = MllamaModel(MllamaConfig.tiny(text=text, image_token=16_000))
    save_pretrained(model, tmp_path / "m", max_shard_bytes=40_000_000)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) >= 5
    script = f"""
import torch._dynamo  # PyTorch does so itself at the first product on the meta device: 160 MB of code, no weights
from llamamm import from_pretrained
def kilobytes(name):  # not of `resource`, whose peak begins with that of the program which starts this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
before = kilobytes("VmRSS")
model, _ = from_pretrained({str(tmp_path / "m")!r}, progress=False)
sizes = [p.nbytes for p in model.parameters()]
print((kilobytes("VmHWM") - before) * 1024, sum(sizes), max(sizes))
"""
    done = finish([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr
    growth, weights, largest = map(int, done.stdout.split())
    assert weights == 4 * model.n_parameters() > 180_000_000
    assert weights <= growth <= weights + largest + 25_000_000, f"{growth / weights:.2f} x"
