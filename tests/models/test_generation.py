"""Sampling against its definitions, texts alone and together, stops, and texts in two sittings."""

import inspect
import itertools
import math

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st

from postformer import state as states
from postformer.cli import main
from postformer.config import UserError
from postformer.models.generation import Batch, Memory, Sampling, Stream, Text, choose, generate
from postformer.models.hub import save_model
from postformer.state import StateError
from postformer.tokens.text import BPE, Bytes

GREEDY = Sampling(temperature=0.0, max_tokens=12)
MIXERS = sorted(small.MIXERS)


def drawn(stream: Stream) -> str:
    return "".join(stream)


# ---------------------------------------------------------------- one token


def by_definition(logits: list[float], s: Sampling, occurred: set[int]) -> dict[int, float]:
    """The distribution, written down slowly."""
    p = s.repetition_penalty
    logits = [(x / p if x > 0 else x * p) if i in occurred else x for i, x in enumerate(logits)]
    weights = [math.exp(x / s.temperature) for x in logits]
    probability = {i: w / sum(weights) for i, w in enumerate(weights)}
    ranked = sorted(probability, key=lambda i: (-probability[i], i))
    if s.top_k:
        ranked = ranked[: s.top_k]
    total = sum(probability[i] for i in ranked)
    nucleus, held = [], 0.0
    for i in ranked:
        if held >= s.top_p - 1e-12:
            break
        nucleus.append(i)
        held += probability[i] / total
    kept = {i: probability[i] for i in nucleus if probability[i] >= s.min_p * max(probability.values()) - 1e-15}
    return {i: w / sum(kept.values()) for i, w in kept.items()}


