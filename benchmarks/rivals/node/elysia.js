// Elysia on Bun with a signed cookie, set up as its documentation shows; Elysia encodes the cookie's value as JSON.
import { Elysia, t } from "elysia";

import { AFTER, BEFORE, MAX_AGE, SECRET, USER, announce, kind } from "./common.js";

const app = new Elysia(kind === "plain" ? {} : { cookie: { secrets: SECRET, sign: ["session"] } });

function showJson() {
  return { message: "hello" };
}

if (kind === "plain") {
  for (const path of BEFORE) app.get(path, showJson);
  app.get("/json", showJson);
  app.get("/users/:user/posts/:post", ({ params: { user, post } }) => ({ user, post }));
  for (const path of AFTER) app.get(path, showJson);
} else {
  const user = t.Object({ id: t.Number(), name: t.String(), email: t.String() });
  const cookie = t.Cookie({ session: t.Optional(t.Object({ user })) });
  app.get("/read", ({ cookie: { session } }) => ({ user: session.value?.user ?? null }), { cookie });
  app.get(
    "/write",
    ({ cookie: { session } }) => {
      // Assigning an equal value would leave the cookie out.
      session.set({ value: { user: USER }, maxAge: MAX_AGE, path: "/", secure: true, httpOnly: true, sameSite: "lax" });
      return { status: "logged in" };
    },
    { cookie },
  );
}

app.listen({ hostname: "127.0.0.1", port: 0 }, ({ port }) => announce(port));
