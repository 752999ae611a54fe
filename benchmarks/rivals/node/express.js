// Express with express-session, set up as their documentation shows, with sessions in memory or in Redis.
import { RedisStore } from "connect-redis";
import express from "express";
import session from "express-session";
import { createClient } from "redis";

import { AFTER, BEFORE, MAX_AGE, SECRET, USER, announce, kind, url } from "./common.js";

const app = express();

function showJson(request, response) {
  response.json({ message: "hello" });
}

if (kind === "plain") {
  app.get("/json", showJson);
  for (const path of BEFORE) app.get(path, showJson);
  app.get("/users/:user/posts/:post", (request, response) => {
    response.json({ user: request.params.user, post: request.params.post });
  });
  for (const path of AFTER) app.get(path, showJson);
} else {
  let store; // undefined selects express-session's own MemoryStore
  if (kind === "redis") {
    const client = createClient({ url });
    await client.connect();
    store = new RedisStore({ client });
  }
  app.use(session({ store, secret: SECRET, resave: false, saveUninitialized: false, cookie: { maxAge: MAX_AGE * 1000 } }));
  app.get("/read", (request, response) => {
    response.json({ user: request.session.user });
  });
  app.get("/write", (request, response) => {
    request.session.user = { ...USER };
    response.json({ status: "logged in" });
  });
}

const server = app.listen(0, "127.0.0.1", () => announce(server.address().port));
