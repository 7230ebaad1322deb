"""Series against numbers worked out by hand: windows, parts, standardisation, order, and what a table may not hold."""

import numpy as np
import pytest
import torch

from postformer.config import ConfigError, build
from postformer.data import DATA, DataError, Series
from postformer.data.series import read_table

ROWS = 40


@pytest.fixture
def path(tmp_path):
    """Two channels: 0, 1, 2, ... and the negative squares."""
    file = tmp_path / "own.csv"
    file.write_text("date,a,b\n" + "".join(f"2020-01-01 {i},{i},{-i * i}\n" for i in range(ROWS)))
    return file


def make(path, **words):
    return Series(path=str(path), **{"look_back": 3, "horizon": 2, **words})


def numbers(values):
    """What channel a held before it was standardised, as whole numbers."""
    train = np.arange(28)
    return (values[..., 0].double() * train.std() + train.mean()).round().int().tolist()


def test_the_parts_are_shares(path):
    series = make(path)
    assert series.edges == (0, 28, 32, 40)
    windows = {split: series.batches(1, 0, split).windows for split in ("train", "valid", "test")}
    assert windows == {"train": 28 - 5 + 1, "valid": 4 - 2 + 1, "test": 8 - 2 + 1}


def test_a_part_looks_back_and_its_answers_lie_in_it(path):
    series = make(path)
    for split, first in (("valid", 28), ("test", 32)):
        batches = series.batches(2, 0, split)
        drawn = batches.batch(0)
        assert numbers(drawn["past"]) == [[first - 3, first - 2, first - 1], [first - 2, first - 1, first]]
        assert numbers(drawn["future"]) == [[first, first + 1], [first + 1, first + 2]]
        assert drawn["rows"][0] == f"own.csv[{first - 3}:{first + 2}] {split}"
        last = batches.at([batches.windows - 1])
        assert numbers(last["future"])[0][-1] == (31 if split == "valid" else 39)
    assert numbers(series.batches(7, 0, "test").batch(1)["future"])[0] == [32, 33]  # from the first again


def test_what_is_asked_in_one_part_is_never_seen_in_another(path):
    """The rows of the answers of each part, and all rows that are trained on."""
    series, rows = make(path), {}
    for split in ("train", "valid", "test"):
        batches = series.batches(1, 0, split)
        drawn = batches.at(list(range(batches.windows)))
        rows[split] = {i for window in numbers(drawn["future"]) for i in window}
        if split == "train":
            trained = rows[split] | {i for window in numbers(drawn["past"]) for i in window}
    assert trained == set(range(28))
    assert rows["valid"] == set(range(28, 32))
    assert rows["test"] == set(range(32, 40))


def test_the_training_part_alone_sets_the_scale(path):
    series = make(path)
    train = np.stack([np.arange(28.0), -(np.arange(28.0) ** 2)], 1)
    np.testing.assert_allclose(series.scale, [train.mean(0), train.std(0)])
    np.testing.assert_allclose(series.standardised[:28].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(series.standardised[:28].std(0), 1, rtol=1e-6)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:29] + [f"x,{10**6},{10**6}" for _ in lines[29:]]))
    np.testing.assert_array_equal(make(path).scale, series.scale)


def test_a_constant_channel_is_zero(tmp_path):
    (tmp_path / "flat.csv").write_text("date,a\n" + "d,5\n" * ROWS)
    assert not make(tmp_path / "flat.csv").standardised.any()


def test_training_sees_every_window_once_an_epoch_in_an_order_of_the_seed(path):
    def epochs(seed):
        batches = make(path).batches(8, seed)
        starts = [int(row.split("[")[1].split(":")[0]) for i in range(6) for row in batches.batch(i)["rows"]]
        return starts[:24], starts[24:]

    first, second = epochs(0)
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert epochs(0) == (first, second)
    assert epochs(1) != (first, second)


def test_a_batch_depends_on_the_step_alone(path):
    batches = make(path).batches(8, 3)
    for _ in range(3):
        batches.batch(0)
    again = make(path).batches(8, 3)
    for name in ("past", "future"):
        assert torch.equal(batches.batch(5)[name], again.batch(5)[name])


def test_a_saved_run_names_its_file(path):
    identity = make(path).identity
    assert build({"kind": "series", "path": str(path), **identity}, DATA, "data").table
    path.write_text(path.read_text().replace("39,", "38,"))
    with pytest.raises(DataError, match="another series than the run names"):
        make(path, sha256=identity["sha256"]).batches(1, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a header"),
        ("date,a\n", "expected a header"),
        ("date\n1\n", "expected a header"),
        ("date,a\nd,1\nd,x\n", r"own.csv:3: column 'a' holds 'x', which is no finite number"),
        ("date,a\nd,\n", r":2: column 'a' holds ''"),
        ("date,a\nd,nan\n", r":2: column 'a' holds 'nan'"),
        ("date,a\nd,1,2\n", r":2: 3 columns, where the header has 2"),
        ("date,a\n\xff\xfe", "own.csv"),
    ],
)
def test_a_table_that_cannot_be_read(path, text, says):
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=says):
        read_table(path)


@pytest.mark.parametrize(
    ("words", "split", "says"),
    [
        ({"look_back": 26}, "train", r"train has 28 of 40 rows, too few for data.look_back=26 and data.horizon=3"),
        ({}, "valid", r"valid has 4 of 40 rows, too few for data.look_back=3 and data.horizon=5"),
        ({"parts": "ETTh"}, "valid", r"valid has 0 of 40 rows"),
    ],
)
def test_a_part_that_is_too_short(path, words, split, says):
    with pytest.raises(DataError, match=says):
        make(path, horizon=5 if not words else 3, **words).batches(1, 0, split)


def test_a_file_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("POSTFORMER_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"data.path: ETTh1: no such file; give a CSV, or ETTh1 or ETTh2 with POSTFORMER_DATA"):
        make("ETTh1").batches(1, 0)


@pytest.mark.parametrize("words", [{"look_back": 0}, {"horizon": 0}])
def test_a_window_of_nothing(words):
    with pytest.raises(ConfigError, match=r"data: look_back=.* must be at least 1"):
        build({"kind": "series", "path": "x", **words}, DATA, "data")


def test_a_split_that_there_is_not(path):
    with pytest.raises(ValueError, match="split: unknown 'dev'; choose from train, valid, test"):
        make(path).batches(1, 0, "dev")


def test_etth1(data_folder, monkeypatch):
    """The first row as the file has it, and as many windows as in Informer's loader."""
    monkeypatch.setenv("POSTFORMER_DATA", str(data_folder))
    series = Series(path="ETTh1", look_back=96, horizon=192)
    assert series.table.channels == ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    assert series.table.values.shape == (17420, 7)
    np.testing.assert_allclose(series.table.values[0, [0, 6]], [5.827, 30.531], rtol=1e-6)
    assert series.edges == (0, 8640, 11520, 14400)
    assert [series.batches(1, 0, s).windows for s in ("train", "valid", "test")] == [8353, 2689, 2689]
