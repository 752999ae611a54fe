-- Reads and writes one session or one owner's set in Redis, for the calls in `redis.lua`.

-- The error of a call, with its code first, where the client looks for it.
local function failure(answer)
    local text = type(answer) == 'table' and answer.err or answer
    return {err = string.match(text, '%u%u%u+ .*') or text}
end

local function ending_key(key) return string.sub(key, 1, -65) .. 'ending' end

-- Returns a marker for a large session, which the driver then loads with is_large, by a command of its own.
local function load_live(key, is_large)
    local size = not is_large and tonumber(redis.call('HGET', key, 'size') or '')
    if size and size > LARGE then return 'LARGE' end
    return redis.call('HGETALL', key)
end

-- In a Cluster, loads that share a round trip have a command each. Before any end_everyone(), it needs none of the other functions,
-- and defining them would take a fifth of its time.
if not ARGV[1] and redis.pcall('EXISTS', ending_key(KEYS[1])) == 0 then return load_live(KEYS[1]) end

-- A time that is further ahead was stored before the clock was set back.
local function is_recent(instant, now)
    return instant and instant <= now + MAX_SKEW and now < instant + TOMBSTONE
end

-- What a call has as its ending, because its slot moves; see ending_of().
local given
-- The ending, which the calls of a batch read once.
local known, known_at

-- Returns the version that a live session has at least, and when end_everyone() was; see Ending in _rules.py. In a Cluster there is
-- one for each hash tag. Its key isn't declared: a call with two keys, of which one is absent, fails while their slot moves.
local function ending_of(key)
    if given then return tonumber(given[1]) or 0, tonumber(given[2]) end
    if known then return known, known_at end
    local min_version = redis.pcall('HGET', ending_key(key), 'min_version')
    if not min_version then
        known = 0
    elseif min_version.err then
        error({err = 'ENDING ' .. min_version.err})
    else
        known, known_at = tonumber(min_version) or 0, tonumber(redis.call('HGET', ending_key(key), 'at') or '')
    end
    return known, known_at
end

-- Returns a tombstone in the place of a session that end_everyone() ended, or nil.
local function ended_by_everyone(key)
    local min_version, at = ending_of(key)
    if min_version == 0 then return nil end
    local found = redis.call('HMGET', key, 'version', 'deadline', 'ended')
    local version, deadline = tonumber(found[1] or ''), tonumber(found[2] or '')
    if found[3] or not version or not deadline or version >= min_version then return nil end
    return {'ended', '1', 'deadline', string.format('%.17g', math.min(deadline, at + TOMBSTONE))}
end

local function load(key, is_large)
    return ended_by_everyone(key) or load_live(key, is_large)
end

if not ARGV[1] then
    local is_done, answer = pcall(load, KEYS[1])
    return is_done and answer or failure(answer)
end

-- Writes a value that is there already, so that WAIT covers it. Since Redis 7.2, WAIT covers only the writes of its own connection,
-- and a call that finds its change made has lost the connection that made it.
local function confirm(key, name, value)
    redis.call('HSET', key, name, value)
end

-- Returns why the session isn't there, or nil, its size, version and expiry.
local function find(key, now)
    local found = redis.call('HMGET', key, 'ended', 'deadline', 'expires', 'version', 'size')
    local deadline, version, size = tonumber(found[2] or ''), tonumber(found[4] or ''), tonumber(found[5] or '')
    if not deadline or deadline <= now then return 'ABSENT' end
    if found[1] then
        confirm(key, 'ended', found[1])
        return 'ENDED'
    end
    local expires = tonumber(found[3] or '')
    if not expires or not (deadline <= expires and expires < YEAR_10000) then return 'ABSENT' end
    -- Neither infinity nor NaN is whole.
    if not version or version % 1 ~= 0 or not size or size % 1 ~= 0 then return 'ABSENT' end
    local min_version, at = ending_of(key)
    if version < min_version then return is_recent(at, tonumber(now)) and 'ENDED' or 'ABSENT' end
    return nil, size, version, found[3]
end

-- The error of a full server, or false; nil until a call of the batch may write.
local refusal

-- A full Redis checks only the first write of a script, and accepts one that can't take memory. So a batch first tries one that
-- could, and changes nothing. If it is refused, one that can't lets logouts pass, and calls that store something raise the refusal.
local function find_room(key)
    local answer = redis.pcall('SET', key, '', redis.call('EXISTS', key) == 1 and 'NX' or 'XX')
    refusal = type(answer) == 'table' and answer.err and string.match(answer.err, '%u%u%u+ .*') or false
    if refusal then redis.pcall('HDEL', key, '') end
end

local function refuse_if_full()
    if refusal then error({err = refusal}) end
end

local function id_of(key) return string.sub(key, -64) end

-- Redis refuses a time that is too far ahead.
local function expire(key, now, deadline)
    redis.call('PEXPIRE', key, math.ceil((math.min(tonumber(deadline), YEAR_10000) - now) * 1000))
end

