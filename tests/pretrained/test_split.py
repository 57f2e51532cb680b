"""pretrained.split: two gloo processes answer as one does, each with its part, which is all that it reads.

This file is also the program: it is imported once and forked for the second process, and everything that needs two
processes happens in that one launch.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from llamamm import Llama3Model, TextConfig, from_pretrained, generate
from llamamm.errors import ConfigError, InputError
from llamamm.fast.quantized import quantize
from llamamm.lora.lora import apply_lora
from llamamm.pretrained.save import save_pretrained
from llamamm.pretrained.split import open_split
from llamamm.text.tensor_parallel import check_split, split_over_processes
from llamamm.train.config import TrainConfig
from llamamm.train.plan import plan_memory
from llamamm.train.prepare import load_model, reads_parts
from llamamm.train.processes import Processes, as_local, joined
from llamamm.weights.checkpoint import InFile
from llamamm.weights.parts import own_range

KINDS = {"tied": {"tie_embeddings": True}, "own head": {"tie_embeddings": False, "vocab_size": 303}}
# wide enough for `Linear`'s slices, which a matrix over processes must not take
WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 288, "vocab_size": 301}
SETTINGS = {"full": {"method": "full"}, "lora": {"lora_r": 3}}
IDS = torch.arange(1, 25).view(2, 12)
COMMAND = ["generate", "Why?", "--raw", "--max-new-tokens", "6", "--dtype", "float32", "--temperature", "0.8"]


# ---- what each of two processes does ----

def work(folder, processes):
    from torch.distributed.device_mesh import init_device_mesh

    report = {}
    mesh = init_device_mesh("cpu", (2,))
    for kind in KINDS:
        read = count_bytes_read()
        model, _ = open_split(folder / kind, mesh, dtype=torch.float32)
        report[f"read {kind}"] = sum(read)
        report[f"held {kind}"] = sum(p.to_local().nbytes if hasattr(p, "to_local") else p.nbytes
                                     for p in model.parameters())  # fmt: skip
        with torch.inference_mode():
            report[f"logits {kind}"] = model(IDS).tolist()
        report[f"tokens {kind}"] = generate(model, IDS, 20).tolist()
        report[f"cache {kind}"] = model.make_cache(1, 8).nbytes
    whole, _ = from_pretrained(folder / "tied", dtype=torch.float32)
    with torch.inference_mode():  # weights that are there: the first process's count
        if processes.rank:
            torch.nn.init.zeros_(whole.layers[0].mlp.up_proj.weight)
        report["logits from memory"] = split_over_processes(whole, mesh)(IDS).tolist()
    for name, settings in SETTINGS.items():
        report[f"gradients {name}"] = gradients(folder, settings, processes)
    for parallel in ("ddp", "fsdp"):
        for name, settings in SETTINGS.items():
            report[f"{parallel} {name}"] = bytes_held(folder, parallel, settings, processes)
    for name, words in (("sampled", COMMAND), ("refused", [*COMMAND, "--bits", "8"])):
        report[f"command {name}"] = run_command([*words, "--model", str(folder / "tied")])
    (folder / f"report-{processes.rank}.json").write_text(json.dumps(report))


def count_bytes_read():
    read, call, part = [], InFile.__call__, InFile.part

    def counted(function):
        def run(*args):
            tensor = function(*args)
            read.append(tensor.nbytes)
            return tensor
        return run

    InFile.__call__, InFile.part = counted(call), counted(part)
    return read


def gradients(folder, settings, processes):
    """Of a sharded model whose parts were read after it was sharded, whole again."""
    from llamamm.train.loop import Objective

    cfg = TrainConfig.make({"model": str(folder / "tied"), "parallel": "fsdp", "device": "cpu", "steps": 1,
                            "precision": "fp32", **settings})  # fmt: skip
    in_parts = reads_parts(cfg, processes)
    model, _ = load_model(cfg, processes.device, in_parts=in_parts)
    assert in_parts == (processes.world_size > 1) == model.embed_tokens.weight.is_meta
    for name, parameter in model.named_parameters():
        if ".lora_b" in name:
            torch.nn.init.constant_(parameter, 0.01)
    objective = processes.wrap(Objective(model), parallel="fsdp")
    rank, n = processes.rank, processes.world_size
    ids = IDS[rank:rank + 1] if n > 1 else IDS  # fmt: skip
    (objective(ids, ids.roll(-1, 1)) * n).backward()
    assert not any(p.is_meta for p in model.parameters())
    return {name: float(as_local(p.grad).norm()) for name, p in model.named_parameters() if p.requires_grad}


def bytes_held(folder, parallel, settings, processes):
    """Of a step in two processes: what each has of weights, gradients and AdamW's moments, and exchanges."""
    from llamamm.train.loop import Objective

    model, _ = load_model(plan_config(folder, parallel, settings), processes.device)
    objective, gathered = processes.wrap(Objective(model), parallel=parallel), []
    blocks = [module for module in objective.modules() if isinstance(module, FSDPModule)]

    def note(*_):
        """Whole weights as long as their memory is taken, and those that are on their way."""
        groups = [block._get_fsdp_state()._fsdp_param_group for block in blocks]
        whole = [part._unsharded_param for group in groups for part in group.fsdp_params
                 if hasattr(part, "_unsharded_param")]  # fmt: skip
        coming = [group._all_gather_result.all_gather_output for group in groups if group._all_gather_result]
        gathered.append(sum(t.nbytes for t in (*whole, *coming) if t.untyped_storage().size()))

    for layer in model.layers:
        layer.mlp.register_full_backward_pre_hook(note)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    objective(IDS, IDS.roll(-1, 1)).backward()
    optimizer.step()
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    found = {"weights": model.parameters(), "gradients": (p.grad for p in trained), "optimizer": moments}
    found = {name: sum(local_bytes(t) for t in tensors) for name, tensors in found.items()}
    sizes = "" if blocks else objective._get_ddp_logging_data()["bucket_sizes"]
    return {**found, "gathered": max(gathered), "buckets": sum(map(int, sizes.split(","))) if sizes else 0}


