"""``policy`` and ``policy_kwargs`` of an entry: the network and its optimiser."""

from __future__ import annotations

import dataclasses
from typing import Any

from upslope.config.base import Config
from upslope.config.zoo.draft import Draft
from upslope.errors import did_you_mean

POLICIES = tuple(f"{kind}{memory}Policy" for memory in ("", "Lstm")
                 for kind in ("Mlp", "Cnn", "MultiInput"))  # fmt: skip
SDE_ONLY = ("full_std", "use_expln", "squash_output", "sde_net_arch")  # mean nothing without gSDE
RMS_PROP_EPS = 1e-8  # of torch's RMSprop and of RMSpropTFLike, where the entry gives none
ACTIVATIONS: tuple[str, ...] = next(
    field.metadata["choices"] for field in dataclasses.fields(Config)
    if field.name == "activation_fn"
)  # fmt: skip


def choose_network(draft: Draft, policy: Any, policy_kwargs: Any, uses_sde: bool) -> None:
    """Translate the policy's class and its arguments.

    Args:
        draft: gets the settings.
        policy: the class's name.
        policy_kwargs: its arguments, a table or its text.
        uses_sde: whether the entry asks for gSDE, of which some arguments speak.

    Raises:
        ConfigError: for a class or an argument that would be another network.
    """
    if policy not in POLICIES:
        known = ", ".join(POLICIES)
        draft.refuse(f"policy={policy!r} is not imported: one of {known} is known")
    arguments = draft.mapping("policy_kwargs", policy_kwargs)
    if policy.endswith("LstmPolicy"):
        _recurrent(draft, policy, arguments)
    if policy.startswith("Cnn"):
        _convolutional(draft, policy, arguments)
    for name, value in arguments.items():
        if name in SDE_ONLY:
            if uses_sde:
                draft.lacks(f"{name} of policy_kwargs", "it shapes the noise of use_sde")
        else:
            _argument(draft, name, value)
    _optimiser(draft, arguments.get("optimizer_class"), arguments.get("optimizer_kwargs"))


def _recurrent(draft: Draft, policy: str, arguments: dict[str, Any]) -> None:
    size = arguments.pop("lstm_hidden_size", 256)
    draft.settings |= {"memory": "lstm", "memory_size": size}
    is_other = arguments.pop("n_lstm_layers", 1) != 1, arguments.pop("shared_lstm", False)
    has_critic_memory = arguments.pop("enable_critic_lstm", True)
    if lstm := draft.mapping("lstm_kwargs of policy_kwargs", arguments.pop("lstm_kwargs", None)):
        draft.lacks(f"lstm_kwargs {', '.join(lstm)}", "the LSTM has torch's defaults")
    more = "" if has_critic_memory and not any(is_other) else ", for actor and critic each"
    draft.lacks(f"the order of layers in {policy}", f"one LSTM follows the hidden layers{more}")


def _convolutional(draft: Draft, policy: str, arguments: dict[str, Any]) -> None:
    """Without hidden layers actor and critic share everything up to their heads."""
    shares = arguments.pop("share_features_extractor", True)
    is_plain = "net_arch" not in arguments or not arguments["net_arch"]
    if is_plain:
        arguments.pop("net_arch", None)
        draft.settings |= {"net_arch": (), "shared_network": bool(shares)}
    elif shares:
        draft.lacks(f"sharing of convolutions alone in {policy}", "actor and critic have their own")


def _argument(draft: Draft, name: str, value: Any) -> None:
    if name in ("log_std_init", "ortho_init"):
        draft.settings[name] = value
    elif name == "activation_fn":
        draft.settings[name] = _activation(draft, value)
    elif name == "net_arch":
        draft.settings[name] = _widths(draft, value)
    elif name == "normalize_images":
        draft.lacks(f"{name} of policy_kwargs", "images are always divided by 255")
    elif name not in ("optimizer_class", "optimizer_kwargs", "share_features_extractor"):
        known = ("log_std_init", "ortho_init", "activation_fn", "net_arch", "optimizer_class")
        draft.refuse(
            f"{name} of policy_kwargs has no equivalent{did_you_mean(name, known)}; a network of "
            "your own is given from Python, as policy="
        )


def _activation(draft: Draft, value: Any) -> str:
    name = str(value).rpartition(".")[2].lower()
    if name not in ACTIVATIONS:
        draft.refuse(
            f"activation_fn={value} of policy_kwargs has no equivalent: use one of "
            + ", ".join(ACTIVATIONS)
        )
    return name


def _widths(draft: Draft, value: Any) -> Any:
    """``[64, 64]``, ``{"pi": .., "vf": ..}``, or the latter in a list as it used to be written."""
    if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]
    if isinstance(value, dict) and set(value) <= {"pi", "vf"}:
        return {"pi": value.get("pi", ()), "vf": value.get("vf", ())}
    if not isinstance(value, (list, tuple)) or any(isinstance(part, dict) for part in value):
        draft.refuse(
            f"net_arch={value!r} of policy_kwargs has no equivalent: write widths such as "
            "[64, 64], or dict(pi=[64, 64], vf=[64, 64])"
        )
    return tuple(value)


def _optimiser(draft: Draft, name: Any, arguments: Any) -> None:
    """A2C has RMSprop and Adam, the others Adam."""
    if name is None and arguments is None:
        return
    is_a2c = draft.algorithm == "a2c"
    given = draft.mapping("optimizer_kwargs of policy_kwargs", arguments)
    is_rms = is_a2c and name in ("RMSprop", "RMSpropTFLike")
    if is_a2c and name is not None:
        draft.settings["use_rms_prop"] = is_rms
    if is_rms:
        draft.settings["rms_prop_eps"] = given.pop("eps", RMS_PROP_EPS)
    if name == "RMSpropTFLike" and is_rms:
        draft.lacks(name, "RMSprop adds eps after the root, and its moments begin at 0")
    elif name not in (None, "Adam", "RMSprop") or (name == "RMSprop" and not is_a2c):
        draft.lacks(f"optimizer_class={name} of policy_kwargs", "Adam takes the steps")
    if given:
        names = ", ".join(given)
        draft.lacks(f"{names} of optimizer_kwargs", "the optimiser has its usual constants")
