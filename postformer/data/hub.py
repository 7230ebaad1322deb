"""Text from the hub, an option: rows of a data set, streamed through the `datasets` library into JSONL on this machine.

What is read from there on is the file, whose sha256 stands in the corpus's manifest: the hub is asked once.
"""

import importlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

from postformer.data.sources import DataError, Source
from postformer.files import durable_file


def hub_source(
    name: str,
    file: str | Path,
    *,
    config: str | None = None,
    split: str = "train",
    field: str = "text",
    revision: str | None = None,
    rows: int | None = None,
    domain: str = "text",
) -> Source:
    """Stream a data set's rows (the first `rows` of them) into a JSONL file, unless it is there, and return it as a source.

    The licence is the data set's own where it states one. Raises DataError when `datasets` is missing or refuses.
    """
    file = Path(file)
    about = file.with_suffix(".source.json")
    asked = {"name": name, "config": config, "split": split, "field": field, "revision": revision, "rows": rows}
    if not about.exists():
        if file.exists():
            raise DataError(f"{file}: is there already and did not come from the hub; choose another file")
        _fetch(asked, file, about)
    found = json.loads(about.read_text(encoding="utf-8"))
    if found["asked"] != asked:
        raise DataError(f"{file}: holds rows of {found['asked']['name']} fetched with other arguments; choose another file")
    return Source(file, domain, found["license"], field)


def _fetch(asked: dict[str, Any], file: Path, about: Path) -> None:
    name, field = asked["name"], asked["field"]
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as e:
        raise DataError(f"{name}: text from the hub needs the 'datasets' package: pip install 'postformer[hub]'") from e
    try:
        stream = datasets.load_dataset(name, asked["config"], split=asked["split"], revision=asked["revision"], streaming=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        with durable_file(file) as temporary, temporary.open("w", encoding="utf-8") as f:
            for row in islice(stream, asked["rows"]):
                text = row.get(field)
                f.write(json.dumps({field: text if isinstance(text, str) else None}) + "\n")
    except Exception as e:  # whatever the library, the network or the data set's host raise
        raise DataError(f"{name}: the hub's data set cannot be read: {type(e).__name__}: {str(e).splitlines()[0]}") from e
    licence = getattr(getattr(stream, "info", None), "license", None) or "unknown"
    with durable_file(about) as temporary:
        temporary.write_text(json.dumps({"asked": asked, "license": licence}, indent=1) + "\n", encoding="utf-8")
