"""The codes of languages by which models are searched on the Hub.

Its metadata `language` takes codes of ISO 639, two letters where a language has them, and no tags with regions or
scripts: https://huggingface.co/docs/hub/model-cards#model-card-metadata and https://huggingface.co/languages.
"""

import re

SPECIAL = ("multilingual", "code")  # which the Hub takes beside them
TAG = re.compile(r"([a-z]{2,3})((?:-[A-Za-z0-9]{2,8})*)")  # of BCP 47: language, script, region: pt, pt-BR, zh-Hant-TW

# ISO 639-1, each code with its three letters of ISO 639-3.
_PAIRS = """
aa aar ab abk ae ave af afr ak aka am amh an arg ar ara as asm av ava ay aym az aze ba bak be bel bg bul bi bis bm bam
bn ben bo bod br bre bs bos ca cat ce che ch cha co cos cr cre cs ces cu chu cv chv cy cym da dan de deu dv div dz dzo
ee ewe el ell en eng eo epo es spa et est eu eus fa fas ff ful fi fin fj fij fo fao fr fra fy fry ga gle gd gla gl glg
gn grn gu guj gv glv ha hau he heb hi hin ho hmo hr hrv ht hat hu hun hy hye hz her ia ina id ind ie ile ig ibo ii iii
ik ipk io ido is isl it ita iu iku ja jpn jv jav ka kat kg kon ki kik kj kua kk kaz kl kal km khm kn kan ko kor kr kau
ks kas ku kur kv kom kw cor ky kir la lat lb ltz lg lug li lim ln lin lo lao lt lit lu lub lv lav mg mlg mh mah mi mri
mk mkd ml mal mn mon mr mar ms msa mt mlt my mya na nau nb nob nd nde ne nep ng ndo nl nld nn nno no nor nr nbl nv nav
ny nya oc oci oj oji om orm or ori os oss pa pan pi pli pl pol ps pus pt por qu que rm roh rn run ro ron ru rus rw kin
sa san sc srd sd snd se sme sg sag sh hbs si sin sk slk sl slv sm smo sn sna so som sq sqi sr srp ss ssw st sot su sun
sv swe sw swa ta tam te tel tg tgk th tha ti tir tk tuk tl tgl tn tsn to ton tr tur ts tso tt tat tw twi ty tah ug uig
uk ukr ur urd uz uzb ve ven vi vie vo vol wa wln wo wol xh xho yi yid yo yor za zha zh zho zu zul
"""
# What multilingual models call the largest language of a group that ISO 639-1 has as one (FLORES-200, NLLB).
_MEMBERS = """
ar arb az azj et ekk fa pes kr knc ku kmr lv lvs mg plt mn khk ms zsm ne npi om gaz or ory ps pbt qu quy sq als sw swh
uz uzn yi ydd zh cmn
"""
_NAMES = (_PAIRS + _MEMBERS).split()
SHORT = dict(zip(_NAMES[1::2], _NAMES[::2], strict=True))  # three letters -> two
CODES = frozenset(SHORT.values())


def check_languages(tags: list[str] | None) -> list[str] | None:
    """Refuse what is not the tag of a language.

    Of three letters, of which ISO 639-3 has nearly 8,000, only the form is known here.

    Raises:
        ValueError: naming the first, and what to write.
    """
    for tag in tags or []:
        found = TAG.fullmatch(tag)
        if tag not in SPECIAL and (found is None or (len(found[1]) == 2 and found[1] not in CODES)):
            raise ValueError(
                f"{tag!r} is not the code of a language; write two or three small letters of ISO 639, such as en or "
                "ceb, or a tag of BCP 47, such as pt-BR (list: https://huggingface.co/languages)"
            )
    return tags


def hub_code(tag: str) -> str:
    """Return the code by which the Hub knows a language: pt for pt-BR, en for eng."""
    code = tag.split("-")[0]
    return SHORT.get(code, code)


def known_code(name: str) -> str | None:
    """Return the Hub's code for what may be the name of a language: fr for fr, fr_XX and fra_Latn; None for source."""
    code, _, rest = name.replace("-", "_").partition("_")
    if code in CODES:
        return code
    if re.fullmatch("[a-z]{3}", code) and re.fullmatch("[A-Z][a-z]{3}", rest):  # with its script, so not another word
        return SHORT.get(code, code)
    return None if rest else SHORT.get(code)
