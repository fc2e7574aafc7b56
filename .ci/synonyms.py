"""parnb/presets/wordnet.json.gz: synonyms of frequent words, derived from WordNet 3.0.

`python .ci/synonyms.py FOLDER` writes the file. FOLDER holds WordNet's data files; Debian's package `wordnet-base` has
them in /usr/share/wordnet. Kept are words of small letters that CLIP's tokenizer does not split, and the words that
these are forms of, as far as they have synonyms of one word; the most frequent senses come first. Words that WordNet
calls offensive in one of their senses are no synonyms.
"""

import argparse
import gzip
import json
import re
from collections import defaultdict
from pathlib import Path

import open_clip

from parnb.cleaners.augmentation import FORMS, base_forms

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "parnb" / "presets" / "wordnet.json.gz"
NUMBERS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}  # the parts of speech in keys of senses
SKIPPED = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its
itself they them their theirs themselves what which who whom this that these those am is are was were be been being have
has had having do does did doing a an the and but if or because as until while of at by for with about against between
into through during before after above below to from up down in out on off over under again further then once here there
when where why how all any both each few more most other some such no nor not only own same so than too very s t can
will just don should now
"""  # function words, which EDA does not edit
RUDE = re.compile(
    r"(offensive|obscene|vulgar|insulting|derogatory|disparaging|slur)\b.*\b(terms?|names?|words?|slang)\b"
)
RUDE_WORDS = (
    "bitch blackamoor cripple fuck fucking gimp nigrify retard slut squaw whore".split()
)  # of which WordNet does not say so


def is_plain(word: str) -> bool:
    return re.fullmatch("[a-z]+", word) is not None


def rows(path: Path) -> list[list[str]]:
    "The fields of each line, without those of the licence, which begin with spaces."
    lines = path.read_text(encoding="latin-1").splitlines()
    return [line.split() for line in lines if not line.startswith("  ")]


def read_license(folder: Path) -> str:
    lines = (folder / "data.noun").read_text(encoding="latin-1").splitlines()
    return " ".join(line.split(maxsplit=1)[1].strip() for line in lines if re.match(r"  \d+ \S", line))


def read_sets(folder: Path, part: str) -> dict[str, tuple[list[str], str]]:
    "Key of a set of synonyms -> its words and its gloss."
    found = ((r[0], r[4 : 4 + 2 * int(r[3], 16) : 2], r) for r in rows(folder / f"data.{part}"))
    return {key: ([re.sub(r"\(\w+\)$", "", w) for w in words], " ".join(r[r.index("|") :])) for key, words, r in found}


def synonyms_of(folder: Path) -> dict[str, dict[str, list[str]]]:
    "Part of speech -> word -> its synonyms of one word."
    counts: dict = defaultdict(int)
    for key, number, count in rows(folder / "cntlist.rev"):
        word, rest = key.split("%")
        counts[word, NUMBERS[rest[0]], int(number)] = int(count)
    sets = {part: read_sets(folder, part) for part in FORMS}
    rude = {w for one in sets.values() for words, gloss in one.values() if RUDE.search(gloss) for w in words}.union(
        RUDE_WORDS
    )
    out: dict = {part: {} for part in FORMS}
    for part in FORMS:
        for word, _, count, *rest in rows(folder / f"index.{part}"):
            senses = rest[-int(count) :]
            often = sorted(range(len(senses)), key=lambda k: -counts[word, part, k + 1])
            found = [w for k in often for w in sets[part][senses[k]][0] if is_plain(w) and w != word]
            if is_plain(word) and (found := [w for w in dict.fromkeys(found) if w not in rude]):
                out[part][word] = found
    return out


def frequent_words() -> list[str]:
    "The words that CLIP's tokenizer does not split."
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    words = ("".join(m.split()).removesuffix("</w>") for m in merges if m.endswith("</w>"))
    return [w for w in words if is_plain(w)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    known, kept, irregular = synonyms_of(folder), defaultdict(dict), defaultdict(dict)
    frequent = [w for w in frequent_words() if w not in SKIPPED.split()]
    for part in FORMS:
        forms = {r[0]: r[1] for r in rows(folder / f"{part}.exc")}
        for word in frequent:
            if word in forms and forms[word] in known[part]:
                irregular[part][word] = forms[word]
            for base in base_forms(word, part, forms):
                if base in known[part]:
                    kept[part][base] = " ".join(known[part][base])
    content = dict(license=read_license(folder), skipped=SKIPPED.split(), irregular=irregular, synonyms=kept)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    OUT.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{len(set().union(*kept.values())):,} words in {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
