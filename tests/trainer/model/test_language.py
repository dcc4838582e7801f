"""The language model: which are let in, and what is done to it before it trains."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
)

from tests.trainer.model.families import FAMILIES, LLAMA3, YARN, built, language, positions
from trainer.errors import ModelError
from trainer.model.attention import PACKED, Segments, packed_attention
from trainer.model.config import QWEN_VL
from trainer.model.language import (
    build_language,
    check_language,
    head,
    hidden_states,
    rebuild_rotary,
    unpacked,
)

IDS = torch.arange(20)[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_built_and_passes_its_check(family: str) -> None:
    model = build_language(language(family))
    assert model.config.model_type == family
    assert model.config._attn_implementation == PACKED
    check_language(model)
    check_language(built(family))


def test_qwen_7b_counts() -> None:
    with torch.device("meta"):
        model = build_language(QWEN_VL.language)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_721_324_544
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_weights_are_fp32_whatever_the_configuration_says() -> None:
    assert {parameter.dtype for parameter in build_language(language("llama", dtype="bfloat16")).parameters()} == {
        torch.float32
    }


def test_the_padding_row_trains_like_others() -> None:
    """eos often is the padding token; torch would give that row no gradient."""
    model = built("qwen2")
    table = model.get_input_embeddings()
    embeds = table(torch.tensor([1, 2, 3]))
    hidden_states(model, embeds, torch.arange(3), Segments([3], "cpu")).square().sum().backward()
    assert table.weight.grad[2].abs().sum() > 0


def test_the_configuration_that_was_given_stays_as_it_is() -> None:
    """transformers writes into nested values of what it is given."""
    given = language("llama", rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0})
    before = copy.deepcopy(given)
    build_language(given)
    assert given == before


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("qwen2", {"model_type": "gemma2"}, "model_type 'gemma2' is none of"),
        ("qwen2", {"model_type": None}, "model_type None"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_window = 8"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = ['sliding_attention']"),
        ("llama", {"sliding_window": 4096}, "sliding_window = 4096"),
        ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ("llama", {"logits_scaling": 8.0}, "logits_scaling = 8.0"),
        ("qwen2", {"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ("qwen2", {"num_local_experts": 8}, "num_local_experts = 8"),
        ("qwen2", {"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}"),
        ("qwen2", {"is_causal": False}, "is_causal"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "['dynamic']"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "['dynamic']"),
        ("qwen2", {"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ("qwen2", {"hidden_size": "wide"}, "hidden_size"),
        ("qwen2", {"layer_types": ["full_attention"]}, "num_hidden_layers"),
        ("qwen2", {"hidden_act": "none"}, "KeyError: 'none'"),
        ("qwen2", {"pad_token_id": 97}, "configuration: "),
    ],
)
def test_refuses_in_one_line(family: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_language(language(family, **changes))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lets_pass_what_is_switched_off() -> None:
    off = {"use_sliding_window": False, "sliding_window": 4096, "quantization_config": None, "num_experts": 0}
    build_language(language("qwen2", **off))
    build_language(language("llama", rope_parameters=None, rope_theta=500000.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_and_head_are_the_models_own(family: str) -> None:
    model, lengths = built(family), (11, 9)
    embeds = model.get_input_embeddings()(IDS[0])
    hidden = hidden_states(model, embeds, positions(lengths), Segments(lengths, "cpu"))
    assert hidden.shape == (20, 32)
    with unpacked(model):
        apart = [model(part[None]).logits[0] for part in IDS[0].split(lengths)]
    torch.testing.assert_close(head(model, hidden), torch.cat(apart), rtol=1e-5, atol=1e-5)


def gemma(**changes: Any) -> PreTrainedModel:
    """A family that is not let in, forced past the list: caps and windows on scores and logits."""
    AttentionInterface.register(PACKED, packed_attention)
    traits = {"final_logit_softcapping": None, "attn_logit_softcapping": None, "head_dim": 8, **changes}
    config = Gemma2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
        **{"layer_types": ["full_attention"] * 2, **traits},
    )
    return Gemma2ForCausalLM._from_config(config, attn_implementation=PACKED).eval()


def test_check_refuses_gemmas_inventions() -> None:
    check_language(gemma())  # without them it is a plain model
    with pytest.raises(ModelError, match=r"Gemma2ForCausalLM .* not head\(hidden states\).* \(by [0-9.]+ of"):
        check_language(gemma(final_logit_softcapping=30.0))
    with pytest.raises(ModelError, match="cannot honour softcap"):
        check_language(gemma(attn_logit_softcapping=50.0))
    with pytest.raises(ModelError, match="cannot honour sliding_window"):
        check_language(gemma(layer_types=["sliding_attention", "full_attention"]))


class ScaledHead(Qwen2ForCausalLM):
    """Multiplies its logits, as some families do."""

    def forward(self, *args: Any, **named: Any) -> Any:
        out = super().forward(*args, **named)
        out.logits = out.logits * 1.02
        return out


class Neighbours(Qwen2ForCausalLM):
    """Looks at the token before it outside of attention, so at the sample before it in a pack."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: (args[0] + args[0].roll(1, 1),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("invented", "said"), [(ScaledHead, "head(hidden states)"), (Neighbours, "packed samples give other logits")]
)
def test_check_refuses_what_a_subclass_invents(invented: type[Qwen2ForCausalLM], said: str, dtype: torch.dtype) -> None:
    plain = built("qwen2")
    model = invented._from_config(copy.deepcopy(plain.config), attn_implementation=PACKED)
    model.load_state_dict(plain.state_dict())
    for parameter in (*plain.parameters(), *model.parameters()):
        parameter.data = parameter.data.to(dtype)
    check_language(plain)
    with pytest.raises(ModelError) as caught:
        check_language(model)
    assert said in str(caught.value)
    assert "of the largest" in str(caught.value)


