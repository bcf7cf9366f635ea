"""Configs: names, overrides and their errors, durations; every config that ships loads, resolves and builds."""

import pytest
from ml_collections import ConfigDict

from dgm_jax import api, config, workdir, zoo

SHIPPED = sorted(config.names())


def test_overrides_are_typed_and_locked():
    made = api.load_config(
        "vae_digits",
        {"model.hidden": "(64, 32)", "optimizer.learning_rate": "1", "data.cond": "true", "train.duration": 7},
    )
    assert made.model.hidden == (64, 32)
    assert made.optimizer.learning_rate == 1.0 and isinstance(made.optimizer.learning_rate, float)
    assert made.data.cond is True and made.train.duration == "7"
    with pytest.raises(AttributeError):
        made.model.hiden = 3


def test_the_name_of_an_optimizer_brings_its_options():
    made = api.load_config("made_digits", {"optimizer.momentum": "0.9", "optimizer.name": "sgd"})
    assert made.optimizer.momentum == 0.9 and made.optimizer.nesterov is False


def test_the_name_of_an_objective_brings_its_fields():
    made = api.load_config("vae_digits", {"objective.k": "7", "objective.name": "iwae"})
    assert made.objective.k == 7


@pytest.mark.parametrize(
    "name, given, options",
    [
        ("images:faces", {"size": "32"}, {"size": 32, "channels": 3}),
        ("csv:wine.csv", {"label": "quality", "columns": "(1, 'acid')"}, {"label": "quality", "columns": (1, "acid")}),
        ("csv:wine.csv", {"label": "11"}, {"label": 11, "columns": None, "delimiter": ","}),
        ("synthetic:markov", {"dims": "4"}, {"dims": 4, "train": 10_000}),
        ("digits", {}, {}),
    ],
)
def test_the_name_of_a_source_brings_its_options(name, given, options):
    overrides = {f"data.options.{key}": value for key, value in given.items()}
    found = api.load_config("vae_digits", {"data.name": name, **overrides}).data.options.to_dict()
    assert found | options == found
    assert "lazy" not in found  # data.stream says it


def test_an_older_page_gets_the_options_that_it_lacks():
    page = workdir.as_json(api.load_config("made_red_wine"))
    page["data"]["options"] = {}
    assert workdir.from_json(page).data.options.to_dict() == {"fold": 0}


@pytest.mark.parametrize(
    "key, value, error, text",
    [
        ("model.hiden", "3", KeyError, "model.hidden"),
        ("optimizer.lr", "3", KeyError, "near it"),
        ("learning_rate", "3", KeyError, "optimizer.learning_rate"),
        ("model.latent", "many", TypeError, "model.latent='many' cannot be read as int"),
        ("model.latent", "2.5", TypeError, "model.latent is int"),
        ("model.latent", "True", TypeError, "bool"),
        ("data.cond", "1", TypeError, "data.cond is bool"),
        ("data.options.fold", "1", KeyError, "near it"),
        ("model.name", "vea", ValueError, "unknown model 'vea'; there are made, nade, deep_nade"),
    ],
)
def test_bad_overrides_say_what_is_wrong(key, value, error, text):
    with pytest.raises(error) as raised:
        api.load_config("vae_digits", {key: value})
    assert text in str(raised.value)


def test_a_key_that_nothing_reads_fails():
    made = api.load_config("vae_digits:tiny", {"model.name": "mixture"})  # latent, hidden, ... are the VAE's
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        zoo.build_model(api.prepare(made).config)


def test_an_objective_on_a_model_without_the_capability():
    made = api.load_config("vae_digits:tiny", {"objective.name": "mle"})
    with pytest.raises(TypeError, match="objective 'mle' needs the capability 'log_prob'"):
        zoo.build(api.prepare(made).config)


def test_unknown_configs_and_variants():
    with pytest.raises(FileNotFoundError, match="vae_digits"):
        config.load("vae_digit")
    with pytest.raises(ValueError, match="unknown variant 'tinny'"):
        config.load("vae_digits:tinny")


@pytest.mark.parametrize(
    "duration, steps",
    [
        *(("20 epochs", 280), ("1 epoch", 14), ("500 steps", 500), (7, 7), ("1e3 examples", 10), ("0 steps", 0)),
        *(("10 examples", 1), ("0.01 epochs", 1), ("1e-3 steps", 1)),
    ],
)
def test_durations(duration, steps):
    assert config.in_steps(duration, batch=100, steps_per_epoch=14, per_dispatch=1) == steps


def test_durations_round_up_to_dispatches():
    assert config.in_steps("15 steps", 100, 14, per_dispatch=10) == 20
    with pytest.raises(ValueError, match="cannot read the duration '3 weeks'"):
        config.in_steps("3 weeks", 100, 14, 1)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_config_loads_and_builds(name):
    made = api.load_config(name)
    made = ConfigDict(made.to_dict())
    made.model.shape = (8, 8, 1) if "digits" in name else (28, 28, 1)
    made.train.duration = "10"
    if made.optimizer.name == "em":
        made.optimizer.every = "10"
    model, _ = zoo.build(made)
    assert model.sample is not None
    tiny = config.load(f"{name}:tiny", fill=zoo.fill)
    assert tiny.train.duration == "8 steps"
    assert "iwae" not in tiny.checkpoint.best  # of one importance sample there is none


def test_shared_fields_are_one():
    made = api.load_config("ddpm_digits", {"model.steps": "50"})
    assert made.objective.steps == 50
