"""Memory in weights: a small network that learns each token's value under its key while it reads, in the exact dual form.

Titans (Behrouz et al. 2024, arXiv 2501.00663), sections 3.1 and 3.2, equations 8 to 18; gradients of a chunk are taken at the weights with
which it begins (equation 16). For each matrix of the network, with u_i the gradient by token i:

    S_t = eta_t S_{t-1} - theta_t u_t        M_t = (1 - alpha_t) M_{t-1} + S_t        y_t = M_t(q_t)

Since u_i = delta_i a_i^T, a read with the weights of token t is z M_t^T = beta_t z M_0^T + f_t z S_0^T - sum_i G_ti (z a_i) delta_i,
with beta_t = prod (1 - alpha), f_t = sum_j L_tj prod eta, and G = L N diag(theta), where L and N hold the products of (1 - alpha) and of
eta between two tokens. So a chunk is matrix products, and no token's weights are written down.

A `Rule` changes what is done with the gradients (postformer/ops/rules.py): a memory that is not linear in them writes down its tokens'
weights, a chunk of them at a time.

b batch, t time, h heads, n = b h, d width of keys and values, c tokens of a chunk, o outputs and i inputs of a matrix.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from postformer.ops import memory_kernel
from postformer.ops.fast_weights import Bias, Net, maps
from postformer.ops.memory_chunks import Memory, Places, begun, ended, memory_in_torch, where
from postformer.ops.rules import LINEAR, Gates, Rule


def memory_reference(
    net: Net,
    bias: Bias,
    q: Float[Tensor, "b t h d"],
    k: Float[Tensor, "b t h d"],
    v: Float[Tensor, "b t h d"],
    gates: Gates,
    memory: Memory,
    fresh: Memory,
    places: Places,
    rule: Rule = LINEAR,
) -> tuple[Float[Tensor, "b t h d"], Memory]:
    """One token after the other, each with weights of its own, and gradients by autograd. `fresh` is the memory of a document of which
    nothing was read."""
    held, out = memory, []
    for t in range(q.shape[1]):
        if places.starts is not None:
            held = begun(places.starts[:, t], fresh, held)
        here = Gates(*(None if m is None else m[:, t, :, None] for m in gates))  # type: ignore[arg-type]
        token = q[:, t, :, None], k[:, t, :, None], v[:, t, :, None]
        y, after = _reference_step(net, bias, rule, token, here, held, fresh, places.begins[:, t])
        if places.real is not None:
            kept = (where(places.real[:, t], a, b) for a, b in zip(after[1:], held[1:], strict=True))
            after = Memory(after.start, *kept)
        held = after
        out.append(y.squeeze(2))
    return torch.stack(out, 1), held


def _reference_step(
    net: Net,
    bias: Bias,
    rule: Rule,
    token: tuple[Tensor, Tensor, Tensor],
    gates: Gates,
    held: Memory,
    fresh: Memory,
    begins: Bool[Tensor, " b"],
) -> tuple[Float[Tensor, "b h 1 d"], Memory]:
    """The answer to one token, and the memory after it."""
    q, k, v = token
    now, surprise, recent = held.now, held.surprise, ()
    share = torch.ones_like(gates.rate) if gates.share is None else gates.share
    if held.recent:
        seen = [torch.cat(pair, 2) for pair in zip(held.recent, (k, v, share[..., None]), strict=True)]
        recent, (k, v, share) = tuple(m[:, :, 1:] for m in seen), (*seen[:2], seen[2][..., 0])
    if rule.at_ends:
        written, emptied = ended(rule, now, surprise, fresh)
        now, surprise = where(begins, written, now), where(begins, emptied, surprise)
    start = where(begins, now, held.start)
    with torch.enable_grad():
        W = [w if w.requires_grad else w.detach().requires_grad_() for w in map(rule.weights, start)]
        y = net.read(k, maps(W))
        u = torch.autograd.grad(y, W, share[..., None] * bias.gradient(y, v, gates.limit), create_graph=torch.is_grad_enabled())
    theta, keep, step = gates.rate[..., None], gates.keep.exp()[..., None], gates.step_or_one()[..., None]
    if rule.at_ends:
        after = Memory(start, now, tuple(s - theta * g for s, g in zip(surprise, u, strict=True)))
    else:
        eta = 0 if gates.carry is None else gates.carry.exp()[..., None]
        S = [eta * s - theta * g for s, g in zip(surprise or now, u, strict=True)]
        M = tuple(keep * m + step * rule.polished(s) for m, s in zip(now, S, strict=True))
        if rule.anchored:
            M = tuple(m + (1 - keep) * home for m, home in zip(M, fresh.now, strict=True))
        after = Memory(start, M, tuple(S) if surprise else (), recent)
    return net.read(q, maps([rule.weights(w) for w in after.now])), after


def memory(
    net: Net,
    bias: Bias,
    q: Float[Tensor, "b t h d"],
    k: Float[Tensor, "b t h d"],
    v: Float[Tensor, "b t h d"],
    gates: Gates,
    memory: Memory,
    fresh: Memory,
    places: Places,
    rule: Rule = LINEAR,
) -> tuple[Float[Tensor, "b t h d"], Memory]:
    """The same in matrix products, by the kernel where it serves."""
    if not memory.recent and memory_kernel.serves(net, bias, rule, gates, places.begins, q, k, v, *memory.now):
        fresh_too = _packed(fresh) if rule.anchored or places.starts is not None else None
        y, after = memory_kernel.read(net, bias, rule, (q, k, v), gates, _packed(memory), fresh_too, *places)
        return y, _unpacked(after, memory)
    return memory_in_torch(net, bias, q, k, v, gates, memory, fresh, places, rule)


def _packed(memory: Memory) -> Float[Tensor, "b h parts weights"]:
    return torch.stack([torch.cat([w.flatten(2) for w in part], -1) for part in memory if part], 2)


def _unpacked(packed: Float[Tensor, "b h parts weights"], like: Memory) -> Memory:
    """As views."""
    sizes = [w[0, 0].numel() for w in like.now]
    parts = [m.split(sizes, -1) for m in packed.unbind(2)]
    return Memory(
        *(tuple(w.view(x.shape) for w, x in zip(part, like.now, strict=True)) for part in parts), *[()] * (3 - len(parts))
    )
