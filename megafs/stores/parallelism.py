"""How many transfers at once: as many as raise the total throughput.  No I/O, no timers.

Two numbers, each for one direction, and never above the setting.

`bulk`, of transfers that nobody waits for, climbs the hill of throughput: one number is held while
as many transfers begin and end under it, then another is tried, half as many more or fewer, and
kept if it is worth it.  (The experiments of PCC: Dong et al., "PCC: Re-architecting Congestion
Control for Consistent High Performance", NSDI 2015; doubling at first, until it no longer helps,
as in BBR's startup.)  More is worth it if the total grows by the fifth root of the number's growth
at least, fewer if it shrinks by less.  So a line whose bandwidth-delay product is more than they
fill gets more of them, and where they only slow each other down there are few, which leaves room
for what is urgent.  No best latency is remembered, as Vegas and its kind do: object stores answer
in times that vary by a factor, and lines change.

`slots`, of all, is the setting until the store says that it is overloaded (503, 429), or lets an
attempt run into its time limit.  Then it is multiplied by 0.7, once for all that were under way,
and grows by one for as many answers as it has slots (AIMD: Chiu and Jain, 1989).  When the next
attempt of a request is made is another matter (stores/retry.py): this says how many are out.
"""

from __future__ import annotations

import math

#: With so many it begins.  Downloads with more: those of read-ahead are a few MiB, packs are eight,
#: and lie in memory while they wait.
START_UP, START_DOWN = 4, 8
#: Fewer than this only because a store is overloaded: while a lone request makes its round trip,
#: nothing moves.
_LEAST = 2
#: A transfer of fewer bytes says nothing of the line's width.
_LARGE = 256 << 10
#: So many transfers, or as many as there are at once, make a measurement.
_ENOUGH = 4
#: A number that was not used to this part was not measured.
_FULL = 0.75
_STEP = 1.5
#: The total has to grow as the number to this power.
_WORTH = 1 / 5
_DECREASE = 0.7
#: The most measurements between two experiments.
_PATIENCE = 8
#: A total that has changed by this factor by itself is worth an experiment at once.
_CHANGED = 1.5


class Parallelism:
    """Of one direction.  most: the setting; start: with how many to begin."""

    def __init__(self, most: int, start: int = START_UP) -> None:
        self._most = max(1, most)
        self._spare = 1 if self._most > 1 else 0
        self._ceiling = float(self._most)
        #: Counts the numbers there have been; a request belongs to the one that it began under.
        self.era = 0
        self._cut = 0  # the era that the last cut began
        self.bulk = min(start, self.shared)
        #: The number that is the best known, and the bytes per second that it brought.
        self._kept = self.bulk
        self._rate: float | None = None
        self._step = 2.0
        self._up = True
        self._failed = 0  # experiments since the last that was worth it
        self._hold = 0  # measurements until the next
        self._begin_anew()

    @property
    def slots(self) -> int:
        """Requests at once, the urgent ones included."""
        return max(1 + self._spare, int(self._ceiling))

    @property
    def shared(self) -> int:
        """Of those, the ones that are not kept for urgent requests."""
        return self.slots - self._spare

    def answered(self, era: int, seconds: float, size: int, active: float) -> None:
        """A request that began in *era* was answered after so many seconds.

        size: bytes that it moved.  active: how many were under way beside it and with it, on
        average.
        """
        if self._ceiling < self._most and active > self.slots - 1.5:  # what is unused is not proven
            self._ceiling = min(self._most, self._ceiling + 1 / self._ceiling)
        if era != self.era or size < _LARGE or seconds <= 0:
            return
        if active < _FULL * self.bulk:
            self._unused += 1
            if self.bulk > self._kept and self._unused >= self.bulk:
                self._fail()  # nobody has use for so many
            return
        self._count += 1
        self._bytes += size
        self._seconds += seconds
        self._active += active * seconds
        if self._count >= max(_ENOUGH, self.bulk):
            # Each has moved bytes / seconds, and there were active / seconds of them.
            rate = self._active * self._bytes / self._seconds**2
            self._begin_anew()
            self._judge(rate)

    def overloaded(self, era: int, active: int) -> None:
        """The store refused a request of *era*, for it has too many, or never answered it.

        active: how many were under way.
        """
        if era < self._cut:
            return  # all that was under way at the last cut is punished already
        self._ceiling = max(1.0 + self._spare, _DECREASE * min(self._ceiling, active))
        self._step = _STEP
        self.era += 1
        self._cut = self.era
        self._keep(min(self._kept, self.bulk), None)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._count = self._unused = self._bytes = 0
        self._seconds = self._active = 0.0

    def _set(self, number: int) -> None:
        if number != self.bulk:
            self.bulk = number
            self.era += 1
            self._begin_anew()

    def _judge(self, rate: float) -> None:
        """So many bytes per second came with the present number."""
        if self._rate is None:
            self._keep(self.bulk, rate)
        elif self.bulk == self._kept:
            if not 1 / _CHANGED < rate / self._rate < _CHANGED:
                self._keep(self.bulk, rate)
            self._rate = (self._rate + rate) / 2
            self._hold -= 1
        elif rate / self._rate >= (self.bulk / self._kept) ** _WORTH:
            self._keep(self.bulk, rate)
        else:
            self._fail()
            return
        if self._hold <= 0:
            self._try()

    def _fail(self) -> None:
        """The experiment was not worth it: back, and the other way next time, but not soon."""
        self._set(self._kept)
        self._up = not self._up
        self._step = _STEP
        self._failed += 1
        self._hold = min(_PATIENCE, 1 << self._failed // 2)

    def _keep(self, number: int, rate: float | None) -> None:
        self._kept = max(1, min(number, self.shared))
        self._set(self._kept)
        self._rate = rate
        self._failed = self._hold = 0

    def _try(self) -> None:
        """Begin an experiment: the way that was worth it last, or else the other."""
        number = self._kept
        up = min(self.shared, max(number + 1, int(number * self._step)))
        down = max(min(number, _LEAST), min(number - 1, math.ceil(number / _STEP)))
        if (up if self._up else down) == number:
            self._up = not self._up
        self._set(up if self._up else down)
