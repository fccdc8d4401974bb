"""`make fuzz`: the targets in turn, each round with a fresh seed, until the time is over.

    python -m tests.fuzz --seconds 3600 [--seed N] [--target NAME]

A failure prints its target and seed; with them it comes again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

from hypothesis import HealthCheck, given, seed, settings

from tests.fuzz.targets import TARGETS

CASES = 400


def fuzz(name: str, number: int) -> None:
    """One round of a target; raises what its parser must not."""
    target = TARGETS[name]

    @seed(number)
    @settings(
        max_examples=CASES,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=target.inputs)
    def run(data: object) -> None:
        target.check(data)

    run()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, help="the first round's; then it goes on from there")
    parser.add_argument("--target", choices=list(TARGETS), help="this one alone")
    args = parser.parse_args()
    number = args.seed if args.seed is not None else random.SystemRandom().randrange(2**32)
    names = [args.target] if args.target else list(TARGETS)
    end = time.monotonic() + args.seconds
    rounds = failed = 0
    print(f"fuzz: seed {number}, {len(names)} targets, {args.seconds:.0f} s", flush=True)
    while time.monotonic() < end and not failed:
        for name in names:
            try:
                fuzz(name, number)
            except Exception:
                failed += 1
                traceback.print_exc()
                print(f"fuzz: FAILED: --target {name!r} --seed {number}", flush=True)
            rounds += 1
            if time.monotonic() >= end:
                break
        number += 1
    print(f"fuzz: {rounds} rounds of {CASES} cases, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
