"""Messages that advise a setting print the flag to copy."""

import ast
import re
from pathlib import Path

import tiger_jax

ROOMS = Path(tiger_jax.__file__).parent
# A binding as gin has it, or an order to set something, in place of the flag.
ADVICE = re.compile(
    r"\b[a-z_]+\.[A-Za-z_.]+ = |[: ]set [a-z_]+\.[A-Za-z]|(lower|larger|smaller) "
    r"[a-z_]+\.[A-Z]"
)


def messages(path):
    """The texts of what a module raises or says, each with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_message = isinstance(node, ast.Raise) or (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") in ("say", "InputError")
        )
        for part in ast.walk(node) if is_message else ():
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.lineno, part.value


def test_settings_are_advised_by_the_flag_to_copy():
    found = [
        f"{path.relative_to(ROOMS)}:{line}: {text}"
        for path in ROOMS.rglob("*.py")
        for line, text in messages(path)
        if ADVICE.search(text)
    ]
    assert not found
