"""Nonce: the value by which a policy allows a page's own inline scripts and styles (CSP 3, section 2.3.1)."""

from __future__ import annotations

from secrets import token_urlsafe

from gaman import GamanError


class Nonce:
    """The nonce of one response. Its first use by `str()`, an f-string or a template makes it.

    A response that doesn't use it has no nonce in its policy. GamanError is raised if the first use comes after the policy is sent.
    """

    # Defaults of the class, because most requests make this object and don't use it.
    text = ""
    """The nonce, or "" until it is used."""
    is_sent = False
    """Whether the response's policy is made. It has no nonce if none was used before."""

    def __str__(self) -> str:
        if not self.text:
            if self.is_sent:
                raise GamanError(
                    "this response's policy is sent without a nonce, so browsers would ignore one in its body; "
                    "write nonce = str(ctx.locals['csp_nonce']) before the stream begins"
                )
            self.text = token_urlsafe(16)
        return self.text
