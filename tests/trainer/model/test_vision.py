"""The tower against open_clip's own, its interpolation against torch's, and which of open_clip's towers are taken."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import _build_vision_tower
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.errors import ModelError
from trainer.model.config import QWEN_VL, VisionConfig
from trainer.model.vision import Tower, bicubic_matrix, check_openclip, interpolate

SMALL = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 12, "mlp_ratio": 3.0}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def of_torch(table: Tensor, to_side: int) -> Tensor:
    """`interpolate`, said with `F.interpolate`."""
    side = round(len(table) ** 0.5)
    grid = table.T.reshape(1, -1, side, side)
    return F.interpolate(grid, size=(to_side, to_side), mode="bicubic", align_corners=False)[0].flatten(1).T


def pair(seed: int = 0, **top: Any) -> tuple[Tower, VisionTransformer]:
    """Our tower and open_clip's with the same weights; norms and biases too are random numbers."""
    torch.manual_seed(seed)
    theirs = _build_vision_tower(16, SMALL | top.pop("vision", {}), **top).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = Tower(check_openclip({"vision_cfg": SMALL, **top}))
    state = {name: tensor for name, tensor in theirs.state_dict().items() if name in ours.state_dict()}
    state["positional_embedding"] = state["positional_embedding"][1:]
    ours.load_state_dict(state)
    return ours, theirs


# ---- interpolation


@pytest.mark.parametrize(("side", "to"), [(16, 32), (8, 12), (4, 9), (8, 4), (16, 17), (1, 3), (3, 1)])
def test_the_matrix_is_torchs_interpolation(side: int, to: int) -> None:
    table = torch.randn(side**2, 24, generator=torch.Generator().manual_seed(side)).clamp(-1, 1)
    matrix = bicubic_matrix(side, to)
    assert matrix.shape == (to**2, side**2)
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix.sum(1), torch.ones(to**2), atol=1e-5, rtol=0)
    torch.testing.assert_close(interpolate(table, to), of_torch(table, to), atol=1e-6, rtol=0)


def test_the_same_size_is_the_table_itself() -> None:
    table = torch.randn(16, 4)
    assert interpolate(table, 4) is table


def test_bf16_tables_are_interpolated_in_fp32() -> None:
    table = torch.randn(64, 8).bfloat16()
    wide = interpolate(table, 16)
    assert wide.dtype == torch.bfloat16
    # One rounding to bf16, and no more.
    torch.testing.assert_close(wide.float(), of_torch(table.float(), 16), atol=1e-6, rtol=2**-8)


def test_its_gradient_is_torchs_too() -> None:
    ours, theirs = (torch.zeros(256, 6, requires_grad=True) for _ in range(2))
    weight = torch.randn(1024, 6)
    (interpolate(ours, 32) * weight).sum().backward()
    (of_torch(theirs, 32) * weight).sum().backward()
    assert ours.grad is not None
    assert (ours.grad.abs().sum(1) > 0).all()  # every one of the 256 rows
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=0)


def test_no_mode_leaves_anything_behind() -> None:
    """Fake tensors or inference first, training after: nothing of the former may be met in the latter."""
    with FakeTensorMode():
        assert interpolate(torch.zeros(25, 2), 7).shape == (49, 2)
    with torch.inference_mode():
        interpolate(torch.zeros(25, 2), 7)
    table = torch.zeros(25, 2, requires_grad=True)
    interpolate(table, 7).sum().backward()
    assert table.grad is not None
    assert interpolate(torch.zeros(25, 2, device="meta"), 7).device.type == "meta"


# ---- the tower


def test_qwen_vls_tower_to_the_last_parameter() -> None:
    with torch.device("meta"):
        tower = Tower(QWEN_VL.vision)
    assert sum(parameter.numel() for parameter in tower.parameters()) == 1_842_770_688
    assert sum(tensor.numel() for tensor in tower.state_dict().values()) == 1_842_770_688
    shapes = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    assert shapes["conv1.weight"] == (1664, 3, 14, 14)
    assert shapes["positional_embedding"] == (256, 1664)
    assert shapes["transformer.resblocks.47.attn.in_proj_weight"] == (4992, 1664)
    assert shapes["transformer.resblocks.0.mlp.c_fc.weight"] == (8192, 1664)
    assert {module.eps for module in tower.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}
    assert {module.num_heads for module in tower.modules() if isinstance(module, torch.nn.MultiheadAttention)} == {16}


