"""How often verdicts are wrong, and how soon they come, by simulating paired outcomes.

    python benchmarks/simulate.py --runs 1000 --out cells.jsonl
    python benchmarks/simulate.py --what size        # rule (b) alone, exactly
    python benchmarks/simulate.py --what ratio       # bounds of the perplexity ratio

Every cell fixes how well dense does, the chance level, the share of items that flip and the
number of declared items, and draws runs in which the true retention is the threshold itself (any
verdict is then wrong), 1 (`retained` is right) and 0.85 (`degraded` is right). Evidence is looked
at after every item. Beside the power of a gate stands that of rule (b) alone, read once at the
end with all of alpha: the best rule for a fixed sample that keeps its size. Cells found in
`--out` are not simulated again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from scipy.special import gammaln
from scipy.stats import bootstrap, norm
from scipy.stats import t as student

from capcheck.bounded_mean import (
    ANYTIME_SHARE,
    EXACT_BELOW,
    likelihood_root,
    readings,
    wealth,
)
from capcheck.perplexity_stats import _bootstrap_roots, ratio_interval

ALPHA = 0.05
LOST = 0.85
DENSE = (0.3, 0.6, 0.7, 0.9)
CHANCE = (0.0, 0.25)
FLIPS = (0.01, 0.02, 0.05, 0.10, 0.25)
ITEMS = (10, 20, 50, 100, 200, 500, 1000, 2000)


def probabilities(dense: float, chance: float, flips: float, retention: float) -> np.ndarray:
    """Return P(both right), P(broken), P(fixed), P(both wrong), shape (4,).

    Where the loss alone flips more items than `flips`, exactly those flip; no more items can be
    fixed or broken than dense has wrong or right.
    """
    loss = (1 - retention) * (dense - chance)
    fixed = min(max(flips - loss, 0.0) / 2, 1 - dense, dense - loss)
    broken = fixed + loss
    return np.array([dense - broken, broken, fixed, 1 - dense - fixed])


def first_crossing(codes: np.ndarray, z: np.ndarray, bound: float, alpha: float) -> np.ndarray:
    """Return after how many items rule (a) first shows mean(z) > 0, shape (runs,); inf if never.

    Args:
        codes: which of the four outcomes each item had, shape (runs, n).
        z: the outcomes' values, shape (4,).
    """
    runs, n = codes.shape
    won = wealth(z, bound, n)
    when = np.full(runs, np.inf)
    for start in range(0, runs, 64):
        path = np.cumsum(won[codes[start : start + 64]], axis=1)  # (64, n, bets)
        run, item = np.nonzero(path.max(axis=2) >= -math.log(alpha))  # the mean is at most the max
        mean = np.log(np.mean(np.exp(np.minimum(path[run, item], 700)), axis=1))
        run, item = run[mean >= -math.log(alpha)], item[mean >= -math.log(alpha)]
        np.minimum.at(when, start + run, item + 1)
    return when


def counted(codes: np.ndarray) -> np.ndarray:
    """Return how often each of the four outcomes came in each run, shape (runs, 4)."""
    return np.stack([np.sum(codes == k, axis=1) for k in range(4)], axis=1).astype(float)


def verdicts(codes: np.ndarray, z: np.ndarray, bounds: tuple[float, float]) -> dict[str, float]:
    """Return the rates of both verdicts, those of rule (b) alone, and the mean items asked."""
    n = codes.shape[1]
    share = ANYTIME_SHARE if n >= EXACT_BELOW else 1.0
    stops, shown, alone = [], [], []
    for sign, bound, other in ((1, bounds[0], bounds[1]), (-1, bounds[1], bounds[0])):
        stop = first_crossing(codes, sign * z, bound, share * ALPHA)
        for asked, quantile in readings(n, (1 - share) * ALPHA) if share < 1 else ():
            root = likelihood_root(sign * z, counted(codes[:, :asked]), max(bound, other / 2))
            stop = np.where(root >= quantile, np.minimum(stop, asked), stop)
        root = likelihood_root(sign * z, counted(codes), max(bound, other / 2))
        stops.append(stop)
        shown.append(np.isfinite(stop))
        alone.append(np.mean(root >= norm.isf(ALPHA)))
    asked = np.minimum(np.minimum(*stops), n)
    return {
        "retained": float(np.mean(shown[0] & ~shown[1])),
        "degraded": float(np.mean(shown[1] & ~shown[0])),
        "retained_alone": float(alone[0]),
        "degraded_alone": float(alone[1]),
        "items": float(np.mean(asked)),
    }


def simulate(
    threshold: float, dense: float, chance: float, flips: float, n: int, runs: int
) -> dict[str, float]:
    """Return one row of the table."""
    rng = np.random.default_rng([round(1000 * v) for v in (threshold, dense, chance, flips)] + [n])
    outcomes = np.array([(1, 1), (0, 1), (1, 0), (0, 0)])  # compressed, dense
    z = (outcomes[:, 0] - chance) - threshold * (outcomes[:, 1] - chance)
    found = {}
    for name, truth in (("at", threshold), ("kept", 1.0), ("lost", LOST)):
        edges = np.cumsum(probabilities(dense, chance, flips, truth))[:3]
        codes = np.searchsorted(edges, rng.random((runs, n)), side="right").astype(np.int8)
        found[name] = verdicts(codes, z, (-z.min(), z.max()))
    return {
        "threshold": threshold,
        "dense": dense,
        "chance": chance,
        "flips": flips,
        "n": n,
        "runs": runs,
        "false_degraded": found["at"]["degraded"],
        "false_retained": found["at"]["retained"],
        "power_retained": found["kept"]["retained"],
        "best_retained": found["kept"]["retained_alone"],
        "power_degraded": found["lost"]["degraded"],
        "best_degraded": found["lost"]["degraded_alone"],
        "items_kept": found["kept"]["items"],
        "items_lost": found["lost"]["items"],
    }


HEADER = (
    "| at | dense | chance | flips | N | false degraded | false retained "
    "| retained, truth 1 (best) | degraded, truth 0.85 (best) | items asked, 1 / 0.85 |\n"
    "|" + " ---: |" * 10
)


def line(row: dict[str, float]) -> str:
    """Return a row of the table in Markdown, rates in percent."""
    rate = {k: f"{100 * v:.1f}" for k, v in row.items() if k.split("_")[0] not in ("n", "runs")}
    return (
        f"| {row['threshold']:g} | {row['dense']:g} | {row['chance']:g} | {100 * row['flips']:g} % "
        f"| {row['n']} | {rate['false_degraded']} | {rate['false_retained']} "
        f"| {rate['power_retained']} ({rate['best_retained']}) "
        f"| {rate['power_degraded']} ({rate['best_degraded']}) "
        f"| {row['items_kept']:.0f} / {row['items_lost']:.0f} |"
    )


def worst_size(n: int, alpha: float) -> tuple[float, tuple[float, ...]]:
    """Return the largest exact size of rule (b) over distributions with at most three outcomes.

    The outcomes are -worst, some s and a best one, in units of the bound; their probabilities
    run over those with mean zero. The probability that the rule calls is summed, not sampled.
    """
    k1, k3 = (k.ravel() for k in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    k1, k3 = k1[k1 + k3 <= n], k3[k1 + k3 <= n]
    counts = np.stack([k1, n - k1 - k3, k3], axis=1).astype(float)
    ways = gammaln(n + 1) - gammaln(counts + 1).sum(axis=1)
    found: tuple[float, tuple[float, ...]] = (0.0, ())
    for worst in (1.0, 0.95, 0.6):
        for best in (0.05, 0.3, 0.7, 1.0, 2.0):
            for s in (-0.5, -0.2, -0.05, -0.02, 0.0, 0.02, 0.05, 0.2, 0.5):
                if not -worst < s < best:
                    continue
                calls = likelihood_root(np.array([-worst, s, best]), counts, 1.0) >= norm.isf(alpha)
                for p3 in (0.0, *np.geomspace(0.3 / n, 0.9, 25)):
                    p1 = (s + (best - s) * p3) / (worst + s)
                    if p1 <= 0 or p1 + p3 >= 1:
                        continue
                    p = np.array([p1, 1 - p1 - p3, max(p3, 1e-300)])
                    size = float(np.exp(ways[calls] + counts[calls] @ np.log(p)).sum())
                    found = max(found, (size, (worst, s, best, p3)))
    return found


def residuals(kind: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return changes in nats, of mean zero given the length, and lengths of n documents."""
    tokens = np.maximum(5, np.round(rng.lognormal(5, 1.3 if kind == "lengths" else 0.8, n)))
    rate = {
        "normal": lambda: rng.normal(0, 3, n) / np.sqrt(tokens),
        "lengths": lambda: rng.normal(0, 0.2, n),
        "t3": lambda: 0.1 * rng.standard_t(3, n),
        "gamma4": lambda: rng.gamma(4, 0.1, n) - 0.4,
        "exponential": lambda: rng.exponential(1, n) - 1,
        "lognormal": lambda: rng.lognormal(0, 1, n) - math.exp(0.5),
    }[kind]()
    return rate * tokens, tokens


