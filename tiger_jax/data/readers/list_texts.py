"""Lists that stand as text in a field: of JSON, Python, NumPy or a database."""

import ast
import itertools
import json
import re
import warnings
from typing import Any

_CLOSED_BY = {"[": "]", "(": ")", "{": "}"}
_COMMA = object()
_NOTHING = ("None", "null", "NULL", "nan", "NaN", "<NA>")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_TOKEN = re.compile(
    r"""\s*(?:([\[({])|([\])}])|(,)|[bu]?("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"""|([^\s,\[\](){}'"]+))""",
    re.DOTALL,
)
# As Python, NumPy, pandas, PyTorch and Spark print them, with a word before.
_ARRAY = re.compile(
    r"\s*(?:array|list|wrappedarray|arrayseq|arraybuffer|set(?=\(\))|\w+(?=\([\[{(]))"
    r"\((.*?)(?:,\s*(?:dtype|name|device|maxlen)=[^\[\]]*)?\)\s*",
    re.DOTALL | re.IGNORECASE,
)
_SCALAR = re.compile(r"\bnp\.\w+\(([^()]*)\)")


def is_list(text: str) -> bool:
    """Whether a text is a list, or was meant as one.

    Examples:
        >>> [is_list(t) for t in ("['A', 'B']", "('A',)", "{A,B}", "['A'", "(A) > (B)")]
        [True, True, True, True, False]
    """
    text = text.strip()
    begins = text[:2] in ("['", '["', "[[") or re.match(r"<\w+Array>", text)
    if begins or _ARRAY.fullmatch(text):
        return True
    if text.startswith("("):
        return bool(re.fullmatch(r"\(\s*(['\"(\[].*|[\d\s.,+-]*)\)", text, re.DOTALL))
    return text[-1:] == _CLOSED_BY.get(text[:1], "no list")


def parse_list(text: str) -> list[Any]:
    """Reads names, or lists of names; what isn't there (None, NaN) is left out.

    NumPy writes no commas, databases no quotes.

    Raises:
        ValueError: It isn't clear where names begin and end, or it holds more than
            names and lists.

    Examples:
        >>> parse_list("['A' 'B']"), parse_list("[27,  9]"), parse_list("{A,B c}")
        (['A', 'B'], ['27', '9'], ['A', 'B c'])
    """
    if array := _ARRAY.fullmatch(text):
        text = array[1] if array[1][:1] in tuple(_CLOSED_BY) else f"[{array[1]}]"
    if not re.search("['\"]", text):  # of a web page, or of a word processor
        text = re.sub("&(?:quot|#34|#x22);|[“”„]", '"', text)
        text = re.sub("&(?:apos|#39|#x27);", "'", text)
    if re.match(r"[\[({]+np\.", text):
        text = _SCALAR.sub(r"\1", text)
    try:
        value = json.loads(text)
    except ValueError:
        value = _parse(text.strip())
    if value == {}:  # a database's
        value = []
    if not isinstance(value, list):
        raise ValueError("it is no list")
    return _names(value)


def _names(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if isinstance(value, dict):
            raise ValueError("it holds more than names")
        if isinstance(value, list):
            found.append(_names(value))
        elif isinstance(value, str):
            found.append(value)
        elif value is not None and value == value:  # no NaN
            found.append(json.dumps(value))
    return found


def _parse(text: str) -> list[Any]:
    """Reads a bracketed list that fills the text."""
    opened: list[tuple[str, list[Any]]] = []
    place = 0
    while token := _TOKEN.match(text, place):
        place = token.end()
        start, end, comma, quoted, bare = token.groups()
        if start:
            opened.append((_CLOSED_BY[start], []))
        elif not opened:
            break
        elif end:
            closed_by, parts = opened.pop()
            if end != closed_by:
                break
            if opened:
                opened[-1][1].append(_split(parts, closed_by))
            elif place == len(text):
                return _split(parts, closed_by)
        else:
            opened[-1][1].append(
                _COMMA if comma else _Bare(bare) if bare else _unquote(quoted)
            )
    raise ValueError("no whole list")


class _Bare(str):
    """A word that stands without quotes."""


def _split(parts: list[Any], closed_by: str) -> list[Any]:
    """The names between commas, of which NumPy writes none."""
    found: list[Any] = []
    has_commas = _COMMA in parts
    bare = [p for p in parts if isinstance(p, _Bare) and p not in _NOTHING]
    has_words = not all(map(_NUMBER.fullmatch, bare))
    has_quotes = any(type(part) is str for part in parts)
    if has_words and has_quotes and closed_by != "}":  # a database's may stand bare
        raise ValueError("a name lacks its quotes")
    for is_comma, group in itertools.groupby(parts, lambda part: part is _COMMA):
        names = list(group)
        bare = [name for name in names if isinstance(name, _Bare)]
        if is_comma:
            continue
        if "..." in bare or (bare and len(bare) < len(names)):
            raise ValueError("no names")
        if len(bare) > 1 and not all(map(_NUMBER.fullmatch, bare)):
            if not has_commas:
                raise ValueError("no telling where a name ends")
            names = [" ".join(bare)]
        found += [name for name in names if not (bare and name in _NOTHING)]
    return [str(name) if isinstance(name, _Bare) else name for name in found]


def _unquote(text: str) -> str:
    if "\\" not in text:
        return text[1:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" means itself
        return str(ast.literal_eval(text))
