"""The site: an account for each user, and the forms that lead to it."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

import gaman
from dotenv import load_dotenv
from gaman import Context, Response
from gaman.headers import headers
from gaman.session import session

import users

REMEMBERED = 30 * 86_400
"""Seconds for which a browser stays logged in if the user asks for it."""

load_dotenv(interpolate=False)  # GAMAN_KEY and other settings, from the file .env


async def home(ctx: Context) -> Response:
    """Show the front page."""
    return await page(ctx, "Welcome", '<p><a href="/account">Your account</a> · <a href="/signup">Sign up</a></p>')


async def require_login(ctx: Context) -> Response | None:
    """Send visitors to the login, and back from there."""
    if await ctx.session.owner() is not None:
        return None
    return Response.redirect(f"/login?next={quote(ctx.path)}", status=303)


async def account(ctx: Context) -> Response:
    """Show a page that only a user sees."""
    user = await ctx.session.owner() or ""
    logout_form = '<form method="post" action="/logout"><button>Log out</button></form>'
    return await page(ctx, "Your account", f"<p>You are {escape(user)}.</p>{logout_form}")


async def login_form(ctx: Context, notice: str = "") -> Response:
    """Show the form of the login, with 403 after a wrong password."""
    form = FORM.format(autocomplete="current-password", more=REMEMBER, button="Log in")
    return await page(ctx, "Log in", form, notice, 403 if notice else 200)


async def login(ctx: Context) -> Response:
    """Log a user in."""
    response = redirect(ctx)
    name, password = await ctx.input("name") or "", await ctx.input("password") or ""
    if not await users.check(name, password):
        return await login_form(ctx, "There is no user with this name and password.")
    await enter(ctx, name)
    return response


async def signup_form(ctx: Context, notice: str = "") -> Response:
    """Show the form for new users, with 422 after a fault."""
    form = FORM.format(autocomplete="new-password", more="", button="Sign up")
    return await page(ctx, "Sign up", form, notice, 422 if notice else 200)


async def signup(ctx: Context) -> Response:
    """Create a user, and log them in."""
    response = redirect(ctx)
    name, password = await ctx.input("name") or "", await ctx.input("password") or ""
    if not 1 <= len(name) <= 64 or not name.isprintable() or not 8 <= len(password) <= 1024:
        return await signup_form(ctx, "A name has up to 64 characters, and a password at least 8.")
    if not await users.create(name, password):
        return await signup_form(ctx, "This name is taken.")
    await enter(ctx, name)
    return response


def redirect(ctx: Context) -> Response:
    """Return the redirect to the page that a user came for. Call it first: a `next` that leads to another site is a 400."""
    return Response.redirect(ctx.query.get("next") or "/account", status=303, local=True)


async def enter(ctx: Context, name: str) -> None:
    """Begin the session of a user."""
    # With 0, the cookie ends with the browser.
    await ctx.session.login(name, max_age=REMEMBERED if await ctx.input("remember") else 0)
    await ctx.session.set("notice", f"Hello {name}!")


async def logout(ctx: Context) -> Response:
    """End the session."""
    await ctx.session.logout()
    return Response.redirect("/", status=303)


async def page(ctx: Context, title: str, body: str, notice: str = "", status: int = 200) -> Response:
    """Return a page of HTML, with its *notice* or the one that an earlier request left."""
    notice = notice or await ctx.session.pop("notice", "")
    return Response.html(PAGE.format(title=escape(title), notice=escape(notice), body=body, nonce=ctx.locals["csp_nonce"]), status)


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style nonce="{nonce}">
body {{ font: 1.1rem/1.5 system-ui; max-width: 30rem; margin: 2rem auto; padding: 0 1rem }}
label {{ display: block }}
</style>
<h1>{title}</h1>
<p role="status">{notice}</p>
{body}
"""
# Without an action, a form is sent to its own URL, with its query.
FORM = """<form method="post">
<label>Name <input name="name" autocomplete="username" maxlength="64" required></label>
<label>Password <input name="password" type="password" autocomplete="{autocomplete}" minlength="8" required></label>
{more}
<button>{button}</button>
</form>
"""
REMEMBER = '<label><input name="remember" type="checkbox"> Remember me for 30 days</label>'

app = gaman.App(
    {
        "/": {"GET": home},
        "/account/*": require_login,
        "/account": {"GET": account},
        "/login": {"GET": login_form, "POST": login},
        "/signup": {"GET": signup_form, "POST": signup},
        "/logout": {"POST": logout},
    },
    integrations=[headers(), session()],
)

if __name__ == "__main__":
    gaman.serve(app)
