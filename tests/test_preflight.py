"""Preflight: all rows ok on honest models, and every planted breach is found and named."""

import pytest
import torch
from transformers import GPT2LMHeadModel

from talltree.errors import ContractError
from talltree.models.critic import build_critic
from talltree.models.policy import Reference
from talltree.preflight import BFLOAT16_TOLERANCE, Check, critic_checks, preflight, require
from talltree.sampling.decode import sample
from talltree.types import Prompt, Rollout, Truncation

from .tiny import MODELS, STOP, gpt2, llama, tokenizer, with_lora

PROMPTS = [[3, 7, 1, 9, 4, 2, 8], [3, 7, 1, 9, 4, 2, 8], [5], [5], [11, 2, 19], [6, 6, 6, 6, 20]]
PADDED = "log-probs: padded batch against each text alone (nats)"
SAMPLER = "log-probs: sampler against trainer (nats)"
REFERENCE = "log-probs: policy against reference (nats)"
RATIO = "ratio before the first update: distance from 1"
KL = "KL before the first update (nats a token)"
DROPOUT = "dropout off: two passes differ by (nats)"
STOPPING = "stop token (0) reachable: highest probability seen"
CUT = "completions cut at 10 tokens"
DISTRIBUTION = "sampled distribution"


def rollout_of(model, temperature=1.0, stop=(STOP,), length=10, truncation=None):
    out = sample(
        model,
        PROMPTS,
        max_completion_length=length,
        stop_ids=stop,
        temperature=temperature,
        generator=torch.Generator().manual_seed(1),
        truncation=truncation,
    )
    texts = [""] * len(PROMPTS)
    return Rollout(
        [Prompt("")] * len(PROMPTS), PROMPTS, texts, out.tokens_NT, out.mask_NT, out.logp_NT, out.ended_N
    )


def checked(model, rollout=None, reference=None, temperature=1.0, stop=(STOP,), **options):
    checks = preflight(
        model,
        reference or Reference(model),
        rollout or rollout_of(model, temperature),
        temperature=temperature,
        stop_ids=stop,
        max_completion_length=10,
        **options,
    )
    assert all(isinstance(check, Check) for check in checks)
    return {check.name: check for check in checks}


def breaches(checks):
    return {name for name, check in checks.items() if check.status == "breach"}


def assert_stops_the_run(checks, *names):
    with pytest.raises(ContractError) as caught:
        require(list(checks.values()))
    assert "\n" not in str(caught.value)
    for name in names:
        assert f"{name} is {checks[name].value}, allowed {checks[name].bound}" in str(caught.value)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("name", [*MODELS, "lora"])
def test_an_honest_model_keeps_the_contract(name, temperature):
    model = with_lora(llama()) if name == "lora" else MODELS[name]()
    if name == "lora":  # as at the start of a run: B is 0, policy and base are one
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.zero_()
    checks = checked(model, temperature=temperature)
    assert list(checks) == [PADDED, SAMPLER, REFERENCE, RATIO, KL, DROPOUT, STOPPING, CUT, DISTRIBUTION]
    assert breaches(checks) == set()
    require(list(checks.values()))
    assert f"logits / {temperature:g}" in checks[DISTRIBUTION].value


def test_the_real_story_model(stories260K):
    from talltree.models.load import load_model

    model = load_model(str(stories260K))
    assert breaches(checked(model, rollout_of(model, stop=(1, 2)), stop=(1, 2))) == set()


def test_dropout_left_on():
    model = gpt2(dropout=0.1)
    rollout, reference = rollout_of(model), Reference(model)
    model.train()
    checks = checked(model, rollout, reference)
    assert {DROPOUT, SAMPLER, REFERENCE} <= breaches(checks)
    assert_stops_the_run(checks, DROPOUT, SAMPLER)


def test_training_mode_is_a_breach_even_where_dropout_is_0():
    model = gpt2()
    rollout = rollout_of(model)
    model.transformer.h[1].train()
    checks = checked(model, rollout)
    assert breaches(checks) == {DROPOUT}
    assert "modules in training mode" in checks[DROPOUT].value


