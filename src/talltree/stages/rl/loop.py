"""The loop of the rl stage: load, preflight, measure before, train, measure after. Read it top to bottom."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from talltree import checkpoint, rewards
from talltree.algorithms import Algorithm, algorithm
from talltree.config import from_dict, to_dict
from talltree.console import Progress, Story
from talltree.data.prompts import literal_prompts, read_prompts, split_prompts
from talltree.errors import ConfigError, ContractError, RunError, TallTreeError
from talltree.evals.diversity import diversity
from talltree.evals.samples import summarise
from talltree.interrupt import Interrupts
from talltree.maths.advantages import MovingBaseline
from talltree.maths.controllers import KLController, updated
from talltree.maths.kl import blog_beta_from_coef, k1, k3, kl_loss, sequence_kl, token_kl
from talltree.models.load import load_model, load_tokenizer, save_model, stop_ids
from talltree.models.optim import build_optimizer, schedule
from talltree.models.policy import Reference, add_lora, trainable
from talltree.preflight import BFLOAT16_TOLERANCE, TOLERANCE, preflight, require
from talltree.rollout import collect, encode_prompts, sample_columns, score
from talltree.run import Run, environment
from talltree.stages.rl.config import Config
from talltree.stages.rl.update import Figures, NonFinite, Passes, update
from talltree.stops import is_candidate, stop_reason, window_reward
from talltree.types import Prompt, Reward, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXIT_STATUS = {"SIGINT": 130, "SIGTERM": 143}
PREFLIGHT_SAMPLES = 8


class Parts(NamedTuple):
    """What a run is made of and does not change shape: everything but the counters of State."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: Reference
    reference_sha256: str
    reward: Reward
    prompts: list[Prompt]
    held_out: list[Prompt]
    ids_of: dict[str, list[int]]
    stop_ids: tuple[int, ...]
    algorithm: Algorithm
    optimizer: torch.optim.Optimizer
    data_sha256: dict[str, str]


@dataclasses.dataclass
class State:
    """What changes from step to step, besides weights and optimiser; all of it is in a checkpoint."""

    step: int
    updates: int
    controller: KLController
    baseline: MovingBaseline
    generator: torch.Generator
    best_step: int | None = None
    best_reward: float | None = None


def run(config: Config) -> None:
    """One run from `config`, or the rest of the run that `config.resume` names.

    Raises TallTreeError for whatever the user can mend. Exits with 130 or 143 after SIGINT or SIGTERM.
    """
    say: Callable[[str], None] = lambda text: print(text, flush=True)  # noqa: E731
    if config.resume is not None:
        folder, config = config.resume, _resumed_config(config)
        parts = _load(config)
        with Run.resume(folder, say) as run_folder:
            state = _restore(config, parts, run_folder, say)
            _train_and_finish(config, parts, state, run_folder)
        return
    started = time.monotonic()
    parts = _load(config)
    beta = blog_beta_from_coef(config.coef)
    say(f"{config.algorithm} on {config.model_name_or_path}, reward {config.reward}; "
        f"KL coefficient {config.coef:.4g} per nat (beta {beta:.4g} in the study's unit); device {_device(config)}")  # fmt: skip
    state = _fresh_state(config)
    with Run.create(config.output_dir, to_dict(config), environment(parts.data_sha256)) as run_folder:
        checks = _preflight(config, parts, say)
        before, _ = _measure(config, parts, state, run_folder.folder / "before.jsonl")
        run_folder.write_summary({
            "stage": "rl",
            "model": config.model_name_or_path,
            "algorithm": config.algorithm,
            "reward": config.reward,
            "kl_coef": config.coef,
            "preflight": [check._asdict() for check in checks],
            "before": before,
            "stop_reason": None,
            "wall_time_seconds": time.monotonic() - started,
        })  # fmt: skip
        require(checks)
        _save(config, parts, state, run_folder)
        _train_and_finish(config, parts, state, run_folder)


# Loading


