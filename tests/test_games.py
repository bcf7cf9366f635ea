"""objectives/games.py and the GAN: against f-divergences of two Gaussians by quadrature, in float64.

Expectations are exact up to quadrature: the "data" and the "draws" are the quantiles of a normal distribution.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

from dgm_jax import api, zoo
from dgm_jax.models.adversarial import gan
from dgm_jax.objectives import games
from dgm_jax.training import optimizers
from dgm_jax.training.learners import game
from dgm_jax.types import Model, Player

N = 20_000
QUANTILES = stats.norm.ppf((np.arange(N) + 0.5) / N)
LOC, SCALE = 0.4, 1.2  # of the model q; the data p are N(0, 1)

# definitions of the literature, as integrands of p and q
INTEGRANDS = {
    "kl": lambda p, q: p * np.log(p / q),
    "reverse_kl": lambda p, q: q * np.log(q / p),
    "pearson": lambda p, q: (p - q) ** 2 / q,
    "hellinger": lambda p, q: (np.sqrt(p) - np.sqrt(q)) ** 2,
    "jensen_shannon": lambda p, q: p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q)),
    "gan": lambda p, q: p * np.log(p / (p + q)) + q * np.log(q / (p + q)),
}
# what g_f(v) = f'(p / q) says of the critic's free output v, in terms of r = log p / q
OPTIMAL = {
    "kl": lambda r: 1 + r,
    "reverse_kl": lambda r: r,
    "pearson": lambda r: 2 * jnp.expm1(r),
    "hellinger": lambda r: r / 2,
    "jensen_shannon": lambda r: r,
    "gan": lambda r: r,
}
rows = pytest.mark.parametrize("name", list(INTEGRANDS))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def divergence(name, loc, scale):
    p, q = stats.norm(), stats.norm(loc, scale)
    return integrate.quad(lambda x: INTEGRANDS[name](p.pdf(x), q.pdf(x)), -9, 9, epsabs=1e-12)[0]


def log_ratio(x, loc, scale):
    return -0.5 * x**2 + 0.5 * ((x - loc) / scale) ** 2 + jnp.log(scale)


def gaussians(name="gan"):
    """q = N(loc, scale); the critic is the optimal one for `of`, and tilt . (1, x, x^2)."""

    def critic(params, key, batch):
        x, own = batch["x"][:, 0], params["critic"]
        tilt = own["tilt"]
        return OPTIMAL[name](log_ratio(x, *own["of"])) + tilt[0] + tilt[1] * x + tilt[2] * x**2

    def sample(params, key, n, cond=None, temperature=1.0):
        loc, scale = params["generator"]
        return loc + scale * jnp.asarray(QUANTILES)[(N // n) // 2 :: N // n, None]

    params = {
        "generator": jnp.array([LOC, SCALE]),
        "critic": {"of": jnp.array([LOC, SCALE]), "tilt": jnp.zeros(3)},
    }
    return Model(init=lambda key, batch: params, critic=critic, sample=sample), params


DATA = {"x": QUANTILES[:, None]}
KEY_SEED = 0


def descend(loss, params, player, batch=None):
    """The loss, its metrics, and its gradient in the player's own parameters."""

    def value(own):
        return loss.apply({**params, player: own}, (), jax.random.key(KEY_SEED), batch or DATA)

    (value_, out), gradient = jax.value_and_grad(value, has_aux=True)(params[player])
    return value_, out.metrics, gradient


