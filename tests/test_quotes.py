"""Every public definition that a lesson teaches stands in exactly one lesson, or here with the reason why not."""

import ast
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from llamamm.course.sync import quoting_cells

ROOT = Path(__file__).parent.parent
# `weights.hub` is told in prose: it arranges another library's calls
TAUGHT = [
    "tokenizer", "tokenizer_files", "chat", "layers", "rope", "masks", "attention", "cache", "config", "model",
    "weights.tensors", "weights.checkpoint", "weights.names", "weights.loading", "weights.saving", "weights.gguf",
    "locate", "pretrained", "sampling", "generate", "session", "lora", "wiring", "adapters", "losses", "data",
    "data_files", "train.config", "train.optim", "train.loop", "train.log", "train.checkpoint", "train.run",
    "tower_config", "encoder", "vision", "images", "image_processor", "towers", "weights.tower_names", "contrastive",
    "pictures", "retrieval", "waves", "mel", "audio", "spoken", "word_recognition",
    "mllama_config", "tiled_vision", "mllama", "tile_processor", "mllama_processor", "mllama_memory",
    "weights.mllama_names", "weights.mllama_loading", "fusion", "cross_attention", "fusion_experiment", "prompts",
    "multimodal_config", "multimodal", "multimodal_processor", "multimodal_data", "multimodal_training", "questions",
]  # fmt: skip