-- Sets *names* to *values*, and the fields that follow in pairs.
local function set_fields(key, names, values, ...)
    for i = 2, #names do redis.call('HSET', key, names[i], values[i]) end
    if names[1] then
        redis.call('HSET', key, names[1], values[1], ...)
    else
        redis.call('HSET', key, ...)
    end
end

-- The names of the session's own fields begin with a colon, and only these count.
local function is_own(name) return string.byte(name) == 58 end

local function stored_size(key, name)
    local length = redis.call('HSTRLEN', key, name)
    -- The length is 0 for a missing field, too.
    return (length > 0 or redis.call('HEXISTS', key, name) == 1) and #name + length or 0
end

-- In a Cluster the owner's set is on another server, and owned() removes the member.
local function leave(key, live, owner)
    if live and owner then redis.pcall('ZREM', string.sub(key, 1, -65) .. 'owner:' .. owner, id_of(key)) end
end

-- Replaces the hash by a tombstone.
local function end_session(key, live, now, successor)
    local deadline = string.format('%.17g', now + TOMBSTONE)
    local names = {}
    if live then
        leave(key, live, redis.call('HGET', key, 'owner'))
        redis.pcall('ZREM', live, id_of(key))
        redis.call('DEL', key)
    else
        -- While its slot moves, Redis would look for a key that is absent for an instant on the other server.
        names = redis.call('HKEYS', key)
    end
    redis.call('HSET', key, 'ended', 1, 'deadline', deadline)
    if successor then redis.call('HSET', key, 'successor', successor) end
    for _, name in ipairs(names) do
        if name ~= 'ended' and name ~= 'deadline' and name ~= 'successor' then redis.call('HDEL', key, name) end
    end
    expire(key, now, deadline)
end

-- Returns why a change isn't made, or nil and the size of the session after it. A session without fields is ended.
local function resize(key, live, now, size, max_size, names, values, deletes)
    local new = size
    for i, name in ipairs(names) do
        if is_own(name) then new = new + #name + #values[i] - stored_size(key, name) end
    end
    for _, name in ipairs(deletes) do
        if is_own(name) then new = new - stored_size(key, name) end
    end
    if new > max_size and new > size then return 'TOO_LARGE' end
    if new > 0 then return nil, new end
    end_session(key, live, now)
    return 'EMPTIED'
end

-- Returns when all sessions of the owner were ended, or false if that is a minute ago. Raises an error if the key holds no set,
-- before anything is changed: a session that isn't in its owner's set can't be found there.
local function last_end(set, now)
    local score = redis.pcall('ZSCORE', set, 'ended')
    if type(score) == 'table' then error({err = "ERR the key of an owner's set holds something else"}) end
    local instant = score and tonumber(score) - TOMBSTONE
    return is_recent(instant, now) and instant
end

local function is_revoked(set, now, since)
    local instant = last_end(set, now)
    return instant and tonumber(since) < instant
end

-- Returns whether end_everyone() came after this ownership, or after the beginning of this creation.
local function precedes_ending(key, now, since, created)
    local _, at = ending_of(key)
    if not at or at > now + MAX_FLIGHT or now >= at + TOMBSTONE then return false end
    return since and tonumber(since) < at or created and created < math.floor(at * 1000) / 1000
end

-- Expired members leave afterwards, so that the set is never absent for an instant. A set of an earlier version has a TTL.
local function enter(set, id, score, now)
    if redis.call('ZADD', set, 'CH', score, id) == 0 then
        -- WAIT covers only changes; see confirm().
        redis.call('ZADD', set, 0, id)
        redis.call('ZADD', set, score, id)
    end
    redis.call('PERSIST', set)
    redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
end

local function keep_live(key, live, now, deadline)
    expire(key, now, deadline)
    -- A broken index costs a wrong count, and no session.
    if live then redis.pcall('ZADD', live, deadline, id_of(key)) end
end

local function store(key, live, values, token, created, expires, deadline, names)
    if redis.call('EXISTS', key) == 1 then
        if redis.call('HGET', key, 'token') ~= token then return 'CONFLICT' end
        confirm(key, 'token', token)
        return 'WRITTEN'
    end
    refuse_if_full()
    local size = 0
    for i, name in ipairs(names) do
        if is_own(name) then size = size + #name + #values[i] end
    end
    local times = {'created', created, 'expires', expires, 'deadline', deadline}
    set_fields(key, names, values, 'token', token, 'version', (ending_of(key)), 'size', size, unpack(times))
    keep_live(key, live, tonumber(created), deadline)
    return 'WRITTEN'
end

local function change(key, live, values, now, size, version, expires, deadline, names, deletes)
    if deadline and tonumber(deadline) > tonumber(expires) then deadline = expires end
    if deadline then
        set_fields(key, names, values, 'version', version + 1, 'size', size, 'deadline', deadline)
        keep_live(key, live, now, deadline)
    else
        set_fields(key, names, values, 'version', version + 1, 'size', size)
    end
    for _, name in ipairs(deletes) do redis.call('HDEL', key, name) end
    return 'WRITTEN'
end
