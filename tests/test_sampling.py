"""Drawing by inverse CDF, and the decode loop against the trainer and against plain library calls."""

import pytest
import torch

from talltree.maths import products
from talltree.models.load import load_model
from talltree.models.policy import Reference
from talltree.models.score import likelihood
from talltree.models.views import decode_view
from talltree.sampling.caches import LibraryCache, WeightCache
from talltree.sampling.decode import _decode, sample

from .test_draw import chi_squared
from .tiny import MODELS, STOP, gpt2, gpt_neo, llama, with_lora

PROMPTS = [[3, 7, 1, 9, 4, 2, 8], [5], [5], [11, 2, 19], [6, 6, 6, 6, 20], [5]]


def run(model, prompts=PROMPTS, length=12, seed=3, stop=(STOP,), temperature=1.0, **options):
    return sample(
        model,
        prompts,
        max_completion_length=length,
        stop_ids=stop,
        temperature=temperature,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


# decode: log-probs


def naive_logp(model, prompt, completion, temperature):
    """Log-probs of one text by one call of the library's model, without padding, mask or cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    logp = (logits / temperature).log_softmax(-1)
    return torch.stack([logp[len(prompt) - 1 + i, token] for i, token in enumerate(completion)])


@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_sampler_trainer_and_a_naive_loop_agree(name, fast, temperature):
    model = MODELS[name]()
    assert decode_view(model) is not None
    out = run(model, temperature=temperature, fast=fast)
    trained = likelihood(model, PROMPTS, out.tokens_NT, out.mask_NT, temperature)
    torch.testing.assert_close(out.logp_NT, trained, atol=1e-4, rtol=0)
    for row, prompt in enumerate(PROMPTS):
        mask = out.mask_NT[row]
        expected = naive_logp(model, prompt, out.tokens_NT[row][mask].tolist(), temperature)
        torch.testing.assert_close(out.logp_NT[row][mask].double(), expected, atol=1e-5, rtol=0)
        assert (out.logp_NT[row][~mask] == 0).all()
    assert float(out.logp_NT.min()) < -2  # the distributions are not flat, so agreement means something


@pytest.mark.parametrize("name", MODELS)
def test_large_weights_take_another_librarys_product_and_draw_the_same(name, monkeypatch):
    small = run(MODELS[name]())
    monkeypatch.setattr(products, "SMALL", 0)
    large = run(MODELS[name]())
    assert torch.equal(small.tokens_NT, large.tokens_NT)
    torch.testing.assert_close(small.logp_NT, large.logp_NT, atol=1e-5, rtol=0)


def test_the_norms_weight_and_floor_are_in_the_products_after_it():
    model = llama(rms_norm_eps=0.3)
    with torch.no_grad():
        for seed, (name, weight) in enumerate(model.named_parameters()):
            if "norm" in name:
                weight.uniform_(0.2, 3.0, generator=torch.Generator().manual_seed(seed))
    out = run(model)
    for row, prompt in enumerate(PROMPTS):
        mask = out.mask_NT[row]
        expected = naive_logp(model, prompt, out.tokens_NT[row][mask].tolist(), 1.0)
        torch.testing.assert_close(out.logp_NT[row][mask].double(), expected, atol=1e-5, rtol=0)


def test_the_real_story_model(stories260K):
    model = load_model(str(stories260K))
    prompts = [[1, 403, 407, 261], [1], [1, 403], [1]]
    outs = [run(model, prompts, 24, stop=(1, 2), fast=fast) for fast in (True, False)]
    assert torch.equal(outs[0].tokens_NT, outs[1].tokens_NT)
    for out in outs:
        trained = likelihood(model, prompts, out.tokens_NT, out.mask_NT, 1.0)
        torch.testing.assert_close(out.logp_NT, trained, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompts", [PROMPTS, [[5, 3, 2]] * 6], ids=["unequal", "equal"])
@pytest.mark.parametrize("name", MODELS)
def test_both_caches_draw_the_same(name, prompts):
    model = MODELS[name]()
    own, library = (run(model, prompts, fast=fast) for fast in (True, False))
    assert torch.equal(own.tokens_NT, library.tokens_NT)
    assert torch.equal(own.mask_NT, library.mask_NT)
    torch.testing.assert_close(own.logp_NT, library.logp_NT, atol=1e-5, rtol=0)


ROPE = {"factor": 2.0, "rope_theta": 10000.0}
OUTSIDE = {
    "relu": lambda: gpt2(activation_function="relu"),
    "inverse_layer": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
    "gelu_llama": lambda: llama(hidden_act="gelu"),
    "dynamic_rope": lambda: llama(rope_parameters=ROPE | {"rope_type": "dynamic"}),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_options_outside_the_view_take_the_librarys_cache(name):
    model = OUTSIDE[name]()
    assert decode_view(model) is None
    out = run(model, length=4)
    trained = likelihood(model, PROMPTS, out.tokens_NT, out.mask_NT, 1.0)
    torch.testing.assert_close(out.logp_NT, trained, atol=1e-4, rtol=0)


def test_rotary_frequencies_that_depend_on_the_length_are_outside_the_view():
    factors = {"long_factor": [2.0, 2.0], "short_factor": [1.0, 1.0]}
    rope = ROPE | factors | {"rope_type": "longrope", "original_max_position_embeddings": 8}
    assert decode_view(llama(rope_parameters=rope)) is None


def test_scaled_rotary_frequencies_are_in_the_view():
    rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    model = llama(rope_parameters=rope)
    assert decode_view(model) is not None
    out = run(model)
    trained = likelihood(model, PROMPTS, out.tokens_NT, out.mask_NT, 1.0)
    torch.testing.assert_close(out.logp_NT, trained, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_weights_in_bfloat16_are_sampled_as_they_are(name):
    """Rotary ones too, whose queries and keys are turned as complex numbers, which bfloat16 has not."""
    model = MODELS[name]().to(torch.bfloat16)
    out = run(model)
    trained = likelihood(model, PROMPTS, out.tokens_NT, out.mask_NT, 1.0)
    # A logit of 2 to 4 has steps of 1/64, each layer rounds on its way there, and the library rounds within a
    # rotation too; without any rotation the log-probs are off by more than 2.
    torch.testing.assert_close(out.logp_NT, trained, atol=0.3, rtol=0)
    assert float(out.logp_NT.min()) < -2


# decode: the batch does not matter


@pytest.mark.parametrize("name", MODELS)
def test_rows_at_a_time_do_not_matter(name):
    model = MODELS[name]()
    whole = run(model)
    for rows in (1, 4):
        parts = run(model, rows=rows)
        assert torch.equal(parts.tokens_NT, whole.tokens_NT)
        assert torch.equal(parts.ended_N, whole.ended_N)
        torch.testing.assert_close(parts.logp_NT, whole.logp_NT, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_order_and_neighbours_do_not_matter(name, fast):
    model = MODELS[name]()
    uniforms = torch.rand(len(PROMPTS), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(8))

    @torch.no_grad()
    def decoded(rows):
        prompts = [PROMPTS[row] for row in rows]
        cache = WeightCache(decode_view(model), prompts, 12) if fast else LibraryCache(model, prompts)
        return _decode(cache, uniforms[rows], (STOP,), 1.0)

    whole = decoded([0, 1, 2, 3, 4, 5])
    for rows in ([5, 3, 0, 4, 2, 1], [0, 3], [1], [2, 5]):
        some = decoded(rows)
        assert torch.equal(some.tokens_NT, whole.tokens_NT[rows])
        torch.testing.assert_close(some.logp_NT, whole.logp_NT[rows], atol=1e-5, rtol=0)


def test_the_seed_alone_decides():
    model = gpt2()
    assert torch.equal(run(model, seed=1).tokens_NT, run(model, seed=1).tokens_NT)
    assert not torch.equal(run(model, seed=1).logp_NT, run(model, seed=2).logp_NT)


# decode: stops, masks, compaction


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama_tied"])
def test_many_rows_ending_at_different_times(name, equal, fast):
    """40 rows end at many different steps, so the cache is compacted again and again."""
    model = MODELS[name](vocabulary=9)
    prompts = [[1 + row % 3] + [4] * (0 if equal else row % 5) for row in range(40)]
    stop = (STOP, 2) if equal else (2, 5)  # 0 also fills what is not sampled; it must do no harm
    out = run(model, prompts, 20, stop=stop, fast=fast)
    lengths = out.mask_NT.sum(1)
    assert len(set(lengths.tolist())) >= 6
    for row, (tokens, mask) in enumerate(zip(out.tokens_NT.tolist(), out.mask_NT.tolist(), strict=True)):
        length = int(lengths[row])
        assert mask == [True] * length + [False] * (len(tokens) - length)
        assert not set(tokens[: length - 1]) & set(stop)
        assert bool(out.ended_N[row]) == (tokens[length - 1] in stop)
        assert out.ended_N[row] or length == 20
        assert set(tokens[length:]) <= {0}
        assert (out.logp_NT[row, :length] < 0).all()
    assert out.tokens_NT.shape[1] == int(lengths.max())
    trained = likelihood(model, prompts, out.tokens_NT, out.mask_NT, 1.0)
    torch.testing.assert_close(out.logp_NT, trained, atol=1e-4, rtol=0)


@pytest.mark.parametrize("equal", [True, False])
def test_compaction_changes_nothing(equal):
    """Alone, a row never leaves the cache early; all together, they do so at every eighth."""
    model = gpt_neo(vocabulary=9)
    prompts = [[1 + row % 3] + [4] * (0 if equal else row % 5) for row in range(24)]
    together, alone = (run(model, prompts, 20, stop=(STOP, 2), rows=rows) for rows in (24, 1))
    assert torch.equal(alone.tokens_NT, together.tokens_NT)
    assert torch.equal(alone.mask_NT, together.mask_NT)
    torch.testing.assert_close(alone.logp_NT, together.logp_NT, atol=1e-5, rtol=0)


def test_a_text_that_stops_at_once_is_one_token():
    model = gpt2()
    everything = tuple(range(model.config.vocab_size))
    out = run(model, stop=everything)
    assert out.mask_NT.tolist() == [[True]] * len(PROMPTS)
    assert out.ended_N.all()


def test_nothing_that_stops_runs_to_the_end():
    out = run(gpt2(), stop=(VOCABULARY_END := 22,), length=3)
    lengths = out.mask_NT.sum(1)
    assert (lengths[~out.ended_N] == 3).all()
    assert VOCABULARY_END not in out.tokens_NT[~out.ended_N]
    assert not out.ended_N.all()


def test_one_token_at_most():
    out = run(llama(), length=1)
    assert out.tokens_NT.shape == (len(PROMPTS), 1)
    assert out.mask_NT.all()
    assert out.ended_N.tolist() == (out.tokens_NT[:, 0] == STOP).tolist()


def test_the_context_can_be_filled_to_its_last_position():
    for name in MODELS:
        model = MODELS[name]()
        out = run(model, [[4] * 40, [3]], 24, stop=(22,))
        trained = likelihood(model, [[4] * 40, [3]], out.tokens_NT, out.mask_NT, 1.0)
        torch.testing.assert_close(out.logp_NT, trained, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_first_and_second_tokens_have_the_models_distribution(fast, temperature):
    """All 5 x 5 pairs of a five-token vocabulary against their exact probabilities."""
    model = gpt_neo(vocabulary=5)
    prompt, count = [2, 1, 3, 4, 1, 2], 4000
    out = run(model, [prompt] * count, 2, stop=(), temperature=temperature, fast=fast, rows=count)
    with torch.no_grad():
        first = (model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1)
        texts = torch.tensor([[*prompt, token] for token in range(5)])
        second = (model(texts).logits[:, -1].double() / temperature).softmax(-1)
    pairs = out.tokens_NT[:, 0] * 5 + out.tokens_NT[:, 1]
    exact = (first.unsqueeze(1) * second).flatten()
    assert chi_squared(pairs, exact) > 1e-3
    # The second token depends on the first, and the test sees it.
    independent = (first.unsqueeze(1) * (first @ second)).flatten()
    assert chi_squared(pairs, independent) < 1e-6


# LoRA


@pytest.mark.parametrize("name", MODELS)
def test_the_view_merges_adapters_and_leaves_them_out_when_disabled(name):
    base = MODELS[name]()
    expected = run(base)
    policy = with_lora(MODELS[name]())
    adapted = run(policy)
    assert (adapted.logp_NT[:, 0] - expected.logp_NT[:, 0]).abs().max() > 0.05
    trained = likelihood(policy, PROMPTS, adapted.tokens_NT, adapted.mask_NT, 1.0)
    torch.testing.assert_close(adapted.logp_NT, trained, atol=1e-4, rtol=0)
    library = run(policy, fast=False)
    assert torch.equal(library.tokens_NT, adapted.tokens_NT)
    with policy.disable_adapter():
        disabled = run(policy)
    assert torch.equal(disabled.tokens_NT, expected.tokens_NT)
    assert torch.equal(disabled.logp_NT, expected.logp_NT)
    with Reference(policy).model() as reference:
        assert torch.equal(run(reference).logp_NT, expected.logp_NT)


def test_adapters_merged_into_the_base_count_once():
    policy = with_lora(gpt2())
    before = run(policy)
    policy.merge_adapter()
    after = run(policy)
    assert torch.equal(before.tokens_NT, after.tokens_NT)
    torch.testing.assert_close(before.logp_NT, after.logp_NT, atol=1e-5, rtol=0)


def test_without_the_reordered_head_the_same_is_drawn(monkeypatch):
    """Machines whose torch has no oneDNN take the plain product."""
    monkeypatch.setattr(products, "SMALL", 0)
    model = llama()
    expected = run(model)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    found = run(model)
    assert torch.equal(found.tokens_NT, expected.tokens_NT)
    torch.testing.assert_close(found.logp_NT, expected.logp_NT, atol=1e-5, rtol=0)


def test_sampling_leaves_the_model_as_it_was():
    model = gpt2()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    run(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
