"""Names in a config → records: the shipped corpus, files, the real preference sets, pools of policies."""

import dataclasses
import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rmjax.data.again import Found, prepared
from rmjax.data.column_map import AS_THEY_ARE, ColumnMap, column_map
from rmjax.data.columns import of_single
from rmjax.data.errors import RecordError
from rmjax.data.flips import flips
from rmjax.data.layouts import RECORDS
from rmjax.data.messages import as_value
from rmjax.data.pool import PolicyPool
from rmjax.data.preferences import PREFERENCE_SETS, load_preferences
from rmjax.data.readers import RandomAccessSource, listed, open_records, read_all
from rmjax.data.record import Comparison, known_fields, parse, parse_text, require_reference, to_row
from rmjax.data.samplerows import Sample, parse_sample, sample_fields
from rmjax.data.samples import Form, form, from_pool, require_several, telling_apart
from rmjax.data.strength import by_strength
from rmjax.data.votes import RANKS, Order

SHIPPED = "shipped:"
SPLITS = ("seen", "unseen", "all")
RECORD_SPLITS = ("all", "train", "test")
TEST_FRACTION = 5  # one in five of the prompts of a real set
OnError = Literal["raise", "skip"]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Records:
    """What a stream of groups is drawn from.

    Attributes:
      source: random access: records, or what `draw` takes.
      draw: (element, rng) → record, for sources that are sampled from; None where the elements are the records.
      identify: index in the source → the record's name.
      digest: SHA-256 over all that a record of it may hold, in order.
      forms: (has a reference, wrapper) of its records.
      each: a fixed record for each element, for checks that concern every one.
      skipped: reason → number of rows and records that were left out.
    """

    source: Any
    identify: Callable[[int], str]
    digest: Callable[[], str]
    forms: Callable[[], set[Form]]
    each: Callable[[], Iterable[Comparison]]
    draw: Callable[..., Comparison] | None = None
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)


def choose(field: str, value: str, choices: Sequence[str]) -> str:
    """`value`, or a ValueError that names the config field and its choices."""
    if value not in choices:
        raise ValueError(f"config.{field} is {value!r}; choose {', '.join(choices[:-1])} or {choices[-1]}")
    return value


def shipped(name: str) -> Path:
    """A file of the corpus in the package."""
    path = Path(str(resources.files("rmjax.data"))) / "corpus" / f"{name}.jsonl.zst"
    if not path.is_file():
        known = sorted(p.name.removesuffix(".jsonl.zst") for p in path.parent.glob("*.jsonl.zst"))
        raise FileNotFoundError(f"{SHIPPED}{name}: no such part of the shipped corpus; there are {', '.join(known)}")
    return path


def located(path: str) -> str:
    """The file behind a `shipped:` name; other paths as they are."""
    return str(shipped(path.removeprefix(SHIPPED))) if path.startswith(SHIPPED) else path


def pool(path: str, policies: str, prompts: str, on_error: OnError = "raise") -> PolicyPool:
    """A pool of these splits ("seen", "unseen", "all"), read again only when its file or the declared columns changed;
    `skipped` counts bad rows too."""
    return _pool(path, policies, prompts, on_error, (_stamp(located(path)), *of_single().values()))


def _stamp(path: str | Path) -> tuple[int, ...]:
    """What changes when a file is written again; nothing for a TFDS name, whose files are never changed."""
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=8)
def _pool(path: str, policies: str, prompts: str, on_error: OnError, read_of: tuple[Any, ...]) -> PolicyPool:
    del read_of  # what it was read from and for
    skipped: Counter[str] = Counter()
    found = PolicyPool(pool_rows(path, policies, prompts, on_error=on_error, skipped=skipped))
    found.skipped.update(skipped)
    return found


def pool_rows(
    path: str,
    policies: str,
    prompts: str,
    section: str = "data",
    on_error: OnError = "raise",
    skipped: Counter[str] | None = None,
) -> list[Sample]:
    """A pool's samples of these splits; `section` is where in the config they are named, the rest as in `read_all`."""
    choose(f"{section}.policies", policies, SPLITS)
    choose(f"{section}.prompts", prompts, SPLITS)

    everything = read_all(located(path), parse_sample, sample_fields(), on_error, skipped)
    return [s for s in everything if policies in ("all", s.policy_split) and prompts in ("all", s.prompt_split)]


