// Express with express-session, set up as their documentation shows: node app.js plain|memory|redis [url].
import express from "express";
import session from "express-session";
import { RedisStore } from "connect-redis";
import { createClient } from "redis";

const [kind, url] = process.argv.slice(2);
const USER = { id: 1, name: "Angga", email: "angga@example.com" };
const OTHER_ROUTES = 100;
const app = express();

function showJson(request, response) {
  response.json({ message: "hello" });
}

if (kind === "plain") {
  app.get("/json", showJson);
  for (let i = 0; i < OTHER_ROUTES; i++) {
    if (i === OTHER_ROUTES / 2) {
      app.get("/users/:user/posts/:post", (request, response) => {
        response.json({ user: request.params.user, post: request.params.post });
      });
    }
    app.get(`/other/${i}/:name`, showJson);
  }
} else {
  let store; // undefined selects express-session's own MemoryStore
  if (kind === "redis") {
    const client = createClient({ url });
    await client.connect();
    store = new RedisStore({ client });
  }
  app.use(
    session({
      store,
      secret: "a secret for benchmarks, 32 bytes and more",
      resave: false,
      saveUninitialized: false,
      cookie: { maxAge: 86_400_000 },
    }),
  );
  app.get("/read", (request, response) => {
    response.json({ user: request.session.user });
  });
  app.get("/write", (request, response) => {
    request.session.user = { ...USER };
    response.json({ status: "logged in" });
  });
}

const server = app.listen(0, "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
