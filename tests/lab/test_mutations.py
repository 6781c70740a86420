"""Every known fault, put into the shipped code, is caught; what catches it is named beside it."""

from __future__ import annotations

import csv
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from layers import LAYERS, alarm
from layers.pages import WITH_GAE
from layers.sampled import QUICK
from mutations import ALSO, FAULTS, TABLE, Fault, injected

REPORT = Path(__file__).parents[2] / "bench" / "lab" / "mutations.csv"


def cases() -> list[Any]:
    """Fault and check; sampling is slow where a layer above it sees the fault at once."""
    found = []
    for fault in FAULTS:
        for which in fault.caught_by:
            layer, name = which.split(": ")
            others = any(not other.startswith("sampled") for other in fault.caught_by)
            marks = [pytest.mark.slow] if layer == "sampled" and others else []
            found.append(pytest.param(fault, layer, name, marks=marks, id=f"{fault.name}-{which}"))
    return found


@pytest.mark.parametrize(("fault", "layer", "name"), cases())
def test_a_fault_is_caught(fault: Fault, layer: str, name: str) -> None:
    sizes = {"size": QUICK[name]} if name in QUICK else {}
    with injected(fault):
        said = alarm(LAYERS[layer][name], **sizes)
    assert said is not None, f"{fault.name} went through {layer}: {name}"


def test_the_list_is_whole() -> None:
    assert sum(fault.source == TABLE for fault in FAULTS) == 15
    assert sum(fault.source == ALSO for fault in FAULTS) == 9
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.caught_by for fault in FAULTS)


@pytest.mark.parametrize("page", WITH_GAE)
def test_a_fault_of_one_page_is_caught(page: str) -> None:
    """The pages repeat a loop, so each is checked by itself."""
    (fault,) = (fault for fault in FAULTS if fault.name == "truncation as termination")
    method = "_weighed" if page == "ppo" else "weigh"
    with injected(replace(fault, place=f"algorithms.{page}:Learner.{method}")):
        said = alarm(LAYERS["same data"]["advantages"])
    assert said is not None
    assert page in said


def test_a_fault_of_any_size_is_seen_in_enumerated_means() -> None:
    (missing,) = (fault for fault in FAULTS if fault.name == "gamma missing")
    tiny = replace(missing, new="rewards + (1 + 1e-9) * gamma * (1")
    with injected(tiny):
        assert alarm(LAYERS["enumerated"]["streams"]) is not None


class TestInjection:
    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
    def test_it_is_there_and_then_gone(self, fault: Fault) -> None:
        module_name, _, path = fault.place.partition(":")
        module = importlib.import_module(f"upslope.{module_name}")

        def found() -> Any:
            owner, _, name = path.rpartition(".")
            return vars(getattr(module, owner) if owner else module)[name]

        before = found()
        with injected(fault):
            assert found() is not before
        assert found() is before

    def test_every_name_of_a_function_is_bound_anew(self) -> None:
        import upslope.algorithms.vpg as page
        import upslope.theory.objectives as formulas

        (sign,) = (fault for fault in FAULTS if fault.name == "sign")
        before = formulas.policy_gradient_loss
        with injected(sign):
            assert page.policy_gradient_loss is formulas.policy_gradient_loss is not before
        assert page.policy_gradient_loss is formulas.policy_gradient_loss is before

    def test_it_is_gone_after_an_alarm(self) -> None:
        import upslope.theory.objectives as formulas

        before = formulas.policy_gradient_loss
        (sign,) = (fault for fault in FAULTS if fault.name == "sign")
        with pytest.raises(ZeroDivisionError), injected(sign):
            raise ZeroDivisionError
        assert formulas.policy_gradient_loss is before

    @pytest.mark.parametrize("change", [{"old": "no such line"}, {"times": 2}])
    def test_a_line_that_is_not_there_is_an_error(self, change: dict[str, Any]) -> None:
        (sign,) = (fault for fault in FAULTS if fault.name == "sign")
        with (
            pytest.raises(LookupError, match="bring the fault up to date"),
            injected(replace(sign, **change)),
        ):
            pass


class TestReport:
    """bench/lab/mutations.csv is of these faults and these checks."""

    def lines(self) -> list[dict[str, str]]:
        with REPORT.open(newline="") as file:
            return list(csv.DictReader(file))

    def test_every_fault_was_run_against_every_check_and_caught(self) -> None:
        lines = self.lines()
        for fault in FAULTS:
            mine = [
                line for line in lines
                if (line["fault"], line["old"], line["new"])
                == (fault.name, fault.old.strip(), fault.new.strip())
            ]  # fmt: skip
            ran = {(line["layer"], line["check"]) for line in mine}
            assert ran == {(layer, name) for layer in LAYERS for name in LAYERS[layer]}, fault.name
            caught = {f"{x['layer']}: {x['check']}" for x in mine if x["caught"] == "yes"}
            assert caught >= set(fault.caught_by), fault.name

    def test_clean_code_raised_nothing(self) -> None:
        clean = [line for line in self.lines() if line["fault"] == "none"]
        assert {line["check"] for line in clean} == {n for c in LAYERS.values() for n in c}
        assert all(line["caught"] == "no" for line in clean)

    @pytest.mark.slow
    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
    def test_what_it_says_of_the_fast_layers_is_so(self, fault: Fault) -> None:
        said = {
            (line["layer"], line["check"]): line["caught"] == "yes"
            for line in self.lines()
            if (line["fault"], line["new"]) == (fault.name, fault.new.strip())
        }
        for layer in ("same data", "enumerated", "ratio"):
            for name, check in LAYERS[layer].items():
                with injected(fault):
                    assert (alarm(check) is not None) == said[layer, name], f"{layer}: {name}"
