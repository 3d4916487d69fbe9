"""What a text must be before a tokenizer sees it."""

from __future__ import annotations

from fastkernels.errors import UsageError


def check_text(text: str, what: str) -> None:
    """what: the word for it in the message.

    Errors: UsageError for a lone surrogate, which stands for a byte of the command line that is no UTF-8, or comes from
    a JSON escape: it is no Unicode text, and no tokenizer takes it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} holds a lone surrogate (U+{ord(text[error.start]):04X}) at {error.start}; it is no Unicode text. "
            "Give it as UTF-8."
        ) from error
