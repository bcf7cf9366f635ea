"""inference/denoising.py, objectives/score.py and the DDPM: closed forms for Gaussian data, in float64."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dgm_jax.inference import denoising as D
from dgm_jax.models.diffusion import ddpm
from dgm_jax.objectives import score
from dgm_jax.types import Model

MEAN, VARIANCE = np.array([0.5, -1.0]), np.array([0.04, 0.6])  # of the Gaussian data


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def exact_denoise(schedule):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, VARIANCE)."""

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        gain = alpha * VARIANCE[None] / (alpha**2 * VARIANCE[None] + sigma**2)
        return MEAN[None] + gain * (x_t - alpha * MEAN[None])

    return denoise


def betas(name, steps):
    """The published formulas, step by step."""
    if name == "linear":
        return [(1e-4 + (0.02 - 1e-4) * i / (steps - 1)) * 1000 / steps for i in range(steps)]
    bar = lambda t: np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    return [min(1 - bar(i + 1) / bar(i), 0.999) for i in range(steps)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("linear", 1000), ("linear", 50), ("cosine", 1000), ("cosine", 7)])
def test_schedule_has_the_published_products(name, steps):
    schedule = D.schedule(name, steps)
    alpha, sigma, log_snr, transition = map(
        jax.jit, (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.transition)
    )
    t = jnp.arange(steps + 1) / steps
    products = np.cumprod([1.0, *(1 - np.array(betas(name, steps)))])
    np.testing.assert_allclose(alpha(t) ** 2, products, rtol=1e-10)
    np.testing.assert_allclose(alpha(t) ** 2 + sigma(t) ** 2, np.ones(steps + 1), rtol=1e-14)
    np.testing.assert_allclose(log_snr(t[1:]), np.log(products[1:] / (1 - products[1:])), rtol=1e-8, atol=1e-10)
    between = alpha(t[:-1] + 0.5 / steps)
    assert np.all((between < alpha(t[:-1])) & (between > alpha(t[1:])))
    low = transition(t[:-1].astype(jnp.float32), t[1:].astype(jnp.float32))[1]
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, betas(name, steps), rtol=2e-4)  # 1 - alpha^2 in float32 would lose 1e-3


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="one of linear, cosine"):
        D.schedule("quadratic")
    with pytest.raises(ValueError, match="one of x0, noise, velocity, score"):
        D.convert(D.schedule(), jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.ones(1), "noise", "flow")


@pytest.mark.parametrize("name", D.SCHEDULES)
def test_transitions_compose_to_the_marginal(name):
    schedule = D.schedule(name, 100)
    r, s, t = (jnp.array([0.0, 0.1, 0.333]), jnp.array([0.01, 0.5, 0.8]), jnp.array([0.02, 0.75, 1.0]))
    (a, v), (b, w) = schedule.transition(r, s), schedule.transition(s, t)
    both = schedule.transition(r, t)
    np.testing.assert_allclose(b * a, both[0], rtol=1e-12)
    np.testing.assert_allclose(b**2 * v + w, both[1], rtol=1e-10)
    marginal = schedule.transition(jnp.zeros(3), t)
    np.testing.assert_allclose(marginal[0], schedule.alpha(t), rtol=1e-12)
    np.testing.assert_allclose(marginal[1], schedule.sigma(t) ** 2, rtol=1e-12)


def test_posterior_is_bayes_rule():
    schedule = D.schedule("cosine", 20)
    s, t = jnp.array([0.0, 0.05, 0.4]), jnp.array([0.05, 0.3, 1.0])
    x_0, x_t = jax.random.normal(jax.random.key(0), (2, 3, 4, 2))
    mean, variance = D.posterior(schedule, x_0, x_t, s, t)
    np.testing.assert_allclose(mean[0], x_0[0], rtol=1e-9)  # s = 0: x_s is x_0
    assert variance[0] == 0
    alpha, noise = schedule.transition(s, t)
    precision = 1 / schedule.sigma(s) ** 2 + alpha**2 / noise
    np.testing.assert_allclose(variance[1:], 1 / precision[1:], rtol=1e-10)
    for i in (1, 2):
        pull = schedule.alpha(s)[i] * x_0[i] / schedule.sigma(s)[i] ** 2 + alpha[i] * x_t[i] / noise[i]
        np.testing.assert_allclose(mean[i], pull / precision[i], rtol=1e-10)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(D.PREDICTIONS, D.PREDICTIONS)))
