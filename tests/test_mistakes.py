"""A mistake of the user's is one line that names the place; nothing on disk has changed, and there is no traceback."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

import postformer
from postformer import state as states
from postformer.cli import main
from postformer.config import plain
from postformer.models import hub
from postformer.models.forecast import DLinear
from postformer.models.generation import Sampling, Stream
from postformer.train.session import train_run


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """What a user has: a text, a corpus, a run, a model, a state of it, and a run's file."""
    w = tmp_path_factory.mktemp("world")
    small.corpus(w / "corpus")
    (w / "own.csv").write_text("date,a\n" + "d,1.5\n" * 400)
    (w / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in small.text(100).splitlines()))
    run = small.run("corpus")
    (w / "run.json").write_text(json.dumps(plain(run)))
    (w / "run.toml").write_text(
        'name = "tiny"\nmodel = {kind = "language", dim = 16}\ndata = {kind = "text", path = "corpus"}\n'
    )
    with contextlib.chdir(w):
        train_run(run, Path("run"))
    model = small.model("attention")
    postformer.save(model, w / "model")
    postformer.save(DLinear(96, 24), w / "forecaster")
    stream = Stream(model, "the day", Sampling(max_tokens=5))
    list(stream)
    stream.remember().save(w / "state", model)
    (w / "empty").mkdir()
    (w / "notes").mkdir()
    (w / "notes" / "mine.txt").write_text("mine")
    return w


# ---------------------------------------------------------------- how things are spoiled


