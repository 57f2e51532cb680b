"""The reference's own model of a folder, opened without its progress bar and its remarks on a model so small."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def reference_model(kind: Any, folder: str | Path) -> Any:
    """`kind.from_pretrained(folder)`, ready for inference; kind: a class of transformers. What transformers says and
    shows is afterwards as it was."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return kind.from_pretrained(folder).eval()
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
