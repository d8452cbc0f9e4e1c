"""Spares grow with what a run uses and give memory back: the policy, by a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

from rlm_jupyter.kernels.guest import wire
from rlm_jupyter.kernels.guest.loop import Loop, Timer
from rlm_jupyter.kernels.guest.spares import AFTER_SECONDS, FAILURES, KEEP_SECONDS, LATEST_SECONDS, MOST, Spares


class Clock(Loop):
    """A loop whose time is what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.due: list[tuple[float, Timer]] = []

    def later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        timer = Timer(callback)
        self.due.append((self.now + seconds, timer))
        return timer

    def pass_by(self, seconds: float) -> None:
        """Let time pass, and call what is due, in order."""
        end = self.now + seconds
        while ready := sorted((each for each in self.due if each[0] <= end), key=lambda each: each[0]):
            self.due.remove(ready[0])
            self.now, callback = ready[0][0], ready[0][1].callback
            if callback is not None:
                callback()
        self.now = end


class Forked:
    """A kernel as the spares see it."""

    def __init__(self, made: list[Forked]) -> None:
        self.ready = self.killed = False
        made.append(self)

    def kill(self, note: str) -> None:
        self.killed = True


class Supervisor:
    """What asks for kernels, and tells when one has come up."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.made: list[Forked] = []
        self.spares: Spares[Forked] = Spares(self.clock, lambda: Forked(self.made))
        self.spares.refill()
        self.at_work = 0

    def start(self, parent: int = 1) -> bool:
        """Start a kernel; whether a spare was there that was ready."""
        self.at_work += parent > 0
        self.spares.asked(wire.Start(9, parent), self.at_work)
        found = self.spares.take()
        self.spares.soon()
        return found is not None and found.ready

    def come_up(self, seconds: float = 1.0) -> int:
        """Let each that is forked come up before the next one is; how many there were."""
        before = len(self.made)
        self.clock.pass_by(seconds)
        while late := [kernel for kernel in self.made if not kernel.ready]:
            assert len(late) == 1
            late[0].ready = True
            self.spares.came_up()
            self.clock.pass_by(0.01)
        return len(self.made) - before


def test_one_is_kept_ahead_where_there_are_no_children() -> None:
    hub = Supervisor()
    hub.come_up()
    for _ in range(5):
        assert hub.start(parent=0)
        assert hub.come_up() == 1


def test_as_many_as_worked_together_are_there_for_the_next_batch_and_go_again() -> None:
    hub = Supervisor()
    hub.come_up()
    assert [hub.start() for _ in range(8)] == [True] + [False] * 7
    hub.clock.pass_by(0.1)
    assert len(hub.made) == 1, "none is forked while kernels are being asked for"
    assert hub.come_up() == 9
    hub.at_work = 0
    assert [hub.start() for _ in range(8)] == [True] * 8
    hub.come_up(1)
    living = [kernel for kernel in hub.made if not kernel.killed]
    hub.clock.pass_by(KEEP_SECONDS)
    assert len([kernel for kernel in living if kernel.killed]) == 8
    assert hub.start(parent=0)
    assert hub.come_up() == 1


def test_they_wait_for_those_at_work_but_not_for_ever() -> None:
    hub = Supervisor()
    hub.come_up()
    assert [hub.start() for _ in range(4)] == [True, False, False, False]
    for _ in range(9):
        hub.spares.busy()
        hub.clock.pass_by(AFTER_SECONDS - 0.01)
    assert len(hub.made) == 1
    hub.clock.pass_by(AFTER_SECONDS)
    assert len(hub.made) == 2, "one, as long as it is not calm"
    hub.spares.busy()
    assert hub.come_up(LATEST_SECONDS) == 4
    hub.spares.busy()
    hub.clock.pass_by(10)
    assert len(hub.made) == 6


def test_they_are_bounded_and_not_made_for_ever() -> None:
    hub = Supervisor()
    hub.come_up()
    hub.at_work = 100
    hub.start()
    assert hub.come_up() == MOST
    for _ in range(FAILURES):
        hub.spares.gone(hub.made[-1])
        hub.made.pop()
        hub.come_up()
    made = len(hub.made)
    hub.spares.gone(hub.made[-1])
    hub.clock.pass_by(60)
    assert len(hub.made) == made
