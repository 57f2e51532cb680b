"""What frozen towers see and hear, computed once and kept on disk.

A tower that does not train gives the same features each time, so each picture and each sound goes through it once: in
the first epoch, in the next one, in the next run. Kept in fp16, in safetensors shards that are written under another
name and renamed; a feature is found again by what the file holds, how it was prepared, and which tower it was.

    folder/3f9a....safetensors      key -> (N, F) fp16, of some hundred pictures or sounds each

Used in notebook 16.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llamamm.errors import InputError, LlamammError
from llamamm.files import write_file
from llamamm.generation.prompts import Image, Sound
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor

SHARD = 256  # features in a file
LIMIT = 20 * 10**9  # bytes of all files


class FeatureStore:
    """Features of one model's towers. folder: None keeps nothing. limit: bytes of all files; older ones make room.

    Where everything in the folder is of this run and there is no room left, what is new is computed each time it is
    needed; `full` says so.
    """

    def __init__(
        self, model: MultimodalLlama, processor: MultimodalProcessor, folder: Path | None, *, limit: int = LIMIT,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:  # fmt: skip
        self.model, self.processor, self.folder, self.limit, self.say = model, processor, folder, limit, say
        self.full = False
        self.n_computed = 0
        self._marks = {Image: _fingerprint(model, processor, "image"), Sound: _fingerprint(model, processor, "audio")}
        self._where: dict[str, Path] = {}
        self._new: dict[str, Tensor] = {}
        self._mine: set[Path] = set()  # files that this run has written or read
        for path in sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else ():
            with contextlib.suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
                self._where.update(dict.fromkeys(file.keys(), path))

    def __call__(self, medium: Image | Sound) -> Tensor:
        """Its features, (N, F) fp16 on the CPU. Raises InputError for what cannot be read."""
        key = f"{self._marks[type(medium)]}-{content_hash(medium)}"
        if key in self._new:
            return self._new[key]
        if key in self._where:
            try:
                with safe_open(self._where[key], framework="pt") as file:
                    self._mine.add(self._where[key])
                    return file.get_tensor(key)
            except (OSError, SafetensorError):  # removed or damaged meanwhile
                del self._where[key]
        feature = self._look(medium)
        if self.folder is not None and not self.full:
            self._new[key] = feature
            if len(self._new) >= SHARD:
                self.flush()
        return feature

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """At the end of the block what is new is written down, also when it ends by an error or by Ctrl-C."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(LlamammError):  # what ended the block is told
                self.flush()
            raise
        self.flush()

    def flush(self) -> None:
        """Write down what is new. Raises WriteError where it cannot be written."""
        if self.folder is None or not self._new:
            return
        data = save(self._new, metadata={"format": "pt"})
        if not self._make_room(len(data)):
            self.full = True
            self.say(f"{self.folder} is full ({self.limit / 1e9:g} GB): features of the rest are computed each time")
            self._new = {}
            return
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(path, data)
        self._mine.add(path)
        self._where.update(dict.fromkeys(self._new, path))
        self._new = {}

    def _make_room(self, n_bytes: int) -> bool:
        files = {path: path.stat() for path in self.folder.glob("*.safetensors")} if self.folder.is_dir() else {}
        total = n_bytes + sum(stat.st_size for stat in files.values())
        for path, stat in sorted(files.items(), key=lambda item: item[1].st_mtime):
            if total <= self.limit:
                break
            if path not in self._mine:
                path.unlink(missing_ok=True)
                total -= stat.st_size
                self._where = {key: where for key, where in self._where.items() if where != path}
        return total <= self.limit

    @torch.no_grad()
    def _look(self, medium: Image | Sound) -> Tensor:
        self.n_computed += 1
        media = self.processor.prompt([medium], bos=False).inputs["media"]
        device = self.model.embed_tokens.weight.device
        features = self.model.perceive(media.to(device))
        if isinstance(medium, Image):
            return features.images[0].half().cpu().contiguous()
        heard = features.sounds if features.sound_mask is None else features.sounds[features.sound_mask]
        return heard.reshape(-1, features.sounds.shape[-1]).half().cpu().contiguous()  # pieces of 30 s in a row


def content_hash(medium: Image | Sound) -> str:
    """Of what a picture or a sound holds, whatever its file is called. Raises InputError for what cannot be read."""
    digest, source = hashlib.sha256(), medium.source
    try:
        if isinstance(source, str | Path):
            with open(os.path.expanduser(source), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if isinstance(source, io.IOBase):
            at = source.tell()
            digest.update(source.read())
            source.seek(at)
        elif isinstance(source, bytes):
            digest.update(source)
        else:
            array = source.numpy() if isinstance(source, Tensor) else np.asarray(source)
            digest.update(f"{array.dtype} {array.shape} {getattr(source, 'mode', '')}".encode() + array.tobytes())
    except OSError as error:
        raise InputError(f"{source}: {error.strerror or error}") from None
    if isinstance(medium, Sound):
        digest.update(str(medium.rate).encode())
    return digest.hexdigest()


def _fingerprint(model: MultimodalLlama, processor: MultimodalProcessor, kind: str) -> str:
    """Of a tower, which of its layers is taken, and how media are prepared for it."""
    cfg, about = model.multimodal_cfg, hashlib.sha256()
    if kind == "image":
        tower, settings = getattr(model, "vision_tower", None), processor.image_processor
        about.update(repr((cfg.vision, cfg.image_layer, cfg.image_size, settings and settings.to_hf())).encode())
    else:
        tower = getattr(model, "audio_encoder", None)
        about.update(repr((cfg.audio, cfg.audio_layer)).encode())
    for name, p in tower.named_parameters() if tower is not None else ():
        weights: Any = p.detach().flatten()[:: max(1, p.numel() // 64)].float().cpu()
        about.update(name.encode() + weights.numpy().tobytes() + str(p.dtype).encode())
    return about.hexdigest()[:16]
