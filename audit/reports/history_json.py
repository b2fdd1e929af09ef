"""The history as one JSON document, for programs. Texts are whole, with passwords masked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from audit.history import ContainerHistory, Period, totals
from audit.text import iso, mask


def render(histories: Sequence[ContainerHistory], period: Period) -> str:
    """The document, a line a container."""
    uncovered, ratio = totals(histories)
    head = {
        "from": iso(period.start),
        "to": iso(period.end),
        "log_begins": iso(period.begins_within),
        "days": len(period.days),
        "containers": len(histories),
        "ratio": ratio,
        "uncovered_seconds": uncovered.total_seconds(),
    }
    containers = ",\n".join(json.dumps(_container(history, period)) for history in histories)
    return f'{{"history": {json.dumps(head)},\n"containers": [\n{containers}\n]}}'


def _container(history: ContainerHistory, period: Period) -> dict[str, Any]:
    return {
        "name": history.container.name,
        "c_id": history.container.c_id,
        "policy": mask(history.verdict.policy),
        "status": history.verdict.status.value,
        "first_day": period.days[0].date.isoformat(),
        "ratio": history.ratio,
        "uncovered_seconds": history.uncovered.total_seconds(),
        "worst_age_seconds": _seconds(history.worst_age),
        "median_duration_seconds": _seconds(history.median_duration),
        "outcomes": [outcome.value for outcome in history.outcomes],
    }


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()
