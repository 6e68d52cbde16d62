"""What an attack found, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What one attack found.

    Attributes:
        what: What was done, in words.
        tried: How often.
        found: What should not have happened, one line each.
        notes: Figures worth knowing, such as the longest time.
    """

    what: str
    tried: int = 0
    found: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return the outcome as a row of a Markdown table."""
        return f"| {self.what} | {self.tried:,} | {len(self.found)} | {'; '.join(self.notes)} |"
