"""The Configs: what they accept, in which canonical form they keep it, and what they derive."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from typing import Any

import pytest
import torch

from upslope.config import (
    CONFIGS,
    Config,
    PPOConfig,
    ReinforceConfig,
    parse_text,
    preset,
    preset_timesteps,
    schedule_at,
)
from upslope.config.presets import BUDGETS, PRESETS
from upslope.errors import ConfigError

EVERY_FIELD = [
    pytest.param(config, declared, id=f"{config.algorithm}-{declared.name}")
    for config in CONFIGS.values()
    for declared in dataclasses.fields(config)
]


def field(name: str, config: type[Config] = PPOConfig) -> dataclasses.Field[Any]:
    return next(declared for declared in dataclasses.fields(config) if declared.name == name)


class TestDeclarations:
    @pytest.mark.parametrize(("config", "declared"), EVERY_FIELD)
    def test_has_a_doc_line_and_a_default_that_is_kept(
        self, config: type[Config], declared: dataclasses.Field[Any]
    ) -> None:
        assert declared.metadata["doc"]
        made = config()
        again = config(**{declared.name: getattr(made, declared.name)})
        assert again == made

    def test_names_are_those_of_stable_baselines3(self) -> None:
        names = {declared.name for declared in dataclasses.fields(PPOConfig)}
        assert names >= {
            *("n_envs", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range"),
            *("ent_coef", "vf_coef", "max_grad_norm", "target_kl", "learning_rate", "seed"),
            *("clip_range_vf", "normalize_advantage", "device", "net_arch", "activation_fn"),
        }

    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_frozen(self, config: type[Config]) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            config().gamma = 0.5  # type: ignore[misc]

    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_json_and_back(self, config: type[Config]) -> None:
        made = config(
            learning_rate="lin_1e-3",
            net_arch={"pi": [8], "vf": []},
            env_kwargs={"gravity": 9.8},
            log_info=("a", "b"),
            max_episode_steps=7,
        )
        text = json.dumps(made.to_json(), allow_nan=False)
        assert config.from_settings(json.loads(text)) == made

    def test_a_default_mapping_is_not_shared(self) -> None:
        PPOConfig().env_kwargs["leak"] = 1  # type: ignore[index]
        assert PPOConfig().env_kwargs == {}


class TestCanonicalForm:
    @pytest.mark.parametrize(
        ("name", "given", "kept"),
        [
            ("gamma", 1, 1.0),
            ("gamma", Fraction(1, 2), 0.5),
            ("n_steps", 64.0, 64),
            ("learning_rate", "3e-4", 3e-4),
            ("learning_rate", "lin_2.5e-4", "lin_0.00025"),
            ("learning_rate", 1, 1.0),
            ("max_grad_norm", None, None),
            ("target_kl", None, None),
            ("clip_range_vf", None, None),
            ("norm_obs", "True", True),
            ("activation_fn", torch.nn.ReLU, "relu"),
            ("activation_fn", torch.nn.Tanh, "tanh"),
            ("device", torch.device("cpu"), "cpu"),
            ("device", "cuda:3", "cuda:3"),
            ("log_info", "speed", ("speed",)),
            ("log_info", ["speed", "fuel"], ("speed", "fuel")),
            ("net_arch", (8,), {"pi": (8,), "vf": (8,)}),
            ("net_arch", [], {"pi": (), "vf": ()}),
            ("net_arch", "8,4", {"pi": (8, 4), "vf": (8, 4)}),
            ("net_arch", "pi=8,4;vf=2", {"pi": (8, 4), "vf": (2,)}),
            ("net_arch", {"pi": [8, 4], "vf": [2]}, {"pi": (8, 4), "vf": (2,)}),
            ("seed", 2**31 - 1, 2**31 - 1),
        ],
    )
    def test_value(self, name: str, given: Any, kept: Any) -> None:
        config = PPOConfig(**{name: given})
        value = getattr(config, name)
        if isinstance(value, str) and value.startswith("lin_"):
            assert schedule_at(value, 1.0) == float(kept.removeprefix("lin_"))
        else:
            assert value == kept
            assert type(value) is type(kept)

    def test_a_linear_schedule_keeps_every_digit(self) -> None:
        config = PPOConfig(learning_rate="lin_2.5123456789e-4")
        assert schedule_at(config.learning_rate, 1.0) == 2.5123456789e-4

    def test_a_callable_is_kept(self) -> None:
        def halving(progress_remaining: float) -> float:
            return 1e-3 * 0.5**progress_remaining

        config = PPOConfig(learning_rate=halving)
        assert config.learning_rate is halving
        assert "halving" in config.to_json()["learning_rate"]["callable"]


class TestSchedules:
    @pytest.mark.parametrize("remaining", [0.0, 0.25, 1.0])
    def test_values(self, remaining: float) -> None:
        assert schedule_at(3e-4, remaining) == 3e-4
        assert schedule_at("lin_4e-4", remaining) == pytest.approx(4e-4 * remaining, rel=1e-12)
        assert schedule_at(lambda p: p * p, remaining) == remaining**2

    @pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "x", None, True])
    def test_what_a_callable_returns_is_checked(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"schedule .* returned .* finite number >= 0"):
            schedule_at(lambda _: value, 0.5)


class TestText:
    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("n_steps", "64", 64),
            ("n_steps", "1_000", 1000),
            ("n_steps", "1e3", 1000),
            ("n_steps", "none", None),
            ("gamma", "0.9", 0.9),
            ("learning_rate", "1e-3", 1e-3),
            ("learning_rate", "lin_1e-3", "lin_1e-3"),
            ("target_kl", "None", None),
            ("log_info", "a,b", ("a", "b")),
            ("vec", "sync", "sync"),
        ],
    )
    def test_is_read(self, name: str, text: str, value: Any) -> None:
        assert parse_text(field(name), text) == value

    @pytest.mark.parametrize("text", ["1.5e0", "6.45e1", "12e-1", "1.5", "0x10", "", "1e", "inf"])
    def test_a_whole_number_is_never_rounded(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"n_epochs=.*whole number"):
            PPOConfig(n_epochs=parse_text(field("n_epochs"), text))


class TestResolve:
    @pytest.mark.parametrize(("n_envs", "n_steps"), [(1, 2048), (8, 256), (3, 682), (64, 32)])
    def test_a_rollout_of_about_2048(self, n_envs: int, n_steps: int) -> None:
        config = PPOConfig().resolve(n_envs)
        assert (config.n_envs, config.n_steps) == (n_envs, n_steps)

    def test_a_given_length_stays(self) -> None:
        assert PPOConfig(n_steps=64).resolve(5).n_steps == 64

    def test_derived_settings_are_open_again_for_other_environments(self) -> None:
        config = PPOConfig().resolve(16).for_other_environments()
        assert config.resolve(4).n_steps == 512

    def test_a_batch_larger_than_the_rollout(self) -> None:
        with pytest.raises(ConfigError, match=r"batch_size=64 .* 16 rows.* 1\.\.16"):
            PPOConfig(n_steps=8).resolve(2)
        assert PPOConfig(n_steps=8, batch_size=16).resolve(2).batch_size == 16

    def test_a_minibatch_of_one_cannot_be_standardised(self) -> None:
        with pytest.raises(ConfigError, match=r"batch_size=1 .*at least 2"):
            PPOConfig(batch_size=1)
        assert PPOConfig(batch_size=1, normalize_advantage=False).batch_size == 1
        assert PPOConfig(batch_size=1, normalize_advantage_over="batch").batch_size == 1

    def test_leave_one_out_needs_two_episodes(self) -> None:
        with pytest.raises(ConfigError, match=r"baseline=loo .*batch_episodes.*at least 2"):
            ReinforceConfig(batch_episodes=1)
        assert ReinforceConfig(batch_episodes=1, baseline="none").batch_episodes == 1

    def test_envpool_takes_no_constructor_arguments(self) -> None:
        with pytest.raises(ConfigError, match=r"env_kwargs .*EnvPool.*sync"):
            PPOConfig(vec="envpool", env_kwargs={"gravity": 1})


class TestPresets:
    @pytest.mark.parametrize(("key", "settings"), PRESETS.items(), ids=str)
    def test_each_is_a_valid_config(self, key: tuple[str, str], settings: dict[str, Any]) -> None:
        config = CONFIGS[key[1]].from_settings(settings)
        assert config.resolve(config.n_envs or 8)

    def test_budgets_belong_to_presets(self) -> None:
        assert BUDGETS.keys() <= PRESETS.keys()
        assert all(preset_timesteps(*key, "auto") == steps for key, steps in BUDGETS.items())

    def test_nothing_is_known_of_an_unknown_environment(self) -> None:
        assert preset("Nowhere-v0", "ppo") == {}
        assert preset_timesteps(None, "ppo", "auto") == 100_000

    def test_a_preset_cannot_be_changed_from_outside(self) -> None:
        if not PRESETS:
            pytest.skip("there are no presets")
        key = next(iter(PRESETS))
        preset(*key)["gamma"] = -1
        assert preset(*key).get("gamma") != -1