def test_conversions(source, target):
    schedule = D.schedule("linear", 1000)
    t = jnp.array([0.001, 0.3, 1.0])
    x_0, noise = jax.random.normal(jax.random.key(1), (2, 3, 2, 5))
    alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
    x_t = D.diffuse(schedule, x_0, t, noise)
    np.testing.assert_allclose(x_t, alpha * x_0 + sigma * noise, rtol=1e-12)
    log_q = lambda x: (-0.5 * ((x - alpha * x_0) / sigma) ** 2).sum()  # noqa: E731
    truth = {"x0": x_0, "noise": noise, "velocity": alpha * noise - sigma * x_0, "score": jax.grad(log_q)(x_t)}
    there = D.convert(schedule, truth[source], x_t, t, source, target)
    np.testing.assert_allclose(there, truth[target], rtol=1e-9, atol=1e-9)
    back = D.convert(schedule, there, x_t, t, target, source)
    np.testing.assert_allclose(back, truth[source], rtol=1e-9, atol=1e-9)


def reverse_moments(schedule, steps, eta=1.0, wide=False):
    """Mean and variance of x_0 in the reverse chain with the exact denoiser, which is linear: by recursion.

    wide: the steps have the variance of q(x_t | x_s) in place of that of q(x_s | x_t, x_0).
    """
    mean, variance, times = np.zeros(2), np.ones(2), np.arange(steps + 1) / steps
    alpha, sigma = np.asarray(schedule.alpha(times)), np.asarray(schedule.sigma(times))
    for k in range(steps, 0, -1):
        a, b, c, d = alpha[k], sigma[k], alpha[k - 1], sigma[k - 1]
        added = eta**2 * (1 - (a / c) ** 2) * (d / b) ** 2
        rest = np.sqrt(d**2 - added)
        gain = a * VARIANCE / (a**2 * VARIANCE + b**2)
        slope = c * gain + rest * (1 - a * gain) / b
        mean = slope * mean + (c - rest * a / b) * (1 - a * gain) * MEAN
        variance = slope**2 * variance + (1 - (a / c) ** 2 if wide else added)
    return mean, variance


@pytest.mark.slow
@pytest.mark.parametrize(("eta", "name"), [(1.0, "linear"), (1.0, "cosine"), (0.0, "cosine"), (0.5, "linear")])
def test_samplers_reproduce_gaussian_data(eta, name):
    schedule = D.schedule(name, 1000)
    mean, variance = reverse_moments(schedule, 1000, eta)
    np.testing.assert_allclose(mean, MEAN, atol=0.01)
    np.testing.assert_allclose(variance, VARIANCE, rtol=0.04)
    n, steps = 20_000, 100
    mean, variance = reverse_moments(schedule, steps, eta)  # exact for any number of steps, few as they are
    start_key, key = jax.random.split(jax.random.key(2))
    x_1 = jax.random.normal(start_key, (n, 2))
    x_0 = jax.jit(partial(D.sample, schedule, exact_denoise(schedule), steps=steps, eta=eta))(key, x_1)
    np.testing.assert_allclose((x_0.mean(0) - mean) / np.sqrt(variance / n), [0, 0], atol=4.5)
    np.testing.assert_allclose(x_0.var(0) / variance, [1, 1], atol=4.5 * np.sqrt(2 / n))
    assert abs(np.corrcoef(x_0.T)[0, 1]) < 4.5 / np.sqrt(n)


def test_ddim_is_a_function_of_its_start():
    schedule = D.schedule("cosine", 100)
    x_1 = jax.random.normal(jax.random.key(3), (50, 2))
    run = lambda seed, eta: D.sample(  # noqa: E731
        schedule, exact_denoise(schedule), jax.random.key(seed), x_1, 20, eta=eta
    )
    np.testing.assert_array_equal(run(0, 0.0), run(1, 0.0))
    assert np.all(run(0, 1.0) != run(1, 1.0))
    order = np.argsort(x_1[:, 0])  # the probability flow of one variable keeps the order
    assert np.all(np.diff(run(0, 0.0)[order, 0]) > 0)


def test_ancestral_step_has_the_posterior_mean_and_variance():
    """Two steps with denoise(x, t) = c + b x: the result is c + b x_1/2, with x_1/2 ~ q(x_1/2 | x_1, c + b x_1)."""
    schedule = D.schedule("linear", 10)
    n, b, c = 40_000, 0.7, 0.3
    x_1 = jnp.full((n, 1), 1.5)
    run = partial(D.sample, schedule, lambda x, t: c + b * x, jax.random.key(4), x_1, 2)
    half, one = jnp.full(1, 0.5), jnp.ones(1)
    mean, variance = D.posterior(schedule, c + b * x_1[:1], x_1[:1], half, one)
    np.testing.assert_allclose(run(temperature=0.0), np.broadcast_to(c + b * mean, (n, 1)), rtol=1e-10)
    np.testing.assert_allclose(run().var(), b**2 * variance[0], rtol=4.5 * np.sqrt(2 / n))
    np.testing.assert_allclose(run(temperature=0.5).var(), b**2 * variance[0] / 4, rtol=4.5 * np.sqrt(2 / n))


