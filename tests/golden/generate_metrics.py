"""What tests/metrics.rs expects of src/tasks/metrics: values of scikit-learn, scipy and seqeval, and of the rules of
SQuAD's evaluation scripts.

    python tests/golden/generate_metrics.py OUT_DIR          # OUT_DIR = tests rewrites the committed file

Needs scikit-learn, scipy and seqeval; the committed file was made with scikit-learn 1.9.1, scipy 1.17.1, seqeval 1.2.2,
numpy 2.4.6. It writes

  OUT_DIR/golden/metrics.json

a list of cases for each metric, with inputs and the expected names and values (null: NaN). Where a library refuses an
input (nothing at all), the value is what src/tasks/metrics says of it: 0 for ratios, NaN for means and correlations.
"""
import collections
import json
import math
import re
import string
import sys
import warnings
from pathlib import Path

import numpy as np
from scipy import stats
from seqeval import metrics as seqeval
from sklearn import metrics as sk

warnings.filterwarnings("ignore")
rng = np.random.default_rng(7)


def numbers(values):
    return [float(np.float32(v)) for v in values]


def classification():
    def case(classes, labels, predicted):
        p, l = np.array(predicted, dtype=int), np.array(labels, dtype=int)
        if len(l):
            expected = {
                "accuracy": sk.accuracy_score(l, p),
                "f1_macro": sk.f1_score(l, p, average="macro"),
                "f1_micro": sk.f1_score(l, p, average="micro"),
                "matthews_correlation": sk.matthews_corrcoef(l, p),
            }
            if classes == 2:
                expected |= {"precision": sk.precision_score(l, p), "recall": sk.recall_score(l, p), "f1": sk.f1_score(l, p)}
        else:
            expected = dict.fromkeys(["accuracy", "f1_macro", "f1_micro", "matthews_correlation"], 0.0)
            expected |= dict.fromkeys(["precision", "recall", "f1"] if classes == 2 else [], 0.0)
        return {"classes": classes, "labels": l.tolist(), "predicted": p.tolist(), "expected": expected}

    cases = []
    for classes, n in [(2, 1), (2, 9), (2, 40), (3, 5), (3, 40), (5, 17), (9, 12), (9, 60)]:
        labels = rng.integers(classes, size=n)
        wrong = rng.random(n) < 0.4
        cases.append(case(classes, labels, np.where(wrong, rng.integers(classes, size=n), labels)))
    return cases + [
        case(2, [], []),
        case(3, [], []),
        case(2, [0, 0, 0], [0, 0, 0]),
        case(2, [1, 1, 1], [1, 1, 1]),
        case(2, [0, 0, 1], [0, 0, 0]),
        case(2, [0, 0, 0], [1, 1, 1]),
        case(4, [2, 2, 2], [2, 2, 2]),
        case(4, [0, 1, 3, 1], [1, 0, 1, 3]),
        case(5, [1, 1, 4, 4], [1, 4, 4, 4]),
        case(2, [0, 1, 0, 1], [1, 0, 1, 0]),
    ]


def multilabel():
    def case(classes, logits, labels):
        logits, labels = np.array(logits, dtype=np.float32), np.array(labels, dtype=int).reshape(-1, classes)
        p = (logits.reshape(-1, classes) > 0).astype(int)
        expected = dict.fromkeys(["f1_micro", "f1_macro", "subset_accuracy"], 0.0)
        if len(labels):
            # A matrix of one column is no indicator matrix for scikit-learn; with a column of nothing, which counts 0
            # for the macro average, it is.
            wide = [np.pad(m, ((0, 0), (0, int(classes == 1)))) for m in (labels, p)]
            expected = {
                "f1_micro": sk.f1_score(*wide, average="micro"),
                "f1_macro": sk.f1_score(*wide, average="macro") * wide[0].shape[1] / classes,
                "subset_accuracy": sk.accuracy_score(*wide),
            }
        return {"classes": classes, "logits": numbers(logits.ravel()), "labels": labels.ravel().tolist(), "expected": expected}

    cases = []
    for classes, n in [(1, 8), (2, 6), (3, 10), (6, 12)]:
        labels = rng.integers(2, size=(n, classes))
        cases.append(case(classes, np.round(rng.normal(size=(n, classes)) + 1.6 * labels - 0.8, 3), labels))
    return cases + [
        case(3, [], []),
        case(2, [0.0, 0.0, 1e-30, -1e-30], [0, 1, 1, 0]),  # 0 is not above 0
        case(3, [1, -1, -1, 2, -1, -1], [1, 0, 0, 1, 0, 0]),  # classes that never occur
        case(2, [-1, -1, -1, -1], [0, 0, 0, 0]),
        case(2, [-1, -1, -1, -1], [1, 1, 1, 1]),
    ]


