"""Run schedules of the simulation for a while, with fresh seeds.

python -m tests.sim.soak --seconds 600         two processes, seeds that nobody has tried
python -m tests.sim.soak --only 4711           one schedule, with the story of what happened
python -m tests.sim.soak --lease 4711          one schedule of a lease, likewise
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field

from tests.sim import lease_schedule, schedule

#: One seed of so many is a schedule of a volume with one writer by lease (lease_schedule.py).
_LEASES = 7


@dataclass
class Sum:
    """What a number of schedules came to."""

    schedules: int = 0
    operations: int = 0
    commits: int = 0
    races: int = 0
    conflicts: int = 0
    crashes: int = 0
    acknowledged: int = 0
    leases: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def add(self, outcome: schedule.Outcome) -> None:
        self.schedules += 1
        self.operations += outcome.operations
        self.commits += outcome.commits
        self.races += outcome.races
        self.conflicts += outcome.conflicts
        self.crashes += outcome.crashes
        self.acknowledged += outcome.acknowledged
        self.answers.update(outcome.answers)

    def merge(self, other: Sum) -> None:
        for name in ("schedules", "operations", "commits", "races", "conflicts", "crashes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.acknowledged += other.acknowledged
        self.leases += other.leases
        self.answers.update(other.answers)
        self.broken += other.broken

    def __str__(self) -> str:
        return (
            f"{self.schedules} schedules, {self.operations} operations, {self.commits} commits,"
            f" {self.races} races lost, {self.conflicts} conflicts settled, {self.crashes} crashes,"
            f" {self.acknowledged} acknowledged tags; {self.leases} schedules of leases;"
            f" {len(self.broken)} broken"
        )


def work(first: int, step: int, until: float, operations: int | None) -> Sum:
    """Run seeds *first*, *first* + *step*, ... until the time is over."""
    total = Sum()
    seed = first
    while time.monotonic() < until:
        try:
            if seed % _LEASES == 0:
                lease_schedule.run(seed, step=seed // _LEASES % 400)
                total.leases += 1
            else:
                total.add(schedule.run(seed, operations=operations))
        except Exception as exc:
            total.schedules += 1
            total.broken.append(schedule.explain(seed, exc))
            print(total.broken[-1], flush=True)
        seed += step
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, help="the first seed (fresh ones if not given)")
    parser.add_argument("--only", type=int, help="run just this seed, and tell its story")
    parser.add_argument("--lease", type=int, help="run just this seed of a lease")
    parser.add_argument("--digest", action="store_true", help="with --only: print the digest alone")
    parser.add_argument("--operations", type=int, help="in each schedule")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    if chosen.lease is not None:
        return only_lease(chosen.lease)
    if chosen.only is not None:
        return only(chosen.only, chosen.operations, chosen.digest)
    first = chosen.seed if chosen.seed is not None else secrets.randbelow(10**12)
    until = time.monotonic() + chosen.seconds
    total = Sum()
    context = multiprocessing.get_context("spawn")
    with context.Pool(chosen.processes) as pool:
        results = [
            pool.apply_async(work, (first + n, chosen.processes, until, chosen.operations))
            for n in range(chosen.processes)
        ]
        for result in results:
            total.merge(result.get())
    for answer, count in sorted(total.answers.items()):
        print(f"{count:9} {answer}")
    print(f"from seed {first}: {total}")
    return 1 if total.broken else 0


def only_lease(seed: int) -> int:
    log: list[str] = []
    try:
        outcome = lease_schedule.run(seed, log=log)
    except Exception as exc:
        print("\n".join(log))
        traceback.print_exception(exc)
        return 1
    print("\n".join([*log, str(outcome)]))
    return 0


def only(seed: int, operations: int | None, digest: bool) -> int:
    log: list[str] = []
    try:
        outcome = schedule.run(seed, operations=operations, log=log)
    except Exception as exc:
        print("\n".join(log))
        traceback.print_exception(exc)
        print(schedule.explain(seed, exc))
        return 1
    print(outcome.digest if digest else "\n".join([*log, str(outcome)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
