"""The adapter against a plain re-computation, its table of positions, and the projection after it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.adapter import Adapter, Projection, sincos_2d
from trainer.model.config import QWEN_VL, AdapterConfig

CONFIG = AdapterConfig(queries=16, heads=4)
WIDTH, VISION = 32, 24


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(seed: int = 0) -> Adapter:
    """16 queries of a 4 x 4 grid; every parameter a random number, norms and biases too."""
    torch.manual_seed(seed)
    adapter = Adapter(CONFIG, VISION, WIDTH)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter


def place(x: int, y: int, width: int) -> list[float]:
    """The table's row of column x and row y, number by number: x in the first half, sines before cosines."""
    quarter = width // 4
    turns = [[p / 10000 ** (i / quarter) for i in range(quarter)] for p in (x, y)]
    return [f(angle) for angles in turns for f in (math.sin, math.cos) for angle in angles]


def wide(table: Tensor, side: int) -> Tensor:
    old = round(len(table) ** 0.5)
    grid = table.T.reshape(1, -1, old, old)
    return F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)[0].flatten(1).T


def recomputed(adapter: Adapter, patches: Tensor) -> Tensor:
    """What the paper says, by einsum: no fused attention, no code of the module."""
    state = {name: tensor.double() for name, tensor in adapter.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    kv = norm(torch.einsum("npw,dw->npd", patches.double(), state["kv_proj.weight"]), "ln_kv")
    table = state["pos_embed"]
    side = math.isqrt(patches.shape[1])
    key_positions = table if side**2 == len(table) else wide(table, side)
    inputs = (norm(state["query"], "ln_q") + table).expand(len(patches), -1, -1), kv + key_positions, kv
    weights, biases = state["attn.in_proj_weight"].chunk(3), state["attn.in_proj_bias"].chunk(3)
    q, k, v = (
        (torch.einsum("nld,ed->nle", x, weight) + bias).unflatten(-1, (CONFIG.heads, -1))
        for x, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    attention = (torch.einsum("nqhc,nkhc->nhqk", q, k) / math.sqrt(WIDTH / CONFIG.heads)).softmax(-1)
    seen = torch.einsum("nhqk,nkhc->nqhc", attention, v).flatten(2)
    return (torch.einsum("nqd,ed->nqe", seen, state["attn.out_proj.weight"]) + state["attn.out_proj.bias"]).float()


# ---- the table


@pytest.mark.parametrize(("side", "width"), [(4, 32), (3, 8), (16, 64), (1, 4)])
def test_the_table_number_by_number(side: int, width: int) -> None:
    want = torch.tensor([place(x, y, width) for y in range(side) for x in range(side)])
    table = sincos_2d(side, width)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, want, atol=2e-6, rtol=0)


def test_the_first_half_is_the_column() -> None:
    table = sincos_2d(16, 4096).view(16, 16, 4096)  # row, column, channel
    assert torch.equal(table[0, :, :2048], table[15, :, :2048])
    assert torch.equal(table[:, 0, 2048:], table[:, 15, 2048:])
    assert not torch.equal(table[0, 1], table[1, 0])
    assert table[0, 1, 0].item() == pytest.approx(math.sin(1))
    assert table[0, 1, 1024].item() == pytest.approx(math.cos(1))
    assert table[1, 0, 2048].item() == pytest.approx(math.sin(1))


def test_a_larger_image_gets_it_interpolated_not_a_finer_one() -> None:
    """At 448 px: 32 x 32 patches, table of 16 x 16. The two readings differ by 2.0, and the adapter's is the first."""
    adapter = small()
    patches = torch.randn(1, 64, VISION)
    finer = sincos_2d(8, WIDTH)
    assert (wide(sincos_2d(16, 4096), 32) - sincos_2d(32, 4096)).abs().max() > 1
    assert (wide(adapter.pos_embed, 8) - finer).abs().max() > 1
    with torch.no_grad():
        value = adapter.ln_kv(adapter.kv_proj(patches))
        query = (adapter.ln_q(adapter.query) + adapter.pos_embed)[None]
        got = adapter(patches)
        interpolated, fresh = (
            adapter.attn(query, value + table, value)[0] for table in (wide(adapter.pos_embed, 8), finer)
        )
    torch.testing.assert_close(got, interpolated, atol=1e-5, rtol=0)
    assert (got - fresh).abs().max() > 1e-2


# ---- the adapter


def test_qwen_vls_adapter_to_the_last_entry() -> None:
    with torch.device("meta"):
        adapter = Adapter(QWEN_VL.adapter, QWEN_VL.vision.width, QWEN_VL.width)
        projection = Projection(QWEN_VL.width, QWEN_VL.adapter.eps)
    state = {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
    assert sum(tensor.numel() for tensor in adapter.state_dict().values()) == 76_054_528
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 75_005_952
    assert sum(parameter.numel() for parameter in projection.parameters()) == 16_785_408
    assert state == {
        "query": (256, 4096),
        "pos_embed": (256, 4096),
        "kv_proj.weight": (4096, 1664),
        "attn.in_proj_weight": (12288, 4096),
        "attn.in_proj_bias": (12288,),
        "attn.out_proj.weight": (4096, 4096),
        "attn.out_proj.bias": (4096,),
        "ln_q.weight": (4096,),
        "ln_q.bias": (4096,),
        "ln_kv.weight": (4096,),
        "ln_kv.bias": (4096,),
    }
    assert set(projection.state_dict()) == {"ln_post.weight", "ln_post.bias", "proj"}
    assert adapter.attn.head_dim == 128
    assert {adapter.ln_q.eps, adapter.ln_kv.eps, projection.ln_post.eps} == {1e-6}
    assert {tensor.device.type for tensor in adapter.state_dict().values()} == {"meta"}
    assert adapter(torch.zeros(2, 1024, 1664, device="meta")).shape == (2, 256, 4096)


@pytest.mark.parametrize("side", [4, 8, 6, 2])
def test_against_einsum(side: int) -> None:
    adapter = small(side)
    patches = torch.randn(3, side**2, VISION)
    torch.testing.assert_close(adapter(patches), recomputed(adapter, patches), atol=1e-5, rtol=1e-5)


def test_values_carry_no_positions() -> None:
    """Without positions an image is a bag of patches; with them on keys alone equal patches give one answer anywhere."""
    adapter = small(1)
    patches = torch.randn(1, 64, VISION)
    shuffled = patches[:, torch.randperm(64)]
    assert (adapter(patches) - adapter(shuffled)).abs().max() > 1e-2
    # Whatever the weights of attention are, the mean of equal values is that value: positions cannot be in it.
    one = patches[:, :1]
    value = F.linear(
        adapter.ln_kv(adapter.kv_proj(one)),
        *(part.chunk(3)[2] for part in (adapter.attn.in_proj_weight, adapter.attn.in_proj_bias)),
    )
    want = adapter.attn.out_proj(value).expand(1, 16, WIDTH)
    torch.testing.assert_close(adapter(one.expand(1, 64, VISION)), want, atol=1e-5, rtol=0)
    adapter.pos_embed.zero_()
    torch.testing.assert_close(adapter(patches), adapter(shuffled), atol=1e-5, rtol=0)


def test_positions_are_kept_and_never_trained() -> None:
    adapter = small(2)
    before = adapter.pos_embed.clone()
    assert "pos_embed" in adapter.state_dict()
    assert "pos_embed" not in dict(adapter.named_parameters())
    adapter.requires_grad_(True)
    assert not adapter.pos_embed.requires_grad
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    adapter(torch.randn(2, 64, VISION)).square().sum().backward()
    optimizer.step()
    assert adapter.pos_embed.grad is None
    assert torch.equal(adapter.pos_embed, before)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in adapter.parameters())


def test_a_stored_table_wins_over_the_computed_one() -> None:
    stored = small(3).state_dict() | {"pos_embed": torch.randn(16, WIDTH)}
    with torch.device("meta"):
        assert Adapter(CONFIG, VISION, WIDTH).pos_embed.is_meta
    adapter = Adapter(CONFIG, VISION, WIDTH)
    assert torch.equal(adapter.pos_embed, sincos_2d(4, WIDTH))
    adapter.load_state_dict(stored)
    assert torch.equal(adapter.pos_embed, stored["pos_embed"])
    assert torch.equal(adapter.state_dict()["pos_embed"], stored["pos_embed"])


def test_train_and_eval_are_the_same_numbers() -> None:
    adapter = small(4)
    patches = torch.randn(2, 64, VISION)
    trained = adapter.train()(patches)
    with torch.no_grad():
        assert torch.equal(adapter.eval()(patches), trained)
    with torch.inference_mode():
        assert torch.equal(adapter(patches), trained)


@pytest.mark.parametrize("training", [True, False])
def test_no_images(training: bool) -> None:
    adapter = small(5).train(training)
    assert adapter(torch.zeros(0, 64, VISION)).shape == (0, 16, WIDTH)


def test_bf16_weights_with_an_fp32_table() -> None:
    """Only parameters are cast: the table may stay fp32, and positions are interpolated before they are rounded."""
    adapter = small(6)
    patches = torch.randn(2, 64, VISION)
    want = adapter(patches)
    for parameter in adapter.parameters():
        parameter.data = parameter.data.bfloat16()
    got = adapter(patches.bfloat16())
    assert got.dtype == torch.bfloat16
    assert adapter.pos_embed.dtype == torch.float32
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()


def test_fresh_weights() -> None:
    torch.manual_seed(7)
    adapter = Adapter(AdapterConfig(queries=64, heads=8), 128, 256)
    for weight in (adapter.query, adapter.kv_proj.weight, adapter.attn.out_proj.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    # Xavier's over [3D, D]: sqrt(2 / 4D); 0.0442 for D = 256.
    assert adapter.attn.in_proj_weight.std().item() == pytest.approx(0.0442, rel=0.02)
    assert adapter.attn.in_proj_bias.abs().sum() == adapter.attn.out_proj.bias.abs().sum() == 0
    assert Projection(256, 1e-6).proj.std().item() == pytest.approx(1 / 16, rel=0.02)


# ---- the projection


def test_projection_is_a_norm_and_a_matrix_from_the_right() -> None:
    torch.manual_seed(8)
    projection = Projection(WIDTH, 1e-6)
    for parameter in projection.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 16, WIDTH)
    normed = F.layer_norm(x, (WIDTH,), projection.ln_post.weight, projection.ln_post.bias, 1e-6)
    want = torch.einsum("nqd,de->nqe", normed, projection.proj)
    torch.testing.assert_close(projection(x), want, atol=1e-5, rtol=1e-5)
    assert projection(x[:0]).shape == (0, 16, WIDTH)
