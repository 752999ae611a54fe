"""Only bytes that were sealed here, for this purpose, cookie, session and field, are opened; sealed bytes reveal nothing."""

from __future__ import annotations

import base64
import string
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaman_session._sealing import Keyring, id_of, new_raw_id, token_length

SECRET = "a secret of the tests that is long enough"
OTHER = "another secret of the tests, as long as that"
NAME = "__Host-gaman"
ID = bytes(range(32))
ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
HEX_DIGITS = set("0123456789abcdef")
# The bytes of a token before its random part.
HEAD = 5

keyring = Keyring([SECRET], NAME)


class Kind(Protocol):
    """One of the two kinds of token, for tests that are true of both."""

    def make(self, keys: Keyring, size: int = 32) -> str: ...
    def open(self, keys: Keyring, token: str) -> object: ...


class SealedToken:
    def make(self, keys: Keyring, size: int = 32) -> str:
        return keys.seal_token(b"p" * size)

    def open(self, keys: Keyring, token: str) -> object:
        return keys.open_token(token, bytes)


class SignedId:
    def make(self, keys: Keyring, size: int = 32) -> str:
        return keys.sign_id(ID[:size], False)

    def open(self, keys: Keyring, token: str) -> object:
        return keys.verify_id(token)


both_kinds = pytest.mark.parametrize("kind", [SealedToken(), SignedId()], ids=["token", "id"])


def _decode(token: str) -> bytes:
    return base64.b64decode(token + "=" * (-len(token) % 4))


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).rstrip(b"=").decode()


