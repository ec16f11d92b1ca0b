"""Write the golden files beside this script from pycocoevalcap and Java (pip install -e .[java-metrics], Java 8+).

Run as `python -m tests.golden.make_golden`. All sentences are made up here, by hand or by a small grammar.
"""

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from tests.golden.grammar import sentence

FOLDER = Path(__file__).parent


def corpora() -> list[tuple[list[str], list[list[str]]]]:
    """Captions and references: random ones of 1 to 11 images, then the odd ones."""
    source = random.Random(8)
    made: list[tuple[list[str], list[list[str]]]] = []
    for images in [*range(2, 12), *range(2, 12), 1, 60]:
        references = [[sentence(source) for _ in range(source.randint(1, 6))] for _ in range(images)]
        said = [source.choice([sentence(source), source.choice(source.choice(references))]) for _ in range(images)]
        made.append((said, references))
    two = [["a dog runs", "the dog is running fast"], ["a red ball", "one ball on the grass"]]
    odd = [
        ["", "a red ball"],
        ["", ""],
        ["dog", "ball"],
        ["a dog", "a red"],
        ["a dog runs", "a red ball"],
        ["the the the the the the the", "ball ball"],
        ["a dog runs and runs and runs over the grass until the evening comes and then it sleeps", "a red ball"],
        ["quite other words here", "nothing in common at all"],
        ["a dog runs a", "a ball on"],
    ]
    made += [(said, two) for said in odd]
    same = [["a dog runs", "a dog runs"]] * 3
    made.append((["a dog runs"] * 3, same))
    made.append((["a b c d e", "b c d"], [["a b c", "a b c d e f g", "c b a d e"], ["b c", "b c d e"]]))
    made.append((["a dog", ""], [["", "a dog"], ["", "a cat"]]))
    made.append(([""], [["a dog runs"]]))
    return made


def scored(said: list[str], references: list[list[str]]) -> dict[str, Any]:
    known = dict(enumerate(references))
    captions = {image: [text] for image, text in enumerate(said)}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = Bleu(4).compute_score(known, captions)
    _, cider = Cider().compute_score(known, captions)
    rouge, _ = Rouge().compute_score(known, captions)
    return {
        "hypotheses": said,
        "references": references,
        "bleu": list(map(float, bleu)),
        "cider": cider.tolist(),
        "rouge_l": float(rouge),
    }


def split() -> list[tuple[str, list[str]]]:
    texts = (FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines()
    words = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    return [(text, words[number][0].split()) for number, text in enumerate(texts)]


def write(name: str, lines: list[Any]) -> None:
    body = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (FOLDER / name).write_text(f"[\n{body}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    write("scores.json", [scored(*corpus) for corpus in corpora()])
    write("words.json", split())