def ratio_table(runs: int) -> None:
    """Print how often each bound of the log ratio misses a true value of zero, low / high."""
    print("| change per token | documents | t | bootstrap-t | BCa | used |\n|" + " ---: |" * 6)
    for kind in ("normal", "lengths", "t3", "gamma4", "exponential", "lognormal"):
        for n in (30, 50, 100, 300):
            rng = np.random.default_rng(n)
            misses = np.zeros((4, 2))
            for seed in range(runs):
                x, tokens = residuals(kind, n, rng)
                rate = x.sum() / tokens.sum()
                e = x - rate * tokens
                error = math.sqrt(n / (n - 1) * (e @ e)) / tokens.sum()
                q = student.isf(ALPHA, n - 1) * error
                low, high = np.quantile(_bootstrap_roots(e, tokens, rng), [ALPHA, 1 - ALPHA])
                bca = bootstrap(
                    (x, tokens),
                    lambda x, t, axis: x.sum(axis) / t.sum(axis),
                    paired=True,
                    vectorized=True,
                    n_resamples=999,
                    confidence_level=1 - 2 * ALPHA,
                    method="BCa",
                    rng=rng,
                ).confidence_interval
                ours = ratio_interval(3 * tokens, 3 * tokens + x, tokens, seed=seed)
                ends = np.array(
                    [
                        (rate - q, rate + q),
                        (rate - high * error, rate - low * error),
                        (bca.low, bca.high),
                        (math.log(ours.low), math.log(ours.high)),
                    ]
                )
                misses += np.stack([ends[:, 0] > 0, ends[:, 1] < 0], axis=1)
            rates = " | ".join(f"{100 * a:.1f} / {100 * b:.1f}" for a, b in misses / runs)
            print(f"| {kind} | {n} | {rates} |", flush=True)


