"""Estimators of the gradient of variational bounds where the latents are discrete.

    log w_i = log p(x, z_i) - log q(z_i | x),  z_i ~ q(z | x)      bound = log mean_i w_i,  v_i = w_i / sum_j w_j

No gradient passes through z_i, and the bound depends on phi, the parameters of q, by way of which z are drawn too:

    score_function  (log w - b) d log q(z | x) / dphi, k = 1; the mean is the same for any b that z has no part in
    vimco           sum_i (bound - bound_-i - v_i) d log q(z_i | x) / dphi; bound_-i has the geometric mean of the
                    other w_j in place of w_i
    reweighted_wake_sleep
                    not up the bound, but down KL(p(z | x) | q(z | x)): by sum_i v_i d log q(z_i | x) / dphi at the
                    data (wake), by d log q(z | x) / dphi at draws (z, x) of the model (sleep)
    concrete        the bound of another model, whose latents are relaxed, by a gradient that passes through z

All but the last ascend the bound in theta, the parameters of p, by sum_i v_i d log p(x, z_i) / dtheta. What a loss adds
for the sake of its gradient has the value 0: the value is minus the bound.

References: Mnih & Gregor 2014, arXiv 1402.0030 (NVIL); Mnih & Rezende 2016, arXiv 1602.06725 (VIMCO); Bornschein &
Bengio 2015, arXiv 1406.2751; Jang et al. 2017, arXiv 1611.01144, and Maddison et al. 2017, arXiv 1611.00712 (relaxed).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from dgm_jax.inference.importance import effective_sample_size
from dgm_jax.nets.mlp import MLP
from dgm_jax.numerics import log_mean_exp, masked_mean
from dgm_jax.objectives import require
from dgm_jax.objectives.variational import beta_vae, iwae
from dgm_jax.training.learners import per_example
from dgm_jax.types import Array, Batch, Key, Loss, Metrics, Model, Out, Params, PyTree

BASELINES = ("none", "mean", "input")
RECOGNITION = ("wake", "sleep", "both")


def score_function(
    model: Model,
    baseline: str = "input",
    normalize: bool = True,
    decay: float = 0.9,
    hidden: int = 100,
    learning_rate: float = 1e-3,
) -> Loss:
    """The evidence lower bound by the score function: NVIL, without its local signals of each layer.

    The baseline, and the deviation that the signal is divided by, are those before the step: with its own draws in them
    the gradient would be biased. They are kept in the carry, where the step trains them; running means alone, so that
    the parts of a batch add up to what the whole of it gives.

    Args:
        model: needs `draw`, `log_joint` and `log_posterior`.
        baseline: "none"; "mean", a running mean of log w; or "input", that and a net's prediction of the rest from x.
        normalize: divide the signal by max(1, its running standard deviation): all of phi's gradient, by one number.
        decay: of the running means.
        hidden, learning_rate: width of the net, and of its Adam.

    Returns:
        A Loss with the terms "loss", minus the bound, and "signal", the squared signal that is left, not yet divided.

    Raises:
        TypeError: the model lacks a capability.
        ValueError: an unknown baseline.
    """
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}; one of {', '.join(BASELINES)}")
    weigh = _weigher(model, by="score_function")
    net, tx = MLP((hidden, 1), "tanh"), optax.adam(learning_rate)

    def predicted(weights: Params, batch: Batch) -> Array:
        return jnp.asarray(net.apply({"params": weights}, batch["x"].reshape(batch["x"].shape[0], -1)))[:, 0]

    def init(params: Params, key: Key, batch: Batch) -> PyTree:
        x = batch["x"].reshape(batch["x"].shape[0], -1)
        carry = {"signal": jnp.zeros((), x.dtype), "square": jnp.ones((), x.dtype)} if normalize else {}
        if baseline != "none":
            carry["mean"] = jnp.zeros((), x.dtype)
        if baseline == "input":
            weights = net.init(key, x)["params"]
            carry |= {"net": weights, "opt": tx.init(weights)}
        return carry

    def apply(params: Params, carry: PyTree, key: Key, batch: Batch) -> tuple[Array, Out]:
        log_p, log_q = (one[0] for one in weigh(params, key, batch, 1))
        log_w, mask = stop_gradient(log_p - log_q), batch.get("mask")
        signal, new = log_w, dict(carry)
        if baseline != "none":
            signal -= carry["mean"]
            new["mean"] = decay * carry["mean"] + (1 - decay) * masked_mean(log_w, mask)
        if baseline == "input":
            target = signal
            signal = target - predicted(carry["net"], batch)

            def error(weights: Params) -> Array:
                return masked_mean((target - predicted(weights, batch)) ** 2, mask)

            updates, new["opt"] = tx.update(jax.grad(error)(carry["net"]), carry["opt"], carry["net"])
            new["net"] = optax.apply_updates(carry["net"], updates)
        square = masked_mean(signal**2, mask)
        if normalize:
            new["signal"] = decay * carry["signal"] + (1 - decay) * masked_mean(signal, mask)
            new["square"] = decay * carry["square"] + (1 - decay) * square
            signal /= jnp.sqrt(jnp.maximum(1.0, carry["square"] - carry["signal"] ** 2))
        loss = -masked_mean(log_p - stop_gradient(log_q) + stop_gradient(signal) * _no_value(log_q), mask)
        return loss, Out({"loss": loss, "signal": square}, new)

    return Loss(init, apply)


def vimco(model: Model, k: int = 5) -> Loss:
    """The importance-weighted bound, with the other draws for a baseline of each.

    Args:
        model: needs `draw`, `log_joint` and `log_posterior`.
        k: draws for each example, at least 2; draw i has the key fold_in(key, i).

    Returns:
        A Loss with the terms "loss", minus the bound, "elbo" and "ess", as `iwae` has them.

    Raises:
        TypeError: the model lacks a capability.
        ValueError: k < 2.
    """
    _at_least_two(k, "vimco")
    weigh = _weigher(model, by="vimco")

    def terms(params: Params, key: Key, batch: Batch) -> Metrics:
        log_p, log_q = weigh(params, key, batch, k)
        log_w = log_p - log_q
        bound = log_mean_exp(log_w, axis=0)
        signal = stop_gradient(bound[None] - leave_one_out(log_w))
        return {"loss": -bound - jnp.sum(signal * _no_value(log_q), axis=0)} | _spread(log_w)

    return per_example(terms)


def reweighted_wake_sleep(model: Model, k: int = 5, recognition: str = "wake") -> Loss:
    """Reweighted wake-sleep; with k = 1 and recognition="sleep", wake-sleep itself.

    Args:
        model: needs `draw`, `log_joint` and `log_posterior`, and `dream` for sleep.
        k: draws for each example; draw i has the key fold_in(key, i).
        recognition: what q learns from: the "wake" phase, the "sleep" phase, or the sum of "both".

    Returns:
        A Loss with the terms "loss", minus the bound, "elbo" and "ess", as `iwae` has them, and "sleep", -log q(z | x)
        of draws of the model. Its gradient in phi is not that of its value.

    Raises:
        TypeError: the model lacks a capability.
        ValueError: an unknown recognition, or one draw for the wake phase, whose weight says nothing.
    """
    if recognition not in RECOGNITION:
        raise ValueError(f"unknown recognition {recognition!r}; one of {', '.join(RECOGNITION)}")
    wake, sleep = recognition != "sleep", recognition != "wake"
    if wake:
        _at_least_two(k, f"reweighted_wake_sleep with recognition={recognition!r}")
    weigh = _weigher(model, by="reweighted_wake_sleep")
    if sleep:
        dream, log_posterior = require(model, "dream", "log_posterior", by="reweighted_wake_sleep in its sleep phase")

    def dreamt(params: Params, key: Key, batch: Batch) -> Array:
        cond = batch.get("cond")
        z, x = stop_gradient(dream(params, key, batch["x"].shape[0], cond))
        return -log_posterior(params, z, {"x": x} if cond is None else {"x": x, "cond": cond})

    def terms(params: Params, key: Key, batch: Batch) -> Metrics:
        log_p, log_q = weigh(params, key, batch, k)
        log_w = log_p - stop_gradient(log_q)
        found = {"loss": -log_mean_exp(log_w, axis=0)} | _spread(log_w)
        if wake:
            weights = stop_gradient(jax.nn.softmax(log_w, axis=0))
            found["loss"] -= jnp.sum(weights * _no_value(log_q), axis=0)
        if sleep:
            found["sleep"] = dreamt(params, jax.random.fold_in(key, k), batch)
            found["loss"] += _no_value(found["sleep"])
        return found

    return per_example(terms)


def concrete(
    model: Model,
    k: int = 1,
    gradient: str = "plain",
    temperature: float = 1.0,
    rate: float = 0.0,
    least: float = 0.5,
    kind: str = "concrete",
) -> Loss:
    """The bound of the model with relaxed latents: Concrete variables, or Gumbel-softmax.

    Args:
        model: needs `relax`.
        k, gradient: as `iwae` takes them.
        temperature, rate, least: step t has the temperature max(least, temperature exp(-rate t)), for rate > 0.
        kind: "concrete", a bound of the relaxed model, and none of the model's; "soft", relaxed draws with the
            probabilities of discrete ones, no bound; "straight_through", the model's own bound with a biased gradient.
            Of one draw the last two take the rate in closed form, where the model has it, as Jang et al. do.

    Returns:
        A Loss with the terms of `iwae`, or of `beta_vae`, and "temperature".

    Raises:
        TypeError: the model lacks a capability.
        ValueError: a temperature that is not positive, or an unknown gradient or kind.
    """
    (relax,) = require(model, "relax", by="concrete")
    if min(temperature, least) <= 0:
        raise ValueError(f"a temperature is positive, not {min(temperature, least)}")

    def loss_at(temperature: Array | float) -> Loss:
        relaxed = relax(temperature, kind)
        in_closed_form = k == 1 and gradient == "plain" and relaxed.rate_distortion is not None
        return beta_vae(relaxed) if in_closed_form else iwae(relaxed, k, gradient)

    loss_at(temperature)  # raises what it raises

    def apply(params: Params, carry: PyTree, key: Key, batch: Batch) -> tuple[Array, Out]:
        now = jnp.asarray(temperature, batch["x"].dtype)
        if rate:
            now = jnp.maximum(least, now * jnp.exp(-rate * carry["step"].astype(now.dtype)))
            carry = {"step": carry["step"] + 1}
        loss, out = loss_at(now).apply(params, (), key, batch)
        return loss, Out(out.metrics | {"temperature": now}, carry)

    return Loss(lambda params, key, batch: {"step": jnp.zeros((), jnp.int32)} if rate else (), apply)


def leave_one_out(log_w: Array) -> Array:
    """The bound [k, B] of log-weights [k, B] with each in turn replaced by the mean of the other k - 1.

    Source: Mnih & Rezende 2016, eq. 7 and 9.
    """
    k = log_w.shape[0]
    others = (jnp.sum(log_w, axis=0, keepdims=True) - log_w) / (k - 1)
    own = jnp.eye(k, dtype=bool)[:, :, None]
    return log_mean_exp(jnp.where(own, others[:, None], log_w[None]), axis=1)


def _weigher(model: Model, by: str) -> Callable[..., tuple[Array, Array]]:
    """(params, key, batch, k) -> log p(x, z_i) and log q(z_i | x) at fixed z_i, [k, B] each."""
    draw, log_joint, log_posterior = require(model, "draw", "log_joint", "log_posterior", by=by)

    def weigh(params: Params, key: Key, batch: Batch, k: int) -> tuple[Array, Array]:
        def one(i: Array) -> tuple[Array, Array]:
            z = stop_gradient(draw(params, jax.random.fold_in(key, i), batch)[0])
            return log_joint(params, z, batch), log_posterior(params, z, batch)

        return jax.vmap(one)(jnp.arange(k))

    return weigh


def _no_value(x: Array) -> Array:
    """0 with the gradient of x."""
    return x - stop_gradient(x)


def _spread(log_w: Array) -> Metrics:
    """The terms "elbo" and "ess" of more than one draw, [B] each."""
    return {"elbo": -jnp.mean(log_w, 0), "ess": effective_sample_size(log_w)} if log_w.shape[0] > 1 else {}


def _at_least_two(k: int, who: str) -> None:
    if k < 2:
        raise ValueError(f"{who} takes k >= 2 draws for each example, not {k}")
