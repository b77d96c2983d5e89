"""How much memory a training step will need, measured on the model where it can be; keeping it between steps,
and running out of it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from talltree.errors import RunError
from talltree.maths.head import chunk_rows
from talltree.models.score import vocabulary_head
from talltree.models.views import base_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIB = 2**30
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of the C library's mallopt."""


class Need(NamedTuple):
    """Bytes that a step takes on top of the loaded models: all of `standing`, then sampling or training."""

    standing: int  # gradients and the optimiser's moments
    sampling: int
    training: int

    @property
    def total(self) -> int:
        """Bytes at the fuller of the two moments."""
        return self.standing + max(self.sampling, self.training)


def standing_bytes(parameters: list[torch.nn.Parameter], moments: int) -> int:
    """A gradient and `moments` numbers of the optimiser for each trainable number."""
    return sum((1 + moments) * p.numel() * p.element_size() for p in parameters)


def sampling_bytes(model: PreTrainedModel, rows: int, length: int) -> int:
    """Sampling `rows` texts of `length` tokens: keys and values, twice while ended rows are dropped, the
    weights reordered, and the logits of one position with what is made of them.
    """
    config = base_model(model).config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    heads = getattr(config, "num_attention_heads", 1)  # a model without attention keeps less than is said
    width = getattr(config, "head_dim", None) or hidden // heads
    kept = 2 * layers * (getattr(config, "num_key_value_heads", None) or heads) * width
    weights = sum(p.numel() for p in model.parameters())
    return 4 * (2 * rows * length * kept + weights + 3 * rows * config.vocab_size)


def activation_bytes(model: PreTrainedModel, length: int) -> int:
    """What autograd keeps of one text of `length` tokens below the vocabulary head, by one forward pass."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.zeros(1, length, dtype=torch.long, device=model.device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        base_model(model).base_model(input_ids=tokens, use_cache=False)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for place, size in kept.items() if place not in weights)


def training_bytes(model: PreTrainedModel, texts: int, length: int, fast: bool) -> int:
    """A forward and backward pass over `texts` texts of `length` tokens.

    What autograd keeps and half as much for gradients on their way; the gradients of head and embedding; and
    the logits with what is made of them: three times a chunk of the fast head, or eleven times all of them:
    eight at once, and what kept memory is too scattered to give back.
    """
    config = base_model(model).config.get_text_config()
    vocabulary, hidden = config.vocab_size, config.hidden_size
    logits = texts * length * vocabulary
    chunked = fast and vocabulary_head(model) is not None
    logits = 3 * min(chunk_rows(vocabulary) * vocabulary, logits) if chunked else 11 * logits
    return texts * activation_bytes(model, length) * 3 // 2 + 4 * (logits + 2 * vocabulary * hidden)


def body_training_bytes(body: PreTrainedModel, texts: int, length: int) -> int:
    """A forward and backward pass of a critic's body: `training_bytes` without a head and its logits."""
    config = body.config.get_text_config()
    return texts * activation_bytes(body, length) * 3 // 2 + 4 * config.vocab_size * config.hidden_size


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free for the asking: the GPU's with what torch holds unused, Linux's MemAvailable.

    None where the machine does not say.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that an allocation failed; a CPU's has no type of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def when_out_of_memory(advice: Callable[[], str]) -> Iterator[None]:
    """Raises RunError, with what `advice` gives then, in place of an error that says an allocation failed."""
    try:
        yield
    except (RuntimeError, MemoryError) as failure:
        if not out_of_memory(failure):
            raise
        raise RunError(advice()) from failure


def keep_freed_memory(device: torch.device) -> None:
    """Asks the C library not to hand a step's memory back before the next step asks for it again.

    Every page handed back costs a fault and a clearing. A step's peak rises by a few percent, or by up to a
    third without the fast head, and up to 2 GiB that are free stay with the process. Nothing happens where
    there is no glibc.
    """
    if device.type == "cpu" and sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_TRIM_THRESHOLD, 2 * GIB - 1)
            mallopt(M_MMAP_THRESHOLD, GIB)
