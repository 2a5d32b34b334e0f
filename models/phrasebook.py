"""The phrase book of the demo models: a traveller's sentences in four languages, and ways in which they get damaged.

A sentence is a template and what fills its slots; the same template and fillers give the same sentence in every
language, so any two languages are a parallel corpus. Fillers carry the forms a language needs (German articles bend),
so every sentence is correct as it stands. About 660 sentences, some 130 words a language.

A fixed part of each template's combinations is **held out**: no model sees them in training, and scores on them say
whether a model has learned the language of the book or only its sentences. Sentences without slots cannot be held out.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

LANGUAGES = ("en", "de", "es", "zh")
HELD_OUT_SHARE = 0.15

# ---------------------------------------------------------------- what fills the slots: forms by language

Forms = dict[str, dict[str, str]]  # language -> form -> text


def _same(en: str, de: str, es: str, zh: str) -> Forms:
    return {"en": {"": en}, "de": {"": de}, "es": {"": es}, "zh": {"": zh}}


def _place(en: str, de: tuple[str, str, str], es: tuple[str, str], zh: str) -> Forms:
    """German: nominative, accusative, dative. Spanish: with its article, and after "de"."""
    return {
        "en": {"": en, "acc": en, "dat": en},
        "de": {"": de[0], "acc": de[1], "dat": de[2]},
        "es": {"": es[0], "acc": es[0], "dat": es[1]},
        "zh": {"": zh, "acc": zh, "dat": zh},
    }


def _person(en: str, de: tuple[str, str], es: tuple[str, str], zh: str) -> Forms:
    """German: nominative, accusative. Spanish: as subject, and after "a"."""
    return {
        "en": {"": en, "acc": en},
        "de": {"": de[0], "acc": de[1]},
        "es": {"": es[0], "acc": es[1]},
        "zh": {"": zh, "acc": zh},
    }


PLACES = [
    _place("the station", ("der Bahnhof", "den Bahnhof", "dem Bahnhof"), ("la estación", "de la estación"), "火车站"),
    _place("the hotel", ("das Hotel", "das Hotel", "dem Hotel"), ("el hotel", "del hotel"), "酒店"),
    _place("the airport", ("der Flughafen", "den Flughafen", "dem Flughafen"), ("el aeropuerto", "del aeropuerto"),
           "机场"),
    _place("the bank", ("die Bank", "die Bank", "der Bank"), ("el banco", "del banco"), "银行"),
    _place("the museum", ("das Museum", "das Museum", "dem Museum"), ("el museo", "del museo"), "博物馆"),
    _place("the pharmacy", ("die Apotheke", "die Apotheke", "der Apotheke"), ("la farmacia", "de la farmacia"), "药店"),
    _place("the market", ("der Markt", "den Markt", "dem Markt"), ("el mercado", "del mercado"), "市场"),
    _place("the hospital", ("das Krankenhaus", "das Krankenhaus", "dem Krankenhaus"), ("el hospital", "del hospital"),
           "医院"),
]  # fmt: skip
PERSONS = [
    _person("my brother", ("mein Bruder", "meinen Bruder"), ("mi hermano", "a mi hermano"), "我哥哥"),
    _person("my sister", ("meine Schwester", "meine Schwester"), ("mi hermana", "a mi hermana"), "我姐姐"),
    _person("my friend", ("mein Freund", "meinen Freund"), ("mi amigo", "a mi amigo"), "我朋友"),
    _person("the doctor", ("der Arzt", "den Arzt"), ("el médico", "al médico"), "医生"),
    _person("the teacher", ("der Lehrer", "den Lehrer"), ("el profesor", "al profesor"), "老师"),
    _person("the driver", ("der Fahrer", "den Fahrer"), ("el conductor", "al conductor"), "司机"),
]
ITEMS = [
    _same("a coffee", "einen Kaffee", "un café", "一杯咖啡"),
    _same("a cup of tea", "eine Tasse Tee", "una taza de té", "一杯茶"),
    _same("a glass of water", "ein Glas Wasser", "un vaso de agua", "一杯水"),
    _same("a soup", "eine Suppe", "una sopa", "一碗汤"),
    _same("a salad", "einen Salat", "una ensalada", "一份沙拉"),
    _same("a pizza", "eine Pizza", "una pizza", "一份比萨饼"),
    _same("an apple", "einen Apfel", "una manzana", "一个苹果"),
    _same("some bread", "etwas Brot", "un poco de pan", "一些面包"),
]
VEHICLES = [
    _same("the train", "der Zug", "el tren", "火车"),
    _same("the bus", "der Bus", "el autobús", "公共汽车"),
    _same("the plane", "das Flugzeug", "el avión", "飞机"),
    _same("the ship", "das Schiff", "el barco", "船"),
]
CITIES = [
    _same("Berlin", "Berlin", "Berlín", "柏林"),
    _same("Madrid", "Madrid", "Madrid", "马德里"),
    _same("Paris", "Paris", "París", "巴黎"),
    _same("London", "London", "Londres", "伦敦"),
    _same("Beijing", "Peking", "Pekín", "北京"),
    _same("Shanghai", "Schanghai", "Shanghái", "上海"),
]
NUMBERS = [
    _same("two", "zwei", "dos", "两"),
    _same("three", "drei", "tres", "三"),
    _same("four", "vier", "cuatro", "四"),
    _same("five", "fünf", "cinco", "五"),
    _same("six", "sechs", "seis", "六"),
    _same("seven", "sieben", "siete", "七"),
    _same("eight", "acht", "ocho", "八"),
    _same("nine", "neun", "nueve", "九"),
    _same("ten", "zehn", "diez", "十"),
]
DAYS = [
    _same("Monday", "Montag", "lunes", "星期一"),
    _same("Tuesday", "Dienstag", "martes", "星期二"),
    _same("Wednesday", "Mittwoch", "miércoles", "星期三"),
    _same("Thursday", "Donnerstag", "jueves", "星期四"),
    _same("Friday", "Freitag", "viernes", "星期五"),
    _same("Saturday", "Samstag", "sábado", "星期六"),
    _same("Sunday", "Sonntag", "domingo", "星期日"),
]
FILLERS = {
    "place": PLACES, "person": PERSONS, "item": ITEMS, "vehicle": VEHICLES, "city": CITIES, "n": NUMBERS, "day": DAYS,
}  # fmt: skip

# ---------------------------------------------------------------- templates: {slot} or {slot:form}

TEMPLATES: list[dict[str, str]] = [
    {"en": "Where is {place}?", "de": "Wo ist {place}?", "es": "¿Dónde está {place}?", "zh": "{place}在哪里？"},
    {"en": "I am looking for {place}.", "de": "Ich suche {place:acc}.", "es": "Busco {place:acc}.",
     "zh": "我在找{place}。"},
    {"en": "{place} opens at {n} o'clock.", "de": "{place} öffnet um {n} Uhr.", "es": "{place} abre a las {n}.",
     "zh": "{place}{n}点开门。"},
    {"en": "{place} is closed on {day}.", "de": "{place} ist am {day} geschlossen.", "es": "{place} cierra el {day}.",
     "zh": "{place}{day}不开门。"},
    {"en": "{vehicle} to {city} leaves at {n} o'clock.", "de": "{vehicle} nach {city} geht um {n} Uhr.",
     "es": "{vehicle} a {city} sale a las {n}.", "zh": "去{city}的{vehicle}{n}点出发。"},
    {"en": "I would like {item}, please.", "de": "Ich hätte gern {item}, bitte.", "es": "Quisiera {item}, por favor.",
     "zh": "我想要{item}，谢谢。"},
    {"en": "{person} would like {item}.", "de": "{person} möchte {item}.", "es": "{person} quiere {item}.",
     "zh": "{person}想要{item}。"},
    {"en": "How much does a ticket to {city} cost?", "de": "Was kostet eine Fahrkarte nach {city}?",
     "es": "¿Cuánto cuesta un billete a {city}?", "zh": "去{city}的票多少钱？"},
    {"en": "We need a room for {n} nights.", "de": "Wir brauchen ein Zimmer für {n} Nächte.",
     "es": "Necesitamos una habitación para {n} noches.", "zh": "我们需要一个房间住{n}个晚上。"},
    {"en": "{person} is waiting in front of {place}.", "de": "{person} wartet vor {place:dat}.",
     "es": "{person} espera delante {place:dat}.", "zh": "{person}在{place}前面等。"},
    {"en": "{place} is {n} minutes from here.", "de": "{place} ist {n} Minuten von hier.",
     "es": "{place} está a {n} minutos de aquí.", "zh": "{place}离这里{n}分钟。"},
    {"en": "{person} arrives on {day}.", "de": "{person} kommt am {day} an.", "es": "{person} llega el {day}.",
     "zh": "{person}{day}到。"},
    {"en": "On {day} I am going to {city}.", "de": "Am {day} fahre ich nach {city}.", "es": "El {day} voy a {city}.",
     "zh": "{day}我去{city}。"},
    {"en": "Please call {person}.", "de": "Bitte rufen Sie {person:acc}.", "es": "Por favor, llame {person:acc}.",
     "zh": "请叫{person}。"},
    {"en": "Good morning.", "de": "Guten Morgen.", "es": "Buenos días.", "zh": "早上好。"},
    {"en": "Good evening.", "de": "Guten Abend.", "es": "Buenas tardes.", "zh": "晚上好。"},
    {"en": "Good night.", "de": "Gute Nacht.", "es": "Buenas noches.", "zh": "晚安。"},
    {"en": "Thank you very much.", "de": "Vielen Dank.", "es": "Muchas gracias.", "zh": "非常感谢。"},
    {"en": "I do not understand.", "de": "Ich verstehe nicht.", "es": "No entiendo.", "zh": "我不明白。"},
    {"en": "Please speak slowly.", "de": "Bitte sprechen Sie langsam.", "es": "Por favor, hable despacio.",
     "zh": "请说慢一点。"},
    {"en": "Can you help me?", "de": "Können Sie mir helfen?", "es": "¿Puede ayudarme?", "zh": "你能帮我吗？"},
    {"en": "I am sorry.", "de": "Es tut mir leid.", "es": "Lo siento.", "zh": "对不起。"},
    {"en": "Where are you from?", "de": "Woher kommen Sie?", "es": "¿De dónde es usted?", "zh": "你从哪里来？"},
    {"en": "What time is it?", "de": "Wie spät ist es?", "es": "¿Qué hora es?", "zh": "现在几点了？"},
    {"en": "See you tomorrow.", "de": "Bis morgen.", "es": "Hasta mañana.", "zh": "明天见。"},
    {"en": "I have lost my passport.", "de": "Ich habe meinen Pass verloren.", "es": "He perdido mi pasaporte.",
     "zh": "我的护照丢了。"},
    {"en": "The bill, please.", "de": "Die Rechnung, bitte.", "es": "La cuenta, por favor.", "zh": "请结账。"},
    {"en": "Is this table free?", "de": "Ist dieser Tisch frei?", "es": "¿Está libre esta mesa?",
     "zh": "这张桌子有人吗？"},
    {"en": "Have a good trip.", "de": "Gute Reise.", "es": "Buen viaje.", "zh": "一路平安。"},
    {"en": "My suitcase is missing.", "de": "Mein Koffer fehlt.", "es": "Falta mi maleta.", "zh": "我的箱子不见了。"},
]  # fmt: skip

_SLOT = re.compile(r"{(\w+)(?::(\w+))?}")


@dataclass(frozen=True)
class Sentence:
    """One sentence in every language. ``held_out``: no model sees it in training."""

    texts: dict[str, str]
    held_out: bool


def sentences() -> list[Sentence]:
    """The whole book, always in the same order."""
    return list(itertools.chain.from_iterable(map(_expand, TEMPLATES)))


def taught() -> list[Sentence]:
    """What models may be trained on: the book without what it holds out."""
    return [sentence for sentence in sentences() if not sentence.held_out]


def _expand(template: dict[str, str]) -> Iterator[Sentence]:
    slots = [match[0] for match in _SLOT.findall(template["en"])]
    combinations = itertools.product(*(FILLERS[slot] for slot in slots))
    filled = [dict(zip(slots, chosen, strict=True)) for chosen in combinations]
    made = [{language: _fill(template[language], one, language) for language in LANGUAGES} for one in filled]
    kept = sorted(range(len(made)), key=lambda at: _lot(made[at]))[: round(HELD_OUT_SHARE * len(made)) if slots else 0]
    yield from (Sentence(texts, at in kept) for at, texts in enumerate(made))


def _lot(texts: dict[str, str]) -> int:
    """By this the held-out sentences of a template are drawn: a hash that no version of Python changes."""
    return zlib.crc32(texts["en"].encode())


def _fill(template: str, filled: dict[str, Forms], language: str) -> str:
    text = _SLOT.sub(lambda match: filled[match[1]][language][match[2] or ""], template)
    return text[0].upper() + text[1:]


# ---------------------------------------------------------------- damage

HOMOPHONES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {"to": ("two", "too"), "for": ("four", "fore"), "would": ("wood",), "eight": ("ate",), "nights": ("knights",),
           "night": ("knight",), "here": ("hear",), "see": ("sea",), "tea": ("tee",), "bread": ("bred",),
           "plane": ("plain",), "closed": ("clothed",), "need": ("knead",), "not": ("knot",),
           "time": ("thyme",), "two": ("too",)},
    "de": {"ist": ("isst",), "das": ("dass",), "den": ("denn",), "uhr": ("ur",), "tee": ("teh",), "vier": ("fier",),
           "sie": ("sieh",), "geht": ("get",), "wir": ("wier",), "ein": ("einn",), "mir": ("mier",), "wo": ("woh",)},
    "es": {"vaso": ("baso",), "voy": ("boy",), "viaje": ("biaje",), "llega": ("yega",), "llame": ("yame",),
           "hotel": ("otel",),
           "hora": ("ora",), "hospital": ("ospital",), "banco": ("vanco",), "abre": ("habre",), "cierra": ("sierra",),
           "hable": ("able",), "a": ("ha",), "habitación": ("abitación",)},
    "zh": {"在": ("再",), "点": ("典",), "请": ("情",), "想": ("响",), "去": ("趣",), "钱": ("前",), "我": ("握",),
           "到": ("道",),
           "的": ("得",), "见": ("件",), "等": ("灯",)},
}  # fmt: skip
# Words that a listener misses and that the rest of the sentence tells.
DROPPED: dict[str, frozenset[str]] = {
    "en": frozenset({"the", "to", "at", "a", "is", "am", "of", "in", "on", "o'clock", "does"}),
    "de": frozenset({"der", "die", "das", "um", "nach", "ist", "am", "ein", "eine", "uhr", "vor", "sie"}),
    "es": frozenset({"el", "la", "a", "las", "de", "del", "está", "un", "una", "por"}),
    "zh": frozenset({"在", "的", "点", "个"}),
}
PUNCTUATION = ".,?!¿¡。，？！"


def words(text: str, language: str) -> list[str]:
    """The words of a text as they stand in it; of Chinese its characters."""
    return list(text) if language == "zh" else text.split()


def join(parts: list[str], language: str) -> str:
    return ("" if language == "zh" else " ").join(parts)


def damage(text: str, language: str, chance: random.Random) -> str:
    """The sentence as a recogniser might give it: without marks and capitals, a word lost, doubled or misheard.

    What is left always tells what the sentence was: only words that its grammar dictates are lost.
    """
    parts = words(text, language)
    for kind in chance.sample(("plain", "drop", "double", "mishear"), chance.choice((1, 1, 2, 3))):
        parts = _DAMAGES[kind](parts, language, chance)
    return join(parts, language)


def _bare(word: str) -> str:
    return word.strip(PUNCTUATION).lower()


def _plain(parts: list[str], language: str, _: random.Random) -> list[str]:
    """No capitals, no marks."""
    return [bare for word in parts if (bare := _bare(word))]


def _drop(parts: list[str], language: str, chance: random.Random) -> list[str]:
    places = [at for at, word in enumerate(parts) if _bare(word) in DROPPED[language]]
    if not places:
        return parts
    at = chance.choice(places)
    return parts[:at] + parts[at + 1 :]


def _double(parts: list[str], language: str, chance: random.Random) -> list[str]:
    places = [at for at, word in enumerate(parts) if _bare(word)]
    at = chance.choice(places)
    first = _bare(parts[at]) if language != "zh" and at else parts[at].rstrip(PUNCTUATION)
    return [*parts[:at], first, *parts[at:]]


def _mishear(parts: list[str], language: str, chance: random.Random) -> list[str]:
    known = HOMOPHONES[language]
    places = [at for at, word in enumerate(parts) if _bare(word) in known]
    if not places:
        return parts
    at = chance.choice(places)
    word, bare = parts[at], _bare(parts[at])
    heard = chance.choice(known[bare])
    if word[:1].isupper():
        heard = heard.capitalize()
    start = word.lower().index(bare)
    return [*parts[:at], word[:start] + heard + word[start + len(bare) :], *parts[at + 1 :]]


_DAMAGES = {"plain": _plain, "drop": _drop, "double": _double, "mishear": _mishear}
