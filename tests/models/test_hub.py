"""Models as folders: what is written comes back, from elsewhere too, and nothing that is read is executed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small
import torch
from huggingface_hub import hub_mixin
from safetensors import safe_open
from safetensors.torch import load_file

import postformer
from postformer.config import ConfigError
from postformer.models import hub
from postformer.models.hub import ModelError, fetch, load_model, save_model
from postformer.models.language import LanguageModel
from postformer.ops.layers import RMSNorm
from postformer.train.session import open_model

IDS = torch.arange(24).reshape(2, 12)


def same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    assert a.config == b.config
    assert a.state_dict().keys() == b.state_dict().keys()
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert x.dtype == y.dtype, name
        assert torch.equal(x, y), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("mixer", sorted(small.MIXERS))
def test_a_folder_gives_the_model_back_to_the_bit(mixer, dtype, tmp_path):
    model = small.model(mixer).to(dtype)
    postformer.save(model, tmp_path / "m")
    again = postformer.load(tmp_path / "m")
    same(model, again)
    assert not again.training
    assert again.tokens.kind == "bytes"
    assert all(p.requires_grad for p in again.parameters())
    with torch.no_grad():
        assert torch.equal(again(IDS)[0], model(IDS)[0])
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_marks_without_weight_decay_survive(tmp_path):
    model = small.model("mamba")
    marked = {n for n, p in model.named_parameters() if getattr(p, "no_weight_decay", False)}
    assert marked == {f"backbone.blocks.{i}.mixer.{n}" for i in (0, 1) for n in ("A_log", "D", "dt.bias")}
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert {n for n, p in again.named_parameters() if getattr(p, "no_weight_decay", False)} == marked


def test_save_pretrained_and_from_pretrained(tmp_path):
    model = small.model("window")
    model.save_pretrained(tmp_path / "m")
    again = LanguageModel.from_pretrained(tmp_path / "m")
    same(model, again)
    assert again.tokens.kind == "bytes"
    assert "postformer.load" in (tmp_path / "m" / "README.md").read_text()
    again.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "m" / name).read_bytes()


def test_push_to_hub(tmp_path, monkeypatch):
    pushed = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **options):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **options):
            pushed.update({p.name: p.read_bytes() for p in Path(folder_path).iterdir()}, id=repo_id)
            return "address"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    model = small.model()
    assert model.push_to_hub("me/tiny") == "address"
    assert pushed.pop("id") == "me/tiny"
    for name, data in pushed.items():
        (tmp_path / name).write_bytes(data)
    same(model, load_model(tmp_path))
    assert b"library_name: postformer" in pushed["README.md"]


def test_a_hub_name_is_fetched(tmp_path, monkeypatch):
    model = small.model()
    save_model(model, tmp_path)
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    same(open_model("me/tiny"), model)
    assert asked == [("me/tiny", {"allow_patterns": hub.FILES})]
    assert fetch("me/tiny", revision="abc") == tmp_path
    assert asked[-1][1]["revision"] == "abc"


def test_a_hub_model_that_is_malformed_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: str(tmp_path))
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON"):
        open_model("me/tiny")


def test_a_name_that_no_hub_has(monkeypatch):
    def snapshot_download(name, **options):
        raise OSError("no network\nand more")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(ModelError, match=r"^me/tiny: no such folder here.*: no network$"):
        fetch("me/tiny")


# ---------------------------------------------------------------- transformers


def theirs(name: str, dtype: torch.dtype, folder: Path):
    transformers = pytest.importorskip("transformers", reason="the extra 'peers' is not installed")
    torch.manual_seed(0)
    configs = {
        "mamba": lambda: transformers.MambaConfig(vocab_size=97, hidden_size=32, state_size=4, num_hidden_layers=2),
        "llama": lambda: transformers.LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_theta=5e5,
        ),
        "llama-tied": lambda: transformers.LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            tie_word_embeddings=True,
        ),
    }
    model = transformers.AutoModelForCausalLM.from_config(configs[name]()).float().eval()
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    model = model.to(dtype)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", ["mamba", "llama", "llama-tied"])
def test_their_folders_open_with_equal_logits(name, tmp_path):
    other = theirs(name, torch.float32, tmp_path / "m")
    ours = postformer.load(tmp_path / "m")
    assert ours.tokens is None
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS)[0], other(IDS).logits, rtol=1e-5, atol=1e-5)
    save_model(ours, tmp_path / "ours")
    same(postformer.load(tmp_path / "ours"), ours)
    if name == "mamba":
        assert ours.backbone.blocks[0].mixer.A_log.no_weight_decay


@pytest.mark.parametrize("name", ["mamba", "llama"])
def test_their_bf16_stays_bf16(name, tmp_path):
    other = theirs(name, torch.bfloat16, tmp_path / "m")
    ours = postformer.load(tmp_path / "m")
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    kept = {str(t.dtype) for t in load_file(tmp_path / "m" / "model.safetensors").values()}
    assert kept == {"torch.bfloat16"}
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS)[0].float(), other(IDS).logits.float(), rtol=0.1, atol=0.05)
        _, state = ours(IDS, ours.init_state(2))
    assert state[0][0].dtype == torch.bfloat16


# ---------------------------------------------------------------- what is read is not trusted


def test_a_foreign_kind_is_imported_for_those_who_trust_it(tmp_path, monkeypatch):
    (tmp_path / "their_norm.py").write_text(
        "import torch\n"
        "class Half(torch.nn.Module):\n"
        "    def __init__(self, dim: int, *, scale: float = 0.5):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.tensor(scale))\n"
        "    def forward(self, x):\n"
        "        return x * self.scale\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = LanguageModel(257, dim=16, depth=1, ffns=({"kind": "their_norm:Half"},))
    save_model(model, tmp_path / "m")
    with pytest.raises(ConfigError, match=r"config\.json: ffns\[0\]\.kind names code of another package; pass trust_kinds"):
        load_model(tmp_path / "m")
    same(load_model(tmp_path / "m", trust_kinds=True), model)
    same(postformer.load(tmp_path / "m", trust_kinds=True), model)
    same(LanguageModel.from_pretrained(tmp_path / "m", trust_kinds=True), model)


def test_a_malicious_configuration_imports_nothing(tmp_path):
    """An audit hook sees every import and every process while folders that name foreign code are refused."""
    save_model(small.model(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    evil = {"kind": "evil_module:Evil"}
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for name, change in {
        "model": evil,
        "mixer": {"mixers": [evil]},
        "ffn": {"ffns": [evil]},
        "auto": {"format": None, "model_type": "llama", "auto_map": {"AutoModel": "evil_module.Evil"}},
        "hidden": {"ffns": [{"kind": "mlp", "hidden": evil}]},
    }.items():
        (tmp_path / name).mkdir()
        for file in ("model.safetensors", "tokenizer.json"):
            (tmp_path / name / file).write_bytes((tmp_path / "m" / file).read_bytes())
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **change}))
        (tmp_path / name / "evil_module.py").write_text("raise SystemExit('ran')\n")
    code = """
