"""The pictures of a run, by what its model can do and what its data are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from dgm_jax.data import pipeline, transforms
from dgm_jax.evaluation import plots
from dgm_jax.runs import Run, draw_samples, of_means
from dgm_jax.tasks import missing
from dgm_jax.training.parallel import whole
from dgm_jax.training.processes import is_main
from dgm_jax.types import Array, Batch, Key, Model, Params, PyTree

ROWS, STEPS = 10, 11  # of the pictures of walks through the codes
REACH = 2.5  # of a coordinate, in standard deviations of the prior

STAGED, STAGES = 8, 10  # samples that are shown as they come about, and at most at so many stages


def write_samples(model: Model, run: Run, params: Params, key: Key, folder: Path, name: str) -> None:
    """Draw config.eval.samples examples: a grid of images, or points in the plane over the model's density.

    `name`.png has draws of x. Where x is drawn around what a code decodes to, `name`_means.png has that: the
    pictures most papers show. `name`_stages.png has a row a sample, from left to right how it comes about.
    """
    info, n, save = run.data.info, run.config.eval.samples, saver()
    if model.sample is None or not n:
        return
    if len(info.shape) == 3:
        low, high = grey_range(run)
        drawn = draw_samples(model, run, params, key, n)
        save(plots.grid(drawn, low=low, high=high), folder / f"{name}.png")
        if (around := of_means(model)) is not None:
            means = draw_samples(around, run, params, key, n)
            save(plots.grid(means, low=low, high=high), folder / f"{name}_means.png")
        if model.stages is not None:
            rows = min(n, STAGED)
            staged = draw_samples(model._replace(sample=_stages(model)), run, params, key, rows)
            picture = plots.grid(np.concatenate(staged), columns=staged.shape[1], low=low, high=high)
            save(picture, folder / f"{name}_stages.png")
    elif info.shape == (2,) and info.kind == "real":
        drawn = draw_samples(model, run, params, key, 1000)
        density = None if model.log_prob is None else _log_density(model, run, params)
        save(plots.density(run.data.splits["train"]["x"], drawn, density), folder / f"{name}.png")


def write_reconstructions(model: Model, run: Run, params: Params, key: Key, folder: Path) -> None:
    """Images of the validation split: from their codes and between them, what is predicted, the bits, lower halves,
    and what is missing.
    """
    n, save = min(run.config.eval.samples, len(run.data.splits["valid"]["x"])), saver()
    if len(run.data.info.shape) != 3 or not n:
        return
    raw = pipeline.take(run.data.splits["valid"], np.arange(n), run.config.data.cond)
    data_key, encode_key, decode_key, complete_key, code_key, impute_key = jax.random.split(key, 6)
    transform = transforms.of_split(run.transform, "valid")
    batch, _ = transforms.apply(transform, data_key, raw)
    low, high = grey_range(run)
    truth = transforms.apply(transforms.whole(transform), data_key, raw)[0]["x"]

    def shown(x: Array) -> np.ndarray:
        return np.asarray(jax.vmap(run.transform.inverse)(x))

    if model.encode is not None and model.decode is not None:
        decoded = jax.jit(_reconstruct(model), out_shardings=whole(params))(params, encode_key, decode_key, batch)
        picture = plots.comparison(shown(truth), shown(decoded), low=low, high=high)
        save(picture, folder / "reconstructions.png")
    if n > 1 and has_code_space(model, params, batch):
        drawn = jax.jit(walks(model), out_shardings=whole(params))(params, code_key, batch)
        for name, x in drawn.items():
            save(plots.grid(shown(x), columns=STEPS, low=low, high=high), folder / f"{name}.png")
    if model.log_conditionals is not None and model.support != "real":  # a density has no bits
        found, *predicted = jax.jit(_parts(model), out_shardings=whole(params))(params, batch)
        cost, predicted = -np.asarray(found) / np.log(2), [shown(x) for x in predicted]
        save(plots.bits(shown(truth), cost, *predicted, low=low, high=high), folder / "bits.png")
    if model.complete is not None:
        upper = jnp.arange(batch["x"].shape[1]) < batch["x"].shape[1] // 2
        observed = jnp.broadcast_to(upper[:, None, None], batch["x"].shape).astype(batch["x"].dtype)
        observed = observed * batch.get("observed", 1)
        completed = jax.jit(model.complete, out_shardings=whole(params))(
            params, complete_key, batch | {"observed": observed}
        )
        picture = plots.completion(shown(truth), np.asarray(observed), shown(completed), low=low, high=high)
        save(picture, folder / "completions.png")
    if "observed" in batch and (k := run.config.eval.impute):
        impute = jax.jit(missing.imputer(model, k, run.config.eval.chunk), out_shardings=whole(params))
        filled = impute(params, impute_key, batch)
        picture = plots.completion(shown(truth), np.asarray(batch["observed"]), shown(filled), low=low, high=high)
        save(picture, folder / "imputations.png")


def saver() -> Callable[..., None]:
    """What saves pictures: all processes draw them together, and one writes."""
    return plots.save if is_main() else lambda picture, path: None


def grey_range(run: Run) -> tuple[float, float]:
    """The values that are drawn black and white, in the data's units."""
    info = run.data.info
    return (0.0, info.levels - 1.0) if info.levels else info.range or (0.0, 1.0)