def _bits_flipped(raw: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


@given(payload=st.binary(max_size=2000))
def test_a_sealed_token_is_opened(payload: bytes) -> None:
    assert keyring.open_token(keyring.seal_token(payload), bytes) == payload


def test_only_valid_tokens_are_cached_and_never_many_more_than_a_thousand() -> None:
    keys = Keyring([SECRET], NAME)
    for payload in (b"%d" % i for i in range(2500)):
        token = keys.seal_token(payload)
        assert [keys.open_token(token, bytes), keys.open_token(token, bytes), keys.open_token(token + "A", bytes)] == [
            payload,
            payload,
            None,
        ]
        assert token in keys._opened
        assert len(keys._opened) <= 1024
    assert set(keys._opened.values()) <= {b"%d" % i for i in range(2500)}


@given(id=st.binary(min_size=1, max_size=64), transient=st.booleans())
def test_a_signed_id_is_verified(id: bytes, transient: bool) -> None:
    assert keyring.verify_id(keyring.sign_id(id, transient)) == (id, transient)


@given(field=st.text(st.characters(exclude_categories=["Cs"])), data=st.binary(max_size=2000))
def test_a_sealed_value_is_opened_under_its_field(field: str, data: bytes) -> None:
    values = keyring.values(ID)
    assert keyring.values(ID).open(field, values.seal(field, data)) == data


def test_two_seals_of_the_same_bytes_have_nothing_in_common_but_the_head() -> None:
    first, second = (_decode(keyring.seal_token(b"the same")) for _ in range(2))
    assert first[:HEAD] == second[:HEAD]
    assert first[HEAD:] != second[HEAD:]
    values = keyring.values(ID)
    assert values.seal("field", b"the same") != values.seal("field", b"the same")


@both_kinds
@pytest.mark.parametrize("size", [30, 31, 32])
def test_no_bit_of_a_token_can_be_flipped(kind: Kind, size: int) -> None:
    token = kind.make(keyring, size)
    assert kind.open(keyring, token) is not None
    for flipped in _bits_flipped(_decode(token)):
        assert kind.open(keyring, _encode(flipped)) is None


@both_kinds
def test_no_character_of_a_token_can_be_another(kind: Kind) -> None:
    token = kind.make(keyring)
    for i, character in enumerate(token):
        for other in ALPHABET.replace(character, ""):
            assert kind.open(keyring, token[:i] + other + token[i + 1 :]) is None


@both_kinds
def test_no_part_of_a_token_is_a_token(kind: Kind) -> None:
    token = kind.make(keyring)
    for length in range(len(token)):
        assert kind.open(keyring, token[:length]) is None
        assert kind.open(keyring, token[length + 1 :]) is None


@both_kinds
@pytest.mark.parametrize("size", [30, 31, 32])
def test_nothing_can_be_added_to_a_token(kind: Kind, size: int) -> None:
    token = kind.make(keyring, size)
    for added in (*ALPHABET, *string.whitespace, "=", "==", "===", "AA", "AAA", "AAAA", "\0", ".", token):
        assert kind.open(keyring, token + added) is None
        assert kind.open(keyring, added + token) is None


def _urlsafe(token: str) -> str:
    return token.replace("+", "-").replace("/", "_")


def _until(make: Callable[[], str], wanted: Callable[[str], bool]) -> str:
    return next(token for token in iter(make, "") if wanted(token))


@pytest.mark.parametrize(("own", "urlsafe"), [("+", "-"), ("/", "_")], ids=["plus", "slash"])
def test_the_characters_of_urlsafe_base64_are_not_those_of_a_token(own: str, urlsafe: str) -> None:
    token = _until(lambda: keyring.seal_token(b"p" * 32), lambda token: own in token)
    assert keyring.open_token(token, bytes) is not None
    assert keyring.open_token(token.replace(own, urlsafe), bytes) is None
    assert keyring.open_token(token.replace(own, urlsafe, 1), bytes) is None
    id = _until(lambda: keyring.sign_id(new_raw_id(), False), lambda token: own in token)
    assert keyring.verify_id(id) is not None
    assert keyring.verify_id(id.replace(own, urlsafe)) is None


@both_kinds
@pytest.mark.parametrize("size", [30, 31, 32])
def test_the_padding_of_base64_is_not_part_of_a_token(kind: Kind, size: int) -> None:
    token = kind.make(keyring, size)
    padded = token + "=" * (-len(token) % 4)
    assert len(padded) % 4 == 0
    for spelling in {padded, token + "=", token[:4] + "=" + token[4:], "=" + token} - {token}:
        assert kind.open(keyring, spelling) is None


@both_kinds
@pytest.mark.parametrize("size", [30, 31, 32])
def test_the_unused_bits_are_zero(kind: Kind, size: int) -> None:
    token = kind.make(keyring, size)
    same = [token[:-1] + last for last in ALPHABET if _decode(token[:-1] + last) == _decode(token)]
    assert len(same) == {0: 1, 2: 16, 3: 4}[len(token) % 4]
    assert [spelling for spelling in same if kind.open(keyring, spelling) is not None] == [token]


@both_kinds
@pytest.mark.parametrize(
    "foreign",
    [" ", "\t", "\n", "\r", "\v", "\f", "\0", "-", "_", "!", ".", "%", '"', "é"],
    ids=["space", "tab", "lf", "cr", "vt", "ff", "nul", "minus", "underscore", "bang", "dot", "percent", "quote", "accent"],
)
def test_a_token_holds_no_character_that_a_lenient_decoder_skips(kind: Kind, foreign: str) -> None:
    token = kind.make(keyring)
    # Four characters don't change the padding.
    for added in (foreign, foreign * 4, foreign * 8):
        for i in (0, 1, 4, 20, len(token) - 1, len(token)):
            assert kind.open(keyring, token[:i] + added + token[i:]) is None


@both_kinds
@pytest.mark.parametrize(
    "keys",
    [Keyring([OTHER], NAME), Keyring([SECRET], "gaman"), Keyring([SECRET], "__host-gaman"), Keyring([SECRET + " "], NAME)],
    ids=["another secret", "another name", "a lookalike name", "a longer secret"],
)
def test_a_token_belongs_to_one_secret_and_one_cookie(kind: Kind, keys: Keyring) -> None:
    assert kind.open(keys, kind.make(keyring)) is None
    assert kind.open(keyring, kind.make(keys)) is None


@both_kinds
def test_a_token_cannot_be_grafted_onto_the_head_of_another_key(kind: Kind) -> None:
    both = Keyring([SECRET, OTHER], NAME)
    ours, theirs = _decode(kind.make(keyring)), _decode(kind.make(Keyring([OTHER], NAME)))
    assert ours[:HEAD] != theirs[:HEAD]
    assert kind.open(both, _encode(ours[:HEAD] + theirs[HEAD:])) is None
    assert kind.open(both, _encode(theirs[:HEAD] + ours[HEAD:])) is None


def test_an_id_cannot_be_stretched_over_the_name_of_another_cookie() -> None:
    # The cookie's name is signed with the id, and so is the boundary between them.
    def moved(name: str, id: bytes, to: str, stretched: bytes) -> object:
        signed = _decode(Keyring([SECRET], name).sign_id(id, False))
        return Keyring([SECRET], to).verify_id(_encode(signed[: HEAD + 1] + stretched + signed[-16:]))

    assert moved("gaman", ID, "gaman", ID) == (ID, False)
    assert moved("shop-gaman", ID, "gaman", ID + b"shop-") is None
    assert moved("gaman", ID + b"shop-", "shop-gaman", ID) is None


def test_a_token_is_not_an_id_and_an_id_is_not_a_token() -> None:
    assert keyring.verify_id(keyring.seal_token(ID)) is None
    assert keyring.verify_id(keyring.seal_token(b"\0" + ID)) is None
    assert keyring.open_token(keyring.sign_id(ID, False), bytes) is None
    assert keyring.open_token(keyring.sign_id(ID, True), bytes) is None


def test_a_sealed_value_is_not_a_token_and_a_token_is_not_a_value() -> None:
    assert keyring.open_token(_encode(keyring.values(ID).seal("field", b"value")), bytes) is None
    assert keyring.values(ID).open("field", _decode(keyring.seal_token(b"value"))) is None


GARBAGE = {
    "empty": "",
    "one character": "A",
    "a dot": ".",
    "accents": "é" * 60,
    "cyrillic": "ключ" * 20,
    "emoji": "🔑" * 30,
    "full-width letters": "\uff21\uff22\uff23\uff24" * 20,
    "a lone surrogate": "\ud800" * 60,
    "nul": "\0" * 60,
    "latin-1": bytes(range(256)).decode("latin-1"),
    "10 KB of letters": "A" * 10_240,
    "10 KB of padding": "=" * 10_240,
    "10 KB of accents": "é" * 10_240,
    "a path": "../" * 20 + "etc/passwd",
    "a JSON web token": "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.",
    "a pickle": base64.urlsafe_b64encode(b"cos\nsystem\n(S'true'\ntR." * 3).decode(),
    "zeros": _encode(bytes(64)),
}


@both_kinds
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_absent(kind: Kind, garbage: str) -> None:
    assert kind.open(keyring, garbage) is None


@both_kinds
@given(garbage=st.one_of(st.text(), st.text(ALPHABET, max_size=200)))
def test_any_text_is_absent(kind: Kind, garbage: str) -> None:
    assert kind.open(keyring, garbage) is None


@both_kinds
@given(rest=st.binary(max_size=100))
def test_a_genuine_head_before_garbage_is_absent(kind: Kind, rest: bytes) -> None:
    head = _decode(kind.make(keyring))[:HEAD]
    assert kind.open(keyring, _encode(head + rest)) is None


@given(stored=st.binary(max_size=100))
def test_any_octets_in_a_store_are_absent(stored: bytes) -> None:
    values = keyring.values(ID)
    assert values.open("field", stored) is None
    assert values.open("field", values.seal("field", b"")[:HEAD] + stored) is None


@both_kinds
def test_a_token_longer_than_any_cookie_is_absent(kind: Kind) -> None:
    assert keyring.open_token(keyring.seal_token(b"p" * 3000), bytes) == b"p" * 3000
    assert kind.open(keyring, keyring.seal_token(b"p" * 8000)) is None


# Rotation


@both_kinds
def test_the_newest_secret_seals_and_the_older_ones_still_open(kind: Kind) -> None:
    old, rotated, new = Keyring([SECRET], NAME), Keyring([OTHER, SECRET], NAME), Keyring([OTHER], NAME)
    assert kind.open(rotated, kind.make(old)) == kind.open(old, kind.make(old)) is not None
    assert kind.open(new, kind.make(rotated)) == kind.open(old, kind.make(old))
    assert kind.open(old, kind.make(rotated)) is None


@both_kinds
def test_a_secret_that_was_removed_opens_nothing_any_more(kind: Kind) -> None:
    assert kind.open(Keyring([OTHER, "a third secret, which is also long enough"], NAME), kind.make(keyring)) is None


def test_values_rotate_as_tokens_do() -> None:
    old, rotated, new = Keyring([SECRET], NAME), Keyring([OTHER, SECRET], NAME), Keyring([OTHER], NAME)
    sealed = old.values(ID).seal("field", b"value")
    assert rotated.values(ID).open("field", sealed) == b"value"
    assert new.values(ID).open("field", sealed) is None
    resealed = rotated.values(ID).seal("field", b"value")
    assert new.values(ID).open("field", resealed) == b"value"
    assert old.values(ID).open("field", resealed) is None


# Values at rest


def test_a_value_at_rest_needs_the_raw_id_of_its_session() -> None:
    sealed = keyring.values(ID).seal("field", b"value")
    for other in (b"", ID[:-1], ID + b"\0", bytes(32), id_of(ID).encode(), bytes.fromhex(id_of(ID)), new_raw_id()):
        assert keyring.values(other).open("field", sealed) is None
    assert keyring.values(ID).open("field", sealed) == b"value"


@pytest.mark.parametrize("field", ["", "Field", "field ", "field\0", "fiel", "\0field", "gaman\0field"])
def test_a_value_cannot_be_moved_to_another_field(field: str) -> None:
    values = keyring.values(ID)
    assert values.open(field, values.seal("field", b"value")) is None
    assert values.open("field", values.seal(field, b"value")) is None


def test_a_value_belongs_to_one_secret_and_one_cookie() -> None:
    sealed = keyring.values(ID).seal("field", b"value")
    assert Keyring([OTHER], NAME).values(ID).open("field", sealed) is None
    assert Keyring([SECRET], "gaman").values(ID).open("field", sealed) is None


def test_no_bit_of_a_value_can_be_flipped_and_none_left_out() -> None:
    values = keyring.values(ID)
    sealed = values.seal("field", b"value")
    for flipped in _bits_flipped(sealed):
        assert values.open("field", flipped) is None
    for length in range(len(sealed)):
        assert values.open("field", sealed[:length]) is None
    assert values.open("field", sealed + b"\0") is None


# Times at rest

CREATED, EXPIRES = 1_800_000_000.123, 1_800_086_400.123


def test_the_times_of_a_session_are_proven_only_with_its_raw_id_and_a_listed_secret() -> None:
    values = keyring.values(ID)
    seal = values.seal_times(CREATED, EXPIRES)
    assert values.proves_times(seal, CREATED, EXPIRES)
    assert Keyring([OTHER, SECRET], NAME).values(ID).proves_times(seal, CREATED, EXPIRES)
    assert not Keyring([OTHER], NAME).values(ID).proves_times(seal, CREATED, EXPIRES)
    assert not keyring.values(ID[::-1]).proves_times(seal, CREATED, EXPIRES)
    for created, expires in ((CREATED, EXPIRES + 0.001), (CREATED - 0.001, EXPIRES), (EXPIRES, CREATED)):
        assert not values.proves_times(seal, created, expires)


def test_no_bit_of_a_seal_can_be_flipped_and_none_left_out_or_added() -> None:
    values = keyring.values(ID)
    seal = values.seal_times(CREATED, EXPIRES)
    for other in (*_bits_flipped(seal), *(seal[:length] for length in range(len(seal))), seal + b"\0", values.seal("", b"")):
        assert not values.proves_times(other, CREATED, EXPIRES)


@pytest.mark.parametrize("time", [float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 0.0])
def test_times_that_were_not_sealed_are_not_proven(time: float) -> None:
    values = keyring.values(ID)
    seal = values.seal_times(CREATED, EXPIRES)
    assert not values.proves_times(seal, time, EXPIRES)
    assert not values.proves_times(seal, CREATED, time)


# What sealed bytes reveal


@given(payload=st.binary(min_size=8, max_size=300))
def test_sealed_bytes_contain_no_plaintext(payload: bytes) -> None:
    token, value = keyring.seal_token(payload), keyring.values(ID).seal("field", payload)
    for sealed in (_decode(token), token.encode(), _urlsafe(token).encode(), value):
        for start in range(len(payload) - 7):
            assert payload[start : start + 8] not in sealed


def test_sealed_bytes_contain_neither_the_secret_nor_the_names() -> None:
    token, id, value = keyring.seal_token(b"payload"), keyring.sign_id(ID, False), keyring.values(ID).seal("a field's name", b"v")
    for raw in (_decode(token), _decode(id), value):
        for name in (SECRET, NAME, "a field's name"):
            assert name.encode() not in raw
    assert ID not in value
    assert bytes.fromhex(id_of(ID)) not in value


# Lengths


def test_the_length_of_a_token_is_known_before_it_is_sealed() -> None:
    assert [token_length(length) for length in range(201)] == [len(keyring.seal_token(bytes(length))) for length in range(201)]


def test_a_token_needs_no_quoting_in_a_cookie() -> None:
    tokens = [keyring.seal_token(bytes(length)) for length in range(50)] + [keyring.sign_id(new_raw_id(), True) for _ in range(50)]
    assert set("".join(tokens)) <= set(ALPHABET)


# Ids and raw ids


def test_a_new_raw_id_has_256_bits_and_is_never_repeated() -> None:
    ids = {new_raw_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(id) for id in ids} == {32}


@given(id=st.binary(min_size=16, max_size=32))
def test_an_id_is_64_hexadecimal_digits_that_do_not_show_the_raw_id(id: bytes) -> None:
    assert len(id_of(id)) == 64
    assert set(id_of(id)) <= HEX_DIGITS
    assert id.hex() not in id_of(id)


def test_an_id_is_the_same_in_every_process_and_for_every_secret() -> None:
    # Stores persist: this value may never change.
    assert id_of(bytes(32)) == "8e1da8b252a4e0ffb5cf8e9758f50bd57d74c17cd85576e0f2734f6814376f2a"
    assert id_of(bytes(32)) != id_of(bytes(31) + b"\1")


def test_tokens_of_an_earlier_process_are_opened() -> None:
    # Cookies persist across processes and releases: these may not change while the version in their head is 1.
    assert Keyring([SECRET], NAME).open_token("AUUUNI/lJJ/s/NtJXb856F/vk5OBSddBcxc4osLjhCUrl1H63R9EWw", bytes) == b"payload"
    assert Keyring([SECRET], NAME).verify_id("AUUUNI8BAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8HqKzDCq5pSCktFjkXAG7o") == (
        ID,
        True,
    )
    assert (
        Keyring([SECRET], NAME)
        .values(ID)
        .open("field", bytes.fromhex("014514348f9b56b78f1eea0f86b5298cb6ba142b046008a3b2731ca6eee1969525d701648f14"))
        == b"value"
    )
