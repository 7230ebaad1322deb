"""Masks of I-JEPA and V-JEPA: how many patches, of which shapes, apart from each other, and the same again from the same generator."""

import math

import numpy as np
import pytest
import torch

from postformer.tokens.masks import Blocks, Tubes

GRIDS = [(1, 14, 14), (8, 14, 14), (2, 4, 4), (3, 5, 7), (1, 2, 2)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planes(numbers: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Bool [n, f, r, c] of patches that are told by number."""
    there = torch.zeros(len(numbers), math.prod(grid), dtype=torch.bool)
    return there.scatter(1, numbers, torch.ones_like(numbers, dtype=torch.bool)).view(-1, *grid)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("recipe", [Blocks(), Tubes(), Tubes(count=2, scale=0.7)], ids=["blocks", "short", "long"])
def test_context_and_targets_are_apart_and_never_empty(recipe, grid):
    for seed in range(20):
        mask = recipe.draw(6, grid, seeded(seed))
        assert mask.context.shape[0] == mask.targets.shape[0] == 6
        assert mask.context.shape[1] > 0 and mask.targets.shape[2] > 0
        assert mask.targets.shape[1] == (4 if isinstance(recipe, Blocks) else 1)
        seen, hidden = planes(mask.context, grid), planes(mask.targets.flatten(1), grid)
        assert not (seen & hidden).any()
        assert (seen.flatten(1).sum(1) == mask.context.shape[1]).all()  # no patch twice
        assert (mask.context.diff() > 0).all() and (mask.targets.diff() > 0).all()
        for there in (seen, hidden):
            assert (there == there[:, :1]).all(), "tubes are constant over time"


@pytest.mark.parametrize("side", [14, 16])
def test_blocks_have_the_published_shapes(side):
    """I-JEPA at 224 pixels: 4 rectangles of 15 to 20% and of 3:4 to 3:2, seen is at most what a block of 85% to 100% has."""
    corners, sizes = set(), set()
    for seed in range(60):
        mask = Blocks().draw(2, (1, side, side), seeded(seed))
        for row in range(2):
            shapes = set()
            for target in mask.targets[row]:
                rows, columns = target // side, target % side
                height, width = (int(at.max() - at.min()) + 1 for at in (rows, columns))
                assert height * width == len(target), "a target is a full rectangle"
                assert 0.15 * side**2 - side / 2 <= len(target) <= 0.2 * side**2 + side / 2
                assert 0.6 <= height / width <= 1.8
                corners |= {("row", int(rows.max())), ("column", int(columns.max()))}
                shapes.add((height, width))
            assert len(shapes) == 1, "one size a batch"
            sizes |= shapes
        assert 0.05 * side**2 <= mask.context.shape[1] <= 0.85 * side**2
    assert len(sizes) > 3
    assert {("row", side - 1), ("column", side - 1)} <= corners, "blocks reach every border"


def reached(length: int, extent: int) -> np.ndarray:
    """How likely a block of this extent, whose place is uniform, covers each of `length` places."""
    begins = np.arange(length - extent + 1)[:, None]
    at = np.arange(length)
    return ((at >= begins) & (at < begins + extent)).mean(0)


@pytest.mark.parametrize(("count", "scale"), [(8, 0.15), (2, 0.7)])
def test_tubes_hide_as_much_as_published(count, scale):
    """The share that V-JEPA's recipe hides of 16 frames of 224 pixels in patches of 2 x 16 x 16, by summing over sizes and places."""
    side, grid, area = 14, (8, 14, 14), int(14 * 14 * scale)
    hidden = []
    for ratio in np.linspace(0.75, 1.5, 301):
        rows, columns = (min(round(math.sqrt(area * r)), side) for r in (ratio, 1 / ratio))
        alone = np.outer(reached(side, rows), reached(side, columns))
        hidden.append((1 - (1 - alone) ** count).mean())
    drawn = [Tubes(count=count, scale=scale).draw(1, grid, seeded(i)) for i in range(300)]
    shares = [mask.targets.shape[2] / math.prod(grid) for mask in drawn]
    assert np.mean(shares) == pytest.approx(np.mean(hidden), abs=4 * np.std(shares) / 300**0.5)
    assert all(mask.targets.shape[2] + mask.context.shape[1] == math.prod(grid) for mask in drawn), "the rest is seen"


def test_a_batch_is_cut_to_its_least_row():
    grid, recipe = (2, 6, 6), Tubes(count=3, scale=0.2)
    many = recipe.draw(64, grid, seeded())
    whole = many.context.shape[1] + many.targets.shape[2]
    assert whole < math.prod(grid), "rows of a batch hide more or less, and all are cut to the least"
    kept = planes(many.context, grid)[:, 0].float().mean(0)
    assert kept[:3].mean() == pytest.approx(kept[3:].mean().item(), abs=0.1), "what is cut lies anywhere"


def test_the_same_generator_draws_the_same_and_nothing_else_is_drawn():
    for recipe in (Blocks(), Tubes()):
        before = torch.get_rng_state()
        a, b, other = (recipe.draw(4, (2, 8, 8), seeded(seed)) for seed in (3, 3, 4))
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(a.context, b.context) and torch.equal(a.targets, b.targets)
        assert a.context.shape != other.context.shape or not torch.equal(a.context, other.context)
        torch.manual_seed(5)
        c = recipe.draw(4, (2, 8, 8))
        torch.manual_seed(5)
        assert torch.equal(c.context, recipe.draw(4, (2, 8, 8)).context)


@pytest.mark.parametrize("least", [0.1, 0.5])
def test_so_much_is_seen_at_least(least):
    for seed in range(20):
        assert Blocks(targets=2, least=least).draw(8, (1, 8, 8), seeded(seed)).context.shape[1] >= least * 64
        assert Tubes(count=2, scale=0.4, least=least).draw(8, (1, 8, 8), seeded(seed)).context.shape[1] >= least * 64


@pytest.mark.parametrize(
    ("recipe", "words", "says"),
    [
        (Blocks, {"targets": 0}, "targets=0 must be at least 1"),
        (Blocks, {"scale": (0.2, 0.1)}, "scale=0.2 to 0.1 must be shares"),
        (Blocks, {"context": (0.9, 1.1)}, "context=0.9 to 1.1"),
        (Tubes, {"count": 0}, "count=0 of tubes"),
        (Tubes, {"scale": 0.0}, "scale=0 to 0"),
        (Tubes, {"aspect": (0.0, 1.0)}, r"aspect=\(0.0, 1.0\) must be above 0"),
        (Tubes, {"least": 1.0}, "least=1.0 at least 0 and below 1"),
    ],
)
def test_mistakes_are_told(recipe, words, says):
    with pytest.raises(ValueError, match=says):
        recipe(**words)


def test_masks_that_hide_all_are_told():
    with pytest.raises(ValueError, match="2 tubes of scale 1 leave fewer than 1 of the 4 x 4 patches of a frame to be seen"):
        Tubes(count=2, scale=1.0, aspect=(1.0, 1.0)).draw(2, (2, 4, 4), seeded())
    for seed in range(10):  # blocks of 3 x 5 leave a row and blocks of 4 x 4 nothing: then another size is drawn
        assert Tubes(count=2, scale=1.0).draw(8, (2, 4, 4), seeded(seed)).context.shape[1] > 0
