"""What differs between a record's circumstances and those of now: code, packages, machine, data, config. In words."""

from collections.abc import Mapping
from typing import Any

from mmtrain.run import differences

_SHOWN = 60  # lines of a code's diff


def between(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each thing that differs between two manifests; an empty list where nothing does."""
    lines = []
    if then["code"] != now["code"]:
        lines += _code(then, now)
    lines += _changed("python", {"version": then["python"]}, {"version": now["python"]})
    lines += _changed("package", then["packages"], now["packages"])
    lines += _changed("hardware", then["hardware"], now["hardware"])
    if then["data"] != now["data"]:
        lines.append(f"data: {then['data'][:16]} then, {now['data'][:16]} now")
    bases = {name: base["digest"] for name, base in then["bases"].items()}
    lines += _changed("weights", bases, {name: base["digest"] for name, base in now["bases"].items()})
    if then.get("threads") != now.get("threads"):
        lines.append(f"threads: {then.get('threads')} then, {now.get('threads')} now")
    config = differences(then["config"], now["config"])
    return lines + [f"config {key}: {ours!r} then, {theirs!r} now" for key, (ours, theirs) in config.items()]


def _changed(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = sorted(then.keys() | now.keys())
    return [f"{what} {key}: {then.get(key)} then, {now.get(key)} now" for key in keys if then.get(key) != now.get(key)]


def _code(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Commits, and what a checkout held besides."""
    lines = [f"code: {then['code']} then, {now['code']} now"]
    commits = [git["commit"][:12] if git else "no checkout" for git in (then["git"], now["git"])]
    if commits[0] != commits[1]:
        lines.append(f"commit: {commits[0]} then, {commits[1]} now (`git diff {commits[0]} {commits[1]} -- mmtrain`)")
    for when, git in (("then", then["git"]), ("now", now["git"])):
        if git and git["dirty"]:
            diff = git["diff"].splitlines()
            more = [f"  … {len(diff) - _SHOWN} more lines"] if len(diff) > _SHOWN else []
            lines += [f"changed beside the commit {when}:", *(f"  {line}" for line in diff[:_SHOWN]), *more]
    return lines
