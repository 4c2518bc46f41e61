"""Turns: divide the event loop's time among the connections, so that no connection keeps the others waiting.

All connections share one loop, and a client's bytes may be costly in ways that nobody has thought of. So work is
weighed by the time that it took, not by its kind; a clock is read around each slice.

- A connection works on bytes as they come, but for no longer than a slice. Then it stops, keeps the rest, and stands in
  line.
- The line is served between two looks at the sockets, for about a slice in all, however long the line is. The
  connection that has had the least of the loop's time comes first (start-time fair queueing: Goyal, Vin and Cheng,
  SIGCOMM 1996). A connection pays for a step that cannot be divided: it then waits until the others have had as much
  time.
- A connection that has had no more time than those in line, or less than a slice more, is still served at once when its
  bytes come. So is one that takes no more than OWN_SHARE of all time. So a connection that needs little time waits only
  for the slice that is being served.

While the line is empty, a connection with work may work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from time import monotonic
from typing import Final

from esp.core.wire.held_steps import HeldSteps
from esp.core.wire.native import mypyc_attr
from esp.core.wire.running_time import RunningTime

# Not Final, down to WORKED: mypyc would write the numbers into the code, where no test can set them.

SLICE = 0.001
"""Seconds for the line between two looks at the sockets, and the most seconds that a connection gets at once."""
FIRST_SLICE = 0.0004
"""Seconds for a connection that was put off only because the turn was over: enough for a new client's first call."""
FIRST_WORK = 0.002
"""Seconds after which a client is not new any more, though its first work is not done."""
AT_ONCE = 0.002
"""Seconds for all work that is done as bytes come, between two looks at the line; further work stands in line."""
ANSWERS_LEAST = 0.0005
"""The least seconds for shards' answers that had to wait. They have what bytes that came in this turn have left of
AT_ONCE, so that the turn is short, but so much in any case."""
LAST_SLICE = 0.0001
"""Seconds for clients that leave or ask nothing yet: closing the socket of one that leaves takes several times as long
as its turn, and comes after it."""
CROWD: Final = 4
"""So many clients that come in one turn, or whose first work waits, are a crowd. Then those that have asked nothing yet
stand behind those that have. While a crowd comes, they and those that leave are held: others still wait in the kernel
to be accepted, and among these may be one that asks something."""
LONGEST_HELD = 0.1
"""Seconds for which a crowd that comes holds those who leave or ask nothing yet: some 5,000 clients are accepted
meanwhile. If the crowd goes on to come, they get FIRST_SLICE in each turn."""
MOST_SKIPPED: Final = 4
"""The most turns in a row in which the line is not served, because answers and calls took the line's time."""
SAVED = 0.02
"""The most seconds that a connection which needs little time saves up, and so may have at a time."""
OWN_SHARE: Final = 0.03
"""The part of the loop's time that every connection may have at once, however many others want the time. With thirty
connections that want all they can get, a fair share alone is 0.03 of what answers leave over, and less than a client
needs that does a hundred calls a second."""
LONGEST_STEP = 0.02
"""The most seconds that a step counts for, because the machine may have done something else meanwhile, or the garbage
collector may have run, where only the machine's clock is looked at. No more than `SAVED`, so that such an accident
alone does not put a connection that needs little time in line."""
WORKED = 0.004
"""Seconds of work after which the garbage collector may be due."""
LITTLE: Final = 1024
"""A read of at most so many bytes is served in fewer steps (`serve_little`, `serve_little_answers`)."""
SECONDS_PER_BYTE: Final = 2e-10
"""Seconds to read a byte from a socket: the read is over when the clock starts."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Worker:
    """An object with work to do in slices: the socket of a client or of a shard.

    Attributes:
        used: the seconds it has had, on a scale of its own: a worker without work for a while saves up only `SAVED`.
        credited: the time on the clock up to which the worker has been given its OWN_SHARE.
        in_line: the worker stands in line, and is called when its turn has come.
        is_new: the worker has not done its first work. Much of its first turn goes by to set up the connection.
        new_for: seconds that it has had; after FIRST_WORK it is not new any more.
    """

    used: float = 0.0
    new_for: float = 0.0
    credited: float = 0.0
    in_line: bool = False
    is_new: bool = True

    def work(self, stop: float) -> bool:
        """Does work, but begins no further step once the clock is at `stop`; True if work is left.

        Does at least one step, even if `stop` has passed. Raises nothing.
        """
        raise NotImplementedError


class Turns:
    """Decides which worker works when.

    Args:
        clock: seconds; by default the seconds that this thread has run.

    Attributes:
        time: the seconds that this thread has run.
        wall: a quicker clock than `clock`, but also of time in which this thread does not run. So a turn is surely not
            over before as much time has gone by on this one.
        soon: calls a function in the next turn of the loop, before the sockets are looked at again; set by the owner of
            a loop.
        flush: writes output that is ready; set by the context.
        will_run: `run` will be called when the sockets of this turn of the loop have been read, and writes the output.
        go_on: lets connections go on that have sent as much as fits a turn; set by the context.
        steps: the steps of coroutines that wait for their turn.
        after_work: called after each WORKED seconds of work, between two turns.
    """

    __slots__ = (
        "_answered",
        "_answers",
        "_arrived",
        "_arrived_before",
        "_crowd_at",
        "_crowd_since",
        "_elsewhere",
        "_first",
        "_last",
        "_line",
        "_newcomers",
        "_order",
        "_skipped",
        "_spent",
        "_virtual",
        "_worked",
        "after_work",
        "clock",
        "flush",
        "go_on",
        "soon",
        "steps",
        "time",
        "wall",
        "will_run",
    )

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.time = RunningTime()
        self.clock = self.time.now if clock is None else clock
        self.wall = clock or monotonic  # for times that are short, or count as `LONGEST_STEP` at most
        self.soon: Callable[[Callable[[], None]], object] | None = None
        self.flush: Callable[[], None] = lambda: None
        self.go_on: Callable[[], None] = lambda: None
        self.steps = HeldSteps()
        self._line: list[tuple[float, int, Worker]] = []
        self._first: list[tuple[float, int, Worker]] = []
        self._newcomers: list[tuple[float, int, Worker]] = []
        self._last: list[tuple[float, int, Worker]] = []
        self._answers: deque[Worker] = deque()
        self._arrived = self._arrived_before = 0  # in this turn and in the one before
        self._crowd_since = self._crowd_at = -inf  # when a crowd began to come, and when one last came
        self._order = 0
        self._virtual = 0.0
        self._spent = 0.0
        self._elsewhere = 0.0
        self._answered = 0.0
        self._skipped = 0
        self._worked = 0.0
        self.after_work: Callable[[], object] = lambda: None
        self.will_run = False

    @property
    def waiting(self) -> int:
        """The number of workers in line."""
        clients = len(self._line) + len(self._first) + len(self._newcomers) + len(self._last)
        return clients + len(self._answers) + len(self.steps)

    @property
    def is_crowded(self) -> bool:
        """Whether a crowd of new clients is there."""
        return self._comes_crowd() or len(self._newcomers) + len(self._last) >= CROWD

    def _comes_crowd(self) -> bool:
        return self._arrived >= CROWD or self._arrived_before >= CROWD

    def serve(self, worker: Worker, size: int) -> None:
        """`size` bytes have come for a client's `worker`, which works on them at once or stands in line."""
        if worker.in_line:
            return
        if not self.will_run:
            self._spent = 0.0
        # Spelled out, and without calls where there is a choice: this runs once per read.
        used, virtual = worker.used, self._virtual
        if used < virtual - SAVED:
            worker.used = used = virtual - SAVED
        if used > virtual:
            if not self._line:
                self._virtual = virtual = used
            elif used >= virtual + SLICE:
                used = self._credited(worker)
                if used >= virtual + SLICE:
                    self._join(worker)
                    return
        if self._spent >= AT_ONCE:
            self._put_off(worker)
            return
        clock = self.clock
        start = clock()
        is_left = worker.work(start + SLICE if used <= virtual else start + SLICE + virtual - used)
        took = clock() - start + size * SECONDS_PER_BYTE
        self._spent += took
        self._served(worker, took, is_left)

    def _credited(self, worker: Worker) -> float:
        """The worker's `used`, less its own share of the time since that was last taken off; SAVED at most."""
        now = self.clock()
        share = min((now - worker.credited) * OWN_SHARE, SAVED)
        worker.credited = now
        worker.used = max(worker.used - share, self._virtual - SAVED)
        return worker.used

    def serve_little(self, worker: Worker, take: Callable[[bytes, float], bool], data: bytes) -> bool:
        """As `serve`, in fewer steps, for a few bytes that come while the line is empty, as nearly all reads do.

        `take` works on the bytes until it would look at the clock, and returns whether some are left. These are then
        served as any others.

        Returns False, without any effect, if the line is not empty or the time is used up.
        """
        if not self.will_run:
            self._spent = 0.0
        if self._line or worker.in_line or self._spent >= AT_ONCE:
            return False
        start = self.wall()
        is_left = take(data, -inf)
        took = self.wall() - start
        self._spent += took
        used = worker.used = worker.used + (took if took < LONGEST_STEP else LONGEST_STEP)
        if used > self._virtual:
            self._virtual = used
        if is_left:
            self.serve(worker, 0)
        return True

    def serve_answers(self, worker: Worker) -> None:
        """Bytes have come for a shard's `worker`: it works before clients' workers, but in slices as well.

        A socket may be read many times in a turn of the loop. So this turn's time counts until `run`.
        """
        if worker.in_line:
            return
        if not self.will_run:
            self._spent = 0.0
            self.run_soon()
        start = self.clock()
        if self._spent >= AT_ONCE or worker.work(start + AT_ONCE):
            worker.in_line = True
            self._answers.append(worker)
        took = self.clock() - start
        self._spent += took
        self._elsewhere += took
        self._answered += took

    def serve_little_answers(self, receive: Callable[[bytes], None], data: bytes) -> None:
        """As `serve_answers`, for a few bytes, all of which `receive` works on at once."""
        start = self.wall()
        receive(data)
        took = self.wall() - start
        self._spent += took
        self._elsewhere += took
        self._answered += took

    def welcome(self, worker: Worker) -> None:
        """Takes in a new `worker`, which has saved up nothing."""
        worker.used = self._virtual
        now = worker.credited = self.clock()
        self._arrived += 1
        if self._arrived == CROWD:
            if now - self._crowd_at >= LONGEST_HELD:
                self._crowd_since = now
            self._crowd_at = now

    def charge(self, worker: Worker, seconds: float) -> None:
        """Counts work that was done for `worker` outside of its turns."""
        worker.used = max(worker.used, self._virtual - SAVED) + min(seconds, LONGEST_STEP)
        self._elsewhere += seconds

    def stand_in_line(self, worker: Worker) -> None:
        """Puts a client's `worker` in line for work that did not come as bytes."""
        if not worker.in_line:
            worker.used = max(worker.used, self._virtual - SAVED)
            self._join(worker)

    def serve_later(self, worker: Worker) -> None:
        """Serves a client's `worker` in the time of a next turn that new clients have.

        For a handshake: done as bytes come, those of a crowd would make each turn long.
        """
        if not worker.in_line:
            worker.used = max(worker.used, self._virtual - SAVED)
            self._put_off(worker, self._newcomers)

    def serve_last(self, worker: Worker) -> None:
        """As `serve_later`, behind all new clients: for the end of a connection, or a client that asks nothing yet."""
        if not worker.in_line:
            worker.used = max(worker.used, self._virtual - SAVED)
            self._put_off(worker, self._last)

    def _put_off(self, worker: Worker, to: list[tuple[float, int, Worker]] | None = None) -> None:
        worker.in_line = True
        self._order += 1
        where = to if to is not None else self._newcomers if worker.is_new else self._first
        heappush(where, (worker.used, self._order, worker))
        self.run_soon()

    def _served(self, worker: Worker, took: float, is_left: bool) -> None:
        """Counts the `took` seconds of a turn that was no turn of the line; work that is left waits for another.

        The first turns of a worker count for little, and the rest of its work does not have to stand in line yet.
        """
        was_new = worker.is_new
        worker.used += min(took, FIRST_SLICE if was_new else LONGEST_STEP)
        worker.new_for += took
        worker.is_new = was_new and is_left and worker.new_for < FIRST_WORK
        if is_left and was_new:
            self._put_off(worker)
        elif is_left:
            self._join(worker)

    def _join(self, worker: Worker) -> None:
        worker.in_line = True
        self._order += 1
        heappush(self._line, (worker.used, self._order, worker))
        self.run_soon()

    def run_soon(self) -> None:
        """Has `run` called when the sockets of this turn of the loop have been read."""
        if not self.will_run:
            self.will_run = True
            assert self.soon is not None
            self.soon(self.run)

    def run(self) -> None:
        """Writes the output that the sockets of this turn have caused, then serves the line for about a slice.

        The output of the line is written once, at the end: a write for each step would cost more than the steps.
        """
        self.will_run = False
        self._arrived_before, self._arrived = self._arrived, 0
        steps = self.steps
        spent = self._spent
        self._worked += spent + steps.spent
        self._spent = 0.0
        if self._worked >= WORKED:
            self._worked = 0.0
            self.after_work()
        if steps.spent or len(steps):
            steps.release()
        self.go_on()
        self.flush()
        if not (self._line or self._first or self._newcomers or self._last or self._answers or len(steps)):
            self._elsewhere = self._answered = 0.0  # nobody has to wait for it
            return
        began = self.clock()
        if self._answers:
            self._serve_shards(max(AT_ONCE - spent, ANSWERS_LEAST))
        if self._first or self._newcomers or self._last:
            self._serve_first()
        if self._line:
            # Answers and calls that have begun come before new requests; otherwise they would pile up.
            if self._elsewhere < SLICE or self._skipped >= MOST_SKIPPED:
                self._skipped = 0
                self._serve_line()
            else:
                self._skipped += 1
        self._elsewhere = 0.0
        self._worked += self.clock() - began
        self.flush()
        if self.waiting:
            self.run_soon()

    def _serve_shards(self, seconds: float) -> None:
        """Serves shards' workers for so long, in turns."""
        answers = self._answers
        stop = self.clock() + seconds
        for _ in range(len(answers)):
            worker = answers.popleft()
            if worker.work(stop):
                answers.append(worker)
            else:
                worker.in_line = False
            if self.clock() >= stop:
                break
        took = self.clock() - stop + seconds
        self._elsewhere += took
        self._answered += took

    def _serve_first(self) -> None:
        """Serves the workers that were put off only because the turn was over, as it would have served them then.

        Those that have saved up most come first. New ones come last: a crowd of new clients does not hold up the
        others. But they get FIRST_SLICE in each turn, however many others there are. Among new clients, those that
        need little do not wait for those that need much: each gets FIRST_SLICE at a time. Those that leave or ask
        nothing come last.
        """
        began = self.clock()
        end = self._serve_some(self._first, began, began + SLICE)
        end = self._serve_some(self._newcomers, end, max(began + SLICE, end + FIRST_SLICE))
        if not self._comes_crowd():
            end = self._serve_some(self._last, end, end + LAST_SLICE)
        elif end - self._crowd_since >= LONGEST_HELD:
            end = self._serve_some(self._last, end, end + FIRST_SLICE)
        self._elsewhere += end - began

    def _serve_some(self, first: list[tuple[float, int, Worker]], start: float, stop: float) -> float:
        """Serves workers until the time `stop`, one at least; the time then."""
        while first:
            _, _, worker = heappop(first)
            worker.in_line = False
            until = start + FIRST_SLICE
            is_left = worker.work(until if first is self._last else min(until, stop))
            end = self.clock()
            self._served(worker, end - start, is_left)
            start = end
            if end >= stop:
                break
        return start

    def _serve_line(self) -> None:
        """Serves the line: for one slice at most in all.

        The time that the shards' answers took since the last call is charged to the workers served now. Whose answers
        they were is not known one by one, but most belong to the clients that ask most.
        """
        line = self._line
        served: list[tuple[Worker, bool]] = []
        start = self.clock()
        stop = start + SLICE
        while line and (start < stop or not served):
            used, _, worker = heappop(line)
            if worker.used > used:  # the worker was charged while it stood in line
                self._join(worker)
                continue
            self._virtual = max(self._virtual, used)
            worker.in_line = False
            is_left = worker.work(stop)
            end = self.clock()
            worker.used += min(end - start, LONGEST_STEP)
            served.append((worker, is_left))
            start = end
        part = min(self._answered / max(1, len(served)), LONGEST_STEP)
        self._answered = 0.0
        for worker, is_left in served:
            worker.used += part
            if is_left:
                self._join(worker)