# module: {name: why no lesson quotes it}
IN_WORDS = "explained in the lesson's prose"
TOO_LONG = "too long for a cell; built in small"
CONSTANT = "a constant, named in prose"
PIECE = "a piece of what is quoted"
PROTOCOL = "a protocol for type checkers"
USED = "used in the lesson, not built"
TYPE_NAME = "a type's name, for checkers"
RECORD = "a plain record of fields"
NOT_QUOTED: dict[str, dict[str, str]] = {
    "tokenizer": {
        "Tokenizer": TOO_LONG, "META_MAX_CHARS": CONSTANT, "META_MAX_RUN": CONSTANT, "MAX_WHITESPACE_RUN": CONSTANT,
    },
    "tokenizer_files": {
        "TokenizerFile": "a plain record of fields", "read_tokenizer_file": IN_WORDS, "PRE_TOKENIZERS": CONSTANT,
        "META_BASE_TOKENS": CONSTANT, "META_SPECIAL_TOKENS": CONSTANT, "REMEDY": CONSTANT,
    },
    "chat": {"encode_content": PIECE},
    "config": {
        "TextConfig": TOO_LONG, "LLAMA32_CONFIG": CONSTANT, "LLAMA32_3B_CONFIG": CONSTANT, "SMOLLM2_CONFIG": CONSTANT,
        "OUTLINE_NAMES": CONSTANT,
    },
    "model": {"Llama3Model": TOO_LONG},
    "weights.checkpoint": {
        "open_checkpoint": IN_WORDS, "check_shard_name": IN_WORDS, "INDEX_FILE": CONSTANT, "SINGLE_FILE": CONSTANT,
        "MAX_HEADER_BYTES": CONSTANT, "DTYPES": CONSTANT,
    },
    "weights.loading": {"M": "a type's variable, for checkers", "only_dtype": PIECE},
    "weights.names": {"META_NAMES": "shown as a table", "GGUF_NAMES": "shown as a table"},
    "weights.saving": {
        "Saveable": PROTOCOL, "write_config": IN_WORDS, "write_weights": IN_WORDS, "write_model": PIECE,
        "hf_state_dict": PIECE, "refuse_foreign_files": PIECE,
    },
    "weights.gguf": {"GGUFFile": TOO_LONG, "convert_gguf": IN_WORDS},
    "locate": {"locate": IN_WORDS},
    "pretrained": {"load_tokenizer": IN_WORDS, "read_config": IN_WORDS},
    "sampling": {"SamplingConfig": "settings with checks of their range"},
    "generate": {
        "TokenStream": TOO_LONG, "TextStream": TOO_LONG, "CausalLM": PROTOCOL, "Decoder": PROTOCOL,
        "StreamingTokenizer": PROTOCOL,
    },
    "session": {"ChatSession": "used in lesson 08, not built"},
    "lora": {
        "LoraLinear": TOO_LONG, "ATTENTION_TARGETS": CONSTANT, "FEED_FORWARD_TARGETS": CONSTANT,
        "ALL_TARGETS": CONSTANT, "DEFAULT": CONSTANT, "delete_adapter": IN_WORDS, "remove_lora": PIECE,
        "adapter_names": PIECE, "plain_state_dict": PIECE, "check_adapter_name": PIECE,
    },
    "adapters": {
        "CONFIG_FILE": CONSTANT, "WEIGHTS_FILE": CONSTANT, "PREFIX": CONSTANT, "SUFFIXES": CONSTANT,
        "SAMPLES": CONSTANT, "HARMLESS": CONSTANT, "write_adapter": PIECE, "read_settings": PIECE,
        "read_adapter_config": PIECE, "active_adapter": PIECE,
    },
    "data": {
        "Batch": "a plain record of tensors", "Batches": TOO_LONG, "encode_record": IN_WORDS,
        "END_OF_TEXT": CONSTANT, "END_OF_TURN": CONSTANT,
    },
    "data_files": dict.fromkeys(("open_documents", "JsonLines", "Paragraphs"), "used in lesson 10: reading of files"),
    "train.config": {"TrainConfig": "a table of settings", "explain_keys": "the text of a command's help"},
    "train.loop": {
        "Trainer": "too long for a cell; its update is printed", "Saver": PROTOCOL, "Sampler": PROTOCOL,
        "resolve_precision": PIECE, "seed_everything": PIECE, "checkpoint_activations": PIECE,
    },
    "train.log": {
        **dict.fromkeys(("RunLog", "read_metrics", "smooth"), "used in lesson 10: writing down"),
        "plot_run": "a picture of a run", **dict.fromkeys(("BLUE", "ORANGE", "GREY"), "a colour of a picture"),
    },
    "train.checkpoint": {
        **dict.fromkeys(("FolderSaver", "load_training", "load_weights", "training_state", "random_state",
                         "set_random_state", "read_state", "optimizer_tensors", "parameter_tensors"), IN_WORDS),
        **dict.fromkeys(("OPTIMIZER_FILE", "STATE_FILE", "MOMENTS"), CONSTANT),
    },
    "tower_config": {
        **dict.fromkeys(("EncoderConfig", "VisionConfig", "AudioConfig"), "settings, shown as a table"),
        "ACTIVATION_NAMES": CONSTANT,
    },
    "encoder": {
        "Encoder": "a loop over the blocks", "MLP": PIECE, "LayerScale": PIECE,
        "init_weights": "small random starting weights",
    },
    "vision": {"VisionTower": TOO_LONG, "AttentionPool": "told in a table's column"},
    "images": {"load_image": IN_WORDS, "image_tensor": IN_WORDS, "FORMATS": CONSTANT, "CHANNELS": CONSTANT,
               "ImageLike": TYPE_NAME},
    "image_processor": {
        "ImageProcessor": TOO_LONG,
        **dict.fromkeys(("CLIP_MEAN", "CLIP_STD", "IMAGENET_MEAN", "IMAGENET_STD", "HALF"), CONSTANT),
        "MAX_RESIZED_PIXELS": CONSTANT,
    },
    "towers": {
        **dict.fromkeys(("load_vision_tower", "load_image_processor", "load_audio_encoder"), USED), "M": TYPE_NAME,
    },
    "weights.tower_names": {"vision_names": USED, "audio_names": USED},
    "contrastive": {
        "siglip_loss": "written by the learner, exercise 4", "TextTower": USED, "train_two_towers": USED,
        "split_words": PIECE, "moved": PIECE, "Number": TYPE_NAME, "Loss": TYPE_NAME,
        **dict.fromkeys(("LOSSES", "SMALL_TEXT", "SMALL_VISION"), CONSTANT),
    },
    "pictures": {
        "Pictures": RECORD, "load_pictures": USED, "Record": TYPE_NAME,
        **dict.fromkeys(("SIZE", "FILES", "NEW", "UNFIT", "COPY", "CREDIT"), CONSTANT),
        **dict.fromkeys(("read_names", "plain_name", "family", "split_of", "render", "read_pictures", "write_pictures"),
                        "making of the data set"),
    },
    "retrieval": {
        "AT": CONSTANT, "Recall": RECORD, "Retrieval": RECORD, "recall_of": USED, "measure_retrieval": USED,
    },
    "waves": {
        **dict.fromkeys(("load_wave", "save_wave", "to_wave", "resample"), "used in lesson 12; reading of files"),
        **dict.fromkeys(("BLOCK", "EXTENSIBLE", "FLOAT", "MAX_CHANNELS", "MAX_RATE", "MAX_SECONDS", "MIN_RATE", "PCM",
                         "RATE", "TOO_LOUD"), CONSTANT),
    },
    "mel": {
        "split_wave": IN_WORDS,
        **dict.fromkeys(("HOP", "HZ_PER_MEL", "LINEAR_HZ", "LINEAR_MEL", "LOG_STEP", "MAX_FRAMES", "MAX_POSITIONS",
                         "MAX_SAMPLES", "N_BINS", "N_FFT", "SAMPLES_PER_POSITION"), CONSTANT),
    },
    "audio": {"encode_wave": "a loop over pieces of a recording"},
    "spoken": {
        **dict.fromkeys(("Clip", "Recording", "Words"), RECORD),
        **dict.fromkeys(("load_words", "load_recordings"), USED),
        **dict.fromkeys(("cut", "read_digits", "read_recordings", "requests", "speak", "to_waves", "trimmed",
                         "write_words"), "making of the data set"),
        **dict.fromkeys(("ACCENTS", "BATCH", "CREDIT", "CUTS", "FILES", "MARGIN", "PITCHES", "POCKETSPHINX", "QUIET",
                         "RECORDINGS", "SETS", "SPEAK_SECONDS", "SPEEDS", "TAKES", "TEST_VOICES", "TRAIN_VOICES",
                         "WORDS"), CONSTANT),
    },
    "word_recognition": {
        **dict.fromkeys(("WordClassifier", "clip_features", "random_encoder"), "used in lesson 12; one linear layer"),
        **dict.fromkeys(("Guess", "Heard", "Mistake", "WordsHeard"), RECORD), "measure_words": "what the command calls",
        **dict.fromkeys(("BATCH", "SHOWN", "TITLES"), CONSTANT),
    },
    "train.run": {
        **dict.fromkeys(("run_training", "make_trainer"), "used in lesson 10, not built"), "DEFAULT_MODEL": CONSTANT,
        **dict.fromkeys(("load_model", "open_data", "make_batches", "make_sampler", "note_precision"), PIECE),
    },
    "mllama_config": {
        "MllamaConfig": TOO_LONG, "TiledVisionConfig": TOO_LONG, "ASPECT_RATIOS": CONSTANT,
        "EXTRA_EMBEDDINGS": CONSTANT,
    },
    "tiled_vision": {"TiledVisionTower": TOO_LONG, "MULTIPLE": CONSTANT},
    "mllama": {"MllamaModel": TOO_LONG, "TiledImages": RECORD},
    "tile_processor": {"TileProcessor": TOO_LONG, "aspect_ratios": "a list that stands in the prose"},
    "mllama_processor": {
        "MllamaProcessor": USED, "collate_images": PIECE, "IMAGE_NAME": CONSTANT, "PREPROCESSOR": CONSTANT,
        "BOTH": CONSTANT,
    },
    "mllama_memory": {
        "memory_plan": "sums of products; three computed by hand", "MemoryPlan": RECORD, "FP32": CONSTANT,
    },
    "weights.mllama_loading": {"build_mllama": "three lines around lesson 07's fill"},
    "fusion": {"make_projector": PIECE},
    "cross_attention": {"KeysValues": TYPE_NAME},
    "fusion_experiment": {
        "Way": RECORD, **dict.fromkeys(("compare", "comparison", "reading_model"), USED),
        "run_comparison": "what the command calls",
    },
    "prompts": {
        **dict.fromkeys(("Image", "Sound", "Prompt"), RECORD), **dict.fromkeys(("Part", "Messages"), TYPE_NAME),
        "Processor": PROTOCOL, **dict.fromkeys(("TextProcessor", "as_processor", "on_device"), IN_WORDS),
        "pad_right": PIECE,
    },
    "multimodal_config": {
        **dict.fromkeys(("BridgeConfig", "MultimodalConfig"), "settings with checks of their range"),
        **dict.fromkeys(("PROJECTORS", "MODEL_TYPE"), CONSTANT),
    },
    "multimodal": {"MultimodalLlama": TOO_LONG, "Media": RECORD, "Features": RECORD, "Tokens": TYPE_NAME},
    "multimodal_processor": {
        "MultimodalProcessor": TOO_LONG, **dict.fromkeys(("make_media", "join_media"), PIECE), "PREPROCESSOR": CONSTANT,
    },
    "multimodal_data": {
        **dict.fromkeys(("Item", "Task", "Tasks"), RECORD),
        **dict.fromkeys(("CAPTION", "WORD", "ANY", "SPECIAL", "VERSIONS", "BATCH"), CONSTANT),
        **dict.fromkeys(("load_tasks", "question_items", "caption_items", "word_items", "both_items", "describe",
                         "picture_features", "sound_features", "train_tokenizer", "texts_of",
                         "encode_conversation"), USED),
        "epochs": PIECE,
    },
    "multimodal_training": {
        **dict.fromkeys(("Stage", "Towers", "Score", "Trained"), RECORD),
        **dict.fromkeys(("SIDE", "VOCAB", "SHARES", "BLIND"), CONSTANT),
        **dict.fromkeys(("stages", "load_towers", "small_config", "count_right", "misled", "measure", "controls",
                         "baselines", "table", "train_small"), USED),
        "measure_saved": "what the command calls",
    },
    "questions": {
        "Questions": RECORD, **dict.fromkeys(("load_questions", "majority", "text_only_best", "write_questions"), USED),
        **dict.fromkeys(("SIZE", "SIDES", "FILES", "SHAPES", "COLOURS", "YES_NO", "ANSWERS", "CREDIT"), CONSTANT),
    },
}  # fmt: skip


def public_definitions(module):
    path = ROOT / "llamamm" / (module.replace(".", "/") + ".py")
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return {name for name in names if not name.startswith("_")}


def quoted():
    """(module, name) -> how many cells quote it."""
    counts = Counter()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell, module in quoting_cells(nbformat.read(path, as_version=4)):
            for node in ast.parse(cell["source"]).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    counts[module.removeprefix("llamamm."), node.name] += 1
                elif isinstance(node, ast.Assign | ast.AnnAssign):
                    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                    counts[module.removeprefix("llamamm."), ast.unparse(target)] += 1
    return counts


@pytest.mark.parametrize("module", TAUGHT)
def test_every_public_definition_is_quoted_once_or_excused(module):
    counts = quoted()
    excused = NOT_QUOTED.get(module, {})
    names = public_definitions(module)
    assert {n for n in names if counts[module, n] == 0} == set(excused), "missing, or excused in vain"
    assert [n for n in names if counts[module, n] > 1] == [], "quoted twice"
    assert all(len(re.findall(r"\w+", reason)) >= 3 for reason in excused.values())
