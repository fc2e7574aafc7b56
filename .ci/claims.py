"""Freeze the rules of parnb/presets/claims.json: `python .ci/claims.py`, with `--check` it fails if one is not frozen.

Each claim has an entry `frozen`: the key of its rule, the hash of the protocol if it is judged under it, that of the
later rows if it judges one, and the day on which any of them changed last. This writes them into changed claims.
"""

import argparse
import datetime
import json
import re
import sys
from pathlib import Path

from parnb.study.claims import frozen_keys
from parnb.study.protocol import later_hashes, protocol_hash

PATH = Path(__file__).resolve().parents[1] / "parnb" / "presets" / "claims.json"
ENTRY = re.compile(r'^( *)"name": "(\w+)",\n(?: *"frozen": .*\n)?', re.M)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a rule is not frozen")
    check, text = parser.parse_args().check, PATH.read_text(encoding="utf-8")
    today, hashes, changed = datetime.date.today().isoformat(), (protocol_hash(), later_hashes()), {}
    for claim in json.loads(text)["claims"]:
        now = frozen_keys(claim, *hashes)
        if {k: v for k, v in claim.get("frozen", {}).items() if k != "date"} != now:
            changed[claim["name"]] = json.dumps(dict(date=today) | now)
    if not changed:
        return 0
    if check:
        sys.exit(f"not as it was frozen: {', '.join(changed)}: run `python .ci/claims.py` and commit the result")

    def entry(m: re.Match) -> str:
        return f'{m[1]}"name": "{m[2]}",\n{m[1]}"frozen": {changed[m[2]]},\n' if m[2] in changed else m[0]

    PATH.write_text(ENTRY.sub(entry, text), encoding="utf-8")
    print(f"frozen on {today}: {', '.join(changed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
