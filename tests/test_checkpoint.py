"""What a checkpoint refuses: another tree, shape or dtype, and damage."""

import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.training import checkpoint, parallel
from dgm_jax.types import State


def state_of(w, step=3):
    return State(jnp.asarray(step, jnp.int32), {"net": {"w": jnp.asarray(w)}}, (), {"chains": jnp.ones((2, 3))})


@pytest.fixture
def saved(tmp_path):
    manager = checkpoint.open_manager(tmp_path)
    checkpoint.save(manager, 3, state_of(np.arange(4.0, dtype=np.float32)), {"window": {"loss": [1.5, 2]}})
    manager.wait_until_finished()
    yield manager
    manager.close()


def test_round_trip(saved):
    state, meta = checkpoint.restore(saved, state_of(np.zeros(4, np.float32)))
    np.testing.assert_array_equal(state.params["net"]["w"], np.arange(4.0))
    assert state.step == 3 and state.opt == () and meta["window"] == {"loss": [1.5, 2]}


def test_onto_every_device(saved):
    mesh = parallel.make_mesh({"data": -1})
    like = state_of(np.zeros(4, np.float32))
    like = parallel.shaped(like, parallel.layout(like, mesh))
    state, _ = checkpoint.restore(saved, like)
    assert len(state.params["net"]["w"].sharding.device_set) == jax.device_count()


@pytest.mark.parametrize(
    "like, text",
    [
        (state_of(np.zeros(5, np.float32)), r"params/net/w: checkpoint has \(\(4,\).*this run has \(\(5,\)"),
        (state_of(np.zeros(4, np.float16)), "float32.*float16"),
        (state_of(np.zeros(4, np.float32))._replace(carry=()), "carry/chains: only in the checkpoint"),
        (state_of(np.zeros(4, np.float32))._replace(opt={"m": jnp.zeros(1)}), "opt/m: not in the checkpoint"),
    ],
)
def test_another_state_is_refused_with_the_difference(saved, like, text):
    with pytest.raises(checkpoint.CheckpointError, match=text):
        checkpoint.restore(saved, like)


