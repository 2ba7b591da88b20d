"""The plan for people: stages that share a reason are one line."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semivid.pipeline.plan import Plan, Reason, Step

VERDICTS = {
    "runs": "runs",
    "restored": "restored from the cache",
    "maybe": "may run",
    "unchanged": "left alone, its inputs come out the same",
    "recorded": "recorded anew",
    "blocked": "cannot run",
}
SHORT = 60  # characters of a value


def reason_text(reason: Reason) -> str:
    """Why a stage is stale, in one line."""
    if reason.kind in ("never run", "always"):
        return {"never run": "never run", "always": "declared `always_changed`"}[reason.kind]
    if reason.kind == "command":
        return "command: {} -> {}".format(*_differing(str(reason.old), str(reason.new)))
    if reason.kind == "param":
        old, new = _shown(reason.old), _shown(reason.new)
        if reason.state == "new":
            return f"{reason.what}: new here, {new}"
        return f"{reason.what}: {old} -> {'(no longer in params.yaml)' if reason.state == 'gone' else new}"
    said = {"new": "is new in dvc.yaml", "not in cache": "is not in the cache"}
    said |= {"missing": "is missing", "changed": "changed"}
    name = f"output {reason.what}" if reason.kind == "out" else reason.what
    return f"{name} {said[reason.state]}{': ' if reason.files else ''}{some(reason.files, 4)}"


def patterns(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Few patterns that stand for exactly `names`: ``train@us-{12,24}-7``, ``train@*`` if it is all of `known`."""
    families, whole = defaultdict(list), defaultdict(set)
    for name in dict.fromkeys(names):
        family, _, item = name.partition("@")
        families[family].append(item)
    for name in known:
        family, _, item = name.partition("@")
        whole[family].add(item)
    found = []
    for family, items in families.items():
        if items == [""]:
            found.append(family)
        elif len(items) > 1 and set(items) == whole[family]:
            found.append(f"{family}@*")
        else:
            by_length = defaultdict(list)
            for parts in (tuple(item.split("-")) for item in items):
                by_length[len(parts)].append(parts)
            found += [f"{family}@{'-'.join(row)}" for rows in by_length.values() for row in _braces(rows)]
    return found


