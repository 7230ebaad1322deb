"""Images from IDX files, archives and folders: what is read, how it is divided, and what is refused."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest

from postformer.data import images
from postformer.data.images import Images
from postformer.data.sources import DataError


def write_idx(path, values, pack=True):
    data = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(data) if pack else data)


@pytest.fixture
def numbers(tmp_path):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (100, 5, 4), dtype=np.uint8), rng.integers(0, 3, 100).astype(np.uint8)
    labels[:3] = 0, 1, 2
    return tmp_path, pixels, labels


def test_an_idx_file_is_read_whole(numbers):
    folder, pixels, labels = numbers
    for pack, end in ((True, ".gz"), (False, "")):
        write_idx(folder / f"a-images-idx3-ubyte{end}", pixels, pack)
        write_idx(folder / f"a-labels-idx1-ubyte{end}", labels, pack)
        images = Images(path=str(folder / f"a-images-idx3-ubyte{end}"))
        assert images.sizes == {"channels": 1, "classes": 3, "size": (5, 4)}
        assert np.array_equal(images.all.pixels[:, 0], pixels)
        assert np.array_equal(images.all.labels, labels)


def test_the_parts_are_apart_and_all(numbers):
    folder, pixels, labels = numbers
    np.savez(folder / "a.npz", images=pixels, labels=labels)
    images = Images(path=str(folder / "a.npz"))
    parts = {split: images.numbers[split] for split in ("train", "valid", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 75, "valid": 5, "test": 20}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(100))
    batches = images.batches(25, seed=3)
    epoch = [batches.batch(step) for step in range(3)]
    seen = np.concatenate([b["images"].numpy() for b in epoch])
    own = images.part("train").pixels.astype(np.float32) / 127.5 - 1
    assert np.allclose(np.sort(seen.reshape(75, -1), 0), np.sort(own.reshape(75, -1), 0))
    assert not np.allclose(seen, own)
    assert np.array_equal(batches.batch(1)["images"], images.batches(25, seed=3).batch(1)["images"])
    test = images.batches(20, seed=3, split="test")
    assert np.array_equal(test.batch(0)["images"], test.batch(1)["images"])
    assert np.array_equal(test.batch(0)["label"], labels[parts["test"]])


def test_images_of_the_same_pixels_are_in_one_part(numbers):
    folder, pixels, labels = numbers
    np.savez(folder / "a.npz", images=pixels, labels=labels)
    apart = Images(path=str(folder / "a.npz")).numbers
    again = np.random.default_rng(1).integers(0, 100, 300)
    np.savez(folder / "b.npz", images=np.concatenate([pixels, pixels[again]]), labels=np.concatenate([labels, labels[again]]))
    images = Images(path=str(folder / "b.npz"))
    parts = images.numbers
    assert sorted(np.concatenate(list(parts.values()))) == list(range(400))
    own = {split: {image.tobytes() for image in images.part(split).pixels} for split in parts}
    assert not own["train"] & own["test"] and not own["train"] & own["valid"] and not own["valid"] & own["test"]
    assert {split: len(part) / 4 for split, part in parts.items()} == pytest.approx(
        {"train": 75, "valid": 5, "test": 20}, abs=7
    )
    assert all(np.array_equal(part, Images(path=str(folder / "b.npz")).numbers[split]) for split, part in parts.items())
    pixels[7] = pixels[3]
    np.savez(folder / "a.npz", images=pixels, labels=labels)
    moved = Images(path=str(folder / "a.npz")).numbers
    assert all(set(moved[split]) - {7} == set(apart[split]) - {7} for split in apart)  # none but the second one moves
    assert sum({3, 7} <= set(part) for part in moved.values()) == 1


def test_fewer_to_learn_from_are_of_the_same(numbers):
    folder, pixels, labels = numbers
    np.savez(folder / "a.npz", images=pixels, labels=labels)
    whole, some, few = (Images(path=str(folder / "a.npz"), most=most) for most in (None, 30, 10))
    assert set(few.numbers["train"]) < set(some.numbers["train"]) < set(whole.numbers["train"])
    assert [len(images.numbers["train"]) for images in (some, few)] == [30, 10]
    assert np.array_equal(few.numbers["test"], whole.numbers["test"])
    with pytest.raises(ValueError, match="most=0 must be at least 1"):
        Images(path=str(folder / "a.npz"), most=0)


def test_transparency_falls_on_black_and_sizes_are_fitted(tmp_path):
    pixels = np.full((4, 6, 6, 4), 200, np.uint8)
    pixels[..., 3] = [[[0]], [[255]], [[128]], [[255]]]
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.array([0, 1, 0, 1]), classes=np.array(["no", "yes"]))
    images = Images(path=str(tmp_path / "a.npz"))
    assert images.all.pixels.shape == (4, 3, 6, 6)
    assert images.all.pixels[:, 0, 0, 0].tolist() == [0, 200, 100, 200]
    assert images.all.classes == ["no", "yes"]
    wide = Images(path=str(tmp_path / "a.npz"), size=(8, 10)).all.pixels
    assert wide[1, 0].any(1).tolist() == [False, *[True] * 6, False]
    assert wide[1, 0].any(0).tolist() == [*[False] * 2, *[True] * 6, *[False] * 2]
    assert Images(path=str(tmp_path / "a.npz"), size=(3, 3)).all.pixels[1].min() == 200


def test_pictures_too_large_and_damaged_files_are_refused(tmp_path, numbers, monkeypatch):
    from PIL import Image

    (tmp_path / "p" / "a").mkdir(parents=True)
    Image.new("RGB", (30, 40)).save(tmp_path / "p" / "a" / "1.png")
    monkeypatch.setattr(images, "MOST_PIXELS", 1000)
    with pytest.raises(DataError, match=r"1\.png: 30 x 40 pixels are more than the 1,000"):
        Images(path=str(tmp_path / "p")).all  # noqa: B018
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"1\.png: it has more than the 1,000 pixels"):
        Images(path=str(tmp_path / "p")).all  # noqa: B018
    folder, pixels, labels = numbers
    write_idx(folder / "a-images-idx3-ubyte.gz", pixels)
    np.savez_compressed(folder / "a.npz", images=pixels, labels=labels)
    for name in ("a-images-idx3-ubyte.gz", "a.npz"):
        data = bytearray((folder / name).read_bytes())
        data[60:90] = b"\xff" * 30
        (folder / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            Images(path=str(folder / name)).all  # noqa: B018


def test_a_small_file_that_unpacks_to_more_than_is_read_is_refused(numbers, monkeypatch):
    folder, _, labels = numbers
    empty = np.zeros((100, 20, 20), np.uint8)
    write_idx(folder / "a-images-idx3-ubyte.gz", empty)
    write_idx(folder / "a-labels-idx1-ubyte.gz", labels)
    np.savez_compressed(folder / "a.npz", images=empty, labels=labels)
    paths = [folder / "a-images-idx3-ubyte.gz", folder / "a.npz"]
    assert all(Images(path=str(path)).sizes["size"] == (20, 20) for path in paths)
    monkeypatch.setattr(images, "LARGEST_FILE", 30_000)
    for path in paths:
        assert path.stat().st_size < 3000
        with pytest.raises(DataError, match=rf"{path.name}: unpacked it has more than the 30,000 bytes that are read"):
            Images(path=str(path)).sizes  # noqa: B018 (it reads)


def test_an_array_that_says_that_it_is_larger_than_it_is_takes_no_memory(tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50, 8, 8)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.npy", head.getvalue() + b"few")
        file.writestr("labels.npy", head.getvalue() + b"few")
    with pytest.raises(DataError, match=r"a\.npz: not a NumPy archive of plain arrays"):
        Images(path=str(tmp_path / "a.npz")).sizes  # noqa: B018 (it reads)


@pytest.mark.parametrize("size", [(-4, 8), (0, 3), (5000, 5000)])
def test_a_size_that_no_picture_has_is_refused(size):
    with pytest.raises(ValueError, match=r"size=\(.*\) must be rows and columns of at least 1, and at most 16,777,216 pixels"):
        Images(path="digits", size=size)


def test_a_folder_of_pictures_has_a_class_for_each_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, value in (("cat", 10), ("dog", 240)):
        (tmp_path / name).mkdir()
        for i in range(10):
            image.new("RGB", (6, 4 + 2 * (i == 9)), (value, i, 0)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(DataError, match="several sizes"):
        Images(path=str(tmp_path)).sizes  # noqa: B018 (it reads)
    images = Images(path=str(tmp_path), size=(6, 6))
    assert images.sizes == {"channels": 3, "classes": 2, "size": (6, 6)}
    assert images.all.classes == ["cat", "dog"]
    assert images.all.pixels[:, 0, 3, 3].tolist() == [10] * 10 + [240] * 10


def test_digits_and_tiles_are_there(data_folder):
    digits, tiles = Images(path="digits"), Images(path="tiles")
    assert digits.sizes == {"channels": 1, "classes": 10, "size": (28, 28)}
    assert len(digits.all.labels) == 10_000
    assert tiles.sizes == {"channels": 3, "classes": 7, "size": (32, 32)}
    assert tiles.all.classes[5] == "mon"
    assert np.bincount(tiles.all.labels).tolist() == [1106, 196, 274, 673, 221, 695, 819]


def test_no_test_image_of_the_named_data_was_learned_from_and_digits_are_divided_as_ever(data_folder):
    digits, tiles = Images(path="digits"), Images(path="tiles")
    order = np.random.default_rng(0).permutation(10_000)
    assert all(
        np.array_equal(digits.numbers[split], np.sort(own))
        for split, own in zip(("test", "valid", "train"), np.split(order, [2000, 2500]), strict=True)
    )
    own = {split: {image.tobytes() for image in tiles.part(split).pixels} for split in tiles.numbers}
    assert not own["train"] & own["test"] and not own["train"] & own["valid"] and not own["valid"] & own["test"]
    shares = {split: len(part) / 3984 for split, part in tiles.numbers.items()}
    assert shares == pytest.approx({"train": 0.75, "valid": 0.05, "test": 0.2}, abs=0.01)


def test_a_run_names_its_images(numbers):
    folder, pixels, labels = numbers
    np.savez(folder / "a.npz", images=pixels, labels=labels)
    known = Images(path=str(folder / "a.npz")).identity["sha256"]
    np.savez(folder / "a.npz", images=255 - pixels, labels=labels)
    with pytest.raises(DataError, match="other images than the run names"):
        Images(path=str(folder / "a.npz"), sha256=known).identity  # noqa: B018 (it compares)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f, p, n: write_idx(f / "images", p), "not an IDX file"),
        (lambda f, p, n: write_idx(f / "images", p, pack=False), "no labels beside it"),
        (lambda f, p, n: (f / "images").write_bytes(struct.pack(">HBB3I", 0, 8, 3, 9, 5, 4) + b"x"), "cut short"),
        (lambda f, p, n: (f / "images").mkdir(), "expected one folder for each class"),
        (lambda f, p, n: None, "no such file or folder; give digits, tiles"),
    ],
)
def test_what_cannot_be_read_is_told(numbers, make, says):
    folder, pixels, labels = numbers
    make(folder, pixels, labels)
    with pytest.raises(DataError, match=says):
        Images(path=str(folder / "images")).sizes  # noqa: B018 (it reads)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros((3, 4, 4), np.uint8)}, "no array 'labels'; it has images"),
        ({"images": np.zeros((3, 4, 4)), "labels": np.zeros(3)}, "must be bytes"),
        ({"images": np.zeros((3, 4, 4), np.uint8), "labels": np.zeros(2)}, "3 images and 2 labels"),
        (
            {"images": np.zeros((1, 4, 4), np.uint8), "labels": np.array([5]), "classes": np.array(["a"])},
            "a label is 5, and there are 1 classes",
        ),
    ],
)
def test_an_archive_that_does_not_fit_is_told(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=says):
        Images(path=str(tmp_path / "a.npz")).sizes  # noqa: B018 (it reads)
