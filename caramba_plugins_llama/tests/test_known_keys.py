"""One key more, or one other value: the model of transformers, or a refusal that names the key.  Never silence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_llama.families import FAMILIES
from caramba_plugins_llama.known_keys import CONFIG, GENERATION, KnownKeys
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from caramba_core.errors import CarambaError

from .conftest import LATENT, quiet, random_tokens, read_model, write_oracle

ELSEWHERE = """
    alibi attention_chunk_size attention_multiplier attention_out_bias attention_sink attn_logit_softcapping
    attn_temperature_tuning configuration_files embedding_multiplier final_logit_softcapping full_attention_interval
    hidden_activation is_causal layer_norm_eps logit_scale logits_scaling mlp_layer_types moe_layers
    mup_base_width n_embd n_head no_rope_layers norm_eps num_experts num_kv_shared_layers num_nextn_predict_layers
    parallel_residual partial_rotary_factor per_layer_config position_embedding_type qk_layernorm qkv_bias
    query_pre_attn_scalar residual_multiplier rope_interleave rope_local_base_freq rope_parameters rope_scaling
    rotary_dim scale_emb sliding_window sliding_window_pattern text_config tie_encoder_decoder transformers_weights
    use_bidirectional_attention use_parallel_residual use_qk_norm use_sliding_window vision_config
"""
"""What other models of transformers have in their ``config.json``, or transformers itself reads from any."""

KEYS = st.one_of(
    st.sampled_from(ELSEWHERE.split()),
    st.sampled_from([*CONFIG.read, *CONFIG.fixed]).filter(lambda key: key not in ("caramba", "model_type")),
    st.sampled_from([key for key in CONFIG.ignored if "*" not in key]),
    st.from_regex(r"[a-z][a-z_]{2,14}", fullmatch=True),
)
ROPE = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3", "longrope", "proportional"])},
    optional={
        "type": st.sampled_from(["default", "linear"]),
        "rope_theta": st.sampled_from([40.0, 1e4]),
        "factor": st.sampled_from([2.0, 4]),
        "low_freq_factor": st.just(1.0),
        "high_freq_factor": st.just(4.0),
        "original_max_position_embeddings": st.sampled_from([16, 32]),
        "attention_factor": st.just(0.7),
        "short_factor": st.just([1.0, 2.0, 3, 1e9]),
        "long_factor": st.sampled_from([[1.0, 2.0, 3, 1e9], [1.0, 2.0]]),
        "beta_fast": st.sampled_from([3.0, 0]),
        "mscale": st.just(0.5),
        "truncate": st.booleans(),
        "partial_rotary_factor": st.sampled_from([0.5, 1.0]),
        "something": st.just(1),
    },
)
VALUES = st.one_of(
    st.booleans(),
    st.sampled_from([0, 1, 2, 3, 5, 7, 48, 0.0, 0.5, 1.0, 2.5, 1e-5, "silu", "gelu", "float16", "", [], {}]),
    st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=3, max_size=3),
    ROPE,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family, whose windows are smaller than the text."""
    folder = tmp_path_factory.mktemp("families")
    for name, family in FAMILIES.items():
        windows = {} if family.window == "never" else {"sliding_window": 11}
        write_oracle(folder / name, name, **windows, **LATENT.get(name, {}))
        (folder / name / "as_written.json").write_text((folder / name / "config.json").read_text())
    return folder


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in LATENT])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.dictionaries(KEYS, VALUES, min_size=1, max_size=2))
@example(change={"is_causal": False})
@example(change={"layer_types": ["full_attention", "sliding_attention", "full_attention"]})
@example(change={"original_max_position_embeddings": 12})
@example(change={"original_max_position_embeddings": False})
@example(change={"hidden_act": "gelu"})
@example(change={"tie_word_embeddings": True})
@example(change={"use_sliding_window": 0})
@example(change={"max_window_layers": 0.5})
@example(change={"max_window_layers": False})
@example(change={"sliding_window_pattern": False})
@example(change={"sliding_window_pattern": ["full_attention", "full_attention", "full_attention"]})
@example(change={"sliding_window_pattern": 2.5})
@example(change={"rope_parameters": {}})
@example(change={"rope_parameters": {"rope_type": "yarn"}})
@example(
    change={"rope_parameters": {"rope_type": "longrope", "short_factor": [1, 2, 3, 4], "long_factor": [1, 2, 3, 4]}}
)
def test_one_key_more(models: Path, name: str, change: dict[str, Any]) -> None:
    folder = models / name
    config = json.loads((folder / "as_written.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    tokens = random_tokens(24)
    try:
        found = read_model(folder)(tokens)
    except CarambaError as error:
        if not set(change) & {*CONFIG.read, *CONFIG.fixed}:
            assert any(key in str(error) for key in change), f"{change} is refused without being named: {error}"
        return
    try:
        expected = transformers_logits(folder, tokens)
    except Exception:  # transformers checks types of keys that change nothing, too
        kept = {key: value for key, value in change.items() if not is_ignored(FAMILIES[name].keys, key)}
        if kept == change:
            raise
        (folder / "config.json").write_text(json.dumps({**config, **kept}))
        expected = transformers_logits(folder, tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def transformers_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    import transformers

    with quiet(), torch.no_grad():
        oracle = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        logits: torch.Tensor = oracle.eval()(tokens).logits
    return logits


def test_what_transformers_writes_is_known(models: Path) -> None:
    import transformers

    for name, family in FAMILIES.items():
        written = json.loads((models / name / "as_written.json").read_text())
        assert family.keys.problems(written) == []
        assert unknown(family.keys, vars(transformers.AutoConfig.for_model(name))) == set()
    assert unknown(GENERATION, vars(transformers.GenerationConfig())) == set()


def is_ignored(keys: KnownKeys, key: str) -> bool:
    return key not in keys.read and key not in keys.fixed and not keys.problems({key: "?"})


def unknown(keys: KnownKeys, values: Mapping[str, Any]) -> set[str]:
    """Keys that are not known at any value; private ones are not written to files."""
    problems = keys.problems(dict.fromkeys(values, "?"))
    return {problem.split(" is ")[0] for problem in problems if "not known" in problem and problem[0] != "_"}
