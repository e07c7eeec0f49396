"""Who may use the service, and where it listens: bearer tokens, socket files, addresses that others reach."""

import hashlib
import logging
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from service import client_of, problem

from features.errors import ShelfmarkError
from serving import access as access_module
from serving.__main__ import _listener, _place, _warn_of_strangers, main
from serving.access import Access, Tokens
from serving.state import ServiceState

SECRET, OTHER = "s3cret-of-the-shop", "another"


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.txt"
    file.write_text(f"# who may\n\n{digest(SECRET)}  the shop\n{digest(OTHER).upper()}\n")
    return file


def bearer(token: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {token}"}


# Tokens


def test_only_a_known_token_is_let_in(file: Path) -> None:
    client = client_of(ServiceState(), access=Access(Tokens(file)))
    for headers in (bearer(SECRET), bearer(OTHER), bearer(SECRET, "bearer"), bearer(f" {SECRET}")):
        assert client.get("/v1/release", headers=headers).status_code == 503  # let in, but not ready
    nobody = client.get("/v1/release")
    assert problem(nobody, 401) == (
        "no token; expected Authorization: Bearer TOKEN; ask the operator for a token"
    )
    assert nobody.headers["WWW-Authenticate"] == 'Bearer realm="shelfmark"'
    for headers in (
        bearer("wrong"), bearer(SECRET, "Basic"), bearer(digest(SECRET)), bearer(""), bearer("é"),
        {"Authorization": SECRET},
    ):  # fmt: skip
        stranger = client.get("/v1/release", headers={"Authorization": headers["Authorization"].encode()})
        assert problem(stranger, 401).startswith("a token that is not known; ")
        assert stranger.headers["WWW-Authenticate"] == 'Bearer realm="shelfmark", error="invalid_token"'


@pytest.mark.parametrize("path", ["/v1/release", "/docs", "/openapi.json", "/nothing", "/v1/corrections/7"])
def test_everything_but_health_needs_a_token(file: Path, path: str) -> None:
    client = client_of(ServiceState(), access=Access(Tokens(file)))
    assert client.get(path).status_code == 401
    assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200
    assert client.get("/readyz").status_code == 503


def test_metrics_need_a_token_where_the_operator_says_so(file: Path) -> None:
    client = client_of(ServiceState(), access=Access(Tokens(file), metrics=False))
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=bearer(SECRET)).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_the_document_says_that_tokens_are_needed(file: Path) -> None:
    client = client_of(ServiceState(), access=Access(Tokens(file)))
    document = client.get("/openapi.json", headers=bearer(SECRET)).json()
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    assert document["paths"]["/v1/categorize"]["post"]["security"] == [{"token": []}]
    assert "401" in document["paths"]["/v1/categorize"]["post"]["responses"]
    assert "security" not in document["paths"]["/healthz"]["get"]
    assert "securitySchemes" not in client_of(ServiceState()).get("/openapi.json").json()["components"]


def test_a_changed_file_counts_and_a_damaged_one_leaves_the_tokens_before(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access_module, "EVERY", 0.0)
    tokens = Tokens(file)
    allowed = [tokens.allow(f"Bearer {name}") for name in (SECRET, "new")]
    assert allowed == [True, False]
    file.write_text(f"{digest('new')} new\n")
    with caplog.at_level(logging.INFO, "shelfmark"):
        assert [tokens.allow(f"Bearer {name}") for name in (SECRET, "new")] == [False, True]
        file.write_text("new\n")
        for _ in range(3):
            assert [tokens.allow(f"Bearer {name}") for name in (SECRET, "new")] == [False, True]
        file.unlink()
        assert tokens.allow("Bearer new")
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR", "ERROR"]
    assert "tokens.txt, line 1: no digest; expected the sha256" in caplog.messages[1]
    assert "until then the tokens of before are in use" in caplog.messages[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no token; expected the sha256 of a token as 64 hex digits"),
        ("# nobody\n", "no token; expected"),
        (f"{'a' * 64}\n{SECRET}\n", ", line 2: no digest; expected"),
        (f"{'g' * 64} name", ", line 1: no digest"),
        ("\n\n" + "a" * 63, ", line 3: no digest"),
    ],
)
def test_a_file_that_is_none_is_an_error_that_names_the_line_and_not_what_is_in_it(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ShelfmarkError) as error:
        Tokens(tmp_path / "tokens")
    assert message in str(error.value) and SECRET not in str(error.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShelfmarkError, match="No such file or directory; expected a file of tokens"):
        Tokens(tmp_path / "tokens")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ShelfmarkError, match="not UTF-8; expected"):
        Tokens(tmp_path / "bytes")


