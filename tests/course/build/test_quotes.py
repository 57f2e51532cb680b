"""Every public definition that a lesson teaches stands in exactly one lesson, or here with the reason why not."""

import ast
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from llamamm.course.build.sync import quoting_cells

ROOT = Path(__file__).parents[3]
# `weights.hub` is told in prose: it arranges another library's calls
TAUGHT = [
    "text.tokenizer", "text.tokenizer_files", "text.chat", "text.layers", "text.rope", "text.masks", "text.attention",
    "text.cache", "text.config", "text.model", "weights.tensors", "weights.checkpoint", "weights.names",
    "weights.loading", "weights.saving", "pretrained.save", "weights.gguf", "pretrained.locate", "pretrained.load",
    "generation.sampling", "generation.generate", "generation.session", "lora.settings", "lora.lora", "wiring",
    "lora.adapter_files",
    "train.losses", "train.rows", "train.batches", "train.documents", "train.config", "train.optim",
    "train.rate_finder", "train.loop", "train.log",
    "train.checkpoint", "train.run", "senses.config", "senses.encoder", "senses.vision", "senses.images",
    "senses.image_processor", "pretrained.towers", "weights.tower_names", "senses.contrastive",
    "experiments.retrieval", "assets.openmoji", "assets.openmoji_groups", "senses.waves", "senses.mel", "senses.audio",
    "senses.whisper_decoder", "generation.transcribe", "assets.spoken_words",
    "experiments.word_recognition", "llama32_vision.config", "llama32_vision.tower", "llama32_vision.model",
    "llama32_vision.tiles", "llama32_vision.processor", "llama32_vision.memory", "weights.mllama_names",
    "multimodal.bridge", "multimodal.cross_attention", "multimodal.places", "experiments.fusion_ways",
    "experiments.fusion_record", "experiments.fusion_looks",
    "generation.prompts", "multimodal.config", "multimodal.model", "multimodal.processor", "tasks.items",
    "tasks.senses", "train.media_rows", "train.tokenizer", "train.stages", "evals.senses",
    "experiments.small_multimodal", "assets.easy_vqa", "experiments.drawn_shapes", "evals.seen_tokens",
    "experiments.receipts", "multimodal.compact", "train.alignment", "train.preference", "pretrained.compose",
    "pretrained.skill", "train.features", "evals.perplexity", "evals.likelihood", "evals.transcripts",
    "evals.normaliser", "evals.captions", "evals.intervals", "tasks.choices", "assets.multiple_choice",
    "assets.refusals", "train.seen", "safety.measures", "safety.baselines", "safety.template", "safety.guard",
    "generation.guarded", "fast.quantized", "generation.speculation", "experiments.two_processes",
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
    "text.layers": dict.fromkeys(("Linear", "few_rows_linear"), "speed: lesson 19"),
    "text.tokenizer": {
        **dict.fromkeys(("META_MAX_CHARS", "META_MAX_RUN", "MAX_WHITESPACE_RUN", "MAX_ID", "ADDED_KEYS"), CONSTANT),
        "Tokenizer": TOO_LONG,
    },
    "text.tokenizer_files": {
        **dict.fromkeys(("PRE_TOKENIZERS", "META_BASE_TOKENS", "META_SPECIAL_TOKENS"), CONSTANT),
        "TokenizerFile": RECORD,
        "read_tokenizer_file": IN_WORDS,
    },
    "text.chat": {
        "encode_content": PIECE,
        "AnyChat": TYPE_NAME,
        "TemplateChat": IN_WORDS,
    },
    "text.rope": {"compute_rope_params": "the lesson's own tables, all positions"},
    "text.config": {
        **dict.fromkeys(("OUTLINE_NAMES", "LLAMA32_CONFIG", "LLAMA32_3B_CONFIG", "SMOLLM2_CONFIG"), CONSTANT),
        "TextConfig": TOO_LONG,
    },
    "text.masks": {
        "causal_mask": "what exercise 03.2 builds",
        "build_mask": "exercise 03.4, with checks of its arguments",
    },
    "text.model": {
        "Llama3Model": TOO_LONG,
        "Stepper": PROTOCOL,
    },
    "weights.checkpoint": {
        **dict.fromkeys(("INDEX_FILE", "SINGLE_FILE", "MAX_HEADER_BYTES", "DTYPES"), CONSTANT),
        **dict.fromkeys(("open_checkpoint", "check_shard_name"), IN_WORDS),
        "InFile": PIECE,
    },
    "weights.names": {
        **dict.fromkeys(("META_NAMES", "GGUF_NAMES"), "shown as a table"),
        "without_wrappers": PIECE,
    },
    "weights.loading": {
        "M": "a type's variable, for checkers",
        **dict.fromkeys(("only_dtype", "choose_dtype", "has_own_head"), PIECE),
    },
    "weights.saving": {
        **dict.fromkeys(("write_config", "write_weights"), IN_WORDS),
        "refuse_foreign_files": PIECE,
    },
    "pretrained.save": {
        "Saveable": PROTOCOL,
        **dict.fromkeys(("write_model", "hf_state_dict"), PIECE),
    },
    "weights.gguf": {
        "GGUFFile": TOO_LONG,
        "gguf_package": PIECE,
        "convert_gguf": IN_WORDS,
    },
    "pretrained.locate": {
        **dict.fromkeys(("DEFAULT_MODEL", "BUILT_IN", "EXAMPLE_PICTURE", "EXAMPLE_SOUND"), CONSTANT),
        "locate": IN_WORDS,
        "locate_config": "the small half of locate",
        "HubOptions": TYPE_NAME,
    },
    "pretrained.load": {
        **dict.fromkeys(("load_tokenizer", "read_config"), IN_WORDS),
        "build_mllama": "three lines around lesson 07's fill",
        **dict.fromkeys(("is_text_model", "open_text"), "for many processes: lesson 19"),
    },
    "generation.sampling": {
        "SamplingConfig": "settings with checks of their range",
    },
    "generation.generate": {
        **dict.fromkeys(("CausalLM", "Decoder", "StreamingTokenizer"), PROTOCOL),
        **dict.fromkeys(("TokenStream", "TextStream"), TOO_LONG),
    },
    "generation.session": {
        "ChatSession": "used in lesson 08, not built",
    },
    "lora.settings": {
        **dict.fromkeys(("ATTENTION_TARGETS", "FEED_FORWARD_TARGETS", "ALL_TARGETS"), CONSTANT),
        "LoraSettings": "settings with checks of their range",
    },
    "lora.lora": {
        "DEFAULT": CONSTANT,
        "LoraLinear": TOO_LONG,
        **dict.fromkeys(("delete_adapter", "apply_lora", "set_lora_enabled"), IN_WORDS),
        **dict.fromkeys(("merge_lora", "unmerge_lora"), "exercise 09.4 for each wrapper, with a check for NaN"),
        **dict.fromkeys(("remove_lora", "adapter_names", "plain_state_dict", "check_adapter_name"), PIECE),
    },
    "wiring": {
        "find_linears": IN_WORDS,
        "put_module": PIECE,
    },
    "lora.adapter_files": {
        **dict.fromkeys(("WEIGHTS_FILE", "PREFIX", "SUFFIXES", "SAMPLES"), CONSTANT),
        **dict.fromkeys(("write_adapter", "active_adapter", "note_base", "require_same_base"), PIECE),
        **dict.fromkeys(("save_adapter", "load_adapter"), "used in lesson 09: format of files"),
    },
    "train.losses": {
        **dict.fromkeys(("IGNORE", "CHUNK_BYTES", "MIN_CHUNK"), CONSTANT),
        "plain_cross_entropy_sum": "one line, as in exercise 10.3",
        "cross_entropy_sum": "the same a few rows at a time, with checks of its arguments",
    },
    "train.rows": {
        **dict.fromkeys(("END_OF_TEXT", "END_OF_TURN"), CONSTANT),
        "Example": RECORD,
        **dict.fromkeys(("encode_text", "encode_dialogue", "encode_record"), IN_WORDS),
    },
    "train.batches": {
        **dict.fromkeys(("Media", "Row"), CONSTANT),
        **dict.fromkeys(("fill", "places_of", "turns", "fault_at"), PIECE),
        "Batch": "a plain record of tensors",
        "Batches": TOO_LONG,
    },
    "train.documents": {
        **dict.fromkeys(("open_documents", "JsonLines", "JsonList", "Paragraphs"), "used in lesson 10: reading files"),
        "METADATA": CONSTANT,
        "place_of": "where a record stands, for errors",
    },
    "train.config": {
        **dict.fromkeys(("TrainConfig", "Source"), "a table of settings"),
        "explain_keys": "the text of a command's help",
    },
    "train.optim": {
        "learning_rate": "exercise 10.6, and two more schedules",
        "make_optimizer": "PyTorch's own; its step is exercise 10.5, its two groups a line of the bare loop",
    },
    "train.rate_finder": {"find_learning_rate": USED},
    "train.loop": {
        **dict.fromkeys(("Saver", "Sampler", "AnyBatch", "BatchStream"), PROTOCOL),
        "Trainer": "too long for a cell; a bare loop takes the same steps",
        "Objective": "used in the lesson; the model's scores, and their loss",
        **dict.fromkeys(("resolve_precision", "checkpoint_activations"), PIECE),
    },
    "train.log": {
        **dict.fromkeys(("RunLog", "read_metrics", "smooth"), "used in lesson 10: writing down"),
        **dict.fromkeys(("EVERY", "duration"), "lines of progress"),
        "plot_run": "a picture of a run",
    },
    "train.checkpoint": {
        **dict.fromkeys(("OPTIMIZER_FILE", "STATE_FILE", "MOMENTS", "ADAPTER", "SKILL", "MODEL"), CONSTANT),
        **dict.fromkeys(("FolderSaver", "load_weights", "load_training", "read_state", "training_state",
                         "what_trains", "optimizer_tensors", "parameter_tensors"), IN_WORDS),
    },
    "train.run": {
        **dict.fromkeys(("run_training", "make_trainer"), "used in lesson 10, not built"),
        "ScoreCard": "a type of functions",
    },
    "senses.config": {
        "ACTIVATION_NAMES": CONSTANT,
        **dict.fromkeys(("EncoderConfig", "VisionConfig", "AudioConfig"), "settings, shown as a table"),
    },
    "senses.encoder": {
        **dict.fromkeys(("MLP", "LayerScale"), PIECE),
        "SelfAttention": "lesson 03's attention, without a mask",
        "Encoder": "a loop over the blocks",
        "init_weights": "small random starting weights",
    },
    "senses.vision": {
        "resize_positions": "written by the learner, exercise 3",
        "AttentionPool": "told in a table's column",
        "VisionTower": TOO_LONG,
    },
    "senses.images": {
        **dict.fromkeys(("FORMATS", "CHANNELS", "PNG_START"), CONSTANT),
        "ImageLike": TYPE_NAME,
        **dict.fromkeys(("load_image", "image_tensor"), IN_WORDS),
    },
    "senses.image_processor": {
        **dict.fromkeys(("CLIP_MEAN", "CLIP_STD", "IMAGENET_MEAN", "IMAGENET_STD", "HALF", "MAX_RESIZED_PIXELS"
                        ), CONSTANT),
        "ImageProcessor": TOO_LONG,
    },
    "pretrained.towers": {
        "M": TYPE_NAME,
        **dict.fromkeys(("load_vision_tower", "load_audio_encoder", "load_image_processor", "load_whisper"), USED),
    },
    "weights.tower_names": {
        **dict.fromkeys(("vision_names", "audio_names", "speech_names"), USED),
    },
    "senses.contrastive": {
        **dict.fromkeys(("Number", "LossName", "Loss"), TYPE_NAME),
        **dict.fromkeys(("LOSSES", "SMALL_VISION", "SMALL_TEXT"), CONSTANT),
        "siglip_loss": "written by the learner, exercise 6",
        "recall_at": IN_WORDS,
        "TwoTowers": "two towers, two matrices and a scale, in prose",
        "TextTower": USED,
        "split_words": PIECE,
    },
    "experiments.retrieval": {
        "AT": CONSTANT,
        **dict.fromkeys(("Recall", "Retrieval"), RECORD),
        **dict.fromkeys(("measure_retrieval", "recall_of", "cosines_of", "train_two_towers"), USED),
        **dict.fromkeys(("share_of", "lead_of"), "used in the lesson; lesson 17 has intervals"),
        **dict.fromkeys(("Pairs", "PairStream", "ContrastiveObjective"), "what lesson 10's trainer asks for, of pairs"),
        "moved": PIECE,
    },
    "assets.openmoji": {
        **dict.fromkeys(("SIZE", "FILES", "NEW", "UNFIT", "COPY", "CREDIT"), CONSTANT),
        "Record": TYPE_NAME,
        **dict.fromkeys(("read_names", "plain_name", "family", "split_of", "render", "read_pictures",
                         "write_pictures"), "making of the data set"),
        "Pictures": RECORD,
        "load_pictures": USED,
    },
    "assets.openmoji_groups": {
        "GROUPS": CONSTANT,
        "in_groups": USED,
    },
    "senses.waves": {
        **dict.fromkeys(("RATE", "MAX_SECONDS", "MIN_RATE", "MAX_RATE", "MAX_CHANNELS", "TOO_LOUD"), CONSTANT),
        **dict.fromkeys(("require_not_too_loud", "wav_bytes"), PIECE),
        **dict.fromkeys(("to_wave", "resample", "load_wave", "save_wave"), "used in lesson 12; reading of files"),
    },
    "senses.mel": {
        **dict.fromkeys(("N_FFT", "HOP", "N_BINS", "MAX_SAMPLES", "MAX_FRAMES", "SAMPLES_PER_POSITION",
                         "MAX_POSITIONS", "LINEAR_HZ", "HZ_PER_MEL", "LINEAR_MEL", "LOG_STEP", "PAUSE_WITHIN",
                         "PAUSE_STEP"), CONSTANT),
        **dict.fromkeys(("split_wave", "split_at_pauses"), IN_WORDS),
        "mel_filterbank": "exercise 12.2 on Slaney's edges, with checks of its arguments",
        "log_mel": "built in the lesson out of exercises 12.1 and 12.2; the package's checks its wave",
        "n_frames": "a division, rounded up",
        **dict.fromkeys(("hz_to_mel", "mel_to_hz"), "a formula and its inverse, by hand in the prose"),
        "cut_mel": "two quoted functions in one line",
    },
    "senses.audio": {
        "encode_wave": "a loop over pieces of a recording",
        "sinusoids": "the table of the first Transformer, told in prose",
        "AudioEncoder": "six lines in the lesson; what is more is a mask for batches",
    },
    "senses.whisper_decoder": {
        "WhisperConfig": "settings with checks of their range",
        "Attention": "exercise 12.3, in two steps, so that a cache fits between",
        "DecoderBlock": "exercise 12.4, on a cache",
        "DecoderCache": "lesson 05's cache, with the sound's keys beside it",
        "WhisperDecoder": TOO_LONG,
        "Whisper": "its two halves, one after the other",
    },
    "generation.transcribe": {
        **dict.fromkeys(("NO_SPEECH", "POOR", "SURE", "NO_SPEECH_NAMES"), CONSTANT),
        **dict.fromkeys(("SpeechTokens", "Heard"), RECORD),
        "hear": "exercise 12.5 for many clips at a time",
        **dict.fromkeys(("transcribe", "transcribe_all"), USED),
    },
    "assets.spoken_words": {
        **dict.fromkeys(("WORDS", "TRAIN_VOICES", "TEST_VOICES", "TAKES", "ACCENTS", "SPEEDS", "PITCHES",
                         "POCKETSPHINX", "CUTS", "RECORDINGS", "SETS", "FILES", "MARGIN", "QUIET",
                         "SPEAK_SECONDS", "BATCH", "CREDIT"), CONSTANT),
        **dict.fromkeys(("Clip", "Recording", "Words"), RECORD),
        **dict.fromkeys(("load_words", "load_recordings"), USED),
        **dict.fromkeys(("requests", "speak", "to_waves", "trimmed", "read_digits", "read_recordings", "cut",
                         "write_words"), "making of the data set"),
    },
    "experiments.word_recognition": {
        **dict.fromkeys(("BATCH", "SHOWN", "TITLES"), CONSTANT),
        **dict.fromkeys(("clip_features", "WordClassifier", "random_encoder"), "used in lesson 12; one linear layer"),
        **dict.fromkeys(("Guess", "Misheard", "Heard", "WordsHeard", "Kept"), RECORD),
        "kept_by_layer": USED,
        "measure_words": "what the command calls",
    },
    "llama32_vision.config": {
        **dict.fromkeys(("ASPECT_RATIOS", "EXTRA_EMBEDDINGS"), CONSTANT),
        **dict.fromkeys(("TiledVisionConfig", "MllamaConfig"), TOO_LONG),
    },
    "llama32_vision.tower": {
        "MULTIPLE": CONSTANT,
        "TiledVisionTower": TOO_LONG,
        "TileBlock": "lesson 11's block with two gates",
        "GatedTileEmbedding": "exercise 15.3 as a module",
        "GatedPositionEmbedding": IN_WORDS,
        "tile_mask": "who sees the filling, a detail of the weights",
    },
    "llama32_vision.model": {
        "TiledImages": RECORD,
        "MllamaModel": TOO_LONG,
    },
    "llama32_vision.tiles": {
        "TileProcessor": TOO_LONG,
        "aspect_ratios": "a list that stands in the prose",
    },
    "llama32_vision.processor": {
        **dict.fromkeys(("IMAGE_NAME",), CONSTANT),
        "MllamaProcessor": USED,
        "collate_images": PIECE,
    },
    "llama32_vision.memory": {
        "FP32": CONSTANT,
        "MemoryPlan": RECORD,
        "memory_plan": "sums of products; three computed by hand",
    },
    "multimodal.bridge": {
        "make_projector": PIECE,
        "AUDIO_EPS": CONSTANT,
        **dict.fromkeys(("LinearProjector", "SwiGLUProjector", "PositionTags"), IN_WORDS),
        "PerceiverBlock": "what exercise 13.4 builds, with heads and norms",
        "PerceiverResampler": "a loop over the blocks",
        "Bridge": TOO_LONG,
    },
    "multimodal.cross_attention": {
        "KeysValues": TYPE_NAME,
        "CrossAttentionBlock": "too long for a cell; put into the real model",
        "CrossAttentionCache": "lesson 05's cache, with a memory's keys and values",
    },
    "multimodal.places": {
        "image_spans": IN_WORDS, "require_matching": IN_WORDS,
        "pad_right": PIECE,
    },
    "experiments.fusion_ways": {
        "Way": RECORD,
        **dict.fromkeys(("WAYS", "READ_RATE"), CONSTANT),
        **dict.fromkeys(("text_shape", "fusion_tasks", "build_way", "compare", "reading_model"), USED),
    },
    "experiments.fusion_record": {
        **dict.fromkeys(("RATES", "PACKAGED"), CONSTANT),
        **dict.fromkeys(("Run", "Record"), RECORD),
        **dict.fromkeys(("read_record", "mean_loss"), USED),
        "run_comparison": "what the command calls",
    },
    "experiments.fusion_looks": dict.fromkeys(("attention_shares", "patch_shares", "shape_patches"), USED),
    "generation.prompts": {
        **dict.fromkeys(("Image", "Sound", "Prompt"), RECORD),
        **dict.fromkeys(("Part", "Conversation"), TYPE_NAME),
        "Processor": PROTOCOL,
        **dict.fromkeys(("TextProcessor", "as_processor", "on_device"), IN_WORDS),
        **dict.fromkeys(("as_part", "place_contents"), PIECE),
        "check_parts": "checks of a prompt's parts",
        "place_media": "the command line's markers, for words and files that come apart",
    },
    "weights.mllama_names": {
        "name_in_memory": "for adapter files of peft",
        "mllama_names": "a few names that differ on disk",
    },
    "experiments.receipts": {
        **dict.fromkeys(("SIDE", "PATCH", "LINE", "MOST_LETTERS", "GOODS", "TOTAL", "CENTS", "MEAN",
                         "DEVIATION", "WIDTH", "TABLES"), CONSTANT),
        "Rule": TYPE_NAME,
        **dict.fromkeys(("Receipt", "ReceiptBatch", "Lines"), RECORD),
        **dict.fromkeys(("make_receipts", "receipt_processor", "new_reader", "with_tiles", "train_reader", "question",
                         "read_lines", "one_question_each", "measure"), USED),
        **dict.fromkeys(("print_receipt", "RuledTiles", "reader_config"), PIECE),
        "ReceiptBatches": "what lesson 10's trainer asks for, of receipts",
    },
    "multimodal.config": {
        **dict.fromkeys(("PROJECTORS", "MODEL_TYPE"), CONSTANT),
        **dict.fromkeys(("BridgeConfig", "MultimodalConfig"), "settings with checks of their range"),
    },
    "multimodal.model": {
        "Tokens": TYPE_NAME,
        **dict.fromkeys(("Media", "Features"), RECORD),
        "MultimodalLlama": TOO_LONG,
    },
    "multimodal.processor": {
        "MultimodalProcessor": TOO_LONG,
        **dict.fromkeys(("make_media", "join_media"), PIECE),
    },
    "tasks.items": {
        **dict.fromkeys(("CAPTION", "WORD", "ANY"), CONSTANT),
        **dict.fromkeys(("Item", "Task", "Tasks"), RECORD),
        **dict.fromkeys(("question_items", "caption_items", "word_items", "both_items", "describe", "texts_of"), USED),
        "right_blind": "what the measuring calls",
    },
    "tasks.senses": {
        "BATCH": CONSTANT,
        **dict.fromkeys(("load_tasks", "picture_features", "sound_features"), USED),
    },
    "train.media_rows": {
        "VERSIONS": CONSTANT,
        "RowMaker": "what exercise 14.3 builds, for a batch of tasks",
        "encode_conversation": USED,
        "encode_media_record": "of one's own data, which lesson 16 trains on",
        "MediaObjective": "lesson 10's objective, and zeros for idle bridges",
        "Epochs": PIECE,
    },
    "train.tokenizer": {
        "SPECIAL": CONSTANT,
        "train_tokenizer": USED,
    },
    "train.stages": {
        **dict.fromkeys(("SHARES", "BLIND"), CONSTANT),
        "Stage": RECORD,
        "TaskBatches": "a stream as in lesson 10, of tasks",
        **dict.fromkeys(("stage_trainer", "run_stage"), "lesson 10's trainer, a stage at a time"),
    },
    "evals.senses": {
        **dict.fromkeys(("count_right", "misled", "measure", "controls", "baselines", "table"), USED),
        "Score": RECORD,
        "measure_saved": "what the command calls",
    },
    "experiments.small_multimodal": {
        **dict.fromkeys(("SIDE", "VOCAB"), CONSTANT),
        **dict.fromkeys(("stages", "load_towers", "small_config", "train_small"), USED),
        **dict.fromkeys(("Towers", "Trained"), RECORD),
    },
    "assets.easy_vqa": {
        **dict.fromkeys(("SIZE", "SIDES", "FILES", "SHAPES", "COLOURS", "YES_NO", "ANSWERS", "CREDIT"), CONSTANT),
        "Questions": RECORD,
        **dict.fromkeys(("load_questions", "majority", "text_only_best", "write_questions"), USED),
        "right_without_looking": "what majority and text_only_best count",
    },
    "experiments.drawn_shapes": {
        **dict.fromkeys(("RGB", "GROUND", "FINER", "SMALLEST", "LARGEST"), CONSTANT),
        "Scene": "a record that draws itself",
        **dict.fromkeys(("random_scenes", "touched"), USED),
    },
    "evals.seen_tokens": {
        "Splice": TYPE_NAME,
        "fill_places": "what exercise 14.2 builds, in one line",
        **dict.fromkeys(("pixel_scores", "noise_like", "as_many_others"), USED),
        "through_blocks": "lesson 14's run_blocks, once for what all rows begin with: for speed alone",
    },
    "multimodal.compact": {
        "compacted": "told in prose and tried by hand; exercise 16.4 moves words up",
    },
    "train.alignment": {
        **dict.fromkeys(("RARE", "PULL"), CONSTANT),
        "picture_loss": "exercise 16.2, with a form for rare words",
        "nearest_words": "exercises 16.1 and 16.4, one after the other",
        **dict.fromkeys(("check_aligned", "words_of", "distance"), PIECE),
        "AlignmentObjective": "too long for a cell; a loop over pictures, and PyTorch's own CTC",
    },
    "train.preference": {
        "preference_loss": "exercise 16.5, in two lines",
        "answer_log_probs": IN_WORDS,
        "encode_pair": USED,
        "PreferenceObjective": "exercise 16.5, with LoRA on and off",
        **dict.fromkeys(("PairBatch", "PairBatches"), "lesson 10's batches, of pairs"),
    },
    "pretrained.compose": {
        "Fusion": TYPE_NAME,
        **dict.fromkeys(("LAYERS_APART", "MERGE", "HEARD_AT_ONCE"), CONSTANT),
        "compose": USED,
        **dict.fromkeys(("save_composed", "open_composed", "read_composed_config", "composed_config"), PIECE),
    },
    "pretrained.skill": {
        **dict.fromkeys(("SKILL_FILE", "BRIDGES_FILE", "PARTS_FILE"), CONSTANT),
        **dict.fromkeys(("save_skill", "load_skill"), "used in the lesson's runs: format of files"),
        **dict.fromkeys(("write_skill", "base_of", "parts_of", "added_tensors"), PIECE),
    },
    "train.features": {
        **dict.fromkeys(("SHARD", "LIMIT"), CONSTANT),
        "FeatureStore": "features computed once, told in prose",
        "content_hash": PIECE,
    },
    "evals.perplexity": {
        "LENGTH": CONSTANT,
        **dict.fromkeys(("Reading", "Window"), RECORD),
        "bits_per_byte": "exercise 17.1, of the first tokens",
        "read_texts": USED,
        "token_bits": USED,
        "windows": "told in the prose; windows that overlap",
    },
    "evals.likelihood": {
        **dict.fromkeys(("HEAD_ROWS", "LEAST_SAVED", "LEAST_SHARED"), CONSTANT),
        **dict.fromkeys(("Ids", "Pair"), TYPE_NAME),
        "Likelihood": RECORD,
        **dict.fromkeys(("encode_pair", "log_likelihoods"), USED),
        "families": "speed; which beginnings are read once",
    },
    "evals.transcripts": {
        "Pair": TYPE_NAME,
        "Alignment": RECORD,
        "align": "the way back through the table of exercise 17.4",
        "word_errors": "exercise 17.4, a row at a time",
        **dict.fromkeys(("word_error_rate", "character_error_rate", "character_errors"), USED),
    },
    "evals.normaliser": {
        **dict.fromkeys(("AMOUNT", "CONTRACTIONS", "CURRENCIES", "FILLERS", "LETTERS", "LONG_FORMS", "QUOTES",
                         "REMARKS", "SPELLINGS"), "a table of rules"),
        **dict.fromkeys(("normalise", "normal_words"), USED),
    },
    "evals.captions": {
        **dict.fromkeys(("ORDERS", "SIGMA"), CONSTANT),
        **dict.fromkeys(("Grams", "Words"), TYPE_NAME),
        **dict.fromkeys(("bleu", "bleu_counts", "bleu_words"), PIECE),
        **dict.fromkeys(("cider", "cider_d", "corpus_bleu", "sentence_bleu"), USED),
    },
    "evals.intervals": {
        **dict.fromkeys(("DRAWS", "ENDS", "FEWEST"), CONSTANT),
        **dict.fromkeys(("Interval", "Difference"), RECORD),
        **dict.fromkeys(("bootstrap", "interval"), "exercise 17.3, with checks of its arguments"),
        **dict.fromkeys(("compare", "wilson"), USED),
        "needed_items": "a formula by hand in the prose",
        "told_share": PIECE,
    },
    "tasks.choices": {
        **dict.fromkeys(("BETWEEN", "FORMS", "LETTERS", "SCORES"), CONSTANT),
        "ChoicePrompt": RECORD,
        "chosen": "exercise 17.2, and the highest score",
        "prompt": USED,
        **dict.fromkeys(("few_shot", "shuffled"), IN_WORDS),
    },
    "assets.multiple_choice": {
        **dict.fromkeys(("ALIKE", "CREDIT", "FILES", "MMLU", "ONE_IN", "QUARTZ", "SOCIALIQA", "TASKS"), CONSTANT),
        **dict.fromkeys(("Record", "Sides"), TYPE_NAME),
        "ChoiceQuestion": RECORD,
        "load_choices": USED,
        **dict.fromkeys(("alike", "read_mmlu", "read_quartz", "read_socialiqa", "split", "write_choices"),
                        "making of the data set"),
    },
    "assets.refusals": {
        **dict.fromkeys(("CREDIT", "FILES"), CONSTANT),
        "LabelledAnswer": RECORD,
        "load_refusals": USED,
        **dict.fromkeys(("read_labels", "rows_of", "write_refusals"), "making of the data set"),
    },
    "train.seen": {
        **dict.fromkeys(("NEIGHBOURS", "N_BYTES", "RUN", "SEEN_FILE", "SENTENCE"), CONSTANT),
        "Seen": USED,
        "passages": "winnowing, done by hand in the prose",
        **dict.fromkeys(("hash_of_medium", "hashes_of", "sentences", "text_hash"), PIECE),
        **dict.fromkeys(("note_read", "not_noted", "read_before"), "what a training run calls"),
    },
    "safety.measures": {
        **dict.fromkeys(("BINS", "FIGURES"), CONSTANT),
        "auc": "a share of pairs, by hand in the prose; here by ranks",
        "threshold_at": "the line of exercise 18.3, and the score above it",
        "recall_at": "exercise 18.3, with checks of its arguments",
        "calibration": IN_WORDS,
        "drawn": "exercise 17.3's draws, of families",
    },
    "safety.baselines": {
        "WORDS": CONSTANT,
        "WordList": "exercise 18.1, with a share as a score",
        "BagOfWords": USED,
    },
    "safety.template": {
        **dict.fromkeys(("Turn",), TYPE_NAME),
        "Template": PROTOCOL,
        **dict.fromkeys(("SAFE", "UNSAFE", "LLAMA_GUARD_3_1B", "LLAMA_GUARD_3_8B", "LLAMA_GUARD_4", "OURS"), CONSTANT),
        "LlamaGuardTemplate": "Meta's wording, put together as in exercise 18.4",
        "OurTemplate": "exercise 18.4 around our question",
    },
    "safety.guard": {
        "Conversation": TYPE_NAME,
        **dict.fromkeys(("OWN", "OWN_GUARD", "GUARD_FILE", "BATCH_TOKENS", "SHORTEST_CACHE", "WIDTH_OF_8B"), CONSTANT),
        "Guard": "exercises 18.4 and 18.5 with a cache and in batches",
        "read_names": "a comma-separated list",
        "load_guard": USED,
    },
    "generation.guarded": {
        **dict.fromkeys(("WINDOW", "QUESTIONS"), CONSTANT),
        **dict.fromkeys(("Stage", "Transcribe"), TYPE_NAME),
        **dict.fromkeys(("Judgement", "Refusal"), RECORD),
        "Judge": PROTOCOL,
        "GuardedStream": "exercise 18.6, which judges the prompt and its media first",
        **dict.fromkeys(("media_reader", "require_judge"), USED),
    },
    "fast.quantized": {
        **dict.fromkeys(("TILE", "GROUPS", "LINE", "AT_ONCE", "BLOCKS"), CONSTANT),
        "lay_side_by_side": "where the numbers lie in memory, and nothing else",
        "QuantizedLinear": "exercises 19.2 and 19.3, with 64 rows side by side",
        "rounded": "exercise 19.2, with a scale in fp16",
        **dict.fromkeys(("scales_of", "nearest", "in_bytes", "out_of_bytes"), PIECE),
        **dict.fromkeys(("quantizable", "quantized_linears"), "which linears are meant"),
        **dict.fromkeys(("NarrowLinear", "narrow"), "weights in 16 bits, as their file has them"),
        "n_bytes": "exercise 19.1, of a model",
        "quantize": USED,
    },
    "generation.speculation": {
        **dict.fromkeys(("FEWEST", "MOST", "LOAN", "INCOME"), CONSTANT),
        "Guess": RECORD,
        "Draft": PROTOCOL,
        "Speculate": TYPE_NAME,
        "Lookup": "what is quoted, as a draft",
        "choose": "exercise 19.4, with settings of sampling",
        "probabilities": PIECE,
        "Speculator": "the loop of the lesson, with an account",
        "call_cost": "measured in the lesson, not assumed",
        "make_speculator": "what a token stream calls",
    },
    "experiments.two_processes": {
        **dict.fromkeys(("LENGTHS", "SECONDS"), CONSTANT),
        **dict.fromkeys(("summed_loss", "gradient_of"), PIECE),
        "run_two": USED,
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
