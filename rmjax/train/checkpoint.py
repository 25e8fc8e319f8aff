"""Checkpoints that survive `kill -9` and report damage. The only module that knows orbax.

A checkpoint is one directory on a file system that every process sees:

    <directory>/<step>/state/          the arrays, written by orbax
                       data_<p>.json   what process p saves of its own: its share of the data's position
                       manifest.json   size and SHA-256 of every other file; written last, at once
    <directory>/constant/              likewise, the arrays that no step changes (a frozen base): once for all steps,
                                       each of which has the SHA-256 of its manifest

No manifest: the save never finished, and the directory is ignored. A file that disagrees with the
manifest: the checkpoint is damaged, and is renamed `<step>.damaged`, never deleted.
"""

import concurrent.futures
import errno
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from rmjax.files import refuse_url, write_text
from rmjax.train.manifest import MANIFEST, find_damage, fingerprint, needed_beside, set_aside, write_manifest

PyTree = Any
CONSTANT = "constant"
_DIFFERENCES_SHOWN = 12
_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or cannot be read; the message names path and remedy."""


class Checkpoints:
    """The checkpoints of one run. With several processes, all of them make every call.

    Use it in a `with` statement: a save that is under way when Python exits is lost otherwise.

    directory:   made by the first `save`; reading never makes it.
    keep:        how many of the newest finished checkpoints stay (at least 1).
    keep_every:  checkpoints whose step is a multiple of this stay for good.
    constant:    top-level entries of the state that no step changes: written with the first checkpoint only.
    """

    def __init__(
        self, directory: str | Path, keep: int = 2, keep_every: int | None = None, constant: Sequence[str] = ()
    ):
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"keep ({keep}) and keep_every ({keep_every}) must be 1 or more")
        refuse_url(directory)
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._keep_every = keep_every
        self._constant = constant
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def save(self, step: int, state: PyTree, data: Mapping[str, Any], wait: bool = False) -> None:
        """Saves `state` (a pytree of arrays, sharded or not; a dict where some are `constant`) and this process's `data`
        (JSON).

        Returns once the values are copied off the devices, so `state` may be donated right after;
        files are written in the background. Waits first for the save before. A step that is
        already saved is left as it is, which a line in the log says.

        Raises CheckpointError (disk full, no permission, data that is not JSON); that of a
        background write comes out of the next `save`, `wait` or `close`.
        """
        self.wait()
        path = self.directory / str(step)
        if (path / MANIFEST).exists():
            _log.info("step %d is already saved in %s: not saved again", step, path)
            return
        try:
            text = json.dumps(data)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: `data` must be JSON-able: {error}") from error
        try:
            given, state = state, self._changing(state)
            self._make_empty(path)
            write_text(path / f"data_{jax.process_index()}.json", text)
            with _saving_context():
                response = ocp.save_async(path / "state", state)
        except Exception as error:
            raise _save_error(path, error) from error
        beside = self.directory / CONSTANT if state is not given else None
        self._saving = self._pool.submit(self._finish, path, response, beside)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Blocks until the save under way is finished; raises CheckpointError if it failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            try:
                saving.result()
            finally:
                _sync("checkpoint_finished")

    def close(self) -> None:
        """`wait`, then stops the background thread; no save may follow."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def latest(self) -> int | None:
        """The step of the newest finished checkpoint (its files not verified), None without one."""
        return max(self._finished(), default=None)

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[int, PyTree, dict[str, Any]] | None:
        """The newest intact checkpoint (or that of `step`) as `(step, state, data)`.

        abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings. Arrays come back in these
        shardings, whatever mesh they were saved from, and in these dtypes; a cast is logged.

        `data` is what all processes saved, put together: mappings are merged, and what several
        have under one key must agree. So another number of processes may restore it.

        None when nothing was ever saved. A damaged checkpoint is reported as an error in the log
        and as a RuntimeWarning, set aside, and the one before is taken. Raises CheckpointError if
        none is intact, if `step` is asked for and is not, or if tree paths or shapes differ.
        """
        chosen = self._choose(step)
        if chosen is None:
            return None
        path = self.directory / str(chosen)
        saved = self._tree(path)
        self._refuse_lost_constant(abstract_state, saved)
        _check_same_tree(path, abstract_state, saved)
        return chosen, self._load(path, abstract_state), _read_data(path)

    def restore_subtree(self, name: str, abstract: PyTree | None = None, step: int | None = None) -> tuple[int, PyTree]:
        """One top-level entry of the state, such as "params", as `(step, subtree)`.

        The rest (the optimizer's state, say) is neither read nor has to be known. Without
        `abstract`, it comes as nested dicts and lists of numpy arrays, in the saved shapes and dtypes: what
        is larger than a device's memory can be cut over several later. Damage and errors as in
        `restore`; no checkpoint at all is an error as well.
        """
        chosen = self._choose_existing(step)
        path = self.directory / str(chosen)
        saved = self._tree(path)
        if name not in saved:
            raise CheckpointError(f"{path} has no `{name}`; it has {', '.join(sorted(saved))}")
        if abstract is None:
            # Arrays of numpy, of which orbax reads shape and dtype only: these take no memory.
            abstract = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), saved[name])
        _check_same_tree(path, {name: abstract}, {name: saved[name]})
        return chosen, self._load(path, {name: abstract}, partial=True)[name]

    def metadata(self, step: int | None = None) -> tuple[int, PyTree]:
        """`(step, tree of jax.ShapeDtypeStruct)` of the newest intact checkpoint, without arrays.

        Tuples come as lists and named tuples as dicts. Errors as in `restore_subtree`.
        """
        chosen = self._choose_existing(step)
        return chosen, self._tree(self.directory / str(chosen))

    def _changing(self, state: PyTree) -> PyTree:
        """What goes into a checkpoint; saves the rest beside them where it is not there yet."""
        constant = {name: state[name] for name in self._constant if name in state}
        if not constant:
            return state
        path = self.directory / CONSTANT
        # Without a checkpoint it may be another config's, left by a run that was killed before its first one.
        if not self._finished() or not (path / MANIFEST).exists():
            self._make_empty(path)
            with _saving_context():
                ocp.save(path / "state", constant)
            if jax.process_index() == 0:
                write_manifest(path)
            _sync("constant_finished")
        return {name: part for name, part in state.items() if name not in constant}

    def _tree(self, path: Path) -> PyTree:
        """What is saved at a step, and beside it; older checkpoints have all in one."""
        constant = self.directory / CONSTANT
        return (_saved_tree(constant) if (constant / MANIFEST).exists() else {}) | _saved_tree(path)

    def _load(self, path: Path, abstract: PyTree, partial: bool = False) -> PyTree:
        saved = _saved_tree(path)
        if not isinstance(abstract, dict) or abstract.keys() <= saved.keys():
            return _load(path, abstract, partial)
        here = {name: tree for name, tree in abstract.items() if name in saved}
        beside = {name: tree for name, tree in abstract.items() if name not in saved}
        found = _load(self.directory / CONSTANT, beside, partial)
        return found | (_load(path, here, partial) if here else {})

    def _refuse_lost_constant(self, wanted: PyTree, saved: PyTree) -> None:
        """For checkpoints that do not say what they need beside them, as those of older versions."""
        lost = [
            name for name in self._constant if name in wanted and jax.tree.leaves(wanted[name]) and name not in saved
        ]
        if lost and not (self.directory / CONSTANT).exists():
            raise CheckpointError(
                f"{self.directory / CONSTANT} is missing: it holds `{', '.join(lost)}`, which no step changes; bring back the "
                f"folder, or remove {self.directory} to start afresh"
            )

    def _make_empty(self, path: Path) -> None:
        if jax.process_index() == 0:
            if path.exists():
                _log.info("removing the unfinished save %s", path)
                shutil.rmtree(path)
            path.mkdir(parents=True)
        _sync(f"checkpoint_{path.name}_ready")

    def _finish(self, path: Path, response: ocp.AsyncResponse[None], beside: Path | None) -> None:
        """Runs in the background: waits for orbax, seals the checkpoint, deletes old ones."""
        try:
            # Orbax ends on process 0 only after a barrier that every process enters behind its
            # own files, data_<p>.json included: no further barrier is needed before the manifest.
            response.result()
            if jax.process_index() == 0:
                write_manifest(path, beside)
                self._prune(int(path.name))
        except Exception as error:
            if jax.process_index() == 0 and not (path / MANIFEST).exists():
                shutil.rmtree(path, ignore_errors=True)
            raise _save_error(path, error) from error

    def _prune(self, newest: int) -> None:
        finished = self._finished()
        kept = {newest, *sorted(finished)[-self._keep :]}
        if self._keep_every is not None:
            kept.update(step for step in finished if step % self._keep_every == 0)
        for path in list(self.directory.iterdir()):
            if path.name.isdigit() and int(path.name) not in kept:
                # Renamed first: a half-deleted checkpoint must not look like a damaged one.
                path = path.rename(path.with_name(f"{path.name}.deleting"))
            if path.suffix == ".deleting":
                shutil.rmtree(path)

    def _finished(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        steps = [int(path.name) for path in self.directory.iterdir() if path.name.isdigit()]
        finished = [s for s in steps if (self.directory / str(s) / MANIFEST).exists()]
        for step in set(steps) - set(finished):
            _log.info("ignoring the unfinished save %s", self.directory / str(step))
        return finished

    def _choose_existing(self, step: int | None) -> int:
        chosen = self._choose(step)
        if chosen is None:
            raise CheckpointError(f"there is no finished checkpoint in {self.directory}")
        return chosen

    def _choose(self, step: int | None) -> int | None:
        """Verified on process 0, which tells the others: all must restore the same step."""
        self.wait()
        if jax.process_count() == 1:
            return self._intact(step)
        chosen, error = -2, CheckpointError(f"process 0 found no checkpoint in {self.directory}")
        if jax.process_index() == 0:
            try:
                intact = self._intact(step)
                chosen = -1 if intact is None else intact
            except CheckpointError as found:
                error = found
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        if chosen == -2:
            raise error
        return None if chosen == -1 else chosen

    def _intact(self, step: int | None) -> int | None:
        finished = sorted(self._finished(), reverse=True)
        if step is not None and step not in finished:
            raise CheckpointError(f"{self.directory} has no step {step}; it has {finished[::-1]}")
        for candidate in finished if step is None else [step]:
            path = self.directory / str(candidate)
            damage = find_damage(path)
            if damage is None:
                self._check_constant(path)
                if candidate != finished[0] and step is None:
                    _log.error("falling back to the checkpoint of step %d", candidate)
                return candidate
            if path.exists():  # else the run that owns it deleted it while we read
                set_aside(path, damage)
        damaged = sorted(path.name for path in self.directory.glob("*.damaged*"))
        if step is None and not damaged:
            return None
        raise CheckpointError(
            f"no intact checkpoint{'' if step is None else f' of step {step}'} in "
            f"{self.directory}; damaged: {', '.join(damaged)}; bring back a good copy, or remove "
            "these or choose another directory to start afresh"
        )

    def _check_constant(self, step: Path) -> None:
        path, needed = self.directory / CONSTANT, needed_beside(step)
        sealed = (path / MANIFEST).exists()
        damage = find_damage(path) if sealed else None
        if needed and not sealed:
            damage = f"{MANIFEST if path.exists() else 'the folder'} is missing"
        elif needed and damage is None and needed != fingerprint(path / MANIFEST)["sha256"]:
            damage = f"it is not the folder that {step.name} was saved with"
        if damage is not None:
            raise CheckpointError(
                f"{path} is damaged, and every checkpoint beside it needs it: {damage}; bring back a good copy, or remove "
                f"{self.directory} to start afresh"
            )


def _saving_context() -> ocp.Context:
    """Folders are made before a save goes to the background: where one cannot be made, orbax's writers would wait 300 s for it,
    and Python's end with them."""
    context = ocp.Context()
    context.async_options.create_directories_asynchronously = False
    return context


def _sync(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _save_error(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    number = getattr(error, "errno", None)
    text = str(error).lower()
    if number in (errno.ENOSPC, errno.EDQUOT) or "no space left" in text or "quota" in text:
        remedy = "the disk is full: free some space or choose another directory, then run again"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS) or "permission denied" in text:
        remedy = "no permission to write there: change it or choose another directory"
    elif number in (errno.EEXIST, errno.ENOTDIR):
        remedy = "a file stands where a directory is needed: move it or choose another directory"
    else:
        remedy = "earlier checkpoints are untouched"
    return CheckpointError(f"cannot save checkpoint {path}: {remedy} ({reason})")


def _saved_tree(path: Path) -> PyTree:
    saved = ocp.metadata(path / "state").metadata
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)


def _load(path: Path, abstract: PyTree, partial: bool) -> PyTree:
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    try:
        with context:
            return ocp.load(path / "state", abstract)
    except Exception as error:
        raise CheckpointError(f"cannot read {path}, though its files are intact: {error}") from error


def _read_data(path: Path) -> Any:
    processes = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["processes"]
    files = [path / f"data_{process}.json" for process in range(processes)]
    return _together(path, [json.loads(file.read_text(encoding="utf-8")) for file in files])


def _together(path: Path, parts: Sequence[Any]) -> Any:
    if all(isinstance(part, dict) for part in parts):
        names = {name: None for part in parts for name in part}
        return {name: _together(path, [part[name] for part in parts if name in part]) for name in names}
    if all(isinstance(part, list) and len(part) == len(parts[0]) for part in parts):
        return [_together(path, values) for values in zip(*parts, strict=True)]
    if any(part != parts[0] for part in parts):
        raise CheckpointError(f"{path}: its processes saved different data under one key: {parts[:2]}")
    return parts[0]


def _leaves(tree: PyTree) -> dict[str, Any]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _check_same_tree(path: Path, wanted_tree: PyTree, saved_tree: PyTree) -> None:
    wanted, saved = _leaves(wanted_tree), _leaves(saved_tree)
    lines = [f"{name}: in the checkpoint, not in this model" for name in saved.keys() - wanted]
    lines += [f"{name}: in this model, not in the checkpoint" for name in wanted.keys() - saved]
    common = wanted.keys() & saved.keys()
    lines += [
        f"{name}: {saved[name].shape} in the checkpoint, {wanted[name].shape} in this model"
        for name in common
        if tuple(saved[name].shape) != tuple(wanted[name].shape)
    ]
    if lines:
        shown = sorted(lines)[:_DIFFERENCES_SHOWN]
        if len(lines) > len(shown):
            shown.append(f"... and {len(lines) - len(shown)} more")
        raise CheckpointError(
            f"{path} is of another architecture or optimizer, {len(lines)} paths differ:\n  " + "\n  ".join(shown)
        )
    cast = sorted(name for name in common if saved[name].dtype != wanted[name].dtype)
    if cast:
        _log.warning("%s: %d arrays are cast to another dtype, %s first", path, len(cast), cast[0])