@rows
def test_optimal_critic_attains_the_divergence(name):
    model, params = gaussians(name)
    loss = games.f_gan(model, name)["critic"]
    value, metrics, gradient = descend(loss, params, "critic")
    exact = divergence(name, LOC, SCALE)
    np.testing.assert_allclose(-value, exact, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(gradient["tilt"], np.zeros(3), atol=0.02)
    v = OPTIMAL[name]
    np.testing.assert_allclose(metrics["real"], v(log_ratio(QUANTILES, LOC, SCALE)).mean())
    np.testing.assert_allclose(metrics["fake"], v(log_ratio(LOC + SCALE * QUANTILES, LOC, SCALE)).mean())
    for tilt in ([0.3, 0, 0], [0, -0.3, 0], [0, 0, -0.1]):  # every other critic gives less
        params["critic"]["tilt"] = jnp.array(tilt)
        assert -descend(loss, params, "critic")[0] < exact - 1e-3


@rows
def test_saturating_generator_descends_the_divergence(name):
    """With the optimal critic the generator's gradient is that of the divergence (the envelope theorem)."""
    model, params = gaussians(name)
    gradient = descend(games.f_gan(model, name)["generator"], params, "generator")[2]
    h = 1e-4
    exact = [
        (divergence(name, LOC + h, SCALE) - divergence(name, LOC - h, SCALE)) / (2 * h),
        (divergence(name, LOC, SCALE + h) - divergence(name, LOC, SCALE - h)) / (2 * h),
    ]
    np.testing.assert_allclose(gradient, exact, rtol=0.02, atol=2e-3)


@rows
@pytest.mark.parametrize("saturating", [True, False])
def test_generators_move_towards_the_data_and_rest_there(name, saturating):
    model, params = gaussians(name)
    loss = games.f_gan(model, name, saturating=saturating)["generator"]
    assert descend(loss, params, "generator")[2][0] > 0.05  # the location, at 0.4, is to fall to 0
    at_data = {"generator": jnp.array([0.0, 1.0]), "critic": {"of": jnp.array([0.0, 1.0]), "tilt": jnp.zeros(3)}}
    np.testing.assert_allclose(descend(loss, at_data, "generator")[2], [0, 0], atol=1e-12)


@pytest.mark.slow
@rows
def test_the_game_is_won(name):
    """Both players by Adam, the critic a parabola: the generator ends at the data."""
    model, params = gaussians(name)
    params["critic"]["of"] = jnp.array([0.0, 1.0])  # knows nothing: only the tilt learns

    def critic(params, key, batch):
        own = params["critic"]
        return model.critic({"critic": {**own, "of": jax.lax.stop_gradient(own["of"])}}, key, batch)

    losses = games.f_gan(model._replace(critic=critic), name, r1=0.1)
    players = {
        "critic": Player(losses["critic"], optax.adam(0.03, b1=0.5)),
        "generator": Player(losses["generator"], optax.adam(0.003, b1=0.5)),
    }
    learner = game(lambda key, batch: params, players)
    data = {"x": QUANTILES[10::20, None]}
    state = learner.init(jax.random.key(0), data)
    state = jax.lax.fori_loop(0, 1000, lambda _, state: learner.step(state, jax.random.key(0), data)[0], state)
    sample = model.sample(state.params, None, N)
    np.testing.assert_allclose([sample.mean(), sample.std()], [0, 1], atol=0.1)


def test_non_saturating_is_goodfellows_game():
    model, params = gaussians()
    params["critic"]["tilt"] = jnp.array([0.2, 0.1, -0.3])
    objective = games.non_saturating(model)
    real = model.critic(params, None, DATA)
    fake = model.critic(params, None, {"x": model.sample(params, None, N)})
    d = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    critic, generator = (descend(objective[p], params, p) for p in ("critic", "generator"))
    np.testing.assert_allclose(critic[0], -(np.log(d(real)).mean() + np.log(1 - d(fake)).mean()), rtol=1e-9)
    np.testing.assert_allclose(generator[0], -np.log(d(fake)).mean(), rtol=1e-9)
    np.testing.assert_allclose(critic[1]["real"], real.mean(), rtol=1e-9)
    np.testing.assert_allclose(critic[1]["fake"], fake.mean(), rtol=1e-9)
    at_data = {"generator": jnp.array([0.0, 1.0]), "critic": {"of": jnp.array([0.0, 1.0]), "tilt": jnp.zeros(3)}}
    critic, generator = (descend(objective[p], at_data, p) for p in ("critic", "generator"))
    np.testing.assert_allclose([critic[0], generator[0]], [2 * np.log(2), np.log(2)], rtol=1e-9)
    np.testing.assert_allclose(critic[2]["tilt"], np.zeros(3), atol=1e-9)


def test_r1_penalizes_the_critics_slope_on_data():
    model, params = gaussians()
    params["critic"]["tilt"] = jnp.array([0.0, 0.2, -0.3])
    plain, penalized = (descend(games.f_gan(model, r1=r1)["critic"], params, "critic") for r1 in (0.0, 3.0))
    slope = jax.grad(lambda x: log_ratio(x, LOC, SCALE).sum())(jnp.asarray(QUANTILES)) + 0.2 - 0.6 * QUANTILES
    penalty = 1.5 * (slope**2).mean()
    np.testing.assert_allclose(penalized[0] - plain[0], penalty, rtol=1e-9)
    np.testing.assert_allclose(penalized[1]["penalty"], penalty, rtol=1e-9)
    np.testing.assert_allclose(penalized[1]["loss"], penalized[0])
    extra = penalized[2]["tilt"] - plain[2]["tilt"]
    np.testing.assert_allclose(extra, [0, 3 * slope.mean(), 3 * (2 * slope * QUANTILES).mean()], atol=1e-9)


@pytest.mark.slow
def test_padding_does_not_reach_the_players():
    model, params = gaussians("kl")
    real, shift = jnp.asarray(QUANTILES[::4000, None]), 7.0
    mask = jnp.array([1.0, 1, 0, 1, 0])
    objective = games.f_gan(model, "kl", r1=1.0)
    for player in ("critic", "generator"):
        clean = descend(objective[player], params, player, {"x": real, "mask": mask})
        dirty = descend(objective[player], params, player, {"x": real + shift * (1 - mask[:, None]), "mask": mask})
        jax.tree.map(np.testing.assert_allclose, clean, dirty)
    metrics = descend(objective["critic"], params, "critic", {"x": real, "mask": mask})[1]
    kept = model.critic(params, None, {"x": real[jnp.array([0, 1, 3])]})
    np.testing.assert_allclose(metrics["real"], kept.mean())


def test_the_schedule_of_a_player_ends_with_its_last_update(monkeypatch):
    lengths = []
    monkeypatch.setattr(optimizers, "make", lambda steps, **options: lengths.append(steps) or optax.sgd(0.1))
    config = api.load_config("gan_digits:tiny")
    with config.unlocked():
        config.optimizer.players = {"generator": {"every": 3}}
        config.update({"model": {"shape": (8, 8, 1)}, "train": {"duration": "7"}})
    model, _ = zoo.build(config)
    assert dict(zip(zoo.OBJECTIVES["non_saturating"](model), lengths, strict=True)) == {"critic": 7, "generator": 3}


def test_refusals():
    model, _ = gaussians()
    with pytest.raises(ValueError, match="one of kl, reverse_kl"):
        games.f_gan(model, "total_variation")
    with pytest.raises(TypeError, match="critic"):
        games.f_gan(model._replace(critic=None))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "classes", "norm"), [((8, 8, 1), 3, True), ((28, 28, 1), 0, False)])
