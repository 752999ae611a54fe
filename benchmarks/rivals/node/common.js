// The work that each program of this folder does: node|bun PROGRAM plain|cookies|memory|redis [url].
export const [kind, url] = process.argv.slice(2);
export const USER = { id: 1, name: "Angga", email: "angga@example.com" };
export const SECRET = "a secret for benchmarks, 32 bytes and more";
export const MAX_AGE = 86_400;
// Paths of other routes, before and after the requested one.
export const BEFORE = Array.from({ length: 50 }, (_, i) => `/other/${i}/:name`);
export const AFTER = Array.from({ length: 50 }, (_, i) => `/other/${i + 50}/:name`);

export function announce(port) {
  console.log(`listening on http://127.0.0.1:${port}`);
}
