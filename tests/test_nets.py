"""nets/conv.py and nets/unet.py: values and gradients against plain numpy, lax and flax, inside loops and out."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dgm_jax.nets import conv as C
from dgm_jax.nets import lstm
from dgm_jax.nets.unet import UNet, fourier_features

CASES = [  # spatial size, window, dilation, padding
    ((7, 6), (3, 3), (1, 1), "SAME"),
    ((7, 6), (3, 3), (1, 1), "VALID"),
    ((6, 7), (2, 4), (1, 1), "SAME"),
    ((6, 7), (4, 1), (1, 1), "VALID"),
    ((5, 5), (1, 1), (1, 1), "SAME"),
    ((9, 8), (3, 2), (2, 3), "SAME"),
    ((9, 8), (3, 2), (2, 3), "VALID"),
    ((5, 6), (3, 5), (1, 1), [(2, 0), (0, 4)]),
    ((6, 5), (2, 3), (3, 1), [(5, 4), (3, 1)]),  # padding beyond the window's reach
    ((6, 6), (3, 3), (1, 1), [(-1, 2), (0, -1)]),  # cropping
    ((2, 3), (3, 5), (1, 1), "SAME"),  # a window larger than the image
    ((9,), (3,), (2,), [(4, 0)]),  # causal, one axis
]


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def numpy_conv(x, w, dilation, padding):
    """The definition: a sum over the window's positions of products of shifted images."""
    n = x.ndim - 2
    reach = [(k - 1) * d for k, d in zip(w.shape, dilation, strict=False)]
    if padding == "SAME":
        padding = [(r // 2, r - r // 2) for r in reach]
    elif padding == "VALID":
        padding = [(0, 0)] * n
    grown = np.pad(x, [(0, 0), *[(max(p, 0), max(q, 0)) for p, q in padding], (0, 0)])
    crops = [slice(max(-p, 0), size - max(-q, 0)) for (p, q), size in zip(padding, grown.shape[1:-1], strict=True)]
    grown = grown[:, *crops]
    sizes = [size - r for size, r in zip(grown.shape[1:-1], reach, strict=True)]
    total = 0.0
    for place in itertools.product(*map(range, w.shape[:n])):
        starts = [i * d for i, d in zip(place, dilation, strict=True)]
        total += grown[:, *[slice(a, a + s) for a, s in zip(starts, sizes, strict=True)]] @ w[place]
    return total


def lax_conv(x, w, dilation, padding):
    letters = "HW"[: x.ndim - 2]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    return jax.lax.conv_general_dilated(
        x, w, (1,) * (x.ndim - 2), padding, rhs_dilation=dilation, dimension_numbers=numbers
    )


@pytest.mark.slow
@pytest.mark.parametrize(("size", "window", "dilation", "padding"), CASES)
@pytest.mark.parametrize("in_cache", [C.IN_CACHE, 1])  # the weight gradient of the batch at once, or one by one
def test_conv_and_its_first_and_second_derivatives(size, window, dilation, padding, in_cache, monkeypatch):
    monkeypatch.setattr(C, "IN_CACHE", in_cache)
    with jax.enable_x64(True):
        x, w = arrays((2, *size, 3), (*window, 3, 4))
        ours = lambda x, w: C.conv(x, w, padding, dilation)  # noqa: E731
        reference = lambda x, w: lax_conv(x, w, dilation, padding)  # noqa: E731
        np.testing.assert_allclose(ours(x, w), numpy_conv(np.asarray(x), np.asarray(w), dilation, padding), atol=1e-12)

        def derivatives(conv):
            def first(x, w):
                return jax.grad(lambda x, w: jnp.sin(conv(x, w)).sum(), (0, 1))(x, w)

            def second(x, w):
                return jax.grad(lambda x, w: sum((g**3).sum() for g in first(x, w)), (0, 1))(x, w)

            return jax.jit(lambda x, w: (first(x, w), second(x, w)))(x, w)

        for a, b in zip(jax.tree.leaves(derivatives(ours)), jax.tree.leaves(derivatives(reference)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("size", "window", "dilation", "padding"), CASES)
def test_both_forms_of_the_weight_gradient_are_one(size, window, dilation, padding, monkeypatch):
    taken = {}
    for form in (C._as_forward, C._as_derivative):
        with jax.enable_x64(True), monkeypatch.context() as patch:
            patch.setattr(C, "_as_forward", form)
            x, w = arrays((2, *size, 3), (*window, 3, 4))
            taken[form] = jax.grad(lambda w, x=x: jnp.sin(C.conv(x, w, padding, dilation)).sum())(w)
    np.testing.assert_allclose(taken[C._as_derivative], taken[C._as_forward], rtol=1e-10, atol=1e-10)


def test_weight_gradient_takes_what_the_cache_holds():
    def at_once(*shape):
        return C._examples_at_once(jax.ShapeDtypeStruct(shape, jnp.float32))  # no array: the last has four gigabytes

    assert at_once(50, 28, 28, 16) == 5 and at_once(50, 8, 8, 16) == 50
    assert at_once(7, 28, 28, 16) == 1 and at_once(64, 512, 512, 64) == 1


def test_conv_under_vmap_equals_the_batch():
    with jax.enable_x64(True):
        x, w = arrays((3, 2, 5, 5, 2), (3, 3, 2, 4))

        def loss(x):
            return jnp.sin(C.conv(x, w)).sum()

        one = jax.jit(jax.value_and_grad(loss))
        batched = jax.jit(jax.vmap(one))(x)
        for i in range(3):
            value, gradient = one(x[i])
            np.testing.assert_allclose(batched[0][i], value, rtol=1e-12)
            np.testing.assert_allclose(batched[1][i], gradient, rtol=1e-12, atol=1e-14)


def test_conv_in_scan_equals_outside():
    x, w = (a.astype(jnp.float32) for a in arrays((2, 6, 6, 3), (3, 3, 3, 3)))

    def step(w, _):
        return w - 0.1 * jax.grad(lambda w: (C.conv(x, w) ** 2).mean())(w), None

    inside = jax.lax.scan(step, w, None, length=3)[0]
    outside = w
    for _ in range(3):
        outside = step(outside, None)[0]
    np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-6)


def convolutions(jaxpr):
    """All convolutions of a jaxpr and what it calls on the CPU."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            yield eqn.params
        called = eqn.params
        if platforms := called.get("branches_platforms"):
            called = next(b for of, b in zip(platforms, called["branches"], strict=True) if of is None or "cpu" in of)
        for sub in jax.tree.leaves(called, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(sub, "jaxpr", sub)
            if hasattr(inner, "eqns"):
                yield from convolutions(inner)


def test_gradients_are_forward_convolutions_only():
    """Others, which lax's own gradient consists of, are 30 times slower in a loop on the CPU."""

    def plain(params):
        spec = params["dimension_numbers"]
        channels_last = (0, 3, 1, 2)
        return (
            (spec.lhs_spec, spec.rhs_spec, spec.out_spec) == (channels_last, (3, 2, 0, 1), channels_last)
            and set(params["lhs_dilation"]) == {1}
            and params["batch_group_count"] == params["feature_group_count"] == 1
        )

    x, w = arrays((2, 6, 6, 3), (3, 3, 3, 4))
    for conv, expected in ((C.conv, True), (lambda x, w: lax_conv(x, w, (1, 1), "SAME"), False)):
        penalty = lambda x, w: (jax.grad(lambda x: (conv(x, w) ** 2).sum())(x) ** 2).sum()  # noqa: E731
        found = [plain(p) for p in convolutions(jax.make_jaxpr(jax.grad(penalty, (0, 1)))(x, w).jaxpr)]
        assert len(found) >= 4
        assert all(found) == expected


def test_module_equals_flax():
    x = jax.random.normal(jax.random.key(0), (2, 3, 7, 6, 2))
    for kwargs in ({"padding": "VALID", "use_bias": False}, {"kernel_dilation": (2, 1), "padding": [(1, 0), (2, 2)]}):
        flax = nn.Conv(4, (3, 2), **kwargs)
        ours = C.Conv(4, (3, 2), **kwargs)
        params = flax.init(jax.random.key(1), x)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x))
        np.testing.assert_allclose(ours.apply(params, x), flax.apply(params, x), rtol=1e-5, atol=1e-6)
    bf16 = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, x))
    assert ours.apply(*bf16).dtype == jnp.bfloat16


