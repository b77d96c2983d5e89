"""Reward models with random weights on the tiny language models, for tests."""

import torch

from talltree import checkpoint
from talltree.models.reward_format import Reading
from talltree.models.reward_model import (
    RewardModel,
    add_reward_lora,
    all_logits,
    end_token,
    fitted_format,
    load_member,
    reading_tokenizer,
    save_reward_model,
    token_ids,
    with_pad,
)

CPU = torch.device("cpu")
PROMPTS = ["w1 w2", "w3", "w1 w2 w3 w4 w5", "w9", ""]
COMPLETIONS = [" w7 w8 w9", " w4 w5 w6 w7 w8 w9 w10 w11", " w2", "", " w6 w6"]


def trained(
    folder, member_count=1, heads=1, eos="none", too_long="refuse", lora=False, max_length=64, how="mean"
):
    """A reward model with random weights on the tiny model in `folder`, scaled on the texts above."""
    tokenizer = reading_tokenizer(str(folder))
    members = []
    end = None
    for number in range(member_count):
        member = load_member(str(folder), heads, number)
        end = end_token(str(folder), member.model, tokenizer) if eos == "append" else None
        with_pad(member.model, tokenizer, end)
        if lora:
            member = add_reward_lora(member, 2, 8.0, number)
            with torch.no_grad():
                for name, parameter in member.body.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(number))
        members.append(member)
    reading = Reading(end, max_length, too_long)
    ids, _ = token_ids(tokenizer, Reading(end, max_length, "truncate"), PROMPTS, COMPLETIONS)
    format = fitted_format(all_logits(members, ids), reading, member_count, how, 0.5)
    assert format is not None
    return RewardModel(tuple(members), tokenizer, format)


def saved(path, model):
    checkpoint.save_folder(path, lambda target: save_reward_model(target, model))
    return path