def regression():
    def case(labels, predicted):
        l, p = np.array(numbers(labels)), np.array(numbers(predicted))
        expected = dict.fromkeys(["mse", "mae", "pearson", "spearmanr"], math.nan)
        if len(l):
            expected |= {"mse": sk.mean_squared_error(l, p), "mae": sk.mean_absolute_error(l, p)}
        if len(l) > 1:
            expected |= {"pearson": stats.pearsonr(p, l).statistic, "spearmanr": stats.spearmanr(p, l).statistic}
        return {"labels": l.tolist(), "predicted": p.tolist(), "expected": expected}

    cases = []
    for n in [2, 3, 10, 40]:
        labels = np.round(rng.normal(size=n) * 3, 3)
        cases.append(case(labels, np.round(labels + rng.normal(size=n), 3)))
    return cases + [
        case([], []),
        case([1.0], [2.0]),
        case(rng.integers(4, size=25), rng.integers(4, size=25)),  # ties in both
        case([0, 0, 1, 1, 2, 2, 5], [1, 1, 1, 2, 2, 2, 2]),
        case([0.0, -0.0, 1.0, -1.0], [3.0, 1.0, 2.0, -2.0]),  # zeros of either sign tie
        case([0.1] * 3, [1, 2, 3]),  # equal labels
        case([1, 2, 3], [0.1] * 3),
        case([1, 2, 3, 4], [10, 20, 30, 41]),
        case([1, 2, 3, 4], [4, 3, 2, 1]),
        case([16777216.0, 16777218.0, 16777220.0, 16777216.0], [1, 2, 4, 1]),  # far from 0
    ]


SCHEMES = {
    "IOB": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "IOBES": ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC"],
    "IOE": ["O", "I-PER", "E-PER", "I-LOC", "E-LOC"],
    "I only": ["I-PER", "O", "I-LOC", "I-MISC"],
    "names": ["PER", "LOC", "MISC", "none"],
    "names that are tags": ["ORG", "EVENT", "STATE", "BUILDING", "INST", "PER"],
    "odd": ["O", "B", "I", "X", ".", "B-", "I-A-B", "B-A-B", "LER", "PER", "é-ü", "X-", "Y"],
}


def entities():
    def case(names, sequences):
        """Sequences of (label, predicted), where label -100 is left out."""
        true, predicted = [], []
        for sequence in sequences:
            kept = [(l, p) for l, p in sequence if l != -100]
            true.append([names[l] for l, _ in kept])
            predicted.append([names[p] for _, p in kept])
        right = [a == b for t, p in zip(true, predicted) for a, b in zip(t, p)]
        expected = dict.fromkeys(["precision", "recall", "f1"], 0.0) | {"accuracy": float(np.mean(right)) if right else 0.0}
        if true:
            for name in ["precision", "recall", "f1"]:
                expected[name] = float(getattr(seqeval, f"{name}_score")(true, predicted))
        return {
            "names": names,
            "labels": [[l for l, _ in s] for s in sequences],
            "predicted": [[p for _, p in s] for s in sequences],
            "expected": expected,
        }

    cases = []
    for names in SCHEMES.values():
        for count in [1, 2, 5]:
            sequences = []
            for _ in range(count):
                n = int(rng.integers(1, 14))
                # Labels stay for a while, as entities do.
                labels = np.repeat(rng.integers(len(names), size=n), rng.integers(1, 3, size=n))[:n]
                wrong = rng.random(n) < 0.3
                predicted = np.where(wrong, rng.integers(len(names), size=n), labels)
                labels = np.where(rng.random(n) < 0.1, -100, labels)
                sequences.append(list(zip(labels.tolist(), predicted.tolist())))
            cases.append(case(names, sequences))
    iob = SCHEMES["IOB"]
    return cases + [
        case(iob, []),
        case(iob, [[], [(0, 0)], []]),
        case(iob, [[(-100, 3), (-100, 1)]]),
        case(iob, [[(1, 1), (2, 2)], [(2, 2), (0, 0)]]),  # an entity does not go on in the next sequence
        case(iob, [[(1, 2), (2, 2), (2, 1)]]),
        case(iob, [[(0, 0), (0, 0)]]),
        case(iob, [[(0, 1), (0, 0)]]),
        case(["X", "Y"], [[(0, 0), (1, 0)], [(0, 0), (0, 1)], [(1, 1)]]),  # letters alone
    ]


