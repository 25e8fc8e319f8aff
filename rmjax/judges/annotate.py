"""Self-reference feedback from a file of pairs to a file of records with votes and strengths, and a report of it."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rmjax.data.packing import ForestShape
from rmjax.data.record import Comparison, to_row
from rmjax.data.sources import located
from rmjax.evaluate.comparisons import evaluate_comparisons, known_ranks
from rmjax.evaluate.language import LanguageModel, score_texts
from rmjax.evaluate.report import environment
from rmjax.evaluate.suites import load_comparisons
from rmjax.files import refuse_unwritable, write_json, write_lines
from rmjax.judges.forms import EQUAL, Unread
from rmjax.judges.generators import Named
from rmjax.judges.judge import position
from rmjax.judges.kinds import Place, Reading
from rmjax.judges.replies import Replies
from rmjax.judges.self_reference import Likelihood, Prompts, Round, Rules, labeled, rounds_of, strengths, votes_of
from rmjax.policy.local import LocalGenerator


@dataclasses.dataclass(frozen=True)
class Options:
    """What is annotated.

    Attributes:
      model: the annotator, as `generators.Named` takes it.
      data: pairs of answers: a file, shipped:NAME, or a real set's name; an order that they have is compared, never shown.
      out: JSON lines of records to write; OUT.replies.jsonl and OUT.report.json stand beside it.
      rules: of votes and strengths.
      prompts: a file of prompts that ships, or a TOML file.
      limit: records at most, 0 for all.
      root, split, layout, on_error: of `data`, as `evaluate.evaluation.Options` has them.
      seed: of replies and intervals.
    """

    model: str
    data: str
    out: Path
    rules: Rules = Rules()
    prompts: str = "self_reference"
    limit: int = 0
    root: str = "../shared/data"
    split: str = "all"
    layout: str = "auto"
    on_error: str = "raise"
    seed: int = 0

    @property
    def replies(self) -> Path:
        """Where replies are kept."""
        return self.out.with_suffix(".replies.jsonl")

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.out.with_suffix(".report.json")


def likelihood_of(generator: LocalGenerator) -> Likelihood:
    """Mean log-probabilities of replies under a policy that is here, end token included."""
    encoder = generator.encoder
    model = LanguageModel(generator.config, jax.device_put(generator.params), encoder.tokenizer, encoder.form)

    def of_texts(texts: Sequence[tuple[str, str]]) -> list[float]:
        if not texts:
            return []
        records = [Comparison(prompt, (reply,)) for prompt, reply in texts]
        trees = [tree for c in records for tree in model.encoder(model.form.max_length).language_model_trees(c)]
        return [-found.loss for found in score_texts(model, records, _one_row([tree.size for tree in trees]))]

    return remembered(of_texts)


def _one_row(sizes: Sequence[int]) -> ForestShape:
    """A row as long as the longest text needs: logits of every token are held at once."""
    tokens = -(-max(sizes) // 64) * 64
    return ForestShape(rows=1, row_tokens=tokens, groups=tokens // min(sizes), branches=1)


def remembered(likelihood: Likelihood) -> Likelihood:
    """The same, each text once."""
    known: dict[tuple[str, str], float] = {}

    def of_texts(texts: Sequence[tuple[str, str]]) -> list[float]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, likelihood(new), strict=True))
        return [known[text] for text in texts]

    return of_texts


def annotate(options: Options) -> dict[str, Any]:
    """Asks what is not on file yet, writes the records and the report, returns the report.

    Raises:
      OSError, ValueError: a file, a prompt or a model cannot be used, or no record got a label; says which and why.
      InUseError: another process writes the replies.
    """
    own = [options.out, options.report, options.replies]
    if Path(located(options.data)).resolve() in [path.resolve() for path in own]:
        raise OSError(f"--data={options.data} would be overwritten; name another --out")
    for path in own[:2]:
        refuse_unwritable(path)
    loaded = load_comparisons(options.data, options.root, options.split, options.on_error, options.layout)  # type: ignore[arg-type]
    records, prompts = loaded.records[: options.limit or None], Prompts.load(options.prompts)
    log_probs = options.rules.strength == "perplexity"
    how = dataclasses.replace(prompts.generation, log_probs=prompts.generation.log_probs or log_probs)
    _refuse_server(options)
    named = Named(options.model, how)
    with Replies(named, options.replies, options.seed) as replies:
        likelihood = _likelihood(options, named)
        rounds = rounds_of(records, replies, prompts, options.rules, likelihood)
        failures = replies.counts
    strength = strengths(rounds, prompts, options.rules, likelihood)
    kept, dropped = labeled(records, rounds, strength, options.rules)
    report = {
        "model": named.name, "data": options.data, "prompts": options.prompts,
        "rules": dataclasses.asdict(options.rules), "records": len(records), "labeled": len(kept), "dropped": dict(dropped),
        "unreadable_rows": dict(loaded.unreadable), "failures": dict(failures),
        **_of_rounds(records, rounds, options.seed), **_gold(records, kept, rounds, strength, options.seed), **environment(),
    }  # fmt: skip
    write_json(options.report, report)
    if not kept:
        raise ValueError(
            f"no record of {options.data} got a label ({dict(dropped)}); read {options.replies}, and change the prompts"
        )
    write_lines(options.out, [to_row(c) for c in kept])
    return report


def _refuse_server(options: Options) -> None:
    """Before anything is asked, where the rules want what a server cannot give."""
    if _wants_likelihood(options.rules) and options.model.startswith(("http://", "https://")):
        raise ValueError(
            f"--strength=likelihood and --decision=likelier ask for the probabilities of given texts, which {options.model} does "
            "not say; choose --strength=perplexity or --strength=votes, and --decision=written"
        )


def _wants_likelihood(rules: Rules) -> bool:
    return rules.strength == "likelihood" or rules.decision == "likelier"


def _likelihood(options: Options, named: Named) -> Likelihood | None:
    opened = named.opened if _wants_likelihood(options.rules) else None
    return likelihood_of(opened) if isinstance(opened, LocalGenerator) else None


def _of_rounds(records: Sequence[Comparison], rounds: Sequence[Sequence[Round]], seed: int) -> dict[str, Any]:
    every = [one for of_record in rounds for one in of_record]
    asked = [(c, of_record) for c, of_record in zip(records, rounds, strict=True) if len(c.outputs) == 2]
    return {
        "rounds": len(every),
        "unread": dict(Counter(one.vote.reason for one in every if isinstance(one.vote, Unread))),
        "position": position([c for c, _ in asked], [_readings(of_record) for _, of_record in asked], seed),
    }


def _readings(rounds: Sequence[Round]) -> dict[Place, list[Reading]]:
    """Votes as a pairwise judge's: 1 where the answer that stood first won."""
    found: dict[Place, list[Reading]] = {(0, 1): [], (1, 0): []}
    for one in rounds:
        if isinstance(one.vote, str):
            first_won = 0.5 if one.vote == EQUAL else float((one.vote == "first") != one.swapped)
            found[(1, 0) if one.swapped else (0, 1)].append((first_won,))
    return found


