"""Autoregressive models of images: exact, blind to what comes later, and sampled as their probabilities say."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from enumeration import assert_drawn_from, states

from dgm_jax import zoo
from dgm_jax.models import outputs
from dgm_jax.training.compilation import jit_often

SMALL = {"features": 6, "layers": 3, "first": 3, "head": 6}
CASES = {
    "pixelcnn": SMALL,
    "gated_pixelcnn": SMALL,
    "gated_pixelcnn_wide": SMALL | {"name": "gated_pixelcnn", "first": 5, "kernel": 5, "layers": 2},
    "pixelrnn": SMALL | {"layers": 2},
    "pixelrnn_row": SMALL | {"name": "pixelrnn", "kind": "row"},
}
BLIND = {  # whether a pixel in a column does not see the one so many rows above and columns to the right
    "pixelcnn": lambda above, right, column: right > above,
    "pixelrnn_row": lambda above, right, column: right > above,
    # what reads the last one is moved down to below it, and the first convolution reaches over one column
    "pixelrnn": lambda above, right, column: (above == 1) & (column + right == 3) & (right > 1),
}
COLOURS = {
    "pixelcnn": SMALL,
    "gated_pixelcnn": SMALL,
    "gated_pixelcnn_codes": SMALL | {"name": "gated_pixelcnn", "embedding": 4},
    "pixelrnn": SMALL | {"layers": 2},
    "pixelrnn_row": SMALL | {"name": "pixelrnn", "kind": "row"},
}
SCALES = {  # the small image first
    "multiscale_pixelrnn": SMALL | {"layers": 1, "context": 5},
    "multiscale_pixelrnn_4": SMALL
    | {
        "name": "multiscale_pixelrnn",
        "scale": 4,
        "kind": "row",
        "small": {"kind": "diagonal", "layers": 1},
        "context": 5,
    },
}


def marked(cases, *more):
    """As parameters of a test; one is in the fast subset."""
    return [pytest.param(case, *more, marks=() if case == "gated_pixelcnn" else pytest.mark.slow) for case in cases]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def build(case, shape, **options):
    """A model with random parameters."""
    given = ((COLOURS if shape[-1] == 3 else CASES) | SCALES)[case] | options
    model = zoo.MODELS[given.pop("name", case) if "name" in given else case](shape=shape, **given)
    batch = {"x": jnp.zeros((2, *shape)), "cond": condition(options, 2)}
    with jax.enable_x64(True):
        shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
        rng = np.random.default_rng(0)
        scale = {"kernel": lambda s: 1.5 / np.sqrt(np.prod(s[:-1])), "bias": lambda s: 0.5}
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.asarray(
                rng.normal(size=leaf.shape) * scale.get(path[-1].key, lambda s: 0.5)(leaf.shape)
            ),
            shapes,
        )
    return model, params


def condition(options, n, label=1):
    if size := options.get("cond_map"):
        return jnp.asarray(np.random.default_rng(label).normal(size=(n, 4, 5, size)))
    if options.get("map_codes"):
        return jnp.full((n, 2, 2), label)
    if size := options.get("cond_size"):
        return jnp.tile(jnp.linspace(-1, label, size), (n, 1))
    return jnp.full(n, label) if options.get("classes") else None


@functools.cache
def conditionals_of(model):
    return jax.jit(lambda params, x, cond: model.log_conditionals(params, None, {"x": x, "cond": cond}))


def naive_samples(model, params, key, shape, n, levels, cond, temperature, scale=None):
    """A full pass of the net for every value that is drawn."""
    output = outputs.make("bernoulli") if levels == 2 else outputs.make("categorical", levels=levels)
    x = jnp.zeros((n, *shape))
    conditionals = conditionals_of(model)
    for d, own_key in order(key, shape, scale):
        logits = [conditionals(params, x.at[:, *d].set(level), cond)[:, *d] for level in range(levels)]
        raw = (logits[1] - logits[0])[:, None] if levels == 2 else jnp.stack(logits, axis=-1)
        x = x.at[:, *d].set(output.sample(own_key, raw, temperature))
    return x


def order(key, shape, scale):
    """The values of an image in the order in which they are drawn, each with its key."""
    places = list(itertools.product(*map(range, shape)))
    if scale is None:
        keys = jax.random.split(key, shape)
        return [(d, keys[d]) for d in places]
    height, width, channels = shape
    small_key, large_key = jax.random.split(key)
    small_keys = jax.random.split(small_key, (-(-height // scale), -(-width // scale), channels))
    keys = jax.random.split(large_key, shape)
    small = [d for d in places if d[0] % scale == d[1] % scale == 0]
    return [(d, small_keys[d[0] // scale, d[1] // scale, d[2]]) for d in small] + [
        (d, keys[d]) for d in places if d not in small
    ]


@pytest.mark.parametrize("case", marked([*CASES, *SCALES]))
def test_probabilities_sum_to_one_and_samples_have_them(case):
    model, params = build(case, (3, 3, 1))
    x = jnp.asarray(states(9)).reshape(-1, 3, 3, 1)
    log_probs = np.asarray(conditionals_of(model)(params, x, None).sum((1, 2, 3)))
    np.testing.assert_allclose(scipy.special.logsumexp(log_probs), 0, atol=1e-9)
    samples = jax.jit(model.sample, static_argnums=2)(params, jax.random.key(0), 10_000)
    assert_drawn_from(samples, np.exp(log_probs))


@pytest.mark.parametrize(
    "case, options",
    [*marked(["gated_pixelcnn"], {"cond_size": 2}), *marked([*CASES, "multiscale_pixelrnn"], {"classes": 3})],
)
def test_samples_are_those_of_full_passes(case, options):
    shape, n = (4, 5, 1), 6
    model, params = build(case, shape, **options)
    cond = condition(options, n)
    sample = jax.jit(model.sample, static_argnums=2)
    found = sample(params, jax.random.key(1), n, cond, 0.8)
    scale = 2 if case in SCALES else None
    naive = naive_samples(model, params, jax.random.key(1), shape, n, 2, cond, 0.8, scale)
    np.testing.assert_array_equal(found, naive)
    one, other = (conditionals_of(model)(params, found, condition(options, n, label)) for label in (0, 2))
    assert jnp.all(jnp.any(one != other, axis=0))  # a condition reaches every pixel


def test_samples_given_a_map_of_codes_are_those_of_full_passes():
    shape, n = (4, 4, 1), 6
    model, params = build("gated_pixelcnn", shape, map_codes=3, context=4)
    cond = jnp.asarray(np.random.default_rng(0).integers(3, size=(n, 2, 2)))
    found = jax.jit(model.sample, static_argnums=2)(params, jax.random.key(1), n, cond, 0.8)
    naive = naive_samples(model, params, jax.random.key(1), shape, n, 2, cond, 0.8)
    np.testing.assert_array_equal(found, naive)
    one = conditionals_of(model)(params, found, cond)
    for cell in itertools.product(range(2), repeat=2):  # a cell of the map reaches its own pixels
        other = conditionals_of(model)(params, found, cond.at[:, *cell].set((cond[:, *cell] + 1) % 3))
        changed = np.asarray(jnp.any(one != other, axis=(0, 3))).reshape(2, 2, 2, 2)
        assert changed[cell[0], :, cell[1]].all()
    with pytest.raises(ValueError, match="conditional on a map of 3 codes"):
        model.log_prob(params, None, {"x": found})


@pytest.mark.parametrize("case", marked([*COLOURS, "multiscale_pixelrnn"]))
def test_samples_in_colour_are_those_of_full_passes(case):
    shape, n, levels = (3, 4, 3), 4, 4
    model, params = build(case, shape, output="categorical", levels=levels)
    found = jax.jit(model.sample, static_argnums=2)(params, jax.random.key(1), n)
    scale = 2 if case in SCALES else None
    naive = naive_samples(model, params, jax.random.key(1), shape, n, levels, None, 1.0, scale)
    np.testing.assert_array_equal(found, naive)


def test_samples_given_features_of_every_pixel_are_those_of_full_passes():
    shape, n = (4, 5, 1), 6
    model, params = build("gated_pixelcnn", shape, cond_map=2)
    cond = condition({"cond_map": 2}, n)
    found = jax.jit(model.sample, static_argnums=2)(params, jax.random.key(1), n, cond, 0.8)
    np.testing.assert_array_equal(found, naive_samples(model, params, jax.random.key(1), shape, n, 2, cond, 0.8))
    one = conditionals_of(model)(params, found, cond)
    for place in ((0, 0), (1, 3), (3, 4)):  # what is said of a pixel reaches it, and none of the rows above
        other = conditionals_of(model)(params, found, cond.at[:, *place].add(1.0))
        changed = np.asarray(jnp.any(one != other, axis=(0, 3)))
        assert changed[place] and not changed[: place[0]].any()
    with pytest.raises(ValueError, match=r"conditional on arrays of shape \(4, 5, 2\)"):
        model.log_prob(params, None, {"x": found, "cond": cond[:, :3]})
    with pytest.raises(ValueError, match="one of map_codes=3, cond_map=2"):
        build("gated_pixelcnn", shape, cond_map=2, map_codes=3)


def test_codes_are_read_as_names():
    """Whatever the codes are called: renamed, with their vectors and logits, they have the same probabilities."""
    model, params = build("gated_pixelcnn", (4, 4, 1), output="categorical", levels=5, embedding=3)
    rng = np.random.default_rng(0)
    x, names = rng.integers(5, size=(6, 4, 4, 1)), rng.permutation(5)  # code k becomes names[k]
    old = np.argsort(names)
    head = {"kernel": params["head"]["kernel"][..., old], "bias": params["head"]["bias"][old]}
    renamed = {**params, "embed": {"embedding": params["embed"]["embedding"][old]}, "head": head}
    found, expected = (
        conditionals_of(model)(p, jnp.asarray(x, float), None) for p, x in ((renamed, names[x]), (params, x))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    for options in ({"output": "logistic"}, {"bf16": True, "levels": 257}):
        with pytest.raises(ValueError, match="embedding=3 is of a categorical output"):
            zoo.MODELS["gated_pixelcnn"](shape=(4, 4, 1), embedding=3, **{"output": "categorical"} | options)


@pytest.mark.slow
def test_probabilities_of_all_colour_images_sum_to_one():
    """Over all values but those of the last channel, which no other conditional sees, and whose own sums to one."""
    model, params = build("gated_pixelcnn", (2, 2, 3), output="categorical", levels=4, features=3, layers=2)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    compiled = jit_often(lambda x: model.log_conditionals(params, None, {"x": x}))

    def log_conditionals(images):  # as numbers with a digit a channel
        x = images.reshape(-1, 1) >> 2 * np.arange(12)[None, ::-1] & 3
        found = compiled(x.reshape(-1, 2, 2, 3).astype(np.float32))
        return np.asarray(found, float).reshape(*images.shape, 12)

    chunks = np.arange(0, 4**12, 4).reshape(-1, 4**8)
    sums = [np.exp(log_conditionals(images)[:, :-1].sum(1)).sum() for images in chunks]
    np.testing.assert_allclose(sum(sums), 1, atol=1e-5)
    some = np.random.default_rng(0).integers(4**11, size=(4**7, 1))
    table = log_conditionals(4 * some + np.arange(4)[None])
    np.testing.assert_allclose(np.ptp(table[..., :-1], axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(np.exp(table[..., -1]).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("case", marked(CASES))
def test_a_pixel_sees_all_pixels_before_it_and_no_other(case):
    shape = (4, 4, 1)
    model, params = build(case, shape, layers=6, features=12, head=24)  # of fewer all can be off
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, *shape)))
    jacobian = jax.jit(jax.jacrev(lambda x: conditionals_of(model)(params, x, None)))(x)
    sees = np.asarray(jacobian).reshape(16, 16) != 0
    rows, columns = np.divmod(np.arange(16), 4)
    above, right = rows[:, None] - rows[None], columns[None] - columns[:, None]
    blind = BLIND[case](above, right, columns[:, None]) if case in BLIND else False
    np.testing.assert_array_equal(sees, np.tril(np.ones((16, 16), bool)) & ~np.asarray(blind))


@pytest.mark.parametrize("case", marked(COLOURS))
def test_a_channel_sees_the_earlier_channels_of_its_pixel(case):
    model, params = build(case, (1, 4, 3), output="categorical", levels=4, layers=4, features=12, head=24)
    rng = np.random.default_rng(0)
    sees = np.zeros((12, 12), bool)
    for _ in range(3):
        x = rng.integers(4, size=12)
        for d in range(12):  # levels are read through a gather: differences, not derivatives
            changed = np.tile(x, (4, 1))
            changed[:, d] = np.arange(4)
            values = conditionals_of(model)(params, jnp.asarray(changed, float).reshape(4, 1, 4, 3), None)
            sees[:, d] |= np.ptp(np.asarray(values).reshape(4, 12), axis=0) > 1e-12
    np.testing.assert_array_equal(sees, np.tril(np.ones((12, 12), bool)))


@pytest.mark.parametrize("case", marked([*CASES, "multiscale_pixelrnn"]))
def test_completions_keep_what_is_given(case):
    shape, n = (4, 4, 1), 5
    model, params = build(case, shape)
    x = jnp.asarray(np.random.default_rng(0).integers(2, size=(n, *shape)), float)
    upper = jnp.broadcast_to((jnp.arange(4) < 2)[None, :, None, None], x.shape).astype(float)
    found = jax.jit(model.complete)(params, jax.random.key(2), {"x": x, "observed": upper})
    np.testing.assert_array_equal(jnp.where(upper == 1, found, 0), jnp.where(upper == 1, x, 0))
    nothing = jax.jit(model.complete)(params, jax.random.key(2), {"x": x, "observed": jnp.zeros_like(x)})
    np.testing.assert_array_equal(nothing, jax.jit(model.sample, static_argnums=2)(params, jax.random.key(2), n))


def row_lstm(kernel, gates):
    """The Row LSTM of one image, pixel by pixel: gates [H, W, 4 F] -> [H, W, F]."""
    height, width, f = *gates.shape[:2], gates.shape[2] // 4
    h, c = {}, {}
    zero = np.zeros(f)
    for i, j in itertools.product(range(height), range(width)):
        neighbours = [h.get((i - 1, j + k), zero) for k in (-1, 0, 1)]
        h[i, j], c[i, j] = cell(gates[i, j] + np.concatenate(neighbours) @ kernel[0], c.get((i - 1, j), zero))
    return np.array([[h[i, j] for j in range(width)] for i in range(height)])


def diagonal_bilstm(kernel, gates):
    """The Diagonal BiLSTM of one image, pixel by pixel: gates [H, W, 8 F] -> [H, W, F]."""
    height, width, f = *gates.shape[:2], gates.shape[2] // 8
    zero = np.zeros(f)

    def directed(kernel, gates, step):
        h, c = {}, {}
        for i, j in itertools.product(range(height), range(width)[::step]):
            before = np.concatenate([h.get((i, j - step), zero), h.get((i - 1, j), zero)])
            h[i, j], c[i, j] = cell(gates[i, j] + before @ kernel, c.get((i, j - step), zero))
        return h

    right, left = directed(kernel[0], gates[..., : 4 * f], 1), directed(kernel[1], gates[..., 4 * f :], -1)
    return np.array([[right[i, j] + left.get((i - 1, j), zero) for j in range(width)] for i in range(height)])


def cell(gates, c):
    o, f, i, g = np.split(gates, 4)
    c = scipy.special.expit(f) * c + scipy.special.expit(i) * np.tanh(g)
    return scipy.special.expit(o) * np.tanh(c), c


@pytest.mark.slow
@pytest.mark.parametrize("case, lstm", [("pixelrnn", diagonal_bilstm), ("pixelrnn_row", row_lstm)])
def test_pixelrnn_is_the_recursion_of_the_paper(case, lstm):
    model, params = build(case, (4, 5, 1), classes=3)
    x = np.random.default_rng(0).integers(2, size=(4, 5, 1)).astype(float)
    found = conditionals_of(model)(params, jnp.asarray(x)[None], condition({"classes": 3}, 1))[0]
    weights = jax.tree.map(np.asarray, params)

    def conditioned(name, y):
        return y + weights[f"condition_{name}"]["kernel"][1]

    def left(name, x):  # a convolution along the row, of what is left of a pixel and the pixel
        kernel = weights[name]["kernel"]
        padded = np.pad(x, [(0, 0), (len(kernel) - 1, 0), (0, 0)])
        return weights[name]["bias"] + sum(padded[:, k : k + x.shape[1]] @ w for k, w in enumerate(kernel))

    kernel = np.zeros((3, 3, 1, 12))  # the first convolution, masked
    kernel[:1], kernel[1, 0] = weights["up"]["kernel"], weights["side"]["kernel"][0]
    padded = np.pad(x, [(1, 1), (1, 1), (0, 0)])
    places = itertools.product(range(3), range(3))
    h = weights["side"]["bias"] + sum(padded[a : a + 4, b : b + 5] @ kernel[a, b] for a, b in places)
    h = conditioned(0, h)
    for i, recurrent in enumerate(weights["recurrent"]):
        h = h + left(f"expand_{i}", lstm(recurrent, conditioned(i + 1, left(f"input_{i}", h))))
    logit = left("head", np.maximum(left("hidden_head", np.maximum(h, 0)), 0))
    np.testing.assert_allclose(found, scipy.special.log_expit(np.where(x == 1, logit, -logit)), atol=1e-9)
