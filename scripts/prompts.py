"""The prompts that the worker and llama-server are compared on: conversations and texts to be
continued, short and long, in several languages, prose, code and data. Nothing but data.
"""


def said(*turns):
    """A conversation in which user and assistant take turns."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]}


def told(system, *turns):
    """The same after a system message."""
    return {"messages": [{"role": "system", "content": system}, *said(*turns)["messages"]]}


def text(prompt):
    return {"prompt": prompt}


def report(sentences, begin=0):
    """Plain text of so many sentences, no two alike; about 17 tokens each."""
    things = ("The mill", "A ferry", "The old library", "Our garden", "The night train", "A small bakery")
    deeds = ("was closed for", "has been open for", "was painted after", "will be moved in", "was sold after")
    return " ".join(
        f"{things[at % 6]} on street {at} {deeds[at % 5]} {at * 7 % 31 + 2} days, and {at * 3 % 17} people came."
        for at in range(begin, begin + sentences)
    )


QUESTIONS = [
    "What is the capital of France?",
    "Hi",
    "?",
    "Write a short poem about bees.",
    "Explain in two sentences why the sky is blue.",
    "List three fruits and their colours.",
    "Translate 'good morning' into Spanish, German and Italian.",
    "What is 12 times 12? Answer with the number only.",
    "Who wrote Romeo and Juliet, and when?",
    "Count from 1 to 30.",
    "Tell me a story that begins with: Once upon a time, there was a lighthouse.",
    "Give me a recipe for pancakes with exact amounts.",
    "What is the difference between TCP and UDP?",
    "Describe the water cycle to a child of six.",
    "Write a limerick about a cat from Peru.",
    "Repeat this exactly, twice: one two three four five six seven eight nine ten",
    "Was ist die Hauptstadt von Österreich?",
    "Raconte-moi une histoire très courte sur un chat.",
    "¿Cuáles son los colores del arco iris?",
    "Qual è la differenza tra un lago e un mare?",
    "日本の首都はどこですか？",
    "请用一句话介绍北京。",
    "Расскажи о погоде зимой.",
    "ما هي عاصمة مصر؟",
    "भारत की राजधानी क्या है?",
    "🐝🐝🐝 What do these mean? 🍯",
    "Reply with five emoji that mean summer: ☀️",
    "Sort these words: pear, apple, fig, banana, cherry",
    "Is 97 a prime number? Explain step by step.",
    "Name the planets in order of their distance from the sun.",
]

TEXTS = [
    "The",
    "Once upon a time",
    "def fibonacci(n):\n    ",
    "#include <stdio.h>\n\nint main(void) {\n",
    "fn main() {\n    let numbers = vec![1, 2, 3];\n",
    "SELECT name, age FROM people WHERE ",
    '{"name": "Ada", "born": 1815, "works": [',
    "<!DOCTYPE html>\n<html>\n<head>\n  <title>",
    "1, 1, 2, 3, 5, 8, 13, 21,",
    "Der schnelle braune Fuchs",
    "Il était une fois",
    "春眠不觉晓，",
    "Dear Sir or Madam,\n\nI am writing to",
    "| city | people |\n|---|---|\n| Paris | 2,100,000 |\n",
    "To be, or not to be, that is the question:",
    "\n\n\n",
]

PROMPTS = [
    *map(said, QUESTIONS),
    *map(text, TEXTS),
    told("Answer in one word.", "What is the opposite of hot?"),
    told("You are a pirate. Always talk like one.", "How do I boil an egg?"),
    told("Reply in French only.", "What is your favourite season?"),
    told("", "Who are you?"),
    said("My name is Ana.", "Nice to meet you, Ana!", "What is my name?"),
    said("Pick a number.", "7", "Double it.", "14", "And once more."),
    told("Be brief.", "One?", "1", "Two?", "2", "Three?", "3", "Four?"),
    said("```python\nfor i in range(3):\n    print(i)\n```\nWhat does this print?"),
    said("Summarise this in one sentence: " + report(8)),
    said("How many streets are named here? " + report(20)),
    said("Rewrite this text in the present tense: " + report(5, 40)),
    told(report(12, 60), "What was closed?"),
    text(report(25, 100)),
    # Longer than one piece.
    said("Which street had most people? " + report(45, 200)),
    text(report(80, 300)),
    told(report(60, 400), "What is said of the night train?", "It was moved.", "And of the bakery?"),
]
