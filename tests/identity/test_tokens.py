import pytest

from quorate.errors import IdentityRefused
from quorate.identity import Token


def test_a_token_is_read_as_it_was_written() -> None:
    token = Token.draw(bytes(range(32)))
    assert Token.parse(f" {token}\n") == token
    assert len(token.secret) == 32


def test_two_tokens_differ() -> None:
    assert Token.draw(bytes(32)).secret != Token.draw(bytes(32)).secret


@pytest.mark.parametrize(
    "text", ["", "quorate1", "quorate1.a.b", "x.y", "quorate2." + "A" * 43 + "." + "A" * 43]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(IdentityRefused, match="not an enrolment token"):
        Token.parse(text)


def test_a_refusal_does_not_repeat_a_mistyped_token() -> None:
    text = str(Token.draw(bytes(32)))[:-1]
    with pytest.raises(IdentityRefused) as refused:
        Token.parse(text)
    assert text not in str(refused.value)


def test_a_token_does_not_show_in_a_traceback() -> None:
    token = Token.draw(bytes(32))
    assert str(token).split(".")[2] not in repr(token)
