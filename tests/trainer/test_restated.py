"""The re-statement against what others wrote: torch's attention, transformers' Qwen2, the published count of entries."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.trainer import restated
from tests.trainer.restated import Config, Weights, logits, random_released, released_shapes, small_config, visual

VISUAL = "transformer.visual."
CONFIG = small_config()
IMG = CONFIG.image_start_id


def two_images(seed: int = 0) -> Tensor:
    """[1, 560] ids: words, an image, words, an image, words; between the tags ids that mean nothing."""
    ids = torch.randint(0, 256, (1, 560), generator=torch.Generator().manual_seed(seed))
    for start in (5, 275):
        ids[0, start], ids[0, start + 257] = IMG, IMG + 1
    return ids


def pixels(side: int, images: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_released(CONFIG, seed=0)


@pytest.fixture(scope="module")
def right(weights: Weights) -> Tensor:
    """The logits of `two_images` at 224 px."""
    with torch.no_grad():
        return logits(weights, two_images(), pixels(224), CONFIG)


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# The count


def test_the_released_layout_has_as_many_entries_as_published() -> None:
    counts = {name: math.prod(shape) for name, shape in released_shapes(Config()).items()}
    new = (f"{VISUAL}ln_post.", f"{VISUAL}proj")
    adapter = f"{VISUAL}attn_pool."
    assert sum(counts.values()) == 9_656_935_168 == 19_313_870_336 // 2  # `metadata.total_size`, in bf16
    assert sum(n for name, n in counts.items() if name.startswith(new)) == 16_785_408
    assert sum(n for name, n in counts.items() if name.startswith(adapter)) == 76_054_528
    assert counts[f"{adapter}pos_embed"] == 1_048_576
    assert sum(n for name, n in counts.items() if not name.startswith(VISUAL)) == 7_721_324_544
    tower = [n for name, n in counts.items() if name.startswith(VISUAL) and not name.startswith((*new, adapter))]
    assert sum(tower) == 1_842_770_688
    assert sum(n for name, n in counts.items() if name.startswith("transformer.h.31.")) == 202_395_648


def test_the_configuration_states_the_published_sizes() -> None:
    config = restated.released_config(Config())
    assert (config["model_type"], config["architectures"]) == ("qwen", ["QWenLMHeadModel"])
    assert (config["intermediate_size"], config["kv_channels"], config["vocab_size"]) == (22016, 128, 151_936)
    assert config["visual"] == {
        "heads": 16,
        "image_size": 448,
        "image_start_id": 151_857,
        "layers": 48,
        "mlp_ratio": 4.9231,
        "output_dim": 4096,
        "patch_size": 14,
        "width": 1664,
    }


# The language model


def as_qwen2(weights: Weights) -> Weights:
    """The keys of the released layout -> those of Qwen2, after the map of the published conversion."""
    renamed = {
        "transformer.wte": "model.embed_tokens",
        "transformer.ln_f": "model.norm",
        "transformer.h.": "model.layers.",
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "attn.c_proj": "self_attn.o_proj",
        "mlp.w1": "mlp.up_proj",
        "mlp.w2": "mlp.gate_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    theirs: Weights = {}
    for name, tensor in weights.items():
        if name.startswith(VISUAL):
            continue
        for old, new in renamed.items():
            name = name.replace(old, new)
        if "c_attn" in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                theirs[name.replace("attn.c_attn", f"self_attn.{part}_proj")] = rows
        else:
            theirs[name] = tensor
    return theirs


@pytest.fixture(scope="module")
def qwen2(weights: Weights) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=CONFIG.vocab,
        hidden_size=CONFIG.hidden,
        intermediate_size=CONFIG.mlp,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        num_key_value_heads=CONFIG.heads,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    assert not any(model.load_state_dict(as_qwen2(weights)))
    model.train(False)
    return model


@torch.no_grad()
def test_without_images_it_is_transformers_qwen2(weights: Weights, qwen2: Qwen2ForCausalLM) -> None:
    ids = torch.randint(0, CONFIG.image_start_id, (3, 120), generator=torch.Generator().manual_seed(0))
    assert largest_difference(logits(weights, ids, None, CONFIG), qwen2(input_ids=ids).logits) < 1e-5


@torch.no_grad()
def test_with_images_it_is_qwen2_over_their_embeddings(
    weights: Weights, qwen2: Qwen2ForCausalLM, right: Tensor
) -> None:
    ids, features = two_images(), visual(weights, pixels(224), CONFIG)
    words = weights["transformer.wte.weight"][ids[0]]
    x = torch.cat([words[:6], features[0], words[262:276], features[1], words[532:]])
    assert largest_difference(right, qwen2(inputs_embeds=x[None]).logits) < 1e-5


# The tower and the adapter


@torch.no_grad()
def test_the_attention_of_the_tower_is_torchs_after_the_permutation_of_its_rows(weights: Weights) -> None:
    at, width, heads = f"{VISUAL}transformer.resblocks.1.attn", CONFIG.tower_width, CONFIG.tower_heads
    theirs = nn.MultiheadAttention(width, heads, batch_first=True)
    rows = weights[f"{at}.in_proj.weight"].view(heads, 3, width // heads, width).permute(1, 0, 2, 3)
    biases = weights[f"{at}.in_proj.bias"].view(heads, 3, width // heads).permute(1, 0, 2)
    out = {f"out_proj.{kind}": weights[f"{at}.out_proj.{kind}"] for kind in ("weight", "bias")}
    x = torch.randn(2, 50, width, generator=torch.Generator().manual_seed(0))
    ours = restated.tower_attention(weights, at, x, heads)
    theirs.load_state_dict({"in_proj_weight": rows.reshape(-1, width), "in_proj_bias": biases.flatten(), **out})
    assert largest_difference(ours, theirs(x, x, x)[0]) < 1e-5
    plain = {"in_proj_weight": weights[f"{at}.in_proj.weight"], "in_proj_bias": weights[f"{at}.in_proj.bias"]}
    theirs.load_state_dict({**plain, **out})
    assert largest_difference(ours, theirs(x, x, x)[0]) > 0.1  # the permutation is not idle


@torch.no_grad()
def test_a_block_of_the_tower_is_torchs_own_encoder_layer(weights: Weights) -> None:
    """nn.TransformerEncoderLayer, norm first and exact GELU, in place of every block, then the rest by hand."""
    width, heads = CONFIG.tower_width, CONFIG.tower_heads
    x = nn.functional.conv2d(pixels(224), weights[f"{VISUAL}conv1.weight"], stride=14).flatten(2).mT
    x = restated.layer_norm(weights, f"{VISUAL}ln_pre", x + weights[f"{VISUAL}positional_embedding"])
    for block in range(CONFIG.tower_layers):
        at = f"{VISUAL}transformer.resblocks.{block}."
        w = {name.removeprefix(at): tensor for name, tensor in weights.items() if name.startswith(at)}
        feed = len(w["mlp.c_fc.weight"])
        layer = nn.TransformerEncoderLayer(width, heads, feed, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
        w["attn.in_proj.weight"] = w["attn.in_proj.weight"].view(heads, 3, -1, width).transpose(0, 1).reshape(-1, width)
        w["attn.in_proj.bias"] = w["attn.in_proj.bias"].view(heads, 3, -1).transpose(0, 1).flatten()
        names = {"attn.in_proj.": "self_attn.in_proj_", "attn.out": "self_attn.out", "mlp.c_fc": "linear1"}
        names |= {"mlp.c_proj": "linear2", "ln_1": "norm1", "ln_2": "norm2"}
        renamed = {
            new + name.removeprefix(old): t
            for name, t in w.items()
            for old, new in names.items()
            if name.startswith(old)
        }
        layer.load_state_dict(renamed)
        x = layer(x)  # in training mode, dropout 0: eval() takes a fused path
    pooled = restated.attn_pool(weights, f"{VISUAL}attn_pool", x)
    expected = restated.layer_norm(weights, f"{VISUAL}ln_post", pooled) @ weights[f"{VISUAL}proj"]
    assert largest_difference(visual(weights, pixels(224), CONFIG), expected) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("side", [16, 32])
def test_the_adapter_is_torchs_cross_attention(weights: Weights, side: int) -> None:
    at, d = f"{VISUAL}attn_pool.", CONFIG.hidden
    w = {name.removeprefix(at): tensor for name, tensor in weights.items() if name.startswith(at)}
    attention = nn.MultiheadAttention(d, d // 128, batch_first=True)
    attention.load_state_dict({name.removeprefix("attn."): t for name, t in w.items() if name.startswith("attn.")})
    x = torch.randn(2, side * side, CONFIG.tower_width, generator=torch.Generator().manual_seed(0))
    kv = nn.functional.layer_norm(x @ w["kv_proj.weight"].T, (d,), w["ln_kv.weight"], w["ln_kv.bias"], 1e-6)
    q = nn.functional.layer_norm(w["query"], (d,), w["ln_q.weight"], w["ln_q.bias"], 1e-6) + w["pos_embed"]
    grid = w["pos_embed"].T.reshape(1, d, 16, 16)
    grid = nn.functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False) if side != 16 else grid
    expected = attention(q.expand(2, -1, -1), kv + grid.flatten(2).mT, kv)[0]
    assert largest_difference(restated.attn_pool(weights, at[:-1], x), expected) < 1e-5


def test_a_position_table_follows_a_kernel_computed_by_hand() -> None:
    """Keys' cubic with a = -0.75 at half-pixel centres, clamped at the edges: one cell of 16x16 -> 32x32 by hand."""
    table = torch.randn(256, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()

    def taps(to: int) -> dict[int, float]:
        centre = (to + 0.5) / 2 - 0.5
        found: dict[int, float] = {}
        for cell in range(math.floor(centre) - 1, math.floor(centre) + 3):
            t = abs(centre - cell)
            near = 1.25 * t**3 - 2.25 * t**2 + 1
            far = -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            kept = min(max(cell, 0), 15)
            found[kept] = found.get(kept, 0.0) + (near if t <= 1 else far)
        return found

    larger = restated.resized(table, 1024)
    for row, column in ((0, 0), (31, 1), (7, 20), (16, 15)):
        cells = [(y * 16 + x, a * b) for y, a in taps(row).items() for x, b in taps(column).items()]
        by_hand = sum((table[cell] * factor for cell, factor in cells), torch.zeros(5))
        assert largest_difference(larger[row * 32 + column], by_hand) < 1e-5
    assert restated.resized(table, 256) is table


# What it must not be indifferent to, and what it must


@torch.no_grad()
def test_what_stands_between_the_tags_does_not_count_and_the_tags_do(weights: Weights, right: Tensor) -> None:
    ids, images = two_images(), pixels(224)
    ids[0, 6:262], ids[0, 276:532] = IMG + 2, 0
    assert torch.equal(logits(weights, ids, images, CONFIG), right)
    words = weights["transformer.wte.weight"].clone()
    words[IMG + 1] += 1
    moved = logits({**weights, "transformer.wte.weight": words}, ids, images, CONFIG)
    assert torch.equal(moved[:, :262], right[:, :262])
    assert largest_difference(moved[:, 262], right[:, 262]) > 0.1


@torch.no_grad()
def test_images_stand_in_the_order_of_their_tags_and_nothing_sees_what_comes_after(
    weights: Weights, right: Tensor
) -> None:
    turned = logits(weights, two_images(), pixels(224).flip(0), CONFIG)
    assert torch.equal(turned[:, :6], right[:, :6])
    assert largest_difference(turned[:, 6:262], right[:, 6:262]) > 0.1


@pytest.mark.parametrize("side", [224, 448])
def test_every_entry_of_a_random_checkpoint_acts_on_the_logits(weights: Weights, side: int) -> None:
    """So that a tensor forgotten or swapped by an import cannot go unseen: its gradient is far from zero."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    out = logits(leaves, two_images(), pixels(side), CONFIG)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad((out * probe).sum() / out.numel() ** 0.5, list(leaves.values()))
    weak = {name: g.norm().item() for name, g in zip(leaves, gradients, strict=True) if g.norm() < 1e-2}
    assert not weak


def rows_plain(w: Weights) -> Weights:
    """The tower's rows as if they were [q|k|v][head] in the file."""
    heads, width = CONFIG.tower_heads, CONFIG.tower_width
    name = f"{VISUAL}transformer.resblocks.0.attn.in_proj.weight"
    return {**w, name: w[name].view(3, heads, -1, width).transpose(0, 1).reshape(-1, width)}


def swapped(a: str, b: str) -> Callable[[Weights], Weights]:
    return lambda w: {**w, a: w[b], b: w[a]}


def transposed_projection(w: Weights) -> Weights:
    return {**w, f"{VISUAL}proj": w[f"{VISUAL}proj"].T}


def positions_forgotten(w: Weights) -> Weights:
    return {**w, f"{VISUAL}attn_pool.pos_embed": torch.zeros(256, CONFIG.hidden)}


MISTAKES = {
    "in_proj rows not permuted": rows_plain,
    "SiLU on w1": swapped("transformer.h.0.mlp.w1.weight", "transformer.h.0.mlp.w2.weight"),
    "ln_1 for ln_2": swapped("transformer.h.1.ln_1.weight", "transformer.h.1.ln_2.weight"),
    "ln_q for ln_kv": swapped(f"{VISUAL}attn_pool.ln_q.weight", f"{VISUAL}attn_pool.ln_kv.weight"),
    "proj transposed": transposed_projection,
    "stored positions not used": positions_forgotten,
}


@torch.no_grad()
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_of_an_import_is_far_above_the_tolerance(
    weights: Weights, right: Tensor, mistake: Callable[[Weights], Weights]
) -> None:
    assert largest_difference(logits(mistake(weights), two_images(), pixels(224), CONFIG), right) > 0.1


def with_eps(function: str, which: str) -> Callable[[pytest.MonkeyPatch], None]:
    """open_clip's and torch's default, 1e-5, in the norms of this function whose names end so."""
    right_norm = getattr(restated, function)

    def norm(w: Weights, at: str, x: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(restated, "EPS", 1e-5 if at.endswith(which) else 1e-6)
            found: Tensor = right_norm(w, at, x)
        return found

    return lambda patched: patched.setattr(restated, function, norm)


def with_tanh(patched: pytest.MonkeyPatch) -> None:
    exact = nn.functional.gelu
    patched.setattr(nn.functional, "gelu", lambda x: exact(x, approximate="tanh"))


SLIPS = {f"1e-5 in {norm}": with_eps("layer_norm", norm) for norm in ("ln_pre", "ln_q", "ln_kv", "ln_post")}
SLIPS |= {"1e-5 in the language model": with_eps("rms_norm", ""), "GELU by tanh": with_tanh}


@torch.no_grad()
@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS.keys())
def test_a_slip_of_a_module_is_twice_above_the_tolerance(
    weights: Weights, right: Tensor, slip: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        slip(patched)
        wrong = logits(weights, two_images(), pixels(224), CONFIG)
    assert largest_difference(wrong, right) > 2e-4


@torch.no_grad()
def test_images_and_tags_that_do_not_match_are_refused(weights: Weights) -> None:
    ids = two_images()
    with pytest.raises(ValueError, match="zip"):
        logits(weights, ids, pixels(224, images=1), CONFIG)
    ids[0, 275] = 0
    with pytest.raises(ValueError, match="zip"):
        logits(weights, ids, pixels(224, images=2), CONFIG)
    ids = two_images()
    ids[0, 262], ids[0, 261] = 0, IMG + 1
    with pytest.raises(RuntimeError, match="expand"):
        logits(weights, ids, pixels(224), CONFIG)


# The files


@pytest.mark.parametrize(("kind", "stem"), [("safetensors", "model"), ("bin", "pytorch_model")])
def test_a_saved_folder_holds_the_weights_in_shards_with_an_index(
    tmp_path: Path, weights: Weights, kind: str, stem: str
) -> None:
    restated.save_released(weights, CONFIG, tmp_path, kind=kind, shards=3)
    index = json.loads((tmp_path / f"{stem}.{kind}.index.json").read_text())
    files = [f"{stem}-0000{n}-of-00003.{kind}" for n in (1, 2, 3)]
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", f"{stem}.{kind}.index.json", *files}
    assert index["metadata"]["total_size"] == 4 * sum(math.prod(s) for s in released_shapes(CONFIG).values())
    assert json.loads((tmp_path / "config.json").read_text()) == restated.released_config(CONFIG)
    for file in files:
        stored = load_file(tmp_path / file) if kind == "safetensors" else torch.load(tmp_path / file, weights_only=True)
        assert set(stored) == {name for name, place in index["weight_map"].items() if place == file}
        assert all(torch.equal(tensor, weights[name]) for name, tensor in stored.items())
    assert set(index["weight_map"]) == set(weights)
