"""Rounds of two models: the policy answers, the reward model is updated on these answers, the policy learns from it, and again.

    WORKDIR/round-0/reward            the reward model of before (where config.first_reward asks for one)
            samples/round-00001.jsonl  k answers of the newest policy to each prompt, unlabeled: the meta set of round 1
            drifted/round-00001.jsonl  its answers to held-out prompts, ranked by gold: what the reward model is tested on
            round-1/reward, round-1/policy   ordinary runs, each resumable at any step
            round-1/result.json        what came of it; rounds.json has those of all

Every file is written at once, and what is there is not made again, so a command that was stopped goes on where it was.
"""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rmjax import config as base
from rmjax.data.formats import Encoder
from rmjax.data.questions import questions
from rmjax.data.record import Comparison
from rmjax.files import write_json
from rmjax.models.stored import on_host
from rmjax.policy.local import LocalGenerator
from rmjax.policy.sampling import Decoding
from rmjax.reward_model import RewardModel
from rmjax.rewards.reward import Failure, Reward
from rmjax.rewards.section import of_section
from rmjax.rounds.files import Round, RoundFiles
from rmjax.sections import choice, defaults, number, pattern, read
from rmjax.start import start_of
from rmjax.streams import format_of
from rmjax.train.metrics import read_metrics
from rmjax.trainer import Trainer, open_workdir

_log = logging.getLogger(__name__)
UPDATES = ("meta", "plain", "none")


@dataclasses.dataclass(frozen=True)
class Asking:
    """Prompts, and how a policy answers them."""

    path: str = ""  # file of prompts, as data.path for rollouts
    layout: str = "records"  # of its rows, as data.layout
    columns: tuple[str, ...] = ()  # "FIELD=COLUMN" each, as data.columns
    on_error: str = choice("raise", "raise", "skip")  # broken rows: an error | left out and counted
    categories: str = pattern("")  # regular expression that a prompt's whole category must match; empty = all prompts
    limit: int = number(0, low=0)  # prompts, the first of the file; 0 = all
    samples: int = number(5, low=2)  # k, answers to each
    temperature: float = number(1.0, above=0)  # of the answers
    max_new_tokens: int = number(128, low=1)  # tokens of an answer at most


@dataclasses.dataclass(frozen=True)
class Rounds:
    """How many rounds, and what is updated in them."""

    count: int = number(3, low=1)  # rounds
    reward_update: str = choice("meta", *UPDATES)  # of the reward model: after an ascent on the answers | plain | none
    first_reward: bool = True  # True: round 0 trains the reward model plainly, from reward.model.init
    seed: int = number(0, low=0)  # of round 0; a round more is one more


def get_config(policy: ConfigDict, reward: ConfigDict) -> ConfigDict:
    """The config of rounds: `rounds`, `meta` and `drifted` (prompts), and the runs of both models."""
    config = ConfigDict({"rounds": defaults(Rounds), "meta": defaults(Asking), "drifted": defaults(Asking)})
    config.policy, config.reward = policy, reward
    return config


@dataclasses.dataclass(frozen=True)
class _Chain:
    """The config, checked, and where it is run."""

    config: ConfigDict
    workdir: Path
    rounds: Rounds
    meta: Asking
    drifted: Asking
    gold: Reward


def run(config: ConfigDict, workdir: Path) -> list[dict[str, Any]]:
    """All rounds that are not there yet, and what came of each.

    Raises:
      ValueError: a config that cannot be run, or `workdir` holds rounds of another one.
      OSError, RecordError: files that cannot be used.
    """
    open_workdir(workdir)
    chain = _checked(config, workdir)
    _keep_config(config, workdir / "rounds_config.json")
    found = [_first(chain)]
    for n in range(1, chain.rounds.count + 1):
        found.append(_round(chain, n))
        write_json(workdir / "rounds.json", {"rounds": found})
        _log.info("round %d: %s", n, json.dumps(found[-1]))
    return found


