"""The training state of a checkpoint: every tensor and number back bit for bit, and nothing that runs."""

import math
from collections import OrderedDict

import pytest

from talltree import checkpoint
from talltree.errors import RunError


def round_trip(tree, folder):
    folder.mkdir(exist_ok=True)
    checkpoint.save_state(folder, tree)
    return checkpoint.load_state(folder)


def bits(tensor):
    import torch

    return (
        tensor.dtype,
        tuple(tensor.shape),
        tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8).tolist(),
    )


def assert_same(first, second):
    import torch

    if isinstance(first, torch.Tensor):
        assert bits(first.detach()) == bits(second)
    elif isinstance(first, dict):
        assert list(first) == list(second) and [type(key) for key in first] == [type(key) for key in second]
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert type(first) is type(second) and len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert type(first) is type(second) and repr(first) == repr(second)


def test_scalars_and_structure_come_back_exactly(tmp_path):
    tree = {
        "floats": [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.pi, math.inf, -math.inf, math.nan],
        "ints": (0, -1, 2**63, 10**40),
        "others": [None, True, False, "", "æøå 🌲 \n \ud800", "NaN"],
        0: {1: {"1": "text key", 1: "int key"}, "dict": {"float": "1.0"}, "tensor": {"tensor": "state/0"}},
        "nested": [[], (), {}, ((),), [[{}]]],
    }
    assert_same(tree, round_trip(tree, tmp_path))
    for leaf in (None, 3, 0.5, "x", [], {}):
        assert_same(leaf, round_trip(leaf, tmp_path))


def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path):
    import torch

    generator = torch.Generator().manual_seed(0)
    dtypes = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
    ]
    dtypes += [torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.complex64]
    dtypes += [torch.float8_e4m3fn, torch.float8_e5m2]
    raw = torch.randint(0, 256, (8, 16), generator=generator, dtype=torch.uint8)  # NaN patterns included
    tree = {str(dtype): (raw % 2).bool() if dtype == torch.bool else raw.view(dtype) for dtype in dtypes}
    base = torch.arange(24.0).reshape(4, 6)
    tree |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    assert_same(tree, round_trip(tree, tmp_path))
    assert round_trip(tree, tmp_path)["strided"].tolist() == [[1.0, 4.0], [13.0, 16.0]]


def test_tensors_that_share_memory(tmp_path):
    import torch

    base = torch.arange(6.0)
    tree = {
        "early": base[1:3],
        "head": base,
        "tied": base.detach(),
        "part": base[2:4],
        "shaped": base.view(2, 3),
        0: base[:1],
        "0": base[:2],
    }
    back = round_trip(tree, tmp_path)
    assert_same(tree, back)
    assert back["head"] is back["tied"]
    assert back["head"].data_ptr() != back["shaped"].data_ptr()


def test_a_tensor_alone_in_its_memory_is_written_from_there(tmp_path, monkeypatch):
    """An optimiser's moments are twice the model: a copy of them would be a run's peak of memory."""
    import torch

    written = {}
    monkeypatch.setattr("safetensors.torch.save_file", lambda tensors, path: written.update(tensors))
    moment, part = torch.arange(6.0), torch.arange(6.0)[2:4]
    checkpoint.save_state(tmp_path, {"moment": moment, "again": moment.view(2, 3), "part": part})
    assert written["state/moment"].data_ptr() == moment.data_ptr()
    assert written["state/again"].data_ptr() != moment.data_ptr()
    assert written["state/part"].data_ptr() != part.data_ptr()


def test_int_and_text_keys_of_one_dict_do_not_meet(tmp_path):
    import torch

    back = round_trip(
        {1: torch.tensor(1), "1": torch.tensor(2), "a/b": torch.tensor(3), "a": {"b": torch.tensor(4)}},
        tmp_path,
    )
    assert [back[1].item(), back["1"].item(), back["a/b"].item(), back["a"]["b"].item()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "value", [{1, 2}, b"bytes", object(), 1 + 2j, {(1, 2): 3}, {1.5: 3}, {True: 3}, {None: 1}]
)
def test_anything_else_is_refused_by_its_place(tmp_path, value):
    with pytest.raises(TypeError, match="state/a/0"):
        checkpoint.save_state(tmp_path, {"a": [value]})
    assert list(tmp_path.iterdir()) == []


def train(model, optimiser, scheduler, generator, steps):
    import torch

    for _ in range(steps):
        loss = (model(torch.randn(4, 3, generator=generator)) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        scheduler.step()


def objects():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    optimiser = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "lr": 0.1},
            {"params": model[2].parameters(), "weight_decay": 0.3},
        ],
        amsgrad=True,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 7)
    return model, optimiser, scheduler, torch.Generator().manual_seed(5)


def test_a_training_state_resumes_bit_for_bit(tmp_path):
    model, optimiser, scheduler, generator = objects()
    train(model, optimiser, scheduler, generator, 3)
    tree = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "scheduler": scheduler.state_dict(),
        "generator": generator.get_state(),
        "ordered": OrderedDict(a=1),
    }
    assert set(tree["optimiser"]["state"]) == {0, 1, 2, 3}
    back = round_trip(tree, tmp_path)
    assert_same(tree, back)
    train(model, optimiser, scheduler, generator, 3)

    other, other_optimiser, other_scheduler, other_generator = objects()
    other.load_state_dict(back["model"])
    other_optimiser.load_state_dict(back["optimiser"])
    other_scheduler.load_state_dict(back["scheduler"])
    other_generator.set_state(back["generator"])
    train(other, other_optimiser, other_scheduler, other_generator, 3)
    assert_same(dict(model.state_dict()), dict(other.state_dict()))
    assert_same(optimiser.state_dict(), other_optimiser.state_dict())
    assert_same(scheduler.state_dict(), other_scheduler.state_dict())
    assert bits(generator.get_state()) == bits(other_generator.get_state())


def test_a_folder_without_state_is_named(tmp_path):
    with pytest.raises(RunError, match="no training state"):
        checkpoint.load_state(tmp_path)
    checkpoint.save_state(tmp_path, {})
    (tmp_path / "state.safetensors").unlink()
    with pytest.raises(RunError, match="no training state"):
        checkpoint.load_state(tmp_path)


def test_a_later_format_is_refused(tmp_path):
    checkpoint.save_state(tmp_path, {})
    (tmp_path / "state.json").write_text('{"format": 2, "state": {"dict": []}}')
    with pytest.raises(RunError, match="format 2; this version reads format 1"):
        checkpoint.load_state(tmp_path)


def test_no_file_of_a_state_is_a_pickle(tmp_path):
    import torch

    checkpoint.save_state(tmp_path, {"w": torch.ones(3)})
    assert {path.name for path in tmp_path.iterdir()} == {"state.safetensors", "state.json"}