def _load(config: Config) -> Parts:
    reward = rewards.load(config.reward)
    if config.prompts is None:
        prompts, data = literal_prompts([config.prompt]), {}
    else:
        prompts = read_prompts(Path(config.prompts))
        data = {Path(config.prompts).name: checkpoint.file_sha256(Path(config.prompts))}
    split = split_prompts(prompts, config.held_out, config.seed)
    policy = load_model(config.model_name_or_path)
    tokenizer = load_tokenizer(config.model_name_or_path)
    stops = stop_ids(policy, tokenizer)
    ids_of = encode_prompts(tokenizer, policy, prompts, config.max_completion_length)
    policy.to(_device(config))
    if config.lora_r is not None:
        policy = add_lora(policy, config.lora_r, config.lora_alpha or 2.0 * config.lora_r, config.seed)
    reference = Reference(policy)
    with reference.model() as model:
        fingerprint = _sha256(model)
    return Parts(
        policy, tokenizer, reference, fingerprint, reward, split.train, split.held_out, ids_of, stops,
        _algorithm(config), build_optimizer(config.optim, trainable(policy).values(), config.learning_rate,
                                            config.weight_decay), data,
    )  # fmt: skip


def _algorithm(config: Config) -> Algorithm:
    from talltree.maths.losses import clipped

    row = algorithm(config.algorithm, **config.algorithm_options())
    clip = _clip(config)
    return row if clip is None or config.algorithm == "grpo" else row._replace(surrogate=clipped(*clip))


def _clip(config: Config) -> tuple[float, float] | None:
    if config.epsilon is None and config.algorithm != "grpo":
        return None
    low = 0.2 if config.epsilon is None else config.epsilon
    return low, low if config.epsilon_high is None else config.epsilon_high


def _device(config: Config) -> torch.device:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = found if config.device == "auto" else config.device
    if device == "cuda" and found == "cpu":
        raise ConfigError("device cuda is asked for, but torch sees no GPU here; use device auto or cpu")
    if config.dtype == "bfloat16" and device == "cpu":
        raise ConfigError("dtype bfloat16 gains nothing on this CPU; use float32, or a GPU")
    return torch.device(device)


