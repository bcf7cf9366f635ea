"""Healthy toy models with a place for a bug each: what the checks are tested on."""

import jax
import jax.numpy as jnp

from dgm_jax.distributions import bernoulli_log_prob, bernoulli_sample, standard_normal_log_prob
from dgm_jax.numerics import sum_event
from dgm_jax.types import Model

D = 5  # bits of a discrete event


def autoregressive(reach=-1, offset=0.0, drop=False, deaf=False, hope=0.0, again=False):
    """Logistic regressions of each bit on those before it. `reach`: the last diagonal of the weights.

    Completions `drop` what is observed, or are `deaf` to it: samples around which it is put. `hope` is added to the
    predictions. `again`: a key that is split is also drawn from, which changes nothing.
    """
    mask = jnp.tril(jnp.ones((D, D)), reach)

    def init(key, batch):
        return {"weights": jnp.zeros((D, D)), "bias": jnp.zeros(D)}

    def logits(params, x):
        return x @ (params["weights"] * mask).T + params["bias"][None]

    def log_conditionals(params, key, batch):
        return bernoulli_log_prob(batch["x"], logits(params, batch["x"])) + offset

    def ancestral(params, key, x, observed):
        def step(x, at):
            d, key = at
            drawn = bernoulli_sample(key, logits(params, x)[:, d])
            return x.at[:, d].set(jnp.where(observed[:, d] != 0, x[:, d], drawn)), None

        return jax.lax.scan(step, x, (jnp.arange(D), jax.random.split(key, D)))[0]

    def sample(params, key, n, cond=None, temperature=1.0):
        nothing = jnp.zeros((n, D), params["bias"].dtype)
        start = 0 * jax.random.normal(key, nothing.shape, nothing.dtype) if again else nothing
        return ancestral(params, key, start, nothing)

    def complete(params, key, batch):
        observed = jnp.zeros_like(batch["observed"]) if drop else batch["observed"]
        if deaf:
            return jnp.where(observed != 0, batch["x"], sample(params, key, len(observed)))
        return ancestral(params, key, batch["x"] * batch["observed"], observed)

    return Model(
        init,
        log_prob=lambda params, key, batch: log_conditionals(params, key, batch).sum(-1),
        log_conditionals=log_conditionals,
        predict=lambda params, key, batch: jax.nn.sigmoid(logits(params, batch["x"])) + hope,
        sample=sample,
        complete=complete,
    )


def flow(sign=1.0, drawn=1.0):
    """x_0 = e^s z_0, x_1 = e^(s + tanh x_0) z_1 over two real numbers. `sign` of the log-determinant."""

    def init(key, batch):
        return {"s": jnp.zeros(2), "w": jnp.ones(())}

    def log_scale(params, x_0):
        return jnp.stack([jnp.full_like(x_0, params["s"][0]), params["s"][1] + jnp.tanh(params["w"] * x_0)], -1)

    def log_prob(params, key, batch):
        log_scales = log_scale(params, batch["x"][:, 0])
        return sum_event(standard_normal_log_prob(batch["x"] * jnp.exp(-log_scales)) - sign * log_scales)

    def sample(params, key, n, cond=None, temperature=1.0):
        z = temperature * jax.random.normal(key, (n, 2), params["s"].dtype)
        x_0 = z[:, 0] * jnp.exp(params["s"][0])
        return jnp.stack([x_0, drawn * z[:, 1] * jnp.exp(log_scale(params, x_0)[:, 1])], -1)

    return Model(init, log_prob=log_prob, sample=sample)


def given(batch, hidden):
    """x, and how much each bit of it counts; hidden bits are "left out", "scored" as zeros, or "read"."""
    observed = batch.get("observed", jnp.ones_like(batch["x"]))
    x = batch["x"] if hidden == "read" else batch["x"] * observed
    return x, observed if hidden == "left out" else jnp.ones_like(observed)


