"""Forms with files: multipart/form-data (https://www.rfc-editor.org/rfc/rfc7578) of a body that is read already."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message

from fastkernels.server.errors import ApiError

_MOST_PARTS = 64
_MOST_HEADER_BYTES = 8192


@dataclass(frozen=True)
class Part:
    """content: the bytes as they came. filename: None of a field that is no file."""

    content: bytes
    filename: str | None = None

    def text(self, name: str) -> str:
        """Errors: ApiError when it is not UTF-8."""
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            raise ApiError(400, f"{name} is no UTF-8 text: {error.reason} at byte {error.start}.", name) from error


def read_form(content_type: str, body: bytes) -> dict[str, list[Part]]:
    """The parts by name, in order. Errors: ApiError 400 when the body is not such a form."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    if message.get_content_type() != "multipart/form-data" or not boundary:
        raise ApiError(400, "The body must be multipart/form-data with a boundary in Content-Type.")
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(delimiter)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise ApiError(400, "The form ends before its last boundary.")
    if len(pieces) - 2 > _MOST_PARTS:
        raise ApiError(400, f"The form has {len(pieces) - 2} parts; the most is {_MOST_PARTS}.")
    found: dict[str, list[Part]] = {}
    for piece in pieces[1:-1]:
        name, part = _read_part(piece)
        found.setdefault(name, []).append(part)
    return found


def _read_part(piece: bytes) -> tuple[str, Part]:
    head, blank, content = piece.partition(b"\r\n\r\n")
    padding, _, lines = head.partition(b"\r\n")
    if not blank or padding.strip(b" \t") or len(lines) > _MOST_HEADER_BYTES:
        raise ApiError(400, "A part of the form has no head that can be read.")
    message = Message()
    for line in lines.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            message["Content-Disposition"] = value.strip()
    name = message.get_param("name", header="content-disposition")
    if not isinstance(name, str) or not name:
        raise ApiError(400, "A part of the form has no name.")
    return name, Part(content, message.get_filename())
