from typing import Any

from postformer.data.babilong import Babilong
from postformer.data.build import build_corpus
from postformer.data.corpus import Corpus, Manifest, Tokenized, open_corpus, remarks
from postformer.data.diary import Diaries, Diary
from postformer.data.embedded import corpus_from, default_corpus
from postformer.data.episode_writer import EpisodeWriter
from postformer.data.episodes import Episodes
from postformer.data.images import Images
from postformer.data.needles import Needles
from postformer.data.physics import Physics
from postformer.data.rooms import Rooms
from postformer.data.series import Series
from postformer.data.sources import DataError, Document, Source
from postformer.data.tasks import TASKS
from postformer.data.text import Text, TextBatches
from postformer.data.videos import Videos

READINGS: dict[str, Any] = {"needles": Needles, "babilong": Babilong, "diary": Diaries}
"""Texts with a question at their end."""
ASKED: dict[str, Any] = {**TASKS, **READINGS}
"""Kinds of `Run.data` whose batches have targets, which the objective `answers` takes."""
DATA: dict[str, Any] = {
    "text": Text,
    **ASKED,
    "series": Series,
    "images": Images,
    "physics": Physics,
    "videos": Videos,
    "rooms": Rooms,
    "episodes": Episodes,
}
"""Kinds of `Run.data`."""

__all__ = [
    "ASKED",
    "DATA",
    "READINGS",
    "Babilong",
    "Corpus",
    "DataError",
    "Diaries",
    "Diary",
    "Document",
    "EpisodeWriter",
    "Episodes",
    "Images",
    "Manifest",
    "Needles",
    "Physics",
    "Rooms",
    "Series",
    "Source",
    "Text",
    "TextBatches",
    "Tokenized",
    "Videos",
    "build_corpus",
    "corpus_from",
    "default_corpus",
    "open_corpus",
    "remarks",
]
