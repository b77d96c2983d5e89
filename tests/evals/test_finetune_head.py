"""The classifier: which token it reads, what changes nothing, and what training does to it."""

import pytest
import torch
from transformers import GPT2ForSequenceClassification, LlamaForSequenceClassification

from talltree.errors import ContractError, ModelError
from talltree.evals.classification import (
    Classifier,
    Encoded,
    fine_tune,
    logits_of,
    predict,
    tokens_of,
)
from talltree.evals.classification_items import Item, Text
from talltree.evals.finetune_options import FinetuneOptions
from talltree.models.policy import add_lora, trainable

from ..tiny import MODELS, gpt2, llama, tokenizer

TEXTS = [[3, 7, 1, 9], [5], [11, 2, 2, 8, 4, 6, 21], [6, 0, 0]]


def encoded(ids, label=0):
    return Encoded((list(ids),), label, 0)


def quiet(line):
    pass


@pytest.mark.parametrize("family", sorted(MODELS))
def test_the_head_reads_the_last_token_of_each_text_alone(family) -> None:
    """Against one unpadded text at a time through the whole model, its head applied by hand."""
    model = MODELS[family]()
    classifier = Classifier(model, 3, seed=1)
    found = logits_of(classifier, [encoded(ids) for ids in TEXTS])
    for ids, row in zip(TEXTS, found, strict=True):
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        by_hand = classifier.head.weight @ output.hidden_states[-1][0, -1]
        torch.testing.assert_close(row, by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(MODELS))
def test_what_stands_in_the_padding_changes_nothing(family) -> None:
    classifier = Classifier(MODELS[family](), 2, seed=1)
    length_N = torch.tensor([len(ids) for ids in TEXTS])
    zeros, others = torch.zeros(4, 9, dtype=torch.long), torch.full((4, 9), 13)
    for row, ids in enumerate(TEXTS):
        zeros[row, : len(ids)] = others[row, : len(ids)] = torch.tensor(ids)
    assert torch.equal(classifier(zeros, length_N), classifier(others, length_N))
    # And the planted defect, one token too far, is not the same.
    assert not torch.allclose(classifier(zeros, length_N + 1), classifier(others, length_N + 1))


@pytest.mark.parametrize(
    ("made", "library"), [(gpt2, GPT2ForSequenceClassification), (llama, LlamaForSequenceClassification)]
)
def test_equals_the_librarys_classifier_except_where_a_text_ends_in_pad(made, library) -> None:
    model = made()
    classifier = Classifier(model, 2, seed=1)
    other = library(model.config).eval()
    other.base_model.load_state_dict(model.base_model.state_dict())
    other.score.weight.data.copy_(classifier.head.weight)
    other.config.pad_token_id = 0
    with torch.no_grad():
        ours = predict(classifier, [encoded(ids) for ids in TEXTS], "float32")
        theirs = torch.stack([other(input_ids=torch.tensor([ids + [0] * 2])).logits[0] for ids in TEXTS])
    torch.testing.assert_close(ours[:3], theirs[:3], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[3], theirs[3], atol=1e-3)  # the text [6, 0, 0]: PAD is a word of it


def test_choices_are_scored_one_by_one_and_compared() -> None:
    classifier = Classifier(llama(), 1, seed=1)
    both = logits_of(classifier, [Encoded(([1, 2], [3, 4, 5]), 0, 0), Encoded(([6], [7, 8]), 1, 0)])
    assert both.shape == (2, 2)
    for texts, row in zip([([1, 2], [3, 4, 5]), ([6], [7, 8])], both, strict=True):
        for ids, value in zip(texts, row, strict=True):
            torch.testing.assert_close(
                value, logits_of(classifier, [encoded(ids)])[0, 0], atol=1e-5, rtol=1e-5
            )


def test_predictions_come_in_the_order_of_the_items_whatever_their_lengths() -> None:
    classifier = Classifier(llama(), 2, seed=1)
    items = [encoded([1 + i % 20] * (1 + (7 * i) % 31)) for i in range(90)]
    together = predict(classifier, items, "float32")
    alone = torch.cat([predict(classifier, [item], "float32") for item in items])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def separable(count, shift=0):
    """Label 1 where the first word is 8 and not 3, which the last token can only know by attention."""
    rows = []
    for i in range(shift, shift + count):
        label = int(i % 3 > 0)
        rows.append(encoded([3 + 5 * label, 10 + i % 5, 15 + i % 7], label))
    return rows