def test_check_leaves_no_trace_and_draws_nothing() -> None:
    model = built("qwen2").train()
    seed = torch.get_rng_state()
    check_language(model)
    assert torch.equal(torch.get_rng_state(), seed)
    assert model.training
    assert model.config._attn_implementation == PACKED
    assert not model.lm_head._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_check_wants_rotary_tables() -> None:
    model = built("qwen2")
    model.model.rotary_emb.inv_freq.fill_(torch.nan)
    with pytest.raises(ModelError, match="by nan"):
        check_language(model)


@pytest.mark.parametrize("rope", [None, LLAMA3, YARN], ids=["default", "llama3", "yarn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rotary_tables_are_rebuilt_bit_for_bit(family: str, rope: dict[str, Any] | None) -> None:
    changes = {} if rope is None else {"rope_parameters": rope}
    wanted = built(family, **changes)
    with torch.device("meta"):
        model = build_language(language(family, **changes))
    model.to_empty(device="cpu").load_state_dict(wanted.state_dict())
    rotary = model.model.rotary_emb
    rotary.inv_freq.fill_(torch.nan)
    rotary.original_inv_freq.fill_(torch.nan)
    rotary.attention_scaling = torch.nan
    rebuild_rotary(model, "cpu")
    for name, table in wanted.named_buffers():
        assert torch.equal(model.get_buffer(name), table)
        assert name not in model.state_dict()
    assert rotary.attention_scaling == wanted.model.rotary_emb.attention_scaling
    with torch.no_grad(), unpacked(model), unpacked(wanted):
        assert torch.equal(model(IDS).logits, wanted(IDS).logits)


def test_a_buffer_that_nothing_fills_is_refused() -> None:
    model = built("qwen2")
    model.model.norm.register_buffer("invented", torch.zeros(1), persistent=False)
    with pytest.raises(ModelError, match=r"model\.norm of Qwen2ForCausalLM"):
        rebuild_rotary(model, "cpu")


def test_unpacked_generates_what_packs_predict() -> None:
    """Greedy tokens with a cache equal those of the packed forward; the mode ends with the block, also by an error."""
    model = built("qwen3")
    with unpacked(model):
        made = model.generate(IDS, max_new_tokens=6, min_new_tokens=6, do_sample=False)[0]
    segments = Segments([len(made)], "cpu")
    with torch.no_grad():
        hidden = hidden_states(model, model.get_input_embeddings()(made), torch.arange(len(made)), segments)
    assert model.config._attn_implementation == PACKED
    allowed = head(model, hidden)[19:-1]
    allowed[:, model.config.eos_token_id] = -torch.inf  # min_new_tokens forbids it
    assert allowed.argmax(-1).tolist() == made[20:].tolist()
    with pytest.raises(RuntimeError, match="stop"), unpacked(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == PACKED


def test_what_is_saved_opens_in_transformers(tmp_path: Path) -> None:
    """The name `packed` is not written: other programs do not know it."""
    model = built("llama")
    model.save_pretrained(tmp_path)
    assert PACKED not in (tmp_path / "config.json").read_text()
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad(), unpacked(model):
        torch.testing.assert_close(opened(IDS).logits, model(IDS).logits)


def test_head_is_a_plain_matrix() -> None:
    model = built("qwen2")
    hidden: Tensor = torch.randn(3, 32)
    assert torch.equal(head(model, hidden), nn.functional.linear(hidden, model.lm_head.weight))
