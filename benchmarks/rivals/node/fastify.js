// Fastify with @fastify/secure-session, set up as their documentation shows, with a response schema for each route.
import secureSession from "@fastify/secure-session";
import Fastify from "fastify";

import { AFTER, BEFORE, MAX_AGE, USER, announce, kind } from "./common.js";

const KEY = Buffer.from(Array.from({ length: 32 }, (_, i) => i));
const fastify = Fastify();

// Fastify compiles a serializer from the schema of a response.
function respondingWith(properties) {
  return { schema: { response: { 200: { type: "object", properties } } } };
}

const text = { type: "string" };
const user = { type: "object", properties: { id: { type: "integer" }, name: text, email: text } };

async function showJson() {
  return { message: "hello" };
}

if (kind === "plain") {
  const hello = respondingWith({ message: text });
  for (const path of BEFORE) fastify.get(path, hello, showJson);
  fastify.get("/json", hello, showJson);
  fastify.get("/users/:user/posts/:post", respondingWith({ user: text, post: text }), async (request) => {
    return { user: request.params.user, post: request.params.post };
  });
  for (const path of AFTER) fastify.get(path, hello, showJson);
} else {
  fastify.register(secureSession, {
    key: KEY,
    expiry: MAX_AGE,
    cookie: { path: "/", maxAge: MAX_AGE, secure: true, httpOnly: true, sameSite: "lax" },
  });
  fastify.get("/read", respondingWith({ user }), async (request) => {
    return { user: request.session.get("user") };
  });
  fastify.get("/write", respondingWith({ status: text }), async (request) => {
    request.session.set("user", USER);
    return { status: "logged in" };
  });
}

await fastify.listen({ host: "127.0.0.1", port: 0 });
announce(fastify.server.address().port);
