"""What experts do on texts of several domains: the statistics by hand, the control, and the command."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from postformer.cli import main
from postformer.config import UserError
from postformer.models.hub import save_model
from postformer.models.language import LanguageModel
from postformer.models.routing import mixtures
from postformer.models.telemetry import WINDOW, Layer, given_expert, information, purity, telemetry
from postformer.tokens.text import Bytes

MOE = {"kind": "moe", "experts": 4, "top": 1, "hidden": 16}


def model(*ffns, **words):
    torch.manual_seed(0)
    m = LanguageModel(257, dim=16, depth=2, mixers=({"kind": "mamba"},), ffns=ffns or (MOE,), **words)
    m.tokens = Bytes()
    return m.eval()


def texts(size=3 * WINDOW):
    return {"a": [b"a" * size], "b": [b"xyz" * size]}


def test_purity_and_information_by_hand():
    apart, alike = np.array([[8, 0], [0, 2]]), np.array([[4, 4], [1, 1]])
    assert (purity(apart), information(apart)) == (1.0, pytest.approx(1.0))
    assert (purity(alike), information(alike)) == (0.5, pytest.approx(0.0))
    mixed = np.array([[30, 10], [1, 3]])  # shares 3/4, 1/4 and 1/4, 3/4
    assert purity(mixed) == pytest.approx(0.75)
    told = 0.75 * np.log2(0.75 / 0.5) + 0.25 * np.log2(0.25 / 0.5)
    assert information(mixed) == pytest.approx(told)
    np.testing.assert_allclose(given_expert(mixed), [[0.75, 0.25], [0.25, 0.75]])
    assert np.isnan(given_expert(np.array([[1, 0], [1, 0]]))[:, 1]).all()


SHARES = {"a": [0.6, 0.3, 0.1], "b": [0.2, 0.2, 0.6]}
UNTRAINED = {"a": [0.5, 0.3, 0.2], "b": [0.25, 0.45, 0.3]}
"""Of each domain's pairs: purities of 0.75 and 0.625."""


def drawn(rng, windows):
    """A layer of so many windows, each of which has a taste of its own."""

    def loads(shares, *routers):
        return rng.multinomial(64, rng.dirichlet(8 * np.array(shares), (*routers, windows)))

    return Layer("x", {d: loads(p) for d, p in SHARES.items()}, {d: loads(p, 8) for d, p in UNTRAINED.items()})


def test_intervals_hold_the_truth_and_shrink_with_windows():
    """Of texts that are drawn anew, about 23 of 24 intervals hold it, and they are as wide as 4 standard deviations of what is told. The
    excess's are wider: they are over single routers, what is told is of their mean."""
    rng = np.random.default_rng(0)
    layers = [drawn(rng, 40) for _ in range(24)]
    for truth, widest, of in ((0.75, 5, Layer.purity_interval), (0.125, 8, Layer.excess_interval)):
        found = [of(layer) for layer in layers]
        assert sum(n.low <= truth <= n.high for n in found) >= 21
        spread = np.std([n.value for n in found])
        assert 3 * spread < np.mean([n.high - n.low for n in found]) < widest * spread
    few, many = drawn(rng, 4), drawn(rng, 200)
    for n in (many.purity_interval(), many.purity_interval(control=True), many.excess_interval()):
        assert n.low < n.value < n.high
    assert many.purity_interval().high - many.purity_interval().low < few.purity_interval().high - few.purity_interval().low
    assert many.excess_interval().low > 0.05