def latent(
    above=0.0,
    scale=1.0,
    posterior=1.0,
    biased_sample=0.0,
    wide=1.0,
    paired=True,
    staged=0,
    dear=1.0,
    hidden="left out",
    lost=0,
):
    """Two normal latents, bits given them, a linear normal posterior. `above` is added to log p(x, z).

    `wide`: the standard deviation that the prior is said to have. `paired`: the x of a dream is that of its z.
    `dear`: what a rate is multiplied by. `hidden`: as in `given`. The stages are those of the
    `staged`th key of `sample`, of which the first draws z. `lost`: how many bits `decode` leaves out.
    """

    def init(key, batch):
        keys = jax.random.split(key, 2)
        return {
            "decoder": jax.random.normal(keys[0], (2, D)),
            "bias": jnp.zeros(D),
            "encoder": 0.1 * jax.random.normal(keys[1], (D, 2)),
            "log_scale": jnp.zeros(2),
        }

    def moments(params, batch):
        x, counts = given(batch, hidden)
        mean = (counts * (x - 0.5)) @ params["encoder"]
        return mean, jnp.broadcast_to(jnp.exp(params["log_scale"])[None], mean.shape)

    def draw(params, key, batch):
        mean, deviation = moments(params, batch)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return mean + deviation * noise, sum_event(standard_normal_log_prob(noise) - scale * jnp.log(deviation))

    def log_posterior(params, z, batch):
        mean, deviation = moments(params, batch)
        noise = (z - mean) / deviation
        return sum_event(standard_normal_log_prob(noise) - posterior * jnp.log(deviation))

    def logits(params, z):
        return z @ params["decoder"] + params["bias"][None]

    def log_joint(params, z, batch):
        x, counts = given(batch, hidden)
        x_given_z = bernoulli_log_prob(x, logits(params, z))
        return sum_event(counts * x_given_z) + sum_event(standard_normal_log_prob(z)) + above

    def log_prior(params, z, batch):
        return sum_event(standard_normal_log_prob(z / wide) - jnp.log(wide))

    def rate_distortion(params, key, batch):
        z, log_q = draw(params, key, batch)
        prior = log_prior(params, z, batch)
        return dear * (log_q - prior)[:, None], prior - log_joint(params, z, batch)

    def dream(params, key, n, cond=None, temperature=1.0):
        z_key, x_key = jax.random.split(key)
        z = temperature * jax.random.normal(z_key, (n, 2), params["bias"].dtype)
        return z if paired else z[::-1], bernoulli_sample(x_key, logits(params, z) + biased_sample)

    def stages(params, key, n, cond=None, temperature=1.0):
        z = temperature * jax.random.normal(jax.random.split(key)[staged], (n, 2), params["bias"].dtype)
        return jnp.stack([jax.nn.sigmoid(logits(params, part * z) + biased_sample) for part in (0.5, 1.0)], axis=1)

    return Model(
        init,
        draw=draw,
        log_joint=log_joint,
        log_prior=log_prior,
        log_posterior=log_posterior,
        rate_distortion=rate_distortion,
        dream=dream,
        sample=lambda *arguments, **options: dream(*arguments, **options)[1],
        stages=stages,
        encode=lambda params, key, batch: moments(params, batch)[0],
        decode=lambda params, key, z, cond=None: jax.nn.sigmoid(logits(params, z))[:, lost:],
        observed=True,
    )


def boltzmann(wrong=0.0, partition=0.0, still=False):
    """A restricted Boltzmann machine of three hidden units. `wrong` is added to the sweep's visible logits."""

    def init(key, batch):
        return {"w": jax.random.normal(key, (D, 3)), "b": jnp.zeros(D), "c": jnp.zeros(3)}

    def energy(params, key, batch):
        x = batch["x"]
        return -x @ params["b"] - jax.nn.softplus(x @ params["w"] + params["c"][None]).sum(-1)

    def gibbs(params, key, chains):
        h_key, x_key = jax.random.split(key)
        h = bernoulli_sample(h_key, chains @ params["w"] + params["c"][None])
        moved = bernoulli_sample(x_key, h @ params["w"].T + params["b"][None] + wrong)
        return chains if still else moved

    def log_partition(params, key):
        bits = (jnp.arange(2**D)[:, None] >> jnp.arange(D)[None]) & 1
        log_z = jax.nn.logsumexp(-energy(params, None, {"x": bits.astype(params["b"].dtype)}))
        return log_z + partition, jnp.zeros_like(log_z)

    return Model(init, energy=energy, gibbs=gibbs, log_partition=log_partition)


def mixture(sharpness=1.0, mean=False, ignore_mask=False, hidden="left out", even=False):
    """Three components of independent bits. `sharpness`: a factor of the logits in the M-step.

    `hidden`: as in `given`. `even`: where something may be hidden the components count alike.
    """

    def init(key, batch):
        return {"weights": jnp.zeros(3), "logits": 0.1 * jax.random.normal(key, (3, D))}

    def joint(params, batch):
        x, counts = given(batch, hidden)
        each = bernoulli_log_prob(*jnp.broadcast_arrays(x[:, None], params["logits"][None]))
        weights = jnp.zeros(3) if even and "observed" in batch else params["weights"]
        return (counts[:, None] * each).sum(-1) + jax.nn.log_softmax(weights)[None]

    def log_prob(params, key, batch):
        return jax.nn.logsumexp(joint(params, batch), axis=-1)

    def expect(params, key, batch):
        weights = jax.nn.softmax(joint(params, batch))
        if "mask" in batch and not ignore_mask:
            weights = weights * batch["mask"][:, None]
        x, counts = given(batch, hidden)
        statistics = {"seen": weights.T @ counts, "ones": weights.T @ (counts * x), "count": weights.sum(0)}
        if mean:
            statistics = jax.tree.map(lambda s: s / len(batch["x"]), statistics)
        return statistics, log_prob(params, key, batch)

    def maximize(statistics):
        on, off = statistics["ones"], statistics["seen"] - statistics["ones"]
        logits = sharpness * (jnp.log(on + 1e-3) - jnp.log(off + 1e-3))
        return {"weights": jnp.log(statistics["count"] + 1e-3), "logits": logits}

    return Model(init, log_prob=log_prob, expect=expect, maximize=maximize, observed=True)


def denoiser(timed=True):
    """An estimate of points in the plane from noisy ones. `timed`: it depends on the noise level."""

    def denoise(params, key, x, t, cond=None):
        return x * params["gain"][None] * (1 - t[:, None] if timed else 0.5)

    return Model(lambda key, batch: {"gain": jnp.ones(2)}, denoise=denoise)