def records(
    path: str,
    root: str = "",
    split: str = "all",
    on_error: OnError = "raise",
    split_votes: bool = False,
    dropped: Counter[str] | None = None,
    layout: str = RECORDS,
    columns: ColumnMap = AS_THEY_ARE,
) -> Sequence[Comparison] | RandomAccessSource:
    """A file of comparisons, or a split ("all", "train", "test") of the real set of that name under `root`.

    Which split a record is in is a property of its prompt's text alone. Files come whole: their split is their name.
    `split_votes` keeps pairs of a real set that votes order and ranks do not.
    `dropped` gets the number of rows of a real set (all its splits) that are left out, by reason.
    `columns` and `layout` are a file's, as in `open_records`.
    """
    choose("data.split", split, RECORD_SPLITS)
    if path not in PREFERENCE_SETS:
        if split != "all":
            raise ValueError(
                f"split {split!r} of {path}: only the real sets have it ({', '.join(PREFERENCE_SETS)}); use all"
            )
        return open_records(located(path), on_error, RECORDS if path.startswith(SHIPPED) else layout, columns)
    if columns:
        raise ValueError(f"config.data.columns is for files, and {path} is a real set; leave it empty")
    everything = load_preferences(path, root, split_votes, dropped)
    chosen = [c for c in everything if split == "all" or is_test(c.prompt) == (split == "test")]
    _log.info("%s, split %s: %d of %d comparisons", path, split, len(chosen), len(everything))
    return chosen


def is_test(prompt: str) -> bool:
    """Whether a prompt is in the test split, a fifth of all by a hash of the text."""
    return prompt_number(prompt) % TEST_FRACTION == 0


def prompt_number(prompt: str) -> int:
    """The hash of a prompt's text that decides where it goes."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest())


# --- what a config trains on -----------------------------------------------------------------------------------------


def pool_groups(data: Any) -> Records:
    """POLAR's groups, drawn from the pool that `config.data` names."""
    _refuse_flips(data)
    if data.columns or data.layout != RECORDS:
        raise ValueError(
            "config.data.columns and config.data.layout are for comparisons and texts, and data.kind is pool; leave them alone"
        )
    found = pool(data.path, data.policies, data.prompts, data.on_error)
    found.check_numbers(negatives=data.negatives, references=data.references)
    draw = functools.partial(
        found.draw, negatives=data.negatives, hard_negatives=data.hard_negatives, references=data.references,
        wrapper=data.wrapper,
    )  # fmt: skip

    def each() -> Iterator[Comparison]:
        for i in range(len(found)):
            place = f"{data.path}: prompt_id `{found[i]}`"
            yield dataclasses.replace(draw(found[i], np.random.default_rng(0)), place=place)

    def whole() -> str:
        names = (found[i] for i in range(len(found)))
        return digest(
            [name, as_value(found.prompts[name]), found.type[name], _by_policy(found, name)]
            + ([found.columns[name]] if any(map(any, found.columns[name].values())) else [])
            for name in names
        )

    return Records(found, found.__getitem__, whole, lambda: {(True, data.wrapper)}, each, draw, dict(+found.skipped))


def comparisons(data: Any, order: Order = RANKS) -> Records:
    """The ranked answers that `config.data` names, in the order that is to be learned.

    Raises:
      RecordError: the first record that cannot be used, with how many there are by reason; with `data.on_error=skip` only
        where none can be used.
      ValueError: every record, or every pair that is read, has weight 0; or every record has more candidates than a group may.
    """
    skipped: Counter[str] = Counter()
    columns = column_map(data.columns)
    read = records(
        data.path, data.root, data.split, data.on_error, order.kind == "votes", skipped, data.layout, columns
    )
    if isinstance(read, RandomAccessSource):
        skipped.update(read.skipped)
    found = flips(_all_usable(read, data, order, skipped), data.flip, data.flip_seed)
    if order.rules:
        found, taken = by_strength(order.rules, found, data.path)
        skipped.update({"a strength among the weakest (config.strength.filter)": taken} if taken else {})
    _look_at_weights(data.path, found, order)
    _look_at_sizes(data, found)
    return dataclasses.replace(_fixed(found), skipped=dict(skipped))


def texts(data: Any) -> Records:
    """The texts that `config.data` names: records of one output."""
    _refuse_flips(data)
    columns = column_map(data.columns)
    read = open_records(located(data.path), data.on_error, data.layout, columns, parse_text)
    found, _ = prepared(read, lambda c: c)
    _look_at_weights(data.path, found)
    return dataclasses.replace(_fixed(found), forms=set, skipped=dict(read.skipped))


def samples(data: Any, prepare: Callable[[Comparison], Comparison | str]) -> Records:
    """A policy's rewarded answers that `config.data` names: records whose outputs may be empty.

    Args:
      prepare: a record → the same with what an objective reads, or why it is left out; RecordError where it cannot be used.

    Raises:
      RecordError: the first record that cannot be used; with `data.on_error=skip` they are counted.
      ValueError: none is left, or all have weight 0.
    """
    _refuse_flips(data)
    skipped: Counter[str] = Counter()
    parser = functools.partial(parse, blank=True)
    kept = []
    for c in read_all(located(data.path), parser, known_fields(), data.on_error, skipped):
        try:
            found = prepare(c)
        except RecordError as error:
            if data.on_error == "raise":
                raise
            found = error.reason
        if isinstance(found, str):
            skipped[found] += 1
        else:
            kept.append(found)
    if not kept:
        raise ValueError(
            f"{data.path}: nothing is left to learn from ({listed(skipped)}); sample again, or reward otherwise"
        )
    if skipped:
        _log.warning("%s: left out %s", data.path, listed(skipped))
    _look_at_weights(data.path, kept)
    return dataclasses.replace(_fixed(kept), forms=set, skipped=dict(skipped))


