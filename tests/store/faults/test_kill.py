"""SIGKILL at any system call: every reader sees whole tracks, and the next writer repairs."""

import pytest

from . import source
from .operations import OPERATIONS
from .profiles import NIGHTLY, QUICK, TYPICAL, explorations
from .steps import SYNCS

# Of which steps that the same lines make are killed at the first only.
SAMPLED = {"life", "pieces and files"} | (set(OPERATIONS) - set(TYPICAL) if QUICK else set())
NAMES = [name for name in OPERATIONS if NIGHTLY or name not in SAMPLED]
# Every line that these come to is come to by the others; from `ci` on they are killed too.
LIKE_OTHERS = {"seal, a third time", "seal, fixed folders", "seal, not marked"} if QUICK else set()
SOME = NAMES if NIGHTLY else TYPICAL[1:4] if QUICK else TYPICAL
# Nothing changes between the end of one system call and the beginning of the next.
MOMENTS = ("before", "torn") if QUICK else ("before", "torn", "after")
LESS = [] if NIGHTLY else sorted(SAMPLED - LIKE_OTHERS)
KILLS = [
    *explorations("interruptions.kill", NAMES, TYPICAL if QUICK else NAMES, moments=MOMENTS),
    *explorations("interruptions.kill", LESS, moments=MOMENTS, sample=True),
]


def synced(findings):
    return sum(kind in SYNCS for kind in findings.steps)


@pytest.mark.parametrize("operation", KILLS)
def test_a_writer_is_killed_at_every_step(operation, findings):
    assert findings.points >= (len(findings.steps) - synced(findings)) * (len(MOMENTS) - 1)


UNREACHED = {
    # After an error, or on a file system that does what none should.
    "creation.py: filesystem.remove_tree(paths.root)",
    "commit/staging.py: filesystem.rename(path, path.with_name(uuid.uuid4().hex[:12]))",
    "fallbacks.py: filesystem.rename(backup, target)",
    "fallbacks.py: filesystem.rename(file, folder)",
    # Of a track that cannot be brought back from a bundle: tests/store/bundles.
    "sealing/unseal.py: filesystem.discard(folder, paths.trash)",
    # Where locks do not show: tests/store/commit.
    "commit/sealed.py: filesystem.rename(aside, folder)",
    # Where the umask is not that of the store: tests/store/disks.
    "filesystem.py: _open_as(path.parent, path, path.stat(follow_symlinks=False), 0o777)",
    "filesystem.py: _open_as(path.parent, fd, os.fstat(fd), 0o666)",
    "filesystem.py: os.chown(made, -1, wanted.st_gid)",
    "filesystem.py: os.chmod(made, (own.st_mode & 0o7000) | (wanted.st_mode & most))",
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_writer_is_killed_at_every_call_for_a_change(explored):
    """If this fails for a new step: add an operation to operations.py that comes to it."""
    marks = [mark for kill in KILLS for mark in kill.marks if mark.name == "explores"]
    killed = set().union(*(explored.begin(mark).result().sites for mark in marks))
    missed = {
        f"{module}: {source.text(module).splitlines()[line - 1].strip()}"
        for (module, line), (last, _) in source.call_sites().items()
        if not any((module, i) in killed for i in range(line, last + 1))
        # By a thread of its own: tests/store/commit, and where there are no locks, tests/store/disks.
        and module != "commit/heartbeat.py"
        and "set_modified(self.path" not in source.text(module).splitlines()[line - 1]
    }
    assert missed == UNREACHED


@pytest.mark.parametrize("operation", explorations("interruptions.pause", SOME))
def test_another_writer_comes_and_goes_at_every_step(operation, findings):
    pass


TAKEN = ["new track", "overwrite, same kinds", "overwrite, other kinds"]


@pytest.mark.parametrize("operation", explorations("taking_over.stopped", TAKEN, TAKEN))
def test_a_writer_that_is_taken_for_dead_at_any_step_does_no_harm_when_it_goes_on(operation, findings):
    assert len(findings.steps) > 10


@pytest.mark.parametrize(
    "operation", explorations("taking_over.both_stopped", TAKEN if NIGHTLY else (), TAKEN if NIGHTLY else ())
)
def test_nor_while_its_heir_is_at_work(operation, findings):
    assert len(findings.steps) > 100


@pytest.mark.parametrize("operation", explorations("interruptions.interrupt", SOME, sample=QUICK))
def test_ctrl_c_at_every_step_leaves_nothing_behind_once_the_writer_is_closed(operation, findings):
    pass
