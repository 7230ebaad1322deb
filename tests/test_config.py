"""Plain data to checked values: what is taken, what is refused, and where the message points."""

import dataclasses
import json
import re
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postformer.config import (
    ConfigError,
    OptimConfig,
    Run,
    TrainConfig,
    amended,
    build,
    complete,
    foreign_kinds,
    override,
    parse,
    plain,
    read,
)
from postformer.mixers import MIXERS
from postformer.recipes import RECIPES


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    pair: tuple[int, float] = (1, 2.0)
    maybe: int | None = None
    choice: Literal["a", "b", 1] = "a"
    listed: list[Inner] = dataclasses.field(default_factory=list)
    table: dict[str, float] = dataclasses.field(default_factory=dict)
    free: dict[str, Any] = dataclasses.field(default_factory=dict)


def test_every_kind_of_value():
    data = {
        "inner": {"size": 3, "names": ["x", "y"]},
        "pair": [4, 5],
        "maybe": None,
        "choice": 1,
        "listed": [{"size": 1}, {"size": 2}],
        "table": {"x": 1},
        "free": {"x": [1, {"y": "z"}]},
    }
    value = parse(Outer, data)
    assert value == Outer(Inner(3, ("x", "y")), (4, 5.0), None, 1, [Inner(1), Inner(2)], {"x": 1.0}, {"x": [1, {"y": "z"}]})
    assert isinstance(value.pair[1], float)
    assert isinstance(value.table["x"], float)
    assert parse(Outer, plain(value)) == value
    data["free"]["x"][1]["y"] = "changed"
    assert value.free["x"][1]["y"] == "z"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inner": {}}, "inner: 'size' is missing; it takes size, names"),
        ({"inner": 3}, "inner: expected a table, got 3"),
        ({"inner": {"size": "3"}}, "inner.size: expected a whole number, got '3'"),
        ({"inner": {"size": True}}, "inner.size: expected a whole number, got True"),
        ({"inner": {"size": 1 << 63}}, "inner.size: expected a whole number of at most 64 bits"),
        ({"inner": {"size": 3, "names": ["x", 1]}}, "inner.names[1]: expected text, got 1"),
        ({"inner": {"size": 3, "names": "xy"}}, "inner.names: expected a list, got 'xy'"),
        ({"pair": [1]}, "pair: expected 2 values, got 1"),
        ({"pair": [1, float("nan")]}, "pair[1]: expected a finite number, got nan"),
        ({"pair": [1, False]}, "pair[1]: expected a number, got False"),
        ({"maybe": "x"}, "maybe: expected a whole number or nothing, got 'x'"),
        ({"choice": "c"}, "choice: 'c' is not a choice; choose from a, b, 1"),
        ({"choice": True}, "choice: True is not a choice"),
        ({"listed": [{"size": 1}, {"sise": 2}]}, "listed[1]: unknown 'sise' (did you mean 'size'?); it takes size, names"),
        ({"listed": {}}, "listed: expected a list, got {}"),
        ({"table": {"x": "y"}}, "table.x: expected a number, got 'y'"),
        ({"table": [1]}, "table: expected a table, got [1]"),
        ({"free": {1: 2}}, "free: expected a table, got {1: 2}"),
        ({"other": "x" * 200}, "the outer: unknown 'other'; it takes inner, pair, maybe"),
        ({"pair": "x" * 200}, "pair: expected a list, got '" + "x" * 76 + "..."),
    ],
    ids=lambda x: str(x)[:40],
)
def test_what_is_refused_and_where(change, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse(Outer, {"inner": {"size": 1}, **change})


def test_the_place_goes_before():
    with pytest.raises(ConfigError, match=r"^run\.inner\.size: "):
        parse(Outer, {"inner": {"size": None}}, "run")


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_goes_to_json_and_back(name):
    run = RECIPES[name]()
    assert parse(Run, json.loads(json.dumps(plain(run)))) == parse(Run, plain(run))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_nothing_but_a_config_error(data):
    """Whatever a file holds, it is parsed or refused."""
    for cls in (Outer, Run, OptimConfig, TrainConfig):
        for wrapped in (data, {"inner": data}, {"name": "x", "model": data, "data": data, "optim": data, "seed": data}):
            try:
                parse(cls, wrapped)
            except ConfigError as e:
                assert "\n" not in str(e).replace(repr(data), "")


# ---------------------------------------------------------------- open parts


class Part:
    def __init__(self, dim: int, *, size: int = 3, ratio: float = 0.5, inner: dict[str, Any] | None = None):
        if size < 0:
            raise ValueError(f"size={size} must not be negative\nat all")
        self.dim, self.size, self.ratio, self.inner = dim, size, ratio, inner


TABLE = {"part": Part}


def test_complete_writes_the_defaults_out():
    full = complete({"kind": "part", "ratio": 1}, TABLE, "here", "dim")
    assert full == {"kind": "part", "size": 3, "ratio": 1.0, "inner": None}
    assert complete(full, TABLE, "here", "dim") == full
    made = build(full, TABLE, "here", dim=8)
    assert (made.dim, made.size, made.ratio) == (8, 3, 1.0)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"kind": "part", "sise": 1}, "here: unknown 'sise' (did you mean 'size'?); part takes size, ratio, inner"),
        ({"kind": "part", "dim": 1}, "here: unknown 'dim'"),
        ({"kind": "part", "size": 1.5}, "here.size: expected a whole number, got 1.5"),
        ({"kind": "part", "size": -1}, "here: size=-1 must not be negative"),
        (
            {"kind": "parts"},
            "here.kind: unknown 'parts' (did you mean 'part'?); choose from part, or give 'package.module:Name'",
        ),
        ({"kind": 3}, "here: expected a table with 'kind'; choose from part"),
        ({}, "here: expected a table with 'kind'"),
        ({"kind": "no_such_module:X"}, "here.kind: cannot import 'no_such_module:X'"),
        ({"kind": "json:no_such"}, "here.kind: cannot import 'json:no_such'"),
        ({"kind": ":x"}, "here.kind: cannot import ':x'"),
        ({"kind": "math:pi"}, "here.kind: 'math:pi' is no class"),
    ],
    ids=str,
)
def test_open_parts_that_are_refused(spec, says):
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}") as e:
        build(spec, TABLE, "here", dim=8)
    assert "\n" not in str(e.value)


