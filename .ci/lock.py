"""requirements.lock: the exact version of every package that parnb and its development tools need.

`python .ci/lock.py` writes the file from the environment it runs in: install '.[dev]' into a fresh one, run the tests,
then lock what was tested. `python .ci/lock.py --check` fails if the file does not satisfy settings.ini; `--installed`
also compares it with the current environment.
"""

import argparse
import configparser
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
HEADER = """\
# The exact environment in which the tests pass, for Python {python} on {platform}. Install it, then parnb itself:
#
#     pip install -r requirements.lock && pip install -e . --no-deps
#
# torch is locked by its version alone: the CPU build and the CUDA build both satisfy it; the latter pins its libraries.
# Written by `python .ci/lock.py`; `python .ci/lock.py --check` compares it with settings.ini.
"""
# Libraries of a CUDA build of torch, which pins them itself
BY_TORCH = re.compile(r"(nvidia|cuda)-|triton$")
TOOLS = {"pip", "parnb"}


def required() -> list[Requirement]:
    "Every requirement in settings.ini, runtime and development."
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return [Requirement(r) for key in ("requirements", "dev_requirements") for r in shlex.split(config["DEFAULT"][key])]


def resolve(wanted: list[Requirement]) -> dict[str, str]:
    "Name -> installed version of the requirements and of everything that they need."
    found, queue, seen = {}, [(r, "settings.ini") for r in wanted], set()
    while queue:
        need, by = queue.pop()
        name = canonicalize_name(need.name)
        if (key := (name, frozenset(need.extras))) in seen or name in TOOLS or BY_TORCH.match(name):
            continue
        seen.add(key)
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{name} is not installed, and {by} needs it: pip install -e '.[dev]'")
        found[name] = Version(dist.version).public
        for r in map(Requirement, dist.requires or []):
            if any(r.marker is None or r.marker.evaluate({"extra": extra}) for extra in ["", *need.extras]):
                queue.append((r, name))
    return dict(sorted(found.items()))


def read_lock() -> dict[str, str]:
    "Name -> version, as the file has them."
    lines = [line.split("#")[0].strip() for line in LOCK.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==") for line in lines if line)


def problems(locked: dict[str, str]) -> list[str]:
    "What in settings.ini the lock does not satisfy."
    out = []
    for need in required():
        version = locked.get(canonicalize_name(need.name))
        if version is None:
            out.append(f"{need.name} is missing")
        elif not need.specifier.contains(version, prereleases=True):
            out.append(f"{need.name}=={version} does not satisfy settings.ini: {need}")
    return out


def differences(locked: dict[str, str]) -> list[str]:
    "Where the current environment is not the locked one; torch and torchvision may come in the build of this machine."
    there = {canonicalize_name(d.name): Version(d.version).public for d in distributions()}
    names = sorted(n for n in there if n not in TOOLS and not BY_TORCH.match(n))
    return [
        f"{n}=={there[n]} is installed, locked is {locked.get(n, 'no version')}"
        for n in names
        if there[n] != locked.get(n)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if the lock does not satisfy settings.ini"
    )
    parser.add_argument(
        "--installed", action="store_true", help="with --check: fail if the current environment differs"
    )
    args = parser.parse_args()
    if args.installed and not args.check:
        parser.error("--installed belongs to --check")
    if args.check:
        locked = read_lock()
        wrong = problems(locked) + (differences(locked) if args.installed else [])
        sys.exit("requirements.lock:\n" + "\n".join(wrong) if wrong else 0)
    found = resolve(required())
    header = HEADER.format(python=".".join(map(str, sys.version_info[:2])), platform=sys.platform)
    LOCK.write_text(header + "".join(f"{n}=={v}\n" for n, v in found.items()), encoding="utf-8")
    print(f"{len(found)} packages locked")


if __name__ == "__main__":
    main()
