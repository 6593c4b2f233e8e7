"""A soak: node processes under bots, restarted at random by SIGTERM and kill -9, that have to end equal and lean.

    python benchmarks/soak.py --minutes 30 --nodes 3

It ends with exit code 1, and says why, unless: all nodes come to one state hash; every order that was answered is in
the logs that are left; the logs are equal and sound; every SIGTERM ended with exit code 0; and the memory
and the file descriptors of the first node, which is never restarted, are flat over the second half.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from openoutcry.actors.tools import inspection
from openoutcry.actors.tools.local import Bot, LocalExchange

MARKET: Final = "BTC-USD"
RULES: Final = f"{MARKET}:tick_size=0.01,lot_size=0.01,dedupe_window=10000"
"""A window that is full soon, as snapshots are soon taken: memory that grows until then says nothing."""
SAMPLE_S: Final = 5.0
MEMORY_GROWTH_MAX: Final = 0.10
"""How much larger than at half time the first node may be in the end: its state grows until its windows are full."""
FDS_GROWTH_MAX: Final = 3


def main() -> None:
    """Run, report, and exit with 0 if all is well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--bots", type=int, default=6)
    parser.add_argument("--orders-per-s", type=float, default=60, help="Of each bot.")
    parser.add_argument("--restart-every-s", type=float, default=20, help="On average.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--identities", action="store_true", help="The nodes' links are TLS.")
    parser.add_argument("--keep", action="store_true", help="Keep the folder.")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="openoutcry-soak-"))
    try:
        wrong = soak(folder, given)
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    for line in wrong:
        print(f"WRONG: {line}")
    print("failed" if wrong else "passed")
    sys.exit(bool(wrong))


def soak(folder: Path, given: argparse.Namespace) -> list[str]:
    """Run the soak; return what was wrong in the end."""
    wrong: list[str] = []
    names = [f"node-{at}" for at in range(given.nodes)]
    chance = random.Random(given.seed)
    terms, kills, in_sync_s = 0, 0, []
    samples: dict[str, list[tuple[float, int, int]]] = {name: [] for name in [*names, "bots"]}
    options = ("--snapshot-every", "20000")
    with LocalExchange(folder, markets=[RULES], options=options, identities=given.identities) as exchange:
        for name in names:
            exchange.start(name)
        exchange.wait_in_sync()
        bots = [
            Bot(exchange, f"bot-{at}", MARKET, orders_per_s=given.orders_per_s, seed=given.seed, remember=True)
            for at in range(given.bots)
        ]
        for bot in bots:
            bot.start()
        began_s = time.monotonic()
        end_s = began_s + given.minutes * 60
        restart_s, sample_s, said_s = began_s + given.restart_every_s, began_s, began_s
        while (now_s := time.monotonic()) < end_s:
            if now_s >= sample_s:
                sample_s = now_s + SAMPLE_S
                for name, process in exchange.processes.items():
                    samples[name].append((now_s - began_s, *_usage(process.pid)))
                samples["bots"].append((now_s - began_s, *_usage(os.getpid())))
            if now_s >= said_s:
                said_s = now_s + 60
                count = sum([bot.answered for bot in bots])
                print(
                    f"{now_s - began_s:6.0f} s: {count:,} orders answered, {terms} SIGTERM, {kills} kill -9, "
                    f"{samples[names[0]][-1][1] / 1e6:.1f} MB, {samples[names[0]][-1][2]} fds",
                    flush=True,
                )
            if now_s >= restart_s and len(names) > 1:
                victim = chance.choice(names[1:])
                if chance.random() < 0.5:
                    terms += 1
                    if (code := exchange.stop(victim)) != 0:
                        wrong.append(f"{victim} ended with exit code {code} after SIGTERM")
                else:
                    kills += 1
                    exchange.kill(victim)
                time.sleep(chance.uniform(0, 3))
                exchange.start(victim)
                back_s = time.monotonic()
                exchange.wait_in_sync()
                in_sync_s.append(time.monotonic() - back_s)
                restart_s = time.monotonic() + given.restart_every_s * chance.uniform(0.5, 1.5)
            time.sleep(0.1)
        for bot in bots:
            bot.stop()
        acked = [answered for bot in bots for answered in bot.acked]
        ends = exchange.wait_same_sequence(MARKET)
        if len(set(ends.values())) != 1:
            wrong.append(f"the nodes differ: {ends}")
        sequence, state_hash = ends[names[0]]
        for name, code in exchange.close().items():
            if code != 0:
                wrong.append(f"{name} ended with exit code {code} after SIGTERM")
    seconds = given.minutes * 60
    print(
        f"{len(acked):,} orders answered in {seconds:.0f} s ({len(acked) / seconds:.0f}/s), "
        f"{sum([bot.failures for bot in bots])} requests repeated"
    )
    print(
        f"{terms} SIGTERM, {kills} kill -9; in sync again within "
        f"{statistics.median(in_sync_s or [0]):.1f} s (median), {max(in_sync_s or [0]):.1f} s (worst)"
    )
    print(f"all at sequence {sequence}, state {state_hash}")
    wrong += _check_logs({name: folder / name / "markets" / MARKET for name in names}, sequence, acked)
    wrong += _check_usage(samples[names[0]], f"{names[0]}, never restarted")
    _check_usage(samples["bots"], "the process of the bots, for comparison")
    return wrong