def _keep_config(config: ConfigDict, path: Path) -> None:
    """ValueError where the folder holds rounds of another config; their number may grow."""
    now = json.loads(config.to_json_best_effort())
    now["rounds"].pop("count")
    if path.exists() and (then := json.loads(path.read_text(encoding="utf-8"))) != now:
        other = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        raise ValueError(
            f"{path.parent} holds rounds of another config ({', '.join(other)} differs); use a new workdir"
        )
    write_json(path, now)


def _checked(config: ConfigDict, workdir: Path) -> _Chain:
    for name in ("rounds", "meta", "drifted", "policy", "reward"):
        if name not in config:
            raise ValueError(f"config.{name} is missing; make the config by rmjax.rounds.chain.get_config")
    policy = base.settle(config.policy)
    if policy.objective != "policy_gradient" or policy.data.kind != "rollouts":
        raise ValueError(
            "config.policy is no run of rounds; set its objective to policy_gradient, its data.kind to rollouts"
        )
    if base.settle(config.reward).objective != "preference":
        raise ValueError("config.reward is no run of a reward model; set its objective to preference")
    return _Chain(
        config, workdir, read(Rounds, config.rounds, "config.rounds"), read(Asking, config.meta, "config.meta"),
        read(Asking, config.drifted, "config.drifted"),
        of_section(policy.sections["gold"], lambda path: RewardModel.load(path).scorer, "config.policy.gold"),
    )  # fmt: skip


# --- a round ------------------------------------------------------------------------------------------------------------


def _first(chain: _Chain) -> dict[str, Any]:
    """Round 0: the reward model that the rounds begin with."""
    if not chain.rounds.first_reward:
        return {"round": 0}
    config = _copied(chain.config.reward)
    config.gradient.name, config.run.seed = "plain", chain.rounds.seed
    folder = chain.workdir / "round-0" / "reward"
    _run(config, folder)
    return {"round": 0, "reward": _ends(folder)}


def _round(chain: _Chain, n: int) -> dict[str, Any]:
    folder = chain.workdir / f"round-{n}"
    done = folder / "result.json"
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return found
    before = policy_of(chain.config, chain.workdir, n - 1)
    samples = _asked(chain, "samples", chain.meta, before, n, _unlabeled)
    drifted = _asked(chain, "drifted", chain.drifted, before, n, lambda found: _ranked(found, chain.gold))
    result: dict[str, Any] = {"round": n, "policy_before": before}
    config = _reward_config(chain, n, samples, drifted)
    if chain.rounds.reward_update == "none":
        result["reward"] = {"before": Trainer(config).evaluate()}
    else:
        _run(config, folder / "reward")
        result["reward"] = _ends(folder / "reward")
    policy = _copied(chain.config.policy)
    policy.model.init, policy.reward.model = before, reward_of(chain.config, chain.workdir, n)
    policy.run.seed = chain.rounds.seed + n
    _run(policy, folder / "policy")
    result["policy"] = _ends(folder / "policy")
    write_json(done, result)
    return result


def _reward_config(chain: _Chain, n: int, samples: Path, drifted: Path | None) -> ConfigDict:
    config = _copied(chain.config.reward)
    config.model.init = reward_of(chain.config, chain.workdir, n - 1)
    config.run.seed = chain.rounds.seed + n
    config.gradient.name = "meta" if chain.rounds.reward_update == "meta" else "plain"
    config.meta_data.update(kind="comparisons", path=str(samples), samples=chain.meta.samples, references=0)
    config.evals.gaps = base.samples_eval(str(samples), kind="comparisons")
    if drifted:
        config.evals.drifted = base.comparisons_eval(str(drifted))
    return config


def policy_of(config: ConfigDict, workdir: Path, n: int) -> str:
    """What the policy after round n is loaded from: its best state where the run was watched, else its last."""
    if not n:
        return str(config.policy.model.init)
    folder = workdir / f"round-{n}" / "policy"
    return str(folder / "best" if (folder / "best").is_dir() else folder)


def reward_of(config: ConfigDict, workdir: Path, n: int) -> str:
    """What the reward model of round n is loaded from."""
    if n and config.rounds.reward_update != "none":
        return str(workdir / f"round-{n}" / "reward")
    return str(workdir / "round-0" / "reward") if config.rounds.first_reward else str(config.reward.model.init)


def _copied(config: ConfigDict) -> ConfigDict:
    found = base.complete(config)
    found.unlock()
    return found


