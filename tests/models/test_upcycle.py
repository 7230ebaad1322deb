"""Dense models as mixtures of experts: what they compute stays, whatever is chosen."""

import pytest
import torch

from postformer.cli import main
from postformer.config import UserError
from postformer.models.hub import load_model, save_model
from postformer.models.language import LanguageModel
from postformer.models.routing import mixtures, routed
from postformer.models.upcycle import furthest, upcycle
from postformer.tokens.text import Bytes


def dense(seed=0, dim=16, vocab=61, **words):
    torch.manual_seed(seed)
    ffns = words.pop(
        "ffns", ({"kind": "mlp", "hidden": 24}, {"kind": "none"}, {"kind": "mlp", "hidden": 36, "activation": "gelu"})
    )
    return LanguageModel(vocab, dim=dim, depth=4, mixers=({"kind": "attention", "heads": 2},), ffns=ffns, **words).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("experts", "top", "split"), [(8, 2, 1), (1, 1, 1), (4, 1, 4), (4, 3, 2), (3, 3, 12)])
def test_what_it_computes_stays(experts, top, split, tied):
    model = dense(tied=tied)
    made = upcycle([model], experts=experts, top=top, split=split)
    assert furthest(model, made) < 1e-5
    assert all(len(m.loads) == experts * split and m.top == top * split for m in mixtures(made).values())
    one, other = model.cost(8), made.cost(8)
    routers = sum(m.router.weight.numel() for m in mixtures(made).values())
    assert other.active_parameters == one.active_parameters + (top - 1) * _networks(model) + routers


def _networks(model):
    return sum(p.numel() for block in model.backbone.blocks if block.ffn is not None for p in block.ffn.parameters())