def test_gan(shape, classes, norm):
    model = gan.make(shape=shape, latent=5, channels=8, classes=classes, norm=norm)
    x = jax.random.uniform(jax.random.key(1), (4, *shape), jnp.float32, -1, 1)
    batch = {"x": x, "cond": jnp.array([0, 1, 2, 0])}
    params = jax.jit(model.init)(jax.random.key(2), batch)
    sample, decode, critic = jax.jit(model.sample, static_argnums=2), jax.jit(model.decode), jax.jit(model.critic)
    drawn = sample(params, jax.random.key(3), 4, batch["cond"])
    assert drawn.shape == x.shape
    assert drawn.dtype == jnp.float32
    assert np.abs(drawn).max() <= 1
    assert np.abs(drawn[0] - drawn[3]).max() > 1e-3
    cold = sample(params, jax.random.key(3), 4, jnp.zeros(4, int), 0.0)
    np.testing.assert_allclose(cold[0], cold[3], atol=1e-6)
    mean = decode(params, None, jnp.zeros((4, 5), jnp.float32), jnp.zeros(4, int))
    np.testing.assert_allclose(mean, cold, atol=1e-5)
    other = {**batch, "cond": jnp.array([0, 2, 1, 0])}
    moved = np.abs(critic(params, None, batch) - critic(params, None, other))
    drawn_moved = np.abs(sample(params, jax.random.key(3), 4, other["cond"]) - drawn).max((1, 2, 3))
    expected = np.array([False, True, True, False]) if classes else np.zeros(4, bool)
    np.testing.assert_array_equal(moved > 1e-4, expected)
    np.testing.assert_array_equal(drawn_moved > 1e-4, expected)
    if classes:
        with pytest.raises(ValueError, match="conditional on 3 classes"):
            model.critic(params, None, {"x": x})


@pytest.mark.slow
def test_penalty_of_a_convolutional_critic_has_the_right_gradient():
    """A second derivative, through the custom convolution: against finite differences."""
    model = gan.make(shape=(4, 4, 1), latent=2, channels=8, stages=1)
    batch = {"x": jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 1)))}
    params = jax.tree.map(lambda p: p.astype(jnp.float64), jax.jit(model.init)(jax.random.key(4), batch))
    loss = games.non_saturating(model, r1=2.0)["critic"]

    @jax.jit
    def value(critic):
        return loss.apply({**params, "critic": critic}, (), jax.random.key(5), batch)[0]

    gradient = jax.jit(jax.grad(value))(params["critic"])
    rng = np.random.default_rng(1)
    for _ in range(3):
        direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params["critic"])
        ahead, behind = (
            value(jax.tree.map(lambda p, d: p + h * d, params["critic"], direction)) for h in (1e-6, -1e-6)
        )
        slope = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        np.testing.assert_allclose((ahead - behind) / 2e-6, slope, rtol=1e-5)
