"""Rewards by a config section: `build(section)`; of `config.reward` and `config.gold`: `of_section`."""

import dataclasses
from collections.abc import Callable

from rmjax.evaluate.scorers import Scorer
from rmjax.rewards.answers import FORMS
from rmjax.rewards.combine import Weighted, clipped, whitened
from rmjax.rewards.deadline import InProcess
from rmjax.rewards.model import OfScorer
from rmjax.rewards.reward import Reward, Verified
from rmjax.rewards.server import DIALECTS, Server
from rmjax.rewards.texts import Matches, Overlong, Reading, within, without_thinking
from rmjax.sections import choice, listed, number, pattern


@dataclasses.dataclass(frozen=True)
class RewardSection:
    """What rewards a policy's answers: `config.reward` what it learns from, `config.gold` what evaluations show beside that."""

    parts: tuple[str, ...] = ()  # "NAME=WEIGHT": number, reasoning_gym, model, server, overlong, matches
    model: str = ""  # model: a reward model's run or hub folder, org/model[@revision] or shipped:NAME
    reference: str = choice("optional", "optional", "required")  # model: an answer to a prompt without one fails
    think: str = choice("keep", "keep", "strip")  # a <think> block before the answer: read as it is | taken off
    tag: str = ""  # only what stands in the last <TAG>…</TAG> is read; empty = all
    number_form: str = choice("marked", *FORMS)  # number: #### or \boxed | or the one number | or the last
    url: str = ""  # server: its address
    dialect: str = choice("native", *DIALECTS)  # server: rmjax's own route | OpenRLHF's form
    seconds: float = number(60.0, above=0)  # server: of a try | number, reasoning_gym, matches: of an answer
    tries: int = number(3, low=1)  # server: requests until a failure is final
    pattern: str = pattern(".*")  # matches: a regular expression for the whole answer
    longest: int = number(4096, low=1)  # overlong: characters from which on it is −1
    buffer: int = number(1024, low=1)  # overlong: characters over which it falls there from 0
    bound: float = number(1e6, above=0)  # sums are clipped to ± this
    whiten: bool = False  # True: the sums of a call get mean 0 and standard deviation 1


def build(section: RewardSection, scorer: Scorer | None = None, place: str = "config.reward") -> Reward:
    """The reward that a section asks for.

    Args:
      scorer: of the part `model`.
      place: what the section is called in errors.

    Raises:
      ValueError: no part, one that there is not or that lacks what it needs, a weight that is no number.
    """
    weights = weights_of(section, place)
    if "model" in weights and scorer is None:
        raise ValueError(f"{place}.parts names `model`, and there is none; give a scorer")
    made = {name: (_PARTS[name](section, scorer), weight) for name, weight in weights.items()}
    whole: Reward = clipped(Weighted(made), -section.bound, section.bound)
    return whitened(whole) if section.whiten else whole


def of_section(section: RewardSection, scorer: Callable[[str], Scorer], place: str = "config.reward") -> Reward:
    """`build` with the reward model that the section names, which `scorer` loads."""
    wants = "model" in weights_of(section, place)
    if wants and not section.model:
        raise ValueError(f"{place}.parts names `model`, and {place}.model is empty; name a reward model")
    return build(section, scorer(section.model) if wants else None, place)


def weights_of(section: RewardSection, place: str = "config.reward") -> dict[str, float]:
    """Part → weight. ValueError for no part, one that there is not, and a weight that is no number."""
    weights = dict(_part(given, place) for given in section.parts)
    if len(weights) < len(section.parts):
        raise ValueError(f"{place}.parts is {section.parts!r}, which has a name twice; give each once")
    if not weights:
        raise ValueError(f"{place}.parts is empty; give NAME=WEIGHT, with {listed(list(_PARTS))}")
    return weights


def _part(given: str, place: str) -> tuple[str, float]:
    name, _, weight = given.partition("=")
    if name not in _PARTS:
        raise ValueError(f"{place}.parts has {given!r}; write NAME=WEIGHT, with {listed(list(_PARTS))}")
    try:
        return name, float(weight)
    except ValueError:
        raise ValueError(f"{place}.parts has {given!r}; write NAME=WEIGHT, as {name}=1.0") from None


def _read(section: RewardSection, reward: Reward) -> Reward:
    """The reward of what is to be read of an answer. A block of thinking may spell the tag, so it goes first."""
    if section.tag:
        reward = Reading(reward, within(section.tag))
    return Reading(reward, without_thinking) if section.think == "strip" else reward


Make = Callable[[RewardSection, Scorer | None], Reward]


def _number(section: RewardSection, scorer: Scorer | None) -> Reward:
    del scorer
    return _read(section, InProcess("number", {"form": section.number_form}, section.seconds))


def _reasoning_gym(section: RewardSection, scorer: Scorer | None) -> Reward:
    del scorer
    return _read(section, InProcess("reasoning_gym", {}, section.seconds))


def _model(section: RewardSection, scorer: Scorer | None) -> Reward:
    assert scorer is not None
    return _read(section, OfScorer(scorer, section.reference == "required"))


def _server(section: RewardSection, scorer: Scorer | None) -> Reward:
    del scorer
    return _read(section, Server(section.url, section.dialect, section.seconds, section.tries))


def _overlong(section: RewardSection, scorer: Scorer | None) -> Reward:
    """Of the whole answer: thinking is length too."""
    del scorer
    return Verified("overlong", Overlong(section.longest, section.buffer))


def _matches(section: RewardSection, scorer: Scorer | None) -> Reward:
    """Of the whole answer: where thinking stands is part of its form. A pattern may take for ever, so it has a deadline."""
    del scorer
    Matches(section.pattern)
    return InProcess("matches", {"pattern": section.pattern}, section.seconds)


_PARTS: dict[str, Make] = {
    "number": _number, "reasoning_gym": _reasoning_gym, "model": _model, "server": _server, "overlong": _overlong,
    "matches": _matches,
}  # fmt: skip
