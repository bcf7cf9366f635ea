"""DRAW and its attention against plain loops in numpy, value and gradient; the picture of how samples come about."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from PIL import Image

from dgm_jax import config as configs
from dgm_jax import pictures, runs, zoo
from dgm_jax.models import outputs
from dgm_jax.models.latent import draw
from dgm_jax.nets import filterbank
from dgm_jax.types import Model


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


# The attention as the paper writes it, in indices that count from 1


def banks(numbers, n, height, width):
    """F_X [N, A], F_Y [N, B], gamma."""
    g_x, g_y, log_variance, log_stride, log_gamma = numbers
    variance = np.exp(log_variance)
    delta = (max(width, height) - 1) / (n - 1) * np.exp(log_stride) if n > 1 else 0.0
    f_x, f_y = np.zeros((n, width)), np.zeros((n, height))
    for bank, pixels, centre in ((f_x, width, g_x), (f_y, height, g_y)):
        for i in range(1, n + 1):
            mu = (pixels + 1) / 2 * (centre + 1) + (i - n / 2 - 0.5) * delta
            for a in range(1, pixels + 1):
                bank[i - 1, a - 1] = np.exp(-((a - mu) ** 2) / (2 * variance))
            bank[i - 1] /= bank[i - 1].sum()
    return f_x, f_y, np.exp(log_gamma)


def numpy_read(numbers, image, n):
    f_x, f_y, gamma = banks(numbers, n, *image.shape[:2])
    return gamma * np.stack([f_y @ image[..., c] @ f_x.T for c in range(image.shape[-1])], axis=-1)


def numpy_write(numbers, patch, height, width):
    f_x, f_y, gamma = banks(numbers, len(patch), height, width)
    return np.stack([f_y.T @ patch[..., c] @ f_x for c in range(patch.shape[-1])], axis=-1) / gamma


def slope(f, at, direction, h=1e-5):
    """The derivative of f along a direction, a tree like `at`, by central differences."""
    ends = [f(jax.tree.map(lambda x, d: np.asarray(x) + s * d, at, direction)) for s in (h, -h)]
    return (ends[0] - ends[1]) / (2 * h)


@pytest.mark.parametrize("size", [1, 3])
def test_attention_is_the_published_formula(size):
    height, width, rng = 5, 7, np.random.default_rng(size)
    numbers = 0.7 * rng.normal(size=5)
    image, patch = rng.normal(size=(height, width, 2)), rng.normal(size=(size, size, 2))

    def ours(numbers, image, patch):
        filters = filterbank.place(numbers, size, height, width)
        return filterbank.read(filters, image), filterbank.write(filters, patch)

    def theirs(numbers, image, patch):
        return numpy_read(numbers, image, size), numpy_write(numbers, patch, height, width)

    at = tuple(map(jnp.asarray, (numbers, image, patch)))
    found, pull = jax.vjp(jax.jit(ours), *at)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), found, theirs(*at))
    for one in range(2):  # of read, of write
        weights = tuple(rng.normal(size=y.shape) * (i == one) for i, y in enumerate(found))
        gradient = pull(tuple(map(jnp.asarray, weights)))
        for argument in range(3):
            direction = tuple(rng.normal(size=x.shape) * (i == argument) for i, x in enumerate(at))
            expected = slope(
                lambda at: sum((w * y).sum() for w, y in zip(weights, theirs(*at), strict=True)), at, direction
            )
            along = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
            np.testing.assert_allclose(along, expected, rtol=1e-6, atol=1e-8)


def test_a_grid_of_zeros_covers_the_image():
    filters = jax.jit(lambda numbers: filterbank.place(numbers, 4, 9, 13))(jnp.zeros(5))
    for bank in (filters.rows, filters.columns):
        np.testing.assert_allclose(bank.sum(1), 1)
    assert list(filters.columns.argmax(1)) == [0, 4, 8, 12]  # the longer side, from end to end
    assert filters.intensity == 1


def test_a_grid_far_outside_is_finite():
    numbers = jnp.array([50.0, -50.0, -5.0, 3.0, 0.0], jnp.float32)
    image = jnp.ones((6, 6, 1), jnp.float32)
    look = jax.value_and_grad(lambda numbers: filterbank.read(filterbank.place(numbers, 3, 6, 6), image).sum())
    value, gradient = jax.jit(look)(numbers)
    assert value == 9  # each filter still sums to one, at the nearest pixel
    assert np.isfinite(gradient).all()


# DRAW by Python loops, an example and a step at a time

CASES = {
    "attention": {"classes": 3},
    "whole": {"read": 0, "write": 0},
    "colour": {"output": "gaussian", "shape": (3, 4, 2)},
}
STEPS, LATENT, HIDDEN, READ, WRITE, N = 3, 2, 4, 2, 3, 4


def made(case):
    """The model, rough parameters, and a batch."""
    options = {"shape": (3, 4, 1), "read": READ, "write": WRITE, **CASES[case]}
    model = draw.make(steps=STEPS, latent=LATENT, hidden=HIDDEN, components=1, **options)
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.integers(0, 2, size=(N, *options["shape"])).astype(float))}
    if options.get("classes"):
        batch["cond"] = jnp.arange(N) % options["classes"]
    params = jax.eval_shape(model.init, jax.random.key(0), batch)
    params = jax.tree.map(lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape)), params)
    return model, params, batch, options


def dense(tree, x):
    return x @ np.asarray(tree["kernel"]) + np.asarray(tree["bias"])


def lstm(tree, state, *inputs):
    h, c = state
    layers = tree["lstm"]
    from_inputs = [np.ravel(x) @ np.asarray(layers[f"input_{i}"]["kernel"]) for i, x in enumerate(inputs)]
    o, f, i, g = np.split(dense(layers["recurrent"], h) + sum(from_inputs), 4)
    c = scipy.special.expit(f) * c + scipy.special.expit(i) * np.tanh(g)
    return scipy.special.expit(o) * np.tanh(c), c


def numpy_draw(params, x, label, options, z=None, noise=None):
    """One example x [H, W, C], at the z [T, latent] given, or at that of the noise.

    Returns:
        log q(z | x), log p(x, z), the means of x on the canvas after each step, and the noise.
    """
    encoder, decoder, shape = params["encoder"], params["decoder"], x.shape
    size, gaussian = (2, True) if options.get("output") else (1, False)
    extra = [] if label is None else [np.eye(options["classes"])[label]]
    encoding, decoding = (np.split(np.asarray(params["start"][name]), 2) for name in ("encoder", "decoder"))
    canvas = np.asarray(params["canvas"]).reshape(*shape, size)
    log_q = log_p = 0.0
    means, noises = [], []

    def mean():
        return canvas[..., 0] if gaussian else scipy.special.expit(canvas[..., 0])

    for t in range(STEPS):
        seen = np.stack([x, x - mean()], axis=-1)  # the channels' errors beside them
        if options["read"]:
            window = seen.reshape(*shape[:2], -1)
            seen = numpy_read(dense(encoder["read"], decoding[0]), window, options["read"])
        encoding = lstm(encoder, encoding, seen, decoding[0], *extra)
        loc, log_scale = np.split(dense(encoder["moments"], encoding[0]), 2)
        here = z[t] if noise is None else loc + np.exp(log_scale) * noise[t]
        noises.append((here - loc) / np.exp(log_scale))
        log_q += scipy.stats.norm.logpdf(here, loc, np.exp(log_scale)).sum()
        log_p += scipy.stats.norm.logpdf(here).sum()
        decoding = lstm(decoder, decoding, here, *extra)
        written = dense(decoder["patch"], decoding[0])
        if options["write"]:
            patch = written.reshape(options["write"], options["write"], -1)
            written = numpy_write(dense(decoder["write"], decoding[0]), patch, *shape[:2])
        canvas = canvas + written.reshape(canvas.shape)
        means.append(mean())
    if gaussian:
        scale = outputs.MIN_SCALE + np.logaddexp(0, canvas[..., 1])
        log_p += scipy.stats.norm.logpdf(x, canvas[..., 0], scale).sum()
    else:
        log_p += (x * canvas[..., 0] - np.logaddexp(0, canvas[..., 0])).sum()
    return log_q, log_p, np.stack(means), np.stack(noises)


def numpy_all(params, batch, options, **given):
    """The same of a batch, [B, ...] each."""
    found = []
    for b in range(N):
        label = None if "cond" not in batch else int(batch["cond"][b])
        own = {name: np.asarray(values[b]) for name, values in given.items()}
        found.append(numpy_draw(params, np.asarray(batch["x"][b]), label, options, **own))
    return [np.stack(part) for part in zip(*found, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_draw_is_a_loop_in_numpy(case):
    model, params, batch, options = made(case)
    cond, key = batch.get("cond"), jax.random.key(1)

    @jax.jit
    def everything(params):
        def bound(params):
            z, log_q = model.draw(params, key, batch)
            log_p = model.log_joint(params, z, batch)
            return (log_p - log_q).sum(), (z, log_q, log_p)

        gradient, (z, log_q, log_p) = jax.grad(bound, has_aux=True)(params)
        still, mean = model.encode(params, None, batch), model.decode(params, None, z, cond)
        return gradient, z, log_q, log_p, model.log_posterior(params, z, batch), still, mean

    gradient, z, log_q, log_p, log_posterior, still, mean = everything(params)
    expected = numpy_all(params, batch, options, z=z)
    np.testing.assert_allclose(log_q, expected[0], rtol=1e-9)
    np.testing.assert_allclose(log_posterior, expected[0], rtol=1e-9)
    np.testing.assert_allclose(log_p, expected[1], rtol=1e-9)
    np.testing.assert_allclose(mean, expected[2][:, -1], rtol=1e-9)
    np.testing.assert_allclose(numpy_all(params, batch, options, z=still)[3], np.zeros_like(z), atol=1e-9)

    def numpy_bound(params):
        log_q, log_p, *_ = numpy_all(params, batch, options, noise=expected[3])
        return (log_p - log_q).sum()

    rng = np.random.default_rng(2)
    for part in params:
        direction = jax.tree.map(np.zeros_like, params)
        direction[part] = jax.tree.map(lambda p: rng.normal(size=p.shape), params[part])
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
        np.testing.assert_allclose(along, slope(numpy_bound, params, direction), rtol=1e-5, err_msg=part)


def test_stages_end_in_the_mean_that_the_sample_of_their_key_is_drawn_around():
    model, params, batch, options = made("attention")
    cond, key = batch["cond"], jax.random.key(3)
    stages = jax.jit(model.stages, static_argnums=2)(params, key, N, cond)
    z = model.prior(params, jax.random.split(key)[0], N, cond)
    np.testing.assert_allclose(stages, numpy_all(params, batch, options, z=z)[2], rtol=1e-9)


def test_attention_is_to_images():
    with pytest.raises(ValueError, match=r"not to the shape \(8,\): read=2 and write=5 must be 0"):
        draw.make(shape=(8,))
    model = draw.make(shape=(8,), steps=2, latent=1, hidden=3, read=0, write=0)
    assert model.support == "binary"


def test_the_picture_of_stages_has_a_row_a_sample(tmp_path):
    """25 stages that brighten from black to the sample, which is white or grey: 10 of them are shown."""
    run = runs.prepare(configs.load("draw_digits:tiny", fill=zoo.fill))

    def stages(params, key, n, cond=None, temperature=1.0):
        last = sample(params, key, n)
        return last[:, None] * jnp.linspace(0, 1, 25)[None, :, None, None, None]

    def sample(params, key, n, cond=None, temperature=1.0):
        return jnp.ones((n, 8, 8, 1)) / (1 + jnp.arange(n) % 2)[:, None, None, None]

    model = Model(lambda key, batch: (), sample=sample, stages=stages)
    pictures.write_samples(model, run, {"p": jnp.zeros(1)}, jax.random.key(0), tmp_path, "step")
    picture = np.asarray(Image.open(tmp_path / "step_stages.png")).astype(float)
    assert run.config.eval.samples == 4
    for i, row in enumerate(np.array_split(picture, 4, axis=0)):
        cells = np.array_split(row, 10, axis=1)
        middle = [cell[cell.shape[0] // 2, cell.shape[1] // 2] for cell in cells]
        assert np.all(np.diff(middle) > 0) and middle[0] == 0
        assert abs(middle[-1] - 255 / (1 + i % 2)) < 1