def main() -> None:
    """Read the command line and print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="simulated runs a cell")
    parser.add_argument("--threshold", type=float, default=0.95, help="retention that is claimed")
    parser.add_argument("--items", type=int, nargs="*", default=ITEMS, help="declared items")
    parser.add_argument("--out", type=Path, help="keep cells here (JSON lines), to go on later")
    parser.add_argument("--what", choices=("pairs", "size", "ratio"), default="pairs")
    args = parser.parse_args()
    if args.what == "ratio":
        ratio_table(args.runs)
    elif args.what == "size":
        for n in (10, 20, 50, 100):
            print(n, [(a, worst_size(n, a)) for a in (0.05, 0.04, 0.002)], flush=True)
    else:
        pairs_table(args)


def pairs_table(args: argparse.Namespace) -> None:
    """Print every cell of the paired verdicts, then the worst ones."""
    keys = ("threshold", "dense", "chance", "flips", "n", "runs")
    done: dict[tuple[float, ...], dict[str, float]] = {}
    if args.out and args.out.exists():
        rows = [json.loads(text) for text in args.out.read_text().splitlines()]
        done = {tuple(row[key] for key in keys): row for row in rows}
    began, rows = time.perf_counter(), []
    print(HEADER)
    for n in args.items:
        for cell in [(d, g, f) for d in DENSE for g in CHANCE for f in FLIPS]:
            row = done.get((args.threshold, *cell, n, args.runs))
            if row is None:
                row = simulate(args.threshold, *cell, n, args.runs)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            rows.append(row)
            print(line(row), flush=True)
    print()
    for what in ("false_degraded", "false_retained"):
        worst = max(rows, key=lambda row: row[what])
        print(f"worst {what.replace('_', ' ')}: {100 * worst[what]:.2f} % in {line(worst)}")
    for side in ("retained", "degraded"):
        strong = [row for row in rows if row[f"best_{side}"] >= 0.8 and row["n"] >= EXACT_BELOW]
        if strong:
            part = [row[f"power_{side}"] / row[f"best_{side}"] for row in strong]
            worst = strong[int(np.argmin(part))]
            print(f"least power, {side}: {min(part):.3f} of the best rule in {line(worst)}")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
