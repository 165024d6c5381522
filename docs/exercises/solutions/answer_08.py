"""Tickets: so many people at so much each, and change from a note. Drawn with a seed of its own, each question once."""

import json
import random


def write(path):
    rng, records = random.Random(0), {}
    while len(records) < 400:
        people, price, note = rng.randint(2, 9), rng.randint(2, 12), rng.choice((50, 100, 120, 150))
        name, place = rng.choice(("Ida", "Omar", "Lena", "Piotr")), rng.choice(("museum", "zoo", "swimming pool"))
        question = (
            f"{name} buys {people} tickets for the {place} at {price} dollars each and pays with {note} dollars. "
            "How many dollars come back?"
        )
        cost = people * price
        solution = f"{people} * {price} = {cost}, {note} - {cost} = {note - cost}"
        if cost < note:
            records[question] = {"question": question, "answer": note - cost, "solution": solution}
    path.write_text("".join(json.dumps(record) + "\n" for record in records.values()), encoding="utf-8")