def test_a_reference_of_other_weights():
    model = gpt2(seed=0)
    checks = checked(model, reference=Reference(gpt2(seed=1)))
    assert breaches(checks) == {REFERENCE, KL}
    assert_stops_the_run(checks, REFERENCE, KL)


def test_a_reference_reloaded_while_the_policy_has_changed():
    """One optimiser step is enough to tell a copy of the policy from the model of that name."""
    model, by_name = gpt2(), gpt2()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    assert breaches(checked(model, reference=Reference(by_name))) == {REFERENCE, KL}
    assert breaches(checked(model, reference=Reference(model))) == set()


def test_adapters_that_start_away_from_the_base():
    checks = checked(with_lora(gpt2()))
    assert breaches(checks) == {REFERENCE, KL}


def test_a_sampler_of_another_temperature():
    model = gpt2()
    checks = checked(model, rollout_of(model, temperature=1.0), temperature=0.7)
    assert {SAMPLER, RATIO} <= breaches(checks)
    assert_stops_the_run(checks, SAMPLER, RATIO)


@pytest.mark.parametrize("model_name", MODELS)
def test_a_sampler_that_filters_top_k(model_name, monkeypatch):
    """Log-probs under the five likeliest tokens, renormalised, against a trainer that knows all of them."""
    from talltree.sampling import decode

    def filtered(logits_NV, uniform_N):
        least = logits_NV.topk(5, -1).values[:, -1:]
        return honest(logits_NV.masked_fill(logits_NV < least, -torch.inf), uniform_N)

    honest = decode.draw
    model = MODELS[model_name]()
    monkeypatch.setattr(decode, "draw", filtered)
    checks = checked(model, rollout_of(model))
    assert {SAMPLER, RATIO, KL} <= breaches(checks)
    assert_stops_the_run(checks, SAMPLER)


class PaddingSensitive(GPT2LMHeadModel):
    """The longer the batch, the flatter its distributions: padding is part of what it reads."""

    def forward(self, input_ids=None, **options):
        out = super().forward(input_ids=input_ids, **options)
        out.logits = out.logits / (1 + 0.01 * input_ids.shape[1])
        return out


def test_a_model_that_reads_padding():
    model = gpt2()
    model.__class__ = PaddingSensitive
    checks = checked(model)
    assert PADDED in breaches(checks)
    assert_stops_the_run(checks, PADDED)


@pytest.mark.parametrize("bias", [-torch.inf, -1e4])
def test_an_end_that_cannot_be_reached(bias):
    model = llama()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(23))
    with torch.no_grad():
        model.lm_head.bias[STOP] = bias
    rollout = rollout_of(model)
    assert not rollout.ended_N.any()
    checks = checked(model, rollout)
    assert breaches(checks) == {STOPPING}
    assert checks[CUT] == Check(CUT, "100%", "declared", "note")
    assert_stops_the_run(checks, STOPPING)


def test_an_end_that_is_rare_is_worth_a_note():
    model = llama()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(23))
    with torch.no_grad():
        model.lm_head.bias[STOP] = -20.0
    checks = checked(model)
    assert checks[STOPPING].status == "note"
    assert breaches(checks) == set()


def test_any_one_of_several_stop_tokens_is_enough():
    model = llama()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(23))
    with torch.no_grad():
        model.lm_head.bias[STOP] = -torch.inf
    assert breaches(checked(model, rollout_of(model, stop=(STOP, 4)), stop=(STOP, 4))) == set()


def test_truncation_is_declared():
    model = gpt2()
    rollout = rollout_of(model)
    share = 1 - float(rollout.ended_N.float().mean())
    assert checked(model, rollout)[CUT].value == f"{share:.0%}"
    checks = checked(model, rollout_of(model, stop=tuple(range(23))), stop=tuple(range(23)))
    assert checks[CUT] == Check(CUT, "0%", "declared", "ok")


def test_weights_that_are_not_finite():
    model = gpt2()
    rollout, reference = rollout_of(model), Reference(model)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    assert {PADDED, SAMPLER, REFERENCE, RATIO, DROPOUT, STOPPING} <= breaches(
        checked(model, rollout, reference)
    )


