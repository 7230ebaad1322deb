"""Experts that stay on disk: the same bits as in memory, a cap that holds, and files that are damaged."""

import math
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import small
import torch

import postformer
from postformer import state
from postformer.config import UserError
from postformer.models import expert_file
from postformer.models.expert_file import ExpertsError
from postformer.models.expert_slots import Int4Slots, Int8Slots
from postformer.models.expert_store import ExpertMemory, expert_names
from postformer.models.generation import Batch, Sampling, Stream, generate
from postformer.models.hub import ModelError, load_model, save_model
from postformer.models.language import LanguageModel
from postformer.models.memory import Memory
from postformer.models.routing import mixtures
from postformer.models.upcycle import upcycle
from postformer.tokens.text import Bytes
from postformer.train.session import open_model

PRESETS = {
    "mixtral": {},
    "switch": {},
    "olmoe": {"top": 4},
    "qwen2": {"experts": 12},
    "deepseek-v3": {"top": 4, "groups": 4, "top_groups": 2},
    "gpt-oss": {"top": 3},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
CALLS = ((1, 1), (2, 1), (1, 7), (2, 60), (1, 200))


def model(preset="mixtral", dtype="fp32", **words):
    torch.manual_seed(0)
    ffns = ({"kind": "moe", "preset": preset, "experts": 16, "hidden": 32, **PRESETS[preset], **words},)
    made = LanguageModel(257, dim=32, depth=3, mixers=(small.MIXERS["attention"],), ffns=ffns).eval().to(DTYPES[dtype])
    made.tokens = Bytes()
    for mixture in mixtures(made).values():
        if mixture.correction is not None:
            mixture.correction.uniform_(-0.1, 0.1)
    return made


def in_memory(folder):
    """Its matrices begin where slots do: products of matrices that lie otherwise differ in their last bits."""
    made = load_model(folder)
    for name in expert_names(made):
        made.get_parameter(name).data = made.get_parameter(name).data.clone()
    return made


def one(made):
    """Bytes of an expert."""
    mixture = next(iter(mixtures(made).values()))
    return sum(p[0].numel() * p.element_size() for part in (mixture.up, mixture.out) for p in part.parameters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("experts") / "model"
    save_model(model("olmoe"), path)
    return path


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_same_bits(preset, dtype, ahead, tmp_path):
    made = model(preset, dtype)
    save_model(made, tmp_path)
    here = in_memory(tmp_path)
    top = next(iter(mixtures(made).values())).top
    for slots in (top, top + 3, 24, 200):
        memory = ExpertMemory(cap=slots * one(made) + 5, ahead=ahead)
        there = load_model(tmp_path, experts=memory)
        with torch.inference_mode():
            for shape in CALLS:
                ids = torch.randint(257, shape)
                assert torch.equal(here(ids)[0], there(ids)[0]), (slots, shape)
        assert there.experts.nbytes == min(slots, 3 * len(mixtures(made)["backbone.blocks.0.ffn"].loads)) * one(made)


@pytest.mark.parametrize("policy", ["lru", "least-stale", "next-use"])
@pytest.mark.parametrize("dtype", ["own", "int8", "int4"])
def test_the_cap_holds(dtype, policy, folder):
    cap = 120_000 if dtype == "int4" else 200_000
    there = load_model(folder, experts=ExpertMemory(cap=cap, dtype=dtype, ahead=True, policy=policy))
    with torch.inference_mode():
        for shape in CALLS:
            there(torch.randint(257, shape))
    (pool,) = there.experts.pools.values()
    slots = pool.slots
    held = [*slots.parts.values(), *getattr(slots, "scales", {}).values(), *getattr(slots, "used", {}).values()]
    assert sum(t.numel() * t.element_size() for t in held) <= there.experts.nbytes <= cap
    assert pool.cache.slots < pool.all
    told = there.experts.told
    assert 0 < told.count.hits < told.count.asked
    assert told.guessed_right <= told.guessed <= told.read
    assert told.predicted_right <= told.predicted
    assert told.read_bytes == told.read * one(there)
    assert all(there.get_parameter(name).is_meta for name in expert_names(there))


def test_texts_are_the_same_and_a_state_goes_on_in_either(folder, tmp_path):
    here, there = load_model(folder), load_model(folder, experts=ExpertMemory(cap=100_000, ahead=True))
    prompts = ["the sea", "a name", "day", "all who wait"]
    for sampling in (Sampling(temperature=0.0, max_tokens=12), Sampling(max_tokens=12, seed=3)):
        assert generate(here, prompts, sampling, width=3) == generate(there, prompts, sampling, width=3)
    assert state.fingerprint(here) == state.fingerprint(there)
    stream = Stream(there, "the sea", Sampling(max_tokens=5))
    list(stream)
    stream.remember().save(tmp_path / "s", there)
    texts = [list(Stream(m, "", Sampling(max_tokens=9), Memory.load(tmp_path / "s", m))) for m in (here, there)]
    assert texts[0] == texts[1]


def test_rows_that_leave(folder):
    here, there = load_model(folder), load_model(folder, experts=ExpertMemory(cap=100_000))
    drawn = []
    for m in (here, there):
        batch = Batch(m)
        rows = [batch.join([65 + i], Sampling(temperature=0.0, max_tokens=3 + i)) for i in range(3)]
        while batch.rows:
            batch.step()
        drawn.append([row.produced for row in rows])
    assert drawn[0] == drawn[1]


def test_experts_of_several_shapes(tmp_path):
    torch.manual_seed(0)
    ffns = ({"kind": "mlp", "hidden": 24}, {"kind": "none"}, {"kind": "mlp", "hidden": 36, "activation": "gelu"})
    made = upcycle([LanguageModel(61, dim=16, depth=6, ffns=ffns)], experts=4)
    save_model(made, tmp_path)
    sizes = [4 * 16 * n for n in (3 * 24, 2 * 36)]
    there = load_model(tmp_path, experts=ExpertMemory(cap=5 * sum(sizes), ahead=True))
    assert [pool.cache.slots for pool in there.experts.pools.values()] == [5, 5]
    with torch.inference_mode():
        for shape in CALLS:
            ids = torch.randint(61, shape)
            torch.testing.assert_close(in_memory(tmp_path)(ids)[0], there(ids)[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ExpertsError, match=f"9,000 bytes are too few; .* take {2 * sum(sizes):,}"):
        load_model(tmp_path, experts=ExpertMemory(cap=9000))


def test_int8(folder):
    w = torch.randn(9, 70) * torch.tensor([0.0, 1e-30, *[2.0**i for i in range(7)]])[:, None]
    q, scale = Int8Slots.rounded(w)
    assert q.abs().max() == 127
    assert ((q * scale - w).abs() <= scale * 0.501).all()
    here, own, eighths = (
        load_model(folder, experts=e)
        for e in (None, ExpertMemory(cap=150_000), ExpertMemory(cap=150_000, dtype="int8", ahead=True))
    )
    slots = [next(iter(m.experts.pools.values())).cache.slots for m in (own, eighths)]
    assert slots[1] > 1.5 * slots[0], "of these small ones what else int8 needs takes much"
    ids = torch.randint(257, (1, 1))
    with torch.inference_mode():
        exact, near = here(ids)[0], eighths(ids)[0]
    assert 0 < (exact - near).abs().max() < 0.01 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [64, 48, 6])
def test_int4_rounds_each_group_to_its_sixteen_steps(columns: int, dtype: torch.dtype):
    w = torch.randn(70, columns) * torch.tensor([0.0, 1e-30, *[2.0**i for i in range(68)]])[:, None]
    packed, scales = Int4Slots.rounded(w)
    group = math.gcd(columns, 32)
    assert packed.shape == (70, columns // 2) and scales.shape == (70, columns // group)
    restored = torch.full(w.shape, torch.nan, dtype=dtype)
    Int4Slots.restore(packed, scales, restored)
    groups, found, step = (x.float().unflatten(1, (-1, n)) for x, n in ((w, group), (restored, group), (scales, 1)))
    within = torch.where(groups / step > 7.4, 1.04, 0.54)  # the end opposite to the largest lies a step further than 7
    assert ((found - groups).abs() <= step.abs() * within).all()
    largest = groups.abs().argmax(2, keepdim=True)
    torch.testing.assert_close(found.gather(2, largest), groups.gather(2, largest), rtol=2**-7, atol=0)
    assert (found[0] == 0).all()


def test_int4_holds_more_and_errs_more(folder):
    def loaded(dtype: Any) -> Any:
        return load_model(folder, experts=ExpertMemory(cap=150_000, dtype=dtype))

    here, eighths, fourths = load_model(folder), loaded("int8"), loaded("int4")
    eight, four = (next(iter(m.experts.pools.values())) for m in (eighths, fourths))
    assert four.cache.slots > eight.cache.slots
    assert type(four.slots).slot_bytes(four.shape) < 0.7 * type(eight.slots).slot_bytes(eight.shape)
    ids = torch.randint(257, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, near, nearly = (m(ids)[0] for m in (here, eighths, fourths))
    errors = [float((x - exact).norm() / exact.norm()) for x in (near, nearly)]
    assert 0 < 4 * errors[0] < errors[1] < 0.2


# ---------------------------------------------------------------- mistakes


def test_int4_of_an_odd_width_is_refused(tmp_path):
    made = LanguageModel(61, dim=16, depth=1, ffns=({"kind": "moe", "hidden": 7},))
    save_model(made, tmp_path)
    with pytest.raises(ExpertsError, match="int4 takes matrices with an even number of columns; one of these has 7"):
        load_model(tmp_path, experts=ExpertMemory(cap=100_000, dtype="int4"))


def test_what_is_refused(folder, tmp_path):
    there = load_model(folder, experts=ExpertMemory(cap=100_000))
    with pytest.raises(UserError, match="experts are on disk; load it without"):
        postformer.save(there, tmp_path / "copy")
    with pytest.raises(RuntimeError, match="no gradients"):
        next(iter(mixtures(there).values()))(torch.randn(1, 2, 32, requires_grad=True))
    assert not any(p.requires_grad for p in there.parameters())
    save_model(small.model(), tmp_path / "dense")
    with pytest.raises(ExpertsError, match=r"dense/model\.safetensors: the model has no experts"):
        open_model(tmp_path / "dense", experts=ExpertMemory(cap=100_000))


def test_a_file_that_is_cut(folder, tmp_path):
    save_model(load_model(folder), tmp_path)
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    there = load_model(tmp_path, experts=ExpertMemory(cap=100_000))
    names = list(there.experts.file.places)
    os.truncate(file, size // 2)
    mixture = mixtures(there)["backbone.blocks.2.ffn"]
    with pytest.raises(ExpertsError, match="damaged: it ends inside of 'backbone"):
        mixture.elsewhere(torch.randn(4, 32), torch.arange(16).view(4, 4), torch.rand(4, 4))
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(tmp_path, experts=ExpertMemory(cap=100_000))
    with pytest.raises(ExpertsError, match=r"damaged: 'backbone\S+ ends at byte"):
        expert_file.ExpertFile(file, names)
    for damaged in (b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}"):
        file.write_bytes(damaged)
        with pytest.raises(ExpertsError, match="not a readable safetensors file"):
            expert_file.ExpertFile(file, names)
    with pytest.raises(ExpertsError, match="nothing: No such file"):
        expert_file.ExpertFile(tmp_path / "nothing", names)


@pytest.mark.parametrize("at", [0, 1, 5, 20, 41])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("ahead", [False, True])
def test_after_a_read_that_fails_the_same_bits(ahead, error, at, folder, monkeypatch):
    """In either thread, of what is asked for or of a guess: it is told once, and then read."""
    here, there = in_memory(folder), load_model(folder, experts=ExpertMemory(cap=100_000, ahead=ahead))
    reads, whole = iter(range(1000)), os.preadv

    def fails_once(*words):
        if next(reads) == at:
            raise error
        return whole(*words)

    monkeypatch.setattr(os, "preadv", fails_once)
    told = 0
    with torch.inference_mode():
        for ids in torch.arange(12).split(3):
            try:
                there(ids[None])
            except (ExpertsError, KeyboardInterrupt):
                told += 1
            assert torch.equal(here(ids[None])[0], there(ids[None])[0])
    (pool,) = there.experts.pools.values()
    held = pool.cache.slot_of[pool.cache.slot_of >= 0].tolist()
    pending = [slot for _, slot in pool.pending.values()]
    assert sorted([*held, *pending, *pool.cache.free]) == list(range(pool.cache.slots))
    assert told == 1


def test_threads_take_turns(folder):
    here, there = in_memory(folder), load_model(folder, experts=ExpertMemory(cap=100_000, ahead=True))
    texts = torch.randint(257, (12, 1, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), ThreadPoolExecutor(4) as threads:
        expected = [here(ids)[0] for ids in texts]
        found = list(threads.map(torch.no_grad()(lambda ids: there(ids)[0]), texts))
    assert all(map(torch.equal, found, expected))


def test_reads_that_give_little_at_once(folder, monkeypatch):
    there = load_model(folder, experts=ExpertMemory(cap=100_000, drop=True))
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: whole(fd, [into[0][:1000]], at))
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        assert torch.equal(in_memory(folder)(ids)[0], there(ids)[0])


def test_the_file_is_closed(folder):
    file = expert_file.ExpertFile(folder / "model.safetensors", [])
    fd, gone = file.fd, weakref.ref(file)
    del file
    assert gone() is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