def _braces(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows of parts as few rows whose parts may be sets: (a, {b,c}, d)."""
    columns = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    if math.prod(map(len, columns)) == len(rows):
        return [tuple(_set(c) for c in columns)]
    found = []
    for i in [i for i, c in enumerate(columns) if len(c) > 1]:
        same_rest = defaultdict(list)
        for value in columns[i]:
            same_rest[tuple(r[:i] + r[i + 1 :] for r in rows if r[i] == value)].append(value)
        found.append([(*p[:i], _set(v), *p[i:]) for rest, v in same_rest.items() for p in _braces(list(rest))])
    return min(found, key=len)


def _set(values: list[str]) -> str:
    return values[0] if len(values) == 1 else "{" + ",".join(values) + "}"


def _group(steps: Iterable[Step]) -> list[list[Step]]:
    """Steps of one matrix that share verdict and reasons; names of items in paths do not count as a difference."""
    groups = defaultdict(list)
    for step in steps:
        items = set(step.name.partition("@")[2].split("-"))

        def neutral(text: str, items: set = items) -> str:
            return re.sub(r"\w+", lambda m: "*" if m[0] in items else m[0], text)

        reasons = tuple(reason_text(r) if r.kind == "param" else neutral(reason_text(r)) for r in step.reasons)
        groups[step.family, step.verdict, reasons, neutral(step.note)].append(step)
    return list(groups.values())


def _never(step: Step) -> bool:
    return [r.kind for r in step.reasons] == ["never run"]


def _merged(texts: list[str]) -> str:
    """Texts that differ in one stretch as one: ``models/{a,b}.txt is missing``; else the first of them."""
    texts = list(dict.fromkeys(texts))
    if len(texts) == 1:
        return texts[0]
    parts = [re.split(r"(\w+)", t) for t in texts]
    if len({len(p) for p in parts}) > 1:
        return f"{texts[0]} (and {len(texts) - 1} more like it)"
    columns = [list(dict.fromkeys(c)) for c in zip(*parts, strict=True)]
    return "".join(c[0] if len(c) == 1 else "{" + some(c, 6, ",", ",...") + "}" for c in columns)


def render(plan: Plan) -> str:
    """The plan for people."""
    lines = [f"note: {plan.at_work}"] if plan.at_work else []
    of = f" (for {', '.join(plan.targets)})" if plan.targets else ""
    if not plan.steps:
        lines.append(f"nothing to do: all stages are up to date{of}")
        return "\n".join([*lines, *_left_over(plan)])
    counts = {v: sum(s.verdict == v for s in plan.steps) for v in VERDICTS}
    shares = [f"{n} {_verb(v, n)}" for v, n in counts.items() if n]
    lines.append(f"{len(plan.steps)} of {len(plan.names)} stages are stale{of}: {'; '.join(shares)}")
    lines.append("")
    for group in _group(plan.steps):
        lines += _told(group, plan)
    if counts["maybe"]:
        lines += ["", "may run: that depends on what the stages before it write. Identical bytes leave it alone, known"]
        lines[-1] += " results are restored."
    return "\n".join([*lines, "", *_expected(plan), *_left_over(plan)])


def _verb(verdict: str, count: int) -> str:
    plural = {"runs": "run", "unchanged": "are left alone, their inputs come out the same"}
    return VERDICTS[verdict] if count == 1 else plural.get(verdict, VERDICTS[verdict])


def _told(group: list[Step], plan: Plan) -> list[str]:
    first = group[0]
    names = [s.name for s in group]
    count = f"{len(group)} stages " if len(group) > 1 else ""
    head = f"{' '.join(patterns(names, plan.names))}: {count}{_verb(first.verdict, len(group))}"
    notes = [s.note for s in group]
    if first.verdict == "blocked":
        head += f": {_merged(notes)}"
    reasons = [_merged([reason_text(s.reasons[i]) for s in group]) for i in range(len(first.reasons))]
    because = list(dict.fromkeys(n for s in group for n in s.because))
    if _never(first):
        head, reasons = f"{head} (never run)" if first.verdict != "blocked" else head, []
    elif because and first.verdict != "unchanged":
        and_ = "and " if reasons else ""
        reasons.append(f"{and_}because of {some(patterns(because, plan.names), 6)}")
    if first.verdict != "blocked" and any(notes):
        reasons.append(_merged(notes))
    return [head, *(f"    {r}" for r in reasons)]


def _expected(plan: Plan) -> list[str]:
    certain = [s for s in plan.steps if s.verdict == "runs"]
    runs = [s for s in plan.steps if s.verdict in ("runs", "maybe")]
    if not runs:
        known = [s for s in plan.steps if s.verdict == "restored"]
        return ["expected: no stage command runs; outputs are linked from the cache"] if known else []
    limits = [s for s in runs if s.seconds_from == "limit"]
    unknown = [s for s in runs if s.seconds_from == "unknown"]
    least = "at least " if unknown else ""
    upper = "at most " if limits else ""
    wall = duration(plan.seconds(["runs", "maybe"], plan.cores))
    cores = f"{plan.cores} core{'s' * (plan.cores > 1)}"
    line = f"expected: {least}{upper}{wall} with snakemake on {cores}"
    line += f", {least}{upper}{duration(sum(s.seconds for s in runs))} with dvc repro"
    if len(certain) < len(runs):
        line += f", if all of them run ({duration(plan.seconds(['runs'], plan.cores))} for those that certainly do)"
    own = [s for s in runs if s.seconds_from == "recorded"]
    means = [s for s in runs if s.seconds_from.startswith("mean")]
    sources = [
        f"{len(own)} by their last run" if own else "",
        f"{len(means)} by the mean of their matrix" if means else "",
        f"{len(limits)} never recorded: upper limits from `minutes` in dvc.yaml" if limits else "",
        f"{len(unknown)} unknown" if unknown else "",
    ]
    lines = [line, f"    time of {len(runs)} stages: {'; '.join(filter(None, sources))}"]
    sized = [s for s in runs if s.bytes is not None]
    total = sum(s.bytes or 0 for s in sized)
    lost = f" for {len(sized)} stages ({len(runs) - len(sized)} of unknown size)" if len(sized) < len(runs) else ""
    lines.append(f"    disk: {size_text(total)} of new outputs{lost}; {size_text(plan.free)} are free here")
    if total > plan.free:
        lines.append(
            f"    TOO LITTLE DISK: free {size_text(total - plan.free)} more, or move the cache (dvc cache dir PATH)"
        )
    return lines


def _left_over(plan: Plan) -> list[str]:
    if not plan.left_over:
        return []
    told = some(plan.left_over, 4)
    return [f"left over from stages that dvc.yaml no longer has (snakemake removes it, the cache keeps it): {told}"]


def duration(seconds: float) -> str:
    """A time for people: ``45 s``, ``3 min 10 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size_text(count: float) -> str:
    """Bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return cut(value, SHORT) or '""'
    return cut(json.dumps(value, ensure_ascii=False, default=str), SHORT)


def _differing(old: str, new: str) -> tuple[str, str]:
    """Two commands without the words they begin and end with in common."""
    a, b = old.split(), new.split()
    head = _alike(a, b)
    tail = _alike(a[head:][::-1], b[head:][::-1])

    def middle(words: list[str]) -> str:
        text = " ".join(words[head : len(words) - tail]) or "(nothing)"
        return f"{'... ' if head else ''}{cut(text, SHORT)}{' ...' if tail else ''}"

    return middle(a), middle(b)


def _alike(a: list[str], b: list[str]) -> int:
    """How many words two lists begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def some(items: Sequence[str], most: int, between: str = ", ", more: str = "") -> str:
    """The first few of many."""
    shown = between.join(items[:most])
    return shown if len(items) <= most else shown + (more or f" and {len(items) - most} more")
