"""Advice from a run's metrics, each printed once."""

from __future__ import annotations

from typing import Any

from bimact.config import Config

_WAITING = 0.3  # fraction of the time spent waiting for data above which a hint is printed
_FEW = 5  # logged records of a trend
_MANY = 25  # logged records after which the loss should have fallen, and the KL divergence stabilised
_HARDLY = 0.98


class Hints:
    """Advice from the records of `metrics.jsonl`, as they are logged.

    Args:
        config: whose settings the advice names.
        num_workers: threads that load data.
    """

    def __init__(self, config: Config, num_workers: int) -> None:
        self._config = config
        self._dataset = config.dataset_dir if config.datasets is None else config.datasets[0]["path"]
        self._workers = num_workers
        self._records: list[dict[str, Any]] = []
        self._given: set[str] = set()

    def look(self, record: dict[str, Any]) -> list[str]:
        """Advice from one more record of training losses and times."""
        self._records.append(record)
        hints = {"data": self._starving(), "kl": self._kl_too_high(), "loss": self._not_decreasing()}
        new = {name: hint for name, hint in hints.items() if hint and name not in self._given}
        self._given |= new.keys()
        return [f"Hint: {hint}" for hint in new.values()]

    def _starving(self) -> str | None:
        # The first record includes the start of the loading threads.
        recent = [record["data_wait_share"] for record in self._records[1:][-2:]]
        if len(recent) < 2 or min(recent) < _WAITING:
            return None
        return (
            f"{recent[-1]:.0%} of the time goes into waiting for data: raise --num_workers (now {self._workers}), "
            "or put the dataset on a faster disk"
        )

    def _kl_too_high(self) -> str | None:
        recent = self._records[-_FEW:]
        if len(self._records) < _MANY or any(r["kl_loss"] < r["action_loss"] for r in recent):
            return None
        weight = self._config.kl_weight
        lower = " or ".join(f"{value:g}" for value in (5.0, 1.0) if value < weight) or f"{weight / 10:g}"
        return (
            f"the KL loss ({recent[-1]['kl_loss']:.3f}) outweighs the action loss ({recent[-1]['action_loss']:.3f}): "
            f"reduce --kl_weight (now {weight:g}; try {lower})"
        )

    def _not_decreasing(self) -> str | None:
        if len(self._records) != _MANY:
            return None
        losses = [record["total_loss"] for record in self._records]
        first, last = sum(losses[:_FEW]) / _FEW, sum(losses[-_FEW:]) / _FEW
        if last < _HARDLY * first:
            return None
        return (
            f"the loss has not fallen ({first:.3f} at first, {last:.3f} now): lower --lr (now {self._config.lr:g}; try "
            f"{self._config.lr / 2:g}), or look for faults in the data: bimact check {self._dataset}"
        )
