"""The commands that pages and documentation give are those that there are."""

import re
from pathlib import Path

from benchmarks.papers import TABLES

ROOT = Path(__file__).parents[2]


def test_every_study_of_the_papers_that_is_named_exists():
    texts = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("postformer/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    named = [(p.name, name) for p in texts for name in re.findall(r"benchmarks/papers\.py ([a-z][a-z-]*)", p.read_text())]
    assert len(named) >= 4
    assert [(file, name) for file, name in named if name not in TABLES] == []