def normal_log_density(x, mean, variance):
    return (-0.5 * (x - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)).sum(-1)


def log_weights(schedule, key, x_0):
    noises, log_q = D.draw_chain(schedule, key, x_0)
    return D.chain_log_joint(schedule, exact_denoise(schedule), noises, x_0) - log_q


def test_importance_weights_average_to_the_density_of_the_chain():
    """E_q[p(x_0, chain) / q(chain)] = p(x_0), which is Gaussian here: joint, posterior and Jacobian are all in it."""
    schedule = D.schedule("cosine", 5)
    mean, variance = reverse_moments(schedule, 5, wide=True)
    n = 50_000
    for x in ([0.4, -0.6], [0.8, -2.0]):
        weights = np.exp(jax.jit(partial(log_weights, schedule))(jax.random.key(5), jnp.tile(jnp.array([x]), (n, 1))))
        exact = np.exp(normal_log_density(np.array(x), mean, variance))
        stderr = weights.std() / np.sqrt(n)
        assert stderr < 0.03 * exact
        assert abs(weights.mean() - exact) < 4.5 * stderr


@pytest.mark.slow
def test_bound_lies_below_the_density_and_closes_with_more_steps():
    n = 2000
    x_0 = MEAN + np.sqrt(VARIANCE) * np.random.default_rng(0).normal(size=(n, 2))
    exact = normal_log_density(x_0, MEAN, VARIANCE)
    gaps = []
    for steps in (10, 100, 1000):
        schedule = D.schedule("cosine", steps)
        gap = exact - jax.jit(partial(log_weights, schedule))(jax.random.key(6), jnp.asarray(x_0))
        assert gap.mean() > -4.5 * gap.std() / np.sqrt(n)
        gaps.append(gap.mean())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert gaps[2] < 0.02


def test_bound_survives_float32():
    """Of 784 numbers and T = 1000 steps: with the chain itself as the latent variable, or whole densities, it loses
    nats.
    """
    schedule = D.schedule("linear", 1000)
    mean, variance = (np.tile(moment, 392) for moment in (MEAN, VARIANCE))

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        gain = alpha * variance[None].astype(x_t.dtype) / (alpha**2 * variance[None].astype(x_t.dtype) + sigma**2)
        return mean[None].astype(x_t.dtype) + gain * (x_t - alpha * mean[None].astype(x_t.dtype))

    x_0 = jnp.tile(mean + 0.1, (4, 1)).astype(jnp.float32)
    noises, log_q = jax.jit(partial(D.draw_chain, schedule))(jax.random.key(7), x_0)
    joint = jax.jit(partial(D.chain_log_joint, schedule, denoise))
    single = joint(noises, x_0) - log_q
    assert single.dtype == jnp.float32
    noises, x_0 = noises.astype(float), x_0.astype(float)
    np.testing.assert_allclose(single, joint(noises, x_0) - D.chain_log_density(noises), atol=0.02)


def stub(denoise):
    return Model(init=lambda key, batch: (), denoise=denoise)


@pytest.mark.parametrize("weighting", ["noise", "x0", "velocity"])
def test_the_loss_is_the_squared_error_of_what_it_names(weighting):
    """A denoiser that errs by 0.3 in that prediction at every noise level has the loss 0.09."""
    schedule = D.schedule("cosine", 100)
    x = jax.random.normal(jax.random.key(8), (6, 3, 2))

    def denoise(params, key, x_t, t, cond):
        truth = D.convert(schedule, x, x_t, t, "x0", weighting)
        return D.convert(schedule, truth + 0.3, x_t, t, weighting, "x0")

    loss = score.denoising(stub(denoise), schedule="cosine", steps=100, weighting=weighting)
    value, out = loss.apply((), (), jax.random.key(9), {"x": x})
    np.testing.assert_allclose(value, 0.09, rtol=1e-6)
    np.testing.assert_allclose(out.metrics["loss"], 0.09, rtol=1e-6)


