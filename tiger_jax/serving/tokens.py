"""Who may read, and who may change things: two tokens, kept in files."""

import hmac
import os

from fastapi import Request
from starlette.types import Scope

from tiger_jax.errors import InputError
from tiger_jax.serving.errors import ApiError
from tiger_jax.workdir.reading import path_of

TOKEN_VARIABLE, ADMIN_VARIABLE = "TIGER_SERVE_TOKEN", "TIGER_SERVE_ADMIN_TOKEN"
MIN_TOKEN = 16
_IS_ADMIN = "tiger_jax.is_admin"


class Tokens:
    """The readers' token and the administrators', who may read too.

    Without a readers' token, whoever reaches the server may read. Without one for
    administrators, the readers' is theirs; without either, nobody changes anything.
    """

    def __init__(self, reader: str | None = None, admin: str | None = None) -> None:
        self.reader, self.admin = reader, admin
        self._files: tuple[str | None, str | None] | None = None

    @classmethod
    def read(cls, file: str | None = None, admin_file: str | None = None) -> "Tokens":
        """Takes each from its file, or else from the environment; InputError if bad."""
        tokens = cls()
        tokens._files = file, admin_file
        tokens.read_again()
        return tokens

    def read_again(self) -> None:
        """Takes over what the files hold now; InputError, and no change, if bad."""
        if self._files is None:
            return
        file, admin_file = self._files
        found = (
            read_token(file, TOKEN_VARIABLE),
            read_token(admin_file, ADMIN_VARIABLE, "serve.admin_token_file"),
        )
        self.reader, self.admin = found

    def refusal(self, scope: Scope, authorization: str) -> ApiError | None:
        """Says 401 to who bears no token that is needed, and notes who bears which."""
        scheme, _, given = authorization.partition(" ")
        is_reader, is_admin = (
            # In a time that doesn't tell how much of it was right.
            token is not None
            and hmac.compare_digest(
                given.strip().encode("latin-1", "replace"), token.encode()
            )
            and scheme.lower() == "bearer"
            for token in (self.reader, self.admin)
        )
        scope[_IS_ADMIN] = is_admin or (is_reader and self.admin is None)
        if self.reader is None or is_reader or is_admin:
            return None
        message = "send the token: Authorization: Bearer TOKEN"
        return ApiError(401, "unauthorized", message)

    def check_admin(self, request: Request) -> None:
        """Refuses, by 403, who isn't an administrator."""
        if self.reader is None and self.admin is None:
            raise ApiError(
                403,
                "no_token_set",
                "the catalogue can be changed only where the server has a token: start "
                f"it with {TOKEN_VARIABLE} or serve.token_file",
            )
        if not request.scope.get(_IS_ADMIN):
            message = (
                "this takes the administrators' token: Authorization: Bearer TOKEN"
            )
            raise ApiError(403, "not_admin", message)


def read_token(
    file: str | None, variable: str = TOKEN_VARIABLE, name: str = "serve.token_file"
) -> str | None:
    """Takes a token from a file, or else from the environment; None if neither.

    Never from the command line, which every user of a machine can read.

    Raises:
        InputError: The file can't be read, or the token is no good one.
    """
    if file is not None:
        try:
            token = path_of(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{name}={file} can't be read: {error}") from error
    else:
        token = os.environ.get(variable, "").strip()
        if not token:
            return None
    if len(token) < MIN_TOKEN or not token.isascii() or " " in token:
        raise InputError(
            f"{name}: a token has at least {MIN_TOKEN} ASCII characters and no spaces: "
            "make one with `openssl rand -hex 32`"
        )
    return token
