"""A reader of a state: what is written in any pieces, answers that change nothing, and files."""

import pytest
import small

from postformer.config import UserError
from postformer.models.memory import Memory
from postformer.models.readers import Reader, StateReader, greedy
from postformer.state import StateError

TEXT = small.text(10).encode()


def test_answers_change_nothing(tmp_path):
    model = small.model("attention")
    reader = StateReader(model, ask=lambda q: f"\nQ: {q}\nA:")
    assert isinstance(reader, Reader)
    reader.write(list(TEXT))
    other = StateReader(model, ask=reader.ask)
    for at in range(0, len(TEXT), 50):
        other.write(list(TEXT[at : at + 50]))
    reader.save(tmp_path / "a")
    first = reader.answer("who?")
    assert first == reader.answer("who?") == other.answer("who?")
    reader.save(tmp_path / "b")
    a, b = (Memory.load(tmp_path / name, model) for name in "ab")
    assert (a.last, a.tokens, a.occurred) == (b.last, b.tokens, b.occurred)
    loaded = StateReader.load(tmp_path / "a", model, ask=reader.ask)
    assert loaded.answer("who?") == first
    assert loaded.nbytes == reader.nbytes > 0
    assert (reader.spent.written, reader.spent.answered) == (len(TEXT), 2)
    assert reader.spent.write_s > 0 < reader.spent.answer_s
    fork = reader.fork()
    fork.write(list(b"other things"))
    assert reader.answer("who?") == first


def test_an_answer_is_the_greedy_text_without_the_state_of_a_document():
    model = small.model()
    memory = Memory.fresh(model, begin=False)
    memory.read(model, list(TEXT))
    whole = Memory.fresh(model, begin=False)
    assert greedy(model, memory, list(b"ab")) == greedy(model, whole, list(TEXT + b"ab"))


def test_another_model_and_a_model_without_a_tokenizer(tmp_path):
    reader = StateReader(small.model())
    reader.write([1, 2])
    reader.save(tmp_path / "m")
    with pytest.raises(StateError, match="another model"):
        StateReader.load(tmp_path / "m", small.model(seed=1))
    model = small.model()
    model.tokens = None
    with pytest.raises(UserError, match="saved without a tokenizer"):
        StateReader(model)
