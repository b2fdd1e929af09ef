"""What keeps an audit from being done."""


class AuditError(Exception):
    """The audit cannot be completed: `problem` says why, `advice` what to do about it; one line for people."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}: {advice}")
        self.problem = problem
        self.advice = advice
