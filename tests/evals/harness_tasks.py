"""Tasks of the public harness over local JSON, each with a few items, written into a folder."""

import json
from pathlib import Path

import PIL.Image
import yaml

QUESTIONS = [
    {"q": "The capital of France is", "a": ["Paris", "London, I think", "Rome"], "k": 0},
    {"q": "Two and two make", "a": ["five", "four", "a hundred and one"], "k": 1},
    {"q": "Water is made of hydrogen and", "a": ["gold", "oxygen", "wood and nails"], "k": 1},
    {"q": "A dog has four", "a": ["legs", "wheels of iron", "wings"], "k": 0},
    {"q": "After Monday comes", "a": ["a very long night", "Sunday", "Tuesday"], "k": 2},
]
SHOTS = [
    {"q": "Grass is", "a": ["green", "loud", "square"], "k": 0},
    {"q": "Ice is", "a": ["hot", "cold", "made of letters"], "k": 1},
]
TEXTS = [{"text": "The river begins as a spring. " * n + "It ends in the sea."} for n in (1, 3, 9)]

CHOICE = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "k", "doc_to_choice": "a",
          "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}  # fmt: skip
LETTERS = CHOICE | {"doc_to_text": "{{q}}\nA. {{a[0]}}\nB. {{a[1]}}\nC. {{a[2]}}\nAnswer:",
                    "doc_to_choice": ["A", "B", "C"]}  # fmt: skip
ROLLING = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text",
           "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]}  # fmt: skip
# A stop string without letters of control tokens' names: hf looks for it in those, too.
ANSWER = {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a[k]}}",
          "generation_kwargs": {"until": ["u", "\n\n"], "max_gen_toks": 12},
          "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}  # fmt: skip


def write_tasks(folder: Path) -> Path:
    """choice, letters, rolling, answer and picture, as YAML files beside their data."""
    for name, rows in (("questions", QUESTIONS), ("shots", SHOTS), ("texts", TEXTS)):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    _write(folder, "choice", CHOICE, fewshot_split="train")
    _write(folder, "letters", LETTERS)
    _write(folder, "rolling", ROLLING, test="texts")
    _write(folder, "answer", ANSWER)
    for colour in ("red", "blue"):
        PIL.Image.new("RGB", (40, 30), colour).save(folder / f"{colour}.png")
    rows = [{"q": f"<image> {q}", "picture": str(folder / f"{colour}.png"), "a": [colour], "k": 0}
            for q in ("Which colour?", "What is it, and why?") for colour in ("red", "blue")]  # fmt: skip
    (folder / "pictures.json").write_text(json.dumps(rows))
    (folder / "see.py").write_text("import PIL.Image\n\ndef pictures(doc):\n"
                                   "    return [PIL.Image.open(doc['picture'])]\n")  # fmt: skip
    _write(folder, "picture", ANSWER, test="pictures", image="doc_to_image: !function see.pictures\n")
    return folder


def _write(folder: Path, name: str, task: dict, test: str = "questions", image: str = "", **more: str) -> None:
    files = {"test": str(folder / f"{test}.json"), "train": str(folder / "shots.json")}
    if test != "questions":
        del files["train"]
    about = {"task": name, "dataset_path": "json", "test_split": "test",
             "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")}, **task, **more}  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(about, sort_keys=False) + image)