def _sha256(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# Before and after


def _preflight(config: Config, parts: Parts, say: Callable[[str], None]) -> list[Any]:
    generator = torch.Generator().manual_seed(config.seed + 1)
    prompts = sorted((parts.prompts * PREFLIGHT_SAMPLES)[:PREFLIGHT_SAMPLES], key=lambda prompt: prompt.text)
    rollout = _collect(config, parts, prompts, generator)
    # A mistake in the reward shows now, not after the first minutes.
    scored = _score(config, parts, rollout, config.coef)
    bfloat16 = config.dtype == "bfloat16"
    checks = preflight(
        parts.policy,
        parts.reference,
        rollout,
        temperature=config.temperature,
        stop_ids=parts.stop_ids,
        max_completion_length=config.max_completion_length,
        tolerance=BFLOAT16_TOLERANCE if bfloat16 else TOLERANCE,
    )
    low, high = float(scored.reward_N.min()), float(scored.reward_N.max())
    from talltree.preflight import Check

    checks.append(
        Check("reward over 8 samples", f"{low:g} to {high:g}", "not constant", "note" if low == high else "ok")
    )
    width = max(len(check.name) for check in checks)
    say("preflight")
    for check in checks:
        say(f"  {check.status:<6}  {check.name:<{width}}  {check.value}  ({check.bound})")
    return checks


def _measure(config: Config, parts: Parts, state: State, rows: Path) -> tuple[dict[str, Any], Scored]:
    """Fresh samples from held-out prompts; a seed of their own pairs the draws before and after."""
    count = config.eval_samples
    prompts = sorted((parts.held_out * count)[:count], key=lambda prompt: prompt.text)
    rollout = _collect(config, parts, prompts, torch.Generator().manual_seed(config.seed + 2))
    scored = _score(config, parts, rollout, state.controller.coef)
    columns = sample_columns(scored, torch.zeros_like(rollout.logp_NT), _spans(parts))
    names = [name for name in columns if name not in ("prompt_ids", "completion_ids", "advantage")]
    lines = [json.dumps({name: columns[name][i] for name in names}, ensure_ascii=False) for i in range(count)]
    checkpoint.write_file(rows, ("\n".join(lines) + "\n").encode())
    return summarise(scored), scored


def _collect(config: Config, parts: Parts, prompts: list[Prompt], generator: torch.Generator) -> Any:
    return collect(
        parts.policy,
        parts.tokenizer,
        prompts,
        parts.ids_of,
        max_completion_length=config.max_completion_length,
        stop_ids=parts.stop_ids,
        temperature=config.temperature,
        generator=generator,
    )


def _score(config: Config, parts: Parts, rollout: Any, coef: float) -> Scored:
    return score(
        rollout,
        parts.reward,
        parts.reference,
        temperature=config.temperature,
        coef=coef,
        kl_in_reward=parts.algorithm.kl_in == "reward",
    )


def _spans(parts: Parts) -> Callable[[str, str], list[tuple[int, int]]]:
    return lambda prompt, completion: rewards.spans(parts.reward, prompt, completion)


# Training


def _train_and_finish(config: Config, parts: Parts, state: State, folder: Run) -> None:
    started = time.monotonic()
    reason, failure = f"all {config.steps} steps made", None
    rows = folder.metrics()
    with Interrupts() as interrupts, Progress(config.steps) as progress:
        while state.step < config.steps:
            try:
                row, story = _step(config, parts, state, folder)
            except NonFinite as error:
                failure = ContractError(f"stopped at step {state.step + 1}: {error}; the weights are those before it")
                reason = str(failure)
                break
            except TallTreeError:
                # The step has changed nothing yet, so the work so far is worth keeping as it is.
                _save_if_new(config, parts, state, folder)
                raise
            rows.append(row)
            progress.update(row, story)
            stopped = stop_reason(
                rows,
                kl_ceiling=config.stop.kl_ceiling,
                min_unique=config.stop.min_unique,
                min_distinct_2=config.stop.min_distinct_2,
                constant_steps=config.stop.constant_steps,
                patience=config.stop.patience,
            )
            is_last = stopped is not None or state.step == config.steps
            if state.step % config.checkpoint_every == 0 or is_last or interrupts.requested:
                _judge(config, state, rows)
                _save(config, parts, state, folder)
            if interrupts.requested:
                progress.say(f"{interrupts.requested}: saved step {state.step}; continue with "
                             f"talltree rl --resume {folder.folder}")  # fmt: skip
                _add_time(folder, started)
                raise SystemExit(EXIT_STATUS[interrupts.requested])
            if stopped is not None:
                reason = stopped
                break
    _finish(config, parts, state, folder, reason, started)
    if failure is not None:
        raise failure


def _step(config: Config, parts: Parts, state: State, folder: Run) -> tuple[dict[str, Any], Story]:
    """One step: rollout, rewards, advantages, updates; logged and stored. Changes nothing if scoring fails."""
    step = state.step + 1
    before = state.generator.get_state()
    clock = [time.monotonic()]
    rollout = _collect(config, parts, _prompts(config, parts, step), state.generator)
    clock.append(time.monotonic())
    coef = state.controller.coef
    try:
        scored = _score(config, parts, rollout, coef)
    except TallTreeError:
        state.generator.set_state(before)
        raise
    mask_NT = rollout.completion_mask_NT
    advantage_NT, baseline = parts.algorithm.advantage(
        scored.token_reward_NT, mask_NT, scored.scored_N, config.num_generations, state.baseline
    )
    clock.append(time.monotonic())
    if not torch.isfinite(rollout.logp_NT).all() or not torch.isfinite(scored.ref_logp_NT).all():
        raise NonFinite("non-finite log-prob of a sample")

    total = config.steps * config.num_iterations * config.num_mini_batches

    def next_learning_rate() -> float:
        factor = schedule(config.lr_scheduler_type, state.updates, total, config.warmup_steps)
        state.updates += 1
        return config.learning_rate * factor

    figures = update(
        parts.policy,
        parts.optimizer,
        parts.algorithm,
        scored,
        advantage_NT,
        passes=Passes(
            config.num_iterations,
            config.num_mini_batches,
            config.gradient_accumulation_steps,
            _clip(config),
            config.max_grad_norm,
            config.dtype == "bfloat16",
        ),
        temperature=config.temperature,
        kl_coef=coef,
        kl_loss=kl_loss(config.kl.loss),
        next_learning_rate=next_learning_rate,
        generator=state.generator,
    )
    clock.append(time.monotonic())
    row = _metrics(config, scored, advantage_NT, figures, step, coef, clock)
    columns = sample_columns(scored, advantage_NT, _spans(parts))
    folder.add_samples(step, columns)
    folder.log(row)
    state.step = step
    state.baseline = baseline
    state.controller = updated(state.controller, row["kl/sequence"], config.batch_size)
    best = max(range(config.batch_size), key=lambda i: float(scored.reward_N[i]))
    return row, Story(rollout.prompts[best].text, rollout.completions[best], columns["spans"][best])  # type: ignore[arg-type]


def _prompts(config: Config, parts: Parts, step: int) -> list[Prompt]:
    """The groups of a step: prompts in an order shuffled anew in each pass over them, from seed and step alone."""
    groups, count = config.batch_size // config.num_generations, len(parts.prompts)
    chosen = []
    for place in range((step - 1) * groups, step * groups):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + place // count)
        order = torch.randperm(count, generator=generator)
        chosen.append(parts.prompts[int(order[place % count])])
    return [prompt for prompt in chosen for _ in range(config.num_generations)]


def _metrics(
    config: Config, scored: Scored, advantage_NT: Tensor, figures: Figures, step: int, coef: float, clock: list[float]
) -> dict[str, Any]:
    rollout = scored.rollout
    mask_NT, ref_logp_NT = rollout.completion_mask_NT, scored.ref_logp_NT
    reward = scored.reward_N[scored.scored_N].tolist()
    tokens = int(mask_NT.sum())
    groups = [g for g in scored.reward_N.view(-1, config.num_generations).tolist() if len(set(g)) == 1]
    advantage = ((advantage_NT * mask_NT).sum(1) / mask_NT.sum(1)).tolist()
    varied = diversity(rollout.completions)
    components = {
        f"reward/{name}": statistics.fmean(value for value in values if value is not None)
        for name, values in scored.components.items()
        if len(scored.components) > 1 and any(value is not None for value in values)
    }
    return {
        "step": step,
        "episodes": step * config.batch_size,
        "reward/mean": statistics.fmean(reward),
        "reward/std": statistics.stdev(reward) if len(reward) > 1 else 0.0,
        "reward/max": max(reward),
        **components,
        "kl/sequence": float(sequence_kl(k1(rollout.logp_NT, ref_logp_NT), mask_NT).mean()),
        "kl/token": float(token_kl(k1(rollout.logp_NT, ref_logp_NT), mask_NT)),
        "kl/k3": float(token_kl(k3(rollout.logp_NT, ref_logp_NT), mask_NT)),
        "kl/coef": coef,
        "policy/entropy": figures.entropy,
        "policy/loss": figures.loss,
        "policy/grad_norm": figures.grad_norm,
        "policy/ratio_mean": figures.ratio_mean,
        "policy/clip_share": figures.clip_share,
        "policy/learning_rate": figures.learning_rate,
        "completion/length": tokens / len(mask_NT),
        "completion/ended": float(rollout.ended_N.float().mean()),
        "diversity/distinct_1": varied.distinct_1,
        "diversity/distinct_2": varied.distinct_2,
        "diversity/unique": varied.unique,
        "groups/zero_variance": len(groups) * config.num_generations / config.batch_size,
        "advantage/std": statistics.stdev(advantage) if len(advantage) > 1 else 0.0,
        "time/sample": clock[1] - clock[0],
        "time/score": clock[2] - clock[1],
        "time/train": clock[3] - clock[2],
        "time/step": clock[3] - clock[0],
        "time/tokens_per_second": tokens / (clock[3] - clock[0]),
    }


# Checkpoints, resume, end


def _fresh_state(config: Config) -> State:
    controller = KLController(config.coef, config.kl.target, config.kl.horizon)
    return State(0, 0, controller, MovingBaseline(), torch.Generator().manual_seed(config.seed))


def _judge(config: Config, state: State, rows: list[dict[str, Any]]) -> None:
    """Remembers the step that is about to be saved if it is the best within the bounds of `best`."""
    window = rows[-config.best.window :]
    bounds = {"min_distinct_2": config.best.min_distinct_2, "min_unique": config.best.min_unique}
    if not is_candidate(window, rows[0], max_kl=config.best.max_kl, **bounds):
        return
    reward = window_reward(window)
    if state.best_reward is None or reward > state.best_reward:
        state.best_step, state.best_reward = state.step, reward


def _save(config: Config, parts: Parts, state: State, folder: Run) -> None:
    def write(target: Path) -> None:
        parts.policy.save_pretrained(target, safe_serialization=True)
        parts.tokenizer.save_pretrained(target)
        tree = {
            "step": state.step,
            "updates": state.updates,
            "controller": list(state.controller),
            "baseline": list(state.baseline),
            "generator": state.generator.get_state(),
            "best_step": state.best_step,
            "best_reward": state.best_reward,
            "reference_sha256": parts.reference_sha256,
            "optimizer": parts.optimizer.state_dict(),
            "adapters": trainable(parts.policy) if config.lora_r is not None else {},
        }
        checkpoint.save_state(target, tree)

    protect = () if state.best_step is None else (state.best_step,)
    folder.save_checkpoint(state.step, write, config.keep_checkpoints, protect)


def _save_if_new(config: Config, parts: Parts, state: State, folder: Run) -> None:
    if not (folder.checkpoints / f"step-{state.step}").exists():
        _save(config, parts, state, folder)


def _resumed_config(asked: Config) -> Config:
    """The config that the run was started with. Raises ConfigError where the command asks for something else."""
    folder = str(asked.resume)
    config = from_dict(Config, Run.open(folder).config)
    for field in dataclasses.fields(Config):
        value = getattr(asked, field.name)
        if field.name not in ("resume", "output_dir") and value != field.default and value != getattr(config, field.name):
            raise ConfigError(f"--resume continues {folder} with its own config, but {field.name} {value} is asked for; "
                              f"leave it out, or start a new run")  # fmt: skip
    return config


def _restore(config: Config, parts: Parts, folder: Run, say: Callable[[str], None]) -> State:
    if (folder.final / "config.json").is_file():
        raise RunError(f"{folder.folder} has ended ({folder.summary()['stop_reason']}); nothing is left to resume")
    step, path = folder.latest_checkpoint(say)
    tree = checkpoint.load_state(path)
    if tree["reference_sha256"] != parts.reference_sha256:
        raise RunError(f"{config.model_name_or_path} is not the model that {folder.folder} started from: its weights "
                       "have changed, so the KL would be measured against another reference")  # fmt: skip
    _load_weights(config, parts, path, tree)
    parts.optimizer.load_state_dict(tree["optimizer"])
    state = _fresh_state(config)
    state.step, state.updates = tree["step"], tree["updates"]
    state.controller, state.baseline = KLController(*tree["controller"]), MovingBaseline(*tree["baseline"])
    state.best_step, state.best_reward = tree["best_step"], tree["best_reward"]
    state.generator.set_state(tree["generator"])
    folder.rewind(step)
    say(f"resuming {folder.folder} after step {step} of {config.steps}")
    return state


def _load_weights(config: Config, parts: Parts, path: Path, tree: dict[str, Any]) -> None:
    with torch.no_grad():
        if config.lora_r is not None:
            for name, parameter in trainable(parts.policy).items():
                parameter.copy_(tree["adapters"][name])
        else:
            parts.policy.load_state_dict(load_model(str(path)).state_dict())


def _finish(config: Config, parts: Parts, state: State, folder: Run, reason: str, started: float) -> None:
    """Writes final/ from the best checkpoint, measures it on fresh samples and closes the summary."""
    if state.best_step is not None and state.best_step != state.step:
        path = folder.checkpoints / f"step-{state.best_step}"
        checkpoint.verify(path)
        _load_weights(config, parts, path, checkpoint.load_state(path))
    after, _ = _measure(config, parts, state, folder.folder / "after.jsonl")
    checkpoint.save_folder(folder.final, lambda target: save_model(target, parts.policy, parts.tokenizer))
    folder.merge_samples()
    summary = folder.summary()
    chosen = state.step if state.best_step is None else state.best_step
    summary |= {
        "after": after,
        "steps": state.step,
        "best_step": state.best_step,
        "final_step": chosen,
        "stop_reason": reason,
        "wall_time_seconds": summary["wall_time_seconds"] + time.monotonic() - started,
    }
    folder.write_summary(summary)
    if state.best_step is None:
        print("no checkpoint kept within the bounds of `best`, so final/ is the last step's", file=sys.stderr)
    before = summary["before"]
    print(f"stopped: {reason}; final/ is step {chosen}")
    for name, unit in (("reward", ""), ("kl", " nats"), ("length", " tokens")):
        print(f"  {name:<10} {_words(before[name], unit)}  ->  {_words(after[name], unit)}")
    for name in ("distinct_1", "distinct_2", "unique"):
        print(f"  {name:<10} {before[name]:.3f}  ->  {after[name]:.3f}")
    print(f"run folder: {folder.folder}   page: talltree report {folder.folder}", flush=True)


def _words(value: dict[str, float | None], unit: str) -> str:
    spread = "" if value["low"] is None else f" ({value['low']:.2f} to {value['high']:.2f})"
    return f"{value['mean']:.2f}{unit}{spread}"


def _add_time(folder: Run, started: float) -> None:
    summary = folder.summary()
    summary["wall_time_seconds"] += time.monotonic() - started
    folder.write_summary(summary)
