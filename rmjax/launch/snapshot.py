"""The code that a job runs, as it is now: what git tracks, with what is not committed yet."""

import dataclasses
import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import rmjax
from rmjax.launch.spec import JobSpec
from rmjax.launch.target import spec_json


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Code at one moment."""

    version: str  # of rmjax
    commit: str = ""  # empty: not a git checkout, the installed package runs
    patch: str = ""  # what is not committed, for reading; the archive has it too
    archive: bytes = b""  # tar.gz of the tracked files, the same bytes for the same files
    files: frozenset[str] = frozenset()  # tracked paths that exist
    untracked: tuple[str, ...] = ()  # paths that git neither tracks nor ignores: not in the archive

    def id(self, spec: JobSpec) -> str:
        """Twelve hexadecimal digits of code and spec: another submission of the same has the same."""
        return hashlib.sha256(self.archive + self.version.encode() + spec_json(spec).encode()).hexdigest()[:12]


def take(root: Path) -> Snapshot:
    """The snapshot of a folder.

    Raises OSError where git knows the folder but cannot read it.
    """
    if not _is_checkout(root):
        return Snapshot(rmjax.__version__)
    tracked = [path for path in _paths(root, "--cached") if (root / path).is_file() or (root / path).is_symlink()]
    return Snapshot(
        rmjax.__version__,
        commit=_git(root, "rev-parse", "HEAD").strip(),
        patch=_git(root, "diff", "--binary", "HEAD", "--", "."),
        archive=_archive(root, tracked),
        files=frozenset(tracked),
        untracked=tuple(_paths(root, "--others", "--exclude-standard")),
    )


def check_files(spec: JobSpec, snapshot: Snapshot, root: Path) -> None:
    """ValueError where the command names a relative path that is here and not in the snapshot: the job would not find it."""
    if not snapshot.archive:
        return
    for argument in spec.command:
        path = os.path.normpath(argument.rpartition("=")[2].split(":")[0])
        if os.path.isabs(path) or not ("/" in path or Path(path).suffix) or not (root / path).exists():
            continue
        if path not in snapshot.files and not any(file.startswith(f"{path}/") for file in snapshot.files):
            raise ValueError(
                f"spec.command names {path}, which git does not track, so the job's copy of the code lacks it; git add it, or "
                "give an absolute path that the job sees"
            )


def _is_checkout(root: Path) -> bool:
    """Whether this folder is the root of a git checkout with a commit."""
    try:
        return Path(_git(root, "rev-parse", "--show-toplevel").strip()).samefile(root) and bool(
            _git(root, "rev-parse", "HEAD")
        )
    except OSError:
        return False


def _paths(root: Path, *which: str) -> list[str]:
    return sorted({path for path in _git(root, "ls-files", "-z", *which).split("\0") if path})


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True)
    if done.returncode:
        raise OSError(f"git {arguments[0]} failed in {root}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode("utf-8", errors="surrogateescape")


def _archive(root: Path, paths: list[str]) -> bytes:
    """Without times and owners, so that equal files make equal archives."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for path in paths:
            tar.add(root / path, arcname=path, recursive=False, filter=_plain)
    return gzip.compress(raw.getvalue(), mtime=0)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.mode & 0o100 else 0o644
    return member