def test_no_token_is_in_the_log(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(ServiceState(), access=Access(Tokens(file)))
    with caplog.at_level(logging.DEBUG):
        client.get("/v1/release", headers=bearer(SECRET))
        client.get("/v1/release", headers=bearer("wrong-one"))
    assert SECRET not in caplog.text and "wrong-one" not in caplog.text and digest(SECRET) not in caplog.text


def test_the_command_of_the_documentation_makes_a_line_that_is_taken(tmp_path: Path) -> None:
    """The block of docs/serving.md, run by a shell."""
    text = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
    block = next(block for block in text.split("```")[1::2] if "sha256" in block and "tokens.txt" in block)
    program = block.partition("\n")[2].replace("python3", sys.executable)
    subprocess.run(["sh", "-ec", program], cwd=tmp_path, check=True, capture_output=True)
    token = (tmp_path / "token.txt").read_text().strip()
    tokens = Tokens(tmp_path / "tokens.txt")
    assert len(token) >= 32 and tokens.allow(f"Bearer {token}") and not tokens.allow("Bearer x")
    assert stat.S_IMODE((tmp_path / "token.txt").stat().st_mode) == 0o600


# Where it listens


def test_a_socket_file_is_for_owner_and_group_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "shelfmark.sock"
    before = os.umask(0o022)
    try:
        with _listener("", 0, str(path)) as listener:
            listener.listen()
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert _place(listener) == f"unix:{path}"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        assert not path.exists()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_socket_file_that_was_left_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "shelfmark.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with _listener("", 0, str(path)) as listener:
        listener.listen()
        with pytest.raises(ShelfmarkError, match="already in use; expected"), _listener("", 0, str(path)):
            pass
        assert path.exists()
    path.write_text("a file of somebody else")
    with pytest.raises(ShelfmarkError, match="Address already in use"), _listener("", 0, str(path)):
        pass
    assert path.read_text() == "a file of somebody else"


def test_the_socket_file_of_a_later_server_stays(tmp_path: Path) -> None:
    path = tmp_path / "shelfmark.sock"
    with _listener("", 0, str(path)):
        path.unlink()
        later = socket.socket(socket.AF_UNIX)
        later.bind(str(path))
    assert path.exists()
    later.close()


@pytest.mark.parametrize("path", ["x" * 200, "missing/shelfmark.sock"])
def test_a_path_that_cannot_be_a_socket_is_named(tmp_path: Path, path: str) -> None:
    expected = "; expected a path in a directory that may be written to"
    with pytest.raises(ShelfmarkError, match=expected), _listener("", 0, str(tmp_path / path)):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--uds s --port 1", "--uds beside --port; expected one place to listen at; leave one out"),
        ("--host 127.0.0.1 --uds s", "--uds beside --host; "),
        ("--protect-metrics", "--protect-metrics without --tokens; "),
        ("--timeout 0", "0.0 is not in the range"),
        ("--timeout nan", "nan is no number of seconds; expected one 0<x<=3600"),
        ("--drain NaN", "NaN is no number of seconds; expected one 0<=x<=3600"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--workspace", str(tmp_path), *arguments.split()])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_workspace_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--workspace", str(tmp_path / "nope"), "--port", "0"])
    assert stop.value.code == 1
    assert f"{tmp_path}/nope: no such directory; expected a workspace with" in capsys.readouterr().err


def test_an_address_that_others_reach_is_warned_of_where_nobody_needs_a_token(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for host, tokens, warned in (
        ("127.0.0.1", False, 0), ("0.0.0.0", True, 0), ("0.0.0.0", False, 1),
        ("::1", False, 0), ("::", False, 1),
    ):  # fmt: skip
        caplog.clear()
        with _listener(host, 0, None) as listener:
            _warn_of_strangers(listener, tokens)
        assert len(caplog.records) == warned, host
    caplog.clear()
    with _listener("", 0, str(tmp_path / "s")) as listener:
        _warn_of_strangers(listener, False)
    assert not caplog.records
