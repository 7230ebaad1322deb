"""What models are trained on."""

from typing import Any

from postformer.data.build import build_corpus
from postformer.data.corpus import Corpus, Manifest, Tokenized, open_corpus, remarks
from postformer.data.embedded import corpus_from, default_corpus
from postformer.data.sources import DataError, Document, Source
from postformer.data.tasks import TASKS
from postformer.data.text import Text, TextBatches

DATA: dict[str, Any] = {"text": Text, **TASKS}
"""Kinds of `Run.data`."""

__all__ = [
    "DATA",
    "Corpus",
    "DataError",
    "Document",
    "Manifest",
    "Source",
    "Text",
    "TextBatches",
    "Tokenized",
    "build_corpus",
    "corpus_from",
    "default_corpus",
    "open_corpus",
    "remarks",
]
