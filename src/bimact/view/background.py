"""What takes long to know of a dataset: looked for beside the page, which shows it as it comes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bimact.data.source import Source
from bimact.errors import UserError
from bimact.progress import progress_bar
from bimact.view.distributions import histogram_content, read_distributions
from bimact.view.histogram import Histogram

if TYPE_CHECKING:
    from bimact.check.findings import Finding

_MOST_FINDINGS = 5000  # that are sent to the page, with the counts of all

_SECONDS_TO_END = 2.0


class Background:
    """Reads a whole dataset in a thread: first the distributions of its values, then what is wrong with it.

    Args:
        source: the dataset.
        check: gives all findings; raises a `UserError` if the dataset cannot be looked through.
    """

    def __init__(self, source: Source, check: Callable[[], Sequence[Finding]]) -> None:
        self._source = source
        self._check = check
        lengths = histogram_content(Histogram.of(source.lengths, lowest_exponent=0))
        facts = {"low": int(source.lengths.min()), "high": int(source.lengths.max())}
        self._lengths = {**lengths, **facts, "median": float(np.median(source.lengths))}
        self.distributions: dict[str, Any] = {
            "state": "running",
            "done": 0,
            "of": len(source.episodes),
            "lengths": self._lengths,
        }
        self.findings: dict[str, Any] = {"state": "running"}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._is_wanted = True

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End as soon as may be; child processes that are just being started come to their feet first."""
        self._is_wanted = False
        self._thread.join(_SECONDS_TO_END)

    def _run(self) -> None:
        # One after the other: each uses all cores, and a terminal shows one progress bar.
        self._read_distributions()
        if self._is_wanted:
            self._look_for_findings()

    def _read_distributions(self) -> None:
        answer = self.distributions
        try:
            with progress_bar("reading state and action", answer["of"]) as progress:
                for done, distributions in read_distributions(self._source):
                    if not self._is_wanted:
                        return
                    progress.advance(done - answer["done"])
                    answer = {**answer, "done": done, "joints": distributions.content()}
                    self.distributions = answer  # as a whole: the server's threads read it
            self.distributions = {**answer, "state": "done"}
        except UserError as error:
            self.distributions = {**answer, "state": "failed", "error": str(error)}

    def _look_for_findings(self) -> None:
        try:
            findings = self._check()
        except UserError as error:
            self.findings = {"state": "failed", "error": str(error)}
            return
        self.findings = findings_content(findings)


def findings_content(findings: Sequence[Finding]) -> dict[str, Any]:
    """Findings for the page: the first ones, and how many there are by kind and by episode."""
    of_episodes: dict[int, Counter[str]] = {}
    for finding in findings:
        if finding.episode is not None:
            of_episodes.setdefault(finding.episode, Counter())[finding.severity.value] += 1
    return {
        "state": "done",
        "counts": Counter(finding.severity.value for finding in findings),
        "episodes": of_episodes,
        "findings": [finding.as_json() for finding in findings[:_MOST_FINDINGS]],
    }