def local_bytes(tensor):
    return tensor.to_local().nbytes if hasattr(tensor, "to_local") else tensor.nbytes


def plan_config(folder, parallel, settings):
    return TrainConfig.make({"model": str(folder / "tied"), "parallel": parallel, "device": "cpu", "steps": 1,
                             "precision": "fp32", "output": folder / "x", "batch_size": 4, **settings})  # fmt: skip


def run_command(words):
    from llamamm.cli import main

    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["llamamm", *words]
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.main()
        except SystemExit as end:
            code = end.code or 0
    return [code, out.getvalue(), err.getvalue()]


if __name__ == "__main__":
    here = Path(sys.argv[1])
    rank = 0 if os.fork() else 1
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{here}/store", rank=rank, world_size=2)
    with joined("cpu") as both:
        work(here, both)
    if rank == 0:
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
    os._exit(0)


# ---- what came of it ----

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from llamamm.train.tokenizer import train_tokenizer
    from tests.processes import finish  # here: where this file is the program, it is in no package

    folder = tmp_path_factory.mktemp("split")
    words = train_tokenizer(["user assistant Why? 1 2 3"] * 9, folder, vocab_size=300)
    for n, (kind, changes) in enumerate(KINDS.items()):
        torch.manual_seed(n)
        model = Llama3Model(TextConfig.tiny(**{**WIDE, **changes}))
        for parameter in model.parameters():  # no two rows alike, so that a row in a wrong place shows
            torch.nn.init.normal_(parameter, std=0.1)
        save_pretrained(model, folder / kind, tokenizer=words)
    done = finish([sys.executable, __file__, str(folder)], watch=folder,
                  env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def reports(folder):
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_answer_as_one(folder, reports, kind):
    model, _ = from_pretrained(folder / kind, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(IDS)
    found = [torch.tensor(report[f"logits {kind}"]) for report in reports]
    assert torch.equal(*found)  # so both take the same next token
    torch.testing.assert_close(found[0], logits, rtol=0, atol=2e-5)
    if kind == "tied":
        torch.testing.assert_close(torch.tensor(reports[1]["logits from memory"]), logits, rtol=0, atol=2e-5)
    tokens = generate(model, IDS, 20).tolist()
    assert [report[f"tokens {kind}"] for report in reports] == [tokens, tokens]


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_reads_and_keeps_its_part_alone(folder, reports, kind):
    model, _ = from_pretrained(folder / kind, dtype=torch.float32)
    norms = sum(p.nbytes for p in model.parameters() if p.dim() == 1)
    whole = sum(p.nbytes for p in model.parameters()) - norms
    for report in reports:
        assert report[f"read {kind}"] == report[f"held {kind}"]
        assert report[f"cache {kind}"] == model.make_cache(1, 8).nbytes // 2
    assert sum(report[f"held {kind}"] for report in reports) == whole + 2 * norms
    assert abs(reports[0][f"held {kind}"] - reports[1][f"held {kind}"]) <= 2 * 4 * WIDE["hidden_size"]  # a row each


@pytest.mark.parametrize(("name", "settings"), SETTINGS.items())
def test_gradients_of_shards_that_were_read_apart_are_those_of_one_process(folder, reports, name, settings):
    alone = gradients(folder, settings, Processes())
    assert len(alone) > 10
    for report in reports:
        assert report[f"gradients {name}"] == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(("name", "settings"), SETTINGS.items())
def test_a_plan_counts_what_each_process_holds(folder, reports, parallel, name, settings):
    [plan] = plan_memory(plan_config(folder, parallel, settings), gpus=2)
    held, other = (report[f"{parallel} {name}"] for report in reports)  # the first has the larger parts
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(plan, part) == held[part] >= other[part] > 0.4 * held[part], part
    if parallel == "ddp":
        assert plan.buffers == held["buckets"] == held["gradients"]
    else:  # the plan counts gradients of what is gathered, too
        whole = plan_memory(plan_config(folder, "ddp", settings))[0]
        trained = whole.gradients / whole.weights
        assert held["gathered"] == pytest.approx(plan.buffers / (1 + trained), rel=0.02)


def test_the_command_speaks_with_one_voice(reports):
    main, other = (report["command sampled"] for report in reports)
    assert main[0] == other[0] == 0, (main, other)
    assert len(main[1]) > 1 and other[1] == "" and other[2] == ""
    for code, said, error in (report["command refused"] for report in reports):
        assert code == 2 and said == "" and "--bits is for a model in one process" in error


# ---- alone ----

@pytest.mark.parametrize(("n_rows", "n"), [(301, 2), (3, 2), (1, 4), (8, 3), (12, 4)])
def test_the_parts_are_pytorchs_and_make_up_the_whole(n_rows, n):
    rows = torch.arange(n_rows)
    parts = [rows[own_range(n_rows, rank, n)] for rank in range(n)]
    assert torch.equal(torch.cat(parts), rows)
    assert [len(part) for part in parts if len(part)] == [len(part) for part in rows.chunk(n)]


@pytest.mark.parametrize(
    ("n", "message"),
    [(2, r"3 kv heads do not divide by 2 processes; .* over 1 or 3"), (9, "3 kv heads and .*|3 kv heads do not divide"),
     (6, "3 kv heads")],
)  # fmt: skip
def test_heads_that_do_not_divide_are_told(n, message):
    with pytest.raises(ConfigError, match=message):
        check_split(TextConfig.smollm2_135m(), n)
    check_split(TextConfig.smollm2_135m(), 3)


class FakeMesh:
    def size(self):
        return 2


def test_only_plain_text_models_are_split(tmp_path):
    model = apply_lora(Llama3Model(TextConfig.tiny()), r=2, alpha=2)
    with pytest.raises(ConfigError, match="merge its adapter"):
        split_over_processes(model, FakeMesh())
    (tmp_path / "config.json").write_text('{"model_type": "mllama"}')
    with pytest.raises(InputError, match="'mllama', no text model"):
        open_split(tmp_path, FakeMesh())
    save_pretrained(quantize(Llama3Model(TextConfig.tiny()), 8), tmp_path / "small")
    with pytest.raises(InputError, match="small is quantized, .* the model that it was made of, or one process"):
        open_split(tmp_path / "small", FakeMesh())