def test_the_bound_is_the_callers():
    model = gpt2()
    rollout = rollout_of(model, temperature=1.01)
    assert SAMPLER in breaches(checked(model, rollout))
    checks = checked(model, rollout, tolerance=BFLOAT16_TOLERANCE)
    assert breaches(checks) == set()
    assert checks[SAMPLER].bound == "at most 5e-01"


def test_another_reference_is_measured_and_not_bounded():
    """The same distance that is a breach for the policy's own reference is a figure for another one."""
    model, other = gpt2(seed=0), Reference(gpt2(seed=0), gpt2(seed=1))
    assert breaches(checked(model, reference=other)) == {REFERENCE, KL}
    checks = checked(model, reference=other, is_own_reference=False)
    assert breaches(checks) == set()
    for name in (REFERENCE, KL):
        assert checks[name].status == "note"
        assert checks[name].bound == "finite: the reference is another model"
        assert float(checks[name].value) > 0.1
    broken = gpt2(seed=1)
    with torch.no_grad():
        broken.transformer.ln_f.weight[0] = float("nan")
    checks = checked(model, reference=Reference(model, broken), is_own_reference=False)
    assert breaches(checks) == {REFERENCE, KL}


def test_a_truncate_token_is_the_end_that_must_be_reachable():
    model = llama()
    ends = Truncation((7, 9), 4)
    checks = checked(model, rollout_of(model, truncation=ends), truncation=ends)
    assert breaches(checks) == set()
    names = list(checks)
    assert names[6] == "truncate token (7, 9) from position 4 reachable: highest probability seen"
    assert names[7] == "completions without their truncate token within 10 tokens"
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(23))
    with torch.no_grad():
        model.lm_head.bias[[7, 9]] = -torch.inf
    checks = checked(model, rollout_of(model, truncation=ends), truncation=ends)
    assert breaches(checks) == {names[6]}
    assert checks[names[7]].value == "100%"


VALUES = "values before the first update"
CRITIC_DROPOUT = "critic: dropout off: two passes differ by"
LATER = "critic: states of half a text against those of the whole (share of the largest)"


def critic_of(model, seed=None, body="separate"):
    critic = build_critic(
        model, tokenizer(), body=body, init_from=None, head="zero", lora=None, longest_text=20
    )
    if seed is not None:
        torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(seed))
    return critic


def critic_checked(critic, model, starts_at_zero=True):
    return {check.name: check for check in critic_checks(critic, rollout_of(model), starts_at_zero)}


@pytest.mark.parametrize("body", ["separate", "shared"])
@pytest.mark.parametrize("name", MODELS)
def test_an_honest_critic_keeps_the_contract(name, body):
    model = MODELS[name]()
    checks = critic_checked(critic_of(model, body=body), model)
    assert list(checks) == [VALUES, CRITIC_DROPOUT, LATER]
    assert breaches(checks) == set()
    loaded = critic_checked(critic_of(model, seed=1, body=body), model, starts_at_zero=False)
    assert breaches(loaded) == set()
    low, high = map(float, loaded[VALUES].value.split(" to "))
    assert low < high


def test_a_value_head_that_does_not_start_at_zero():
    model = llama()
    assert breaches(critic_checked(critic_of(model, seed=1), model)) == {VALUES}


def test_a_critics_dropout_left_on():
    model = gpt2(dropout=0.2)
    critic = critic_of(model)
    critic.body.train()
    assert {CRITIC_DROPOUT, LATER} <= breaches(critic_checked(critic, model))


def test_a_critic_that_reads_later_tokens():
    model = llama()
    critic = critic_of(model)
    forward = critic.body.forward

    def looking_ahead(input_ids=None, **options):
        out = forward(input_ids=input_ids, **options)
        out.last_hidden_state = out.last_hidden_state + 0.01 * out.last_hidden_state.mean(1, keepdim=True)
        return out

    critic.body.forward = looking_ahead
    assert breaches(critic_checked(critic, model)) == {LATER}


def test_require_names_every_breach_and_passes_notes():
    checks = [
        Check("a", "1", "0", "breach"),
        Check("b", "2", "3", "ok"),
        Check("c", "4", "5", "note"),
        Check("d", "6", "7", "breach"),
    ]
    with pytest.raises(ContractError, match="a is 1, allowed 0; d is 6, allowed 7"):
        require(checks)
    require(checks[1:3])
