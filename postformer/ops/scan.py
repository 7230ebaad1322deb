"""The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752, sections 2 and 3.2, algorithm 2).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t        y_t = C_t h_t

and, on demand, what stands around it in a Mamba block: dt = softplus(dt + dt_bias), y + D u, and y SiLU(z).

b batch, t time, c channels (the paper's D), n state size (the paper's N); dt is the paper's Delta. Where a document starts, the
state before it counts as zero. As in the authors' code, B is discretised by Euler's rule (dt B) and not by the
zero-order hold of equation 4.

Three implementations: the recurrence as written (the truth), the same in chunks of torch operations for any device and dtype, and the
kernel of csrc/scan.cpp for fp32 and bf16 on a CPU.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from postformer.ops import _cpu

KERNEL_CHUNK = 16
"""Steps between the states that the kernel keeps for its backward pass."""
GROUPS = 8
"""Groups of channels whose shares of dB and dC are added up apart, so that no result depends on the number of threads."""
CHUNK_ELEMENTS = 1 << 18
"""Steps are taken in chunks whose [t, b, n, c] terms have about this many elements, so that they stay in a core's cache; the
backward pass starts from the state before each chunk."""


def selective_scan(
    u: Float[Tensor, "b t c"],
    dt: Float[Tensor, "b t c"],
    A: Float[Tensor, "c n"],
    B: Float[Tensor, "b t n"],
    C: Float[Tensor, "b t n"],
    h: Float[Tensor, "b c n"],
    starts: Bool[Tensor, "b t"] | None = None,
    *,
    dt_bias: Float[Tensor, " c"] | None = None,
    D: Float[Tensor, " c"] | None = None,
    z: Float[Tensor, "b t c"] | None = None,
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b c n"]]:
    """The scan in the fastest way that there is here. u, B, C and z may be bf16; dt, A and h are fp32 or wider.

    `starts` is True at the first token of each document: what comes before it changes nothing from there on. Returns y in the
    dtype of u, and the state after the last step; what lies between is computed in fp32 or wider. Gradients flow to every
    argument; they are first-order only. Memory for the backward pass is one state for each chunk of steps.
    """
    inputs = u, dt, A, B, C, h
    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*inputs, dt_bias, D, z))
    if _cpu.serves_half(u, *(() if z is None else (z,))) and _cpu.serves(dt, A, h):
        small = (None if x is None else x.float() for x in (dt_bias, D))
        y, last, _ = torch.ops.postformer.selective_scan(u, dt, A, B.float(), C.float(), h, starts, *small, z, trained)
        return y, last
    scan = _recurrence if _cpu.transformed() else _SelectiveScan.apply if trained else _forward
    return _around(scan, *inputs, starts, dt_bias, D, z)


def selective_scan_reference(
    u: Float[Tensor, "b t c"],
    dt: Float[Tensor, "b t c"],
    A: Float[Tensor, "c n"],
    B: Float[Tensor, "b t n"],
    C: Float[Tensor, "b t n"],
    h: Float[Tensor, "b c n"],
    starts: Bool[Tensor, "b t"] | None = None,
    *,
    dt_bias: Float[Tensor, " c"] | None = None,
    D: Float[Tensor, " c"] | None = None,
    z: Float[Tensor, "b t c"] | None = None,
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b c n"]]:
    """The recurrence as it is written, one step after the other: the truth for outputs and, by autograd, for gradients."""
    return _around(_recurrence, u, dt, A, B, C, h, starts, dt_bias, D, z)


def _around(scan: Callable[..., Any], u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, *rest: Any) -> Any:
    """What stands before and after the scan itself, in operations of torch."""
    starts, dt_bias, D, z = rest
    wide = torch.promote_types(u.dtype, torch.float32)
    x, B, C = u.to(wide), B.to(wide), C.to(wide)
    y, h = scan(x, dt if dt_bias is None else F.softplus(dt + dt_bias), A, B, C, h, starts)
    y = y if D is None else y + D * x
    return (y if z is None else y * F.silu(z.to(wide))).to(u.dtype), h


def _recurrence(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    y = []
    for t in range(u.shape[1]):
        if starts is not None:
            h = h.masked_fill(starts[:, t, None, None], 0)
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        y.append((h * C[:, t, None]).sum(-1))
    return torch.stack(y, 1) if y else torch.zeros_like(u), h


def _chunk(u: Tensor, A: Tensor) -> int:
    """Steps in a chunk."""
    return min(max(CHUNK_ELEMENTS // max(u.shape[0] * A.numel(), 1), 4), 64)


def _terms(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """exp(dt A) and dt B u from time-first inputs, as [t, b, n, c]: channels last, along which the work is vectorised."""
    return (dt[:, :, None] * A.mT).exp_(), (dt * u)[:, :, None] * B[..., None]


def _resets(starts: Tensor | None, at: slice) -> tuple[Tensor, ...] | None:
    """For each step of a chunk, where the state before it counts as zero [b, 1, 1]; None where it never does."""
    if starts is None or not starts[:, at].any():
        return None
    return starts[:, at, None, None].unbind(1)


def _states(decay: Tensor, h: Tensor, hs: Tensor, resets: tuple[Tensor, ...] | None) -> Tensor:
    """Overwrite hs [t, b, n, c], which holds the inputs dt B u, with the states; returns the last."""
    for i, (a, x) in enumerate(zip(decay.unbind(0), hs.unbind(0), strict=True)):
        h = x.addcmul_(a, h if resets is None else h.masked_fill(resets[i], 0))
    return h


def _adjoints(decay: Tensor, g: Tensor, gs: Tensor, resets: tuple[Tensor, ...] | None) -> Tensor:
    """Overwrite gs [t, b, n, c], which holds C dy, with the adjoints of the states; returns that of the state before them."""
    for i in reversed(range(len(gs))):
        g = torch.mul(decay[i], gs[i].add_(g))
        if resets is not None:
            g = g.masked_fill(resets[i], 0)
    return g


def _forward(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, starts: Tensor | None, kept: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(u)
    h = h.mT
    chunk = _chunk(u, A)
    for i in range(0, u.shape[1], chunk):
        at = slice(i, i + chunk)
        if kept is not None:
            kept.append(h.clone())
        u_, dt_, B_, C_ = (x[:, at].transpose(0, 1) for x in (u, dt, B, C))
        decay, hs = _terms(u_, dt_, A, B_)
        h = _states(decay, h, hs, _resets(starts, at))
        y[:, at] = (hs * C_[..., None]).sum(2).transpose(0, 1)
    return y, h.mT.contiguous()


class _SelectiveScan(torch.autograd.Function):
    """Saves the inputs and the state before each chunk, and recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        kept: list[Tensor] = []
        y, h = _forward(*inputs, kept=kept)  # type: ignore[misc]
        ctx.save_for_backward(*inputs[:5], inputs[6], *kept)
        return y, h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The adjoint of h_t is g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}: the recurrence backwards, chunk by chunk."""
        u, dt, A, B, C, starts, *kept = ctx.saved_tensors
        du, ddt, dB, dC = (torch.empty_like(x) for x in (u, dt, B, C))
        dA, g, chunk = torch.zeros_like(A), dh.mT, _chunk(u, A)
        for j in reversed(range(len(kept))):
            at = slice(j * chunk, (j + 1) * chunk)
            resets = _resets(starts, at)
            u_, dt_, B_, C_, dy_ = (x[:, at].transpose(0, 1) for x in (u, dt, B, C, dy))
            decay, hs = _terms(u_, dt_, A, B_)
            _states(decay, kept[j], hs, resets)
            dC[:, at] = (hs * dy_[:, :, None]).sum(3).transpose(0, 1)
            gs = dy_[:, :, None] * C_[..., None]
            g = _adjoints(decay, g, gs, resets)
            dB[:, at] = (gs * (dt_ * u_)[:, :, None]).sum(3).transpose(0, 1)
            dx = (gs * B_[..., None]).sum(2)  # the adjoint of dt u
            du[:, at] = (dx * dt_).transpose(0, 1)
            decay[1:] *= hs[:-1]
            decay[0] *= kept[j]
            da = decay.mul_(gs)  # the adjoint of dt A
            if resets is not None:
                da.masked_fill_(torch.stack(resets), 0)
            ddt[:, at] = (torch.mul(da, A.mT).sum(2) + dx * u_).transpose(0, 1)
            dA += da.mul_(dt_[:, :, None]).sum((0, 1)).mT
        return du, ddt, dA, dB, dC, g.mT, None


# ---------------------------------------------------------------- the CPU kernel as an operator of torch

_INPUTS = "Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C"
_OPTIONS = "Tensor? starts, Tensor? dt_bias, Tensor? D, Tensor? z"
_cpu.LIBRARY.define(f"selective_scan({_INPUTS}, Tensor h, {_OPTIONS}, bool keep) -> (Tensor, Tensor, Tensor)")
_cpu.LIBRARY.define(
    f"selective_scan_backward({_INPUTS}, {_OPTIONS}, Tensor kept, Tensor dy, Tensor dh) -> ({', '.join(['Tensor'] * 9)})"
)


def _check(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, *options: Tensor | None) -> None:
    starts, dt_bias, D, z = options
    (b, t, c), n = u.shape, A.shape[1]
    _cpu.check_half("selective_scan", "u", u)
    _cpu.check("selective_scan", dt=(dt, (b, t, c)), A=(A, (c, n)), B=(B, (b, t, n)), C=(C, (b, t, n)), h=(h, (b, c, n)))
    _cpu.check("selective_scan", dt_bias=(dt_bias, (c,)), D=(D, (c,)))
    _cpu.check("selective_scan", u.dtype, z=(z, (b, t, c)))
    _cpu.check("selective_scan", torch.bool, starts=(starts, (b, t)))


def _plain(inputs: tuple[Tensor, ...], options: tuple[Tensor | None, ...]) -> tuple[list[Tensor | None], int]:
    """The kernel's first arguments, and how far apart the rows of z lie."""
    *others, z = options
    z, stride = (None, 0) if z is None else _cpu.rows(z)
    return [*_cpu.contiguous(*inputs, *others), z], stride