# The rules of evaluate-v1.1.py and evaluate-v2.0.py.


def normalize_answer(s):
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())


def f1_of(gold, predicted, v2):
    gold, predicted = normalize_answer(gold).split(), normalize_answer(predicted).split()
    if v2 and (not gold or not predicted):
        return float(gold == predicted)
    same = sum((collections.Counter(gold) & collections.Counter(predicted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def answers():
    def scores(v2, questions):
        scores = []
        for predicted, golds in questions:
            kept = golds
            if v2:
                kept = [g for g in golds if normalize_answer(g)] or [""]
            exact = max(float(normalize_answer(g) == normalize_answer(predicted)) for g in kept)
            scores.append((exact, max(f1_of(g, predicted, v2) for g in kept), bool(golds)))

        def mean(i, of):
            return 100.0 * sum(s[i] for s in of) / len(of) if of else 0.0

        if not v2:
            return {"exact_match": mean(0, scores), "f1": mean(1, scores)}
        values = {"exact": mean(0, scores), "f1": mean(1, scores)}
        for name, has in [("HasAns", True), ("NoAns", False)]:
            of = [s for s in scores if s[2] == has]
            if of:
                values |= {f"{name}_exact": mean(0, of), f"{name}_f1": mean(1, of)}
        return values

    def case(questions):
        """Questions without an answer are for 2.0 only."""
        v1 = scores(False, questions) if all(golds for _, golds in questions) else {}
        return {"questions": [[p, g] for p, g in questions], "v1": v1, "v2": scores(True, questions)}

    texts = [
        "The Eiffel Tower", "eiffel tower", "an  apple, a day", "apple day", "Apple's day!", "a", "the", "theatre", "",
        "the-theatre", "A1 the_end", "St. John's (the) Baptist", "ÀÉ the Straße", "in\x1fthe\u00a0\u3000end", "in end",
        "a\u0301 b", "\u0301 b", "b", "x x y", "x y y", "ΟΔΟΣ the", "οδος", "10,000 €", "10000 €", "a² b", "a a an the b", "—the—",
        "the\u093e x", "...",
    ]
    # Each text against each.
    cases = [case([(a, [b]) for b in texts]) for a in texts]
    for fewest, n in [(0, 1), (0, 5), (0, 12), (1, 1), (1, 5), (1, 12)]:
        pick = lambda: texts[int(rng.integers(len(texts)))]
        few = lambda: [pick() for _ in range(int(rng.integers(fewest, 4)))]
        cases.append(case([(pick(), few()) for _ in range(n)]))
    return cases + [
        case([]),
        case([("", []), ("x", []), ("", ["x"]), ("x", ["x"]), ("the", []), ("", ["the"]), ("an", ["the"])]),
        case([("", []), ("", [])]),
        case([("", ["the", "x"]), ("x", ["the", "x y", "x z w"])]),
    ]


def language():
    def case(batches):
        loss, tokens, right = (sum(b[i] for b in batches) for i in range(3))
        expected = {"perplexity": math.nan, "accuracy": 0.0}
        if tokens:
            expected = {"perplexity": math.exp(loss / tokens), "accuracy": right / tokens}
        return {"batches": batches, "expected": expected}

    draw = lambda: [float(rng.random() * 300), int(rng.integers(50, 100)), int(rng.integers(50))]
    return [case([draw() for _ in range(n)]) for n in [0, 1, 2, 5]] + [case([[0.0, 4, 4]]), case([[0.0, 0, 0]])]


def main(out):
    golden = {f.__name__: f() for f in [classification, multilabel, regression, entities, answers, language]}

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, (float, np.floating)):
            return None if math.isnan(value) else float(value)
        return value

    lines = []
    for name, cases in plain(golden).items():
        rows = ",\n".join("  " + json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
        lines.append(f'"{name}": [\n{rows}\n]')
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    json.loads(text)
    (Path(out) / "golden" / "metrics.json").write_text(text)
    print({name: len(cases) for name, cases in golden.items()}, len(text), "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
