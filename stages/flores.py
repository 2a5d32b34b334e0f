"""Language codes of FLORES-200, which NLLB models use (``eng_Latn``), and the codes that sessions use (``en``). Pure.

A FLORES code is an ISO 639-3 code and an ISO 15924 script. Sessions name a language by its ISO 639-1 code where there
is one, as Whisper and M2M100 do, else by the three letters. A language in several scripts has the plain code in one of
them, the others say theirs: ``zh`` is ``zho_Hans``, ``zh-Hant`` is ``zho_Hant``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TOKEN = re.compile(r"([a-z]{3})_([A-Z][a-z]{3})")
USUAL_SCRIPTS = {"ace": "Latn", "bjn": "Latn", "knc": "Latn", "min": "Latn", "taq": "Latn"}  # else the first by name

# ISO 639-3 -> 639-1, of the languages of FLORES-200 that have one. Where 639-1 names a group of which FLORES has one
# language (Swahili: swh; Standard Arabic: arb) that one has the code; Norwegian Bokmål is "no", as Whisper calls it.
TABLE = """
afr:af aka:ak als:sq amh:am arb:ar asm:as ayr:ay azj:az bak:ba bam:bm bel:be ben:bn bod:bo bos:bs bul:bg cat:ca
ces:cs cym:cy dan:da deu:de dzo:dz ell:el eng:en epo:eo est:et eus:eu ewe:ee fao:fo fij:fj fin:fi fra:fr fuv:ff
gaz:om gla:gd gle:ga glg:gl grn:gn guj:gu hat:ht hau:ha heb:he hin:hi hrv:hr hun:hu hye:hy ibo:ig ind:id isl:is
ita:it jav:jv jpn:ja kan:kn kas:ks kat:ka kaz:kk khk:mn khm:km kik:ki kin:rw kir:ky kmr:ku knc:kr kon:kg kor:ko
lao:lo lim:li lin:ln lit:lt ltz:lb lug:lg lvs:lv mal:ml mar:mr mkd:mk mlt:mt mri:mi mya:my nld:nl nno:nn nob:no
npi:ne nya:ny oci:oc ory:or pan:pa pbt:ps pes:fa plt:mg pol:pl por:pt quy:qu ron:ro run:rn rus:ru sag:sg san:sa
sin:si slk:sk slv:sl smo:sm sna:sn snd:sd som:so sot:st spa:es srd:sc srp:sr ssw:ss sun:su swe:sv swh:sw tam:ta
tat:tt tel:te tgk:tg tgl:tl tha:th tir:ti tsn:tn tso:ts tuk:tk tur:tr twi:tw uig:ug ukr:uk urd:ur uzn:uz vie:vi
wol:wo xho:xh ydd:yi yor:yo zho:zh zsm:ms zul:zu
"""
SHORT: dict[str, str] = dict(re.findall(r"(\w+):(\w+)", TABLE))


def codes(tokens: Iterable[str]) -> dict[str, str]:
    """Sessions' code -> token, of every FLORES code among these tokens."""
    scripts: dict[str, list[str]] = {}
    for match in filter(None, map(TOKEN.fullmatch, tokens)):
        scripts.setdefault(match[1], []).append(match[2])
    found = {}
    for language, written in scripts.items():
        usual = USUAL_SCRIPTS.get(language, "")
        for script in written:
            is_usual = script == (usual if usual in written else min(written))
            code = SHORT.get(language, language)
            found[code if is_usual else f"{code}-{script}"] = f"{language}_{script}"
    return found
