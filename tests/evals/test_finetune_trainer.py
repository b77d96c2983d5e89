"""The whole training loop against the library: AutoModelForSequenceClassification, transformers.Trainer."""

import pytest
import torch
from torch.utils.data import Sampler
from transformers import (
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from talltree.evals.classification import Classifier, Encoded, fine_tune, predict
from talltree.evals.finetune_options import FinetuneOptions
from talltree.models.load import load_model

from ..tiny import VOCABULARY, llama, save

ROWS = [
    Encoded(([1 + (3 * i + k) % (VOCABULARY - 1) for k in range(2 + i % 5)],), i % 2, 0) for i in range(28)
]
OPTIONS = FinetuneOptions(learning_rate=1e-2, batch_size=8, max_epochs=3)


class SameOrder(Sampler):
    """Each epoch's order as the loop under test draws it."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self):
        return len(ROWS)

    def __iter__(self):
        return iter(torch.randperm(len(ROWS), generator=self.generator).tolist())


class OrderedTrainer(Trainer):
    def _get_train_sampler(self, *args, **options):
        return SameOrder(12)


def padded(rows):
    width = max(len(row["input_ids"]) for row in rows)
    return {
        "input_ids": torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        ),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


def by_trainer(folder, output, head):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    model.config.pad_token_id = 0
    model.score.weight.data.copy_(head)
    arguments = TrainingArguments(
        output_dir=str(output), learning_rate=OPTIONS.learning_rate, num_train_epochs=OPTIONS.max_epochs,
        per_device_train_batch_size=OPTIONS.batch_size, lr_scheduler_type="linear", adam_beta2=0.95,
        weight_decay=0.0, max_grad_norm=1.0, use_cpu=True, report_to=[], save_strategy="no",
        disable_tqdm=True, remove_unused_columns=False, logging_strategy="no",
    )  # fmt: skip
    data = [{"input_ids": row.ids[0], "label": row.label} for row in ROWS]
    OrderedTrainer(model=model, args=arguments, train_dataset=data, data_collator=padded).train()
    with torch.no_grad():
        return torch.cat([model.eval()(input_ids=torch.tensor([row.ids[0]])).logits for row in ROWS])


@pytest.mark.filterwarnings("ignore")
def test_the_loop_ends_where_the_librarys_trainer_ends(tmp_path) -> None:
    """From one head, in one order; the fitted rows also say when to stop, and the last look is the best."""
    folder = save(tmp_path / "model", llama())
    classifier = Classifier(load_model(str(folder)), 2, 12)
    start = classifier.head.weight.detach().clone()
    before = predict(classifier, ROWS, "float32")
    fitted = fine_tune(classifier, ROWS, ROWS, "accuracy", OPTIONS, 12, lambda line: None)
    assert fitted.best_update == fitted.updates == 12
    ours = predict(classifier, ROWS, "float32")
    theirs = by_trainer(folder, tmp_path / "trainer", start)
    # Adam divides by the root of tiny second moments, so rounding grows over 12 updates.
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)
    assert (ours - before).abs().max() > 0.5
