"""A generator that gives what a policy answered before, from files of any kind that the readers take.

A row is one of a pool (`prompt_id`, `prompt`, `policy`, `output`) or a record with outputs, ours or of another layout (say
AlpacaEval's `instruction`, `output`, `generator`).
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rmjax.data.columns import gathered, of_single, selected
from rmjax.data.errors import RecordError
from rmjax.data.layouts import AUTO
from rmjax.data.messages import Conversation
from rmjax.data.readers import read_all
from rmjax.data.record import Comparison, known_fields, parse
from rmjax.data.rows import open_rows
from rmjax.data.samplerows import parse_sample, sample_fields
from rmjax.data.texts import Notes
from rmjax.policy.answers import answered
from rmjax.policy.generator import Generated

NO_MATCH, TOO_FEW = "no recorded output for the prompt", "fewer recorded outputs than samples"


class Output(NamedTuple):
    """One answer of a file."""

    id: str  # of the prompt; may be empty
    prompt: str
    text: str
    policy: str  # empty = the file does not say
    number: int  # of the policy's samples for the prompt
    place: str
    columns: Mapping[str, Any]  # of this output alone


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Answers by the prompt's id, else by its exact text; `open_recorded` makes one."""

    name: str
    by_id: Mapping[str, Sequence[Output]]
    by_prompt: Mapping[str, Sequence[Output]]

    def __call__(self, records: Sequence[Comparison], samples: int, seed: int) -> Generated:
        """The first `samples` of each prompt; the seed changes nothing. See `Generator`.

        Raises:
          RecordError: outputs of an id whose prompt is another one, or of a prompt that several ids have; or some of a prompt's
            outputs alone have token ids, log-probabilities, …
        """
        del seed
        if samples < 1:
            raise ValueError(f"samples is {samples}; it must be 1 or more")
        made, dropped = [], Counter[str]()
        for record in records:
            found = self._of(record)[:samples]
            if len(found) < samples:
                dropped[TOO_FEW if found else NO_MATCH] += samples - len(found)
            if found:
                columns = gathered([output.columns for output in found], found[0].place)
                made.append(answered(record, [output.text for output in found], self.name, columns))
        return Generated(made, dropped)

    def _of(self, record: Comparison) -> Sequence[Output]:
        if record.id and (found := self.by_id.get(record.id)):
            if _text(found[0].prompt) != _text(record.prompt):
                problem = f"differs from that of {record.place or 'the record'} with the id `{record.id}`"
                raise RecordError(found[0].place, "prompt", problem, "give each prompt an id of its own")
            return found
        found = self.by_prompt.get(record.prompt, ())
        if other := next((output for output in found if output.id != found[0].id), None):
            problem = f"is another one than in {found[0].place}, which has the same prompt"
            remedy = f"give {record.place or 'the record'} one of these ids, or both rows the same"
            raise RecordError(other.place, "id", problem, remedy)
        return found


def open_recorded(path: str | Path, policy: str = "", name: str = "", layout: str = AUTO) -> Recorded:
    """The outputs of one policy in a file or folder.

    Args:
      path: as `readers.open_records` takes it.
      policy: whose outputs; empty where the file has those of one alone, or does not say whose.
      name: of the generator; empty = the policy's, or else the file's.
      layout: of its rows, unless they are a pool's.

    Raises:
      RecordError: as `open_records`; or two prompts with one id.
      ValueError: no output of the policy, or several policies and none is named.
    """
    every = list(_outputs(path, layout))
    names = dict.fromkeys(output.policy for output in every)
    if policy and policy not in names:
        raise ValueError(f"{path} has no output of the policy {policy!r}; it has {_listed(names)}")
    if not policy and len(names) > 1:
        raise ValueError(f"{path} has outputs of several policies, {_listed(names)}; name one of them")
    chosen = policy or next(iter(names))
    by_id: dict[str, list[Output]] = {}
    by_prompt: dict[str, list[Output]] = {}
    for output in sorted((o for o in every if o.policy == chosen), key=lambda output: output.number):
        by_prompt.setdefault(output.prompt, []).append(output)
        if not output.id:
            continue
        first = by_id.setdefault(output.id, [])
        if first and first[0].prompt != output.prompt:
            problem = f"differs from that of {first[0].place} with the id `{output.id}`"
            raise RecordError(output.place, "prompt", problem, "give each prompt an id of its own")
        first.append(output)
    return Recorded(name or chosen or Path(path).name.split(".")[0], by_id, by_prompt)


def _outputs(path: str | Path, layout: str) -> Iterator[Output]:
    rows = open_rows(path)
    if len(rows) and "prompt_id" in (rows.row(0) or ()):  # type: ignore[operator]  # what kind of rows is seen by the first
        for s in read_all(path, parse_sample, sample_fields()):
            yield Output(s.prompt_id, s.prompt, s.output, s.policy, s.number, s.place, s.columns)
        return
    for c in read_all(path, _parsed, known_fields(), layout=layout):
        alone = {name: value for name, value in c.columns.items() if name in of_single()}
        for n, text in enumerate(c.outputs):
            policy = c.policies[n] if c.policies else ""
            yield Output(c.id, c.prompt, text, policy, 0, c.place, selected(alone, [n]))


def _parsed(row: Mapping[str, object], place: str, notes: Notes) -> Comparison:
    return parse(row, place, notes, blank=True)


def _text(text: str) -> str:
    return text.text if isinstance(text, Conversation) else text


def _listed(names: Collection[str]) -> str:
    shown = [name or "(unnamed)" for name in names]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
