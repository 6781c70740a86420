"""What intervals and shares say, in words: one wording for terminal, report and model card."""

from __future__ import annotations


def equal_values(n: int, elsewhere_at_most: float) -> str:
    """What stands in the place of an interval where all ``n`` returns are equal."""
    return f"none: all {n:,} returns equal ({elsewhere(elsewhere_at_most)})"


def elsewhere(share: float) -> str:
    """How many episodes equal returns leave open; ``share`` has 95 % confidence."""
    return f"95 %: at most {two_figures(100 * share)} % of episodes differ"


def percent(share: float, ci: tuple[float, float] | None) -> str:
    """A share in per cent, with its interval in brackets where there is one."""
    inside = "" if ci is None else f" [{two_figures(100 * ci[0])}, {two_figures(100 * ci[1])}]"
    return f"{two_figures(100 * share)} %{inside}"


def two_figures(value: float) -> str:
    """A number that is not negative, to two figures; whole from 10 on."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