def _run(config: ConfigDict, folder: Path) -> None:
    Trainer(config, folder).run()


def _ends(folder: Path) -> dict[str, dict[str, float]]:
    """A run's evaluations before its first step and after its last one."""
    lines: dict[int, dict[str, float]] = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        found = {name.removeprefix("eval/"): value for name, value in line.items() if name.startswith("eval/")}
        if found:
            lines.setdefault(int(line["step"]), {}).update(found)
    return {"before": lines[min(lines)], "after": lines[max(lines)]} if lines else {}


# --- answers of a policy ------------------------------------------------------------------------------------------------


def _asked(
    chain: _Chain,
    name: str,
    asking: Asking,
    policy: str,
    n: int,
    change: Callable[[list[Comparison]], list[Comparison]],
) -> Any:
    """The file of a policy's answers, drawn where it is not there yet; None where nothing is left of them."""
    files = RoundFiles(chain.workdir / name, {"asking": dataclasses.asdict(asking), "policy of round": n - 1})
    own = {"round": n, "seed": chain.rounds.seed + n}
    if files.read(n, own) is None:
        answered = answers(chain.config.policy, policy, asking, own["seed"])
        kept = change(answered)
        _log.info("%s of round %d: %d of %d prompts", name, n, len(kept), len(answered))
        files.write(n, Round(kept, list(range(len(kept))), {}), own)
    return files.path(n) if files.path(n).stat().st_size else None


def answers(config: ConfigDict, init: str, asking: Asking, seed: int) -> list[Comparison]:
    """What a policy answers to prompts.

    Args:
      config: of its run.
      init: what it is loaded from, as config.model.init.
    """
    whole = _copied(config)
    whole.model.init = init
    chosen = base.chosen(whole)
    start = start_of(chosen)
    if start.params is None:
        raise ValueError("config.policy.model.init is 'random', and rounds begin with answers; name a model")
    encoder = Encoder(start.tokenizer, format_of(chosen, start.tokenizer), start.config.max_positions)
    params = on_host(start.params)["backbone"]
    stop = chosen.config.sections["rollouts"].stop
    policy = LocalGenerator(
        start.config, params, encoder, Decoding(asking.temperature), asking.max_new_tokens, "policy", stop
    )
    prompts = list(questions(asking, asking.categories).each())
    records, dropped = policy(prompts[: asking.limit or len(prompts)], asking.samples, seed)
    if dropped:
        _log.warning("%s: dropped %s", init, dict(dropped))
    return records


def _unlabeled(answered: Sequence[Comparison]) -> list[Comparison]:
    """Groups that a difference of rewards can be taken of: two different texts at least."""
    bare = [_texts(c, [output for output in c.outputs if output.strip()]) for c in answered]
    kept = [c for c in bare if len(set(c.outputs)) > 1]
    if not kept:
        raise ValueError(
            f"the policy says the same, or nothing, in all its answers to each of {len(answered)} prompts; raise "
            "config.meta.temperature, or learn less in a round"
        )
    return kept


def _ranked(answered: Sequence[Comparison], gold: Reward) -> list[Comparison]:
    """Groups in the order of gold; those without one, and answers that gold fails at, are left out and counted."""
    bare = [_texts(c, list(dict.fromkeys(output for output in c.outputs if output.strip()))) for c in answered]
    bare = [c for c in bare if c.outputs]
    kept, failed = [], Counter[str]()
    for c, values in zip(bare, gold(bare), strict=True):
        failed.update(value.reason for value in values if isinstance(value, Failure))
        known = {output: v for output, v in zip(c.outputs, values, strict=True) if not isinstance(v, Failure)}
        if len(set(known.values())) > 1:
            kept.append(dataclasses.replace(_texts(c, list(known)), scores=tuple(known.values())))
    if failed:
        _log.warning("gold: dropped %s", dict(failed))
    return kept


def _texts(c: Comparison, outputs: Sequence[str]) -> Comparison:
    """A record with these answers, and nothing of their tokens."""
    empty: Mapping[str, Any] = {}
    return dataclasses.replace(c, outputs=tuple(outputs), policies=None, columns=empty)