def test_documents_are_what_is_resampled():
    """Windows of one document say the same: the interval is wider than were they of many."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([1.0, 1.0, 1.0], 12)
    own = {d: np.concatenate([rng.multinomial(64, p, 10) for p in (shares if d == "a" else shares[::-1])]) for d in "ab"}
    control = {d: of[None] for d, of in own.items()}
    numbers = {d: np.repeat(np.arange(12), 10) for d in "ab"}
    apart, together = (Layer("x", own, control, given).purity_interval() for given in ({}, numbers))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    few = {d: np.repeat(np.arange(2), 60) for d in "ab"}
    assert Layer("x", own, control, few).purity_interval() == apart
    halves = [Layer("x", own, control, numbers).half(i) for i in (0, 1)]
    assert [len(h.windows["a"]) for h in halves] == [60, 60] and set(halves[0].documents["a"].tolist()) == {0, 2, 4, 6, 8, 10}
    for half in halves:
        assert half.units("a").tolist() == np.repeat(np.arange(6), 10).tolist(), "as in the whole layer, documents"
        alone = dataclasses.replace(half, documents={}, resampled={}).purity_interval()
        assert half.purity_interval().high - half.purity_interval().low > 1.3 * (alone.high - alone.low)
    for half in (Layer("x", own, control, few).half(i) for i in (0, 1)):
        assert len(set(half.documents["a"].tolist())) == 1, "a document is whole in one of them"
        assert half.units("a").tolist() == list(range(60))


def test_windows_are_of_one_document_and_few_of_each():
    m = model()
    long, short = b"a" * (5 * WINDOW), b"xyz" * 20
    found = telemetry(m, {"a": [long, short, b"tiny", long], "b": [long]}, each=2)
    layer = found.layers[0]
    assert layer.documents["a"].tolist() == [0, 0, 1, 3, 3] and layer.documents["b"].tolist() == [0, 0]
    assert found.tokens == {"a": 4 * WINDOW + 61, "b": 2 * WINDOW}
    assert layer.windows["a"].sum(1).tolist() == [WINDOW, WINDOW, 61, WINDOW, WINDOW]


def test_a_router_that_knows_the_domain_is_pure_and_its_control_is_not():
    m = model()
    for mixture in mixtures(m).values():
        with torch.no_grad():
            mixture.router.weight.zero_()

        def by_sign(x, mixture=mixture):
            return torch.stack([x[:, 0], -x[:, 0], *[torch.full_like(x[:, 0], -99.0)] * 2], -1)

        mixture.router.register_forward_hook(lambda _, given, __, f=by_sign: f(given[0]))
    with torch.no_grad():
        m.embed.weight.zero_()
        m.embed.weight[:, 0] = -1.0
        m.embed.weight[ord("a"), 0] = 1.0
    for block in m.backbone.blocks:
        torch.nn.init.zeros_(block.mixer.out.weight)
    found = telemetry(m, texts())
    first = found.layers[0]
    assert purity(first.loads) == 1.0
    assert found.tokens == {"a": 3 * WINDOW, "b": 9 * WINDOW}
    assert first.loads.sum(1).tolist() == [3 * WINDOW, 9 * WINDOW]
    assert found.sent[0].experts[0] == (0,) * WINDOW
    assert found.sent[1].experts[0] == (1,) * WINDOW
    assert "".join(found.sent[0].pieces) == "a" * WINDOW


def test_the_control_is_a_router_that_begins_and_leaves_the_model_as_it_was():
    m = model({**MOE, "preset": "deepseek-v3", "groups": 1, "shared": 0})
    before = {name: t.clone() for name, t in m.state_dict().items()}
    state = torch.random.get_rng_state()
    one, other = telemetry(m, texts(), seed=1), telemetry(m, texts(), seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in m.state_dict().items())
    assert (one.layers[0].loads == other.layers[0].loads).all()
    assert (one.layers[0].control_loads != other.layers[0].control_loads).any()
    assert not any(mixture.observers for mixture in mixtures(m).values())


@pytest.mark.parametrize(
    ("make", "given", "says"),
    [
        (lambda: model({"kind": "mlp"}), texts(), "no mixture of experts"),
        (model, {"a": [b"a" * 999]}, "at least two"),
        (model, {"a": [b"a" * 999], "b": [b"b"]}, f"--text b: holds less than a window of {WINDOW} tokens"),
    ],
)
def test_what_is_refused(make, given, says):
    with pytest.raises(UserError, match=says):
        telemetry(make(), given)


def test_the_command_lists_layers_and_writes_a_page(tmp_path, capsys):
    save_model(model(), tmp_path / "model")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.py").write_text("def f(x):\n    return x + 1\n" * 60)
    (tmp_path / "prose.txt").write_text("<b>It was a dark & stormy night.</b> " * 60)
    words = ["experts", str(tmp_path / "model"), "--text", f"code={tmp_path / 'code'}", f"prose={tmp_path / 'prose.txt'}"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--out", str(tmp_path / "page.html"), "--tokens", "1024"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert re.search(r"backbone\.blocks\.0\.ffn +4 +\d\.\d\d", said)
    assert "code: experts that have most of code" in said
    html = (tmp_path / "page.html").read_text()
    assert html.count('class="tokens"') == 2 * 2
    assert "&lt;" in html
    assert "<b>It" not in html


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["code"], "expected a domain and its texts"),
        (["a=.", "a=."], "is there twice"),
        (["a=."], "at least two domains"),
        (["a=.", "b=nowhere"], "no such file or folder"),
        (["a=.", "b=.", "--out", "nowhere/page.html"], "the folder nowhere does not exist"),
    ],
)
def test_mistakes_of_the_command(given, says, capsys):
    with pytest.raises(SystemExit) as end:
        main(["experts", "model", "--text", *given])
    assert end.value.code == 2
    assert says in capsys.readouterr().err