def _usage(pid: int) -> tuple[int, int]:
    """Return resident bytes and open file descriptors of a process; zeros if it has gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0, 0


def _check_logs(folders: Mapping[str, Path], sequence: int, acked: Sequence[tuple[int, str]]) -> list[str]:
    """Check the disks: sound, with equal logs as far as they reach back, and every answered order in them."""
    wrong = []
    reports = {name: inspection.verify_market(MARKET, folder) for name, folder in folders.items()}
    first = max([report.begins_after for report in reports.values()]) + 1
    looked_up = [(at, named) for at, named in acked if at >= first]
    logs: dict[str, dict[int, tuple[object, ...]]] = {}
    for name, report in reports.items():
        if not report.sound or report.sequence < sequence:
            wrong.append(f"{name}: its disk: {report}")
        entries = inspection.read_log(folders[name], first=first, last=sequence)
        logs[name] = {entry.sequence: entry.command for entry in entries}
        missing = [answer for answer in looked_up if logs[name].get(answer[0], ("", "", ""))[2] != answer[1]]
        if missing:
            wrong.append(f"{name}: {len(missing)} answered orders are not in its log, the first is {missing[0]}")
        if logs[name] != next(iter(logs.values())):
            wrong.append(f"{name}: its log differs from that of {next(iter(logs))}")
    print(f"logs from {first} to {sequence}: {len(looked_up):,} of {len(acked):,} answered orders looked up in each")
    return wrong


def _check_usage(samples: Sequence[tuple[float, int, int]], what: str) -> list[str]:
    """Print what a process used, and its slopes over the second half; return what grew too much there."""
    half = [sample for sample in samples if sample[0] >= samples[-1][0] / 2]
    minutes = [sample[0] / 60 for sample in half]
    memory, fds = [sample[1] for sample in half], [sample[2] for sample in half]
    slopes = [statistics.linear_regression(minutes, values).slope if len(half) > 2 else 0.0 for values in (memory, fds)]
    print(
        f"{what}: {samples[0][1] / 1e6:.1f} MB at first, {memory[0] / 1e6:.1f} MB at half time, "
        f"{memory[-1] / 1e6:.1f} MB in the end ({slopes[0] / 1e3:+.1f} kB/min); "
        f"{samples[0][2]}, {fds[0]}, {fds[-1]} fds ({slopes[1]:+.3f}/min)"
    )
    wrong = []
    if memory[-1] > memory[0] * (1 + MEMORY_GROWTH_MAX):
        wrong.append(f"{what}: memory grew from {memory[0]:,} to {memory[-1]:,} bytes over the second half")
    if fds[-1] > fds[0] + FDS_GROWTH_MAX:
        wrong.append(f"{what}: file descriptors grew from {fds[0]} to {fds[-1]} over the second half")
    return wrong


if __name__ == "__main__":
    main()
