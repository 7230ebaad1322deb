"""Imports go one way, plug-in files do not know each other, and what must be quick does not import torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "postformer"
LAYERS = {
    "config": 0,
    "files": 0,
    "interval": 0,
    "published": 0,
    "devices": 1,
    "state": 1,
    "ops": 2,
    "tokens": 3,
    "data": 4,
    "mixers": 4,
    "ffn": 4,
    "models": 5,
    "objectives": 6,
    "train": 7,
    "embodied": 7,
    "recipes": 8,
    "claims": 9,
    "commands": 10,
    "commands_memory": 12,
    "commands_experts": 12,
    "commands_cost": 12,
    "commands_judged": 11,
    "arguments_pictures": 10,
    "arguments_worlds": 10,
    "commands_pictures": 11,
    "commands_worlds": 11,
    "cli": 13,
    "__main__": 14,
}
"""A part imports parts of lower layers, and itself. `postformer/__init__.py` stands above all and imports lazily."""
BESIDE = {("recipes", "train"), ("data", "state"), ("data", "ops"), ("tokens", "state"), ("serve", "objectives")}
"""Imports that the layers would allow and the design does not."""
PLUGINS = ("ops", "mixers", "ffn", "tokens", "objectives", "recipes")
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            names |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return {n for n in names if n.startswith("postformer.")}


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_part_has_a_layer():
    assert {part(p) for p in FILES} - {"__init__"} <= LAYERS.keys()


@pytest.mark.parametrize("path", [p for p in FILES if p != ROOT / "__init__.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    mine = part(path)
    for name in imports(path):
        other = name.split(".")[1]
        if other in LAYERS and other != mine:
            assert LAYERS[other] < LAYERS[mine], f"{mine} imports {name}"
            assert (mine, other) not in BESIDE, f"{mine} imports {name}"


@pytest.mark.parametrize("folder", PLUGINS)
def test_plugin_files_do_not_import_each_other(folder):
    shared = {
        f"postformer.ops.{name}"
        for name in (
            "_cpu",
            "affine",
            "block_parts",
            "exchange",
            "experts",
            "family",
            "fast_weights",
            "layers",
            "matvec",
            "memory_chunks",
            "memory_kernel",
            "norm",
            "packing",
            "pages",
            "rules",
            "ssd",
        )
    }
    for path in (ROOT / folder).glob("*.py"):
        if path.name != "__init__.py":
            siblings = {
                n for n in imports(path) if n.startswith(f"postformer.{folder}.") and ".".join(n.split(".")[:3]) not in shared
            }
            assert not siblings, f"{path.name} imports {siblings}"


@pytest.mark.parametrize(
    "module", ["postformer", "postformer.config", "postformer.recipes", "postformer.cli", "postformer.claims"]
)
def test_no_torch_before_it_is_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_is_unpickled():
    banned = {"pickle", "torch.load", "joblib", "dill", "marshal", "shelve"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in banned:
                pytest.fail(f"{path}:{node.lineno} uses {ast.unparse(node)}")
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {a.name for a in node.names} | {getattr(node, "module", "")}
                assert not names & banned, f"{path}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", f"{path}:{node.lineno}"
