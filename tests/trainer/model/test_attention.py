"""Packed attention: equal to separate samples, equal to a dense mask, and silent about nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from tests.trainer.model.families import FAMILIES, built, positions
from trainer.errors import ModelError
from trainer.model import attention
from trainer.model.attention import PACKED, Segments, packed_attention
from trainer.model.language import unpacked

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
Lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of this size are slower on two, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dense(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """The oracle: one softmax over the whole row under a block-diagonal causal mask."""
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (sample[:, None] == sample[None, :]).tril()
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3).transpose(1, 2)


def heads(lengths: list[int], queries: int = 4, keys: int = 2, seed: int = 0) -> list[Tensor]:
    """Query, key and value as a decoder layer gives them: transposed views."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, sum(lengths), count, 8) for count in (queries, keys, keys))
    return [torch.randn(shape, generator=generator).transpose(1, 2).requires_grad_() for shape in shapes]


def layer(**traits: Any) -> Any:
    return SimpleNamespace(is_causal=True, **traits)


def gradients(model: PreTrainedModel, losses: list[Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@given(Lengths, st.sampled_from([(4, 4), (4, 2), (6, 1)]), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_equals_a_dense_block_diagonal_mask(lengths: list[int], counts: tuple[int, int], seed: int) -> None:
    tensors = heads(lengths, *counts, seed)
    ours, weights = packed_attention(layer(), *tensors, None, scaling=0.3, segments=Segments(lengths, "cpu"))
    oracle = dense(*tensors, lengths)
    assert weights is None
    assert ours.shape == (1, sum(lengths), counts[0], 8)
    torch.testing.assert_close(ours, oracle, **CLOSE)
    along = torch.randn_like(oracle)
    for one, other in zip(
        torch.autograd.grad(ours, tensors, along), torch.autograd.grad(oracle, tensors, along), strict=True
    ):
        torch.testing.assert_close(one, other, **CLOSE)


MODELS = {family: built(family) for family in FAMILIES}


@given(st.sampled_from(sorted(FAMILIES)), Lengths, st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_a_pack_is_its_samples(family: str, lengths: list[int], seed: int) -> None:
    """Logits, and the gradient of every parameter, against transformers' own attention on one sample at a time."""
    model = MODELS[family]
    generator = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(97, (2, sum(lengths)), generator=generator)
    keywords = {"position_ids": positions(lengths)[None], **Segments(lengths, "cpu").keywords()}
    together = model(ids[None], **keywords).logits[0]
    ours = gradients(model, [cross_entropy(together, labels)])
    with unpacked(model):
        apart = [model(part[None]).logits[0] for part in ids.split(lengths)]
    losses = [
        cross_entropy(logits, part, reduction="sum") / sum(lengths)
        for logits, part in zip(apart, labels.split(lengths), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(apart), **CLOSE)
    theirs = gradients(model, losses)
    assert ours.keys() == theirs.keys() == dict(model.named_parameters()).keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_position_ids_alone_are_wrong_without_an_error() -> None:
    """Why the keywords say `use_cache=False`, and why lengths travel at all."""
    model, lengths = MODELS["qwen2"], [5, 9]
    ids = torch.arange(14)
    where = positions(lengths)[None]
    with torch.no_grad():
        right = model(ids[None], position_ids=where, **Segments(lengths, "cpu").keywords()).logits
        with unpacked(model):
            wrong = model(ids[None], position_ids=where).logits
    assert (right[:, :5] - wrong[:, :5]).abs().max() < 1e-5
    assert (right[:, 5:] - wrong[:, 5:]).abs().max() > 0.1


def test_transformers_builds_no_mask_for_the_name() -> None:
    AttentionInterface.register(PACKED, packed_attention)
    assert PACKED not in AttentionMaskInterface._global_mapping


def test_a_mask_cannot_come_in_beside_the_keywords() -> None:
    model, keywords = MODELS["llama"], {**Segments([4], "cpu").keywords(), "position_ids": torch.arange(4)[None]}
    with pytest.raises(TypeError, match="attention_mask"):
        model(torch.arange(4)[None], attention_mask=torch.ones(1, 4), **keywords)
    keywords["attention_mask"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(ModelError, match="cannot honour attention_mask"):
        model(torch.arange(4)[None], **keywords)


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"attention_mask": torch.ones(1, 1, 5, 5)}, "attention_mask"),
        ({"dropout": 0.1}, "dropout"),
        ({"softcap": 30.0}, "softcap"),
        ({"sliding_window": 4}, "sliding_window"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"is_causal": False}, "is_causal"),
        ({"use_cache": True}, "use_cache"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"invented_next_year": 0.0}, "invented_next_year"),
    ],
)
def test_what_it_cannot_do_it_refuses(wish: dict[str, Any], named: str) -> None:
    mask = wish.pop("attention_mask", None)
    with pytest.raises(ModelError, match=f"cannot honour {named} "):
        packed_attention(layer(), *heads([5]), mask, segments=Segments([5], "cpu"), **wish)


def test_what_says_nothing_is_let_pass() -> None:
    nothing = {"softcap": None, "sliding_window": None, "is_causal": True, "use_cache": False, "dropout": 0.0}
    packed_attention(layer(), *heads([5]), None, segments=Segments([5], "cpu"), position_ids=torch.arange(5), **nothing)


