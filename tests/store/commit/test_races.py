"""Two hosts whose locks do not show to each other: the slower one takes it for a lock; the store stays whole."""

import contextlib
import itertools
import os

import pytest
from samples import SPEC, assert_same, features, read_all

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import StoreAccessError, TrackExistsError, TrackLockedError
from featurestore.store import filesystem
from featurestore.store.commit import flock, staging
from featurestore.store.sealing import seal


@pytest.fixture
def blind(monkeypatch):
    """Has another host, which does not see our locks, do something, once, before the step of a number."""
    steps, own = {}, set()

    def blindly(lock):
        def try_lock(fd, *arguments, **options):
            what = os.fstat(fd).st_ino, arguments
            if lock(fd, *arguments, **options):
                own.update({what} if "there" in steps else ())
                return True
            return "there" in steps and what not in own

        return try_lock

    monkeypatch.setattr(filesystem, "try_flock", blindly(filesystem.try_flock))
    monkeypatch.setattr(flock, "_set_byte", blindly(flock._set_byte))

    def watch(name):
        step = getattr(filesystem, name)

        def watched(*arguments, **options):
            if "work" in steps:
                steps["left"] -= 1
                if steps["left"] < 0:
                    with pytest.MonkeyPatch.context() as patch:
                        patch.setattr(staging, "_host", lambda: "another")
                        steps["there"] = True
                        steps.pop("work")()
                        del steps["there"]
            return step(*arguments, **options)

        monkeypatch.setattr(filesystem, name, watched)

    for name in ("rename", "exchange", "unlink", "remove_empty"):
        watch(name)

    def before(number, work):
        steps.update(left=number, work=work)
        return lambda: steps.pop("work", None) is None

    return before


@pytest.fixture(params=[True, False], ids=["exchange", "renames"])
def exchanges(request, monkeypatch):
    """With and without an exchange of folders in one step."""
    if not request.param:
        monkeypatch.setattr(filesystem, "exchange", lambda *_: False)


@pytest.mark.slow
@pytest.mark.usefixtures("exchanges")
@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_who_is_slower_loses_and_nothing_else_does(tmp_path, blind, there):
    lost = 0
    for number in itertools.count():
        path = tmp_path / f"{number}.zarr"
        with StoreWriter(path, spec=SPEC, durable=False, overwrite=True) as one:
            if there:
                one.put("a", features(0))

            def come(path=path):
                with (
                    StoreWriter(path, spec=SPEC, durable=False, overwrite=True) as other,
                    contextlib.suppress(TrackLockedError),
                ):
                    other.put("a", features(2))

            has_come = blind(number, come)
            try:
                one.put("a", features(1))
            except (TrackLockedError, TrackExistsError):
                lost += 1
            came = has_come()
        StoreWriter(path, spec=SPEC).close()
        found = read_all(FeatureStore(path), "a")
        assert any(all((found[kind] == features(seed)[kind]).all() for kind in found) for seed in (0, 1, 2)), (
            number
        )
        assert FeatureStore(path).verify(deep=True).ok, number
        for folder in ("staging", "journal"):
            assert list((path / ".featurestore" / folder).iterdir()) == [], number
        if not came:
            break
    assert number > 2
    assert lost
    assert_same(found, features(1))


@pytest.mark.usefixtures("exchanges")
def test_who_packs_second_leaves_it_to_the_first(tmp_path, blind):
    for number in itertools.count():
        path = tmp_path / f"{number}.zarr"
        with StoreWriter(path, spec=SPEC, durable=False) as one:
            one.put("a", features(0))
            one.pack()
            one.put("b", features(1))

            def come(path=path):
                with StoreWriter(path, spec=SPEC, durable=False) as other:
                    other.pack()

            has_come = blind(number, come)
            one.pack()
            came = has_come()
        with StoreWriter(path, spec=SPEC, durable=False) as writer:
            assert writer.pack()
        assert FeatureStore(path).verify(deep=True).ok
        assert FeatureStore(path).info()["packed"] == 2
        if not came:
            break
    assert number > 1


@pytest.mark.slow
@pytest.mark.usefixtures("exchanges")
def test_a_track_that_is_sealed_while_it_is_replaced_is_not_lost(tmp_path, blind):
    for number in itertools.count():
        path, done = tmp_path / f"{number}.zarr", []
        with StoreWriter(path, spec=SPEC, durable=False) as one:
            one.put("a", features(0))
            one.put("b", features(1))

            def come(path=path, done=done):
                with (
                    StoreWriter(path, spec=SPEC, durable=False, overwrite=True) as other,
                    contextlib.suppress(TrackLockedError),
                ):
                    other.put("a", features(2))
                    done.append(2)

            has_come = blind(number, come)
            with contextlib.suppress(TrackLockedError):
                one.pack(seal=True)
            came = has_come()
        StoreWriter(path, spec=SPEC).close()
        store = FeatureStore(path)
        assert_same(read_all(store, "a"), features(done[0] if done else 0))
        assert_same(read_all(store, "b"), features(1))
        if not came:
            break
    assert number > 10


@pytest.mark.parametrize("seen", [False, True])
def test_nothing_is_sealed_beside_a_writer_whose_lock_does_not_show(tmp_path, monkeypatch, seen):
    path = tmp_path / "store.zarr"
    with StoreWriter(path, spec=SPEC, durable=False) as one:
        one.put("a", features(0))
        with monkeypatch.context() as patch:
            patch.setattr(staging, "_host", lambda: "another")
            other = StoreWriter(path, spec=SPEC, durable=False)
        with other:
            if not seen:
                flock.unlock(other.session.staging._owner)
                other.session.staging._owner = None
            with contextlib.nullcontext() if seen else pytest.raises(StoreAccessError, match="another host"):
                one.pack(seal=True)
        one.pack(seal=True)
    assert FeatureStore(path).info()["sealed"] == 1


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_nothing_is_sealed_beside_a_writer_that_knows_no_bundles(tmp_path, monkeypatch, when):
    path = tmp_path / "store.zarr"
    with StoreWriter(path, spec=SPEC, durable=False) as one, contextlib.ExitStack() as stack:
        one.put("a", features(0))

        def come():
            with monkeypatch.context() as patch:
                patch.setattr(staging, "_KNOWS", "2")
                stack.enter_context(StoreWriter(path, spec=SPEC, durable=False))

        if when == "before":
            come()
        else:
            write = seal.write_bundle
            monkeypatch.setattr(seal, "write_bundle", lambda *args: (write(*args), come()))
        with pytest.raises(StoreAccessError, match="earlier release"):
            one.pack(seal=True)
        assert FeatureStore(path).info()["sealed"] == 0
        monkeypatch.undo()
        stack.close()
        one.pack(seal=True)
    assert FeatureStore(path).info()["sealed"] == 1
