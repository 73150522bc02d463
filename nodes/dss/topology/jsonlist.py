"""Strict JSON arrays of flat objects, with the line and column of every fault.

The standard decoder knows the place of a syntax error, not that of a wrong field; this reader walks
the two fixed levels (array, object) itself and leaves strings and numbers to the standard decoder.
What must not live here: which fields a list has (peers.py, tokens.py), the environment.
"""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar, Final

import msgspec

_SPACE: Final = " \t\r\n"
_DECODER: Final = json.JSONDecoder()
_TYPE_NAMES: Final = {"[": "an array", "{": "an object", '"': "a string"}

Fields = dict[str, tuple[Any, int]]
"""One object: field name -> (value, its place in the text)."""


class Fault(msgspec.Struct, frozen=True):
    """What is wrong at one place of a value; line and column count from 1."""

    line: int
    column: int
    message: str


class Stop(Exception):
    """The text cannot be read any further."""


def show(value: object) -> str:
    """`value` as it may be printed: short, ASCII, on one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


class ListReader:
    """Reads one list; a subclass says what its objects are.

    Attributes:
        fields: the names that every object must have, and no others.
        noun: what one object is, like `node`.
        secret: no value of the text is ever shown.
    """

    fields: ClassVar[tuple[str, ...]]
    noun: ClassVar[str]
    secret: ClassVar[bool] = False

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.faults: list[Fault] = []

    def check(self, name: str, value: Any, at: int) -> None:
        """Report what is wrong with one field."""
        raise NotImplementedError

    def accept(self, fields: Fields) -> None:
        """Take one object whose fields are right; report what is wrong with it as a whole."""
        raise NotImplementedError

    def read(self, *, chars_max: int) -> bool:
        """Read it all; False: it breaks off before its end."""
        if len(self.text) > chars_max:
            self.fault(0, f"expected at most {chars_max} characters, found {len(self.text)}")
            return False
        try:
            self._array()
        except Stop:
            return False
        return True

    def fault(self, at: int, message: str) -> None:
        before = self.text[:at]
        line = before.count("\n") + 1
        self.faults.append(Fault(line, at - (before.rfind("\n") + 1) + 1, message))

    def _stop(self, at: int, message: str) -> Stop:
        self.fault(at, message)
        return Stop()

    def _peek(self) -> str:
        """The next character that is not white space; '' at the end."""
        while self.at < len(self.text) and self.text[self.at] in _SPACE:
            self.at += 1
        return self.text[self.at : self.at + 1]

    def _found(self) -> str:
        """What stands here, for a message."""
        mark = self._peek()
        if mark in _TYPE_NAMES:
            return _TYPE_NAMES[mark]
        if not mark:
            return "the end"
        if self.secret:
            return "something else"
        word = re.match(r"[-+.\w]+", self.text[self.at :])
        return show(word.group()[:40] if word else mark)

    def _array(self) -> None:
        if self._peek() != "[":
            raise self._stop(
                self.at,
                f"expected a JSON array of {self.noun}s, starting with '[', found {self._found()}",
            )
        self.at += 1
        if self._peek() == "]":
            self.at += 1
        else:
            while True:
                self._element()
                mark = self._peek()
                if mark not in (",", "]"):
                    raise self._stop(
                        self.at, f"expected ',' or ']' after the object, found {self._found()}"
                    )
                self.at += 1
                if mark == "]":
                    break
        if self._peek():
            raise self._stop(
                self.at, f"expected nothing after the closing ']', found {self._found()}"
            )

    def _element(self) -> None:
        if self._peek() != "{":
            raise self._stop(
                self.at, f"expected an object {{…}} for a {self.noun}, found {self._found()}"
            )
        start, faults_before = self.at, len(self.faults)
        fields = self._object()
        missing = [name for name in self.fields if name not in fields]
        if missing:
            names = ", ".join(f'"{name}"' for name in missing)
            self.fault(start, f"the object lacks {names}")
        for name, (value, at) in fields.items():
            self.check(name, value, at)
        if len(self.faults) == faults_before:
            self.accept(fields)

    def _object(self) -> Fields:
        """The fields of the object at hand."""
        self.at += 1
        fields: Fields = {}
        if self._peek() == "}":
            self.at += 1
            return fields
        while True:
            if self._peek() != '"':
                raise self._stop(
                    self.at, f"expected a field name in double quotes, found {self._found()}"
                )
            name_at = self.at
            name = self._scalar("a field name")
            shown = show(name)
            if self._peek() != ":":
                raise self._stop(
                    self.at, f"expected ':' after the field name {shown}, found {self._found()}"
                )
            self.at += 1
            self._peek()
            value_at = self.at
            value = self._scalar(f"a value for {shown}")
            if name in fields:
                self.fault(name_at, f"the field {shown} stands twice in the object")
            elif name not in self.fields:
                self.fault(name_at, f"unknown field {shown}: expected {', '.join(self.fields)}")
            else:
                fields[name] = (value, value_at)
            mark = self._peek()
            if mark not in (",", "}"):
                raise self._stop(
                    self.at,
                    f"expected ',' or '}}' after the value of {shown}, found {self._found()}",
                )
            self.at += 1
            if mark == "}":
                return fields

    def _scalar(self, what: str) -> Any:
        mark = self._peek()
        if mark in ("[", "{"):
            raise self._stop(
                self.at, f"expected {what} (a string or a number), found {self._found()}"
            )
        if mark and mark not in '"-0123456789tfn':
            raise self._stop(self.at, f"expected {what}, found {self._found()}")
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            if "escape" in error.msg.lower():
                message = "a string has an invalid escape after '\\'"
            elif error.msg.startswith("Unterminated"):
                message = "the string that starts here has no closing '\"'"
            elif error.msg.startswith("Invalid control"):
                message = "a string has a line break or a control character"
            else:
                message = f"expected {what}, found {self._found()}"
            raise self._stop(error.pos, message) from None
        except ValueError:  # more digits than Python converts
            raise self._stop(self.at, f"expected {what}, found a number that is too long") from None
        return value
