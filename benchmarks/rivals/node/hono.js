// Hono on Bun with a signed cookie, set up as its documentation shows; the cookie's value is JSON.
import { Hono } from "hono";
import { getSignedCookie, setSignedCookie } from "hono/cookie";

import { AFTER, BEFORE, MAX_AGE, SECRET, USER, announce, kind } from "./common.js";

const app = new Hono();

function showJson(c) {
  return c.json({ message: "hello" });
}

if (kind === "plain") {
  for (const path of BEFORE) app.get(path, showJson);
  app.get("/json", showJson);
  app.get("/users/:user/posts/:post", (c) => {
    const { user, post } = c.req.param();
    return c.json({ user, post });
  });
  for (const path of AFTER) app.get(path, showJson);
} else {
  app.get("/read", async (c) => {
    const session = await getSignedCookie(c, SECRET, "session");
    return c.json({ user: session ? JSON.parse(session).user : null });
  });
  app.get("/write", async (c) => {
    await setSignedCookie(c, "session", JSON.stringify({ user: USER }), SECRET, {
      maxAge: MAX_AGE,
      secure: true,
      httpOnly: true,
      sameSite: "Lax",
    });
    return c.json({ status: "logged in" });
  });
}

announce(Bun.serve({ fetch: app.fetch, hostname: "127.0.0.1", port: 0 }).port);
