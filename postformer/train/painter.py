"""A trained model that draws: its averaged weights, what it predicts, and what it learned from, as its run says."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from postformer.config import UserError, build, complete, read
from postformer.data import DATA
from postformer.data.captions import encoded
from postformer.data.images import Images, opaque, read_picture
from postformer.data.sources import DataError
from postformer.data.video import from_pixels, read_video
from postformer.data.videos import scaled
from postformer.models import DENOISERS
from postformer.models.dreaming import ahead, filled, rolled, together
from postformer.models.sampling import Sampling, sample
from postformer.objectives import OBJECTIVES
from postformer.objectives.continued import has_state
from postformer.objectives.drawn import Judged, halves, judged
from postformer.train.begin import averaged
from postformer.train.session import model_folder, open_model

AT_ONCE = 250
"""Images that are drawn at once to be judged."""


class Painter:
    """`frames` and `size` are those of what it learned from: a clip of that length is its window."""

    def __init__(self, model: Any, objective: dict[str, Any], data: Any, seed: int):
        self.model, self.data = model, data
        self.objective = objective
        frames, rows, columns = data.clip_size
        self.frames, self.size = frames, (rows, columns)
        self.generator = torch.Generator().manual_seed(seed)

    @classmethod
    def of(cls, checkpoint: str | Path, *, seed: int = 0) -> "Painter":
        """The model of a run or a checkpoint. Raises UserError for a model that does not draw, or that no run of ours tells of."""
        folder = model_folder(checkpoint)
        if not (folder / "run.json").exists():
            raise UserError(
                f"{checkpoint}: it has no run.json, which tells what the model predicts; name a run or a checkpoint of one"
            )
        run = read(folder / "run.json")
        if run.get("model", {}).get("kind") not in DENOISERS:
            raise UserError(
                f"{checkpoint}: a model of kind {run.get('model', {}).get('kind')!r} draws nothing; choose a run of {', '.join(DENOISERS)}"
            )
        model = open_model(folder)
        if (average := averaged(folder)) is not None:
            model.load_state_dict(average)
        objective = complete(run["objective"], OBJECTIVES, "objective", "model")
        return cls(model, objective, build(run["data"], DATA, "data"), seed)

    def doubt(self, verb: str, *, backward: bool = False) -> str | None:
        """Why a verb asks of the model what it was never taught, or what it cannot do for long; None where it does neither."""
        if untaught := self._untaught(verb, backward):
            return f"{untaught}, so what it draws may be of no use"
        mixers = [block.mixer for block in self.model.backbone.blocks] if verb == "extend" and self.causal else []
        if any(getattr(mixer, "reach", None) == "past" and mixer.window is None for mixer in mixers):
            return "its attention has no window (model.mixers), so what it holds in memory grows with each frame"
        return None

    def _untaught(self, verb: str, backward: bool) -> str | None:
        side = {"animate": "first", "extend": "last" if backward else "first", "loop": "both", "connect": "both"}.get(verb)
        share, ends, count = (self.objective[name] for name in ("known", "ends", "known_frames"))
        if side is None:
            return "it was taught with known frames alone" if share == 1 else None
        if self.causal:
            return None if side == "first" else "it is causal over frames and does not see what comes after"
        if not share or not {side, "any"} & set(ends):
            return f"it was not taught with known frames at {'both ends' if side == 'both' else f'the {side} end'}"
        if verb == "animate" and count not in (0, self.part):
            return f"it was taught with {count} known frames"
        return None

    def learned_from(self) -> Any:
        """The data of its run. Raises DataError where it is no longer what the model learned from."""
        _ = self.data.identity
        return self.data

    def told(self, label: str | None, text: str | None, count: int) -> dict[str, Tensor]:
        """What the model is told beside clips: of classes every one in turn where none is named, of texts nothing. Raises UserError."""
        return {**self._label(label, count), **self._text(text, count)}

    def _label(self, label: str | None, count: int) -> dict[str, Tensor]:
        classes = self.model.classes
        if not classes:
            if label is not None:
                raise UserError(f"--label {label}: the model was taught no classes")
            return {}
        if label is None:
            return {"label": torch.arange(count) % classes}
        if label.isdecimal() and int(label) < classes:
            return {"label": torch.full((count,), int(label))}
        names: list[str] = self.learned_from().classes
        if label not in names:
            raise UserError(f"--label {label}: choose from {', '.join(names)}")
        return {"label": torch.full((count,), names.index(label))}

    def _text(self, text: str | None, count: int) -> dict[str, Tensor]:
        if not getattr(self.model, "vocab", 0):
            if text is not None:
                raise UserError(f"--text {text!r}: the model was taught no texts; train one on data with captions (data.text)")
            return {}
        try:
            return {"text": encoded(text or "", self.data.caption_bytes).expand(count, -1)}
        except ValueError as e:
            raise UserError(f"--text: {e}") from e

    def draw(self, count: int, how: Sampling, *, frames: int | None, size: tuple[int, int] | None, **words: Any) -> Tensor:
        """Clips [count, c, f, h, w] from noise; frames that do not fill a patch, such as an image's one, are cut out of one that is full.
        Raises ValueError for sizes that the model cannot have."""
        wanted: int = self.frames if frames is None else frames
        whole = -(-wanted // self.part) * self.part
        shape = (count, self.model.channels, whole, *(size or self.size))
        made = sample(self.model, torch.randn(shape, generator=self.generator), how, generator=self.generator, **words)
        return made[:, :, :wanted]

    def judged_by(
        self,
        classifier: Any,
        how: Sampling,
        *,
        seed: int = 0,
        after_batch: Callable[[int, int], object] = lambda done, of: None,
    ) -> Judged:
        """How a classifier judges as many images as half of the test part has, of its classes where the model knows any, drawn AT_ONCE at
        a time; the seed deals the halves. Raises UserError for a test part that is too small, or that is of no images."""
        if not isinstance(self.data, Images):
            raise UserError(
                "a model that did not learn from images (data.kind images) draws nothing that a classifier could judge"
            )
        real = self.learned_from().part("test")
        to, _ = halves(real.labels, seed)
        if len(to) < 2:
            raise UserError(f"a test part of {len(real.labels)} images is too small to judge by; 4 are needed")
        label = torch.from_numpy(real.labels[to]) if self.model.classes else None
        drawn = []
        for first in range(0, len(to), AT_ONCE):
            told = {} if label is None else {"label": label[first : first + AT_ONCE]}
            count = min(AT_ONCE, len(to) - first)
            drawn.append(self.draw(count, how, frames=1, size=None, **told)[:, :, 0])
            after_batch(first + count, len(to))
        return judged(classifier, torch.cat(drawn), label, real.values(), torch.from_numpy(real.labels), seed=seed)

    def sampling(self, **words: Any) -> Sampling:
        """How this model is sampled: by what it was taught to predict, on its path."""
        return Sampling(path=self.objective["path"], predict=self.objective["predict"], **words)

    def clip(self, name: str, option: str) -> Tensor:
        """[1, c, f, h, w] from a video, a picture, or SPLIT:NUMBER of what the model learned from. Raises UserError."""
        if match := re.fullmatch(r"([a-z]+):([0-9]{1,9})", name):
            return self._learned(match[1], int(match[2]), option)
        if Path(name).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp"):
            return self._picture(Path(name))
        frames, _ = read_video(name, size=self.fitting)
        return torch.from_numpy(from_pixels(frames, self.model.channels))[None]

    def fitting(self, rows: int, columns: int) -> tuple[int, int]:
        """To what size a picture of so many rows and columns is brought: that of what the model learned from, or, where each had its own
        shape, one of this shape."""
        if getattr(self.data, "shape", None) == "own":
            return scaled((rows, columns), self.data)
        return self.size

    def patched(self, clip: Tensor, *, before: bool) -> Tensor:
        """A clip of whole patches: where frames do not fill them, those at the far end from what is drawn are left out, and too few are
        filled up there: the first ones of a clip that goes `before` what is drawn, else the last."""
        clip = filled(clip, self.part, before=before)
        over = clip.shape[2] % self.part
        return clip[:, :, over:] if before else clip[:, :, : clip.shape[2] - over]

    def padded(self, clip: Tensor) -> Tensor:
        """A clip of whole patches that ends with more of its last frame."""
        return filled(clip, -(-clip.shape[2] // self.part) * self.part, before=False)

    def _learned(self, split: str, number: int, option: str) -> Tensor:
        try:
            data = self.learned_from()
            if split in getattr(data, "numbers", {}) and number >= (count := len(data.numbers[split])):
                raise UserError(f"{option} {split}:{number}: {split} has {count}, from 0 to {count - 1}")
            batch = data.batches(1, seed=0, split=split).batch(number)
        except (ValueError, DataError) as e:
            raise UserError(f"{option} {split}:{number}: {e}") from e
        if "images" in batch:
            return batch["images"][:, :, None]
        clips = batch["clips"]
        return clips[0][None] if isinstance(clips, list) else clips

    def _picture(self, path: Path) -> Tensor:
        pixels = opaque(read_picture(path)[None])[0]
        from PIL import Image

        rows, columns = self.fitting(pixels.shape[0], pixels.shape[1])
        fitted = np.asarray(Image.fromarray(pixels).resize((columns, rows)))
        return torch.from_numpy(from_pixels(fitted[None], self.model.channels))[None]

    def go_on(
        self,
        clip: Tensor,
        frames: int,
        how: Sampling,
        context: int,
        *,
        backward: bool = False,
        steady: float | None = None,
        **words: Any,
    ) -> Iterator[Tensor]:
        """New frames next to a clip: from its state by a model that is causal over frames, which reads what it drew as clean as of the
        time `steady`, else window by window. Raises UserError for a `steady` time of a model that has none."""
        if self.causal and not backward:
            return rolled(self.model, clip, frames, how, steady=1.0 if steady is None else steady, **words)
        if steady is not None:
            raise UserError("--steady: goes with a model that is causal over frames, such as physics-causal, and not backward")
        return ahead(self.model, clip, frames, how, window=self.frames, context=context, backward=backward, **words)

    @property
    def causal(self) -> bool:
        """Whether the model has a state."""
        return has_state(self.model)

    def new_frames(self, frames: int | None, known: int) -> int:
        """How many new frames: those asked for, or what the window has room for beside known ones."""
        return frames or max((self.frames - known) // self.part, 1) * self.part

    @property
    def part(self) -> int:
        """Frames that are drawn at once."""
        return together(self.model)

    def context(self, frames: int | None) -> int:
        """How many frames of a clip new ones go on from: those asked for, or a quarter of the window."""
        return frames or max(self.frames // 4 // self.part, 1) * self.part
