"""What is right where reasonable people differ: the switches of the judge. Plain data that travels as JSON to the workers.

``docs/verifier.md`` says what each switch does to which answers. Knows neither mathematics nor configuration files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fr3e_async.config import VerifierPoolConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    r"""The judge's switches.

    Example: ``Policies(units="ignored")`` takes ``12\text{ cm}`` for ``12\text{ m}``.
    """

    unfinished: Literal["wrong", "right"] = "wrong"  # an answer that leaves the computing to the reader: 17·23 for 391
    units: Literal["checked", "ignored"] = "checked"  # a unit missing on one side is fine either way
    percent: Literal["optional", "exact"] = "optional"  # may the sign % be missing on one side?
    decimal_digits: int = 4  # significant digits from which a decimal stands for an exact value

    @classmethod
    def of(cls, config: VerifierPoolConfig) -> Policies:
        return cls(unfinished=config.unfinished, units=config.units, percent=config.percent, decimal_digits=config.decimal_digits)