def _gold(
    records: Sequence[Comparison], kept: Sequence[Comparison], rounds: Sequence[Sequence[Round]], strength: Sequence[float],
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """How often the majority, and the sign of the strength, agree with the order that records came with, beside baselines;
    nothing where none had one. A strength is that of a record with a readable decision in each order."""
    before = {id_of(c): c for c in records}
    gold = [before[id_of(c)] for c in kept]
    if not any(len(set(known_ranks(c) or ())) > 1 for c in gold):
        return {}
    found = evaluate_comparisons(gold, [[-rank for rank in c.ranks or ()] for c in kept], seed)
    pairs = [
        (c, [gap, 0.0])
        for c, of_record, gap in zip(records, rounds, strength, strict=True)
        if len(c.outputs) == 2 and votes_of(of_record)
    ]
    by_strength = evaluate_comparisons([c for c, _ in pairs], [scores for _, scores in pairs], seed)
    baselines = {name: each["overall"] for name, each in found["baselines"].items()}
    return {"gold": {"overall": found["overall"], "strength": by_strength["overall"], "baselines": baselines}}


def id_of(c: Comparison) -> tuple[str, ...]:
    """What tells a record from others, labels apart."""
    return c.id, c.place, c.prompt, *c.outputs


def notes(report: Mapping[str, Any]) -> Iterator[str]:
    """The report in lines."""
    yield f"{report['labeled']:,} of {report['records']:,} records have votes and a strength ({report['rounds']:,} rounds)"
    for reason, count in report["dropped"].items():
        yield f"records left out: {count} ({reason})"
    for reason, count in [*report["failures"].items(), *report["unread"].items()]:
        yield f"replies that are not counted: {count} ({reason})"
    place = report["position"]
    if place["first"]["value"] is not None:
        yield f"the answer that stands first wins {_shown(place['first'])} of the votes that name one"
    if place["pairs"]:
        yield f"the two orders agree on {_shown(place['consistent'])} of {place['pairs']:,} records"
    if gold := report.get("gold"):
        beside = ", ".join(
            f"{name.replace('_', ' ')} {each['accuracy']:.3f}" for name, each in gold["baselines"].items()
        )
        found = gold["overall"]
        yield f"agreement with the given order: {_accuracy(found)}; {beside}"
        yield f"agreement of the strength's sign, all pairs: {_accuracy(gold['strength'])}"


def _accuracy(found: Mapping[str, Any]) -> str:
    return f"{_shown({**found, 'value': found['accuracy']})}, n = {found['n']}"


def _shown(mean: Mapping[str, Any]) -> str:
    return f"{mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"
