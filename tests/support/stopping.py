"""A stop that is asked for at a safe point of the test's choice."""

from kdtool.progress import StopRequest


class StopAfter(StopRequest):
    """Behaves as if SIGTERM came at the n-th safe point."""

    def __init__(self, points: int) -> None:
        super().__init__()
        self.left = points

    def requested(self) -> bool:
        self.left -= 1
        if self.left <= 0:
            self.signal = 15
        return super().requested()