def flip_bytes(path):
    damaged = bytearray(path.read_bytes())
    for i in range(len(damaged) // 3, len(damaged), 7):
        damaged[i] ^= 1
    path.write_bytes(damaged)


DAMAGES = {
    "flipped": flip_bytes,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "missing": lambda path: path.unlink(),
    "empty folder": lambda path: shutil.rmtree(path.parents[1]) or path.parents[1].mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_found_and_the_one_before_is_used(saved, damage):
    like = state_of(np.zeros(4, np.float32))
    checkpoint.save(saved, 5, state_of(np.ones(4, np.float32), 5), {"window": {}})
    saved.wait_until_finished()

    def harm():
        files = (Path(saved.directory) / "5" / "state").rglob("d/*")
        DAMAGES[damage](max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size))

    harm()
    with pytest.raises(checkpoint.Damaged, match=r"(?s)(damaged|cannot be read).*Move it away"):
        checkpoint.restore(saved, like, 5)
    with checkpoint.opened(Path(saved.directory), read_only=True) as reader:
        with pytest.warns(UserWarning, match="before it is used"):
            assert checkpoint.restore(reader, like, set_aside=False)[0].step == 3
        assert (Path(saved.directory) / "5").exists()
    with pytest.warns(UserWarning, match="5.damaged now"):
        state, _ = checkpoint.restore(saved, like)
    assert state.step == 3
    for step in (4, 5):  # saving goes on
        checkpoint.save(saved, step, state_of(np.full(4, step, np.float32), step), {"window": {}})
    saved.wait_until_finished()
    assert checkpoint.restore(saved, like)[0].params["net"]["w"][0] == 5
    harm()  # the same once more
    with pytest.warns(UserWarning, match="5.damaged1 now"):
        assert checkpoint.restore(saved, like)[0].step == 4


@pytest.mark.parametrize("error", [OSError(116, "stale file handle"), MemoryError("too large")])
def test_what_keeps_from_reading_is_no_damage(saved, error, monkeypatch):
    def restore(*arguments, **options):
        raise error

    checkpoint.save(saved, 5, state_of(np.ones(4, np.float32), 5), {"window": {}})
    saved.wait_until_finished()
    monkeypatch.setattr(saved, "restore", restore)
    with pytest.raises(checkpoint.CheckpointError, match="says nothing of what it holds") as raised:
        checkpoint.restore(saved, state_of(np.zeros(4, np.float32)))
    assert not isinstance(raised.value, checkpoint.Damaged)
    assert (Path(saved.directory) / "5").exists()


def test_a_part_is_read_alone(saved):
    like = state_of(np.zeros(4, np.float32))._replace(carry=())
    state, _ = checkpoint.restore(saved, like, part=True)
    np.testing.assert_array_equal(state.params["net"]["w"], np.arange(4.0))
    with pytest.raises(checkpoint.CheckpointError, match="opt/m: not in the checkpoint"):
        checkpoint.restore(saved, like._replace(opt={"m": jnp.zeros(1)}), part=True)


def test_none_there(tmp_path):
    manager = checkpoint.open_manager(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoint.restore(manager, state_of(np.zeros(4)))
    manager.close()


@pytest.mark.parametrize("mode, kept", [("min", 2), ("max", 3)])
def test_the_best_is_kept(tmp_path, mode, kept):
    manager = checkpoint.open_manager(tmp_path, keep=1, best="valid/nll", mode=mode)
    for step, value in ((1, 5.0), (2, 1.0), (3, 9.0), (4, float("nan")), (5, None)):
        metrics = {} if value is None else {"valid/nll": value}
        checkpoint.save(manager, step, state_of(np.zeros(1, np.float32), step), {}, metrics)
    manager.wait_until_finished()
    assert manager.best_step() == kept and set(manager.all_steps()) == {kept, 5}
    manager.close()


def test_what_a_kill_left_is_removed(tmp_path):
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    with checkpoint.opened(tmp_path, read_only=True):  # somebody may be saving
        assert list(tmp_path.glob("*tmp*"))
    with checkpoint.opened(tmp_path):
        assert not list(tmp_path.glob("*tmp*"))


def test_every_so_manyth_is_kept(tmp_path):
    with checkpoint.opened(tmp_path, keep=2, keep_steps=4) as manager:
        for step in range(1, 12):
            checkpoint.save(manager, step, state_of(np.zeros(1, np.float32), step), {})
        checkpoint.finish(manager)
        assert set(manager.all_steps()) == {4, 8, 10, 11}


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_what_eight_devices_saved_is_restored_on_any_number(tmp_path, devices):
    state = State(
        jnp.asarray(3, jnp.int32),
        {"net": {"w": jax.random.normal(jax.random.key(0), (64, 128)), "b": jnp.arange(5.0)}},
        {"mu": jnp.arange(64.0).reshape(8, 8).astype(jnp.bfloat16)},
        {"chains": jax.random.bernoulli(jax.random.key(1), 0.5, (16, 8))},
    )
    there, here = (
        parallel.make_mesh(shape, jax.devices()[: shape["data"] * shape["fsdp"]])
        for shape in ({"data": 2, "fsdp": 4}, {"data": 1, "fsdp": devices})
    )
    with checkpoint.opened(tmp_path) as manager:
        checkpoint.save(manager, 3, parallel.place(state, parallel.layout(state, there, small=0)), {})
        checkpoint.finish(manager)
        like = parallel.shaped(state, parallel.layout(state, here, small=0))
        restored, _ = checkpoint.restore(manager, like)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert restored.params["net"]["w"].sharding == like.params["net"]["w"].sharding


def test_a_checksum_sees_every_flipped_bit_and_no_layout():
    x = {"x": jnp.arange(48, dtype=jnp.float32).reshape(6, 8) * 0.1}
    one = checkpoint.checksums(x)
    for bit in range(32):
        for place in ((0, 0), (5, 7), (2, 3)):
            words = np.asarray(x["x"]).view(np.uint32).copy()
            words[place] ^= np.uint32(1 << bit)
            assert checkpoint.checksums({"x": jnp.asarray(words.view(np.float32))}) != one
    assert checkpoint.checksums({"x": x["x"][::-1]}) != one
    mesh = parallel.make_mesh({"fsdp": -1})
    assert checkpoint.checksums(parallel.place(x, parallel.layout(x, mesh, small=0))) == one
    for dtype in (jnp.bfloat16, jnp.int8, bool, jnp.uint32):
        values = {"x": jnp.arange(4).astype(dtype)}
        assert checkpoint.checksums(values) != checkpoint.checksums(
            {"x": values["x"] * jnp.asarray([1, 0, 1, 1], dtype)}
        )
    assert list(checkpoint.checksums({"x": jnp.zeros((0, 3)), "y": jnp.zeros(())})) == ["x", "y"]


def test_a_full_disk_loses_nothing(tmp_path):
    noise = np.random.default_rng(0).normal(size=2**18).astype(np.float32)  # what does not compress
    states = [state_of(noise + i, i) for i in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(checkpoint.CheckpointError, match=r"could not be written in .*\n.*kept"),
        checkpoint.opened(tmp_path) as manager,
    ):
        checkpoint.save(manager, 1, states[1], {})
        checkpoint.finish(manager)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # no file can grow further
        try:
            checkpoint.save(manager, 2, states[2], {})
            checkpoint.finish(manager)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with checkpoint.opened(tmp_path) as manager:
        assert manager.all_steps() == [1]
        np.testing.assert_array_equal(checkpoint.restore(manager, states[0])[0].params["net"]["w"], noise + 1)
        checkpoint.save(manager, 2, states[2], {})
        checkpoint.finish(manager)
        assert checkpoint.restore(manager, states[0])[0].step == 2
