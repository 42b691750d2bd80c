"""Ways to hold what this project expects of the private names of a library against the installed version."""

import ast
import inspect
import textwrap
from collections import Counter


def what_changed(owner: type, name: str, parameters: str) -> str | None:
    """Say how a method is not as expected; None where it is."""
    method = getattr(owner, name, None)
    if method is None:
        return f"{owner.__name__}.{name} is gone"
    now = " ".join(name for name in inspect.signature(method).parameters if name != "self")  # static in some versions
    return None if now == parameters else f"{owner.__name__}.{name} takes {now!r}, not {parameters!r}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def overrides(cls: type, base: type) -> set[str]:
    """Return the methods of `base` that a class defines anew, itself or in its bases of this project."""
    ours = [owner for owner in cls.__mro__ if owner.__module__.startswith("pipeline")]
    methods = {
        name
        for owner in ours
        for name, value in vars(owner).items()
        if inspect.isfunction(value) or isinstance(value, classmethod)
    }
    return {name for name in methods if hasattr(base, name) and not name.startswith("__")}


def record_calls(monkeypatch, cls: type, names: set[str]) -> Counter:
    """Count the calls of methods of a class."""
    calls: Counter = Counter()

    def counted(name: str, method):
        def call(*args, **kwargs):
            calls[name] += 1
            return method(*args, **kwargs)

        return call

    for name in names:
        value = inspect.getattr_static(cls, name)
        method = value.__func__ if isinstance(value, classmethod) else value
        wrapped = counted(name, method)
        monkeypatch.setattr(cls, name, classmethod(wrapped) if isinstance(value, classmethod) else wrapped)
    return calls


def names_in(code) -> set[str]:
    """Return the attributes that a class, function or module reads or sets, and its strings, as getattr takes them."""
    found = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(code)))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found
