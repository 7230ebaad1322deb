"""The family of memories that learn at test time, as choices (MIRAS, Behrouz et al. 2025, arXiv 2504.13173, section 4): a network, how
wrong its answers are, what stays of it, and how it steps. A preset names the choices of one paper.

| preset | network | bias | retention | step | source |
|---|---|---|---|---|---|
| titans | MLP | L2 | decay | momentum | Behrouz et al. 2024, arXiv 2501.00663, equations 12 to 14 |
| titans-linear | matrix | L2 | decay | momentum | the same, table 5 |
| ttt-linear | x + LN(matrix) | L2 | all stays | gradient | Sun et al. 2024, arXiv 2407.04620, sections 2.1 to 2.7 |
| ttt-mlp | x + LN(MLP), 4 times as wide | L2 | all stays | gradient | the same |
| moneta | x + LN(MLP), 4 times as wide | Lp, p = 3 | Lq, q = 4 | gradient | MIRAS, equations 23 and 24 |
| yaad | as moneta | Huber, the limit from the token | decay | gradient | MIRAS, equations 25 and 26 |
| memora | as moneta | L2 | KL: weights are a softmax | gradient | MIRAS, equation 27 |
| lact | SwiGLU | dot product | row norms stay | Muon, after each chunk | Zhang et al. 2025, arXiv 2505.23884, section 3.1 |
| atlas | x + LN(MLP) | L2 over a window | decay | momentum and Muon | Behrouz et al. 2025, arXiv 2505.23735, sections 3.2 and 5 |

In all of them theta, eta, alpha, the limit and the windows' shares come from the token; docs/titans.md says where a preset differs from
its paper.
"""

from typing import Any, Literal, NamedTuple

from postformer.ops.fast_weights import BIASES, MLP, Bias, Lp, Net, SwiGLU
from postformer.ops.layers import checked_word
from postformer.ops.rules import IDENTITY, Rule, lq, newton_schulz, softmax

Preset = Literal["titans", "titans-linear", "ttt-linear", "ttt-mlp", "moneta", "yaad", "memora", "lact", "atlas"]
Network = Literal["mlp", "swiglu"]
Activation = Literal["silu", "gelu"]
BiasName = Literal["l2", "dot", "lp", "huber"]
Retention = Literal["decay", "initial", "lq", "softmax"]
Step = Literal["gradient", "muon"]
Write = Literal["tokens", "chunks"]

_PLAIN: dict[str, Any] = {
    "network": "mlp",
    "depth": 2,
    "expand": 2,
    "activation": "silu",
    "residual": None,
    "damping": None,
    "bias": "l2",
    "p": 3.0,
    "retention": "decay",
    "q": 4.0,
    "step": "gradient",
    "write": "tokens",
    "window": 1,
    "momentum": False,
    "forgetting": True,
    "chunk": 16,
}
_MIRAS = {"expand": 4, "activation": "gelu"}
PRESETS: dict[str, dict[str, Any]] = {
    "titans": {"momentum": True},
    "titans-linear": {"momentum": True, "depth": 1},
    "ttt-linear": {"depth": 1, "residual": True, "forgetting": False},
    "ttt-mlp": {"expand": 4, "activation": "gelu", "forgetting": False},
    "moneta": {**_MIRAS, "bias": "lp", "retention": "lq"},
    "yaad": {**_MIRAS, "bias": "huber"},
    "memora": {**_MIRAS, "retention": "softmax"},
    "lact": {"network": "swiglu", "bias": "dot", "step": "muon", "write": "chunks", "forgetting": False, "chunk": 512},
    "atlas": {"momentum": True, "step": "muon", "window": 16, "chunk": 64},
}

WORDS = {
    "network": Network,
    "activation": Activation,
    "bias": BiasName,
    "retention": Retention,
    "step": Step,
    "write": Write,
}


class Learner(NamedTuple):
    """A memory of one head, without its weights."""

    net: Net
    bias: Bias
    rule: Rule
    momentum: bool
    forgetting: bool
    chunk: int

    @property
    def surprise(self) -> bool:
        """Whether it has S between two tokens."""
        return self.momentum or self.rule.at_ends

    @property
    def steps(self) -> bool:
        """Whether the length of a step is a gate of its own: where S is made even, theta has no say in it."""
        return self.rule.polish is not None and not self.rule.at_ends


def learner(width: int, preset: str, given: dict[str, Any]) -> Learner:
    """The preset with those of its choices changed that are given, not None. Raises ValueError."""
    choice = (
        _PLAIN
        | PRESETS[checked_word("preset", preset, Preset)]
        | {name: value for name, value in given.items() if value is not None}
    )
    for name, choices in WORDS.items():
        checked_word(name, choice[name], choices)
    for name in ("depth", "expand", "chunk", "window"):
        if choice[name] < 1:
            raise ValueError(f"{name}={choice[name]} must be at least 1")
    if choice["write"] == "chunks" and (choice["window"] > 1 or choice["momentum"] or choice["retention"] != "decay"):
        raise ValueError("write='chunks' has no windows, no momentum and no retention of its own")
    if choice["bias"] == "huber" and choice["window"] > 1:
        raise ValueError("bias='huber' has a limit for each token; its window must be 1")
    if choice["write"] == "chunks" and choice["forgetting"]:
        raise ValueError("write='chunks' forgets by the norms of its rows; set forgetting=false")
    hidden, perceptron = choice["expand"] * width, choice["network"] == "mlp"
    residual = choice["depth"] > 1 if choice["residual"] is None else choice["residual"]
    _refuse_idle(given, choice, perceptron, residual)
    net: Net = SwiGLU(width, hidden)
    if perceptron:
        net = MLP(width, choice["depth"], hidden, choice["activation"], residual, _damping(choice))
    weights = {"decay": IDENTITY, "initial": IDENTITY, "lq": lq(choice["q"]), "softmax": softmax}[choice["retention"]]
    polish = newton_schulz if choice["step"] == "muon" else None
    rule = Rule(
        weights,
        polish,
        choice["write"] == "chunks",
        choice["window"],
        choice["retention"] == "initial" and choice["forgetting"],
    )
    bias = Lp(choice["p"]) if choice["bias"] == "lp" else BIASES[choice["bias"]]()
    return Learner(net, bias, rule, choice["momentum"], choice["forgetting"], choice["chunk"])


def _damping(choice: dict[str, Any]) -> float:
    """Weights that decay to 0 would step ever farther under a norm that undoes their decay."""
    fades = choice["forgetting"] and choice["retention"] == "decay"
    return (1.0 if fades else 1e-5) if choice["damping"] is None else choice["damping"]


def _refuse_idle(given: dict[str, Any], choice: dict[str, Any], perceptron: bool, residual: bool) -> None:
    """Raises ValueError for a keyword that was given and changes nothing beside the others."""
    used = {
        "depth": perceptron,
        "residual": perceptron,
        "damping": perceptron and residual,
        "activation": perceptron and choice["depth"] > 1,
        "expand": not perceptron or choice["depth"] > 1,
        "retention": choice["forgetting"] or choice["retention"] not in ("decay", "initial"),
        "p": choice["bias"] == "lp",
        "q": choice["retention"] == "lq",
    }
    for name, has_effect in used.items():
        if given[name] is not None and not has_effect:
            others = ("network", "depth", "residual", "bias", "retention", "forgetting")
            beside = ", ".join(
                f"{other}={residual if other == 'residual' else choice[other]}" for other in others if other != name
            )
            raise ValueError(f"{name}={given[name]} has no effect beside {beside}")
