"""The RL Zoo's files of settings become settings here; what they hold is never evaluated."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import sb3_contrib
import stable_baselines3
import torch
import yaml

from upslope.config import CONFIGS
from upslope.config.zoo import ZooEntry, algorithm_of, read_zoo
from upslope.config.zoo.draft import Draft
from upslope.config.zoo.entry import OFF_POLICY, WITHOUT_EQUIVALENT
from upslope.config.zoo.literal import NAMES, read_literal
from upslope.errors import ConfigError

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "bench" / "zoo" / "table.py"
PEERS = {
    "ppo": stable_baselines3.PPO,
    "a2c": stable_baselines3.A2C,
    "trpo": sb3_contrib.TRPO,
}


def script() -> Any:
    """The benchmark that trains the entries, as a module."""
    spec = importlib.util.spec_from_file_location("zoo_table", TABLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo_table"] = module
    spec.loader.exec_module(module)
    return module


BENCH = script()
IS_INSTALLED = importlib.util.find_spec("rl_zoo3") is not None
ENTRIES = list(BENCH.all_entries()) if IS_INSTALLED else []
OF_GYMNASIUM = list(BENCH.of_gymnasium()) if IS_INSTALLED else []


def read(text: str, env: str = "CartPole-v1", algorithm: str = "ppo", **given: Any) -> ZooEntry:
    return read_zoo(text, f"{algorithm}.yml", algorithm, env, given)


def entry(*lines: str, env: str = "CartPole-v1", algorithm: str = "ppo", **given: Any) -> ZooEntry:
    """Read one entry of the environment with these lines."""
    return read("\n  ".join([f"{env}:", "gamma: 0.9", *lines]), env, algorithm, **given)


def refusal(*lines: str, env: str = "CartPole-v1", algorithm: str = "ppo") -> str:
    """The one sentence that refuses an entry."""
    with pytest.raises(ConfigError) as caught:
        entry(*lines, env=env, algorithm=algorithm)
    return one_sentence(str(caught.value))


def one_sentence(text: str) -> str:
    assert "\n" not in text
    assert not re.search(r"\. [A-Z]", text), text
    assert len(text) < 600
    return text


def note(*lines: str, env: str = "CartPole-v1", algorithm: str = "ppo") -> str:
    """The only sentence on what has no equivalent."""
    (said,) = entry(*lines, env=env, algorithm=algorithm).notes
    return one_sentence(said)


@pytest.mark.skipif(not IS_INSTALLED, reason="rl_zoo3 is not installed")
class TestFilesOfTheZoo:
    def test_there_are_entries_of_all_three(self) -> None:
        assert {e.algorithm for e in OF_GYMNASIUM} == {"ppo", "a2c", "trpo"}
        assert len(OF_GYMNASIUM) > 40
        kinds = {e.key.rpartition("-v")[0] for e in OF_GYMNASIUM}
        assert {"CartPole", "BipedalWalker", "HalfCheetah", "Reacher"} <= kinds

    @pytest.mark.parametrize("zoo", ENTRIES, ids=lambda zoo: zoo.name)
    def test_parses_or_says_why_not(self, zoo: Any) -> None:
        text = zoo.path.read_text()
        raw = yaml.safe_load(text)[zoo.key]
        if zoo.key != "atari" and "env_wrapper" in raw:  # the only reason there is
            with pytest.raises(ConfigError) as caught:
                read_zoo(text, zoo.path.name, zoo.algorithm, zoo.env_id)
            assert f"{zoo.key} in {zoo.path.name}" in one_sentence(str(caught.value))
            return
        found = read_zoo(text, zoo.path.name, zoo.algorithm, zoo.env_id)
        for said in found.notes:
            one_sentence(said)
        assert found.total_timesteps == int(raw["n_timesteps"])
        config = CONFIGS[zoo.algorithm].from_settings(found.settings)
        for key, value in raw.items():
            self.is_accounted_for(key, value, config, found)

    def is_accounted_for(self, key: str, value: Any, config: Any, found: ZooEntry) -> None:
        said = " ".join(found.notes)
        if key == "batch_size" and "batch_size" in said:
            assert config.batch_size == config.n_envs * config.n_steps
        elif hasattr(config, key):
            is_text = isinstance(value, str)
            expected = f"lin_{float(value.removeprefix('lin_'))!r}" if is_text else value
            assert getattr(config, key) == expected
        elif key == "normalize":
            assert config.norm_obs
            assert config.norm_reward
        elif key == "use_sde":
            assert key in said
        elif key == "policy_kwargs":
            self.has_network(value, config)
        else:
            known = {"n_timesteps", "policy", "env_wrapper", "sde_sample_freq"}
            assert key in known | {"sub_sampling_factor"}

    def has_network(self, text: str, config: Any) -> None:
        """What Python itself would make of the text stands in the config."""
        like_sb3 = {"nn": torch.nn, "RMSpropTFLike": torch.optim.RMSprop}
        kwargs = eval(text, like_sb3)
        arch = kwargs.get("net_arch", {"pi": [64, 64], "vf": [64, 64]})
        if "optimizer_class" not in kwargs:
            assert config.net_arch == {part: tuple(widths) for part, widths in arch.items()}
        activation = kwargs.get("activation_fn", torch.nn.Tanh).__name__.lower()
        assert config.activation_fn == activation
        assert config.log_std_init == kwargs.get("log_std_init", 0.0)
        assert config.ortho_init is kwargs.get("ortho_init", True)

    def test_the_page_has_a_row_for_each(self) -> None:
        page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
        marked = re.search(r"<!-- zoo -->\n(.*?)\n<!-- /zoo -->", page, re.DOTALL)
        assert marked is not None
        rows = marked[1].splitlines()[2:]
        for row, zoo in zip(rows, OF_GYMNASIUM, strict=True):
            assert row == BENCH.row(zoo, self.outcome(zoo))

    def outcome(self, zoo: Any) -> str:
        """What training would say before its first step; the slow test takes the steps."""
        try:
            read_zoo(zoo.path.read_text(), zoo.path.name, zoo.algorithm, zoo.env_id)
        except ConfigError as error:
            return f"no: {error}"
        return "trained"

    @pytest.mark.slow
    @pytest.mark.box2d
    @pytest.mark.mujoco
    @pytest.mark.parametrize("zoo", OF_GYMNASIUM, ids=lambda zoo: zoo.name)
    def test_trains_two_iterations_or_says_why_not(self, zoo: Any) -> None:
        outcome = BENCH.two_iterations(zoo)
        if zoo.key == "CarRacing-v3":
            assert "FrameSkip" in one_sentence(outcome)
        else:
            assert outcome == "trained"


class TestChoice:
    def test_of_the_exact_id(self) -> None:
        found = read("CartPole-v0: {gamma: 0.8}\nCartPole-v1: {gamma: 0.9}\n")
        assert (found.key, found.settings["gamma"], found.notes) == ("CartPole-v1", 0.9, ())

    @pytest.mark.parametrize("old", ["Hopper-v2", "Hopper-v4"])
    def test_of_the_newest_older_version(self, old: str) -> None:
        found = read(f"Hopper-v1: {{gamma: 0.8}}\n{old}: {{gamma: 0.9}}\n", "Hopper-v5")
        assert (found.env_id, found.settings["gamma"]) == ("Hopper-v5", 0.9)
        assert found.notes == (f"Hopper-v5 has no entry in ppo.yml: that of {old} is taken",)

    def test_never_of_a_newer_one(self) -> None:
        with pytest.raises(ConfigError, match=r"no entry for LunarLander-v2; the nearest .*-v3"):
            read("LunarLander-v3: {gamma: 0.8}\n", "LunarLander-v2")

    def test_of_an_old_version(self) -> None:
        found = read("Reacher-v2: {gamma: 0.9}\n", "Reacher-v2")
        assert (found.env_id, found.key) == ("Reacher-v5", "Reacher-v2")
        (said,) = found.notes
        assert (
            said
            == "Reacher-v2 is an old version: Reacher-v5 is trained, with the entry of Reacher-v2"
        )
        assert read("Hopper-v4: {gamma: 0.9}\n", "Hopper-v4").env_id == "Hopper-v5"

    def test_of_a_module(self) -> None:
        assert read("My-v0: {gamma: 0.9}\n", "my_package:My-v0").notes == ()
        assert read("a.py:make: {gamma: 0.9}\n", "a.py:make").key == "a.py:make"

    def test_of_atari(self) -> None:
        text = "atari:\n  policy: CnnPolicy\n  frame_stack: 4\n"
        found = read(text, "ALE/Pong-v5")
        assert found.key == "atari"
        assert found.settings["frame_stack"] == 4
        with pytest.raises(ConfigError, match="no entry for Pendulum-v1"):
            read(text, "Pendulum-v1")

    def test_a_missing_entry_names_the_nearest(self) -> None:
        text = "CartPole-v1: {gamma: 1}\nAcrobot-v1: {gamma: 1}\n"
        with pytest.raises(ConfigError) as caught:
            read(text, "CartPoel-v1")
        assert "ppo.yml has no entry for CartPoel-v1; the nearest are CartPole-v1" in one_sentence(
            str(caught.value)
        )
        with pytest.raises(ConfigError, match="no entry for Foo: copy one"):
            read(text, "Foo")

    def test_anchors_and_merge_keys(self) -> None:
        text = "A-v0: &a\n  gamma: 0.9\n  n_envs: 4\nB-v0:\n  <<: *a\n  gamma: 0.8\n"
        found = read(text, "B-v0").settings
        assert (found["gamma"], found["n_envs"]) == (0.8, 4)

    @pytest.mark.parametrize("text", ["", "- 1\n", "gamma: 0.9\n", "1: {a: 1}\n", "just text"])
    def test_a_file_of_another_kind(self, text: str) -> None:
        with pytest.raises(ConfigError, match="must hold a table of settings for each"):
            read(text)

    @pytest.mark.parametrize("value", ["3", "[1]", "{1: 2}", "text", "null"])
    def test_an_entry_of_another_kind(self, value: str) -> None:
        with pytest.raises(ConfigError, match=r"CartPole-v1 in ppo\.yml is no table"):
            read(f"CartPole-v1: {value}\nA-v0: {{gamma: 1}}\n")

    def test_only_of_what_the_zoo_has(self) -> None:
        with pytest.raises(ConfigError, match="ppo, a2c, trpo, not of vpg"):
            read("CartPole-v1: {gamma: 1}\n", algorithm="vpg")

    def test_the_name_of_a_file_says_the_algorithm(self) -> None:
        names = ("ppo", "a2c", "trpo", "ppo_lstm", "mine")
        assert [algorithm_of(f"a/{name}.yml") for name in names] == [
            "ppo", "a2c", "trpo", "ppo", None
        ]  # fmt: skip
        with pytest.raises(ConfigError, match="sac, which is not trained here"):
            algorithm_of("hyperparams/sac.yml")

    def test_a_file_of_another_algorithm(self) -> None:
        text = "CartPole-v1: {gamma: 0.9}\n"
        (said,) = read_zoo(text, "a2c.yml", "ppo", "CartPole-v1").notes
        assert said == "a2c.yml is of a2c by its name: it is taken for ppo"
        with pytest.raises(ConfigError, match="sac, which is not trained here"):
            read_zoo(text, "sac.yml", "ppo", "CartPole-v1")


class TestKeys:
    def test_numbers_as_the_zoo_writes_them(self) -> None:
        found = entry(
            "n_timesteps: !!float 1e6", "n_envs: 4", "n_steps: !!float 64", "ent_coef: .0",
            "learning_rate: 1e-3", "clip_range: lin_0.2", "max_grad_norm: 5", "target_kl: null",
        )  # fmt: skip
        assert found.total_timesteps == 1_000_000
        assert isinstance(found.total_timesteps, int)
        config = CONFIGS["ppo"].from_settings(found.settings)
        assert (config.n_envs, config.n_steps, config.ent_coef) == (4, 64, 0.0)
        assert (config.learning_rate, config.clip_range) == (1e-3, "lin_0.2")
        assert (config.max_grad_norm, config.target_kl) == (5.0, None)
        assert found.notes == ()

    def test_tuned_settings_of_ours_are_left_out(self) -> None:
        assert entry().settings["preset"] == "none"

    @pytest.mark.parity
    @pytest.mark.parametrize("algorithm", PEERS)
    def test_silence_means_the_default_of_stable_baselines(self, algorithm: str) -> None:
        found = CONFIGS[algorithm].from_settings(entry(algorithm=algorithm).settings)
        assert found.n_envs == 1
        for name, parameter in inspect.signature(PEERS[algorithm]).parameters.items():
            if hasattr(found, name) and name not in ("seed", "gamma"):
                assert getattr(found, name) == parameter.default, name

    @pytest.mark.parity
    def test_silence_of_a_recurrent_policy(self) -> None:
        found = entry("policy: MlpLstmPolicy").settings
        theirs = inspect.signature(sb3_contrib.RecurrentPPO).parameters
        assert found["n_steps"] == theirs["n_steps"].default
        assert found["batch_size"] == theirs["batch_size"].default
        assert (found["memory"], found["memory_size"]) == ("lstm", 256)

    @pytest.mark.parametrize(
        ("value", "obs", "reward"),
        [
            ("true", True, True),
            ('"True"', True, True),
            ("false", None, None),
            ("null", None, None),
            ("\"{'norm_obs': False, 'norm_reward': True}\"", False, True),
            ('"dict(norm_obs=True, norm_reward=False)"', True, False),
            ("{norm_reward: false}", True, False),
        ],
    )
    def test_normalize(self, value: str, obs: bool | None, reward: bool | None) -> None:
        found = entry(f"normalize: {value}")
        assert (found.settings.get("norm_obs"), found.settings.get("norm_reward")) == (obs, reward)
        assert found.notes == ()

    def test_arguments_of_normalize(self) -> None:
        found = entry("normalize: {clip_obs: 5, gamma: 0.99}")
        assert found.settings["clip_obs"] == 5
        for name, value, instead in (
            ("epsilon", "0.1", "1e-8 is added to the variance"),
            ("training", "false", "running statistics follow the training"),
            ("norm_obs_keys", "[a]", "every part of the observation"),
        ):
            said = note(f"normalize: {{{name}: {value}}}")
            assert f"{name} of normalize has no equivalent: {instead}" in said
        kept = "normalize: {epsilon: 1.0e-8, training: true, norm_obs_keys: null}"
        assert entry(kept).notes == ()
        assert "did you mean 'norm_obs'" in refusal("normalize: {norm_ob: true}")

    def test_gsde_is_said_once(self) -> None:
        said = note("use_sde: True", "sde_sample_freq: 4", "policy_kwargs: dict(log_std_init=-2)")
        assert said == (
            "CartPole-v1 in ppo.yml: use_sde (sde_sample_freq=4) has no equivalent: Gaussian noise "
            "is drawn at every step, and log_std_init is its log standard deviation"
        )
        assert entry("use_sde: False", "sde_sample_freq: 4").notes == ()

    @pytest.mark.parametrize("name", ["full_std", "use_expln", "squash_output", "sde_net_arch"])
    def test_what_shapes_gsde_is_said_where_there_is_gsde(self, name: str) -> None:
        line = f"policy_kwargs: dict({name}=True)"
        first, second = entry("use_sde: True", line).notes
        assert first.endswith(f"{name} of policy_kwargs has no equivalent: it shapes the noise of "
                              "use_sde")  # fmt: skip
        assert "use_sde has no equivalent" in second
        assert entry(line).notes == ()  # it does nothing there either

    def test_a_minibatch_larger_than_the_rollout(self) -> None:
        lines = ("n_envs: 2", "n_steps: 8", "batch_size: 256")
        found = entry(*lines)
        assert found.settings["batch_size"] == 16
        assert "batch_size=256 is more than the 16 rows" in note(*lines)
        assert entry(*lines, n_steps=256).settings["batch_size"] == 256
        assert entry(*lines, n_envs=4).settings["batch_size"] == 32
        assert entry("n_steps: 32").settings["batch_size"] == 32  # their default is 64
        assert "batch_size" not in entry("n_steps: 5", algorithm="a2c").settings

    @pytest.mark.parametrize("key", [*WITHOUT_EQUIVALENT, "monitor_kwargs"])
    def test_a_key_without_equivalent_is_said_and_training_goes_on(self, key: str) -> None:
        assert note(f"{key}: {{a: 1}}").startswith(f"CartPole-v1 in ppo.yml: {key}")

    @pytest.mark.parametrize("key", sorted(OFF_POLICY))
    def test_a_key_of_another_algorithm_is_refused(self, key: str) -> None:
        assert f"{key} belongs to an algorithm that is not trained here" in refusal(f"{key}: 1")

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("gama: 0.9", "did you mean 'gamma'"),
            ("n_epochs: 0", "n_epochs=0"),
            ("n_envs: many", "n_envs='many'"),
            ("n_envs: 0", "n_envs=0"),
            ("n_timesteps: soon", "n_timesteps='soon'"),
            ("n_timesteps: .inf", "n_timesteps=inf"),
            ("learning_rate: exp_0.1", "learning_rate='exp_0.1'"),
            ("learning_rate: [1]", "learning_rate=[1]"),
            ("learning_rate: .nan", "learning_rate=nan"),
            ("normalize: 3", "normalize=3"),
            ("frame_stack: 0", "frame_stack=0"),
        ],
    )
    def test_a_wrong_value_names_the_entry(self, line: str, says: str) -> None:
        said = refusal(line)
        assert said.startswith("CartPole-v1 in ppo.yml: ")
        assert says in said

    def test_rows_of_the_natural_gradient(self) -> None:
        assert entry("sub_sampling_factor: 1", algorithm="trpo").notes == ()
        assert "sub_sampling_factor" in note("sub_sampling_factor: 2", algorithm="trpo")

    def test_env_kwargs(self) -> None:
        assert entry("env_kwargs: {a: 1}").settings["env_kwargs"] == {"a": 1}
        assert entry('env_kwargs: "dict(a=[1, -2.5])"').settings["env_kwargs"] == {"a": [1, -2.5]}
        assert "env_kwargs=3" in refusal("env_kwargs: 3")

    def test_info_keywords(self) -> None:
        found = entry("monitor_kwargs: \"dict(info_keywords=('is_success',))\"")
        assert found.settings["log_info"] == ("is_success",)


class TestEnvironment:
    def test_atari(self) -> None:
        found = entry("env_wrapper:\n    - stable_baselines3.common.atari_wrappers.AtariWrapper")
        assert found.settings["atari_preprocessing"] is True
        assert found.settings["norm_reward"] is True
        assert len(found.notes) == 2
        found = entry(
            "env_wrapper:", "  - a.AtariWrapper:", "      terminal_on_life_loss: False",
            "      clip_reward: False", "      noop_max: 0",
        )  # fmt: skip
        assert "norm_reward" not in found.settings
        (said,) = found.notes
        assert "noop_max of AtariWrapper has no equivalent: it is 30" in said

    def test_wrappers_that_are_settings(self) -> None:
        found = entry("env_wrapper: [gymnasium.wrappers.FrameStackObservation: {stack_size: 3}]")
        assert found.settings["frame_stack"] == 3
        found = entry("env_wrapper: {gymnasium.wrappers.TimeLimit: {max_episode_steps: 9}}")
        assert found.settings["max_episode_steps"] == 9
        found = entry("vec_env_wrapper: [x.VecFrameStack: {n_stack: 2}, x.VecMonitor]")
        assert found.settings["frame_stack"] == 2
        found = entry("vec_env_wrapper: [x.VecNormalize: {norm_reward: false}]")
        assert (found.settings["norm_obs"], found.settings["norm_reward"]) == (True, False)
        assert "TimeFeatureWrapper" in note("env_wrapper: sb3_contrib.common.TimeFeatureWrapper")

    @pytest.mark.parametrize("key", ["env_wrapper", "vec_env_wrapper"])
    def test_other_wrappers_are_refused_and_never_imported(
        self, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "my_wrappers.py").write_text("raise SystemExit('imported')\n")
        monkeypatch.syspath_prepend(tmp_path)
        said = refusal(f"{key}: [my_wrappers.First, my_wrappers.Second: {{a: 1}}]")
        assert "my_wrappers.First, my_wrappers.Second" in said
        assert "my_wrappers" not in sys.modules

    @pytest.mark.parametrize("value", ["3", "[[a]]", "[{a: 1, b: 2}]", "[a: 3]"])
    def test_wrappers_of_another_kind(self, value: str) -> None:
        assert "env_wrapper" in refusal(f"env_wrapper: {value}")


class TestNetwork:
    def test_as_the_zoo_writes_it(self) -> None:
        found = entry(
            'policy_kwargs: "dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ReLU,',
            '                     net_arch=dict(pi=[256, 256], vf=[256])', '                    )"',
        )  # fmt: skip
        config = CONFIGS["ppo"].from_settings(found.settings)
        assert config.net_arch == {"pi": (256, 256), "vf": (256,)}
        assert (config.log_std_init, config.ortho_init) == (-2.0, False)
        assert config.activation_fn == "relu"

    @pytest.mark.parametrize(
        ("text", "arch"),
        [
            ("[32]", {"pi": (32,), "vf": (32,)}),
            ("[dict(pi=[8], vf=[9])]", {"pi": (8,), "vf": (9,)}),
            ("dict(pi=[8])", {"pi": (8,), "vf": ()}),
            ("[]", {"pi": (), "vf": ()}),
        ],
    )
    def test_net_arch(self, text: str, arch: Any) -> None:
        found = entry(f'policy_kwargs: "dict(net_arch={text})"').settings
        assert CONFIGS["ppo"].from_settings(found).net_arch == arch

    @pytest.mark.parametrize("text", ["[64, dict(pi=[8], vf=[8])]", "dict(qf=[8])", "3"])
    def test_net_arch_of_another_kind(self, text: str) -> None:
        assert "net_arch" in refusal(f'policy_kwargs: "dict(net_arch={text})"')

    @pytest.mark.parametrize("name", ["tanh", "ReLU", "ELU", "GELU", "SiLU", "Tanh"])
    def test_activations(self, name: str) -> None:
        text = name if name.islower() else f"nn.{name}"
        value = f"{{activation_fn: {text}}}"
        assert entry(f"policy_kwargs: {value}").settings["activation_fn"] == name.lower()

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("activation_fn=nn.LeakyReLU", "activation_fn=LeakyReLU"),
            ("features_extractor_class='X'", "features_extractor_class"),
            ("log_std_int=1", "did you mean 'log_std_init'"),
            ("log_std_init='a'", "log_std_init='a'"),
        ],
    )
    def test_another_network_is_refused(self, text: str, says: str) -> None:
        assert says in refusal(f'policy_kwargs: "dict({text})"')

    def test_policies(self) -> None:
        assert entry("policy: MultiInputPolicy").notes == ()
        cnn = entry("policy: CnnPolicy").settings
        assert (cnn["net_arch"], cnn["shared_network"]) == ((), True)
        apart = entry("policy: CnnPolicy", "policy_kwargs: dict(share_features_extractor=False)")
        assert apart.settings["shared_network"] is False
        said = note("policy: CnnPolicy", 'policy_kwargs: "dict(net_arch=[8])"')
        assert "actor and critic have their own" in said
        assert "policy='my.Policy' is not imported" in refusal("policy: my.Policy")
        assert "policy=3" in refusal("policy: 3")

    def test_memory(self) -> None:
        found = entry("policy: MlpLstmPolicy", "policy_kwargs: dict(lstm_hidden_size=32)")
        assert (found.settings["memory"], found.settings["memory_size"]) == ("lstm", 32)
        said = note("policy: CnnLstmPolicy", "policy_kwargs: dict(enable_critic_lstm=False)")
        assert "for actor and critic each" in said
        kwargs = 'policy_kwargs: "dict(lstm_kwargs=dict(dropout=0.1))"'
        dropped, _ = entry("policy: MlpLstmPolicy", kwargs).notes
        assert dropped.endswith("lstm_kwargs dropout has no equivalent: the LSTM has torch's "
                                "defaults")  # fmt: skip

    def test_optimisers(self) -> None:
        rms = 'policy_kwargs: "dict(optimizer_class=RMSpropTFLike, optimizer_kwargs=dict(eps=0.1))"'
        found = entry(rms, algorithm="a2c")
        assert (found.settings["use_rms_prop"], found.settings["rms_prop_eps"]) == (True, 0.1)
        assert "RMSpropTFLike" in note(rms, algorithm="a2c")
        bare = entry("policy_kwargs: dict(optimizer_class=th.optim.RMSprop)", algorithm="a2c")
        assert bare.settings["rms_prop_eps"] == 1e-8  # torch's, not the 1e-5 of theirs and ours
        adam = entry("policy_kwargs: dict(optimizer_class=th.optim.Adam)", algorithm="a2c")
        assert (adam.settings["use_rms_prop"], adam.notes) == (False, ())
        assert "Adam takes" in note("policy_kwargs: dict(optimizer_class=th.optim.SGD)")
        assert "betas of" in note('policy_kwargs: "dict(optimizer_kwargs=dict(betas=(0, 1)))"')


PAYLOADS = [
    "__import__('pathlib').Path('marker').touch()",
    "open('marker', 'w')",
    "dict(a=open('marker', 'w'))",
    "[open('marker', 'w') for _ in '1']",
    "(lambda: open('marker', 'w'))()",
    "lambda: 1",
    'f\'{open("marker", "w")}\'',
    "nn.ReLU()",
    "nn.Module",
    "nn.ReLU.__init__.__globals__",
    "torch.nn.ReLU.__mro__",
    "().__class__.__base__.__subclasses__()",
    "dict(**{'a': 1})",
    "dict([('a', 1)])",
    "{**{'a': 1}}",
    "[*[1]]",
    "{1, 2}",
    "10 ** 10 ** 10",
    "-[1]",
    "-True",
    "not 1",
    "1 if 1 else 2",
    "[1][0]",
    "1 < 2",
    "(x := 1)",
    "b'bytes'",
    "1j",
    "...",
    "True and open('marker', 'w')",
    "dict",
    "eval",
    "os.system('touch marker')",
    "",
    "dict(",
    "1 is 1",
    "'\\d' + open('marker')",
    "import os",
    "a = 1",
    "dict(a=1, a=2)",
    "{[1]: 2}",
    "\0",
    "(" * 500 + ")" * 500,
    "-" * 1900 + "1",
    "[" * 900 + "]" * 900,
    "9" * 1999 + "+1",
    "'" + "a" * 5000 + "'",
]


class TestNothingIsEvaluated:
    @pytest.fixture(autouse=True)
    def _in_an_empty_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize("text", PAYLOADS, ids=lambda text: repr(text[:30]))
    def test_literals(self, text: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            read_literal(text, "policy_kwargs")
        one_sentence(str(caught.value))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "key",
        ["policy_kwargs", "normalize", "env_kwargs", "monitor_kwargs", "learning_rate",
         "clip_range", "n_timesteps", "gamma", "policy", "env_wrapper", "vec_env_wrapper",
         "n_envs"],
    )  # fmt: skip
    @pytest.mark.parametrize("text", PAYLOADS[:12], ids=lambda text: repr(text[:30]))
    def test_in_every_place(self, key: str, text: str, tmp_path: Path) -> None:
        one_sentence(refusal(f"{key}: {yaml.safe_dump(text, width=10**6).splitlines()[0]}"))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "value",
        ["!!python/object/apply:os.system ['touch marker']",
         "!!python/object/new:os.system ['touch marker']",
         "!!python/object/apply:pathlib.Path.touch [marker]",
         "!!python/name:os.system", "!!python/module:os", "!!python/object:object {}",
         "!!python/tuple [1]", "!custom 1", "!!binary '***'", "!!timestamp x", "!!int ''",
         "!!float ''", "!!bool x", "{[1]: 2}", "*nowhere", "[", "'", "\0", "!!int " + "9" * 5000,
         "9999-99-99"],
    )  # fmt: skip
    def test_tags_of_yaml(self, value: str, tmp_path: Path) -> None:
        one_sentence(refusal(f"gae_lambda: {value}"))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("level", ["a{} : &a{} [{}]", "a{} : &a{} {{<<: [{}]}}"])
    def test_billions_of_aliases(self, level: str) -> None:
        lines = ["a0: &a0 {x: 1, y: 2}"]
        lines += [level.format(i, i, ", ".join([f"*a{i - 1}"] * 9)) for i in range(1, 12)]
        with pytest.raises(ConfigError, match="aliases grow to more than"):
            read("\n".join([*lines, "CartPole-v1: {gamma: 1}"]))

    def test_many_aliases_of_little(self) -> None:
        aliases = ", ".join(["*a"] * 1000)
        found = read(f"x: &a {{q: 1}}\ny: [{aliases}]\nCartPole-v1: {{gamma: 1}}")
        assert found.settings["gamma"] == 1

    def test_an_anchor_that_contains_itself(self) -> None:
        with pytest.raises(ConfigError, match="&a contains itself"):
            read("CartPole-v1: &a {env_kwargs: *a}")

    @pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000])
    def test_depth(self, text: str) -> None:
        with pytest.raises(ConfigError, match="nested more than 32 deep"):
            read(text)


class TestLiteral:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("  1 ", 1),
            ("-1.5", -1.5),
            ("+2", 2),
            ("'a'", "a"),
            ("None", None),
            ("[1, (True, 'x')]", [1, (True, "x")]),
            ("{'a': {'b': 1}}", {"a": {"b": 1}}),
            ("dict(a=dict(b=[1],),)", {"a": {"b": [1]}}),
            ("[nn.ReLU, th.nn.Tanh, torch.nn.GELU]", ["ReLU", "Tanh", "GELU"]),
        ],
    )
    def test_values(self, text: str, value: Any) -> None:
        assert read_literal(text, "x") == value

    def test_what_is_refused_is_named(self) -> None:
        with pytest.raises(ConfigError, match=r"policy_kwargs holds 'nn\.Foo', which is not eval"):
            read_literal("dict(a=1, b=nn.Foo)", "policy_kwargs")

    def test_names_are_words(self) -> None:
        assert all(isinstance(word, str) for word in NAMES.values())

    def test_of_no_table(self) -> None:
        draft = Draft("here", "ppo")
        with pytest.raises(ConfigError, match=r"here: x=\[1\] is no table"):
            draft.mapping("x", "[1]")
        assert draft.mapping("x", None) == {}
        assert dataclasses.asdict(draft)["settings"] == {}


def test_without_pyyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"needs PyYAML: run pip install 'upslope\[zoo\]'"):
        read("CartPole-v1: {gamma: 1}\n")
