"""What a section asks of its noise: how much there is to be of it, or the ε that it is to keep; and a budget."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Asked", "check_asked", "limit"]


class Asked(Protocol):
    """A section with exactly one of a noise multiplier and a target, and perhaps a budget, all ε of one kind."""

    noise_multiplier: float | None
    epsilon: float | None
    budget: float | None


def check_asked(section: Asked) -> None:
    """Refuses what can't be meant.

    Raises:
        ValueError: neither or both of noise multiplier and target are given, or the budget is below the target.
    """
    if (section.noise_multiplier is None) == (section.epsilon is None):
        found = "neither" if section.epsilon is None else "both"
        raise ValueError(f"exactly one of noise_multiplier and epsilon is needed, found {found}")
    if section.epsilon is not None and section.budget is not None and section.budget < section.epsilon:
        raise ValueError(f"the budget ({section.budget}) is below the target epsilon ({section.epsilon})")


def limit(section: Asked) -> float | None:
    """The ε that must not be passed: the budget, or else the target; None where neither is given."""
    return section.epsilon if section.budget is None else section.budget
