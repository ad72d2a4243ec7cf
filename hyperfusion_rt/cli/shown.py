"""What is shown while a study is read and trained on: bars on a terminal, and lines everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyperfusion_rt.cli.options import spell

if TYPE_CHECKING:
    from rich.progress import Progress

    from hyperfusion_rt.training.check import Check


class Shown:
    """The scans that are decoded, as a bar, and what is odd about the cohort, as lines."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.scans = progress.add_task("decoding", total=None)

    def say(self, text: str) -> None:
        """A line above the bars."""
        self.progress.console.print(spell(text), highlight=False, markup=False, soft_wrap=True)

    def on_scan(self, done: int, count: int) -> None:
        """A scan was decoded."""
        self.progress.update(self.scans, completed=done, total=count)

    def on_check(self, check: Check) -> None:
        """The cohort was looked at."""
        from hyperfusion_rt.training.check import lines

        for line in lines(check, everything=False):
            self.say(line)

    def are_read(self) -> None:
        """All scans are decoded: their bar goes."""
        self.progress.update(self.scans, visible=False)
