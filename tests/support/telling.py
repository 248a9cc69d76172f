"""A progress that keeps its notes."""

from kdtool.progress import Silent


class Told(Silent):
    """What a stage has told, in its order."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