def tuned(options, seed=12, made=llama, fit=None, heard=quiet, **model_options):
    classifier = Classifier(made(**model_options), 2, seed)
    fitted = fine_tune(classifier, fit or separable(48), separable(12, 3), "accuracy", options, seed, heard)
    return classifier, fitted


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama_tied"])
def test_a_separable_task_is_learnt_without_an_error(family) -> None:
    options = FinetuneOptions(learning_rate=5e-3, batch_size=12, max_epochs=10, patience=20)
    classifier, fitted = tuned(options, made=MODELS[family], fit=separable(72))
    items = separable(30, 80)
    before = predict(Classifier(MODELS[family](), 2, 12), items, "float32").argmax(1).tolist()
    after = predict(classifier, items, "float32").argmax(1).tolist()
    labels = [item.label for item in items]
    assert after == labels
    assert before != labels
    assert fitted.updates == 60


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    options = FinetuneOptions(learning_rate=1e-3, batch_size=8, max_epochs=2)
    first, second, other = (tuned(options, seed, dropout=0.5)[0] for seed in (12, 12, 13))
    ours, again, others = (predict(each, separable(9), "float32") for each in (first, second, other))
    assert torch.equal(ours, again)
    assert not torch.equal(ours, others)


def test_the_best_measurement_is_what_is_kept_and_patience_ends_training() -> None:
    """A rate so high that training gets worse: what is left behaves as at the best update, not the last."""
    looks: list[str] = []
    options = FinetuneOptions(learning_rate=0.3, batch_size=8, max_epochs=10, patience=2, eval_every=1)
    classifier, fitted = tuned(options, heard=looks.append)
    keys = [(look.measure, -look.loss) for look in fitted.history]
    best = keys.index(max(keys))
    assert fitted.best_update == fitted.history[best].update
    assert len(looks) == len(fitted.history) == best + 1 + 2  # two looks without a new best
    assert fitted.updates == fitted.history[-1].update < 60
    stop = separable(12, 3)
    right = predict(classifier, stop, "float32").argmax(1) == torch.tensor([item.label for item in stop])
    assert right.float().mean().item() == pytest.approx(fitted.history[best].measure)


def test_the_rate_falls_update_by_update_and_is_not_0_at_first(monkeypatch) -> None:
    """Six updates in two epochs: 6/6, 5/6, ... 1/6 of the peak."""
    rates: list[float] = []
    from talltree.evals import classification

    kept = classification.set_learning_rate
    monkeypatch.setattr(
        classification,
        "set_learning_rate",
        lambda optimizer, rate: (rates.append(rate), kept(optimizer, rate)),
    )
    tuned(FinetuneOptions(learning_rate=6e-3, batch_size=16, max_epochs=2))
    assert rates == pytest.approx([6e-3, 5e-3, 4e-3, 3e-3, 2e-3, 1e-3])


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(monkeypatch) -> None:
    from talltree.models import score

    options = FinetuneOptions(learning_rate=1e-3, batch_size=16, max_epochs=1)
    whole, _ = tuned(options)
    monkeypatch.setattr(score, "TOKENS_AT_A_TIME", {"cpu": 12})
    parts, _ = tuned(options)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)  # Adam divides by tiny gradients


def test_lora_trains_adapters_and_head_alone() -> None:
    base = gpt2()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    classifier = Classifier(add_lora(base, 2, 4.0, 0), 2, 1)
    assert all("lora_" in name or name == "head.weight" for name in trainable(classifier))
    fine_tune(classifier, separable(16), separable(6, 3), "accuracy", FinetuneOptions(max_epochs=1), 1, quiet)
    after = {name.replace(".base_layer", ""): value for name, value in base.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_an_untied_vocabulary_head_is_left_alone() -> None:
    names = set(trainable(Classifier(llama(tied=False), 2, 1)))
    assert "model.model.embed_tokens.weight" in names
    assert "model.lm_head.weight" not in names


def test_infinite_weights_end_training_in_one_line() -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(ContractError, match="update 1: the gradient is nan; give a lower learning_rate"):
        fine_tune(
            Classifier(model, 2, 1), separable(8), separable(4), "accuracy", FinetuneOptions(), 1, quiet
        )


def test_a_model_that_is_only_a_body_is_refused() -> None:
    with pytest.raises(ModelError, match="LlamaModel has no body apart from its vocabulary head"):
        Classifier(llama().model, 2, 1)


def test_texts_are_tokenised_whole_or_cut_to_what_fits() -> None:
    long = Item("train:0", (Text(("w1 w2 w3 w4 w5", "w6 w7")),), 1, "a")
    short = Item("train:1", (Text(("w8",)),), 0, "b")
    found = tokens_of(tokenizer(), [long, short], 5)
    assert found == [Encoded(([1, 2, 3, 6, 7],), 1, 2), Encoded(([8],), 0, 0)]