def test_min_snr_caps_the_noise_weight():
    log_snr = jnp.log(jnp.array([0.1, 4.0, 6.0, 1e4]))
    np.testing.assert_allclose(score.WEIGHTINGS["min_snr"](log_snr), [0.1, 4, 5, 5], rtol=1e-9)
    with pytest.raises(ValueError, match="one of x0, noise, velocity, min_snr"):
        score.denoising(stub(lambda *a: a[2]), weighting="snr")
    with pytest.raises(TypeError, match="denoise"):
        score.denoising(Model(init=lambda key, batch: ()))


def test_padding_does_not_reach_the_loss():
    x = jax.random.normal(jax.random.key(10), (4, 3))
    loss = score.denoising(stub(lambda params, key, x_t, t, cond: params * x_t), steps=10)
    mask = jnp.array([1.0, 1, 1, 0])

    def value(params, x):
        return loss.apply(params, (), jax.random.key(11), {"x": x, "mask": mask})[0]

    clean = jax.value_and_grad(value)(0.5, x)
    dirty = jax.value_and_grad(value)(0.5, x.at[3].set(1e3))
    np.testing.assert_allclose(dirty[0], clean[0])
    np.testing.assert_allclose(dirty[1], clean[1])


def test_times_are_uniform_on_the_grid_and_even():
    steps, n = 5, 15
    times = jax.vmap(lambda key: score.even_times(key, n, steps))(jax.random.split(jax.random.key(12), 2000))
    levels = np.rint(np.asarray(times) * steps)
    np.testing.assert_allclose(times, levels / steps, atol=1e-12)
    counts = np.stack([(levels == i + 1).sum(1) for i in range(steps)], axis=1)
    assert counts.min() >= 2 and counts.max() <= 4  # 3 of each, to within one
    for column in range(n):  # each time alone is uniform
        frequencies = np.bincount(levels[:, column].astype(int) - 1, minlength=steps) / 2000
        np.testing.assert_allclose(frequencies, 1 / steps, atol=4.5 * np.sqrt(0.16 / 2000))


def small(**kwargs):
    model = ddpm.make(shape=(4, 4, 1), channels=8, multipliers=(1,), steps=20, sample_steps=5, **kwargs)
    batch = {
        "x": jax.random.uniform(jax.random.key(13), (3, 4, 4, 1), jnp.float32, -1, 1),
        "cond": jnp.array([0, 1, 1]),
    }
    return model, jax.jit(model.init)(jax.random.key(14), batch), batch


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["noise", "velocity", "x0"])
def test_ddpm_converts_what_its_net_predicts(prediction):
    """The net starts at 0, which each prediction turns into another x_0."""
    model, params, batch = small(prediction=prediction)
    t = jnp.array([0.1, 0.5, 0.9], jnp.float32)
    alpha = D.schedule("cosine", 20).alpha(t)[:, None, None, None]
    expected = {"noise": batch["x"] / alpha, "velocity": alpha * batch["x"], "x0": 0 * batch["x"]}[prediction]
    estimate = model.denoise(params, None, batch["x"], t)
    assert estimate.dtype == jnp.float32
    np.testing.assert_allclose(estimate, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_ddpm_samples_by_label_and_bounds_the_density():
    model, params, batch = small(classes=2)
    flat, unravel = ravel_pytree(params)  # the blocks start as identities, blind to the label
    params = unravel(flat + 0.1 * jax.random.normal(jax.random.key(15), flat.shape, flat.dtype))
    sample = jax.jit(model.sample, static_argnums=2)
    zeros, ones = (sample(params, jax.random.key(16), 3, jnp.full(3, label)) for label in (0, 1))
    assert zeros.shape == (3, 4, 4, 1)
    assert zeros.dtype == jnp.float32
    assert np.abs(zeros).max() <= 1  # the last step is a clipped estimate
    assert np.abs(zeros - ones).max() > 1e-3
    assert np.isfinite(sample(params, jax.random.key(17), 3)).all()
    with pytest.raises(ValueError, match="conditional on 2 classes"):
        model.denoise(params, None, batch["x"], jnp.ones(3))

    z, log_q = model.draw(params, jax.random.key(18), batch)
    np.testing.assert_allclose(model.log_posterior(params, z, batch), log_q, rtol=1e-6)

    def bound(params):
        z, log_q = model.draw(params, jax.random.key(18), batch)
        return model.log_joint(params, z, batch) - log_q

    values, pull = jax.vjp(jax.jit(bound), params)
    (gradient,) = pull(jnp.ones(3, jnp.float32))
    assert values.dtype == jnp.float32
    assert values.shape == (3,)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(gradient["Embed_0"]))
