"""The two sides of `train_speed`, each in a process of its own: a training step of this package, and the same step as
one writes it with transformers and peft.

    ids (B, T) -> LoRA on all seven linears of each block -> mean loss of the next tokens -> clipped -> AdamW

Text: every token but the first of a row is predicted. With pictures, each row begins with one: pixels (3, 224, 224) ->
DINOv2's small ViT, frozen, to the block whose features are taken -> 4 x 4 patches side by side -> linear, GELU, linear,
a learned start and end around them -> 18 tokens, spliced between the words. Adapters, the two linears, start and end
train; the words behind the picture are predicted. Both sides run the tower in each step, without keeping anything for
gradients, and run no block of it whose features nobody takes.

Ours is what `llamamm train` runs, the `Trainer`'s own update. Theirs is AutoModelForCausalLM with
peft.get_peft_model, and Dinov2Model, whose tokens go in as inputs_embeds, with torch's AdamW. Both use PyTorch's fused
attention. Weights, ids, pixels and fresh parts are the same numbers, so the first losses must be, too.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.evals.report import OURS, THEIRS
from llamamm.evals.speed import import_transformers, peak_rss, wait_for

# llamamm.lora and llamamm.train are imported where our side begins: here they would count as the other's memory.

EYE = "vit-s"
IMAGE_SIZE, MERGE = 224, 4  # pixels of a side; patches of a side that become one token
PICTURE_PLACES = 18  # 4 x 4 such tokens, a start and an end
RATE, BETAS, DECAY, CLIP_NORM = 2e-4, (0.9, 0.95), 0.01, 1.0
IGNORE = -100

Step = Callable[[Tensor], float]  # ids (B, T) -> the loss before the update


def fresh(parameters: Iterable[nn.Parameter]) -> None:
    """A bridge's first numbers, the same on both sides."""
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        numbers = torch.empty(parameter.shape).normal_(std=0.02, generator=generator)
        parameter.data.copy_(numbers)


def pictures(n: int) -> Tensor:
    """Noise, since a tower takes no longer for a picture of anything. (n, 3, 224, 224)."""
    return torch.randn(n, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(2))


# ---- ours ----


def our_step(path: Path, device: torch.device, r: int, eye: Path | None) -> Step:
    from llamamm.pretrained.compose import compose
    from llamamm.pretrained.load import from_pretrained
    from llamamm.train.batches import Batch
    from llamamm.train.config import TrainConfig
    from llamamm.train.log import RunLog
    from llamamm.train.loop import Trainer
    from llamamm.train.media_rows import MediaObjective
    from llamamm.train.prepare import make_trainable

    note_imports(device)
    cfg = TrainConfig(steps=1, lora_r=r, lora_alpha=2 * r, learning_rate=RATE, beta1=BETAS[0], beta2=BETAS[1],
                      weight_decay=DECAY, clip_norm=CLIP_NORM, precision="fp32")  # fmt: skip
    if eye is None:
        model, _ = from_pretrained(path, dtype=torch.float32, device=device, progress=False)
        objective = None
    else:
        model, _ = compose(path, vision=eye, audio=None, image_size=IMAGE_SIZE, dtype=torch.float32, device=device)
        bridge = model.image_bridge
        first, second = bridge.projector.linear_1, bridge.projector.linear_2
        fresh([first.weight, first.bias, second.weight, second.bias, bridge.start, bridge.end])
        objective = MediaObjective(model)
    torch.manual_seed(0)
    make_trainable(model, cfg)
    trainer = Trainer(model, iter(()), cfg, objective=objective, log=RunLog(quiet=True))

    def step(ids: Tensor) -> float:
        images: list[list[Tensor]] = []
        targets = F.pad(ids[:, 1:], (0, 1), value=IGNORE)  # (B, T): each token's next; the last has none
        if eye is not None:
            ids = ids.clone()
            ids[:, :PICTURE_PLACES] = model.multimodal_cfg.image_token
            targets[:, : PICTURE_PLACES - 1] = IGNORE
            images = [[one] for one in pictures(len(ids))]
        batch = Batch(ids, targets, torch.ones_like(ids), images)
        return trainer.update(batch, RATE)[0]

    return step


