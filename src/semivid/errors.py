"""The one exception that users are meant to see, and how to word it."""


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, and what to do.

    Stages print it without a traceback (unless ``--debug`` is given) and exit with code 2.
    """


def raise_all(faults: list[str]) -> None:
    """UserError of one line per fault; nothing if there are none."""
    if faults:
        raise UserError("\n".join(faults))


def shown(name: object) -> str:
    """A path or name as text of one line: line breaks, control characters and broken UTF-8 as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def explain_yaml(error: Exception) -> str:
    """What a YAML reader found wrong in a text, and where, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
    expected = [c for c in [getattr(error, "context", None)] if c and c.startswith("expected")]
    return f"line {mark.line + 1}, column {mark.column + 1}: {', '.join([*expected, problem])}"