@functools.lru_cache(maxsize=1)  # the same function, so that it is compiled once
def _stages(model: Model) -> Callable[..., Array]:
    """In place of `sample`: of each sample the images [n, S, *shape] of some stages, the last among them."""

    def sample(params: Params, key: Key, n: int, cond: Array | None = None, temperature: float = 1.0) -> Array:
        assert model.stages is not None
        x = model.stages(params, key, n, cond, temperature)
        count = x.shape[1]
        shown = np.linspace(count - 1, 0, min(count, STAGES)).round().astype(int)[::-1]
        return x[:, shown]

    return sample


def _reconstruct(model: Model) -> Callable[[Params, Key, Key, Batch], Array]:
    def reconstruct(params: Params, encode_key: Key, decode_key: Key, batch: Batch) -> Array:
        assert model.encode is not None and model.decode is not None
        return model.decode(params, decode_key, model.encode(params, encode_key, batch), batch.get("cond"))

    return reconstruct


def has_code_space(model: Model, params: Params, batch: Batch) -> bool:
    """Whether codes are real, of the form that the prior draws: then what lies between them can be decoded."""
    if model.encode is None or model.decode is None or model.prior is None:
        return False
    key, n, cond = jax.random.key(0), len(batch["x"]), batch.get("cond")
    codes = jax.eval_shape(model.encode, params, key, batch)
    drawn = jax.eval_shape(lambda params: model.prior(params, key, n, cond), params)  # type: ignore[misc]
    real = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(codes))
    return real and jax.tree.map(jnp.shape, codes) == jax.tree.map(jnp.shape, drawn)


def walks(model: Model) -> Callable[[Params, Key, Batch], dict[str, Array]]:
    """Straight lines through the space of codes, a row of STEPS images each.

    "interpolations" go from an image's code to another's. "traversals" change one coordinate of the first image's code
    over what the prior gives it: of the coordinates in which codes differ most, the most first.
    """

    def walk(params: Params, key: Key, batch: Batch) -> dict[str, Array]:
        assert model.encode is not None and model.decode is not None and model.prior is not None
        encode_key, prior_key, decode_key = jax.random.split(key, 3)
        n, cond = len(batch["x"]), batch.get("cond")
        codes, drawn = model.encode(params, encode_key, batch), model.prior(params, prior_key, n, cond)
        flat, spread = _flat(codes), _flat(drawn).std(0)

        pairs, share = min(ROWS, n // 2), jnp.linspace(0, 1, STEPS, dtype=flat.dtype)[None, :, None]
        lines = (1 - share) * flat[:pairs, None] + share * flat[pairs : 2 * pairs, None]

        axes = jnp.argsort(-flat.var(0) / (spread**2 + 1e-12))[:ROWS]
        offsets = jnp.linspace(-REACH, REACH, STEPS, dtype=flat.dtype)
        values = _flat(drawn).mean(0)[axes][:, None] + spread[axes][:, None] * offsets[None]  # [rows, STEPS]
        chosen = jax.nn.one_hot(axes, flat.shape[1], dtype=flat.dtype)[:, None]
        along = flat[:1][None] * (1 - chosen) + values[..., None] * chosen

        path = jnp.concatenate([lines.reshape(-1, flat.shape[1]), along.reshape(-1, flat.shape[1])])
        owner = jnp.concatenate([jnp.repeat(jnp.arange(pairs), STEPS), jnp.zeros(along.shape[0] * STEPS, int)])
        unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], codes))[1]
        there = jax.tree.map(lambda leaf: leaf[owner], cond)
        x = model.decode(params, decode_key, jax.vmap(unravel)(path), there)
        return {"interpolations": x[: pairs * STEPS], "traversals": x[pairs * STEPS :]}

    return walk


def _flat(codes: PyTree) -> Array:
    """Codes [n, ...] as vectors [n, K]."""
    return jax.vmap(lambda code: ravel_pytree(code)[0])(codes)


def _parts(model: Model) -> Callable[[Params, Batch], list[Array]]:
    def parts(params: Params, batch: Batch) -> list[Array]:
        return [part(params, None, batch) for part in (model.log_conditionals, model.predict) if part is not None]

    return parts


def _log_density(model: Model, run: Run, params: Params) -> Callable[[np.ndarray], np.ndarray]:
    """Log-density of points [n, 2] in the data's units."""

    @jax.jit
    def log_density(x: Array) -> Array:
        assert model.log_prob is not None
        transform = transforms.whole(run.transform)  # points of a grid
        batch, log_det = transforms.apply(transform, None, {"x": x, "index": jnp.arange(len(x))})
        return model.log_prob(params, None, batch) + log_det

    return lambda x: np.asarray(log_density(jnp.asarray(x, jnp.float32)))
