-- The script of wrk: it requests one path with each session's cookie in turn, and compares every response with one body.
-- wrk -t1 -c N -s wrk.lua http://127.0.0.1:PORT/path -- BODY [COOKIE ...]
-- A script of wrk doesn't know which connection a request is for. There are as many cookies as connections, so the requests in flight
-- are of nearly as many sessions.

local expected, requests, next_one = nil, {}, 0
local threads = {}
wrong, example = 0, ""

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  expected = arguments[1]
  for i = 2, #arguments do
    requests[i - 1] = wrk.format("GET", nil, {Cookie = arguments[i]})
  end
  if #requests == 0 then
    requests[1] = wrk.format("GET")
  end
end

function request()
  next_one = next_one % #requests + 1
  return requests[next_one]
end

function response(status, headers, body)
  if status ~= 200 or body ~= expected then
    wrong = wrong + 1
    example = status .. " " .. body
  end
end

function done(summary, latency, rates)
  local failed = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  local wrong, example = 0, ""
  for _, thread in ipairs(threads) do
    wrong, example = wrong + thread:get("wrong"), thread:get("example")
  end
  local figures = '\nfigures {"seconds": %f, "requests": %d, "failed": %d, "wrong": %d, "p50": %f, "p99": %f} %s\n'
  local p50, p99 = latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
  io.write(figures:format(summary.duration / 1e6, summary.requests, failed, wrong, p50, p99, example))
end
