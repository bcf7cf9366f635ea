"""The zoo: two literal dicts, and how a config's model, objective and optimizer become a Learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from dgm_jax.config import with_defaults
from dgm_jax.data import sources
from dgm_jax.models.adversarial import gan
from dgm_jax.models.autoregressive import (
    deep_nade,
    gated_pixelcnn,
    made,
    multiscale,
    nade,
    pixelcnn,
    pixelcnnpp,
    pixelrnn,
)
from dgm_jax.models.diffusion import ddpm
from dgm_jax.models.energy import rbm
from dgm_jax.models.flows import realnvp
from dgm_jax.models.graphical import hmm, mixture
from dgm_jax.models.latent import categorical, draw, factor_analysis, layered, pixel_vae, sbn, top_down, vae, vqvae
from dgm_jax.models.options import at_least
from dgm_jax.objectives import contrastive, counting, discrete, games, likelihood, quantization, score, variational
from dgm_jax.training import optimizers
from dgm_jax.training.learners import em, game, gradient
from dgm_jax.training.wrappers import with_ema
from dgm_jax.types import Counts, Learner, Loss, Model, Params, Player

MODELS: dict[str, Callable[..., Model]] = {
    "made": made.make,
    "nade": nade.make,
    "deep_nade": deep_nade.make,
    "pixelcnn": pixelcnn.make,
    "gated_pixelcnn": gated_pixelcnn.make,
    "pixelrnn": pixelrnn.make,
    "multiscale_pixelrnn": multiscale.make,
    "pixelcnnpp": pixelcnnpp.make,
    "realnvp": realnvp.make,
    "factor_analysis": factor_analysis.make,
    "vae": vae.make,
    "pixel_vae": pixel_vae.make,
    "layered_vae": layered.make,
    "top_down_vae": top_down.make,
    "vqvae": vqvae.make,
    "draw": draw.make,
    "sbn": sbn.make,
    "categorical_vae": categorical.make,
    "gan": gan.make,
    "rbm": rbm.make,
    "mixture": mixture.make,
    "hmm": hmm.make,
    "ddpm": ddpm.make,
}

OBJECTIVES: dict[str, Callable[..., Loss | dict[str, Loss] | Counts]] = {
    "mle": likelihood.mle,
    "elbo": variational.elbo,
    "beta_vae": variational.beta_vae,
    "iwae": variational.iwae,
    "vector_quantization": quantization.vector_quantization,
    "score_function": discrete.score_function,
    "vimco": discrete.vimco,
    "reweighted_wake_sleep": discrete.reweighted_wake_sleep,
    "concrete": discrete.concrete,
    "non_saturating": games.non_saturating,
    "f_gan": games.f_gan,
    "cd": contrastive.cd,
    "pcd": contrastive.pcd,
    "em": counting.counting,
    "denoising": score.denoising,
}


def row(table: dict[str, Callable], section: ConfigDict, what: str) -> Callable:
    """The function that a section names; ValueError lists what there is."""
    if section.name not in table:
        raise ValueError(f"unknown {what} {section.name!r}; there are {', '.join(table)}")
    return table[section.name]


def options(section: ConfigDict, *without: str) -> dict[str, Any]:
    """A section as keyword arguments, so that a key that nothing takes fails by itself."""
    return {key: value for key, value in section.to_dict().items() if key not in ("name", *without)}


def fill(config: ConfigDict, known: bool = True) -> None:
    """Complete the model, objective, optimizer and data.options sections with their functions' defaults, in place.

    An objective that is not in the zoo is an error; not so where known=False, for it may be needed no more.
    """
    with config.unlocked():
        with_defaults(config.model, row(MODELS, config.model, "model"))
        if known or config.objective.name in OBJECTIVES:
            with_defaults(config.objective, row(OBJECTIVES, config.objective, "objective"))
        is_em = config.optimizer.name == "em"
        with_defaults(config.optimizer, em_options if is_em else optimizers.make)
        if config.optimizer.name in optimizers.OPTIMIZERS:  # an unknown name fails in `make`, which lists them
            with_defaults(config.optimizer, optimizers.OPTIMIZERS[config.optimizer.name], only=(bool, int, float))
        config.data.options = ConfigDict(sources.defaults(config.data.name) | config.data.options.to_dict())


def build_model(config: ConfigDict) -> Model:
    """The model of a resolved config."""
    return row(MODELS, config.model, "model")(**options(config.model))


def build(config: ConfigDict, axis: str | None = None, params: Params | None = None) -> tuple[Model, Learner]:
    """The model and what trains it.

    Args:
        config: resolved (`api.prepare`): model.shape is there, and train.duration is a number of steps.
        axis: as the learners' constructors take it.
        params: what training starts from, in place of what the model draws.

    Raises:
        ValueError: an objective that diffuses by other noise than the model; or as the parts say.
    """
    for name in ("schedule", "steps"):
        own, other = config.model.get(name), config.objective.get(name)
        if None not in (own, other) and own != other:
            raise ValueError(f"model.{name}={own!r} and objective.{name}={other!r} are of one chain: give one value")
    model = build_model(config)
    objective = row(OBJECTIVES, config.objective, "objective")(model, **options(config.objective))
    start = model if params is None else model._replace(init=lambda key, batch: params)
    learner = learner_of(start, objective, config, axis)
    return model, with_ema(learner, config.train.ema) if config.train.ema else learner


def learner_of(
    model: Model, objective: Loss | dict[str, Loss] | Counts, config: ConfigDict, axis: str | None = None
) -> Learner:
    """The learner of an objective: `gradient` of a Loss, a `game` of a dict of them, `em` of Counts.

    Each player of a game has the optimizer section overlaid by optimizer.players[player]. It plays at the first of
    `every` steps, and its schedule counts its own updates. EM takes an M-step every optimizer.every; with
    optimizer.power > 0 it blends the statistics of M-step t at the rate (t + optimizer.offset)^-power.

    Raises:
        ValueError: micro-batches of EM, an optimizer of a player that there is none of, or steps every 0 steps.
    """
    steps, micro = int(config.train.duration), config.train.micro
    section = options(config.optimizer, "players") | {"name": config.optimizer.name}
    own = config.optimizer.get("players", ConfigDict()).to_dict()
    players = objective if isinstance(objective, dict) else {}
    if unknown := own.keys() - players.keys():
        there = f"there are {', '.join(players)}" if players else "this objective has no players"
        raise ValueError(f"optimizer.players has {', '.join(sorted(unknown))}; {there}")
    if isinstance(objective, Loss):
        return gradient(model.init, objective, optimizers.make(steps, **section), micro, axis)
    if isinstance(objective, Counts):
        if micro > 1:
            raise ValueError(f"train.micro={micro} accumulates gradients, and EM has none: take smaller batches")
        return em(model.init, *objective, **em_options(**section), axis=axis)
    playing = {}
    for name, loss in objective.items():
        merged = section | own.get(name, {})
        every = merged.pop("every", 1)
        at_least(1, **{f"optimizer.players.{name}.every": every})
        playing[name] = Player(loss, optimizers.make(-(-steps // every), **merged), every)
    return game(model.init, playing, micro, axis)


def em_options(name: str = "em", every: str = "1 epoch", power: float = 0.0, offset: float = 1.0) -> dict[str, Any]:
    """The optimizer section of an EM run as `em` takes it; `every` is in steps by now."""
    at_least(1, **{"optimizer.every": int(every)})
    return {"every": int(every), "rate": (lambda t: (t + offset) ** -power) if power else None}