def test_group_norm_equals_flax():
    with jax.enable_x64(True):
        (x,) = arrays((3, 4, 5, 6))
        x = 1 + 2 * x
        ours, flax = C.GroupNorm(groups=3), nn.GroupNorm(num_groups=3)
        params = {"params": {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0)}}
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x))

        def values(norm):
            def loss(params, x):
                y = norm.apply(params, x)
                return jnp.sin(y).sum(), y

            return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)

        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), values(ours), values(flax))


def test_resampling():
    (x,) = arrays((2, 3, 4, 6, 5))
    blocks = C.space_to_depth(x)
    np.testing.assert_array_equal(blocks[0, 1, 1, 2], x[0, 1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(C.depth_to_space(blocks), x)
    np.testing.assert_array_equal(C.space_to_depth(C.depth_to_space(C.space_to_depth(x))), blocks)
    np.testing.assert_allclose(C.downsample(x)[1, 2, 1, 0], x[1, 2, 2:4, :2].mean((0, 1)), rtol=1e-6)
    np.testing.assert_array_equal(C.upsample(x), np.repeat(np.repeat(x, 2, -3), 2, -2))
    np.testing.assert_array_equal(C.upsample(x, 3).shape, (2, 3, 12, 18, 5))


@pytest.mark.parametrize("f", [C.space_to_depth, C.downsample])
def test_odd_sizes_are_refused(f):
    with pytest.raises(ValueError, match="divided by 2"):
        f(jnp.zeros((1, 7, 8, 1)))


def test_group_norm_refuses_uneven_groups():
    with pytest.raises(ValueError, match="divided by 8"):
        C.GroupNorm(groups=8).init(jax.random.key(0), jnp.zeros((1, 2, 2, 12)))


def test_fourier_features_tell_neighbouring_times_apart():
    t = jnp.arange(1001.0)
    features = fourier_features(t, 16)
    assert features.shape == (1001, 16)
    gaps = jnp.linalg.norm(features[1:] - features[:-1], axis=-1)
    assert float(gaps.min()) > 0.5
    np.testing.assert_allclose(features[3, jnp.array([0, 8])], [np.cos(3), np.sin(3)], rtol=1e-6)


def perturbed_unet(shape, **kwargs):
    """A net that is not 0 as (compiled apply, params, first params, inputs)."""
    net = UNet(features=2, channels=8, heads=2, groups=4, **kwargs)
    x_key, init_key, noise_key = jax.random.split(jax.random.key(0), 3)
    x, t = jax.random.normal(x_key, (3, *shape)), jnp.array([0.1, 0.5, 1.0])
    label = jnp.array([0, 1, 2]) if net.classes else None
    first = jax.jit(net.init)(init_key, x, t, label)
    flat, unravel = ravel_pytree(first)
    params = unravel(flat + 0.2 * jax.random.normal(noise_key, flat.shape))
    return jax.jit(net.apply, static_argnames="deterministic"), params, first, (x, t, label)


@pytest.mark.slow
def test_unet_depends_on_every_parameter_and_input():
    apply, params, first, (x, t, label) = perturbed_unet((8, 4, 1), classes=3)
    np.testing.assert_array_equal(apply(first, x, t, label), np.zeros((3, 8, 4, 2)))

    def loss(params, x, t):
        y = apply(params, x, t, label)
        return (y**2).sum(), y

    gradients, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(params, x, t)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)
    assert np.abs(apply(params, x, t, label[::-1]) - y)[0].max() > 1e-3


@pytest.mark.slow
def test_unet_treats_examples_apart():
    apply, params, _, (x, t, _) = perturbed_unet((4, 4, 1), multipliers=(2,))
    y = apply(params, x, t)
    others = apply(params, x.at[0].add(1.0), t.at[2].add(-0.3))
    np.testing.assert_allclose(others[1], y[1], rtol=1e-5, atol=1e-5)
    assert np.abs(others - y)[np.array([0, 2])].max((1, 2, 3)).min() > 1e-2


@pytest.mark.slow
def test_unet_dropout_takes_its_key():
    apply, params, _, (x, t, _) = perturbed_unet((4, 4, 1), multipliers=(2,), dropout=0.5, attention=False)

    def dropped(seed):
        return apply(params, x, t, deterministic=False, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert np.abs(dropped(0) - dropped(1)).max() > 1e-3
    assert np.abs(dropped(0) - apply(params, x, t)).max() > 1e-3


@pytest.mark.slow
def test_images_abreast_are_images_apart():
    rng = np.random.default_rng(0)
    kernel, gates = jnp.asarray(rng.normal(size=(4, 8))), jnp.asarray(rng.normal(size=(3, 4, 6, 8)))
    apart = lstm.diagonals(kernel, gates)
    for abreast in (2, 6):
        np.testing.assert_allclose(lstm.diagonals(kernel, gates, abreast), apart, rtol=1e-6)
    assert [lstm.images_abreast(n) for n in (1, 7, 8, 50)] == [1, 1, 2, 10]