def test_refuses_an_encoder_layer() -> None:
    with pytest.raises(ModelError, match="is_causal"):
        packed_attention(SimpleNamespace(is_causal=False), *heads([5]), None, segments=Segments([5], "cpu"))


def test_refuses_what_are_no_segments_of_the_row() -> None:
    with pytest.raises(ModelError, match=r"pass \*\*Segments"):
        packed_attention(layer(), *heads([5]), None)
    with pytest.raises(ModelError, match="segments of 6 tokens do not fit 1 rows of 5 queries and 5 keys"):
        packed_attention(layer(), *heads([5]), None, segments=Segments([2, 4], "cpu"))
    rows = [torch.cat([tensor, tensor]) for tensor in heads([5])]
    with pytest.raises(ModelError, match="2 rows"):
        packed_attention(layer(), *rows, None, segments=Segments([5], "cpu"))
    query, _, _ = heads([5])
    _, key, value = heads([9])  # a cache that somebody passed
    with pytest.raises(ModelError, match="9 keys"):
        packed_attention(layer(), query, key, value, None, segments=Segments([5], "cpu"))
    for lengths in ([], [3, 0], [3, -1]):
        with pytest.raises(ModelError, match="at least one"):
            Segments(lengths, "cpu")


def test_a_model_without_segments_refuses() -> None:
    with pytest.raises(ModelError, match="packed attention needs its segments"):
        MODELS["qwen3"](torch.arange(4)[None])


@pytest.mark.parametrize("keys", [4, 2])
def test_the_kernel_is_called_by_its_documented_meaning(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel wants CUDA: here a re-statement of its documentation stands in for it, under its own signature."""
    lengths = [3, 1, 7]

    def stated(*args: Any, **named: Any) -> Tensor:
        call = inspect.signature(varlen_attn).bind(*args, **named)
        call.apply_defaults()
        asked = call.arguments
        assert asked["window_size"] == (-1, 0)  # "(-1, 0) for causal attention"
        assert asked["enable_gqa"] == (keys != 4)
        assert asked["max_q"] == asked["max_k"] == 7
        assert asked["cu_seq_q"].dtype == torch.int32
        assert asked["cu_seq_q"].tolist() == asked["cu_seq_k"].tolist() == [0, 3, 4, 11]
        assert [asked[name].shape for name in ("query", "key", "value")] == [(11, 4, 8), (11, keys, 8), (11, keys, 8)]
        assert asked["scale"] == 0.3
        tensors = (asked[name].transpose(0, 1)[None] for name in ("query", "key", "value"))
        return dense(*tensors, lengths)[0]

    monkeypatch.setattr(attention, "varlen_attn", stated)
    tensors = heads(lengths, keys=keys)
    segments = Segments(lengths, "cpu")
    torch.testing.assert_close(
        attention._fused(*tensors, segments, 0.3), attention._looped(*tensors, segments, 0.3), **CLOSE
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel wants CUDA")
@pytest.mark.parametrize("keys", [4, 2])
def test_the_kernel_equals_the_loop(keys: int) -> None:
    lengths = [3, 1, 200]
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, 204, count, 64, generator=generator).transpose(1, 2).cuda().bfloat16().requires_grad_()
        for count in (4, keys, keys)
    ]
    segments = Segments(lengths, "cuda")
    fused, looped = attention._fused(*tensors, segments, None), attention._looped(*tensors, segments, None)
    torch.testing.assert_close(fused, looped, rtol=2e-2, atol=2e-2)
    along = torch.randn_like(fused)
    for one, other in zip(
        torch.autograd.grad(fused, tensors, along), torch.autograd.grad(looped, tensors, along), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=5e-2, atol=5e-2)


def test_gradient_checkpoints_change_nothing() -> None:
    model, lengths = built("qwen2"), [7, 1, 12]
    ids = torch.arange(20)
    keywords = {"position_ids": positions(lengths)[None], **Segments(lengths, "cpu").keywords()}
    plain = gradients(model.train(), [model(ids[None], **keywords).logits.square().mean()])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(model, [model(ids[None], **keywords).logits.square().mean()])
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], rtol=0, atol=0)


PACKS = ([10, 10], [4, 9, 7], [1, 1, 18], [2, 3, 4, 5, 6], [20], [1] * 20, [19, 1], [8, 3, 9])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_compiled_block_is_not_compiled_for_every_pack(device: str) -> None:
    """meta goes the way of CUDA, whose block must be one graph; on a CPU the loop stands outside of it."""
    from torch._dynamo.testing import CompileCounter

    model = built("qwen2").to(device)
    block, rotary = model.model.layers[0], model.model.rotary_emb
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(block, backend=counter, fullgraph=device == "meta")
    made = []
    with torch.no_grad():
        for lengths in PACKS:
            hidden = torch.randn(1, 20, 32, device=device)
            turned = rotary(hidden, positions(lengths)[None].to(device))
            keywords = {"position_embeddings": turned, **Segments(lengths, device).keywords()}
            out = compiled(hidden, **keywords)
            assert out.shape == hidden.shape
            if device == "cpu":
                torch.testing.assert_close(out, block(hidden, **keywords), **CLOSE)
            made.append(counter.frame_count)
    assert made[-1] == made[3], made
