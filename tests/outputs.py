"Whether the outputs that a notebook keeps are still those that its code gives."

import re
from difflib import SequenceMatcher

STYLE = re.compile(r"<style.*?</style>|<[^>]*>", re.S)
NUMBER = re.compile(r"[-−]?(?:\b[0-9a-f]{12}\b|\d[\d,.]*(?:e[-+]?\d+)?)")  # also the names of artifacts
ALIKE = 0.8  # of the words: another processor may find another class, or another image more


def words(outputs: list[dict], exact: bool = False) -> list[str]:
    """What outputs show: words, a sign for each number, since they depend on the machine, and one for each picture.
    Exactly: also the numbers.

    Warnings are left out: other versions of Python and of libraries give others."""
    found = []
    for output in (o for o in outputs if o.get("name") != "stderr"):
        data = output.get("data", {"text/plain": output.get("text", "")})
        pictures = [f"({kind})" for kind in data if kind.startswith("image/")]
        text = "".join(data.get("text/html") or data.get("text/markdown") or data.get("text/plain") or "")
        text = STYLE.sub(" ", text)
        found += pictures or (text if exact else NUMBER.sub("#", text)).split()
    return found


def stale(kept: list[dict], made: list[dict], exact: bool = False) -> bool:
    "Whether a cell keeps other outputs than its code gives. Exactly: of released results, on any machine."
    if exact:
        return words(kept, exact) != words(made, exact)
    return SequenceMatcher(None, words(kept), words(made), autojunk=False).ratio() < ALIKE