def _refuse_flips(data: Any) -> None:
    if data.flip:
        raise ValueError(
            f"config.data.flip is {data.flip}, and config.data.kind is {data.kind}; only comparisons are flipped"
        )


def sample_groups(entry: Any, kind: str, section: str, dropped: Counter[str] | None = None) -> list[Comparison]:
    """Groups of a policy's samples, unlabeled: from a pool, or from a file of comparisons whose order is not read.

    Args:
      entry: a section with `path` and what else chooses among its rows.
      kind: pool | comparisons.
      section: what the section is called in errors.
      dropped: gets the number of rows and groups that are left out, by reason.
    """
    if not entry.path:
        raise ValueError(f"config.{section}.path is empty; name a file, or shipped:policy_pool")
    if kind == "pool":
        rows = pool_rows(entry.path, entry.policies, entry.prompts, section)
        found = from_pool(rows, entry.names, mixed=entry.mixed, wrapper=entry.wrapper, dropped=dropped)
    else:
        if entry.references:
            raise ValueError(
                f"config.{section}.references is {entry.references}, but {entry.path} brings its own; make it 0"
            )
        found = [require_several(c) for c in records(entry.path, entry.root, entry.split, dropped=dropped)]
    return telling_apart(found, entry.references, dropped)


def _fixed(found: Found) -> Records:
    return Records(
        found, lambda i: found[i].id or found[i].place, lambda: digest(map(to_row, found)), lambda: set(map(form, found)),
        lambda: found,
    )  # fmt: skip


def drawn(found: Sequence[Comparison], draw: Callable[..., Comparison]) -> Records:
    """Groups from which every pass draws anew."""
    return dataclasses.replace(_fixed(found), draw=draw)


def digest(rows: Iterable[Any]) -> str:
    """SHA-256 of rows in their order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return found.hexdigest()


def _by_policy(found: PolicyPool, prompt_id: str) -> list[list[Any]]:
    """As a list: draws depend on the order of the policies, and on their kinds."""
    outputs = found.outputs[prompt_id]
    return [[policy, found.kind[policy], list(map(as_value, texts))] for policy, texts in outputs.items()]


def _all_usable(
    read: Sequence[Comparison] | RandomAccessSource, data: Any, order: Order, skipped: Counter[str]
) -> Found:
    found, errors = prepared(read, functools.partial(_usable, reference=data.reference, order=order))
    if not errors:
        return found
    reasons, total = Counter(error.reason for error in errors), len(found) + len(errors)
    if data.on_error == "raise" or not found:
        first = errors[0]
        choice = ", or set config.data.on_error=skip" if found else ""
        remedy = f"{first.remedy}{choice} ({listed(reasons)}, of {total} records)"
        raise RecordError(first.place, first.field, first.problem, remedy, first.detail)
    _log.warning("%s: left out %s, of %d records", data.path, listed(reasons), total)
    skipped.update(reasons)
    return found


def _look_at_weights(path: str, found: Found, order: Order = RANKS) -> None:
    without = sum(c.weight == 0 for c in found)
    split = sum(c.weight != 0 and not _has_weighted_pair(c, order) for c in found)
    if found and without + split == len(found):
        kind = f"every record of {path} has weight 0"
        if split:
            kind += ", or only pairs of weight 0 (votes that are evenly split, or `pair_weight`)"
        raise ValueError(f"{kind}, so nothing would be learned; give some a weight")
    message = "%s: %d of %d records have %s, so nothing is learned from them"
    for count, what in ((without, "weight 0"), (split, "only pairs of weight 0")):
        if count:
            _log.warning(message, path, count, len(found), what)


def _has_weighted_pair(c: Comparison, order: Order) -> bool:
    """Whether the objective reads a pair of the record with a weight above 0; pairs without a target are not read."""
    if order.kind == "ranks" or "pair_weight" not in c.columns:
        return True
    weights_NN, targets_NN = np.asarray(c.columns["pair_weight"]), np.asarray(c.columns["pair_target"])
    return bool(np.any((weights_NN > 0) & (targets_NN >= 0)))


def _look_at_sizes(data: Any, found: Found) -> None:
    larger = [len(c.outputs) for c in found if len(c.outputs) > data.candidates]
    if found and len(larger) == len(found):
        raise ValueError(
            f"config.data.candidates is {data.candidates}; every record of {data.path} has more candidates, "
            f"{max(larger)} at most; set it to that"
        )
    if larger:
        message = "%s: %d of %d records have more candidates than config.data.candidates=%d and will be left out; %d takes all"
        _log.warning(message, data.path, len(larger), len(found), data.candidates, max(larger))


def _usable(c: Comparison, reference: str, order: Order) -> Comparison:
    c = order.apply(c)
    if reference == "required":
        require_reference(c)
    return c