def _sizes(u: Tensor, A: Tensor, stride: int) -> tuple[int, ...]:
    return u.dtype == torch.bfloat16, *u.shape, A.shape[1], KERNEL_CHUNK, stride


@torch.library.impl(_cpu.LIBRARY, "selective_scan", "CPU")
def _scan_cpu(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *options, keep = rest
    _check(u, dt, A, B, C, h, *options)
    y, last, kept = _scan_fake(u, dt, A, B, C, h, *rest)
    last.copy_(h)
    inputs, stride = _plain((u, dt, A, B, C), tuple(options))
    _cpu.call("scan_forward", *inputs, last, y, kept if keep else None, *_sizes(u, A, stride))
    return y, last, kept


@torch.library.register_fake("postformer::selective_scan", lib=_cpu.LIBRARY)
def _scan_fake(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    chunks = (u.shape[1] + KERNEL_CHUNK - 1) // KERNEL_CHUNK if rest[-1] else 0
    return u.new_empty(u.shape), h.new_empty(h.shape), h.new_empty(u.shape[0], chunks, *A.shape)


@torch.library.impl(_cpu.LIBRARY, "selective_scan_backward", "CPU")
def _scan_backward_cpu(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *options, kept, dy, dh = rest
    _check(u, dt, A, B, C, dh, *options)
    (b, t, c), (_, dt_bias, D, z) = u.shape, options
    _cpu.check("selective_scan_backward", kept=(kept, (b, -(-t // KERNEL_CHUNK), *A.shape)))
    _cpu.check("selective_scan_backward", u.dtype, dy=(dy, (b, t, c)))
    g = dh.clone(memory_format=torch.contiguous_format)
    dA, (dB, dC) = A.new_empty(b, *A.shape), (A.new_zeros(GROUPS, *B.shape) for _ in "BC")
    dbias, dD = (None if x is None else A.new_empty(b, c) for x in (dt_bias, D))
    du, ddt, dz = u.new_empty(u.shape), dt.new_empty(dt.shape), None if z is None else u.new_empty(u.shape)
    inputs, stride = _plain((u, dt, A, B, C), tuple(options))
    out = g, du, ddt, dA, dB, dC, dbias, dD, dz
    _cpu.call("scan_backward", *inputs, kept.contiguous(), dy.contiguous(), *out, *_sizes(u, A, stride), GROUPS)
    nothing = A.new_zeros(0)
    over_rows = (nothing if x is None else x.sum(0) for x in (dbias, dD))
    return du, ddt, dA.sum(0), dB.sum(0), dC.sum(0), g, *over_rows, nothing.to(u.dtype) if dz is None else dz


@torch.library.register_fake("postformer::selective_scan_backward", lib=_cpu.LIBRARY)
def _scan_backward_fake(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, dt_bias, D, z, _, _, dh = rest
    optional = ((dt_bias, A), (D, A), (z, u))
    found = (other.new_empty(0 if x is None else x.shape) for x, other in optional)
    return *(x.new_empty(x.shape) for x in (u, dt, A, B, C, dh)), *found


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *inputs[6:10], output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(True)


def _scan_gradients(ctx: Any, dy: Tensor, dh: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *found, dbias, dD, dz = torch.ops.postformer.selective_scan_backward(*ctx.saved_tensors, dy, dh)
    options = zip(ctx.saved_tensors[6:9], (dbias, dD, dz), strict=True)
    return *found, None, *(None if x is None else gradient for x, gradient in options), None


torch.library.register_autograd("postformer::selective_scan", _scan_gradients, setup_context=_save, lib=_cpu.LIBRARY)
torch.library.register_autograd("postformer::selective_scan_backward", _cpu.first_order_only, lib=_cpu.LIBRARY)


@register_flop_formula(torch.ops.postformer.selective_scan)
def _flops(u: torch.Size, dt: torch.Size, A: torch.Size, *rest: Any, **words: Any) -> int:
    """For a channel and a state: dt A, exp, decay h, (dt u) B, the sum of these, h C, its sum; for a channel: dt u."""
    return u.numel() * (7 * A[1] + 1)
