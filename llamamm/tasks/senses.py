"""What a small multimodal Llama sees and hears of the three assets: their items, with the features of frozen towers.

The towers do not train, so each picture and each sound goes through them once; fp16 keeps the features of all in
memory. Used in notebook 14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llamamm.assets.easy_vqa import load_questions
from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import load_pictures
from llamamm.assets.spoken_words import Clip, load_words
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import Features, Media
from llamamm.multimodal.places import pad_right
from llamamm.multimodal.processor import make_media
from llamamm.senses.audio import AudioEncoder
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.mel import cut_mel
from llamamm.senses.vision import VisionTower
from llamamm.tasks.items import ANY, CAPTION, WORD, Task, Tasks, both_items, caption_items, question_items, word_items

BATCH = 32  # pictures or sounds at a time through a tower


def load_tasks(
    cfg: MultimodalConfig,
    vision: VisionTower,
    audio: AudioEncoder,
    images: ImageProcessor,
    *,
    only_tests: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Tasks:
    """The assets easy-vqa, openmoji and words, fetched if they must be, with the towers' features. say: of each step.

    only_tests: leave out the features of the training's, which nothing is measured on.
    Raises FetchError, InputError.
    """
    train, test = load_questions(fetch("easy-vqa"))
    drawn, unseen = load_pictures(fetch("openmoji"))
    words = load_words(fetch("words"))

    def seen(pixels: Tensor) -> Features:
        say(f"looking at {len(pixels):,} pictures")
        return Features(images=picture_features(vision, images, pixels, layer=cfg.image_layer))

    def heard(clips: Sequence[Clip]) -> Features:
        say(f"listening to {len(clips):,} sounds")
        return sound_features(audio, [clip.wave for clip in clips], layer=cfg.audio_layer)

    def both(name: str, pictures: Task, sounds: Task) -> Task:
        features = Features(pictures.features.images, sounds.features.sounds, sounds.features.sound_mask)
        return Task(name, both_items(pictures.items, sounds.items), features)

    nothing = Features()
    learned = {
        "vqa": Task("vqa", question_items(train, describing=True), nothing if only_tests else seen(train.pixels)),
        "caption": Task("caption", caption_items(drawn, (CAPTION, ANY)), nothing if only_tests else seen(drawn.pixels)),
        "word": Task("word", word_items(words.train, (WORD, ANY)), nothing if only_tests else heard(words.train)),
    }
    held_out = {"questions": Task("vqa", question_items(test), seen(test.pixels))}
    for new in sorted(set(unseen.new)):
        part = unseen.only(new)
        held_out[f"new {new}s"] = Task("caption", caption_items(part), seen(part.pixels))
    held_out["other voices"] = Task("word", word_items(words.test), heard(words.test))
    held_out["people"] = Task("word", word_items(words.real), heard(words.real))
    learned["both"] = both("both", learned["vqa"], learned["word"])
    held_out["picture and voice"] = both("both", held_out["questions"], held_out["other voices"]).first(1500)
    return Tasks(learned, held_out)


@torch.no_grad()
def picture_features(
    tower: VisionTower, processor: ImageProcessor, pixels: Tensor, *, layer: int | None = None
) -> Tensor:
    """uint8 (n, 3, H, W) -> (n, N, F) fp16 on the CPU, without the CLS token."""
    device = tower.position_embedding.device
    parts = (tower(processor(list(some)).to(device), layer=layer, cls=False) for some in pixels.split(BATCH))
    return torch.cat([part.half().cpu() for part in parts])


@torch.no_grad()
def sound_features(encoder: AudioEncoder, waves: Sequence[Tensor], *, layer: int | None = None) -> Features:
    """Waves (n_samples,) at 16 kHz, up to 30 s each -> sounds (n, N, F) fp16 on the CPU, and their mask."""
    found: list[Tensor] = []
    for i in range(0, len(waves), BATCH):
        mels = [cut_mel(wave, n_mels=encoder.cfg.n_mels) for wave in waves[i : i + BATCH]]
        media: Media = make_media([], mels).to(encoder.conv1.weight.device)
        features = encoder(media.mel, layer=layer, lengths=media.lengths).half().cpu()
        found += [one[:n] for one, n in zip(features, media.lengths.tolist(), strict=True)]
    sounds, mask = pad_right(found)
    return Features(sounds=sounds, sound_mask=mask)