# ---- theirs ----


def their_step(path: Path, device: torch.device, r: int, eye: Path | None) -> Step:
    transformers = import_transformers()
    import peft

    note_imports(device)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=names))
    generator = torch.Generator().manual_seed(0)  # the same A as ours: peft draws it from the same range
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            bound = 1 / math.sqrt(weight.shape[1])
            weight.data.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
    if eye is not None:
        model = Seeing(model, transformers.Dinov2Model.from_pretrained(eye, dtype=torch.float32)).to(device)
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": DECAY},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=device.type in ("cpu", "cuda"))

    def step(ids: Tensor) -> float:
        if eye is None:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        else:
            loss = model(ids, pictures(len(ids)).to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


class Seeing(nn.Module):
    """A Llama of peft's that reads what a tower of transformers' sees."""

    def __init__(self, llama: nn.Module, tower: nn.Module) -> None:
        super().__init__()
        self.llama, self.tower = llama, tower.requires_grad_(False).eval()
        blocks = tower.encoder.layer
        del blocks[len(blocks) + 1 - min(4, len(blocks)) :]  # as LLaVA, features of a block before the last
        width = llama.config.hidden_size
        self.projector = nn.Sequential(
            nn.Linear(MERGE**2 * tower.config.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.start, self.end = (nn.Parameter(torch.empty(width)) for _ in range(2))
        fresh([*self.projector.parameters(), self.start, self.end])

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        """ids (B, T), whose first places are the picture's; pixels (B, 3, H, W) -> mean loss of the words behind."""
        with torch.no_grad():
            features = self.tower.encoder(self.tower.embeddings(pixels)).last_hidden_state[:, 1:]  # (B, N, F)
        B, N, n_numbers = features.shape
        side = math.isqrt(N) // MERGE
        merged = features.view(B, side, MERGE, side, MERGE, n_numbers).transpose(2, 3).reshape(B, side**2, -1)
        start, end = (part.expand(B, 1, -1) for part in (self.start, self.end))
        tokens = torch.cat([start, self.projector(merged), end], dim=1)  # (B, M, C)
        words = self.llama.get_input_embeddings()(ids[:, tokens.shape[1] :])
        labels = ids.clone()
        labels[:, : tokens.shape[1]] = IGNORE
        return self.llama(inputs_embeds=torch.cat([tokens, words], dim=1), labels=labels, use_cache=False).loss


# ---- the process ----

_imported = 0  # bytes of this process before it loads a model


def note_imports(device: torch.device) -> None:
    global _imported
    _imported = 0 if device.type == "cuda" else psutil.Process().memory_info().rss


def peak(device: torch.device) -> int:
    """Bytes: what PyTorch took of a GPU, or all of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss()


def answer_questions(side: str) -> None:
    """Take a setting and then questions from standard input, and answer each on standard output, all lines of JSON."""
    out, sys.stdout = sys.stdout, sys.stderr  # a library may print; only answers go through the pipe
    setting = json.loads(sys.stdin.readline())
    device, eye = torch.device(setting["device"]), setting["eye"] and Path(setting["eye"])
    step = {OURS: our_step, THEIRS: their_step}[side](Path(setting["path"]), device, setting["r"], eye)
    print(json.dumps({}), file=out, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        n = setting["rows"] * question["length"]
        ids = torch.tensor(setting["ids"][:n], device=device).view(setting["rows"], -1)  # (B, T)
        seconds, losses = [], []
        for _ in range(question["steps"]):
            begin = time.perf_counter()
            losses.append(step(ids))
            wait_for(device)
            seconds.append(time.perf_counter() - begin)
        used = peak(device)
        answer = {"seconds": seconds, "losses": losses, "peak": used, "peak_added": used - _imported}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    answer_questions(sys.argv[1])