def write(name: str, data: str | bytes) -> Callable[[Path], None]:
    def spoil(w: Path) -> None:
        (w / name).parent.mkdir(parents=True, exist_ok=True)
        (w / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda w: (w / name).unlink()


def flip(name: str, at: float = 0.5) -> Callable[[Path], None]:
    def spoil(w: Path) -> None:
        data = bytearray((w / name).read_bytes())
        data[int(at * (len(data) - 1))] ^= 0x10
        (w / name).write_bytes(data)

    return spoil


def cut(name: str, share: float = 0.7) -> Callable[[Path], None]:
    def spoil(w: Path) -> None:
        data = (w / name).read_bytes()
        (w / name).write_bytes(data[: int(share * len(data))])

    return spoil


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change keys at the top of a JSON file; a None removes one."""

    def spoil(w: Path) -> None:
        data = {**json.loads((w / name).read_text()), **changes}
        (w / name).write_text(json.dumps({k: v for k, v in data.items() if v is not None}))

    return spoil


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(w: Path) -> None:
        tensors = load_file(w / "model" / "model.safetensors")
        change(tensors)
        save_file(tensors, w / "model" / "model.safetensors")

    return spoil


def as_transformers(**config: Any) -> Callable[[Path], None]:
    def spoil(w: Path) -> None:
        write("model/config.json", json.dumps(config))(w)
        names = (f"model.layers.{i}.input_layernorm.weight" for i in range(3))
        save_file({name: torch.ones(16) for name in names}, w / "model" / "model.safetensors")

    return spoil


def other_model(w: Path) -> None:
    postformer.save(small.model("attention", seed=1), w / "model")


def batch_state(w: Path) -> None:
    model = postformer.load(w / "model")
    states.save(model.init_state(2), w / "state", model)


CHECKPOINT = "run/checkpoints/step-00000002"
GENERATE = "generate model --max-tokens 3"
LLAMA = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
}
MAMBA = {"model_type": "mamba", "vocab_size": 257, "hidden_size": 16, "state_size": 4, "expand": 2}
MAMBA |= {"conv_kernel": 4, "time_step_rank": 1}


@dataclasses.dataclass
class Mistake:
    command: str
    says: str
    """A part of the line: the place and what is wrong."""
    spoil: Callable[[Path], None] = lambda w: None
    stdin: bytes = b""


def config(what: str, says: str, **more: Any) -> Mistake:
    return Mistake(f"train run.json {what} --out new", says, **more)


def series(what: str, says: str, **more: Any) -> Mistake:
    return Mistake(f"train forecast-dlinear data.path=own.csv {what} --out new", says, **more)


MISTAKES: dict[str, dict[str, Mistake]] = {
    "command": {
        "none": Mistake("", "COMMAND"),
        "unknown": Mistake("trian", "trian"),
        "unknown option": Mistake("cost text-mamba --lenght 5", "--lenght"),
        "missing argument": Mistake("generate", "checkpoint"),
    },
    "config": {
        "unknown recipe": Mistake("train text-mamab", "'text-mamab' is not a recipe; choose from text-mamba"),
        "missing file": Mistake("train no.toml", "no.toml: No such file"),
        "a folder": Mistake("train dir.toml", "dir.toml: Is a directory", lambda w: (w / "dir.toml").mkdir()),
        "bad TOML": Mistake("train run.toml", "run.toml: not valid TOML: ", write("run.toml", "name = ")),
        "bad TOML's line": Mistake("train run.toml", "line 2", write("run.toml", 'name = "x"\n[[[\n')),
        "bad JSON": Mistake("train run.json", "run.json: not valid JSON: ", cut("run.json")),
        "not UTF-8": Mistake("train run.toml", "run.toml: not valid TOML", write("run.toml", b'name = "\xff"')),
        "nested too deep": Mistake("train run.json", "run.json: not valid JSON", write("run.json", "[" * 10**5)),
        "a list": Mistake("train run.json", "run.json: expected a table", write("run.json", "[1, 2]")),
        "empty file": Mistake("train run.json", "run.json: not valid JSON", write("run.json", "")),
        "missing key": Mistake("train run.json", "'data' is missing", edit("run.json", data=None)),
        "unknown key in run": config("sede=1", "unknown 'sede' (did you mean 'seed'?)"),
        "key of train in run": config("steps=3", "the run: unknown 'steps' (did you mean 'train.steps'?)"),
        "negative eps of a mixer": config(
            """'model.mixers=[{kind="mamba2",head_dim=8,norm_eps=-1}]'""", "model.mixers[0]: norm_eps=-1.0 must be at least 0"
        ),
        "unknown key in train": config("train.stpes=1", "train: unknown 'stpes' (did you mean 'steps'?)"),
        "unknown key in optim": config("optim.momentum=1", "optim: unknown 'momentum'"),
        "unknown key in model": config("model.width=8", "model: unknown 'width'"),
        "unknown key in mixer": config("model.mixers[0].stat=8", "model.mixers[0]: unknown 'stat' (did you mean 'state'?)"),
        "unknown key in ffn": config("model.ffns[0].act=8", "model.ffns[0]: unknown 'act'"),
        "unknown key in data": config("data.lenght=8", "data: unknown 'lenght' (did you mean 'length'?)"),
        "unknown key in objective": config("objective.weight=8", "objective: unknown 'weight'"),
        "wrong type": config("train.steps=many", "train.steps: expected a whole number, got 'many'"),
        "float for int": config("train.steps=1.5", "train.steps: expected a whole number"),
        "bool for int": config("seed=true", "seed: expected a whole number, got True"),
        "text for table": config("model=mamba", "model: expected a table"),
        "wrong type in mixer": config("model.mixers[0].state=[1]", "model.mixers[0].state: expected a whole number"),
        "tuple too long": config("optim.betas=[1,2,3]", "optim.betas: expected 2 values, got 3"),
        "unknown choice": config("train.dtype=fp16", "train.dtype: 'fp16' is not a choice; choose from fp32, bf16"),
        "NaN": config("optim.lr=nan", "optim.lr: expected a finite number"),
        "infinity": config("optim.eps=inf", "optim.eps: expected a finite number"),
        "NaN in JSON": Mistake("train run.json", "seed: expected a whole number", edit("run.json", seed=float("nan"))),
        "unknown model": config("model.kind=languge", "model.kind: unknown 'languge' (did you mean 'language'?)"),
        "unknown mixer": config("model.mixers[0].kind=mambo", "model.mixers[0].kind: unknown 'mambo'"),
        "unknown ffn": config("model.ffns[0].kind=mole", "model.ffns[0].kind: unknown 'mole'"),
        "unknown objective": config("objective.kind=x", "objective.kind: unknown 'x'; choose from next_token"),
        "unknown data": config("data.kind=x", "data.kind: unknown 'x'; choose from text"),
        "no kind": config("model.mixers=[{}]", "model.mixers[0]: expected a table with 'kind'; choose from attention, mamba"),
        "no module": config("model.mixers[0].kind=no_such:Mixer", "model.mixers[0].kind: cannot import 'no_such:Mixer'"),
        "no class": config("model.mixers[0].kind=os:Mixer", "model.mixers[0].kind: cannot import 'os:Mixer'"),
        "not a class": config("model.mixers[0].kind=os:sep", "model.mixers[0].kind: 'os:sep' "),
        "override without =": config("train.steps", "'train.steps': expected an override such as"),
        "override without key": config("=5", "'=5': expected an override"),
        "override past a list": config("model.mixers[5].state=8", "model.mixers is a list of 1; '5' is not in it"),
        "override into a value": config("seed.x=8", "seed is 0; 'x' is not in it"),
        "override with an odd digit": config("model.mixers[²].state=8", "model.mixers is a list of 1; '²' is not in it"),
        "no layers": config("model.depth=0", "model: dim=16 must be at least 1 and depth=0 from 1 to 4096"),
        "no width": config("model.dim=-16", "model: dim=-16 must be at least 1"),
        "no mixers": config("model.mixers=[]", "model.mixers: must not be empty"),
        "odd heads": config(
            "'model.mixers=[{kind=\"attention\",heads=3}]'", "model.mixers[0]: dim=16 is not divisible by heads=3"
        ),
        "no rank": config("model.mixers[0].rank=0", "model.mixers[0]: state=4"),
        "beyond every machine": config("model.dim=1000000000000", "model"),
        "beyond every integer": config("model.dim=10000000000000000000000000", "model"),
        "no steps": config("train.steps=0", "train.steps: 0 must be at least 1"),
        "no batch": config("train.batch=-1", "train.batch: -1 must be at least 1"),
        "no device": config("train.device=abacus", "train.device: 'abacus' cannot be used here"),
        "bad rate": config("optim.lr=-1.0", "optim.lr: -1.0 must be at least 0"),
        "bad schedule": config("optim.decay=2.0", "optim.decay: 2.0 must be at least 0 and at most 1"),
        "bad seed": config("seed=-1000000000000000000000", "seed: "),
        "no length": config("data.length=0", "data: length: expected 1 or more tokens"),
        "recipe's model before its corpus": Mistake("train text-mamba model.dim=0", "dim=0 must be"),
        "recipe's data before its corpus": Mistake("train text-mamba data.length=x", "data.length: expected a whole number"),
        "recipe's steps before its corpus": Mistake("train text-mamba train.steps=0", "train.steps: 0 must be at least 1"),
        "cost of it": Mistake("cost run.json model.mixers[0].kind=x", "model.mixers[0].kind: unknown 'x'"),
        "cost of a run with overrides": Mistake("cost run model.depth=2", "run: a trained model takes no overrides"),
        "name of a folder elsewhere": Mistake(
            "train parity name=../../evil train.steps=1",
            "name: expected a plain name such as 'text-mamba', which its folder has, got '../../evil'",
        ),
        "answers of a text": Mistake(
            "train text-mamba data.path=corpus objective.kind=answers train.steps=1",
            "objective.kind: 'answers' asks for the answers of a task, and data.kind is 'text'; choose from induction, selective_copying, "
            "mqar, parity, modular_arithmetic, needles, babilong, diary",
        ),
        "series for a language model": config(
            '\'data={kind="series",path="own.csv"}\'',
            "model.kind: 'language' does not fit data.kind, which is 'series'; choose from forecast, dlinear",
        ),
        "text for a forecaster": series(
            '\'data={kind="text",path="corpus"}\'',
            "model.kind: 'dlinear' does not fit data.kind, which is 'text'; choose from language",
        ),
        "next token of a series": series(
            "objective.kind=next_token",
            "objective.kind: 'next_token' does not fit data.kind, which is 'series'; choose from forecast",
        ),
        "odd horizon of a model": series("model.horizon=7", "model.horizon: 7, but data.horizon is 96; leave it out"),
        "wide patches": Mistake("train forecast-lmm model.patch=97", "model: stride=8, patch=97 and look_back=96: expected 1"),
        "even window": series("model.window=4", "model: window=4 must be an odd number"),
        "unknown loss": series("objective.loss=mape", "objective.loss: 'mape' is not a choice; choose from mse, mae"),
        "vocabulary of a series": Mistake("cost forecast-lmm --vocab 9", "--vocab: the data of forecast-lmm has its own sizes"),
        "vocabulary of a task": Mistake("cost parity --vocab 100", "--vocab: the data of parity has its own sizes"),
        "vocabulary of a trained model": Mistake("cost model --vocab 100", "--vocab: model has its own vocabulary"),
        "endless depth": Mistake("cost text-mamba model.depth=10000000", "depth=10000000 from 1 to 4096"),
        "sizes beyond memory": Mistake("cost text-mamba model.dim=1000000000", "sizes are too large for this machine"),
        "no dim": Mistake("train text-mamba model.dim=0", "model: dim=0 must be at least 1"),
        "no such device": Mistake("train text-mamba train.device=gpu", "'gpu' cannot be used here; choose such as cpu, cuda"),
        "length of it": Mistake("cost text-mamba --length 5,x", "--length: 'x' is not a whole number above 0"),
        "run's folder is a file": Mistake("train run.json --out text.txt", "--out text.txt: is a file; name a folder"),
    },
    "data": {
        "missing text": Mistake("corpus no.txt --out new", "no.txt: no such file or folder"),
        "binary": Mistake("corpus text.txt --out new", "text.txt", write("text.txt", bytes(range(256)) * 9)),
        "empty": Mistake("corpus text.txt --out new", "text.txt: no text in it", write("text.txt", "")),
        "empty folder": Mistake("corpus empty --out new", "empty: no text in it"),
        "bad JSONL": Mistake("corpus rows.jsonl --out new", "rows.jsonl", write("rows.jsonl", "{]\n" * 30)),
        "other field": Mistake("corpus rows.jsonl --field body --out new", "the first is row 1: no 'body'"),
        "vocabulary": Mistake("corpus text.txt --vocab 0 --out new", "--vocab: '0' is neither 'bytes' nor a whole number"),
        "small vocabulary": Mistake(
            "corpus text.txt --vocab 12 --out new", "'12' is neither 'bytes' nor a whole number from 257 to 131072"
        ),
        "someone's folder": Mistake("corpus text.txt --out notes", "notes"),
        "missing series": series("data.path=no.csv", "data.path: no.csv: no such file; give a CSV, or ETTh1 or ETTh2"),
        "a word in a series": series("", "own.csv:3: column 'a' holds 'x'", spoil=write("own.csv", "date,a\nd,1\nd,x\n")),
        "short series": series("data.horizon=300", "own.csv: train has 280 of 400 rows, too few for data.look_back=96"),
        "unknown parts": series("data.parts=ETTx", "data.parts: 'ETTx' is not a choice; choose from auto, ETTh, ETTm, shares"),
        "no horizon": series("data.horizon=0", "data: look_back=96 and horizon=0 must be at least 1"),
        "missing series to score": Mistake("evaluate forecaster --series no.csv", "data.path: no.csv: no such file"),
        "series for a language model": Mistake("evaluate model --series own.csv", "model: is no forecaster; give --text"),
        "text for a forecaster": Mistake("evaluate forecaster --text text.txt", "forecaster: this model was saved without"),
        "text and series": Mistake("evaluate model --text text.txt --series own.csv", "--series: not allowed with"),
        "nothing to score": Mistake(
            "evaluate model", "one of the arguments --text --questions --series --images --judge --physics --goals is required"
        ),
        "window of a series": Mistake("evaluate forecaster --series own.csv --window 9", "--window: belongs to --text"),
        "text from a forecaster": Mistake("generate forecaster", "forecaster: is no language model"),
        "missing corpus": config("data.path=no", "no: no such folder"),
        "no corpus": config("data.path=notes", "notes: not a corpus: no manifest.json in it"),
        "short corpus": config("data.length=100000", "corpus: train has"),
        "damaged shard": config("", "corpus/train-00000.bin: damaged", spoil=flip("corpus/train-00000.bin")),
        "truncated shard": config("", "corpus/train-00000.bin: damaged", spoil=cut("corpus/train-00000.bin")),
        "missing shard": config("", "corpus/train-00000.bin: No such file", spoil=remove("corpus/train-00000.bin")),
        "damaged index": config("", "corpus/train-00000.idx: damaged", spoil=flip("corpus/train-00000.idx", 1.0)),
        "damaged manifest": config("", "corpus/manifest.json: damaged", spoil=cut("corpus/manifest.json")),
        "other manifest": config("", "corpus/manifest.json", spoil=edit("corpus/manifest.json", format="zip")),
        "damaged tokenizer": config("", "corpus/tokenizer.json", spoil=write("corpus/tokenizer.json", "{")),
        "missing text to score": Mistake("evaluate model --text no.txt", "no.txt: no such file or folder"),
        "binary to score": Mistake(
            "evaluate model --text text.txt", "--text text.txt: holds no text", write("text.txt", b"\0" * 99)
        ),
        "large vocabulary": Mistake("corpus text.txt --vocab 999999 --out new", "'999999' is neither 'bytes' nor"),
        "window": Mistake("evaluate model --text text.txt --window 0", "--window: '0' is not a whole number above 0"),
    },
    "checkpoint": {
        "missing": Mistake("generate ./no", "./no: no such folder; name a run, a checkpoint"),
        "a file": Mistake("generate text.txt", "text.txt: no such folder"),
        "not on the hub": Mistake("generate nobody/nothing", "nobody/nothing: no such folder here"),
        "empty folder": Mistake("generate empty", "empty: is no run, checkpoint or model folder"),
        "run without one": Mistake(
            "generate new", "new: this run has no checkpoint yet", lambda w: (w / "new/checkpoints").mkdir(parents=True)
        ),
        "flipped bit": Mistake(
            f"generate {CHECKPOINT}", f"{CHECKPOINT}/model.safetensors: damaged", flip(f"{CHECKPOINT}/model.safetensors")
        ),
        "truncated": Mistake(
            f"generate {CHECKPOINT}", f"{CHECKPOINT}/model.safetensors: damaged", cut(f"{CHECKPOINT}/model.safetensors")
        ),
        "missing part": Mistake(
            f"evaluate {CHECKPOINT} --text text.txt", f"{CHECKPOINT}/config.json", remove(f"{CHECKPOINT}/config.json")
        ),
        "damaged manifest": Mistake(f"generate {CHECKPOINT}", "manifest.json", flip(f"{CHECKPOINT}/manifest.json")),
        "resumed as another": Mistake("train run.json model.dim=32 --out run", "model.dim is 16 there and 32 here"),
        "resumed for less": Mistake("train run.json train.steps=1 --out run", "train.steps is 2 there and 1 here"),
        "folder truncated": Mistake(GENERATE, "model/model.safetensors: not a readable", cut("model/model.safetensors")),
        "folder's header flipped": Mistake(GENERATE, "model/model.safetensors", flip("model/model.safetensors", 0.001)),
        "no weights": Mistake(GENERATE, "model/model.safetensors: No such file", remove("model/model.safetensors")),
        "bad JSON": Mistake(GENERATE, "model/config.json: not valid JSON", cut("model/config.json")),
        "other format": Mistake(GENERATE, "model/config.json: neither a", edit("model/config.json", format="x")),
        "unknown key": Mistake(GENERATE, "model/config.json: unknown 'colour'", edit("model/config.json", colour="red")),
        "no kind": Mistake(GENERATE, "model/config.json: expected a table with 'kind'", edit("model/config.json", kind=None)),
        "wrong type": Mistake(GENERATE, "model/config.json.dim: expected a whole", edit("model/config.json", dim="wide")),
        "other shape": Mistake(GENERATE, "'embed.weight' has shape", edit("model/config.json", vocab=300)),
        "other names": Mistake(GENERATE, "'head.weight' has no place", edit("model/config.json", tied=True)),
        "missing tensor": Mistake(GENERATE, "'embed.weight' is missing", edit_tensors(lambda t: t.pop("embed.weight"))),
        "whole numbers": Mistake(
            GENERATE,
            "'embed.weight' is torch.int64",
            edit_tensors(lambda t: t.update({"embed.weight": t["embed.weight"].long()})),
        ),
        "eight bits": Mistake(
            GENERATE,
            "'embed.weight' is torch.float8_e4m3fn",
            edit_tensors(lambda t: t.update({"embed.weight": t["embed.weight"].to(torch.float8_e4m3fn)})),
        ),
        "NaN in the weights": Mistake(
            GENERATE, "output is not finite", edit_tensors(lambda t: t["embed.weight"].fill_(float("nan")))
        ),
        "NaN when it is scored": Mistake(
            "evaluate model --text text.txt",
            "output is not finite",
            edit_tensors(lambda t: t["embed.weight"].fill_(float("nan"))),
        ),
        "depth bomb": Mistake(GENERATE, "depth=1000000000, but", edit("model/config.json", depth=10**9)),
        "width bomb": Mistake(GENERATE, "model/", edit("model/config.json", dim=10**9)),
        "width beyond integers": Mistake(GENERATE, "model/config.json", edit("model/config.json", dim=10**30)),
        "nesting bomb": Mistake(GENERATE, "model/config.json: not valid JSON", write("model/config.json", '{"a":' * 10**5)),
        "foreign kind": Mistake(
            GENERATE,
            "model/config.json: mixers[0].kind names code of another package",
            edit("model/config.json", mixers=[{"kind": "os:system"}]),
        ),
        "foreign model": Mistake(GENERATE, "config.json: kind names code of", edit("model/config.json", kind="os:system")),
        "other tokenizer": Mistake(GENERATE, "model/tokenizer.json", edit("model/tokenizer.json", format="other")),
        "damaged tokenizer": Mistake(GENERATE, "model/tokenizer.json: not a JSON file", cut("model/tokenizer.json")),
        "no tokenizer": Mistake(GENERATE, "saved without a tokenizer", remove("model/tokenizer.json")),
        "no tokenizer to score": Mistake(
            "evaluate model --text text.txt", "model: this model was saved without", remove("model/tokenizer.json")
        ),
        "transformers' other type": Mistake(
            GENERATE,
            "model_type 'gpt2' cannot be converted; choose from llama, mamba, mamba2",
            as_transformers(model_type="gpt2"),
        ),
        "transformers' missing key": Mistake(GENERATE, "config.json: 'num_hidden_layers' is missing", as_transformers(**MAMBA)),
        "transformers' other option": Mistake(
            GENERATE, "config.json: attention_bias=True", as_transformers(**LLAMA, attention_bias=True)
        ),
        "transformers' other positions": Mistake(
            GENERATE, "rope_type 'yarn' cannot", as_transformers(**LLAMA, rope_parameters={"rope_type": "yarn"})
        ),
        "transformers' odd positions": Mistake(GENERATE, "rope_parameters", as_transformers(**LLAMA, rope_parameters=[1])),
        "transformers' odd base": Mistake(GENERATE, "rope_base", as_transformers(**LLAMA, rope_theta="big")),
        "transformers' odd width": Mistake(
            GENERATE, "dim: expected a whole", as_transformers(**{**LLAMA, "hidden_size": "16"})
        ),
        "transformers' other tensors": Mistake(
            GENERATE, "has no place in a converted model", write("model/config.json", json.dumps(LLAMA))
        ),
    },
    "state": {
        "prompt that is no text": Mistake(
            "generate model --prompt -", "standard input: not UTF-8 text (byte 3)", stdin=b"abc\xff"
        ),
        "missing": Mistake(f"{GENERATE} --load-state no", "--load-state no: no such file"),
        "another file to overwrite": Mistake(f"{GENERATE} --save-state text.txt", "text.txt: is there and no state"),
        "a device to overwrite": Mistake(
            f"{GENERATE} --save-state pipe", "pipe: is there and no state", lambda w: os.mkfifo(w / "pipe")
        ),
        "flipped bit": Mistake(f"{GENERATE} --load-state state", "state: damaged", flip("state", 0.9)),
        "truncated": Mistake(f"{GENERATE} --load-state state", "state: not a readable safetensors", cut("state")),
        "empty": Mistake(f"{GENERATE} --load-state state", "state: not a readable safetensors", write("state", b"")),
        "not safetensors": Mistake(f"{GENERATE} --load-state text.txt", "text.txt: not a safetensors file, or damaged: "),
        "not a state": Mistake(f"{GENERATE} --load-state model/model.safetensors", "not a postformer state"),
        "other model": Mistake(f"{GENERATE} --load-state state", "state: this state belongs to another model", other_model),
        "of a batch": Mistake(f"{GENERATE} --load-state state", "not the one text that `generate` continues", batch_state),
        "no folder for it": Mistake(f"{GENERATE} --save-state no/state", "--save-state no/state: the folder no does not exist"),
        "a folder in its place": Mistake(f"{GENERATE} --save-state empty", "--save-state empty: is a folder"),
        "of a failed text": Mistake(
            f"{GENERATE} --save-state state",
            "output is not finite",
            edit_tensors(lambda t: t["embed.weight"].fill_(float("nan"))),
        ),
    },
    "memory": {
        "missing text": Mistake("read model no.txt --memory m", "no.txt: no such file; name files of text to read"),
        "a folder to read": Mistake("read model notes --memory m", "notes: is no file"),
        "nothing to read": Mistake("read model text.txt --memory m", "text.txt: holds nothing", write("text.txt", "")),
        "no folder for it": Mistake("read model text.txt --memory no/m", "--memory no/m: the folder no does not exist"),
        "a folder in its place": Mistake("read model text.txt --memory notes", "--memory notes: is a folder"),
        "no state": Mistake("read model text.txt --memory rows.jsonl", "rows.jsonl: not a"),
        "other model": Mistake("read model text.txt --memory state", "state: this state belongs to another model", other_model),
        "other origin": Mistake(
            "read model text.txt --memory state --from state", "--memory state: is there and was not begun from"
        ),
        "no origin": Mistake("read model text.txt --memory m --from no", "no: No such file"),
        "odd interval": Mistake("read model text.txt --memory m --every soon", "--every: 'soon' is not a time"),
        "no action": Mistake("memory", "ACTION"),
        "unknown action": Mistake("memory burn state", "invalid choice: 'burn' (choose from"),
        "no memory": Mistake("memory show no", "no: No such file"),
        "not a memory": Mistake("memory fork text.txt new", "text.txt: not a"),
        "fork over a file": Mistake("memory fork state new text.txt", "text.txt: is there already"),
        "no snapshot": Mistake("memory rollback state", "state: has no snapshot"),
        "odd snapshot": Mistake("memory rollback state first", "NUMBER: 'first' is not a whole number above 0"),
        "no question": Mistake("ask model --memory state", "ask: give a question, or --questions FILE"),
        "two questions": Mistake("ask model why --memory state --questions text.txt", "ask: both a question and --questions"),
        "no questions": Mistake("ask model --memory state --questions no", "no: No such file"),
        "empty questions": Mistake(
            "ask model --memory state --questions q", "--questions q: holds no question", write("q", "\n")
        ),
        "odd questions": Mistake(
            "ask model --memory state --questions q", "--questions q: not UTF-8 text", write("q", b"\xff")
        ),
        "no memory to ask": Mistake("ask model why --memory no", "--memory no: no such file"),
        "no task": Mistake(
            "ask model why --memory state", "model: was not trained on texts with questions (data.kind needles, "
        ),
        "no task to measure": Mistake("evaluate run --questions 3", "run: was not trained on texts with questions"),
        "nothing to evaluate": Mistake(
            "evaluate model", "one of the arguments --text --questions --series --images --judge --physics --goals is required"
        ),
        "length of a text": Mistake("evaluate model --text text.txt --length 5", "--length: belongs to --questions"),
        "unknown words": Mistake(
            "ask model 'Where does Zork Abel live?' --memory state",
            "ask: the question's 'Zork' stands in no question of diaries",
            write("model/run.json", '{"data": {"kind": "diary"}}'),
        ),
        "unknown words in a file": Mistake(
            "ask model --memory state --questions q",
            "q:2: the question's 'Zork' stands in no question",
            lambda w: [
                write("model/run.json", '{"data": {"kind": "diary"}}')(w),
                write("q", "Where does Ada Abel live?\nWhere Zork?\n")(w),
            ],
        ),
        "too short to measure": Mistake(
            "evaluate model --questions 3 --length 20",
            "20 tokens (bytes) are too few",
            write("model/run.json", '{"data": {"kind": "diary"}}'),
        ),
    },
    "sampling": {
        name: Mistake(f"{GENERATE} {words}", says)
        for name, words, says in (
            ("temperature", "--temperature -1", "temperature: -1.0 is not valid; it must be finite and at least 0"),
            ("endless temperature", "--temperature inf", "temperature: inf is not valid"),
            ("NaN temperature", "--temperature nan", "temperature: nan is not valid"),
            ("text temperature", "--temperature hot", "--temperature: invalid float value: 'hot'"),
            ("top-k", "--top-k -1", "top_k: -1 is not valid"),
            ("top-p", "--top-p 0", "top_p: 0.0 is not valid; it must be above 0 and at most 1"),
            ("large top-p", "--top-p 1.5", "top_p: 1.5 is not valid"),
            ("NaN top-p", "--top-p nan", "top_p: nan is not valid"),
            ("min-p", "--min-p 2", "min_p: 2.0 is not valid"),
            ("penalty", "--repetition-penalty 0", "repetition_penalty: 0.0 is not valid"),
            ("tokens", "--max-tokens -5", "--max-tokens: '-5' is not a whole number of at least 0"),
            ("stop", "--stop ''", "--stop: an empty text stops nothing"),
            ("seed", "--seed -1", "seed: -1 is not valid"),
            ("large seed", f"--seed {1 << 63}", "seed: 9223372036854775808 is not valid"),
        )
    },
    "report": {
        "unknown claim": Mistake("report --claims long_txt --out new", "--claims: unknown 'long_txt'; choose from long_text"),
        "no claim": Mistake("report --claims , --out new", "--claims: ',' names no claim"),
        "budget": Mistake("report --budget soon --out new", "--budget: 'soon' is not a time such as 90s, 10m or 2h"),
        "no budget": Mistake("report --budget 0 --out new", "--budget: '0' is not a time"),
        "seeds": Mistake("report --seeds 0,0 --out new", "--seeds: '0,0' is not a list of different whole numbers"),
        "odd seeds": Mistake("report --seeds a --out new", "--seeds: 'a' is not"),
        "threads": Mistake("report --threads 0 --out new", "--threads: '0' is not a whole number above 0"),
        "threads beyond sense": Mistake("report --threads 100000 --out new", "--threads: 100000 must be at most 1024"),
        "odd threads": Mistake("report --threads ² --out new", "--threads: '²' is not a whole number above 0"),
        "ten years": Mistake("report --diary-words 1000000 --out new", "--diary-words: expected more than 1,000,000 words"),
        "no images": Mistake(
            "report --images none --out new", "--images none: no such file or folder; give one, or digits or tiles"
        ),
        "images for nobody": Mistake(
            "report --claims selective --images digits --out new", "--images: is for patches_see, which --claims leaves out"
        ),
        "odd words": Mistake("report --diary-words 50M --out new", "--diary-words: '50M' is not a whole number above 0"),
        "words of no diary": Mistake(
            "report --claims selective --diary-words 2000000 --out new",
            "--diary-words: is for neural_memory, which --claims leaves out",
        ),
        "missing text": Mistake("report --text no.txt --out new", "--text no.txt: no such file or folder"),
        "a file": Mistake("report --out text.txt", "--out text.txt: is a file"),
        "someone's folder": Mistake("report --out notes", "--out notes: holds 'mine.txt' but no report.json"),
        "no report": Mistake("report --render no.json", "no.json: cannot be read as a report"),
        "bad report": Mistake("report --render run.json", 'run.json: expected a report with "schema"'),
        "not JSON": Mistake("report --render text.txt", "text.txt: cannot be read as a report"),
        "half a report": Mistake(
            "report --render run.json", "run.json: not a whole", write("run.json", '{"schema": "postformer-report-1"}')
        ),
    },
}


PROGRESS = ("reading", "training the tokenizer")
"""What `corpus` says while it works."""


def contents(folder: Path) -> dict[str, str]:
    """Every path below the folder with its content's digest."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in found}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in MISTAKES.items() for name in table])
def test_mistake(kind, name, world, tmp_path, monkeypatch, capsys):
    def offline(*args: Any, **kwargs: Any) -> None:
        raise LocalEntryNotFoundError("it is not in the cache,\nand there is no network")

    mistake, w = MISTAKES[kind][name], tmp_path / "w"
    shutil.copytree(world, w)
    mistake.spoil(w)
    monkeypatch.chdir(w)
    monkeypatch.setattr(hub, "snapshot_download", offline)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(mistake.stdin)))
    before = contents(w)
    with pytest.raises(SystemExit) as end:
        main(shlex.split(mistake.command))
    _, err = capsys.readouterr()
    assert end.value.code == 2
    lines = [line for line in err.splitlines() if line.strip() and line not in PROGRESS]
    assert len(lines) == 1, err
    assert mistake.says in lines[0]
    assert "Traceback" not in err
    after = contents(w)
    if kind == "data":  # what a build of a corpus wrote before it found the mistake stays in its own new folder
        after = {path: digest for path, digest in after.items() if path.split("/")[0] != "new"}
    assert after == before


@pytest.mark.parametrize(
    ("kind", "name"),
    [("config", "unknown key in mixer"), ("checkpoint", "flipped bit"), ("state", "other model"), ("report", "budget")],
)
def test_mistake_in_a_process(kind, name, world, tmp_path):
    mistake, w = MISTAKES[kind][name], tmp_path / "w"
    shutil.copytree(world, w)
    mistake.spoil(w)
    before = contents(w)
    command = [sys.executable, "-m", "postformer.cli", *shlex.split(mistake.command)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=w, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert mistake.says in done.stderr
    assert contents(w) == before


def test_a_run_without_a_whole_checkpoint(world, tmp_path, monkeypatch, capsys):
    """Each damaged checkpoint that another stands before is a warning; the mistake itself is one line."""
    w = tmp_path / "w"
    shutil.copytree(world, w)
    for step in (1, 2):
        flip(f"run/checkpoints/step-{step:08d}/model.safetensors")(w)
    monkeypatch.chdir(w)
    with pytest.raises(SystemExit) as end:
        main(["generate", "run"])
    *warnings, last = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert len(warnings) == 1
    assert all(line.startswith("warning: ") for line in warnings)
    assert "none of the run's checkpoints (2) is whole" in last