LOGITS = [2.0, -1.0, 0.5, 0.45, -3.0, 1.2]
FILTERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 99},
    {"top_p": 0.6},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.5},
    {"top_k": 4, "top_p": 0.7, "min_p": 0.1, "temperature": 1.3, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("words", FILTERS, ids=str)
def test_filters_are_their_definitions(words):
    s, occurred, draws = Sampling(**words), {0, 1}, 3000
    expected = by_definition(LOGITS, s, occurred)
    generator = torch.Generator().manual_seed(0)
    counts = dict.fromkeys(range(len(LOGITS)), 0)
    for _ in range(draws):
        counts[choose(torch.tensor(LOGITS), s, occurred, generator)] += 1
    assert {i for i, p in expected.items() if p > 0.01} <= {i for i, n in counts.items() if n} <= expected.keys()
    for i, p in expected.items():
        assert abs(counts[i] / draws - p) < 4.5 * math.sqrt(p * (1 - p) / draws) + 1e-12


@given(
    logits=st.lists(st.floats(-8, 8), min_size=1, max_size=9),
    k=st.integers(0, 9),
    p=st.floats(0.05, 1.0),
    m=st.floats(0, 1),
    seed=st.integers(0, 2**62),
)
def test_only_what_the_filters_keep_is_drawn(logits, k, p, m, seed):
    s = Sampling(top_k=k, top_p=p, min_p=m)
    token = choose(torch.tensor(logits, dtype=torch.double), s, set(), torch.Generator().manual_seed(seed))
    slack = Sampling(top_k=k, top_p=min(1.0, p + 1e-9), min_p=m)
    assert token in by_definition(logits, slack, set())


def test_temperature_0_takes_the_first_of_the_most_probable():
    generator = torch.Generator()
    before = generator.get_state()
    assert choose(torch.tensor([1.0, 3.0, 3.0]), GREEDY, set(), generator) == 1
    penalty = Sampling(temperature=0.0, repetition_penalty=2.0)
    assert choose(torch.tensor([1.0, 3.0, 2.9]), penalty, {1}, generator) == 2
    assert choose(torch.tensor([-2.0, -1.5]), penalty, {1}, generator) == 0
    assert torch.equal(generator.get_state(), before)


def test_logits_are_not_changed():
    logits = torch.tensor([1.0, 2.0], dtype=torch.double)
    choose(logits, Sampling(repetition_penalty=2.0), {0, 1}, torch.Generator())
    assert logits.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_output_that_is_not_finite_is_refused(bad):
    with pytest.raises(UserError, match="not finite"):
        choose(torch.tensor([1.0, bad]), Sampling(), set(), torch.Generator())


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("mixer", MIXERS)
def test_rows_join_and_leave_and_are_as_if_alone(mixer):
    model = small.model(mixer)
    plans = [("the sea", 0, 9), ("a", 0, 3), ("out over an open sea and", 2, 7), ("", 4, 12), ("new name", 4, 1)]
    batch, rows = Batch(model), {}
    for step in itertools.count():
        for name, (prompt, at, length) in enumerate(plans):
            if at == step:
                s = Sampling(temperature=0.0, max_tokens=length)
                rows[name] = batch.join(model.tokens.encode(prompt), s)
        batch.step()
        assert (batch.state is None or not batch.rows) or states.rows(batch.state) == len(batch.rows)
        if step > 4 and not batch.rows:
            break
    for name, (prompt, _, length) in enumerate(plans):
        alone = Stream(model, prompt, Sampling(temperature=0.0, max_tokens=length))
        drawn(alone)
        assert rows[name].produced == alone.row.produced
        assert len(rows[name].produced) == length
        assert rows[name].ending == "length"
        torch.testing.assert_close(
            dict(states.leaves(take_used(rows[name].memory))), dict(states.leaves(take_used(alone.remember())))
        )


def take_used(memory: Memory):
    """The state without the room that a cache keeps for more."""

    def used(leaf: torch.Tensor) -> torch.Tensor:
        return leaf[:, : int(leaf.ne(0).flatten(2).any(2).sum())] if leaf.ndim == 4 else leaf

    return states.map_leaves(used, memory.state)


def test_generate_is_each_prompt_alone_whatever_the_width():
    model = small.model("window")
    prompts = ["the", "day has a", "", "see the light", "x"]
    alone = [drawn(Stream(model, p, Sampling(max_tokens=20, seed=3 + i))) for i, p in enumerate(prompts)]
    for width in (1, 2, 8):
        assert generate(model, prompts, Sampling(max_tokens=20, seed=3), width) == alone
    assert len(set(alone)) == len(alone)
    assert generate(model, [], Sampling()) == []
    assert generate(model, ["a"], Sampling(max_tokens=0)) == [""]


def test_the_end_token_ends_a_text():
    model = small.model()
    with torch.no_grad():
        model.head.weight[256, 0] = 5.0
    stream = Stream(model, "the", GREEDY)
    assert drawn(stream) == ""
    assert stream.row.ending == "end"
    assert stream.row.produced == [256]


def test_a_step_that_fails_leaves_the_batch_as_it_was(monkeypatch):
    """The state has then read no token that its row would read again."""
    model = small.model()
    expected = drawn(Stream(model, "the", Sampling(max_tokens=6)))
    stream = Stream(model, "the", Sampling(max_tokens=6))
    first = "".join(stream.text.push(t) for _ in range(3) for _, t in stream.batch.step())
    with monkeypatch.context() as m:
        m.setattr("postformer.models.generation.choose", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stream.batch.step()
    assert first + drawn(stream) == expected


def test_one_memory_continues_twice_alike():
    for mixer in MIXERS:
        model = small.model(mixer)
        stream = Stream(model, "the day has a new name", Sampling(max_tokens=4))
        drawn(stream)
        memory = stream.remember()
        assert len({drawn(Stream(model, "", Sampling(max_tokens=12), memory)) for _ in range(3)}) == 1


def test_a_prompt_of_another_tokenizer_is_refused():
    model = small.model()
    with pytest.raises(UserError, match=r"must lie in 0 \.\.\. 256"):
        Batch(model).join([300], GREEDY)
    model.tokens = None
    with pytest.raises(UserError, match="without a tokenizer"):
        Batch(model)


# ---------------------------------------------------------------- text


@given(
    text=st.text("ab\N{GREEK SMALL LETTER ALPHA}\N{SNAKE}", max_size=30),
    stop=st.lists(st.text("ab\N{SNAKE}", min_size=1, max_size=4), max_size=2),
)
def test_text_is_cut_before_the_first_stop_string(text, stop):
    shown, pieces = Text(Bytes(), tuple(stop)), []
    for byte in text.encode():
        pieces.append(shown.push(byte))
        if shown.stopped:
            break
    pieces.append(shown.flush())
    first = min((text.find(s) for s in stop if s in text), default=len(text))
    cut = "".join(pieces)
    ends = [text.find(s) + len(s) for s in stop if s in text]
    if ends:  # the stop string that is whole first decides, and of those the one that begins first
        soon = min(ends)
        first = min(text[:soon].find(s) for s in stop if s in text[:soon])
    assert cut == text[:first]
    assert "\ufffd" not in cut
    assert shown.stopped == bool(ends)


def test_stop_strings_over_tokens_of_many_bytes():
    tokens = BPE.train(["the end of the day, the end of the sea " * 20], 300)
    ids = tokens.encode("the day of the end, the sea")
    for stop in ("end", "e end,", "d", "the end, t", "sea", "nowhere", "sea of"):
        shown = Text(tokens, (stop,))
        whole = "the day of the end, the sea"
        out = "".join(shown.push(i) for i in ids) + shown.flush()
        assert out == whole.partition(stop)[0]


def test_what_may_begin_a_stop_string_is_held_back():
    shown = Text(Bytes(), ("stop",))
    assert [shown.push(b) for b in b"ststo"] == ["", "", "st", "", ""]
    assert shown.flush() == "sto"
    assert [Text(Bytes(), ()).push(b) for b in b"st"] == ["s", "t"]


def test_characters_come_whole():
    shown = Text(Bytes(), ())
    assert [shown.push(b) for b in "a\N{SNAKE}é".encode()] == ["a", "", "", "", "\N{SNAKE}", "", "é"]
    assert [shown.push(b) for b in "\N{SNAKE}".encode()[:2]] + [shown.flush()] == ["", "", "\ufffd"]


def test_a_stop_string_ends_a_stream():
    model = small.model()
    whole = drawn(Stream(model, "the", Sampling(max_tokens=40, seed=1)))
    stop = whole[10:13]
    stream = Stream(model, "the", Sampling(max_tokens=40, seed=1, stop=(stop,)))
    assert drawn(stream) == whole[: whole.find(stop)]
    assert stream.row.ending == "stop"
    assert len(stream.row.produced) == whole.find(stop) + 3
    assert generate(model, ["the"], Sampling(max_tokens=40, seed=1, stop=(stop,))) == [whole[: whole.find(stop)]]


# ---------------------------------------------------------------- two sittings


def say(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["generate", *words])
    assert end.value.code == 0
    return capsys.readouterr().out.removesuffix("\n")


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_text_in_two_sittings_is_the_text_in_one(mixer, tmp_path, capsys):
    model = small.model(mixer)
    save_model(model, tmp_path / "m")
    checkpoint, state = str(tmp_path / "m"), str(tmp_path / "s")
    words = ["--prompt", "the sea", "--seed", "7", "--repetition-penalty", "1.1"]
    whole = say(capsys, checkpoint, *words, "--max-tokens", "90")
    first = say(capsys, checkpoint, *words, "--max-tokens", "35", "--save-state", state)
    second = say(
        capsys, checkpoint, "--load-state", state, "--max-tokens", "30", "--save-state", state, "--repetition-penalty", "1.1"
    )
    third = say(capsys, checkpoint, "--load-state", state, "--max-tokens", "25", "--repetition-penalty", "1.1")
    assert len(whole) == 90
    assert first + second + third == whole
    assert say(capsys, checkpoint, "--load-state", state, "--max-tokens", "25", "--seed", "8") != third


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_prompt_in_two_sittings_is_the_prompt_in_one(mixer):
    """What was said goes on with more text, as a conversation does; sampling begins anew."""
    model = small.model(mixer)
    stream = Stream(model, "the sea", Sampling(max_tokens=4))
    said = drawn(stream)
    memory = stream.remember()
    memory.generator = None
    again = drawn(Stream(model, " and the day", Sampling(max_tokens=20, seed=5), memory))
    assert again == drawn(Stream(model, f"the sea{said} and the day", Sampling(max_tokens=20, seed=5)))


@pytest.mark.parametrize("mixer", ["mamba", "window"])
def test_what_is_loaded_does_not_grow_with_what_was_read(mixer, tmp_path):
    model = small.model(mixer)
    sizes = set()
    for n in (1, 40, 700):
        stream = Stream(model, "a" * n, Sampling(max_tokens=1))
        drawn(stream)
        memory = stream.remember()
        memory.occurred, memory.tokens = set(), 0
        memory.save(tmp_path / "s", model)
        sizes.add((states.nbytes(Memory.load(tmp_path / "s", model).state), (tmp_path / "s").stat().st_size))
    assert len(sizes) == 1
    assert sizes.pop()[0] == model.cost(700).state_bytes


def test_a_memory_is_kept_to_the_bit(tmp_path):
    model = small.model("attention")
    stream = Stream(model, "the", Sampling(max_tokens=3))
    drawn(stream)
    memory = stream.remember()
    memory.save(tmp_path / "s", model)
    again = Memory.load(tmp_path / "s", model)
    assert (again.last, again.occurred, again.generator) == (memory.last, memory.occurred, memory.generator)
    for (_, a), (_, b) in zip(states.leaves(again.state), states.leaves(memory.state), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "note",
    [
        {},
        {"last": "a", "occurred": [], "generator": None},
        {"last": 1, "occurred": 5, "generator": None},
        {"last": 1, "occurred": ["x"], "generator": None},
        {"last": 1, "occurred": [], "generator": "zz"},
        {"last": 1, "occurred": [], "generator": "00"},
        {"last": 1, "occurred": [9999], "generator": None},
        {"last": 9999, "occurred": [], "generator": None},
    ],
    ids=str,
)
def test_a_state_with_an_odd_note_is_refused(note, tmp_path):
    model = small.model()
    states.save(model.init_state(1), tmp_path / "s", model, note)
    with pytest.raises(StateError, match="/s: "):
        Memory.load(tmp_path / "s", model)


@pytest.mark.parametrize(
    ("words", "says"),
    [({"prompts": "one"}, "prompts: expected a list"), ({"prompts": ["a"], "width": 0}, "width: 0 is not valid")],
)
def test_a_single_text_and_no_width_are_refused(words, says):
    with pytest.raises(UserError, match=says):
        inspect.unwrap(generate)(small.model(), sampling=Sampling(max_tokens=2), **words)