def test_in_float64_it_is_exact_and_shards_of_a_copy_go_together():
    model = dense().double()
    made = upcycle([model], experts=4, top=2, split=3)
    assert furthest(model, made) < 1e-12
    with routed(made) as routing:
        made(torch.randint(61, (2, 9)))
    for calls in routing.calls.values():
        copies = (calls[0].experts // 3).sort(-1).values
        assert (copies.unflatten(-1, (2, 3)) == copies.unflatten(-1, (2, 3))[..., :1]).all()


def test_it_saves_and_trains_on(tmp_path):
    made = upcycle([dense()], experts=4)
    save_model(made, tmp_path)
    again = load_model(tmp_path)
    ids = torch.randint(61, (2, 9))
    torch.testing.assert_close(made(ids)[0], again(ids)[0])
    again.train()(ids)[0].square().mean().backward()
    assert all(m.router.weight.grad.abs().sum() > 0 for m in mixtures(again).values())


def test_models_of_one_shape_each_become_an_expert():
    base = dense()
    tuned = [dense(), dense()]
    with torch.no_grad():
        for i, model in enumerate(tuned):
            for block in model.backbone.blocks:
                if block.ffn is not None:
                    block.ffn.up.weight += i + 1
            model.embed.weight += 2.0 * i
    made = upcycle(tuned, top=1)
    torch.testing.assert_close(made.embed.weight, base.embed.weight + 1.0)
    first = made.backbone.blocks[0].ffn
    for i in range(2):
        torch.testing.assert_close(first.up.weight[i].chunk(2)[1], base.backbone.blocks[0].ffn.up.weight + i + 1)
    assert furthest(base, upcycle([base, dense(), dense()], experts=6, top=2)) < 1e-5, "equal models merge to themselves"


def test_texts_make_routers_that_send_each_text_to_its_model():
    models = [dense(), dense()]
    texts = [torch.randint(0, 20, (400,)), torch.randint(40, 61, (400,))]
    made = upcycle(models, top=1, texts=texts)
    with routed(made) as routing:
        for ids in texts:
            made(ids[None])
    first = next(iter(routing.calls.values()))
    own, other = ((call.experts == 0).double().mean().item() for call in first)
    assert own > 0.8
    assert other < 0.2


@pytest.mark.parametrize(
    ("models", "words", "says"),
    [
        ([dense()], {"top": 9}, "top=9 must be at least 1 and at most experts=8"),
        ([dense()], {"split": 5}, "split=5 must be at least 1 and divide the networks' 24 channels"),
        ([dense(), dense(dim=8)], {}, "model 2: its dim is another than the first one's"),
        ([dense(), dense()], {"experts": 1, "top": 1}, "experts=1 must be at least one for each of the 2 models"),
        ([dense(ffns=({"kind": "none"},))], {}, "takes models whose per-token networks are of kind 'mlp'"),
        ([upcycle([dense()])], {}, "takes models whose per-token networks are of kind 'mlp'"),
        ([dense()], {"texts": [torch.zeros(3, dtype=torch.long)] * 2}, "texts: expected one for each of the 1 models, got 2"),
    ],
    ids=str,
)
def test_what_is_refused(models, words, says):
    with pytest.raises(UserError) as e:
        upcycle(models, **words)
    assert says in str(e.value)


def test_a_dense_model_in_bf16(tmp_path, capsys):
    """It is compared as it is before it is rounded."""
    model = dense(vocab=257).bfloat16()
    model.tokens = Bytes()
    save_model(model, tmp_path / "bf16")
    made = upcycle([model], experts=4, split=2)
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    with pytest.raises(SystemExit) as end:
        main(["upcycle", *map(str, (tmp_path / "bf16", "--out", tmp_path / "new", "--split", 2))])
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    assert "answers as before" in said.out
    new, old = load_model(tmp_path / "new"), load_model(tmp_path / "bf16")
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert torch.equal(new.embed.weight, old.embed.weight)
    assert furthest(old.float(), new.float()) < 0.02


def test_the_command(tmp_path, capsys):
    def run(*words):
        with pytest.raises(SystemExit) as end:
            main(["upcycle", *map(str, words)])
        return end.value.code, capsys.readouterr()

    for name in "ab":
        model = dense()
        model.tokens = None
        save_model(model, tmp_path / name)
    code, said = run(tmp_path / "a", "--out", tmp_path / "new", "--experts", 4, "--split", 2)
    assert code == 0
    assert "answers as before" in said.out
    assert len(mixtures(load_model(tmp_path / "new"))["backbone.blocks.0.ffn"].loads) == 8
    code, said = run(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")
    assert code == 0
    assert len(mixtures(load_model(tmp_path / "both"))["backbone.blocks.0.ffn"].loads) == 2
    model = dense(vocab=257)
    model.tokens = Bytes()
    for name in "cd":
        save_model(model, tmp_path / name)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "b.txt").write_text("b" * 99)
    for words, says in (
        (
            (tmp_path / "c", tmp_path / "d", "--out", tmp_path / "x", "--text", tmp_path / "empty.txt", tmp_path / "b.txt"),
            "empty.txt: is empty",
        ),
        ((tmp_path / "a", "--out", tmp_path / "new"), "is there already; name a new folder"),
        ((tmp_path / "nowhere", "--out", tmp_path / "x"), "nowhere"),
        ((tmp_path / "a", "--out", tmp_path / "x", "--top", 9), "top=9 must be at least 1"),
        ((tmp_path / "a", "--out", tmp_path / "x", "--text", tmp_path / "no.txt"), "--text: is for several models"),
        (
            (tmp_path / "a", tmp_path / "b", "--out", tmp_path / "x", "--text", tmp_path / "no.txt", tmp_path / "no.txt"),
            "saved without a tokenizer",
        ),
        (
            (tmp_path / "a", tmp_path / "b", "--out", tmp_path / "x", "--text", "one"),
            "--text: give one file for each of the 2 models, got 1",
        ),
    ):
        code, said = run(*words)
        assert code == 2
        assert says in said.err
        assert not (tmp_path / "x").exists()
