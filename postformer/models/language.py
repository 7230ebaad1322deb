"""A causal language model: token embedding, backbone, head."""

import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from postformer import state as states
from postformer.config import ConfigError, Spec
from postformer.ffn import FFNS
from postformer.mixers import MIXERS
from postformer.models.backbone import Backbone, Cost, State, complete_pattern
from postformer.ops.layers import Embedding, Linear
from postformer.ops.packing import WHOLE, Packing, starts_after_the_last, starts_to_the_left, to_the_left
from postformer.tokens.text import Tokens


class LanguageModel(nn.Module, ModelHubMixin):
    """Token ids in, logits of the next token out. `tied` shares the embedding with the head.

    `compute_dtype` is what activations are computed in; parameters keep their own dtype and are cast where they are used.
    """

    tokens: Tokens | None = None
    """The tokenizer that the ids belong to; it is saved and loaded with the model."""

    def __init__(
        self,
        vocab: int,
        *,
        dim: int = 256,
        depth: int = 4,
        mixers: tuple[Spec, ...] = ({"kind": "mamba"},),
        ffns: tuple[Spec, ...] = ({"kind": "mlp"},),
        tied: bool = True,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        if dim < 1:
            raise ConfigError(f"model: dim={dim} must be at least 1")
        if vocab < 1:
            raise ConfigError(f"model: vocab={vocab} must be at least 1")
        if not 0 <= norm_eps < math.inf:
            raise ConfigError(f"model.norm_eps: {norm_eps} must be at least 0")
        self.config: Spec = {
            "kind": "language",
            "vocab": vocab,
            "dim": dim,
            "depth": depth,
            "mixers": complete_pattern(mixers, MIXERS, "model.mixers"),
            "ffns": complete_pattern(ffns, FFNS, "model.ffns"),
            "tied": tied,
            "norm_eps": norm_eps,
        }
        self.compute_dtype: torch.dtype | None = None
        self.vocab = vocab
        self.embed = Embedding(vocab, dim)
        self.backbone = Backbone(dim, depth, mixers, ffns, norm_eps)
        self.head = None if tied else Linear(dim, vocab, bias=False)

    def init_state(self, batch: int) -> State:
        """A fresh state for `batch` rows."""
        return self.backbone.init_state(batch)

    def hidden(
        self,
        ids: Int[Tensor, "b t"],
        state: State | None = None,
        *,
        starts: Bool[Tensor, "b t"] | None = None,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], State | None]:
        """The last layer's normalised activations; `starts`, `mask` and errors as in `forward`."""
        if ids.ndim != 2 or ids.is_floating_point():
            raise ValueError(f"ids: expected whole numbers [rows, tokens], got {ids.dtype} {tuple(ids.shape)}")
        for name, given in (("starts", starts), ("mask", mask)):
            if given is not None and (given.shape != ids.shape or given.dtype != torch.bool):
                raise ValueError(
                    f"{name}: expected bool {tuple(ids.shape)}, as the ids, got {given.dtype} {tuple(given.shape)}"
                )
        if state is not None and (rows := states.rows(state)) not in (None, len(ids)):
            raise ValueError(f"state: it has {rows} rows, and the ids have {len(ids)}")
        order = late = None
        packing = WHOLE
        if mask is not None:
            order, lengths = to_the_left(mask)
            ids = ids.gather(1, order)
            late = None if starts is None or state is None else starts_after_the_last(starts, mask)
            starts = None if starts is None else starts_to_the_left(starts, mask, order)
            packing = Packing(starts, lengths)
        elif starts is not None:
            packing = Packing(starts)
        x = self.embed(ids)
        x, state = self.backbone(x if self.compute_dtype is None else x.to(self.compute_dtype), state, packing)
        if late is not None and bool(late.any()):
            state = states.emptied(state, late)
        return (x if order is None else torch.empty_like(x).scatter(1, order[..., None].expand_as(x), x)), state

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """Unnormalised log-probabilities of the next token."""
        return self.embed.head(hidden) if self.head is None else self.head(hidden)

    def forward(
        self,
        ids: Int[Tensor, "b t"],
        state: State | None = None,
        *,
        starts: Bool[Tensor, "b t"] | None = None,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t v"], State | None]:
        """Logits after every token, and the state after the last if one was given.

        `starts` is true at the first token of each document of a packed row: nothing before it is seen, and the state is then
        that of the row's last document. `mask` is false at padding, which may stand anywhere in a row: it is not seen, changes
        no state, and its logits mean nothing. A start at padding is one of the next real token.

        Raises ValueError for ids that are not whole numbers [b, t], for `starts` and `mask` of another shape or dtype, and for a state
        of another number of rows or layers.
        """
        x, state = self.hidden(ids, state, starts=starts, mask=mask)
        return self.logits(x), state

    def read(self, ids: Int[Tensor, "b t"], state: State, chunk: int = 1024) -> tuple[Float[Tensor, "b v"], State]:
        """Read tokens in chunks and return the logits after the last one only: memory does not grow with the text."""
        if not ids.shape[1]:
            raise ValueError("nothing to read")
        *before, last = ids.split(chunk, 1)
        after: State | None = state
        for piece in before:
            _, after = self.hidden(piece, after)
        x, after = self.hidden(last, after)
        assert after is not None
        return self.logits(x[:, -1]), after

    def cost(self, length: int) -> Cost:
        """Cost formulas at a text length in tokens, in the parameters' dtype. An untied embedding costs no operations."""
        parameters = sum(p.numel() for p in self.parameters())
        idle = self.backbone.idle_parameters() + (0 if self.head is None else self.embed.weight.numel())
        head = 2 * self.embed.weight.numel()
        return Cost(
            parameters=parameters,
            active_parameters=parameters - idle,
            prefill_flops=self.backbone.flops(length) / length + head,
            decode_flops=float(self.backbone.flops(1, length) + head),
            state_bytes=self.backbone.state_bytes(length, self.embed.weight.element_size()),
        )

    def touched_parameters(self, batch: int) -> float:
        """Parameters that a step of one token in each of `batch` rows reads: see `Backbone.touched_parameters`. Of an untied embedding
        a row a token is read, which is not counted."""
        return self.backbone.touched_parameters(batch) + (self.embed if self.head is None else self.head).weight.numel()

    def _save_pretrained(self, save_directory: Path) -> None:
        from postformer.models.hub import save_model

        save_model(self, save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, trust_kinds: bool = False, **options: Any) -> "LanguageModel":
        from postformer.models.hub import fetch, load_model

        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        folder = Path(model_id) if Path(model_id).is_dir() else fetch(model_id, **{k: options.get(k) for k in known})
        return load_model(folder, trust_kinds=trust_kinds)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README of a saved model: what it is and how to load it."""
        return ModelCard(
            "---\nlibrary_name: postformer\npipeline_tag: text-generation\n---\n\n"
            f"A language model of {sum(p.numel() for p in self.parameters()):,} parameters.\n\n"
            '```python\nimport postformer\n\nmodel = postformer.load("this folder or owner/name")\n```\n'
        )