@pytest.mark.parametrize("size", [32, 64, 24])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_equal_to_open_clips_blocks(quick_gelu: bool, size: int) -> None:
    """Against open_clip's conv, norm and transformer on the patches alone, with positions by `F.interpolate`."""
    ours, theirs = pair(quick_gelu=quick_gelu)
    pixels = torch.randn(3, 3, size, size)
    with torch.no_grad():
        x = theirs.conv1(pixels).flatten(2).permute(0, 2, 1)
        table = theirs.positional_embedding[1:]
        want = theirs.transformer(theirs.ln_pre(x + (table if size == 32 else of_torch(table, size // 8))))
        got = ours(pixels)
    assert got.shape == (3, (size // 8) ** 2, 48)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    assert (got - pair(quick_gelu=not quick_gelu)[0](pixels)).abs().max() > 1e-3  # the activation is one that tells


def test_eps_is_the_configurations() -> None:
    assert check_openclip({"vision_cfg": SMALL}).eps == 1e-5
    assert check_openclip({"vision_cfg": SMALL | {"norm_kwargs": {"eps": 1e-6}}}).eps == 1e-6
    assert (
        Tower(check_openclip({"vision_cfg": SMALL | {"norm_kwargs": {"eps": 0.5}}})).transformer.resblocks[0].ln_2.eps
        == 0.5
    )


def test_train_and_eval_agree_and_repeat() -> None:
    """Without gradients eval takes torch's fused attention: the same numbers to rounding."""
    tower, _ = pair(1)
    pixels = torch.randn(2, 3, 48, 48)
    trained = tower.train()(pixels)
    assert torch.equal(trained, tower(pixels))
    with torch.no_grad():
        torch.testing.assert_close(tower.eval()(pixels), trained.detach(), atol=2e-5, rtol=1e-5)


def test_gradients_repeat_and_reach_every_parameter() -> None:
    tower, _ = pair(2)
    pixels = torch.randn(2, 3, 64, 64)
    found = []
    for _ in range(2):
        tower.zero_grad()
        tower(pixels).square().mean().backward()
        found.append({name: parameter.grad.clone() for name, parameter in tower.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert all(gradient.abs().sum() > 0 for gradient in found[0].values())
    assert (found[0]["positional_embedding"].abs().sum(1) > 0).all()


def test_a_batch_is_its_images_apart() -> None:
    tower, _ = pair(3)
    pixels = torch.randn(4, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(
            tower(pixels), torch.cat([tower(image[None]) for image in pixels]), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_no_images_and_bf16(training: bool, dtype: torch.dtype) -> None:
    tower = pair(4)[0].train(training).to(dtype)
    with torch.set_grad_enabled(training):
        assert tower(torch.zeros(0, 3, 64, 64)).shape == (0, 64, 48)
        out = tower(torch.randn(1, 3, 64, 64))
    assert out.dtype == dtype
    assert out.isfinite().all()
    if training:
        out.float().sum().backward()
        assert all(parameter.grad is not None for parameter in tower.parameters())


def test_bf16_is_near_fp32() -> None:
    torch.manual_seed(5)
    tower = Tower(check_openclip({"vision_cfg": SMALL})).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want, got = tower(pixels), tower.bfloat16()(pixels).float()
    assert (got - want).abs().max() < 0.05 * want.abs().max()


def test_compiles_whole_at_both_sizes() -> None:
    """One graph, without a break (the `eager` backend: what dynamo sees, no C++ compiler)."""
    tower, _ = pair(6)
    compiled = torch.compile(tower, backend="eager", fullgraph=True)
    for size in (32, 64):
        pixels = torch.randn(1, 3, size, size)
        torch.testing.assert_close(compiled(pixels), tower(pixels), atol=1e-6, rtol=0)


def test_from_meta_by_to_empty() -> None:
    tower, _ = pair(7)
    with torch.device("meta"):
        empty = Tower(tower.config)
    assert empty(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 64, 48)
    empty.to_empty(device="cpu").load_state_dict(tower.state_dict())
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(empty(pixels), tower(pixels))


def test_fresh_weights_are_of_the_generator() -> None:
    config = VisionConfig(image_size=64, patch_size=8, width=256, layers=1, heads=4)
    torch.manual_seed(8)
    first = Tower(config).state_dict()
    torch.manual_seed(8)
    assert all(torch.equal(tensor, first[name]) for name, tensor in Tower(config).state_dict().items())
    assert first["positional_embedding"].std().item() == pytest.approx(1 / 16, rel=0.05)


@pytest.mark.parametrize("shape", [(64, 32), (36, 36), (4, 4)])
def test_images_that_do_not_fit_are_one_line(shape: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match="multiple of 8 px") as error:
        pair()[0](torch.zeros(1, 3, *shape))
    assert "\n" not in str(error.value)


# ---- which of open_clip's towers are taken


def built(name: str) -> dict[str, tuple[int, ...]]:
    """What of open_clip's own tower a tower of ours should hold: names and shapes."""
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        theirs = _build_vision_tower(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False))
    shapes = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    assert isinstance(theirs, VisionTransformer)
    shapes["positional_embedding"] = (shapes["positional_embedding"][0] - 1, *shapes["positional_embedding"][1:])
    return {
        key: shape
        for key, shape in shapes.items()
        if key.partition(".")[0] not in {"class_embedding", "ln_post", "proj"}
    }


def test_every_configuration_is_taken_or_refused() -> None:
    """open_clip 3.3 lists 144: 78 timm, 10 ResNets, 9 other inventions, 47 plain. A later one may list more."""
    seen: Counter[str] = Counter()
    towers: set[str] = set()
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = config["vision_cfg"]
        try:
            taken = check_openclip(config)
        except ModelError as error:
            reason = str(error)
            assert "\n" not in reason
            assert len(reason) < 200
            seen[reason.split()[1]] += 1
            continue
        seen["plain"] += 1
        assert "timm_model_name" not in vision
        assert taken.activation == ("quick_gelu" if config.get("quick_gelu") else "gelu")
        assert taken.width // taken.heads == vision.get("head_width", 64)
        if (key := json.dumps(vision, sort_keys=True)) in towers:
            continue
        towers.add(key)
        with torch.device("meta"):
            ours = {key: tuple(tensor.shape) for key, tensor in Tower(taken).state_dict().items()}
        assert ours == built(name), name
    assert seen.total() >= 144
    if seen.total() == 144:
        assert seen == {
            "plain": 47,
            "timm_model_name": 78,
            "layers": 10,
            "no_ln_pre": 6,
            "attentional_pool": 2,
            "ls_init_value": 1,
        }
    assert len(towers) >= 20


def test_big_g_is_the_presets_tower_but_for_eps() -> None:
    taken = check_openclip(open_clip.get_model_config("ViT-bigG-14"))
    assert taken.model_copy(update={"eps": 1e-6}) == QWEN_VL.vision


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"timm_model_name": "vit_base_patch16_siglip_224"}, "timm_model_name is vit_base_patch16_siglip_224"),
        ({"layers": [3, 4, 6, 3]}, "ResNet"),
        ({"attentional_pool": "parallel"}, "attentional_pool"),
        ({"no_ln_pre": True}, "no_ln_pre"),
        ({"pos_embed_type": "sin_cos_2d"}, "pos_embed_type"),
        ({"ls_init_value": 0.0}, "ls_init_value"),
        ({"block_type": "custom"}, "block_type"),
        ({"qk_norm": True}, "qk_norm"),
        ({"scaled_cosine_attn": True}, "scaled_cosine_attn"),
        ({"scale_fc": True}, "scale_fc"),
        ({"final_ln_after_pool": True}, "final_ln_after_pool"),
        ({"input_patchnorm": True}, "input_patchnorm"),
        ({"something_new": 3}, "something_new is 3"),
        ({"act_kwargs": {"approximate": "tanh"}}, "act_kwargs"),
        ({"norm_kwargs": {"elementwise_affine": False}}, "norm_kwargs.elementwise_affine"),
        ({"image_size": [32, 64]}, "image_size"),
        ({"image_size": 33}, "no multiple of patch_size"),
        ({"width": 50, "head_width": 12}, "no multiple of heads"),
        ({"width": "wide"}, "whole numbers"),
        ({"head_width": 0}, "whole numbers"),
        ({"layers": 0}, "layers"),
    ],
)
def test_what_is_not_ours_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named) as error:
        check_openclip({"vision_cfg": SMALL | change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"patch_dropout": 0.5},
        {"pool_type": "avg"},
        {"output_tokens": True},
        {"attn_pooler_heads": 4},
        {"ls_init_value": None, "no_ln_pre": False, "pos_embed_type": "learnable", "input_patchnorm": False},
        {"act_kwargs": None, "norm_kwargs": {}},
    ],
)
def test_what_does_not_touch_the_blocks_is_let_pass(change: dict[str, Any]) -> None:
    assert check_openclip({"vision_cfg": SMALL | change, "embed_dim": 16}) == check_openclip({"vision_cfg": SMALL})


@pytest.mark.parametrize("config", [{}, {"vision_cfg": None}, {"vision_cfg": "ViT-B-32"}])
def test_no_configuration(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="vision_cfg is missing"):
        check_openclip(config)