import sys
import postformer
from postformer.config import UserError
names = sys.argv[1:]
postformer.load(names.pop(0))
seen = []
bad = ("import", "exec", "compile", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect")
sys.addaudithook(lambda event, args: seen.append((event, str(args)[:200])) if event in bad else None)
refused = 0
for name in names:
    try:
        postformer.load(name)
    except UserError:
        refused += 1
assert refused == len(names), refused
assert not seen, seen
assert "evil_module" not in sys.modules
"""
    names = [str(tmp_path / n) for n in ("m", "model", "mixer", "ffn", "auto", "hidden")]
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


def test_no_memory_is_taken_for_what_the_file_does_not_hold(tmp_path, monkeypatch):
    save_model(small.model("attention"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    made = []
    init = RMSNorm.__init__

    def spy(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self.weight.device.type)

    monkeypatch.setattr(RMSNorm, "__init__", spy)
    (tmp_path / "config.json").write_text(json.dumps({**config, "dim": 1 << 24}))
    with pytest.raises(ModelError, match=r"has shape \(257, 16\), but config\.json asks for \(257, 16777216\)"):
        load_model(tmp_path)
    assert set(made) == {"meta"}


def test_a_save_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    save_model(small.model(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(small.model(seed=1), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_file_says_what_wrote_it(tmp_path):
    save_model(small.model(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format"] == hub.FORMAT
    with safe_open(tmp_path / "model.safetensors", framework="pt") as f:
        assert f.metadata() == {"format": "pt"}


def test_a_loaded_mixture_can_be_taught(tmp_path):
    """Its counts of loads are in memory, and its parameters tell an optimizer what they told before."""
    words = {"preset": "deepseek-v3", "experts": 8, "top": 2, "groups": 2, "top_groups": 1, "hidden": 16}
    model = LanguageModel(16, dim=16, depth=1, mixers=({"kind": "attention", "heads": 2},), ffns=({"kind": "moe", **words},))
    save_model(model, tmp_path)
    loaded = load_model(tmp_path).train()
    for mark in ("matrices", "no_weight_decay"):
        own, other = ({n for n, p in m.named_parameters() if getattr(p, mark, False)} for m in (model, loaded))
        assert own == other
    loaded(torch.arange(8)[None])[0].sum().backward()
    ffn = loaded.backbone.blocks[0].ffn
    assert int(ffn.loads.sum()) == 16
    ffn.after_step()
    assert not ffn.loads.any() and ffn.correction.any()