def test_a_missing_argument_is_named():
    with pytest.raises(ConfigError, match="here: 'dim' is missing; part takes dim, size"):
        complete({"kind": "part"}, TABLE, "here")


SMALL: dict[str, Any] = {"kind": "part", "size": 1}


class Whole:
    def __init__(self, dim: int, *, part: dict[str, Any] = SMALL):
        self.part = build(amended(part, SMALL), TABLE, ".part", dim=dim)


def test_parts_inside_of_parts():
    table = TABLE | {"whole": Whole}
    full = complete({"kind": "whole"}, table, "here", "dim")
    assert full["part"] == {"kind": "part", "size": 1, "ratio": 0.5, "inner": None}
    assert build({"kind": "whole", "part": {"ratio": 2}}, table, "here", dim=8).part.size == 1
    assert build({"kind": "whole", "part": {"kind": "part"}}, table, "here", dim=8).part.size == 3
    for part, says in [
        ({"sise": 1}, "here[0].part: unknown 'sise' (did you mean 'size'?); part takes size, ratio, inner"),
        ({"size": -1}, "here[0].part: size=-1 must not be negative"),
        ({"kind": "parts"}, "here[0].part.kind: unknown 'parts' (did you mean 'part'?)"),
        (3, "here[0].part: expected a table, got 3"),
    ]:
        with pytest.raises(ConfigError, match=f"^{re.escape(says)}"):
            build({"kind": "whole", "part": part}, table, "here[0]", dim=8)


def test_an_import_path_is_a_kind():
    made = build({"kind": "postformer.mixers.mamba:Mamba", "state": 2}, MIXERS, "here", dim=8)
    assert type(made) is MIXERS["mamba"]


def test_sizes_beyond_every_machine_are_one_line():
    with pytest.raises(ConfigError, match=r"^here: ") as e:
        build({"kind": "mamba"}, MIXERS, "here", dim=1 << 50)
    assert "\n" not in str(e.value)


def test_foreign_kinds_are_found_wherever_they_are():
    spec = {"kind": "language", "mixers": [{"kind": "mamba"}, {"kind": "a.b:C"}], "x": {"y": ({"kind": "d:E"},)}}
    assert foreign_kinds(spec) == ["mixers[1].kind", "x.y[0].kind"]
    assert foreign_kinds({"kind": "a:b"}) == ["kind"]
    assert foreign_kinds({"kind": ["a:b"]}) == ["kind"]
    assert foreign_kinds(plain(RECIPES["text-hybrid"]())) == []


# ---------------------------------------------------------------- files and overrides


def test_overrides():
    data = {"a": {"b": [{"c": 1}, 2]}, "d": "e"}
    out = override(data, ["a.b[0].c=5", "a.b[1]=[1, 2]", "a.new.deep=1.5", "d=plain words", "t=true", 'q="3"', "e=a=b"])
    assert out == {
        "a": {"b": [{"c": 5}, [1, 2]], "new": {"deep": 1.5}},
        "d": "plain words",
        "t": True,
        "q": "3",
        "e": "a=b",
    }
    assert data == {"a": {"b": [{"c": 1}, 2]}, "d": "e"}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("a.b", "expected an override such as model.depth=8"),
        ("=1", "expected an override"),
        ("..=1", "expected an override"),
        ("a[3]=1", "a is a list of 2; '3' is not in it"),
        ("a.x=1", "a is a list of 2; 'x' is not in it"),
        ("b.c=1", "b is 5; 'c' is not in it"),
        ("[0]=1", "the run is a table; '0' is not in it"),
        ("a[99999999999999999999]=1", "is not in it"),
        ("a[²]=1", "a is a list of 2; '²' is not in it"),
    ],
)
def test_overrides_that_are_refused(word, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        override({"a": [1, 2], "b": 5}, [word])


@given(word=st.text("ab.[]01=²\n\"'{}", max_size=12))
def test_any_override_is_applied_or_refused(word):
    try:
        override({"a": [1, {"b": 2}], "b": {"a": 1}}, [word])
    except ConfigError as e:
        assert str(e).startswith(f"'{word}': ")


def test_files(tmp_path):
    (tmp_path / "r.toml").write_text('[a]\nb = 1\nc = "é"\n', encoding="utf-8")
    (tmp_path / "r.json").write_text('{"a": {"b": 1}}')
    assert read(tmp_path / "r.toml") == {"a": {"b": 1, "c": "é"}}
    assert read(str(tmp_path / "r.json")) == {"a": {"b": 1}}
    (tmp_path / "bad.toml").write_text("a = 1\nb =\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML: .*line 2"):
        read(tmp_path / "bad.toml")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"list\.json: expected a table at the top"):
        read(tmp_path / "list.json")
